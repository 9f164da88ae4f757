//! The rows of the table, in groups; each may change the server before its rows are asked.

use std::time::{Duration, Instant};

use reqwest::Method;
use serde_json::{Value, json};
use testkit::vault_server::VaultAdmin;

use super::{ABSENT, NUMBER, PLAIN, Row, Stand, TEXT, data, get, gives, post, results, says};

/// In the order in which they are asked.
pub(super) const GROUPS: [fn(&Stand) -> Vec<Row>; 13] = [
    open_to_all,
    tokens,
    dead_tokens,
    logins,
    secret_ids,
    keys,
    encrypting,
    decrypting,
    rewrapping,
    missing_keys,
    odd_requests,
    keys_made_again,
    sealed,
];

const DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";
const BAD_TOKEN: &str = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n";
const TOO_OLD: &str = "ciphertext or signature version is disallowed by policy (too old)";
const NOT_AUTHENTIC: &str = "cipher: message authentication failed";
const OLD_NOT_AUTHENTIC: &str = "invalid ciphertext: unable to decrypt";

fn open_to_all(_: &Stand) -> Vec<Row> {
    vec![
        get(
            "health",
            "sys/health",
            gives(
                200,
                json!({ "initialized": true, "sealed": false, "standby": false, "version": TEXT, "server_time_utc": NUMBER }),
            ),
        ),
        get(
            "seal status",
            "sys/seal-status",
            gives(
                200,
                json!({ "type": "shamir", "initialized": true, "sealed": false, "t": 1, "n": 1, "progress": 0, "version": TEXT }),
            ),
        ),
    ]
}

fn tokens(stand: &Stand) -> Vec<Row> {
    // 1.1.5 knows the period of a role by its old name only.
    let role =
        json!({ "period": "1h", "token_period": "1h", "allowed_policies": "user", "orphan": true });
    stand.admin.write("auth/token/roles/periodic", &role);
    let made = stand.admin.write("auth/token/create/periodic", &json!({ "policies": ["user"] }));
    let of_role = made["auth"]["client_token"].as_str().unwrap().to_owned();
    let limited = stand.token(json!({ "ttl": "1h", "explicit_max_ttl": "1h", "num_uses": 9 }));
    let fixed = stand.token(json!({ "ttl": "1h", "renewable": false }));
    let voiceless = json!({ "ttl": "1h", "no_default_policy": true });
    let voiceless =
        stand.admin.token("voiceless", "path \"none\" { capabilities = [\"read\"] }", &voiceless);
    let lookup = "auth/token/lookup-self";
    let renew = |increment: u64| json!({ "increment": increment });
    let whole = json!({
        "id": TEXT, "accessor": TEXT, "ttl": NUMBER, "creation_ttl": 3600, "period": 3600, "explicit_max_ttl": 0,
        "renewable": true, "orphan": false, "num_uses": 0, "policies": ["default", "user"], "type": "service",
        "expire_time": TEXT, "issue_time": TEXT, "creation_time": NUMBER, "path": "auth/token/create", "entity_id": "",
        "display_name": "token", "meta": null,
    });
    let granted = |seconds: u64| {
        json!({ "auth": {
            "client_token": TEXT, "lease_duration": seconds, "renewable": true, "policies": ["default", "user"],
            "accessor": TEXT, "token_type": "service",
        }})
    };
    vec![
        get("a periodic token", lookup, data(whole)).with(&stand.user),
        get("a role's periodic token", lookup, data(json!({ "role": "periodic", "period": ABSENT, "ttl": NUMBER, "orphan": true })))
            .with(&of_role),
        get("a token that ends", lookup, data(json!({ "explicit_max_ttl": 3600, "period": ABSENT, "num_uses": 8, "renewable": true })))
            .with(&limited),
        get(
            "the root token",
            lookup,
            data(json!({ "ttl": 0, "creation_ttl": 0, "expire_time": null, "policies": ["root"], "renewable": false, "orphan": true })),
        )
        .with(&stand.root),
        get("a token without a permission on itself", lookup, says(403, &[DENIED])).with(&voiceless),
        post("a periodic token is renewed for its period", "auth/token/renew-self", renew(3601), gives(200, granted(3600)))
            .with(&stand.user),
        post("so is a role's", "auth/token/renew-self", renew(3601), gives(200, granted(3600))).with(&of_role),
        post(
            "a token that ends is renewed for what is left, with a warning",
            "auth/token/renew-self",
            renew(3601),
            gives(200, json!({ "warnings": [format!("TTL of{TEXT}")], "auth": { "lease_duration": NUMBER, "renewable": true } })),
        )
        .with(&limited),
        post("a token that can't be renewed", "auth/token/renew-self", renew(1), says(400, &["lease is not renewable"]))
            .with(&fixed),
        post("a token that may not renew itself", "auth/token/renew-self", renew(1), says(403, &[DENIED]))
            .with(&voiceless),
        post(
            "capabilities at several paths",
            "sys/capabilities-self",
            json!({ "paths": ["transit/keys/k", "transit/encrypt/k", "transit/encrypt/unmakeable", "transit/export/encryption-key/k"] }),
            data(json!({
                "transit/keys/k": ["read"],
                "transit/encrypt/k": ["create", "update"],
                "transit/encrypt/unmakeable": ["update"],
                "transit/export/encryption-key/k": ["deny"],
                "capabilities": ABSENT,
            })),
        )
        .with(&stand.user),
        post(
            "capabilities at one path",
            "sys/capabilities-self",
            json!({ "paths": ["transit/keys/k"] }),
            data(json!({ "transit/keys/k": ["read"], "capabilities": ["read"] })),
        )
        .with(&stand.user),
        post("capabilities of the root token", "sys/capabilities-self", json!({ "paths": ["transit/keys/k"] }), data(json!({ "transit/keys/k": ["root"] })))
            .with(&stand.root),
        post("capabilities without a permission to ask", "sys/capabilities-self", json!({ "paths": ["a"] }), says(403, &[DENIED]))
            .with(&voiceless),
        post("capabilities of nothing", "sys/capabilities-self", json!({}), says(400, &["paths must be supplied"])).with(&stand.user),
    ]
}

fn dead_tokens(stand: &Stand) -> Vec<Row> {
    let expired = stand.token(json!({ "ttl": "1s" }));
    let revoked = stand.token(json!({ "ttl": "1h" }));
    stand.admin.write("auth/token/revoke", &json!({ "token": revoked }));
    let it = VaultAdmin::new(&stand.url, &expired);
    let deadline = Instant::now() + Duration::from_secs(60);
    while it.ask("GET", "auth/token/lookup-self", &json!({})).0 == 200 {
        assert!(Instant::now() < deadline, "the token does not expire");
        std::thread::sleep(Duration::from_millis(200));
    }
    let mut rows = Vec::new();
    for (method, path) in [
        (Method::GET, "transit/keys/k"),
        (Method::GET, "auth/token/lookup-self"),
        (Method::POST, "transit/decrypt/k"),
    ] {
        let row = |what, token: &str| {
            let body = json!({ "ciphertext": stand.new }).to_string().into_bytes();
            let bad = Row::new(what, method.clone(), path, body, says(403, &[BAD_TOKEN]));
            bad.with(token).oldest(says(403, &["permission denied"]))
        };
        rows.extend([
            row("a token that is none", "no-token-at-all"),
            row("an expired token", &expired),
            row("a revoked token", &revoked),
            row("a token that looks like a new Vault's and is none", "hvs.no-such-token")
                .oldest(says(400, &["error performing token check: failed to look up namespace from the token: no namespace"])),
            Row { token: None, ..row("no token", "").oldest(says(400, &["missing client token"])) },
        ]);
    }
    for row in rows.iter_mut().filter(|row| row.token.is_none()) {
        row.newest = says(403, &["permission denied"]);
    }
    rows
}

fn logins(stand: &Stand) -> Vec<Row> {
    stand.admin.write("sys/auth/approle", &json!({ "type": "approle" }));
    let role = json!({ "token_policies": "user", "policies": "user", "token_ttl": "1h" });
    stand.admin.write("auth/approle/role/node", &role);
    let id = stand.admin.read("auth/approle/role/node/role-id")["data"]["role_id"].clone();
    let secret = stand.admin.write("auth/approle/role/node/secret-id", &json!({}));
    let secret = secret["data"]["secret_id"].clone();
    let login = |what, body: Value, newest| post(what, "auth/approle/login", body, newest);
    let good = json!({ "auth": {
        "client_token": TEXT, "accessor": TEXT, "policies": ["default", "user"], "lease_duration": NUMBER, "renewable": true,
        "token_type": "service", "metadata": { "role_name": "node" },
    }, "data": null });
    vec![
        login("a login", json!({ "role_id": id, "secret_id": secret }), gives(200, good)),
        login(
            "a login with a wrong secret id",
            json!({ "role_id": id, "secret_id": "wrong" }),
            says(400, &["invalid role or secret ID"]),
        )
        .oldest(says(400, &["invalid secret id"])),
        login(
            "a login with a wrong role id",
            json!({ "role_id": "wrong", "secret_id": secret }),
            says(400, &["invalid role or secret ID"]),
        )
        .oldest(says(400, &["invalid role ID"])),
        login(
            "a login without a secret id",
            json!({ "role_id": id }),
            says(400, &["missing secret_id"]),
        ),
        login(
            "a login without a role id",
            json!({ "secret_id": secret }),
            says(500, &["failed to determine alias name from login request"]),
        )
        .oldest(says(400, &["missing role_id"])),
        post(
            "a login where nothing is mounted",
            "auth/nowhere/login",
            json!({ "role_id": id, "secret_id": secret }),
            says(403, &["permission denied"]),
        )
        .oldest(says(400, &["missing client token"])),
        post(
            "the same with a token",
            "auth/nowhere/login",
            json!({}),
            says(404, &["no handler for route \"auth/nowhere/login\". route entry not found."]),
        )
        .with(&stand.root)
        .oldest(says(404, &["no handler for route 'auth/nowhere/login'"])),
    ]
}

/// What Vault tells of a secret id, to who may ask: nothing of one that is used up or that it never knew. After [`logins`].
fn secret_ids(stand: &Stand) -> Vec<Row> {
    const ROLE: &str = "auth/approle/role/counted";
    stand.admin.write(ROLE, &json!({ "token_policies": "user", "policies": "user" }));
    let id = stand.admin.read(&format!("{ROLE}/role-id"))["data"]["role_id"].clone();
    let made = |settings: Value| {
        stand.admin.write(ROLE, &settings);
        let made = stand.admin.write(&format!("{ROLE}/secret-id"), &json!({}));
        made["data"]["secret_id"].clone()
    };
    let endless = made(json!({}));
    let counted = made(json!({ "secret_id_num_uses": 2, "secret_id_ttl": "1h" }));
    let may_ask = format!("path \"{ROLE}/secret-id/lookup\" {{ capabilities = [\"update\"] }}");
    let may_ask = stand.admin.token("may-ask", &may_ask, &json!({ "ttl": "1h" }));
    let login = json!({ "role_id": id, "secret_id": counted });
    let log_in = |what| post(what, "auth/approle/login", login.clone(), gives(200, json!({})));
    let path = format!("{ROLE}/secret-id/lookup");
    let look_up = |what, secret_id: &Value, newest| {
        post(what, &path, json!({ "secret_id": secret_id }), newest).with(&may_ask)
    };
    let left = |uses: u64| {
        data(json!({
            "cidr_list": [], "creation_time": "20…", "expiration_time": "20…", "last_updated_time": "20…",
            "metadata": {}, "secret_id_accessor": TEXT, "secret_id_num_uses": uses, "secret_id_ttl": 3600,
            "token_bound_cidrs": [],
        }))
    };
    let never = json!({
        "secret_id_num_uses": 0, "secret_id_ttl": 0, "expiration_time": "0001-01-01T00:00:00Z",
    });
    let unknown = || gives(204, Value::Null);
    vec![
        look_up("a secret id without an end", &endless, data(never)),
        look_up("a secret id with an end", &counted, left(2)),
        log_in("a login that takes a use"),
        look_up("a secret id with one use left", &counted, left(1)),
        log_in("a login that takes the last use"),
        look_up("a secret id that is used up", &counted, unknown()),
        look_up("a secret id that Vault does not know", &json!("wrong"), unknown()),
        post("a look-up of nothing", &path, json!({}), says(400, &["missing secret_id"]))
            .with(&may_ask),
        get("a secret id in no body", &path, says(405, &["1 error occurred:\n\t* unsupported operation\n\n"]))
            .with(&stand.root),
        look_up("a look-up without leave", &endless, says(403, &[DENIED]))
            .with(&stand.user),
        post(
            "a secret id of a role that is not there",
            "auth/approle/role/gone/secret-id/lookup",
            json!({ "secret_id": endless }),
            says(500, &["1 error occurred:\n\t* role \"gone\" does not exist\n\n"]),
        )
        .with(&stand.root),
        post(
            "a secret id where nothing is mounted",
            "auth/nowhere/role/counted/secret-id/lookup",
            json!({ "secret_id": endless }),
            says(
                404,
                &["no handler for route \"auth/nowhere/role/counted/secret-id/lookup\". route entry not found."],
            ),
        )
        .with(&stand.root)
        .oldest(says(
            404,
            &["no handler for route 'auth/nowhere/role/counted/secret-id/lookup'"],
        )),
    ]
}

fn keys(stand: &Stand) -> Vec<Row> {
    let key = json!({
        "name": "k", "type": "aes256-gcm96", "latest_version": 2, "min_decryption_version": 1,
        "min_encryption_version": 0, "min_available_version": 0, "derived": false, "deletion_allowed": false,
        "exportable": false, "allow_plaintext_backup": false, "supports_encryption": true, "supports_decryption": true,
        "supports_derivation": true, "supports_signing": false, "keys": { "1": NUMBER, "2": NUMBER },
    });
    let read = |what, path: &str, newest| get(what, path, newest).with(&stand.user);
    vec![
        read("a key", "transit/keys/k", data(key)),
        read(
            "a key whose old versions are put away",
            "transit/keys/narrow",
            data(
                json!({ "min_decryption_version": 2, "latest_version": 2, "keys": { "1": ABSENT, "2": NUMBER } }),
            ),
        ),
        read(
            "a key that can't encrypt",
            "transit/keys/signing",
            data(
                json!({ "type": "ed25519", "supports_encryption": false, "keys": { "1": { "public_key": TEXT, "creation_time": TEXT } } }),
            ),
        ),
        read("a key that is not there", "transit/keys/none", says(404, &[])),
        read(
            "a name that no key has",
            "transit/keys/a%20b",
            says(404, &["1 error occurred:\n\t* unsupported path\n\n"]),
        ),
        get("a key, without a permission", "transit/keys/k", says(403, &[DENIED]))
            .with(&stand.poor),
        read(
            "where nothing is mounted",
            "nowhere/keys/k",
            says(404, &["no handler for route \"nowhere/keys/k\". route entry not found."]),
        )
        .oldest(says(404, &["no handler for route 'nowhere/keys/k'"])),
        Row {
            namespace: Some("team"),
            ..read(
                "a namespace, which needs Enterprise",
                "transit/keys/k",
                data(json!({ "name": "k" })),
            )
        },
    ]
}

fn encrypting(stand: &Stand) -> Vec<Row> {
    let encrypt =
        |what, body: Value, newest| post(what, "transit/encrypt/k", body, newest).with(&stand.user);
    let bad = "illegal base64 data at input byte 0";
    vec![
        encrypt("one encryption", json!({ "plaintext": PLAIN }), data(json!({ "ciphertext": "vault:v2:…", "key_version": 2 })))
            .oldest(data(json!({ "ciphertext": "vault:v2:…", "key_version": ABSENT }))),
        encrypt(
            "a batch of encryptions, as Coffer sends it",
            json!({ "type": "ecdsa-p256", "batch_input": [{ "plaintext": PLAIN }, { "plaintext": "" }] }),
            results(200, json!([{ "ciphertext": "vault:v2:…", "key_version": 2, "error": ABSENT }, { "ciphertext": "vault:v2:…" }])),
        )
        .oldest(results(200, json!([{ "ciphertext": "vault:v2:…", "key_version": ABSENT }, { "ciphertext": "vault:v2:…" }]))),
        encrypt("what is not base64", json!({ "plaintext": "!!!!" }), says(400, &[bad])),
        encrypt(
            "a batch with a bad item",
            json!({ "batch_input": [{ "plaintext": PLAIN }, { "plaintext": "!!!!" }] }),
            results(400, json!([{ "ciphertext": "vault:v2:…" }, { "error": bad, "ciphertext": ABSENT }])),
        )
        .oldest(results(200, json!([{ "ciphertext": "vault:v2:…" }, { "error": bad, "ciphertext": ABSENT }]))),
        encrypt("encryption of nothing", json!({}), says(400, &["missing plaintext to encrypt"])),
        encrypt("an empty batch", json!({ "batch_input": [] }), says(400, &["missing batch input to process"])),
        encrypt(
            "an item without its text",
            json!({ "batch_input": [{ "plaintext": PLAIN }, {}] }),
            says(500, &["1 error occurred:\n\t* failed to parse batch input: 1 error(s) decoding:\n\n* '[1].plaintext' missing plaintext to encrypt\n\n"]),
        )
        .oldest(results(200, json!([{ "ciphertext": "vault:v2:…" }, { "ciphertext": "vault:v2:…" }]))),
        encrypt("a version that is not there yet", json!({ "plaintext": PLAIN, "key_version": 9 }), says(400, &["requested version for encryption is higher than the latest key version"])),
        post("encryption by a key that can't", "transit/encrypt/signing", json!({ "batch_input": [{ "plaintext": PLAIN }] }), results(400, json!([{ "error": "message encryption not supported for key type ed25519" }])))
            .oldest(results(200, json!([{ "error": "message encryption not supported for key type ed25519" }])))
            .with(&stand.user),
        post("encryption without a permission", "transit/encrypt/k", json!({ "plaintext": PLAIN }), says(403, &[DENIED])).with(&stand.poor),
    ]
}

fn decrypting(stand: &Stand) -> Vec<Row> {
    let (old, new) = (&stand.old, &stand.new);
    let tampered = format!("{}AAAA", &new[..new.len() - 4]);
    let decrypt =
        |what, body: Value, newest| post(what, "transit/decrypt/k", body, newest).with(&stand.user);
    let mut rows = vec![
        decrypt("one decryption", json!({ "ciphertext": new }), data(json!({ "plaintext": PLAIN }))),
        decrypt("one of the old version", json!({ "ciphertext": old }), data(json!({ "plaintext": PLAIN }))),
        decrypt(
            "a batch of decryptions",
            json!({ "batch_input": [{ "ciphertext": new }, { "ciphertext": old }] }),
            results(200, json!([{ "plaintext": PLAIN, "error": ABSENT }, { "plaintext": PLAIN }])),
        ),
        decrypt(
            "a batch with bad items",
            json!({ "batch_input": [{ "ciphertext": "bad" }, { "ciphertext": new, "reference": "r" }, { "ciphertext": tampered }] }),
            results(400, json!([
                { "error": "invalid ciphertext: no prefix", "plaintext": "" },
                { "plaintext": PLAIN, "reference": "r" },
                { "error": NOT_AUTHENTIC, "plaintext": "" },
            ])),
        )
        .oldest(results(200, json!([
            { "error": "invalid ciphertext: no prefix", "plaintext": ABSENT },
            { "plaintext": PLAIN, "reference": ABSENT },
            { "error": OLD_NOT_AUTHENTIC, "plaintext": ABSENT },
        ]))),
        decrypt("decryption of nothing", json!({}), says(400, &["missing ciphertext to decrypt"])),
        decrypt("an empty batch to decrypt", json!({ "batch_input": [] }), says(400, &["missing batch input to process"])),
        decrypt("tampered ciphertext", json!({ "ciphertext": tampered }), says(400, &[NOT_AUTHENTIC])).oldest(says(400, &[OLD_NOT_AUTHENTIC])),
        post("ciphertext of another key", "transit/decrypt/again", json!({ "ciphertext": old }), says(400, &[NOT_AUTHENTIC]))
            .oldest(says(400, &[OLD_NOT_AUTHENTIC]))
            .with(&stand.user),
        post("a version below the minimum", "transit/decrypt/narrow", json!({ "ciphertext": old }), says(400, &[TOO_OLD])).with(&stand.user),
        post(
            "a batch with a version below the minimum",
            "transit/decrypt/narrow",
            json!({ "batch_input": [{ "ciphertext": old }] }),
            results(400, json!([{ "error": TOO_OLD }])),
        )
        .oldest(results(200, json!([{ "error": TOO_OLD }])))
        .with(&stand.user),
        post("decryption without a permission", "transit/decrypt/k", json!({ "ciphertext": new }), says(403, &[DENIED])).with(&stand.poor),
        post("decryption by a key that can't", "transit/decrypt/signing", json!({ "ciphertext": old }), says(400, &["message decryption not supported for key type ed25519"]))
            .with(&stand.user),
    ];
    for (what, text, error) in [
        ("no prefix", "local:v1:AAAA", "invalid ciphertext: no prefix"),
        ("no version", "vault:v1", "invalid ciphertext: wrong number of fields"),
        (
            "a version that is no number",
            "vault:vx:AAAA",
            "invalid ciphertext: version number could not be decoded",
        ),
        (
            "a version that is not there yet",
            "vault:v9:AAAA",
            "invalid ciphertext: version is too new",
        ),
        ("a negative version", "vault:v-1:AAAA", TOO_OLD),
        ("no base64", "vault:v2:!!!!", "invalid ciphertext: could not decode base64"),
        ("too little of it", "vault:v2:AAAA", "invalid ciphertext length"),
    ] {
        rows.push(decrypt(what, json!({ "ciphertext": text }), says(400, &[error])));
    }
    rows
}

fn rewrapping(stand: &Stand) -> Vec<Row> {
    let old = &stand.old;
    let rewrap =
        |what, body: Value, newest| post(what, "transit/rewrap/k", body, newest).with(&stand.user);
    vec![
        rewrap("one rewrap", json!({ "ciphertext": old }), data(json!({ "ciphertext": "vault:v2:…", "key_version": 2 })))
            .oldest(data(json!({ "ciphertext": "vault:v2:…" }))),
        rewrap(
            "a batch of rewraps with bad items",
            json!({ "batch_input": [{ "ciphertext": old }, { "ciphertext": "bad" }, {}] }),
            results(200, json!([
                { "ciphertext": "vault:v2:…", "key_version": 2, "error": ABSENT },
                { "error": "invalid ciphertext: no prefix", "ciphertext": ABSENT },
                { "error": "missing ciphertext to decrypt" },
            ])),
        )
        .oldest(results(200, json!([
            { "ciphertext": "vault:v2:…" }, { "error": "invalid ciphertext: no prefix" }, { "error": "missing ciphertext to decrypt" },
        ]))),
        rewrap("rewrap of nothing", json!({}), says(400, &["missing ciphertext to decrypt"])),
        rewrap("an empty batch to rewrap", json!({ "batch_input": [] }), says(400, &["missing batch input to process"])),
        post("rewrap of a version below the minimum", "transit/rewrap/narrow", json!({ "batch_input": [{ "ciphertext": old }] }), results(200, json!([{ "error": TOO_OLD }])))
            .with(&stand.user),
        post("rewrap without a permission", "transit/rewrap/k", json!({ "ciphertext": old }), says(403, &[DENIED])).with(&stand.poor),
    ]
}

/// No key is made where there was none: see `vault-transit`.
fn missing_keys(stand: &Stand) -> Vec<Row> {
    let (text, batch) = (
        json!({ "ciphertext": stand.old }),
        json!({ "batch_input": [{ "ciphertext": stand.old }] }),
    );
    let not_found = || says(400, &["encryption key not found"]);
    let plain = json!({ "type": "ecdsa-p256", "batch_input": [{ "plaintext": PLAIN }] });
    vec![
        post("decryption by a key that is not there", "transit/decrypt/none", text, not_found())
            .with(&stand.user),
        post("a batch of that", "transit/decrypt/none", batch.clone(), not_found())
            .with(&stand.user),
        post("rewrap by a key that is not there", "transit/rewrap/none", batch, not_found())
            .with(&stand.user),
        post(
            "encryption by a key that is not there and may be made",
            "transit/encrypt/none",
            plain.clone(),
            says(400, &["key type ecdsa-p256 not supported for this operation"]),
        )
        .with(&stand.user),
        post(
            "the same with a type that encrypts no more",
            "transit/encrypt/none",
            json!({ "type": "ed25519", "plaintext": PLAIN }),
            says(400, &["unknown key type ed25519"]),
        )
        .with(&stand.user),
        get("and it was not made", "transit/keys/none", says(404, &[])).with(&stand.user),
        post(
            "encryption by a key that is not there and may not be made",
            "transit/encrypt/unmakeable",
            plain.clone(),
            says(403, &[DENIED]),
        )
        .with(&stand.user),
        post(
            "encryption where nothing is mounted",
            "nowhere/encrypt/k",
            plain,
            says(404, &["no handler for route \"nowhere/encrypt/k\". route entry not found."]),
        )
        .oldest(says(404, &["no handler for route 'nowhere/encrypt/k'"]))
        .with(&stand.user),
    ]
}

fn odd_requests(stand: &Stand) -> Vec<Row> {
    let raw = |what, body: &str, newest| {
        Row::new(what, Method::POST, "transit/encrypt/k", body.as_bytes().to_vec(), newest)
            .with(&stand.user)
    };
    let huge = format!("{{\"plaintext\":\"{}\"}}", "A".repeat(34 << 20));
    vec![
        raw("no body", "", says(400, &["missing plaintext to encrypt"])),
        raw("JSON that is none", "{\"plaintext\":", gives(500, json!({ "errors": [TEXT] })))
            .oldest(gives(400, json!({ "errors": [TEXT] }))),
        raw(
            "JSON of another shape",
            "[1]",
            gives(400, json!({ "errors": ["error parsing JSON: failed to parse JSON input: …"] })),
        )
        .oldest(gives(400, json!({ "errors": [TEXT] }))),
        raw(
            "a batch of another shape",
            "{\"batch_input\": \"x\"}",
            gives(500, json!({ "errors": [TEXT] })),
        ),
        Row {
            may_close: true,
            ..raw("a body beyond 32 MiB", &huge, gives(500, json!({ "errors": [TEXT] })))
        }
        .oldest(gives(413, json!({ "errors": [TEXT] }))),
        get(
            "another method",
            "transit/encrypt/k",
            says(405, &["1 error occurred:\n\t* unsupported operation\n\n"]),
        )
        .with(&stand.root),
        get(
            "a path that transit has not",
            "transit/elsewhere",
            says(404, &["1 error occurred:\n\t* unsupported path\n\n"]),
        )
        .with(&stand.root),
    ]
}

fn keys_made_again(stand: &Stand) -> Vec<Row> {
    let seal = |key: &str| {
        let answer =
            stand.admin.write(&format!("transit/encrypt/{key}"), &json!({ "plaintext": PLAIN }));
        answer["data"]["ciphertext"].as_str().unwrap().to_owned()
    };
    let (gone, again) = (seal("gone"), seal("again"));
    for key in ["gone", "again"] {
        let path = format!("transit/keys/{key}");
        assert_eq!(
            stand.admin.ask("DELETE", &path, &json!({})).0,
            400,
            "deletion is not allowed yet"
        );
        stand.admin.write(&format!("{path}/config"), &json!({ "deletion_allowed": true }));
        stand.admin.delete(&path);
    }
    stand.admin.write("transit/keys/again", &json!({}));
    let batch = |text: &str| json!({ "batch_input": [{ "ciphertext": text }] });
    vec![
        get("a deleted key", "transit/keys/gone", says(404, &[])).with(&stand.user),
        post(
            "what a deleted key sealed",
            "transit/decrypt/gone",
            batch(&gone),
            says(400, &["encryption key not found"]),
        )
        .with(&stand.user),
        get(
            "a key made again",
            "transit/keys/again",
            data(
                json!({ "latest_version": 1, "deletion_allowed": false, "keys": { "1": NUMBER } }),
            ),
        )
        .with(&stand.user),
        post(
            "what the key before it sealed",
            "transit/decrypt/again",
            batch(&again),
            results(400, json!([{ "error": NOT_AUTHENTIC }])),
        )
        .oldest(results(200, json!([{ "error": OLD_NOT_AUTHENTIC }])))
        .with(&stand.user),
        post(
            "the same, to rewrap",
            "transit/rewrap/again",
            batch(&again),
            results(200, json!([{ "error": NOT_AUTHENTIC }])),
        )
        .oldest(results(200, json!([{ "error": OLD_NOT_AUTHENTIC }])))
        .with(&stand.user),
    ]
}

/// The last group: no Vault is unsealed again.
fn sealed(stand: &Stand) -> Vec<Row> {
    assert_eq!(stand.admin.ask("PUT", "sys/seal", &json!({})).0, 204);
    let is_sealed = || says(503, &["Vault is sealed"]);
    let old = says(503, &["error performing token check: Vault is sealed"]);
    let login = json!({ "role_id": "a", "secret_id": "b" });
    let mut rows = vec![
        get(
            "the health of a sealed Vault",
            "sys/health",
            gives(503, json!({ "initialized": true, "sealed": true, "standby": true })),
        ),
        get(
            "the status of a sealed Vault",
            "sys/seal-status",
            gives(200, json!({ "initialized": true, "sealed": true, "t": 1, "n": 1 })),
        ),
        post("a login at a sealed Vault", "auth/approle/login", login, is_sealed()),
    ];
    for path in ["auth/token/lookup-self", "transit/keys/k"] {
        rows.push(
            get("a read of a sealed Vault", path, is_sealed())
                .with(&stand.user)
                .oldest(old.clone()),
        );
        rows.push(
            get("one with a bad token", path, is_sealed())
                .with("no-token-at-all")
                .oldest(old.clone()),
        );
    }
    for path in ["encrypt/k", "decrypt/k", "rewrap/k"] {
        let path = format!("transit/{path}");
        let row = post(
            "a write to a sealed Vault",
            &path,
            json!({ "plaintext": PLAIN, "ciphertext": stand.old }),
            is_sealed(),
        );
        rows.push(row.with(&stand.user).oldest(old.clone()));
    }
    rows
}

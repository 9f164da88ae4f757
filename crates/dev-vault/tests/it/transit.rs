use std::collections::BTreeSet;

use super::*;

impl Client {
    async fn encrypt(&self, text: &str) -> String {
        let reply = self.post("transit/encrypt/k", json!({ "plaintext": b64(text) })).await;
        reply.data()["ciphertext"].as_str().unwrap().to_owned()
    }

    async fn decrypt(&self, ciphertext: &str) -> Reply {
        self.post("transit/decrypt/k", json!({ "ciphertext": ciphertext })).await
    }

    async fn rewrap(&self, ciphertext: &str) -> Reply {
        self.post("transit/rewrap/k", json!({ "ciphertext": ciphertext })).await
    }

    async fn rotate(&self) {
        assert_eq!(self.post("transit/keys/k/rotate", json!({})).await.status, 200);
    }

    async fn configure(&self, config: Value) -> Reply {
        self.post("transit/keys/k/config", config).await
    }
}

#[tokio::test]
async fn a_key_shows_every_field() {
    let (_vault, client) = vault_with_key().await;
    let before = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    let made = client.post("transit/keys/new", json!({})).await;
    let key = client.get("transit/keys/new").await.data().clone();
    assert_eq!(made.data(), &key, "creation answers with the key");
    let created = key["keys"]["1"].as_u64().unwrap();
    assert!((before..before + 60).contains(&created), "{created}");
    let expected = json!({
        "allow_plaintext_backup": false, "auto_rotate_period": 0, "deletion_allowed": false,
        "derived": false, "exportable": false, "imported_key": false, "keys": { "1": created },
        "latest_version": 1, "min_available_version": 0, "min_decryption_version": 1,
        "min_encryption_version": 0, "name": "new", "supports_decryption": true,
        "supports_derivation": true, "supports_encryption": true, "supports_signing": false,
        "type": "aes256-gcm96",
    });
    assert_eq!(key, expected);
}

#[tokio::test]
async fn creating_a_key_again_keeps_it() {
    let (_vault, client) = vault_with_key().await;
    let sealed = client.encrypt("x").await;
    assert_eq!(client.post("transit/keys/k", json!({})).await.status, 200);
    assert_eq!(client.decrypt(&sealed).await.data()["plaintext"], b64("x"));
}

#[tokio::test]
async fn keys_are_listed_read_and_missed() {
    let vault = DevVault::start().await.unwrap();
    let client = Client::new(&vault);
    let nowhere = client.get("transit/keys/k").await;
    assert_refused(
        &nowhere,
        404,
        "no handler for route \"transit/keys/k\". route entry not found.",
    );
    assert_eq!(client.post("sys/mounts/transit", json!({ "type": "transit" })).await.status, 204);
    assert_refused(&client.list("transit/keys").await, 404, "");
    assert_refused(&client.get("transit/keys/k").await, 404, "");
    for name in ["b", "a"] {
        client.post(&format!("transit/keys/{name}"), json!({})).await;
    }
    assert_eq!(client.list("transit/keys").await.data()["keys"], json!(["a", "b"]));
    assert_eq!(client.get("transit/keys?list=true").await.data()["keys"], json!(["a", "b"]));
    let unsupported = "1 error occurred:\n\t* unsupported path\n\n";
    assert_refused(&client.post("transit/keys/a%2Fb", json!({})).await, 404, unsupported);
    let other = client.post("transit/keys/c", json!({ "type": "rot13" })).await;
    assert_refused(&other, 400, "unknown key type rot13");
}

#[tokio::test]
async fn mounts_are_apart() {
    let (_vault, client) = vault_with_key().await;
    assert_eq!(client.post("sys/mounts/kms/two", json!({ "type": "transit" })).await.status, 204);
    assert_eq!(client.post("kms/two/keys/k", json!({})).await.status, 200);
    let sealed = client.encrypt("x").await;
    let elsewhere = client.post("kms/two/decrypt/k", json!({ "ciphertext": sealed })).await;
    assert_refused(&elsewhere, 400, "cipher: message authentication failed");
}

#[tokio::test]
async fn what_is_encrypted_is_decrypted() {
    let (_vault, client) = vault_with_key().await;
    let reply = client.post("transit/encrypt/k", json!({ "plaintext": b64("secret") })).await;
    assert_eq!(reply.data()["key_version"], 1);
    assert_eq!(reply.body["mount_type"], "transit");
    let sealed = reply.data()["ciphertext"].as_str().unwrap();
    // nonce 12, ciphertext 6, tag 16
    let raw = STANDARD.decode(sealed.strip_prefix("vault:v1:").unwrap()).unwrap();
    assert_eq!(raw.len(), 12 + 6 + 16);
    assert_eq!(client.decrypt(sealed).await.data()["plaintext"], b64("secret"));
    assert_ne!(client.encrypt("secret").await, sealed, "each sealing has its own nonce");
    assert_eq!(client.decrypt(&client.encrypt("").await).await.data()["plaintext"], "");
}

#[tokio::test]
async fn every_bit_of_a_ciphertext_counts() {
    let (_vault, client) = vault_with_key().await;
    let sealed = client.encrypt("secret").await;
    let raw = STANDARD.decode(sealed.strip_prefix("vault:v1:").unwrap()).unwrap();
    for at in 0..raw.len() {
        let mut raw = raw.clone();
        raw[at] ^= 1;
        let tampered = format!("vault:v1:{}", STANDARD.encode(raw));
        assert_refused(
            &client.decrypt(&tampered).await,
            400,
            "cipher: message authentication failed",
        );
    }
}

#[tokio::test]
async fn what_is_no_ciphertext_is_refused_in_vaults_words() {
    let (_vault, client) = vault_with_key().await;
    for (ciphertext, words) in [
        ("", "missing ciphertext to decrypt"),
        ("hello", "invalid ciphertext: no prefix"),
        ("vault:v1", "invalid ciphertext: wrong number of fields"),
        ("vault:vx:AAAA", "invalid ciphertext: version number could not be decoded"),
        ("vault:v9:AAAA", "invalid ciphertext: version is too new"),
        ("vault:v1:!!!!", "invalid ciphertext: could not decode base64"),
        ("vault:v1:AAAA", "invalid ciphertext length"),
    ] {
        assert_refused(&client.decrypt(ciphertext).await, 400, words);
        assert_refused(&client.rewrap(ciphertext).await, 400, words);
    }
}

#[tokio::test]
async fn plaintext_must_be_there_and_be_base64() {
    let (_vault, client) = vault_with_key().await;
    let missing = client.post("transit/encrypt/k", json!({})).await;
    assert_refused(&missing, 400, "missing plaintext to encrypt");
    for (text, at) in [("!!!!", 0), ("AA!A", 2), ("AAAAA", 4)] {
        let reply = client.post("transit/encrypt/k", json!({ "plaintext": text })).await;
        assert_refused(&reply, 400, &format!("illegal base64 data at input byte {at}"));
    }
}

#[tokio::test]
async fn associated_data_is_enforced() {
    let (_vault, client) = vault_with_key().await;
    let body = json!({ "plaintext": b64("x"), "associated_data": b64("aad") });
    let reply = client.post("transit/encrypt/k", body).await;
    let sealed = reply.data()["ciphertext"].as_str().unwrap().to_owned();
    let with = |aad: &str| json!({ "ciphertext": sealed, "associated_data": aad });
    let opened = client.post("transit/decrypt/k", with(&b64("aad"))).await;
    assert_eq!(opened.data()["plaintext"], b64("x"));
    let failed = "cipher: message authentication failed";
    assert_refused(&client.post("transit/decrypt/k", with(&b64("other"))).await, 400, failed);
    assert_refused(&client.decrypt(&sealed).await, 400, failed);
    // rewrap fails even with the right data
    assert_refused(&client.post("transit/rewrap/k", with(&b64("aad"))).await, 400, failed);
    assert_eq!(client.post("transit/decrypt/k", with("!!")).await.status, 500);

    let items = json!([
        { "ciphertext": sealed }, { "ciphertext": sealed, "associated_data": b64("aad") }
    ]);
    let batch = client.post("transit/decrypt/k", json!({ "batch_input": items })).await;
    assert_eq!(batch.status, 400);
    assert_eq!(batch.body["data"]["batch_results"][0]["error"], failed);
    assert_eq!(batch.body["data"]["batch_results"][1]["plaintext"], b64("x"));
}

#[tokio::test]
async fn encrypt_batches_answer_item_by_item() {
    let (_vault, client) = vault_with_key().await;
    let items = json!([{ "plaintext": b64("a") }, { "plaintext": b64("b"), "reference": "r" }]);
    let reply = client.post("transit/encrypt/k", json!({ "batch_input": items })).await;
    let results = reply.data()["batch_results"].as_array().unwrap();
    assert_eq!(results.len(), 2);
    for (result, (text, reference)) in results.iter().zip([("a", ""), ("b", "r")]) {
        assert_eq!((&result["key_version"], &result["reference"]), (&json!(1), &json!(reference)));
        let opened = client.decrypt(result["ciphertext"].as_str().unwrap()).await;
        assert_eq!(opened.data()["plaintext"], b64(text));
    }

    let items = json!([{ "plaintext": b64("a") }, { "plaintext": "!!!!" }]);
    let reply = client.post("transit/encrypt/k", json!({ "batch_input": items })).await;
    assert_eq!(reply.status, 400);
    let results = &reply.body["data"]["batch_results"];
    assert!(results[0]["ciphertext"].is_string());
    let failed = json!({ "error": "illegal base64 data at input byte 0", "reference": "" });
    assert_eq!(results[1], failed);
}

#[tokio::test]
async fn a_failed_item_of_a_decrypt_batch_spoils_only_the_status() {
    let (_vault, client) = vault_with_key().await;
    let sealed = client.encrypt("x").await;
    let items = json!([{ "ciphertext": sealed }, { "ciphertext": "bad", "reference": "r" }]);
    let reply = client.post("transit/decrypt/k", json!({ "batch_input": items })).await;
    assert_eq!(reply.status, 400);
    let good = json!({ "plaintext": b64("x"), "reference": "" });
    let bad =
        json!({ "plaintext": "", "error": "invalid ciphertext: no prefix", "reference": "r" });
    assert_eq!(reply.body["data"]["batch_results"], json!([good, bad]));
    assert!(reply.body["request_id"].is_string(), "the envelope is there: {}", reply.body);

    let mut body = json!({ "batch_input": items, "partial_failure_response_code": 207 });
    let reply = client.post("transit/decrypt/k", body.clone()).await;
    assert_eq!((reply.status, &reply.body["data"]["batch_results"]), (207, &json!([good, bad])));
    body["batch_input"] = json!([{ "ciphertext": "bad" }]);
    let reply = client.post("transit/decrypt/k", body).await;
    assert_eq!(reply.status, 400, "a total failure is no partial one");
}

#[tokio::test]
async fn a_failed_item_of_a_rewrap_batch_leaves_the_status() {
    let (_vault, client) = vault_with_key().await;
    let sealed = client.encrypt("x").await;
    client.rotate().await;
    let items = json!([
        { "ciphertext": sealed, "reference": "r" }, { "ciphertext": "bad" }, {},
        { "ciphertext": sealed, "key_version": 9 },
    ]);
    let reply = client.post("transit/rewrap/k", json!({ "batch_input": items })).await;
    let results = &reply.data()["batch_results"];
    assert_eq!((&results[0]["key_version"], &results[0]["reference"]), (&json!(2), &json!("r")));
    let renewed = client.decrypt(results[0]["ciphertext"].as_str().unwrap()).await;
    assert_eq!(renewed.data()["plaintext"], b64("x"));
    assert_eq!(results[1], json!({ "error": "invalid ciphertext: no prefix", "reference": "" }));
    assert_eq!(results[2]["error"], "missing ciphertext to decrypt");
    let too_high = "requested version for encryption is higher than the latest key version";
    assert_eq!(results[3]["error"], too_high);
}

#[tokio::test]
async fn batches_of_the_wrong_shape_are_refused() {
    let (_vault, client) = vault_with_key().await;
    for path in ["transit/encrypt/k", "transit/decrypt/k", "transit/rewrap/k"] {
        let reply = client.post(path, json!({ "batch_input": [] })).await;
        assert_refused(&reply, 400, "missing batch input to process");
        for batch in [json!("x"), json!([1])] {
            assert_eq!(client.post(path, json!({ "batch_input": batch })).await.status, 500);
        }
    }
    let items = json!([{ "plaintext": b64("x") }, { "reference": "r" }]);
    let reply = client.post("transit/encrypt/k", json!({ "batch_input": items })).await;
    let words = "1 error occurred:\n\t* failed to parse batch input: 1 error(s) decoding:\n\n* '[1].plaintext' missing plaintext to encrypt\n\n";
    assert_refused(&reply, 500, words);
}

#[tokio::test]
async fn rotation_keeps_what_was_sealed_before() {
    let (_vault, client) = vault_with_key().await;
    let old = client.encrypt("x").await;
    client.rotate().await;
    let new = client.encrypt("x").await;
    assert!(old.starts_with("vault:v1:") && new.starts_with("vault:v2:"), "{old} {new}");
    let renewed = client.rewrap(&old).await.data()["ciphertext"].as_str().unwrap().to_owned();
    assert!(renewed.starts_with("vault:v2:"), "{renewed}");
    for sealed in [&old, &new, &renewed] {
        assert_eq!(client.decrypt(sealed).await.data()["plaintext"], b64("x"));
    }
    // The prefix is not what selects the key bytes: a v1 body under v2's name does not open.
    let crossed = old.replace("vault:v1:", "vault:v2:");
    assert_refused(&client.decrypt(&crossed).await, 400, "cipher: message authentication failed");
    assert_refused(&client.post("transit/keys/no/rotate", json!({})).await, 400, "key not found");
}

#[tokio::test]
async fn a_version_can_be_asked_for() {
    let (_vault, client) = vault_with_key().await;
    client.rotate().await;
    let ask = |version: Value| json!({ "plaintext": b64("x"), "key_version": version });
    for version in [json!(1), json!("1")] {
        let reply = client.post("transit/encrypt/k", ask(version)).await;
        assert_eq!(reply.data()["key_version"], 1);
        assert!(reply.data()["ciphertext"].as_str().unwrap().starts_with("vault:v1:"));
    }
    for (version, words) in [
        (3, "requested version for encryption is higher than the latest key version"),
        (-1, "requested version for encryption is negative"),
    ] {
        assert_refused(&client.post("transit/encrypt/k", ask(json!(version))).await, 400, words);
    }
    client.configure(json!({ "min_encryption_version": 2 })).await;
    let words = "requested version for encryption is less than the minimum encryption key version";
    assert_refused(&client.post("transit/encrypt/k", ask(json!(1))).await, 400, words);
}

#[tokio::test]
async fn versions_below_the_minimum_are_put_away() {
    let (_vault, client) = vault_with_key().await;
    let old = client.encrypt("x").await;
    client.rotate().await;
    let config = client.configure(json!({ "min_decryption_version": 2 })).await;
    assert_eq!(config.data()["min_decryption_version"], 2);
    let versions: BTreeSet<_> = config.data()["keys"].as_object().unwrap().keys().collect();
    assert_eq!(versions, BTreeSet::from([&"2".to_owned()]));
    let too_old = "ciphertext or signature version is disallowed by policy (too old)";
    assert_refused(&client.decrypt(&old).await, 400, too_old);
    assert_refused(&client.rewrap(&old).await, 400, too_old);
    let body = json!({ "plaintext": b64("x"), "key_version": 1 });
    assert_refused(&client.post("transit/encrypt/k", body).await, 400, "no such key version");

    let config = client.configure(json!({ "min_decryption_version": 1 })).await;
    assert!(config.data()["keys"]["1"].is_u64());
    assert_eq!(client.decrypt(&old).await.data()["plaintext"], b64("x"));
}

#[tokio::test]
async fn configuration_is_checked_and_changes_all_or_nothing() {
    let (_vault, client) = vault_with_key().await;
    client.rotate().await;
    for (config, words) in [
        (
            json!({ "min_decryption_version": 3 }),
            "cannot set min decryption version of 3, latest key version is 2",
        ),
        (
            json!({ "min_encryption_version": 3 }),
            "cannot set min encryption version of 3, latest key version is 2",
        ),
        (json!({ "min_decryption_version": -1 }), "min decryption version cannot be negative"),
        (
            json!({ "deletion_allowed": true, "min_decryption_version": 2, "min_encryption_version": 1 }),
            "cannot set min encryption/decryption values; min encryption version of 1 must be greater than or equal to min decryption version of 2",
        ),
    ] {
        assert_refused(&client.configure(config).await, 400, words);
    }
    let key = client.get("transit/keys/k").await.data().clone();
    assert_eq!(
        (&key["deletion_allowed"], &key["min_decryption_version"]),
        (&json!(false), &json!(1))
    );
    let missing = client.post("transit/keys/no/config", json!({})).await;
    assert_refused(&missing, 400, "no existing key named no could be found");
    assert_eq!(client.configure(json!({ "deletion_allowed": "maybe" })).await.status, 400);

    // As `vault write` sends it; and what is exportable stays so.
    let config = json!({ "exportable": "true", "allow_plaintext_backup": "1" });
    assert_eq!(client.configure(config).await.data()["exportable"], true);
    let config = json!({ "exportable": false, "allow_plaintext_backup": false });
    let key = client.configure(config).await.data().clone();
    assert_eq!((&key["exportable"], &key["allow_plaintext_backup"]), (&json!(true), &json!(true)));
}

#[tokio::test]
async fn only_a_key_that_may_be_deleted_is_deleted() {
    let (_vault, client) = vault_with_key().await;
    let sealed = client.encrypt("x").await;
    let refused = client.delete("transit/keys/k").await;
    assert_refused(&refused, 400, "error deleting policy k: deletion is not allowed for this key");
    client.configure(json!({ "deletion_allowed": true })).await;
    assert_eq!(client.delete("transit/keys/k").await.status, 204);
    assert_refused(&client.get("transit/keys/k").await, 404, "");
    let gone = client.delete("transit/keys/k").await;
    assert_refused(&gone, 400, "error deleting policy k: could not delete key; not found");
    assert_refused(&client.decrypt(&sealed).await, 400, "encryption key not found");
    assert_refused(&client.rewrap(&sealed).await, 400, "encryption key not found");
    // A key made again under the name is another key.
    client.post("transit/keys/k", json!({})).await;
    assert_refused(&client.decrypt(&sealed).await, 400, "cipher: message authentication failed");
}

#[tokio::test]
async fn encrypt_makes_a_missing_key_unless_that_is_off() {
    let (_vault, client) = vault_with_key().await;
    let body = json!({ "plaintext": b64("x") });
    assert_eq!(client.post("transit/encrypt/upserted", body.clone()).await.status, 200);
    assert_eq!(client.get("transit/keys/upserted").await.data()["latest_version"], 1);
    assert_eq!(client.post("transit/encrypt/hollow", json!({})).await.status, 400);
    assert_refused(&client.get("transit/keys/hollow").await, 404, "");

    assert_eq!(client.get("transit/config/keys").await.data()["disable_upsert"], false);
    let config = client.post("transit/config/keys", json!({ "disable_upsert": true })).await;
    assert_eq!(config.data()["disable_upsert"], true);
    let refused = client.post("transit/encrypt/other", body.clone()).await;
    assert_refused(&refused, 400, "encryption key not found");
    assert_eq!(client.post("transit/encrypt/upserted", body).await.status, 200);
}

#[tokio::test]
async fn a_signing_key_encrypts_nothing() {
    let (_vault, client) = vault_with_key().await;
    client.post("transit/keys/e", json!({ "type": "ed25519" })).await;
    let key = client.get("transit/keys/e").await.data().clone();
    assert_eq!((&key["type"], &key["supports_encryption"]), (&json!("ed25519"), &json!(false)));
    let public = STANDARD.decode(key["keys"]["1"]["public_key"].as_str().unwrap()).unwrap();
    assert_eq!(public.len(), 32);
    for (path, body, act) in [
        ("encrypt", json!({ "plaintext": b64("x") }), "encryption"),
        ("decrypt", json!({ "ciphertext": "vault:v1:AAAA" }), "decryption"),
        ("rewrap", json!({ "ciphertext": "vault:v1:AAAA" }), "decryption"),
    ] {
        let reply = client.post(&format!("transit/{path}/e"), body).await;
        assert_refused(&reply, 400, &format!("message {act} not supported for key type ed25519"));
    }
}

#[tokio::test]
async fn what_it_cannot_do_it_refuses() {
    let (_vault, client) = vault_with_key().await;
    for (path, body) in [
        ("transit/keys/d", json!({ "derived": true })),
        ("transit/keys/d", json!({ "auto_rotate_period": "24h" })),
        ("transit/encrypt/k", json!({ "plaintext": b64("x"), "context": b64("c") })),
    ] {
        let (status, words) = client.post(path, body).await.refusal();
        assert_eq!(status, 400);
        assert!(words.contains("not supported by this development server"), "{words}");
    }
    assert_refused(&client.get("transit/keys/d").await, 404, "");
}

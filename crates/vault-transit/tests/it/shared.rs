//! What must hold over every Vault, embedded or real, and what these tests have in common.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{
    Auth, CheckOutcome, Ciphertext, Credential, FilesystemKey, KeyRecord, KeyVersion, Kms,
    KmsConfig, KmsConfigId, KmsError, KmsErrorKind, KmsProvider, Login, Proof,
};
use serde_json::json;
use testkit::kms::{KmsFixture, MasterKeyAdmin, kms_contract};
use testkit::vault_server::VaultAdmin;
use vault_transit::{KIND, Limits, VaultConfig, VaultProvider};

/// A Vault under test, with transit mounted. Each test has its own server, or its own keys.
pub(crate) struct Vault {
    url: String,
    admin: VaultAdmin,
    made: AtomicUsize,
    /// What ends with it.
    _server: Box<dyn Send + Sync>,
}

impl Vault {
    pub(crate) fn new(url: &str, root_token: &str, server: impl Send + Sync + 'static) -> Self {
        let admin = VaultAdmin::new(url, root_token);
        admin.mount_transit();
        let server = Box::new(server);
        Self { url: url.to_owned(), admin, made: AtomicUsize::new(0), _server: server }
    }

    fn config(&self, master_key: &str) -> KmsConfig {
        config(&self.url, master_key)
    }

    /// A new transit key; `settings` are those of `transit/keys/<name>`.
    pub(crate) fn make_key(&self, settings: &serde_json::Value) -> KmsConfig {
        let config = self.config(&format!("key-{}", self.made.fetch_add(1, Ordering::Relaxed)));
        self.admin.write(&key_path(&config), settings);
        config
    }

    /// A token under this policy.
    fn token(&self, policy: &str, settings: serde_json::Value) -> String {
        let name = format!("policy-{}", self.made.fetch_add(1, Ordering::Relaxed));
        self.admin.token(&name, policy, &settings)
    }
}

pub(crate) fn config(url: &str, master_key: &str) -> KmsConfig {
    KmsConfig {
        id: KmsConfigId::random(),
        kind: KIND.to_owned(),
        address: url.to_owned(),
        master_key: master_key.to_owned(),
        settings: BTreeMap::new(),
    }
}

/// Patient with a busy machine, quick to give up on what can't succeed.
pub(crate) const LIMITS: Limits = Limits {
    connect: Duration::from_secs(5),
    attempt: Duration::from_secs(10),
    deadline: Duration::from_secs(20),
    tries: 4,
    pause: Duration::from_millis(5),
    reply_bytes: 4 << 20,
    batch_items: 1_000,
    batch_bytes: 1 << 20,
    in_flight: 4,
};

pub(crate) fn provider() -> VaultProvider {
    VaultProvider::with_limits(LIMITS)
}

pub(crate) fn credential(token: &str) -> Credential {
    Credential::token(token)
}

pub(crate) fn open(config: &KmsConfig, token: &str) -> Arc<dyn Kms> {
    provider().open(config, &credential(token)).unwrap()
}

pub(crate) async fn prove(config: &KmsConfig, token: &str) -> Result<Proof, KmsError> {
    let proof = provider().prove(config, &credential(token)).await;
    assert_shows_no(token, &proof);
    proof
}

/// Everything that an error could show.
pub(crate) fn assert_shows_no(token: &str, proof: &Result<Proof, KmsError>) {
    let mut shown = format!("{proof:?}");
    if let Err(e) = proof {
        shown.push_str(&format!("{e} {e:?} {} {:?}", e.chain(), e.how_to_mend()));
    }
    assert!(!shown.contains(token), "the token shows in {shown}");
}

pub(crate) fn record() -> KeyRecord {
    KeyRecord::of(&FilesystemKey::generate().unwrap())
}

fn key_path(config: &KmsConfig) -> String {
    format!("transit/keys/{}", config.master_key)
}

fn policy(config: &KmsConfig) -> String {
    VaultConfig::parse(config).unwrap().policy()
}

fn codes(proof: &Proof) -> Vec<&str> {
    proof.findings.iter().map(|f| f.code.as_str()).collect()
}

/// The suite of every `Kms`, with a token that may do what must not happen: `create` lets Vault make keys.
pub(crate) async fn contract(vault: &Vault) {
    const GENEROUS: &str = r#"
        path "transit/keys/*" { capabilities = ["read"] }
        path "transit/encrypt/*" { capabilities = ["create", "update"] }
        path "transit/decrypt/*" { capabilities = ["create", "update"] }
        path "transit/rewrap/*" { capabilities = ["create", "update"] }
    "#;
    let token = vault.token(GENEROUS, json!({}));
    kms_contract(&Fixture { vault, token }).await;
}

struct Fixture<'a> {
    vault: &'a Vault,
    token: String,
}

#[async_trait]
impl KmsFixture for Fixture<'_> {
    async fn make(&self) -> Arc<dyn Kms> {
        open(&self.vault.make_key(&json!({})), &self.token)
    }

    fn admin(&self) -> Option<&dyn MasterKeyAdmin> {
        Some(self.vault)
    }

    fn secrets(&self) -> Vec<String> {
        vec![self.token.clone()]
    }
}

#[async_trait]
impl MasterKeyAdmin for Vault {
    async fn rotate(&self, config: &KmsConfig) {
        self.admin.write(&format!("{}/rotate", key_path(config)), &json!({}));
    }

    async fn set_min_decryption_version(&self, config: &KmsConfig, version: KeyVersion) {
        let body = json!({ "min_decryption_version": version.0 });
        self.admin.write(&format!("{}/config", key_path(config)), &body);
    }

    async fn delete(&self, config: &KmsConfig) {
        let allowed = json!({ "deletion_allowed": true });
        self.admin.write(&format!("{}/config", key_path(config)), &allowed);
        self.admin.delete(&key_path(config));
    }

    async fn create(&self, config: &KmsConfig) {
        self.admin.write(&key_path(config), &json!({}));
    }
}

/// The key is read before each wrap, so the contract does not show what happens if it goes in between:
/// what Vault does with Coffer's encrypt request for a missing key, under a policy that lets it make one.
pub(crate) async fn a_key_that_goes_between_read_and_encrypt_is_not_made(vault: &Vault) {
    let missing = vault.config("goes-in-between");
    for settings in [json!({ "type": "ecdsa-p256" }), json!({})] {
        let mut body = settings.clone();
        body["batch_input"] = json!([{ "plaintext": "AAAA" }]);
        let (status, answer) = vault.admin.ask("POST", "transit/encrypt/goes-in-between", &body);
        let (read, _) = vault.admin.ask("GET", &key_path(&missing), &json!({}));
        // Without `type` the key is made: so it is that which keeps Vault from it.
        let made = settings == json!({});
        assert_eq!((status, read), if made { (200, 200) } else { (400, 404) }, "{answer}");
    }
}

/// The generated policy is enough, and what it leaves is warned of.
pub(crate) async fn the_least_privilege_is_enough(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let settings = json!({ "period": "24h", "no_default_policy": true, "no_parent": true });
    let token = vault.token(&policy(&config), settings);
    let proof = prove(&config, &token).await.unwrap();
    assert_eq!(codes(&proof), [""; 0]);
    assert_eq!(proof.master_key.name, config.master_key);
    assert!(proof.credential.periodic && proof.credential.renewable);
    assert_eq!(proof.kms.wrap(&[record()]).await.unwrap().len(), 1);
    // It can do no more than that.
    let other = VaultAdmin::new(&vault.url, &token);
    for (method, path) in [
        ("DELETE", key_path(&config)),
        ("GET", format!("transit/export/encryption-key/{}", config.master_key)),
    ] {
        assert_eq!(other.ask(method, &path, &json!({})).0, 403);
    }
}

/// Each permission that is missing is named, with the line that grants it.
pub(crate) async fn each_missing_permission_is_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let policy = policy(&config);
    let grants: Vec<_> = policy.lines().filter(|line| line.starts_with("path")).collect();
    assert_eq!(grants.len(), 6);
    for missing in grants {
        let [_, path, _, capability, _] = missing.split('"').collect::<Vec<_>>()[..] else {
            panic!("{missing}")
        };
        let rest = policy.replace(missing, "");
        let token = vault.token(&rest, json!({ "no_default_policy": true, "period": "24h" }));
        let proof = prove(&config, &token).await;
        let (what, cure) = if path == "auth/token/renew-self" {
            let proof = proof.unwrap();
            assert!(!proof.credential.renewable);
            let finding =
                proof.findings.into_iter().find(|f| f.code == "token-may-not-renew").unwrap();
            (finding.what, finding.cure)
        } else {
            let error = proof.unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Denied, "{error}");
            (error.to_string(), error.how_to_mend().unwrap().to_owned())
        };
        assert!(what.contains(&format!("may not {capability} {path}")), "{what}");
        assert!(cure.contains(missing), "{cure}");
    }
}

/// A permission that is lost later is named as well.
pub(crate) async fn a_permission_lost_later_is_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let all = policy(&config);
    let lost =
        format!("path \"transit/decrypt/{}\" {{ capabilities = [\"update\"] }}", config.master_key);
    let kms = open(&config, &vault.token(&all.replace(&lost, ""), json!({})));
    let wrapped = kms.wrap(&[record()]).await.unwrap().remove(0).unwrap();
    let error = kms.unwrap(&[wrapped]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Denied);
    assert!(
        error
            .to_string()
            .contains(&format!("may not update transit/decrypt/{}", config.master_key))
    );
}

/// A token that Vault does not know is told from one that lacks a permission.
pub(crate) async fn bad_tokens_are_named(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let short = vault.token(&policy(&config), json!({ "ttl": "1s" }));
    let revoked = vault.token(&policy(&config), json!({ "ttl": "1h" }));
    vault.admin.write("auth/token/revoke", &json!({ "token": revoked }));
    tokio::time::sleep(Duration::from_millis(2_500)).await;
    for token in
        [short.as_str(), &revoked, "s.nRucA9Gtb3yNVmLUK22yzVKA", "hvs.wrong", "wrong-token"]
    {
        let error = prove(&config, token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
        let what = error.to_string();
        assert!(what.contains("wrong, expired or revoked"), "{what}");
        assert!(what.contains("read auth/token/lookup-self"), "{what}");
        assert!(error.how_to_mend().unwrap().contains("new token"));

        let error = open(&config, token).wrap(&[record()]).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied);
        assert!(error.to_string().contains(&format!("read {}", key_path(&config))), "{error}");
    }
    for token in ["", "two words", "line\nend", "s.token\n"] {
        let error = provider().open(&config, &credential(token)).unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Invalid);
    }
    let none = provider().open(&config, &Credential::default()).unwrap_err();
    assert_eq!(none.kind(), KmsErrorKind::Denied);
    assert!(none.how_to_mend().unwrap().contains("set-vault"), "{none:?}");
}

/// The items of a check that did not pass, by code and outcome.
async fn failings(kms: &dyn Kms, sample: Option<&Ciphertext>) -> Vec<(String, CheckOutcome)> {
    let items = kms.check(sample).await;
    for item in &items {
        assert!(!item.what.is_empty(), "{item:?}");
        let passed = item.outcome == CheckOutcome::Passed;
        assert!(passed || !item.found.is_empty(), "{item:?}");
        let mended = [CheckOutcome::Failed, CheckOutcome::Warning].contains(&item.outcome);
        assert_eq!(item.cure.is_some(), mended, "{item:?}");
    }
    let failed = items.into_iter().filter(|item| item.outcome != CheckOutcome::Passed);
    failed.map(|item| (item.code, item.outcome)).collect()
}

/// What is missing, what is too much, and nothing else.
pub(crate) async fn a_check_tells_all(vault: &Vault, root: &str) {
    use CheckOutcome::{Failed, Unknown, Warning};
    let config = vault.make_key(&json!({}));
    let least = policy(&config);
    let periodic = json!({ "period": "1h", "no_parent": true });
    let good = open(&config, &vault.token(&least, periodic.clone()));
    assert_eq!(failings(good.as_ref(), None).await, []);
    let codes: Vec<_> = good.check(None).await.into_iter().map(|item| item.code).collect();
    assert_eq!(
        codes,
        [
            "answers",
            "certificate",
            "may-lookup-self",
            "may-read-key",
            "may-encrypt",
            "may-decrypt",
            "may-rewrap",
            "may-renew-self",
            "excess",
            "key-settings"
        ]
    );
    let wrapped = good.wrap(&[record()]).await.unwrap().remove(0).unwrap();

    for (verb, code) in
        [("encrypt", "may-encrypt"), ("decrypt", "may-decrypt"), ("rewrap", "may-rewrap")]
    {
        let lacking: String =
            least.lines().filter(|line| !line.contains(verb)).map(|l| format!("{l}\n")).collect();
        let kms = open(&config, &vault.token(&lacking, periodic.clone()));
        let found = failings(kms.as_ref(), Some(&wrapped)).await;
        assert_eq!(found, [(code.to_owned(), Failed)]);
        let item = kms.check(Some(&wrapped)).await.into_iter().find(|item| item.code == code);
        let item = item.unwrap();
        assert_eq!(item.failure, Some(KmsErrorKind::Denied));
        assert!(item.cure.unwrap().contains(&format!("transit/{verb}/{}", config.master_key)));
        if verb == "encrypt" {
            let found = failings(kms.as_ref(), None).await;
            let untold = |code: &str| (code.to_owned(), Unknown);
            let all = [(code.to_owned(), Failed), untold("may-decrypt"), untold("may-rewrap")];
            assert_eq!(found, all);
        }
    }

    let path = |verb: &str, cap: &str| {
        format!("path \"transit/{verb}\" {{ capabilities = [\"{cap}\"] }}\n")
    };
    let key = &config.master_key;
    let too_much = [
        least.clone(),
        path(&format!("keys/{key}/rotate"), "update"),
        path(&format!("export/encryption-key/{key}"), "read"),
        path(&format!("backup/{key}"), "read"),
    ];
    let kms = open(&config, &vault.token(&too_much.concat(), periodic.clone()));
    let items = kms.check(None).await;
    let excess: Vec<_> = items.iter().filter(|item| item.code == "excess").collect();
    assert_eq!(excess.len(), 3, "{items:#?}");
    for (item, word) in excess.iter().zip(["rotate", "export", "backup"]) {
        assert!(item.outcome == Warning && item.found.contains(word), "{item:?}");
    }
    // The page's own policy: `+` covers backup, restore and export, and lets Vault make the key.
    let page =
        format!("path \"transit/+/{key}\" {{ capabilities = [\"read\", \"create\", \"update\"] }}");
    let found = open(&config, &vault.token(&page, periodic)).check(None).await;
    let words: String =
        found.iter().filter(|item| item.code == "excess").map(|i| i.found.as_str()).collect();
    for word in ["backup/", "restore/", "encrypt/", "keys/"] {
        assert!(words.contains(word), "{word}: {found:#?}");
    }

    vault
        .admin
        .write(&format!("{}/config", key_path(&config)), &json!({ "deletion_allowed": true }));
    let found = failings(open(&config, root).as_ref(), None).await;
    let warned = |code: &str| (code.to_owned(), Warning);
    assert_eq!(found, [warned("token-is-root"), warned("key-deletable")]);

    let dead = open(&config, "hvs.dead").check(None).await;
    assert!(dead.iter().any(|item| item.failure == Some(KmsErrorKind::Denied)), "{dead:#?}");
    let nowhere = config_at("http://127.0.0.1:9", &config);
    let away = open(&nowhere, root).check(None).await;
    assert_eq!(away.len(), 1, "{away:#?}");
    assert_eq!((away[0].code.as_str(), away[0].outcome), ("answers", Failed));
}

fn config_at(url: &str, like: &KmsConfig) -> KmsConfig {
    KmsConfig { address: url.to_owned(), ..like.clone() }
}

/// An AppRole whose tokens live for so many seconds, and a login under it.
fn app_role(vault: &Vault, mount: &str, config: &KmsConfig, role: &serde_json::Value) -> Login {
    let name = format!("role-{}", vault.made.fetch_add(1, Ordering::Relaxed));
    // One that is there already is no failure of the test.
    vault.admin.ask("POST", &format!("sys/auth/{mount}"), &json!({ "type": "approle" }));
    vault.admin.write(&format!("sys/policies/acl/{name}"), &json!({ "policy": policy(config) }));
    let mut settings = json!({ "token_policies": name, "policies": name });
    settings.as_object_mut().unwrap().extend(role.as_object().unwrap().clone());
    let path = format!("auth/{mount}/role/{name}");
    vault.admin.write(&path, &settings);
    let id = vault.admin.read(&format!("{path}/role-id"))["data"]["role_id"].clone();
    let secret = vault.admin.write(&format!("{path}/secret-id"), &json!({}));
    let secret = secret["data"]["secret_id"].as_str().unwrap();
    let path = if mount == "approle" { String::new() } else { mount.to_owned() };
    Login { path, id: id.as_str().unwrap().to_owned(), secret: secret.into() }
}

/// A login goes on for ever, with tokens that end, by their maximum life too.
pub(crate) async fn a_login_outlives_its_tokens(vault: &Vault) {
    for (mount, settings) in [
        (
            "approle",
            json!({ "token_ttl": "2s", "token_max_ttl": "3s", "ttl": "2s", "max_ttl": "3s" }),
        ),
        ("team/approle", json!({ "token_num_uses": 6 })),
    ] {
        let config = vault.make_key(&json!({}));
        let credential = Credential::from(Auth::Login(app_role(vault, mount, &config, &settings)));
        let proof = provider().prove(&config, &credential).await.unwrap();
        assert_eq!(codes(&proof), [""; 0]);
        assert!(proof.credential.renewable && proof.credential.periodic, "{:?}", proof.credential);
        let kms = proof.kms;
        let wrapped = kms.wrap(&[record()]).await.unwrap().remove(0).unwrap();
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1_200)).await;
            let opened = kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap();
            assert!(opened[0].is_ok(), "{opened:?}");
        }
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let renewed = kms.renew().await.unwrap();
        assert!(renewed.renewable && renewed.periodic, "{renewed:?}");
        assert!(renewed.time_left > Some(Duration::from_secs(1)), "{renewed:?}");
        if mount != "approle" {
            continue;
        }
        // Many that find the token gone at once.
        tokio::time::sleep(Duration::from_millis(3_500)).await;
        let many = (0..20).map(|_| kms.unwrap(std::slice::from_ref(&wrapped)));
        for opened in futures::future::join_all(many).await {
            opened.unwrap().remove(0).unwrap();
        }
    }
}

pub(crate) async fn a_login_that_is_refused_says_so(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let good = app_role(vault, "approle", &config, &json!({}));
    let wrong_id = Login { id: "no-role".to_owned(), ..good.clone() };
    let secret = "canary-of-a-secret-id";
    let wrong_secret = Login { secret: secret.into(), ..good.clone() };
    let elsewhere = Login { path: "nowhere".to_owned(), ..good.clone() };
    for (login, words) in [
        (wrong_id, "role id or the secret id is wrong"),
        (wrong_secret, "role id or the secret id is wrong"),
        (elsewhere, "auth/nowhere/"),
    ] {
        let proof = provider().prove(&config, &Auth::Login(login).into()).await;
        assert_shows_no(secret, &proof);
        let error = proof.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Denied, "{error:?}");
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.how_to_mend().is_some());
    }
    let invalid = Login { path: "../sys".to_owned(), ..good };
    let error = provider().open(&config, &Auth::Login(invalid).into()).unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Invalid);
    // A permission that the role lacks is told as such, and takes no further login.
    let other = vault.make_key(&json!({}));
    let login = app_role(vault, "approle", &config, &json!({}));
    let error = provider().prove(&other, &Auth::Login(login).into()).await.unwrap_err();
    assert!(error.to_string().contains("may not read"), "{error}");
}

/// A token file, as an agent writes it.
pub(crate) async fn a_token_file_is_read_when_it_changes(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let home = tempfile::tempdir().unwrap();
    let file = home.path().join("token");
    let write = |token: &str| {
        std::fs::write(home.path().join("new"), format!("{token}\n")).unwrap();
        std::fs::rename(home.path().join("new"), &file).unwrap();
    };
    let credential = Credential::from(Auth::TokenFile(file.clone()));
    let kms = provider().open(&config, &credential).unwrap();
    let error = kms.wrap(&[record()]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Unreachable, "it may be written yet: {error:?}");
    assert!(error.to_string().contains(file.to_str().unwrap()), "{error}");

    let first = vault.token(&policy(&config), json!({ "ttl": "1h" }));
    write(&first);
    let proof = provider().prove(&config, &credential).await.unwrap();
    assert_eq!(codes(&proof), [""; 0], "who writes the file sees to it");
    let wrapped = kms.wrap(&[record()]).await.unwrap().remove(0).unwrap();
    vault.admin.write("auth/token/revoke", &json!({ "token": first }));
    let refused = kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap_err();
    assert_eq!(refused.kind(), KmsErrorKind::Denied);
    write(&vault.token(&policy(&config), json!({ "ttl": "1h" })));
    kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().remove(0).unwrap();
    // One that is gone or no token changes nothing while the last one lives.
    for bad in ["two words", ""] {
        write(bad);
        kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().remove(0).unwrap();
    }
    std::fs::remove_file(&file).unwrap();
    kms.unwrap(std::slice::from_ref(&wrapped)).await.unwrap().remove(0).unwrap();
}

/// Periodic or not, by whatever way the token was made; no version tells it for roles.
pub(crate) async fn the_life_of_a_token_is_told(vault: &Vault) {
    let config = vault.make_key(&json!({}));
    let policy = policy(&config);

    vault.admin.write("sys/policies/acl/by-role", &json!({ "policy": policy }));
    vault.admin.write(
        "auth/token/roles/periodic",
        &json!({ "allowed_policies": "by-role", "period": "768h", "orphan": true }),
    );
    let answer = vault.admin.write("auth/token/create/periodic", &json!({}));
    let by_role = answer["auth"]["client_token"].as_str().unwrap();
    let proof = prove(&config, by_role).await.unwrap();
    assert_eq!(codes(&proof), [""; 0]);
    for status in [
        proof.credential,
        // A new process knows nothing yet.
        open(&config, by_role).credential().await.unwrap(),
        open(&config, by_role).renew().await.unwrap(),
    ] {
        assert!(status.periodic && status.renewable, "{status:?}");
        let left = status.time_left.unwrap();
        assert!(left <= Duration::from_secs(768 * 3600) && left > Duration::from_secs(767 * 3600));
    }

    let hour = vault.token(&policy, json!({ "ttl": "1h" }));
    let proof = prove(&config, &hour).await.unwrap();
    assert_eq!(codes(&proof), ["token-not-periodic", "token-expires-soon", "token-not-orphan"]);
    assert!(!proof.credential.periodic && proof.credential.renewable);
    assert!(!open(&config, &hour).credential().await.unwrap().periodic);

    // Its whole life is the most that Vault gives, so that every renewal is cut short.
    let longest = vault.token(&policy, json!({ "no_parent": true }));
    assert_eq!(codes(&prove(&config, &longest).await.unwrap()), ["token-not-periodic"]);

    let fixed =
        vault.token(&policy, json!({ "ttl": "48h", "renewable": false, "no_parent": true }));
    let proof = prove(&config, &fixed).await.unwrap();
    assert_eq!(codes(&proof), ["token-not-renewable"]);
    assert!(!proof.kms.renew().await.unwrap().renewable);

    let ends = vault
        .token(&policy, json!({ "period": "24h", "explicit_max_ttl": "100h", "no_parent": true }));
    assert_eq!(codes(&prove(&config, &ends).await.unwrap()), ["token-not-periodic"]);

    let counted =
        vault.token(&policy, json!({ "period": "24h", "num_uses": 50, "no_parent": true }));
    assert_eq!(codes(&prove(&config, &counted).await.unwrap()), ["token-uses-limited"]);
}

pub(crate) async fn the_root_token_is_warned_of(vault: &Vault, root_token: &str) {
    let proof = prove(&vault.make_key(&json!({})), root_token).await.unwrap();
    assert_eq!(codes(&proof), ["token-is-root"]);
    assert_eq!(proof.credential.time_left, None);
}

pub(crate) async fn flags_of_the_key_are_warned_of(vault: &Vault, root_token: &str) {
    let config = vault.make_key(&json!({ "exportable": true, "allow_plaintext_backup": true }));
    vault
        .admin
        .write(&format!("{}/config", key_path(&config)), &json!({ "deletion_allowed": true }));
    let proof = prove(&config, root_token).await.unwrap();
    assert_eq!(
        codes(&proof),
        ["token-is-root", "key-deletable", "key-exportable", "key-backup-in-clear"]
    );
    assert!(proof.master_key.deletion_allowed && proof.master_key.exportable);
    // A later look says the same of what it sees.
    let later = proof.kms.findings(&proof.master_key, &proof.credential);
    assert_eq!(later, proof.findings[..3]);
}

/// `settings` make a key that can't serve.
pub(crate) async fn an_unfit_key_is_refused(
    vault: &Vault,
    root_token: &str,
    settings: serde_json::Value,
) {
    let config = vault.make_key(&settings);
    let error = prove(&config, root_token).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyUnfit, "{error}");
    assert!(error.to_string().contains(&config.master_key));
    assert!(error.how_to_mend().unwrap().contains("aes256-gcm96"));
    let error = open(&config, root_token).wrap(&[record()]).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyUnfit);
}

/// A missing key and a missing mount are told apart, and proving makes neither.
pub(crate) async fn what_is_missing_is_named(vault: &Vault, root_token: &str) {
    let config = vault.config("no-such-key");
    for _ in 0..2 {
        let error = prove(&config, root_token).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::KeyMissing);
        assert!(error.to_string().contains("no master key no-such-key in transit/"), "{error}");
        assert!(error.how_to_mend().unwrap().contains("vault write -f transit/keys/no-such-key"));
    }
    let mut config = vault.config("k");
    config.settings.insert("transit_path".into(), "team/transit".into());
    let error = prove(&config, root_token).await.unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::KeyMissing);
    assert!(error.to_string().contains("nothing is mounted at team/transit/"), "{error}");
    assert!(
        error.how_to_mend().unwrap().contains("vault secrets enable -path=team/transit transit")
    );
}

/// Transit somewhere else than at `transit/`.
pub(crate) async fn transit_may_be_mounted_anywhere(vault: &Vault, root_token: &str) {
    vault.admin.write("sys/mounts/team/transit", &json!({ "type": "transit" }));
    vault.admin.write("team/transit/keys/k", &json!({}));
    let mut config = vault.config("k");
    config.settings.insert("transit_path".into(), "team/transit".into());
    prove(&config, root_token).await.unwrap();
}

pub(crate) async fn a_sealed_vault_has_its_own_words(vault: &Vault, root_token: &str) {
    let config = vault.make_key(&json!({}));
    let kms = open(&config, root_token);
    let wrapped = kms.wrap(&[record()]).await.unwrap().remove(0).unwrap();
    let (status, answer) = vault.admin.ask("PUT", "sys/seal", &json!({}));
    assert_eq!(status, 204, "{answer}");
    for error in [
        kms.unwrap(&[wrapped]).await.unwrap_err(),
        kms.wrap(&[record()]).await.unwrap_err(),
        prove(&config, root_token).await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), KmsErrorKind::Sealed, "{error:?}");
        assert!(error.to_string().contains("is sealed"));
        assert!(error.how_to_mend().unwrap().contains("vault operator unseal"));
    }
}

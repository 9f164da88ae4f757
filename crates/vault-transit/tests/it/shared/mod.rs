//! What must hold over every Vault, embedded or real, and what these tests have in common.

pub(crate) mod credentials;
pub(crate) mod keys;
pub(crate) mod permissions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{
    Credential, FilesystemKey, KeyRecord, KeyVersion, Kms, KmsConfig, KmsConfigId, KmsError,
    KmsProvider as _, Proof,
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
    pub(crate) fn token(&self, policy: &str, settings: serde_json::Value) -> String {
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

pub(crate) fn policy(config: &KmsConfig) -> String {
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

//! The suite of every `KmsProvider`, over any Vault, with the least that a token may be allowed.

use std::sync::Mutex;

use async_trait::async_trait;
use kms_core::{Credential, KmsConfig, KmsErrorKind, KmsProvider};
use serde_json::json;
use testkit::provider::{Fault, KmsProviderFixture, kms_provider_contract};
use vault_transit::{VaultConfig, VaultProvider};

use crate::shared::{Vault, policy, provider};

pub(crate) async fn contract(vault: &Vault) {
    let fixture = Fixture { vault, provider: provider(), tokens: Mutex::default() };
    kms_provider_contract(&fixture).await;
}

struct Fixture<'a> {
    vault: &'a Vault,
    provider: VaultProvider,
    tokens: Mutex<Vec<String>>,
}

impl Fixture<'_> {
    fn credential(&self, policy: &str) -> Credential {
        let settings = json!({ "period": "24h", "no_default_policy": true, "no_parent": true });
        let token = self.vault.token(policy, settings);
        self.tokens.lock().unwrap().push(token.clone());
        Credential::token(token)
    }

    /// What would work but for the change.
    fn but(&self, change: impl Fn(&mut KmsConfig)) -> (KmsConfig, Credential) {
        let mut config = self.vault.make_key(&json!({}));
        let good = config.clone();
        change(&mut config);
        let needed = VaultConfig::parse(&config).map(|config| config.policy());
        let credential = self.credential(&needed.unwrap_or_else(|_| policy(&good)));
        (config, credential)
    }
}

#[async_trait]
impl KmsProviderFixture for Fixture<'_> {
    fn provider(&self) -> &dyn KmsProvider {
        &self.provider
    }

    async fn make(&self) -> (KmsConfig, Credential) {
        self.but(|_| {})
    }

    async fn faults(&self) -> Vec<Fault> {
        use KmsErrorKind::{Denied, Invalid, KeyMissing, KeyUnfit, Unreachable};
        let fault =
            |(config, credential), kind, named: &str| Fault::new(config, credential, kind, named);
        let set = |config: &mut KmsConfig, key: &str, value: &str| {
            config.settings.insert(key.to_owned(), value.to_owned());
        };
        let (unfit, permissions) =
            (self.vault.make_key(&json!({ "type": "ed25519" })), self.vault.make_key(&json!({})));
        let all = policy(&permissions);
        let lacking = |verb: &str| {
            let path = format!("transit/{verb}/{}", permissions.master_key);
            let rest: Vec<&str> = all.lines().filter(|line| !line.contains(&path)).collect();
            let credential = self.credential(&rest.join("\n"));
            Fault::new(permissions.clone(), credential, Denied, path)
        };
        let unfit_policy = self.credential(&policy(&unfit));
        let mut faults = vec![
            fault(
                self.but(|c| c.address = "http://127.0.0.1:9".into()),
                Unreachable,
                "127.0.0.1:9",
            ),
            fault(self.but(|c| c.master_key = "never-made".into()), KeyMissing, "never-made"),
            fault(self.but(|c| set(c, "transit_path", "nowhere")), KeyMissing, "nowhere/"),
            fault(self.but(|c| set(c, "transit_path", "sys")), KeyMissing, "sys/"),
            Fault::new(unfit.clone(), unfit_policy, KeyUnfit, unfit.master_key.clone()),
            Fault::new(
                permissions.clone(),
                Credential::token("hvs.no-such-token"),
                Denied,
                "wrong, expired or revoked",
            ),
            Fault::new(permissions.clone(), Credential::default(), Denied, "no token")
                .seen_at_once(),
            fault(self.but(|c| c.address = "http://vault.example".into()), Invalid, "plain http")
                .seen_at_once(),
            fault(self.but(|c| c.master_key = "../k".into()), Invalid, "../k").seen_at_once(),
            fault(self.but(|c| set(c, "colour", "red")), Invalid, "colour").seen_at_once(),
            fault(self.but(|c| c.kind = "another".into()), Invalid, "another").seen_at_once(),
        ];
        faults.extend(["keys", "encrypt", "decrypt", "rewrap"].map(lacking));
        faults
    }

    fn keeps_keys_here(&self) -> bool {
        false
    }

    fn secrets(&self) -> Vec<String> {
        self.tokens.lock().unwrap().clone()
    }
}

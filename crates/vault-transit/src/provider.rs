//! [`KmsProvider`]: a configuration and a token in, a proved [`Kms`] out.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{
    Ciphertext, Credential, CredentialStatus, FilesystemKey, Finding, KeyRecord, Kms, KmsConfig,
    KmsError, KmsErrorKind, KmsProvider, MasterKey, Policy, Proof, RequestId,
};

use tokio::time::Instant;

use crate::Limits;
use crate::client::Client;
use crate::config::{KIND, VaultConfig};
use crate::findings;
use crate::kms::{self, VaultKms};
use crate::operation::Operation;
use crate::pauses::Pauses;
use crate::policy::policy;
use crate::session::Sessions;
use crate::size;
use crate::wire::TokenData;

/// Makes [`Kms`]s over Vault's transit engine. One serves any number of configurations. Beside [`Limits`] it holds which Vaults asked for a
/// pause (Retry-After): what it has opened asks none of them before that is over, a minute at most. And it holds the logins: what it
/// opens for the same Vault with the same login shares one, and the token that came of it. Clones share both.
///
/// What a configuration may say is in [`VaultConfig`]. Credentials are tokens, files that hold one, and logins by AppRole
/// (`POST auth/<mount>/login` with `role_id` and `secret_id`); each may have a client certificate beside it.
///
/// A proof's [`Finding`](kms_core::Finding)s have these codes:
///
/// | code | what will hurt |
/// |---|---|
/// | `token-is-root` | the token may do everything in Vault |
/// | `token-not-renewable`, `token-may-not-renew` | it ends, by its nature or for lack of a permission |
/// | `token-not-periodic` | it can be renewed up to a maximum only |
/// | `token-expires-soon` | it ends within a day, and no renewal will help for ever |
/// | `token-file-unreadable` | the file can't be read, and the token that it had last ends |
/// | `token-not-replaced` | the one in a file ends soon, and nobody has written another |
/// | `token-not-orphan` | it ends with the token that made it |
/// | `token-uses-limited` | it ends after a number of uses |
/// | `secret-id-uses-limited`, `secret-id-expires` | logins are refused after a number of them, or after a time |
/// | `secret-id-gone` | the next login is refused |
/// | `key-deletable` | who may delete the master key can destroy all data |
/// | `key-exportable`, `key-backup-in-clear` | the master key can leave Vault |
/// | `client-certificate-expires`, `certificate-ends-soon` | no connection comes about without them |
/// | `plain-http` | token and keys cross a network readable |
#[derive(Debug, Clone, Default)]
pub struct VaultProvider {
    limits: Limits,
    pauses: Pauses,
    sessions: Sessions,
}

/// What is proved one after the other, as the master key of all and those that filesystems have of their own, shares a login.
const OF_ONE_ACT: Duration = Duration::from_secs(60);

impl VaultProvider {
    /// One with other limits than the default ones.
    pub fn with_limits(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    fn connect(&self, config: &KmsConfig, credential: &Credential) -> Result<VaultKms, KmsError> {
        let target = VaultConfig::parse(config)?;
        let client =
            Client::new(target, credential, self.limits, self.pauses.clone(), &self.sessions)?;
        Ok(VaultKms::new(config.clone(), client, self.limits))
    }
}

#[async_trait]
impl KmsProvider for VaultProvider {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn open(&self, config: &KmsConfig, credential: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        Ok(Arc::new(self.connect(config, credential)?))
    }

    fn reached_alike(&self, one: &KmsConfig, other: &KmsConfig) -> bool {
        match (VaultConfig::parse(one), VaultConfig::parse(other)) {
            (Ok(one), Ok(other)) => one.is_reached_as(&other),
            _ => false,
        }
    }

    fn has_same_origin(&self, one: &KmsConfig, other: &KmsConfig) -> bool {
        match (VaultConfig::parse(one), VaultConfig::parse(other)) {
            (Ok(one), Ok(other)) => one.origin() == other.origin(),
            _ => false,
        }
    }

    fn policy(
        &self,
        master_keys: &[String],
        settings: &BTreeMap<String, String>,
    ) -> Result<Policy, KmsError> {
        policy(master_keys, settings)
    }

    /// Looks up the token (which also shows that address and TLS are right and Vault is not sealed), reads the
    /// key, and encrypts, decrypts and rewraps a random key that is then thrown away. Then it renews the token.
    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        size::check(config, credential)?;
        let vault = self.connect(config, credential)?;
        let begun = Instant::now();
        vault.session().let_log_in();
        let recent = vault.session().has_logged_in_within(OF_ONE_ACT);
        let proof = match vault.session().current() {
            // Who gives the login again wants to know whether it is granted still.
            Some(_) if !recent && vault.logs_in() => prove_apart(&vault).await,
            _ => prove(&vault).await,
        };
        let proof = match proof {
            // What it got some moments ago may be less than it would get now.
            Err(error)
                if error.kind() == KmsErrorKind::Denied
                    && recent
                    && !vault.session().has_logged_in_since(begun) =>
            {
                prove_apart(&vault).await
            }
            proof => proof,
        };
        match proof {
            Ok(Proved { master_key, credential, findings, requests }) => {
                let kms = Arc::new(vault);
                Ok(Proof { kms, master_key, credential, findings, requests })
            }
            Err(error) => {
                vault.leave().await;
                Err(error)
            }
        }
    }
}

/// All of a [`Proof`] but the KMS itself.
struct Proved {
    master_key: MasterKey,
    credential: CredentialStatus,
    findings: Vec<Finding>,
    requests: Vec<RequestId>,
}

/// As [`prove`], with another login, which takes the place of the last one if that is well. The last that the secret id is good for is
/// left to the next start.
async fn prove_apart(vault: &VaultKms) -> Result<Proved, KmsError> {
    if vault.starts_left().await? == Some(1) {
        return prove(vault).await;
    }
    let Some(apart) = vault.log_in_apart().await? else { return prove(vault).await };
    let proved = prove(&apart).await;
    match proved {
        Ok(_) => vault.adopt(&apart).await,
        Err(_) => apart.leave().await,
    }
    proved
}

async fn prove(vault: &VaultKms) -> Result<Proved, KmsError> {
    let token = vault.look_up_token().await?;
    vault.look_up_secret_id().await;
    let key = vault.read_key().await?;
    let requests = prove_by_use(vault).await?;

    let credential = prove_renewal(vault, &token).await?;
    let master_key = kms::describe(key);
    let findings = findings::at_proof(vault, &token, &credential, &master_key);
    Ok(Proved { master_key, credential, findings, requests })
}

/// Wraps a random key, opens it, rewraps it and opens that. Answers the requests.
async fn prove_by_use(vault: &VaultKms) -> Result<Vec<RequestId>, KmsError> {
    let key = FilesystemKey::generate()?;
    let record = KeyRecord::of(&key);
    let wrapped = vault.wrap(std::slice::from_ref(&record)).await?;
    let mut requests = wrapped.requests();
    let wrapped = wrapped.only()?;
    requests.extend(opens_to(vault, &wrapped, &record).await?);
    let rewrapped = vault.rewrap(&[wrapped]).await?;
    requests.extend(rewrapped.requests());
    requests.extend(opens_to(vault, &rewrapped.only()?, &record).await?);
    Ok(requests)
}

async fn opens_to(
    vault: &VaultKms,
    wrapped: &Ciphertext,
    record: &KeyRecord,
) -> Result<Vec<RequestId>, KmsError> {
    let opened = vault.unwrap(std::slice::from_ref(wrapped)).await?;
    let requests = opened.requests();
    if opened.only()?.expose() == record.expose() {
        return Ok(requests);
    }
    Err(KmsError::new(
        KmsErrorKind::KeyUnfit,
        format!(
            "Vault opened with {} another key than it had wrapped",
            Operation::Decrypt.path(vault.target())
        ),
    )
    .cure("don't trust this Vault with keys"))
}

/// Renews the token if that can be. That it is not allowed is a warning, not a failure: it works until it ends.
async fn prove_renewal(vault: &VaultKms, token: &TokenData) -> Result<CredentialStatus, KmsError> {
    if !token.renewable || vault.logs_in() {
        return Ok(vault.status(token));
    }
    match vault.renew_token(token).await {
        Err(e) if e.kind() == KmsErrorKind::Denied => Ok(vault.status(token)),
        status => status,
    }
}

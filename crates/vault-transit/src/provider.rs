//! [`KmsProvider`]: a configuration and a token in, a proved [`Kms`] out.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{
    Ciphertext, Credential, CredentialStatus, FilesystemKey, KeyRecord, Kms, KmsConfig, KmsError,
    KmsErrorKind, KmsProvider, Proof, RequestId,
};

use crate::Limits;
use crate::client::Client;
use crate::config::{KIND, VaultConfig};
use crate::findings;
use crate::kms::{self, VaultKms};
use crate::operation::Operation;
use crate::pauses::Pauses;
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

    /// Looks up the token (which also shows that address and TLS are right and Vault is not sealed), reads the
    /// key, and encrypts, decrypts and rewraps a random key that is then thrown away. Then it renews the token.
    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        size::check(config, credential)?;
        let vault = Arc::new(self.connect(config, credential)?);
        let proof = prove(&vault).await;
        if proof.is_err() {
            vault.leave().await;
        }
        proof
    }
}

async fn prove(vault: &Arc<VaultKms>) -> Result<Proof, KmsError> {
    vault.let_log_in();
    vault.log_in_unless_within(OF_ONE_ACT).await?;
    let token = vault.look_up_token().await?;
    let key = vault.read_key().await?;
    let requests = prove_by_use(vault).await?;

    let credential = prove_renewal(vault, &token).await?;
    let master_key = kms::describe(key);
    let findings = findings::at_proof(vault, &token, &credential, &master_key);
    let kms = Arc::clone(vault) as Arc<dyn Kms>;
    Ok(Proof { kms, master_key, credential, findings, requests })
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

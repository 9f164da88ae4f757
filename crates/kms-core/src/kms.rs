//! The traits of a KMS, and what goes in and out of them.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{
    CheckItem, Ciphertext, Credential, CredentialHere, CredentialStatus, Ending, FilesystemKey,
    Items, KeyRecord, KeyVersion, KmsConfigId, KmsError, KmsErrorKind, RequestId, UnixMillis,
    WrappedKey,
};

/// A master key in a KMS, reached with a credential.
///
/// Batch first: a slice goes in, and each item has its own answer, so one bad item spoils no
/// other. The answers name the KMS's requests where it names them ([`Items::request_of`]), so that a use of a key is found in
/// the KMS's own audit log. The outer error is for what concerns all of them (no answer, no permission). An empty
/// slice answers an empty list and asks nobody. Any number of calls may run at once; a call
/// that is dropped has no effect here. Implementations split batches to their KMS's limits,
/// retry what may be retried within a deadline of their own, and let no call hang.
#[async_trait]
pub trait Kms: fmt::Debug + Send + Sync {
    /// The configuration that this was made from.
    fn config(&self) -> &KmsConfig;

    /// The master key as it is now. Never creates it.
    async fn master_key(&self) -> Result<MasterKey, KmsError>;

    /// The credential's remaining life, as the KMS tells it.
    async fn credential(&self) -> Result<CredentialStatus, KmsError>;

    /// Asks for a longer life of the credential and answers what it is then.
    async fn renew(&self) -> Result<CredentialStatus, KmsError>;

    /// What in these two answers works today and will hurt later, in the words of [`KmsProvider::prove`], which sees
    /// more. Asks nobody. Of a KMS that has nothing to say it is empty.
    fn findings(&self, _key: &MasterKey, _credential: &CredentialStatus) -> Vec<Finding> {
        Vec::new()
    }

    /// The part of [`Kms::findings`] that concerns the master key alone: for one beside another that is reached in the same way.
    fn key_findings(&self, _key: &MasterKey) -> Vec<Finding> {
        Vec::new()
    }

    /// What of the way to it comes to an end by itself: the certificates of its connections, what it logs in with. Asks nobody: it
    /// knows what is configured and what earlier answers showed.
    fn ends(&self) -> Vec<Ending> {
        Vec::new()
    }

    /// How often yet a node that starts is let in: what it logs in with may be good for some logins only, or for none any more. Asks the
    /// KMS, and takes none of them. `None`: any number of times, or that is not known.
    ///
    /// # Errors
    /// Only where there may be an end to them: the KMS does not answer.
    async fn starts_left(&self) -> Result<Option<u64>, KmsError> {
        Ok(None)
    }

    /// Ends what the KMS gave to this client alone, such as the token of a login, and what is asked for later it gets anew. For the end
    /// of its use: takes a few seconds at most, and what can't be ended ends by itself.
    async fn leave(&self) {}

    /// Looks at where our credential lies on this machine (a token file), and uses what lies there from now on. Does not ask the
    /// KMS. Where nothing is read again the answer is always the same.
    async fn credential_here(&self) -> CredentialHere {
        CredentialHere::default()
    }

    /// Looks at all that the configuration needs, by use, and at what it should not have: the way there, the credential, each
    /// permission, the master key. `sample` is a ciphertext of this configuration, with which opening can be tried where
    /// wrapping fails. Changes nothing. Of a KMS that has nothing to look at it is empty.
    async fn check(&self, _sample: Option<&Ciphertext>) -> Vec<CheckItem> {
        Vec::new()
    }

    /// The part of [`Kms::check`] that concerns the master key alone: for one beside another that is reached in the same way.
    async fn check_key(&self, _sample: Option<&Ciphertext>) -> Vec<CheckItem> {
        Vec::new()
    }

    /// Encrypts each record under the newest version of the master key, which it never creates.
    async fn wrap(&self, records: &[KeyRecord]) -> Result<Items<Ciphertext>, KmsError>;

    /// Opens each ciphertext. The caller compares ids: see [`KmsExt::unwrap_keys`].
    async fn unwrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<KeyRecord>, KmsError>;

    /// Encrypts what is inside each ciphertext anew under the newest version, inside the KMS.
    async fn rewrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<Ciphertext>, KmsError>;
}

/// What every caller needs on top of [`Kms`], written once.
#[async_trait]
pub trait KmsExt: Kms {
    /// Wraps keys; each answer names this KMS's configuration.
    async fn wrap_keys(&self, keys: &[Arc<FilesystemKey>]) -> Result<Items<WrappedKey>, KmsError> {
        let records: Vec<_> = keys.iter().map(|key| KeyRecord::of(key)).collect();
        let answers = same_count(self.wrap(&records).await?, keys.len())?;
        let config_id = self.config().id;
        Ok(answers.map_each(keys, |key, answer| {
            answer.map(|ciphertext| WrappedKey { key_id: key.id(), config_id, ciphertext })
        }))
    }

    /// Opens wrapped keys and compares the id inside each with the one that it claims.
    ///
    /// # Errors
    /// By item also [`KmsErrorKind::WrongIdentity`]: wrapped keys were swapped.
    async fn unwrap_keys(&self, wrapped: &[WrappedKey]) -> Result<Items<FilesystemKey>, KmsError> {
        let ciphertexts: Vec<_> = wrapped.iter().map(|w| w.ciphertext.clone()).collect();
        let answers = same_count(self.unwrap(&ciphertexts).await?, wrapped.len())?;
        Ok(answers.map_each(wrapped, |wrapped, answer| {
            let record = answer?;
            let inside = record.key_id();
            if inside != wrapped.key_id {
                return Err(KmsError::new(
                    KmsErrorKind::WrongIdentity,
                    format!(
                        "the wrapped key recorded for {} holds the key {inside}: wrapped keys were swapped",
                        wrapped.key_id
                    ),
                )
                .cure("put the right wrapped key back: the backing directory and each snapshot hold a copy (coffer recover)"));
            }
            record.into_key()
        }))
    }

    /// Rewraps keys under the newest version; ids stay.
    async fn rewrap_keys(&self, wrapped: &[WrappedKey]) -> Result<Items<WrappedKey>, KmsError> {
        let ciphertexts: Vec<_> = wrapped.iter().map(|w| w.ciphertext.clone()).collect();
        let answers = same_count(self.rewrap(&ciphertexts).await?, wrapped.len())?;
        let config_id = self.config().id;
        Ok(answers.map_each(wrapped, |w, answer| {
            answer.map(|ciphertext| WrappedKey { key_id: w.key_id, config_id, ciphertext })
        }))
    }
}

impl<K: Kms + ?Sized> KmsExt for K {}

/// A KMS that answers another number of items than it was asked can't be matched up.
fn same_count<T>(answers: Items<T>, asked: usize) -> Result<Items<T>, KmsError> {
    if answers.len() == asked {
        return Ok(answers);
    }
    Err(KmsError::new(
        KmsErrorKind::Unreachable,
        format!("the KMS answered {} items where {asked} were asked", answers.len()),
    ))
}

/// Makes a [`Kms`] from a configuration.
#[async_trait]
pub trait KmsProvider: fmt::Debug + Send + Sync {
    /// The [`KmsConfig::kind`] that it serves.
    fn kind(&self) -> &'static str;

    /// A [`Kms`] for a configuration that was proved before. Asks nobody, so it works while the KMS is away.
    ///
    /// # Errors
    /// [`KmsErrorKind::Invalid`]: the URL, a name or a setting is not valid. [`KmsErrorKind::Denied`]: nothing shows who we are, as
    /// after a recovery.
    fn open(&self, config: &KmsConfig, credential: &Credential) -> Result<Arc<dyn Kms>, KmsError>;

    /// Opens and proves everything by use before anything is stored: address, TLS, credential, the
    /// master key (which exists, can encrypt, and is not created), then encrypt, decrypt and rewrap of a
    /// random probe. A failure names the permission and the path that are missing, and how to grant them.
    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError>;

    /// Whether both lead to the same place in the same way, so that what shows one who we are may be shown to the other: they
    /// differ in the master key at most, and in where that lies there. Asks nobody.
    fn reached_alike(&self, one: &KmsConfig, other: &KmsConfig) -> bool {
        one.address == other.address && one.settings == other.settings
    }

    /// Whether both are at one origin: where URLs lead to it, the same scheme, host and port. What shows one who we are is no news to who
    /// answers there. Asks nobody.
    fn has_same_origin(&self, one: &KmsConfig, other: &KmsConfig) -> bool {
        one.address == other.address
    }

    /// What a credential must be allowed in such a KMS for these master keys, and nothing beyond it. Asks nobody.
    ///
    /// # Errors
    /// [`KmsErrorKind::Invalid`]: they can't be so called, the settings can't be so, or such a KMS knows no policies.
    fn policy(
        &self,
        _master_keys: &[String],
        _settings: &BTreeMap<String, String>,
    ) -> Result<Policy, KmsError> {
        let why = format!("a KMS of the kind {} knows no policies", self.kind());
        Err(KmsError::new(KmsErrorKind::Invalid, why).cure("it needs none"))
    }

    /// Makes what must lie on this machine before the configuration can be used (local wrapping: its key file).
    /// Called while no wrapped key names the configuration. Durable on `Ok`; doing it twice does no harm. A KMS that keeps nothing here has nothing to do.
    async fn provision(&self, _config: &KmsConfig) -> Result<(), KmsError> {
        Ok(())
    }

    /// Erases what [`KmsProvider::provision`] made. Called when no wrapped key names the configuration any more;
    /// doing it twice does no harm.
    async fn retire(&self, _config: &KmsConfig) -> Result<(), KmsError> {
        Ok(())
    }
}

/// What a credential must be allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// In the KMS's own language.
    pub text: String,
    /// What applies it, and makes a credential under it.
    pub commands: Vec<String>,
}

/// A KMS that has been shown to work.
#[derive(Debug)]
pub struct Proof {
    /// It.
    pub kms: Arc<dyn Kms>,
    /// Its master key at that moment.
    pub master_key: MasterKey,
    /// The credential at that moment.
    pub credential: CredentialStatus,
    /// What works today and will hurt later.
    pub findings: Vec<Finding>,
    /// The requests by which probes were wrapped, opened and rewrapped, where the KMS names them.
    pub requests: Vec<RequestId>,
}

/// A warning: something that works and should be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// A stable word, such as `key-deletable` or `token-not-periodic`.
    pub code: String,
    /// What is so, and why it matters.
    pub what: String,
    /// What to do.
    pub cure: String,
    /// Of what comes to an end, with our credential or by itself (a secret id): how long until then, from when this was found.
    pub ends_in: Option<Duration>,
}

impl Finding {
    /// One that comes to no end.
    pub fn new(code: impl Into<String>, what: impl Into<String>, cure: impl Into<String>) -> Self {
        Self { code: code.into(), what: what.into(), cure: cure.into(), ends_in: None }
    }

    /// It, so long after it was found.
    #[must_use]
    pub fn after(self, passed: Duration) -> Self {
        Self { ends_in: self.ends_in.map(|left| left.saturating_sub(passed)), ..self }
    }

    /// What is so, with the time that is left.
    pub fn told(&self) -> String {
        match self.ends_in {
            None => self.what.clone(),
            Some(Duration::ZERO) => format!("{}; its time is up", self.what),
            Some(left) => format!("{}; it ends in {}", self.what, in_words(left)),
        }
    }
}

/// How long, rounded down: as the command line tells times.
fn in_words(left: Duration) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let seconds = left.as_secs();
    let (unit, name) = match seconds {
        0..120 => (1, "second"),
        120..7200 => (MINUTE, "minute"),
        7200..172_800 => (HOUR, "hour"),
        _ => (DAY, "day"),
    };
    let count = seconds / unit;
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

/// Which KMS, and which master key in it. Contains no secret.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KmsConfig {
    /// Names this configuration; wrapped keys refer to it.
    pub id: KmsConfigId,
    /// Which provider serves it: `vault`, `local`.
    pub kind: String,
    /// Where it is: a base URL for `vault`, empty for `local`.
    pub address: String,
    /// The master key's name.
    pub master_key: String,
    /// What only the provider understands (`namespace`, `transit_path`, `ca_cert`, …).
    pub settings: BTreeMap<String, String>,
}

impl KmsConfig {
    /// Whether both say the same, so that they are one master key with two ids: as after a recovery, and while keys move.
    pub fn is_alike(&self, other: &Self) -> bool {
        *self == Self { id: self.id, ..other.clone() }
    }
}

/// A master key as its KMS describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MasterKey {
    /// Its name.
    pub name: String,
    /// The version that wraps now.
    pub latest_version: KeyVersion,
    /// Below this the KMS refuses to decrypt; 0 or 1 where there is no limit.
    pub min_decryption_version: KeyVersion,
    /// When each version was made, to the second; versions that the KMS dropped are not in it.
    pub created: BTreeMap<KeyVersion, UnixMillis>,
    /// Whether the KMS lets it be deleted.
    pub deletion_allowed: bool,
    /// Whether the KMS gives it away in clear to who may export it.
    pub exportable: bool,
    /// Whether the KMS gives it away in clear to who may back it up.
    pub backup_in_clear: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_in_one_unit() {
        let told = [(0, "0 seconds"), (1, "1 second"), (119, "119 seconds"), (120, "2 minutes")];
        let more = [
            (3599, "59 minutes"),
            (90_000, "25 hours"),
            (172_799, "47 hours"),
            (431_999, "4 days"),
        ];
        for (seconds, words) in told.into_iter().chain(more) {
            assert_eq!(in_words(Duration::from_secs(seconds)), words);
        }
    }

    #[test]
    fn a_finding_counts_its_time_down() {
        let left = Some(Duration::from_secs(100));
        let found = Finding { ends_in: left, ..Finding::new("c", "the token ends", "renew it") };
        let told = |passed| found.clone().after(Duration::from_secs(passed)).told();
        assert_eq!(told(0), "the token ends; it ends in 100 seconds");
        assert_eq!(told(60), "the token ends; it ends in 40 seconds");
        assert_eq!(told(101), "the token ends; its time is up");
        assert_eq!(Finding::new("c", "w", "").after(Duration::MAX).told(), "w");
    }
}

//! Whether the master key behind a name is still the one that was configured.
//!
//! A *canary* shows it: a wrapped key of nothing, made with the configuration and renewed as soon as a newer version of the
//! master key wraps anything, so that it never keeps an old version alive by itself.

use std::sync::Arc;

use kms_core::{Commit, FilesystemKey, Kms, KmsConfigId, KmsError, KmsErrorKind, WrappedKey};

use crate::filesystems::no_answer;
use crate::records::{self, ConfigRecord};
use crate::{Error, FilesystemName, KeyManager};

/// As many wrapped keys stand in for a canary that is too old. One is enough; the others are for damaged records.
const WITNESSES: usize = 20;

impl KeyManager {
    /// Refuses a master key that is not the one that the configuration was made with: opens the canary, and tells
    /// a key that was made again from one whose versions were cut off. Where the canary's version was cut off, the newest
    /// of the wrapped keys answer for it: each was recorded after such a proof.
    ///
    /// # Errors
    /// [`KmsErrorKind::KeyReplaced`]; [`KmsErrorKind::VersionTooOld`] when nothing is left that could show it.
    pub(crate) async fn prove_identity(
        &self,
        config: &ConfigRecord,
        kms: &dyn Kms,
    ) -> Result<(), Error> {
        let Some(canary) = &config.canary else { return Ok(()) };
        let subject = canary_of(config.config.id);
        let error = match self.prove_key(kms, canary, &subject, "the canary").await?.only() {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        match error.kind() {
            KmsErrorKind::NotAuthentic => Err(replaced(config, kms, error).await?.into()),
            KmsErrorKind::VersionTooOld => self.ask_witnesses(config, kms, error).await,
            _ => Err(error.into()),
        }
    }

    /// Wraps a new key for this filesystem under this configuration, once its master key is proved, and opens what came of it. Answers the
    /// configuration too as it has to be recorded then, if it changes: its canary must not be older than what was wrapped.
    pub(crate) async fn wrap_new(
        &self,
        config: &ConfigRecord,
        kms: &dyn Kms,
        key: &Arc<FilesystemKey>,
        of: &FilesystemName,
    ) -> Result<(WrappedKey, Option<ConfigRecord>), Error> {
        self.prove_identity(config, kms).await?;
        let wrapped = self.wrap_and_open(kms, key, of.to_string()).await?;
        let newer = |canary: &WrappedKey| canary.ciphertext.version < wrapped.ciphertext.version;
        let renewed = match config.canary.as_ref().is_some_and(newer) {
            true => Some(self.with_new_canary(config, kms).await?),
            false => None,
        };
        Ok((wrapped, renewed))
    }

    /// Adds to a commit what [`Self::wrap_new`] answered for this configuration.
    pub(crate) async fn put_renewed(
        &self,
        commit: Commit,
        config: &ConfigRecord,
        renewed: Option<ConfigRecord>,
    ) -> Commit {
        match renewed {
            // Somebody else may have renewed it meanwhile, or set another KMS, which the commit notices.
            Some(renewed)
                if self.config(config.config.id).await.is_ok_and(|now| now == *config) =>
            {
                commit.put(records::config_key(config.config.id), records::encode(&renewed))
            }
            _ => commit,
        }
    }

    async fn ask_witnesses(
        &self,
        config: &ConfigRecord,
        kms: &dyn Kms,
        canary: KmsError,
    ) -> Result<(), Error> {
        let keys = self.key_entries().await?.0.into_iter().map(|entry| entry.wrapped);
        let mut witnesses: Vec<_> = keys.filter(|w| w.config_id == config.config.id).collect();
        witnesses.sort_by_key(|witness| std::cmp::Reverse(witness.ciphertext.version));
        witnesses.truncate(WITNESSES);
        let opened = match witnesses.is_empty() {
            true => Err(canary),
            false => self.open_any(kms, &witnesses, "witnesses for the canary").await,
        };
        let error = match opened {
            Ok(()) => return Ok(()),
            Err(error) => error,
        };
        Err(match error.kind() {
            KmsErrorKind::NotAuthentic => replaced(config, kms, error).await?,
            KmsErrorKind::VersionTooOld => KmsError::new(
                KmsErrorKind::VersionTooOld,
                format!(
                    "nothing that {:?} wrapped opens any more, so it can't be told whether it is still the key that was configured",
                    config.config.master_key
                ),
            )
            .cure("lower min_decryption_version, give coffer fs kms rewrap, raise it again; or, if you know that it is the right key, set the KMS anew (coffer fs kms set-vault)")
            .because(error),
            _ => error,
        }
        .into())
    }

    /// Whether any of these opens; if not, what the first one says.
    async fn open_any(
        &self,
        kms: &dyn Kms,
        wrapped: &[WrappedKey],
        why: &str,
    ) -> Result<(), KmsError> {
        let answers = self.prove_keys(kms, wrapped, why).await?;
        if answers.iter().any(Result::is_ok) {
            return Ok(());
        }
        Err(answers.into_iter().find_map(Result::err).unwrap_or_else(no_answer))
    }

    /// The configuration with a canary of the newest version. Its identity has been proved.
    pub(crate) async fn with_new_canary(
        &self,
        config: &ConfigRecord,
        kms: &dyn Kms,
    ) -> Result<ConfigRecord, KmsError> {
        let canary = Some(self.make_canary(kms).await?);
        let versions = kms.master_key().await?.created;
        Ok(ConfigRecord { canary, versions, ..config.clone() })
    }

    /// A wrapped key of nothing: a ciphertext of ours that shows later whether the master key is still the same.
    pub(crate) async fn make_canary(&self, kms: &dyn Kms) -> Result<WrappedKey, KmsError> {
        let subject = canary_of(kms.config().id);
        self.wrap_and_open(kms, &Arc::new(FilesystemKey::generate()?), subject).await
    }

    /// Wraps one key, which `subject` names, and opens what came of it before anybody relies on it.
    pub(crate) async fn wrap_and_open(
        &self,
        kms: &dyn Kms,
        key: &Arc<FilesystemKey>,
        subject: String,
    ) -> Result<WrappedKey, KmsError> {
        let key = std::slice::from_ref(key);
        let subject = [subject];
        let wrapped = self.wrap_keys(kms, key, &subject, "").await?.only()?;
        let [subject] = subject;
        self.prove_key(kms, &wrapped, &subject, "newly wrapped").await?.only()?;
        Ok(wrapped)
    }
}

/// What the audit log calls it.
fn canary_of(config: KmsConfigId) -> String {
    format!("canary of {config}")
}

async fn replaced(
    config: &ConfigRecord,
    kms: &dyn Kms,
    why: KmsError,
) -> Result<KmsError, KmsError> {
    let now = kms.master_key().await?;
    let known = &config.versions;
    let remade = now.created.iter().any(|(v, at)| known.get(v).is_some_and(|then| then != at));
    let how = if remade {
        "it was deleted and made again under the same name"
    } else {
        "it does not open what the configured key made"
    };
    Ok(KmsError::new(
        KmsErrorKind::KeyReplaced,
        format!("the master key {:?} is not the one that was configured: {how}", now.name),
    )
    .cure("restore the KMS from a backup that has the old key; while filesystems are still unlocked here, setting the KMS anew (coffer fs kms set-vault) moves their keys to the new one")
    .because(why))
}

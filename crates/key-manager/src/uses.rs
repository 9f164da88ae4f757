//! Uses of keys: every one of them is in the audit log, with the request by which the KMS did it.
//!
//! | what is done | action | lines |
//! |---|---|---|
//! | a key is opened and comes into use | `key.unwrap` | one for each key that opened |
//! | a key is wrapped, by its KMS or anew in it | `key.wrap`, `key.rewrap` | one for each key that was wrapped |
//! | a master key is tried with a probe, to be set or to become a filesystem's own | `kms.prove` | one |
//! | keys are opened to see whether they open, and forgotten | `key.prove` | one for all that are opened at once: why, and how many opened; of one key with its filesystem's name |
//!
//! Proofs of many keys come with every rewrap and rehearsal; a line for each of them would push lines that tell more out of the
//! bounded log, and which keys they were stands in the KMS's own log under the same request. The rest of this crate asks a KMS
//! for keys in these ways alone: clippy holds it to that (`clippy.toml`).

#![expect(clippy::disallowed_methods, reason = "here they are recorded")]

use std::sync::Arc;
use std::time::Instant;

use kms_core::{
    AuditEvent, Credential, FilesystemKey, Items, KeyId, KeyUse, Kms, KmsConfig, KmsError, KmsExt,
    KmsProvider, Outcome, Proof, WrappedKey,
};
use tracing::{Instrument as _, Span, error_span};

use crate::KeyManager;

impl KeyManager {
    /// Opens keys that come into use; `subjects` names each of them.
    pub(crate) async fn unwrap_keys(
        &self,
        kms: &dyn Kms,
        wrapped: &[WrappedKey],
        subjects: &[String],
    ) -> Result<Items<FilesystemKey>, KmsError> {
        let asked = Instant::now();
        let answers = kms.unwrap_keys(wrapped).instrument(span(kms)).await?;
        let kms_ms = u64::try_from(asked.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(keys = wrapped.len(), opened = answers.done(), kms_ms, "unwrapped keys");
        let opened =
            answers.iter().zip(wrapped).map(|(answer, key)| answer.is_ok().then(|| used(key)));
        self.record_uses("key.unwrap", opened, subjects, &answers, "");
        Ok(answers)
    }

    /// Opens keys to see whether they open; `why` says what for. One alone that some filesystem has is told by its name.
    pub(crate) async fn prove_keys(
        &self,
        kms: &dyn Kms,
        wrapped: &[WrappedKey],
        why: &str,
    ) -> Result<Items<FilesystemKey>, KmsError> {
        let name = match wrapped {
            [one] => self.names_of_key(one.key_id).await,
            _ => None,
        };
        self.prove(kms, wrapped, name.as_deref(), why).await
    }

    /// Opens one key, which `subject` names, to see whether it opens; `why` says what for.
    pub(crate) async fn prove_key(
        &self,
        kms: &dyn Kms,
        wrapped: &WrappedKey,
        subject: &str,
        why: &str,
    ) -> Result<Items<FilesystemKey>, KmsError> {
        self.prove(kms, std::slice::from_ref(wrapped), Some(subject), why).await
    }

    async fn prove(
        &self,
        kms: &dyn Kms,
        wrapped: &[WrappedKey],
        subject: Option<&str>,
        why: &str,
    ) -> Result<Items<FilesystemKey>, KmsError> {
        let answers = kms.unwrap_keys(wrapped).instrument(span(kms)).await?;
        if wrapped.is_empty() {
            return Ok(answers);
        }
        let done = answers.done();
        let detail = format!("{why}: {done} of {} opened", wrapped.len());
        let outcome = if done > 0 { Outcome::Done } else { Outcome::Failed };
        let key = match wrapped {
            [one] => Some(used(one)),
            _ => None,
        };
        let of_all = kms.config().id.to_string();
        let event = self.event("key.prove", subject.unwrap_or(&of_all), outcome, &detail);
        self.record(&AuditEvent { key, requests: answers.requests(), ..event });
        Ok(answers)
    }

    /// The filesystems that have this key, if there are any, and as far as they can be read.
    async fn names_of_key(&self, id: KeyId) -> Option<String> {
        let filesystems = self.filesystems().await.ok()?;
        let names = filesystems.iter().filter(|fs| fs.has_key(id)).map(|fs| fs.name.as_str());
        let names: Vec<_> = names.collect();
        (!names.is_empty()).then(|| names.join(", "))
    }

    /// Tries a master key before anything relies on it. What comes of that is another line, if it is anything.
    pub(crate) async fn prove_master_key(
        &self,
        provider: &dyn KmsProvider,
        config: &KmsConfig,
        credential: &Credential,
    ) -> Result<Proof, KmsError> {
        let proof = provider.prove(config, credential).await?;
        let what = format!("{} {}", config.address, config.master_key);
        let event = self.event("kms.prove", &config.id.to_string(), Outcome::Done, &what);
        self.record(&AuditEvent { requests: proof.requests.clone(), ..event });
        Ok(proof)
    }

    /// Wraps keys; `subjects` names each of them, and `detail` says where they come from.
    pub(crate) async fn wrap_keys(
        &self,
        kms: &dyn Kms,
        keys: &[Arc<FilesystemKey>],
        subjects: &[String],
        detail: &str,
    ) -> Result<Items<WrappedKey>, KmsError> {
        let answers = kms.wrap_keys(keys).instrument(span(kms)).await?;
        self.record_wrapped("key.wrap", &answers, subjects, detail);
        Ok(answers)
    }

    /// Wraps keys anew inside the KMS; `subjects` names each of them.
    pub(crate) async fn rewrap_keys(
        &self,
        kms: &dyn Kms,
        wrapped: &[WrappedKey],
        subjects: &[String],
    ) -> Result<Items<WrappedKey>, KmsError> {
        let answers = kms.rewrap_keys(wrapped).instrument(span(kms)).await?;
        self.record_wrapped("key.rewrap", &answers, subjects, "");
        Ok(answers)
    }

    fn record_wrapped(
        &self,
        action: &str,
        answers: &Items<WrappedKey>,
        subjects: &[String],
        detail: &str,
    ) {
        let wrapped = answers.iter().map(|answer| answer.as_ref().ok().map(used));
        self.record_uses(action, wrapped, subjects, answers, detail);
    }

    /// Records those of `keys` that were used, which are as many as `answers`.
    fn record_uses<T>(
        &self,
        action: &str,
        keys: impl Iterator<Item = Option<KeyUse>>,
        subjects: &[String],
        answers: &Items<T>,
        detail: &str,
    ) {
        let event = |(n, (key, subject)): (usize, (Option<KeyUse>, &String))| {
            let requests = answers.request_of(n).cloned().into_iter().collect();
            let event = self.event(action, subject, Outcome::Done, detail);
            Some(AuditEvent { key: Some(key?), requests, ..event })
        };
        let events: Vec<_> = keys.zip(subjects).enumerate().filter_map(event).collect();
        self.parts().audit.record_all(&events);
    }
}

/// Whose keys they are, for all that is logged meanwhile.
fn span(kms: &dyn Kms) -> Span {
    let config = kms.config();
    error_span!("kms", kms = %config.id, master_key = config.master_key)
}

fn used(wrapped: &WrappedKey) -> KeyUse {
    KeyUse { id: wrapped.key_id, version: wrapped.ciphertext.version }
}

//! Wrapped keys: what the KMS answered, and the form in which copies of it travel.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{KeyId, KmsConfig, KmsConfigId};

/// A version of a master key; the KMS counts them from 1.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct KeyVersion(pub u64);

impl fmt::Display for KeyVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}", self.0)
    }
}

/// What a KMS made of one key record. Not secret: only the KMS opens it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ciphertext {
    /// The KMS's own text, such as `vault:v3:…`; opaque to everything but the [`crate::Kms`].
    pub text: String,
    /// The master key version that made it.
    pub version: KeyVersion,
}

/// A filesystem key encrypted by a KMS, with what did it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WrappedKey {
    /// The key inside, as this record claims; compared with the id that is encrypted with it.
    pub key_id: KeyId,
    /// The KMS configuration under which it opens.
    pub config_id: KmsConfigId,
    /// What the KMS answered.
    pub ciphertext: Ciphertext,
}

/// The newest format of [`KeyEnvelope`] that this program writes and reads.
pub const ENVELOPE_FORMAT: u32 = 1;

/// A wrapped key with all that is needed to open it somewhere else: the copy that lies in each
/// backing directory and travels with each snapshot. It contains no secret and no token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyEnvelope {
    /// [`ENVELOPE_FORMAT`] of the program that wrote it.
    pub format: u32,
    /// The filesystem's name when this was written. A hint for people; nothing is bound to it.
    pub filesystem: String,
    /// Counts the changes of this key's record. A copy that is ahead of the store shows that an older store was put back.
    pub revision: u64,
    /// The wrapped key.
    pub wrapped: WrappedKey,
    /// The KMS that opens it.
    pub kms: KmsConfig,
    /// Whether this key has ever lain under local wrapping; only a new key ends it.
    pub exposed: bool,
    /// The name of the master key that this key is to have of its own, whichever one is set for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_master_key: Option<String>,
}

impl KeyEnvelope {
    /// More changes than any key sees: one each second for 136 years. Nothing authenticates a copy's revision, so that a
    /// greater one is taken for damage, and never for a newer store.
    pub const MAX_REVISION: u64 = u32::MAX as u64;

    /// Refuses an envelope whose format this program does not know, or whose revision no program has written. Readers of any
    /// encoding call this first.
    ///
    /// # Errors
    /// [`EnvelopeError`].
    pub fn check(&self) -> Result<(), EnvelopeError> {
        if self.format != ENVELOPE_FORMAT {
            return Err(EnvelopeError::Newer(self.format));
        }
        if self.revision > Self::MAX_REVISION {
            return Err(EnvelopeError::Revision(self.revision));
        }
        Ok(())
    }
}

/// Why an envelope can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It was written by a newer Coffer.
    #[error("this wrapped key is in format {0}, newer than this program knows; use a newer one")]
    Newer(u32),
    /// It is damaged, or somebody made it up.
    #[error(
        "this copy of a wrapped key has the revision {0}, which no key comes to: it is damaged or forged. Where no better copy is left, set it to 1"
    )]
    Revision(u64),
}

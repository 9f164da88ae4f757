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
}

impl KeyEnvelope {
    /// Refuses an envelope whose format this program does not know. Readers of any encoding call
    /// this first.
    ///
    /// # Errors
    /// [`EnvelopeError::Newer`].
    pub fn check_format(&self) -> Result<(), EnvelopeError> {
        if self.format == ENVELOPE_FORMAT { Ok(()) } else { Err(EnvelopeError::Newer(self.format)) }
    }
}

/// Why an envelope can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvelopeError {
    /// It was written by a newer Coffer.
    #[error("this wrapped key is in format {0}, newer than this program knows; use a newer one")]
    Newer(u32),
}

//! What a KMS encrypts: a record of fixed length around a filesystem key.
//!
//! | offset | length | content |
//! |---|---|---|
//! | 0 | 4 | magic `CFSK` |
//! | 4 | 1 | format version, 1 |
//! | 5 | 3 | zero |
//! | 8 | 16 | key id (UUID, big-endian) |
//! | 24 | 32 | the key |
//!
//! The id inside is compared with the id outside after each unwrap: wrapped keys that somebody
//! swapped in a store or between headers are refused. Vault's `associated_data` can't do this:
//! `transit/rewrap` does not take it and Vault 1.1.5 ignores it.

use std::fmt;

use zeroize::Zeroizing;

use crate::{FilesystemKey, KEY_LEN, KeyId, KmsError};

const MAGIC: &[u8; 4] = b"CFSK";
const FORMAT: u8 = 1;
const ID_AT: usize = 8;
const KEY_AT: usize = 24;
const LEN: usize = KEY_AT + KEY_LEN;

/// A filesystem key in the form in which it is wrapped. Wiped on drop, redacted in `Debug`. It lies in one place from its
/// start to its end: what is moved would leave a copy behind that nobody wipes.
pub struct KeyRecord(Box<Zeroizing<[u8; LEN]>>);

/// Why plaintext that came out of a KMS is not a key record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// It has another length or another magic: something else was encrypted.
    #[error("what the KMS opened is not a filesystem key")]
    NotARecord,
    /// It was written by a newer Coffer.
    #[error("the filesystem key is in format {0}, newer than this program knows; use a newer one")]
    Newer(u8),
}

impl KeyRecord {
    /// Length of a record in bytes.
    pub const LEN: usize = LEN;

    /// The record of this key.
    pub fn of(key: &FilesystemKey) -> Self {
        let mut bytes = Box::new(Zeroizing::new([0; LEN]));
        bytes[..4].copy_from_slice(MAGIC);
        bytes[4] = FORMAT;
        bytes[ID_AT..KEY_AT].copy_from_slice(key.id().as_bytes());
        key.expose(|k| bytes[KEY_AT..].copy_from_slice(k));
        Self(bytes)
    }

    /// Reads what a KMS opened.
    ///
    /// # Errors
    /// [`RecordError`], for any input; it never panics.
    pub fn parse(plaintext: &[u8]) -> Result<Self, RecordError> {
        if plaintext.len() != LEN || &plaintext[..4] != MAGIC {
            return Err(RecordError::NotARecord);
        }
        match plaintext[4..ID_AT] {
            [FORMAT, 0, 0, 0] => {}
            [newer, ..] if newer > FORMAT => return Err(RecordError::Newer(newer)),
            _ => return Err(RecordError::NotARecord),
        }
        let mut bytes = Box::new(Zeroizing::new([0; LEN]));
        bytes.copy_from_slice(plaintext);
        Ok(Self(bytes))
    }

    /// The id of the key inside.
    pub fn key_id(&self) -> KeyId {
        let mut id = [0; 16];
        id.copy_from_slice(&self.0[ID_AT..KEY_AT]);
        KeyId::from_bytes(id)
    }

    /// The bytes to encrypt. Only a [`crate::Kms`] should need them.
    pub fn expose(&self) -> &[u8; LEN] {
        &self.0
    }

    /// Moves the key into locked memory.
    ///
    /// # Errors
    /// [`crate::KmsErrorKind::Internal`] when the system gives no memory.
    pub fn into_key(self) -> Result<FilesystemKey, KmsError> {
        let mut key = Zeroizing::new([0; KEY_LEN]);
        key.copy_from_slice(&self.0[KEY_AT..]);
        FilesystemKey::from_bytes(self.key_id(), &key)
    }
}

impl fmt::Debug for KeyRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KeyRecord({}, [redacted])", self.key_id())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn round_trip() {
        let key = FilesystemKey::generate().unwrap();
        let back = KeyRecord::parse(KeyRecord::of(&key).expose()).unwrap().into_key().unwrap();
        assert_eq!(back.id(), key.id());
        key.expose(|a| back.expose(|b| assert_eq!(a, b)));
    }

    #[test]
    fn a_newer_format_is_told_apart() {
        let key = FilesystemKey::generate().unwrap();
        let mut bytes = *KeyRecord::of(&key).expose();
        bytes[4] = 2;
        assert_eq!(KeyRecord::parse(&bytes).unwrap_err(), RecordError::Newer(2));
    }

    proptest! {
        #[test]
        fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            prop_assert!(KeyRecord::parse(&bytes).is_err());
        }
    }
}

//! Notes: what is kept about a filesystem outside its backing directory and names files, such as what a
//! job could not copy.
//!
//! A note is bound to the filesystem key and to a context, which says what it is about.

use kms_core::KeyId;

use crate::{FilesystemKeys, FormatError};

const DOMAIN: &[u8; 4] = b"CFNT";

impl FilesystemKeys {
    /// Seals a note. No two results are alike; each is 32 bytes longer than `plain`.
    ///
    /// # Errors
    /// [`FormatError::Library`].
    pub fn seal_note(&self, context: &[u8], plain: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.notes.seal_randomized(&aad(self.key_id(), context), plain)
    }

    /// Opens a note that was sealed with the same context.
    ///
    /// # Errors
    /// [`FormatError::Note`].
    pub fn open_note(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        let opened = self.notes.open_randomized(&aad(self.key_id(), context), sealed);
        opened.ok_or(FormatError::Note)
    }
}

/// Domain, key id, context; all but the last have a fixed length.
fn aad(key: KeyId, context: &[u8]) -> Vec<u8> {
    [DOMAIN, &key.as_bytes()[..], context].concat()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aes_siv::KeyInit;
    use aes_siv::siv::Aes256Siv;
    use kms_core::FilesystemKey;

    use super::*;
    use crate::Backend;

    const KEY: [u8; 32] = *b"the filesystem key of the vector";
    const KEY_ID: [u8; 16] = *b"key id of vector";

    fn keys(id: [u8; 16], key: [u8; 32]) -> FilesystemKeys {
        let key = FilesystemKey::from_bytes(KeyId::from_bytes(id), &key).unwrap();
        FilesystemKeys::new(Arc::new(key), Backend::RustCrypto).unwrap()
    }

    #[test]
    fn a_note_opens_under_its_key_and_context_alone() {
        let ours = keys(KEY_ID, KEY);
        let sealed = ours.seal_note(b"job 1", b"letters/plan").unwrap();
        assert_eq!(ours.open_note(b"job 1", &sealed).unwrap(), b"letters/plan");
        assert_ne!(ours.seal_note(b"job 1", b"letters/plan").unwrap(), sealed);
        assert!(!sealed.windows(7).any(|window| window == b"letters"));
        assert_eq!(ours.open_note(b"job 2", &sealed), Err(FormatError::Note));
        for other in [keys([0; 16], KEY), keys(KEY_ID, [0; 32])] {
            assert_eq!(other.open_note(b"job 1", &sealed), Err(FormatError::Note));
        }
        for len in 0..sealed.len() {
            assert_eq!(ours.open_note(b"job 1", &sealed[..len]), Err(FormatError::Note));
            let mut altered = sealed.clone();
            altered[len] ^= 1;
            assert_eq!(ours.open_note(b"job 1", &altered), Err(FormatError::Note));
        }
        let empty = ours.seal_note(b"", b"").unwrap();
        assert_eq!((empty.len(), ours.open_note(b"", &empty).unwrap().len()), (32, 0));
    }

    /// By the text of `docs/formats.md`, on the bare libraries.
    #[test]
    fn a_note_is_what_the_specification_says() {
        let sealed = keys(KEY_ID, KEY).seal_note(b"job 1", b"letters/plan").unwrap();
        let mut key = [0; 64];
        hkdf::Hkdf::<sha2::Sha256>::new(Some(&KEY_ID), &KEY)
            .expand(b"coffer v1 notes", &mut key)
            .unwrap();
        let aad = [&b"CFNT"[..], &KEY_ID, b"job 1"].concat();
        let (salt, sealed) = sealed.split_at(16);
        let opened = Aes256Siv::new((&key).into()).decrypt([&aad[..], salt], sealed);
        assert_eq!(opened.unwrap(), b"letters/plan");
    }
}

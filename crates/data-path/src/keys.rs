//! Every key that is derived from a filesystem key, by HKDF-SHA-256 (RFC 5869) with a label of its
//! own.

use std::fmt;
use std::sync::Arc;

use hkdf::Hkdf;
use hkdf::hmac::{Hmac, KeyInit, Mac};
use kms_core::{FilesystemKey, KeyId};
use sha2::Sha256;
use zeroize::Zeroizing;

use crate::siv::SivKey;
use crate::{Backend, DirId, FileId, FormatError};

/// Bytes in a file's random salt.
pub(crate) const SALT_LEN: usize = 32;
/// Bytes in a key commitment: 128 bits against somebody who looks for two keys with the same one.
pub(crate) const COMMITMENT_LEN: usize = 32;

/// A filesystem key with what is derived from it once: the way to all that is encrypted in one
/// filesystem.
///
/// Cheap to share by `Arc`; any number of threads may use it at once. Wiped when dropped.
pub struct FilesystemKeys {
    key: Arc<FilesystemKey>,
    pub(crate) backend: Backend,
    pub(crate) names: SivKey,
    pub(crate) links: SivKey,
    pub(crate) xattrs: SivKey,
    pub(crate) notes: SivKey,
    pub(crate) xattr_names: MacKey,
    pub(crate) directories: MacKey,
    pub(crate) nodes: MacKey,
    pub(crate) root: DirId,
}

impl FilesystemKeys {
    /// Derives the keys of a filesystem.
    ///
    /// # Errors
    /// [`FormatError::Library`], which no valid state gives.
    pub fn new(key: Arc<FilesystemKey>, backend: Backend) -> Result<Self, FormatError> {
        let fixed = |label| derive(&key, key.id().as_bytes(), &[label]);
        let mac = |label| derive(&key, key.id().as_bytes(), &[label]).map(MacKey);
        Ok(Self {
            names: SivKey::new(fixed(b"coffer v1 names")?),
            links: SivKey::new(fixed(b"coffer v1 symlinks")?),
            xattrs: SivKey::new(fixed(b"coffer v1 xattrs")?),
            notes: SivKey::new(fixed(b"coffer v1 notes")?),
            xattr_names: mac(b"coffer v1 xattr names")?,
            directories: mac(b"coffer v1 directories")?,
            nodes: mac(b"coffer v1 nodes")?,
            root: DirId::from_bytes(*derive(
                &key,
                key.id().as_bytes(),
                &[b"coffer v1 root directory"],
            )?),
            backend,
            key,
        })
    }

    /// The id of the filesystem key.
    pub fn key_id(&self) -> KeyId {
        self.key.id()
    }

    /// The key of a file and the commitment to it.
    pub(crate) fn file_key(
        &self,
        salt: &[u8; SALT_LEN],
        file: FileId,
    ) -> Result<(Zeroizing<[u8; 32]>, [u8; COMMITMENT_LEN]), FormatError> {
        let both: Zeroizing<[u8; 32 + COMMITMENT_LEN]> =
            derive(&self.key, salt, &[b"coffer v1 file", file.as_bytes()])?;
        let mut key = Zeroizing::new([0; 32]);
        let mut commitment = [0; COMMITMENT_LEN];
        key.copy_from_slice(&both[..32]);
        commitment.copy_from_slice(&both[32..]);
        Ok((key, commitment))
    }
}

impl fmt::Debug for FilesystemKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FilesystemKeys({}, {:?}, [redacted])", self.key_id(), self.backend)
    }
}

fn derive<const N: usize>(
    key: &FilesystemKey,
    salt: &[u8],
    info: &[&[u8]],
) -> Result<Zeroizing<[u8; N]>, FormatError> {
    let mut derived = Zeroizing::new([0; N]);
    key.expose(|key| hkdf_sha256(key, salt, info, derived.as_mut()))?;
    Ok(derived)
}

/// The parts of `info` are joined; all but the last have a fixed length.
pub(crate) fn hkdf_sha256(
    key: &[u8],
    salt: &[u8],
    info: &[&[u8]],
    derived: &mut [u8],
) -> Result<(), FormatError> {
    Hkdf::<Sha256>::new(Some(salt), key)
        .expand_multi_info(info, derived)
        .map_err(|_| FormatError::Library("key derivation failed"))
}

/// A key of HMAC-SHA-256 (RFC 2104), as long as the block of the hash.
pub(crate) struct MacKey(Zeroizing<[u8; 64]>);

impl MacKey {
    /// The code of these parts in a row; all but the last have a fixed length.
    pub(crate) fn code(&self, parts: &[&[u8]]) -> [u8; 32] {
        self.begin(parts).finalize().into_bytes().into()
    }

    /// Compares in constant time.
    pub(crate) fn verify(&self, parts: &[&[u8]], code: &[u8]) -> bool {
        self.begin(parts).verify_slice(code).is_ok()
    }

    fn begin(&self, parts: &[&[u8]]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new((&*self.0).into());
        parts.iter().for_each(|part| mac.update(part));
        mac
    }
}

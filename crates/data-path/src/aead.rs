//! AES-256-GCM by two libraries behind one trait. Each opens what the other sealed.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce as GcmNonce, Tag as GcmTag};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce as AwsNonce, UnboundKey};

use crate::FormatError;
use crate::nonce::{NONCE_LEN, Nonce};

/// Bytes in a tag.
pub(crate) const TAG_LEN: usize = 16;

/// The library that does AES-256-GCM. What one sealed the other opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backend {
    /// `aws-lc-rs`: assembly for each processor; several times faster.
    #[default]
    AwsLc,
    /// `aes-gcm`: portable Rust, and the oracle that the other is tested against.
    RustCrypto,
}

impl Backend {
    /// A cipher under this key, which the library expands and wipes when it is dropped.
    pub(crate) fn cipher(self, key: &[u8; 32]) -> Result<Box<dyn Aead>, FormatError> {
        Ok(match self {
            Self::AwsLc => Box::new(LessSafeKey::new(
                UnboundKey::new(&AES_256_GCM, key).map_err(|_| REFUSED_KEY)?,
            )),
            Self::RustCrypto => Box::new(Aes256Gcm::new(key.into())),
        })
    }
}

const REFUSED_KEY: FormatError = FormatError::Library("it refused a key");
const REFUSED_SEAL: FormatError = FormatError::Library("it refused to seal");

/// The data, the tag, the nonce, the associated data or the key is another than it was.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct NotAuthentic;

/// AES-256-GCM in place with the tag apart, allocating nothing.
pub(crate) trait Aead: Send + Sync {
    /// Encrypts `data` and answers nonce and tag. The nonce is used up.
    fn seal(&self, nonce: Nonce, aad: &[u8], data: &mut [u8]) -> Result<Seal, FormatError>;

    /// Decrypts `data`; when it is not authentic `data` holds nothing of use.
    fn open(&self, seal: &Seal, aad: &[u8], data: &mut [u8]) -> Result<(), NotAuthentic>;
}

/// What is stored beside sealed data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seal {
    pub(crate) nonce: [u8; NONCE_LEN],
    pub(crate) tag: [u8; TAG_LEN],
}

impl Aead for LessSafeKey {
    fn seal(&self, nonce: Nonce, aad: &[u8], data: &mut [u8]) -> Result<Seal, FormatError> {
        let nonce = nonce.into_bytes();
        let sealed = self
            .seal_in_place_separate_tag(AwsNonce::from(&nonce), Aad::from(aad), data)
            .map_err(|_| REFUSED_SEAL)?;
        let tag = sealed.as_ref().try_into().map_err(|_| REFUSED_SEAL)?;
        Ok(Seal { nonce, tag })
    }

    fn open(&self, seal: &Seal, aad: &[u8], data: &mut [u8]) -> Result<(), NotAuthentic> {
        let nonce = AwsNonce::from(&seal.nonce);
        match self.open_in_place_separate_tag(nonce, Aad::from(aad), &seal.tag, data) {
            Ok(_) => Ok(()),
            Err(_) => Err(NotAuthentic),
        }
    }
}

impl Aead for Aes256Gcm {
    fn seal(&self, nonce: Nonce, aad: &[u8], data: &mut [u8]) -> Result<Seal, FormatError> {
        let nonce = nonce.into_bytes();
        let tag = self
            .encrypt_inout_detached(&GcmNonce::from(nonce), aad, data.into())
            .map_err(|_| REFUSED_SEAL)?;
        Ok(Seal { nonce, tag: tag.into() })
    }

    fn open(&self, seal: &Seal, aad: &[u8], data: &mut [u8]) -> Result<(), NotAuthentic> {
        let (nonce, tag) = (GcmNonce::from(seal.nonce), GcmTag::from(seal.tag));
        self.decrypt_inout_detached(&nonce, aad, data.into(), &tag).map_err(|_| NotAuthentic)
    }
}

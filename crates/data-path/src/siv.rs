//! AES-256-SIV (RFC 5297) for what is small: names, symlink targets, attributes.
//!
//! It needs no nonce to be safe, so nothing has to be counted; where equal plaintexts must not
//! show, 16 random bytes go in as the nonce of RFC 5297, section 3.

use aes_siv::KeyInit;
use aes_siv::siv::Aes256Siv;
use zeroize::Zeroizing;

use crate::{FormatError, nonce};

/// Bytes that a deterministic seal adds.
pub(crate) const SIV_LEN: usize = 16;
/// Bytes of the nonce that a randomized seal adds on top.
const SALT_LEN: usize = 16;
/// Bytes that a randomized seal adds.
pub(crate) const RANDOMIZED_LEN: usize = SALT_LEN + SIV_LEN;

/// A key of AES-256-SIV. Wiped when dropped.
pub(crate) struct SivKey(Zeroizing<[u8; 64]>);

impl SivKey {
    pub(crate) const fn new(bytes: Zeroizing<[u8; 64]>) -> Self {
        Self(bytes)
    }

    /// Equal inputs give equal outputs. Each part of the associated data is a component of its own.
    pub(crate) fn seal(&self, aad: &[&[u8]], plain: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.cipher().encrypt(aad, plain).map_err(|_| FormatError::Library("it refused to seal"))
    }

    /// `None`: not authentic.
    pub(crate) fn open(&self, aad: &[&[u8]], sealed: &[u8]) -> Option<Vec<u8>> {
        self.cipher().decrypt(aad, sealed).ok()
    }

    /// Like [`Self::seal`], but no two outputs are alike.
    pub(crate) fn seal_randomized(&self, aad: &[u8], plain: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.seal_with(nonce::random()?, aad, plain)
    }

    pub(crate) fn seal_with(
        &self,
        salt: [u8; SALT_LEN],
        aad: &[u8],
        plain: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        Ok([&salt[..], &self.seal(&[aad, &salt], plain)?].concat())
    }

    /// `None`: not authentic.
    pub(crate) fn open_randomized(&self, aad: &[u8], sealed: &[u8]) -> Option<Vec<u8>> {
        let (salt, sealed) = sealed.split_at_checked(SALT_LEN)?;
        self.open(&[aad, salt], sealed)
    }

    fn cipher(&self) -> Aes256Siv {
        Aes256Siv::new((&*self.0).into())
    }
}

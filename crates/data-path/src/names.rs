//! Encrypted names: AES-SIV with the directory's id as associated data, as base64url without
//! padding.
//!
//! A name's ciphertext follows from the name and the directory, so looking one up needs no listing.
//! Backing names start with a letter that says what they are, and have no dot: they collide with
//! none of Coffer's own files.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest, Sha256};

use crate::siv::SIV_LEN;
use crate::{DirId, FilesystemKeys, FormatError};

/// The longest name of a directory entry, plain and backing.
pub const NAME_MAX: usize = 255;

const SHORT: u8 = b'e';
const LONG: u8 = b'l';
/// Ends the name of the side file that has a long name's ciphertext.
const SIDE_SUFFIX: &str = ".name";
const LONG_LEN: usize = 44;

/// How a plain name lies in the backing directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingName {
    /// The name of the entry.
    pub name: String,
    /// The side file that must lie beside it before it, when the ciphertext is too long for a name.
    pub side: Option<SideFile>,
}

/// A file that has a long name's ciphertext.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SideFile {
    /// Its name.
    pub name: String,
    /// All of its content.
    pub content: Vec<u8>,
}

/// What an entry of a backing directory is, by its name alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum BackingEntry {
    /// An encrypted name.
    Short,
    /// A long name; its ciphertext lies in the side file of this name.
    Long {
        /// The side file's name.
        side: String,
    },
    /// The side file of the long name of this name.
    Side {
        /// The entry that it belongs to.
        of: String,
    },
    /// The directory's own id record.
    DirectoryRecord,
    /// Nothing of Coffer's.
    Foreign,
}

impl BackingEntry {
    /// Tells what an entry is. A name that it calls encrypted may still fail to open.
    pub fn classify(name: &[u8]) -> Self {
        let is_text =
            |text: &[u8]| text.iter().all(|&b| b.is_ascii_alphanumeric() || b"-_".contains(&b));
        let as_long = |name: &[u8]| match name {
            [LONG, hash @ ..] if name.len() == LONG_LEN && is_text(hash) => {
                Some(String::from_utf8_lossy(name).into_owned())
            }
            _ => None,
        };
        if name == crate::dir::RECORD_NAME.as_bytes() {
            return Self::DirectoryRecord;
        }
        if let Some(name) = as_long(name) {
            return Self::Long { side: name + SIDE_SUFFIX };
        }
        if let Some(of) = name.strip_suffix(SIDE_SUFFIX.as_bytes()).and_then(as_long) {
            return Self::Side { of };
        }
        match name {
            [SHORT, text @ ..] if is_text(text) => Self::Short,
            _ => Self::Foreign,
        }
    }
}

impl FilesystemKeys {
    /// Encrypts a name in this directory. Equal names in one directory give equal results.
    ///
    /// # Errors
    /// [`FormatError::Unnameable`].
    pub fn seal_name(&self, dir: DirId, plain: &[u8]) -> Result<BackingName, FormatError> {
        check_name(plain)?;
        let sealed = self.names.seal(&[dir.as_bytes()], plain)?;
        let short = tagged(SHORT, &sealed);
        if short.len() <= NAME_MAX {
            return Ok(BackingName { name: short, side: None });
        }
        let name = tagged(LONG, &Sha256::digest(&sealed));
        let side = SideFile { name: format!("{name}{SIDE_SUFFIX}"), content: sealed };
        Ok(BackingName { name, side: Some(side) })
    }

    /// Decrypts a name in this directory. `side` is the content of the side file that
    /// [`BackingEntry::Long`] names.
    ///
    /// # Errors
    /// [`FormatError::Name`], [`FormatError::NameFile`].
    pub fn open_name(
        &self,
        dir: DirId,
        backing: &[u8],
        side: Option<&[u8]>,
    ) -> Result<Vec<u8>, FormatError> {
        let (kind, text) = backing.split_first().ok_or(FormatError::Name)?;
        let decoded = URL_SAFE_NO_PAD.decode(text).map_err(|_| FormatError::Name)?;
        let (sealed, damage) = match (*kind, side) {
            (SHORT, _) => (decoded.as_slice(), FormatError::Name),
            (LONG, Some(side)) if Sha256::digest(side)[..] == decoded => {
                (side, FormatError::NameFile)
            }
            (LONG, _) => return Err(FormatError::NameFile),
            _ => return Err(FormatError::Name),
        };
        let plain = self.names.open(&[dir.as_bytes()], sealed).ok_or(damage)?;
        // One name has one encoding, so that no entry can be there twice.
        let is_short = tagged_len(plain.len() + SIV_LEN) <= NAME_MAX;
        if is_short != (*kind == SHORT) || check_name(&plain).is_err() {
            return Err(FormatError::Name);
        }
        Ok(plain)
    }
}

fn check_name(name: &[u8]) -> Result<(), FormatError> {
    let possible = (1..=NAME_MAX).contains(&name.len())
        && !name.iter().any(|byte| b"/\0".contains(byte))
        && name != b"."
        && name != b"..";
    if possible { Ok(()) } else { Err(FormatError::Unnameable) }
}

/// A letter and the base64url of some bytes.
pub(crate) fn tagged(letter: u8, bytes: &[u8]) -> String {
    let mut text = String::with_capacity(tagged_len(bytes.len()));
    text.push(char::from(letter));
    URL_SAFE_NO_PAD.encode_string(bytes, &mut text);
    text
}

const fn tagged_len(bytes: usize) -> usize {
    1 + (bytes * 4).div_ceil(3)
}

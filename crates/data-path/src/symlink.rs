//! Symlink targets: sealed into the text of the backing symlink, or into a record when they are too
//! long for that.
//!
//! A target is bound to the filesystem key and not to a place, because a symlink can be renamed and
//! have hard links.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::names::tagged;
use crate::{FilesystemKeys, FormatError, LinkId};

/// The longest target: `PATH_MAX` without its NUL.
pub const TARGET_MAX: usize = 4095;
/// The longest text of a backing symlink: what XFS takes, the least of the common filesystems.
const TEXT_MAX: usize = 1023;

const INLINE: u8 = b'e';
const RECORD: u8 = b'l';
const INLINE_AAD: &[u8] = b"inline";

/// How a target lies on disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackingTarget {
    /// The text of the backing symlink.
    pub text: String,
    /// The content of the record, a file of the same name as [`Self::text`], that must be there
    /// before the symlink.
    pub record: Option<Vec<u8>>,
}

impl FilesystemKeys {
    /// Encrypts a symlink's target. No two results are alike.
    ///
    /// # Errors
    /// [`FormatError::TooLong`], [`FormatError::Library`].
    pub fn seal_target(&self, target: &[u8]) -> Result<BackingTarget, FormatError> {
        if target.len() > TARGET_MAX {
            return Err(FormatError::TooLong {
                what: "a symlink's target",
                limit: TARGET_MAX as u64,
            });
        }
        let text = tagged(INLINE, &self.links.seal_randomized(INLINE_AAD, target)?);
        if text.len() <= TEXT_MAX {
            return Ok(BackingTarget { text, record: None });
        }
        let id = LinkId::random()?;
        let record = self.links.seal_randomized(id.as_bytes(), target)?;
        Ok(BackingTarget { text: tagged(RECORD, id.as_bytes()), record: Some(record) })
    }

    /// Decrypts a symlink's target; `record` is the content of the record, if [`target_record`]
    /// names one.
    ///
    /// # Errors
    /// [`FormatError::Symlink`].
    pub fn open_target(&self, text: &[u8], record: Option<&[u8]>) -> Result<Vec<u8>, FormatError> {
        let (kind, encoded) = text.split_first().ok_or(FormatError::Symlink)?;
        let decoded = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| FormatError::Symlink)?;
        let opened = match (*kind, record) {
            (INLINE, _) => self.links.open_randomized(INLINE_AAD, &decoded),
            (RECORD, Some(record)) if decoded.len() == 16 => {
                self.links.open_randomized(&decoded, record)
            }
            _ => None,
        };
        opened.ok_or(FormatError::Symlink)
    }
}

/// The name of the record that has the target of the symlink with this text; `None` when the text
/// itself has it.
pub fn target_record(text: &[u8]) -> Option<String> {
    let decoded = URL_SAFE_NO_PAD.decode(text.strip_prefix(&[RECORD])?).ok()?;
    (decoded.len() == 16).then(|| tagged(RECORD, &decoded))
}

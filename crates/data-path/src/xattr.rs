//! Extended attributes of the `user` namespace: name and value sealed together, bound to the file
//! or directory that has them.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::siv::RANDOMIZED_LEN;
use crate::{DirId, FileId, FilesystemKeys, FormatError};

/// Begins the backing name of each encrypted attribute.
pub const BACKING_PREFIX: &str = "user.coffer.";
/// The longest attribute name, `user.` included (xattr(7)).
const NAME_MAX: usize = 255;
/// The longest attribute value (xattr(7)).
const VALUE_MAX: usize = 65_536;
/// Bytes of a backing name's code: 128 bits of HMAC-SHA-256.
const CODE_LEN: usize = 16;

/// Whose attribute it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrOwner {
    /// A file's, by the id in its header.
    File(FileId),
    /// A directory's, by the id in its record.
    Directory(DirId),
}

impl XattrOwner {
    fn to_bytes(self) -> [u8; 17] {
        let (kind, id) = match &self {
            Self::File(id) => (b'f', id.as_bytes()),
            Self::Directory(id) => (b'd', id.as_bytes()),
        };
        let mut bytes = [kind; 17];
        bytes[1..].copy_from_slice(id);
        bytes
    }
}

impl FilesystemKeys {
    /// The backing name of an attribute; `name` starts with `user.`. Equal names of one owner give
    /// equal results.
    pub fn xattr_name(&self, owner: XattrOwner, name: &[u8]) -> String {
        let code = self.xattr_names.code(&[&owner.to_bytes(), name]);
        let mut text = BACKING_PREFIX.to_owned();
        URL_SAFE_NO_PAD.encode_string(&code[..CODE_LEN], &mut text);
        text
    }

    /// The backing value of an attribute. No two results are alike.
    ///
    /// # Errors
    /// [`FormatError::TooLong`], [`FormatError::Library`].
    pub fn seal_xattr(
        &self,
        owner: XattrOwner,
        name: &[u8],
        value: &[u8],
    ) -> Result<Vec<u8>, FormatError> {
        if name.len() > NAME_MAX {
            return Err(FormatError::TooLong {
                what: "an attribute's name",
                limit: NAME_MAX as u64,
            });
        }
        let limit = VALUE_MAX - RANDOMIZED_LEN - 1 - name.len();
        if value.len() > limit {
            return Err(FormatError::TooLong { what: "an attribute's value", limit: limit as u64 });
        }
        // A length of at most 255 fits into its byte.
        let plain = [&[name.len() as u8], name, value].concat();
        self.xattrs.seal_randomized(&owner.to_bytes(), &plain)
    }

    /// Name and value of the attribute that lies under `backing_name`.
    ///
    /// # Errors
    /// [`FormatError::Xattr`].
    pub fn open_xattr(
        &self,
        owner: XattrOwner,
        backing_name: &[u8],
        backing_value: &[u8],
    ) -> Result<(Vec<u8>, Vec<u8>), FormatError> {
        let open = || {
            let plain = self.xattrs.open_randomized(&owner.to_bytes(), backing_value)?;
            let (&len, rest) = plain.split_first()?;
            let (name, value) = rest.split_at_checked(usize::from(len))?;
            let in_place = self.xattr_name(owner, name).as_bytes() == backing_name;
            in_place.then(|| (name.to_vec(), value.to_vec()))
        };
        open().ok_or(FormatError::Xattr)
    }
}

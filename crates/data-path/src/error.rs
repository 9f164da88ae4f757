//! What can be wrong with what lies on disk.

use kms_core::KeyId;

/// Why bytes were refused. Each variant names what is damaged, so that `verify` can tell an
/// administrator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// The file does not start as a file of Coffer does.
    #[error("this is no encrypted file of Coffer's: its header has another magic")]
    NotEncrypted,
    /// It was written by a newer Coffer.
    #[error("this is in format {0}, newer than this program knows; use a newer one")]
    Newer(u8),
    /// It is encrypted under another filesystem's key.
    #[error("this is encrypted under another key, {found}: it belongs to another filesystem")]
    OtherKey {
        /// The key that it names.
        found: KeyId,
    },
    /// The key id is right and the key is not, or the salt, file id or commitment was altered.
    #[error(
        "the file's key commitment does not match: the header was altered, or the key is another"
    )]
    WrongKey,
    /// The header is malformed, or neither of its two sealed copies is authentic.
    #[error("the file's header is damaged")]
    Header,
    /// One of the header's two sealed copies is damaged; the other one serves.
    #[error("copy {0} of the file's sealed size is damaged; the other copy is good")]
    HeaderCopy(u8),
    /// A length that no backing file has.
    #[error("no file has a backing file of {found} bytes: it was cut or extended")]
    BackingLength {
        /// The backing file's length.
        found: u64,
    },
    /// The backing file's length belongs to another size than the sealed one.
    #[error("the file was cut or extended: it is sealed with {sealed} bytes and has {found}")]
    Size {
        /// The sealed size in bytes.
        sealed: u64,
        /// The size that follows from the backing file.
        found: u64,
    },
    /// A tag page is missing, malformed or not authentic: none of the group's blocks can be read.
    #[error("the tag page of group {0} is damaged; no block of the group can be read")]
    TagPage(u64),
    /// A block is not authentic: altered, moved, zeroed or cut.
    #[error("block {0} is damaged")]
    Block(u64),
    /// A block that was never written has bytes.
    #[error("block {0} is a hole, and something was written into it")]
    Hole(u64),
    /// A hole map is not authentic: which groups of its region are holes is not known.
    #[error("the hole map of region {0} is damaged")]
    HoleMap(u64),
    /// A group that is a hole has bytes.
    #[error("group {0} is a hole, and something was written into it")]
    HoleGroup(u64),
    /// A buffer is not a group of this file.
    #[error("a buffer of {found} bytes is not group {group}")]
    Buffer {
        /// The group.
        group: u64,
        /// The buffer's length.
        found: usize,
    },
    /// A directory's id record is missing, malformed or not authentic.
    #[error("the directory's id record, coffer.dir, is damaged")]
    DirectoryRecord,
    /// An encrypted name is malformed, altered, or belongs to another directory.
    #[error("the encrypted name is damaged, or belongs into another directory")]
    Name,
    /// The side file of a long name is missing or altered.
    #[error("the side file of a long name is missing or damaged")]
    NameFile,
    /// A name that no directory entry can have.
    #[error("a name must have 1 to 255 bytes, without \"/\" and NUL, and not be \".\" or \"..\"")]
    Unnameable,
    /// A symlink's target is malformed or not authentic.
    #[error("the symlink's encrypted target is damaged")]
    Symlink,
    /// The record of a FIFO or device is malformed or not authentic.
    #[error("it has the length of the record of a FIFO or device, and is none that is authentic")]
    Node,
    /// An extended attribute is malformed, not authentic, or another file's.
    #[error("the encrypted extended attribute is damaged, or belongs to another file")]
    Xattr,
    /// A note is malformed, not authentic, or about something else.
    #[error("the encrypted note is damaged, or about something else")]
    Note,
    /// What was given does not fit into the format: a target, an attribute or a file that is too
    /// long.
    #[error("{what} is too long: at most {limit} bytes can be stored")]
    TooLong {
        /// What is.
        what: &'static str,
        /// The most that fits.
        limit: u64,
    },
    /// No seal is left of those that the header reserves: reserve more, durably, first.
    #[error("no seal is left of those that the file's header reserves")]
    SealsNotReserved,
    /// The file's salt has been used as often as it may be.
    #[error("the file's salt has made 2^30 seals, as many as it may; the file needs a new salt")]
    SealsExhausted,
    /// No random bytes, no memory, or the library refused a valid operation.
    #[error("the cryptographic library failed: {0}")]
    Library(&'static str),
}

impl FormatError {
    /// Whether data failed authentication or is malformed, as against a request that can't be met.
    pub const fn is_damage(&self) -> bool {
        !matches!(
            self,
            Self::Unnameable
                | Self::TooLong { .. }
                | Self::Buffer { .. }
                | Self::SealsNotReserved
                | Self::SealsExhausted
                | Self::Library(_)
                | Self::Newer(_)
        )
    }
}

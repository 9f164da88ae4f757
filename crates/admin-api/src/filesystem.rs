//! Filesystems and what lies in them.

use serde::{Deserialize, Serialize};

use crate::job::is_zero;
use crate::{BytePath, Damage, Finding, Problem};

/// Makes a filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateFilesystem {
    /// Its name: 1 to 64 of `A-Z a-z 0-9 . _ -`, of which the first is a letter or a digit.
    pub name: String,
    /// Where its ciphertext lies, absolute; the node's own place if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backing: Option<BytePath>,
    /// Whether its key may be wrapped locally while no KMS is set.
    #[serde(default)]
    pub allow_no_kms: bool,
    /// The name of a master key of its own, in the KMS that is set; the one that is set for all if `None`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kms_key: Option<String>,
}

/// One filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Filesystem {
    /// Its name.
    pub name: String,
    /// When it was made, in Unix milliseconds.
    pub created_at: u64,
    /// Where its ciphertext lies.
    pub backing: BytePath,
    /// Whether it is open.
    pub state: FilesystemState,
    /// Why it is not open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// Its key's id.
    pub key_id: String,
    /// The id of the key that it is being re-encrypted from: some of its data can lie under that one still.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key_id: Option<String>,
    /// What wraps its key.
    pub wrapped_by: WrappedBy,
    /// The master key that it has of its own, and hangs on while a KMS is set, whichever is set for the others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub own_master_key: Option<String>,
    /// Whether its key, or the one that it is being re-encrypted from, has lain under local wrapping, and may be compromised.
    pub exposed: bool,
    /// What of it should be looked at though it is open: its backing directory was not found as it should be.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
}

/// What wraps a key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WrappedBy {
    /// `vault`, `local`.
    pub kind: String,
    /// The master key's name; empty for local wrapping.
    pub master_key: String,
    /// Its version.
    pub version: u64,
}

/// Whether a filesystem is open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum FilesystemState {
    /// Its key is in memory.
    Unlocked,
    /// Its key is not in memory, and the node tries to get it.
    Unlocking,
    /// Its key is not in memory.
    Locked,
    /// It is being deleted; if `problem` has a cure, that failed and is tried again.
    Deleting,
}

/// A page of filesystems, by name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Filesystems {
    /// In byte order of their names.
    pub filesystems: Vec<Filesystem>,
    /// Ask again with `?after=` this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// Locks a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Lock {
    /// Whether jobs that use it are stopped first.
    #[serde(default)]
    pub force: bool,
}

/// Authenticates everything in a filesystem.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Verify {
    /// Whether what cannot be read is set aside.
    #[serde(default)]
    pub repair: bool,
}

/// Copies a plain tree in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Import {
    /// The directory whose content is copied, absolute.
    pub source: BytePath,
}

/// Copies the tree out in plain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Export {
    /// The directory that receives it, absolute.
    pub target: BytePath,
}

/// What became of a deleted filesystem.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Deleted {
    /// Its name.
    pub name: String,
    /// Its key's id.
    pub key_id: String,
    /// Copies of its wrapped key that were removed.
    pub removed: Vec<String>,
    /// Copies that still open: uploaded snapshots, filesystems that adopted the key, a backing directory that was left.
    pub remaining: Vec<String>,
}

/// A page of a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Listing {
    /// In byte order of their names; of a path that is no directory, the one entry.
    pub entries: Vec<Entry>,
    /// What can't be listed, and where its ciphertext lies in the directory: on the first page what has no name that can
    /// be read, on each what is wrong with one of its names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub unreadable: Vec<Damage>,
    /// How many more of those there are, when they are too many to name.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub unreadable_omitted: u64,
    /// Ask again with `?after=` this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<BytePath>,
}

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Entry {
    /// The name.
    pub name: BytePath,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of plaintext; of a symlink, those of its target.
    pub size: u64,
    /// Permission bits (`chmod(2)`), as a number.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content last changed, in Unix milliseconds; before 1970 it is negative.
    pub modified_at: i64,
    /// Where a symlink points.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<BytePath>,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A file with data.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO (named pipe).
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

//! The keys that a tree lies under: one, or two while it is being re-encrypted.

use std::sync::Arc;

use data_path::{Backend, DirId, FileCipher, FilesystemKeys, FormatError, Node, XattrOwner};
use kms_core::{FilesystemKey, KeyId};

use crate::sys::Xattr;

/// Whether a filesystem with this key, which may be re-encrypted from `previous`, is one of the key `found`.
pub(crate) fn is_of(found: KeyId, key: KeyId, previous: Option<KeyId>) -> bool {
    found == key || Some(found) == previous
}

/// All new is sealed under `current`. What lies under `previous` is opened too, so that a tree can be used while it goes
/// from one to the other, name by name and block by block.
#[derive(Debug)]
pub(crate) struct TreeKeys {
    pub(crate) current: FilesystemKeys,
    pub(crate) previous: Option<FilesystemKeys>,
}

impl TreeKeys {
    pub(crate) fn new(
        current: Arc<FilesystemKey>,
        previous: Option<Arc<FilesystemKey>>,
        backend: Backend,
    ) -> Result<Self, FormatError> {
        let previous = previous.map(|key| FilesystemKeys::new(key, backend)).transpose()?;
        Ok(Self { current: FilesystemKeys::new(current, backend)?, previous })
    }

    /// The current one first.
    pub(crate) fn each(&self) -> impl Iterator<Item = &FilesystemKeys> {
        std::iter::once(&self.current).chain(&self.previous)
    }

    /// The id of a directory as the names in it, and its attributes, are bound to it under `keys`. It is the same under
    /// both, but for the root, whose id follows from the key; here it goes by its current one.
    pub(crate) fn id_under(&self, keys: &FilesystemKeys, dir: DirId) -> DirId {
        if dir == self.current.root_directory() { keys.root_directory() } else { dir }
    }

    fn owner_under(&self, keys: &FilesystemKeys, owner: XattrOwner) -> XattrOwner {
        match owner {
            XattrOwner::Directory(dir) => XattrOwner::Directory(self.id_under(keys, dir)),
            XattrOwner::File(_) => owner,
        }
    }

    pub(crate) fn open_name(
        &self,
        dir: DirId,
        raw: &[u8],
        side: Option<&[u8]>,
    ) -> Result<Vec<u8>, FormatError> {
        self.open(|keys| keys.open_name(self.id_under(keys, dir), raw, side))
    }

    /// The id in a directory's record.
    pub(crate) fn open_directory(&self, record: &[u8]) -> Result<DirId, FormatError> {
        self.open(|keys| {
            let id = keys.open_directory(record)?;
            let is_root = id == keys.root_directory();
            Ok(if is_root { self.current.root_directory() } else { id })
        })
    }

    pub(crate) fn open_file(
        &self,
        first_page: &[u8],
        backing_len: u64,
    ) -> Result<FileCipher, FormatError> {
        match &self.previous {
            None => self.current.open_file(first_page, backing_len),
            Some(previous) => self.current.open_file_between(previous, first_page, backing_len),
        }
    }

    pub(crate) fn open_target(
        &self,
        text: &[u8],
        record: Option<&[u8]>,
    ) -> Result<Vec<u8>, FormatError> {
        self.open(|keys| keys.open_target(text, record))
    }

    pub(crate) fn open_node(&self, record: &[u8]) -> Result<Node, FormatError> {
        self.open(|keys| keys.open_node(record))
    }

    pub(crate) fn open_xattr(&self, owner: XattrOwner, raw: &Xattr) -> Result<Xattr, FormatError> {
        self.open(|keys| keys.open_xattr(self.owner_under(keys, owner), &raw.0, &raw.1))
    }

    pub(crate) fn open_note(&self, context: &[u8], sealed: &[u8]) -> Result<Vec<u8>, FormatError> {
        self.open(|keys| keys.open_note(context, sealed))
    }

    /// What opens under one of them. If none does, the answer is that of the key that it names.
    fn open<T>(
        &self,
        open: impl Fn(&FilesystemKeys) -> Result<T, FormatError>,
    ) -> Result<T, FormatError> {
        let failed = match (open(&self.current), &self.previous) {
            (Err(failed), Some(previous)) => match open(previous) {
                Err(other) if matches!(failed, FormatError::OtherKey { .. }) => other,
                Err(_) => failed,
                opened => return opened,
            },
            (opened, _) => return opened,
        };
        Err(failed)
    }
}

//! A directory's id record: the file `coffer.dir` in each ciphertext directory.

use crate::{DirId, FilesystemKeys, FormatError};

/// The record's name.
pub const RECORD_NAME: &str = "coffer.dir";
/// Bytes in a record.
pub const RECORD_LEN: usize = 72;

const MAGIC: &[u8; 7] = b"COFFDIR";
const FORMAT: u8 = 1;
const KEY_AT: usize = 8;
const ID_AT: usize = 24;
const CODE_AT: usize = 40;

impl FilesystemKeys {
    /// The id of a filesystem's root directory. It follows from the key, so that the loss of one small file does not
    /// make all names unreadable; all other ids are random.
    pub const fn root_directory(&self) -> DirId {
        self.root
    }

    /// The record of a directory's id.
    pub fn seal_directory(&self, id: DirId) -> [u8; RECORD_LEN] {
        let mut record = [0; RECORD_LEN];
        record[..7].copy_from_slice(MAGIC);
        record[7] = FORMAT;
        record[KEY_AT..ID_AT].copy_from_slice(self.key_id().as_bytes());
        record[ID_AT..CODE_AT].copy_from_slice(id.as_bytes());
        let code = self.directories.code(&[&record[..CODE_AT]]);
        record[CODE_AT..].copy_from_slice(&code);
        record
    }

    /// The id that a record holds, once the record is known to be authentic.
    ///
    /// # Errors
    /// [`FormatError::DirectoryRecord`], [`FormatError::OtherKey`], [`FormatError::Newer`].
    pub fn open_directory(&self, record: &[u8]) -> Result<DirId, FormatError> {
        let record: &[u8; RECORD_LEN] =
            record.try_into().map_err(|_| FormatError::DirectoryRecord)?;
        if &record[..7] != MAGIC {
            return Err(FormatError::DirectoryRecord);
        }
        let key = kms_core::KeyId::from_bytes(crate::header::array(&record[KEY_AT..ID_AT]));
        if key != self.key_id() {
            return Err(FormatError::OtherKey { found: key });
        }
        if !self.directories.verify(&[&record[..CODE_AT]], &record[CODE_AT..]) {
            return Err(FormatError::DirectoryRecord);
        }
        // Every format has its code here, so damage is not taken for a newer format.
        match record[7] {
            FORMAT => Ok(DirId::from_bytes(crate::header::array(&record[ID_AT..CODE_AT]))),
            newer if newer > FORMAT => Err(FormatError::Newer(newer)),
            _ => Err(FormatError::DirectoryRecord),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_newer_format_is_told_from_damage() {
        let key = Arc::new(kms_core::FilesystemKey::generate().unwrap());
        let keys = FilesystemKeys::new(key, crate::Backend::default()).unwrap();
        let mut record = keys.seal_directory(keys.root_directory());
        record[7] = 2;
        assert_eq!(keys.open_directory(&record), Err(FormatError::DirectoryRecord));
        let code = keys.directories.code(&[&record[..CODE_AT]]);
        record[CODE_AT..].copy_from_slice(&code);
        assert_eq!(keys.open_directory(&record), Err(FormatError::Newer(2)));
    }
}

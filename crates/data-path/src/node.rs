//! The record of a FIFO or a device: a small regular file that lies in its place.
//!
//! The thing itself would have nothing in it that shows whose it is: who can write the backing directory could put a
//! device of their choice in the place of anything, and an export as root would make it.

use crate::{FilesystemKeys, FormatError};

const MAGIC: &[u8; 7] = b"COFFNOD";
const FORMAT: u8 = 1;
const KEY_AT: usize = 8;
const KIND_AT: usize = 24;
const MAJOR_AT: usize = 32;
const MINOR_AT: usize = 36;
const CODE_AT: usize = 40;
/// Bytes in a record. No encrypted file has so few.
const RECORD_LEN: usize = 72;

/// A FIFO or a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    /// Which of them.
    pub kind: NodeKind,
    /// The device number's parts; 0 for a FIFO.
    pub major: u32,
    /// The other part.
    pub minor: u32,
}

/// What sort of node it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NodeKind {
    /// A FIFO (named pipe).
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

impl Node {
    /// Bytes in a record.
    pub const RECORD_LEN: usize = RECORD_LEN;

    /// Whether a regular file in the ciphertext tree is a record by its length. An encrypted file has a page at least.
    pub const fn is_record(backing_len: u64) -> bool {
        backing_len == RECORD_LEN as u64
    }
}

/// Kinds and the letters that stand for them in a record, as in `ls -l`.
const LETTERS: [(NodeKind, u8); 3] =
    [(NodeKind::Fifo, b'p'), (NodeKind::CharacterDevice, b'c'), (NodeKind::BlockDevice, b'b')];

impl FilesystemKeys {
    /// The record of a FIFO or device.
    pub fn seal_node(&self, node: Node) -> [u8; RECORD_LEN] {
        let mut record = [0; RECORD_LEN];
        record[..7].copy_from_slice(MAGIC);
        record[7] = FORMAT;
        record[KEY_AT..KIND_AT].copy_from_slice(self.key_id().as_bytes());
        let letters = LETTERS.iter().filter(|(kind, _)| *kind == node.kind);
        letters.for_each(|(_, letter)| record[KIND_AT] = *letter);
        record[MAJOR_AT..MINOR_AT].copy_from_slice(&node.major.to_le_bytes());
        record[MINOR_AT..CODE_AT].copy_from_slice(&node.minor.to_le_bytes());
        let code = self.nodes.code(&[&record[..CODE_AT]]);
        record[CODE_AT..].copy_from_slice(&code);
        record
    }

    /// What a record tells, once it is known to be authentic.
    ///
    /// # Errors
    /// [`FormatError::Node`], [`FormatError::OtherKey`], [`FormatError::Newer`].
    pub fn open_node(&self, record: &[u8]) -> Result<Node, FormatError> {
        let record: &[u8; RECORD_LEN] = record.try_into().map_err(|_| FormatError::Node)?;
        if &record[..7] != MAGIC {
            return Err(FormatError::Node);
        }
        let key = kms_core::KeyId::from_bytes(crate::header::array(&record[KEY_AT..KIND_AT]));
        if key != self.key_id() {
            return Err(FormatError::OtherKey { found: key });
        }
        if !self.nodes.verify(&[&record[..CODE_AT]], &record[CODE_AT..]) {
            return Err(FormatError::Node);
        }
        // Every format has its code here, so damage is not taken for a newer format.
        if record[7] > FORMAT {
            return Err(FormatError::Newer(record[7]));
        }
        let kind = LETTERS.iter().find(|(_, letter)| *letter == record[KIND_AT]);
        let number = |at: usize| u32::from_le_bytes(crate::header::array(&record[at..at + 4]));
        match kind {
            Some((kind, _)) if record[7] == FORMAT && record[KIND_AT + 1..MAJOR_AT] == [0; 7] => {
                Ok(Node { kind: *kind, major: number(MAJOR_AT), minor: number(MINOR_AT) })
            }
            _ => Err(FormatError::Node),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn a_record_opens_as_what_it_was_made_of_and_not_altered() {
        let key = Arc::new(kms_core::FilesystemKey::generate().unwrap());
        let keys = FilesystemKeys::new(key, crate::Backend::default()).unwrap();
        for (kind, _) in LETTERS {
            let node = Node { kind, major: 7, minor: 1 << 19 };
            let record = keys.seal_node(node);
            assert_eq!(keys.open_node(&record), Ok(node));
            for at in 0..record.len() {
                let mut altered = record;
                altered[at] ^= 1;
                assert!(keys.open_node(&altered).unwrap_err().is_damage(), "byte {at}");
                assert_eq!(keys.open_node(&record[..at]), Err(FormatError::Node));
            }
        }
        let mut newer = keys.seal_node(Node { kind: NodeKind::Fifo, major: 0, minor: 0 });
        newer[7] = 2;
        let code = keys.nodes.code(&[&newer[..CODE_AT]]);
        newer[CODE_AT..].copy_from_slice(&code);
        assert_eq!(keys.open_node(&newer), Err(FormatError::Newer(2)));
    }
}

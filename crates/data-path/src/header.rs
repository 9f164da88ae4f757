//! A file's header: the first 272 bytes of its first tag page (`docs/formats.md` has every byte).
//!
//! Its open part names the file and up to two epochs: a key id, a salt, a commitment each. Its
//! sealed part stands in two numbered copies and tells the size, whether the file is being written,
//! and how many seals are reserved.

use kms_core::KeyId;

use crate::FormatError;
use crate::aead::{Seal, TAG_LEN};
use crate::budget::SealBudget;
use crate::file::FileState;
use crate::id::FileId;
use crate::keys::{COMMITMENT_LEN, SALT_LEN};
use crate::layout::MAX_SIZE;
use crate::nonce::NONCE_LEN;

/// Bytes of the header; zero in the tag pages of all other groups, but for [`EPOCH_BYTE`].
pub(crate) const HEADER_LEN: usize = 272;
/// The byte whose bit 0 names the epoch of the tag page's state, in every tag page.
pub(crate) const EPOCH_BYTE: usize = 7;
/// The newest format of files that this program writes and reads.
pub(crate) const FORMAT: u8 = 1;

const MAGIC: &[u8; 6] = b"COFFER";
const FORMAT_BYTE: usize = 6;
const ID_AT: usize = 8;
const EPOCHS_AT: usize = 24;
const EPOCH_LEN: usize = 16 + SALT_LEN + COMMITMENT_LEN;
const COPIES_AT: usize = EPOCHS_AT + 2 * EPOCH_LEN;
/// Bytes of a sealed copy's plaintext.
pub(crate) const COPY_LEN: usize = 16;
const SEALED_COPY_LEN: usize = SEAL_LEN + COPY_LEN;
/// Bytes of a nonce and a tag.
pub(crate) const SEAL_LEN: usize = NONCE_LEN + TAG_LEN;
const _: () = assert!(COPIES_AT + 2 * SEALED_COPY_LEN == HEADER_LEN);

const DIRTY: u8 = 1;
const CURRENT_EPOCH: u8 = 2;

/// What an epoch's key is derived from, and what it must commit to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct EpochHead {
    pub(crate) key: KeyId,
    pub(crate) salt: [u8; SALT_LEN],
    pub(crate) commitment: [u8; COMMITMENT_LEN],
}

/// The open part of a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct OpenPart {
    pub(crate) id: FileId,
    /// `None`: unused, and zero on disk.
    pub(crate) epochs: [Option<EpochHead>; 2],
}

impl OpenPart {
    pub(crate) fn parse(page: &[u8]) -> Result<Self, FormatError> {
        let header = page.get(..HEADER_LEN).ok_or(FormatError::Header)?;
        if &header[..FORMAT_BYTE] != MAGIC {
            return Err(FormatError::NotEncrypted);
        }
        match header[FORMAT_BYTE] {
            FORMAT => {}
            newer if newer > FORMAT => return Err(FormatError::Newer(newer)),
            _ => return Err(FormatError::Header),
        }
        let epoch = |n: usize| {
            let bytes = &header[EPOCHS_AT + n * EPOCH_LEN..][..EPOCH_LEN];
            let (key, rest) = bytes.split_at(16);
            let (salt, commitment) = rest.split_at(SALT_LEN);
            bytes.iter().any(|&byte| byte != 0).then(|| EpochHead {
                key: KeyId::from_bytes(array(key)),
                salt: array(salt),
                commitment: array(commitment),
            })
        };
        Ok(Self {
            id: FileId::from_bytes(array(&header[ID_AT..EPOCHS_AT])),
            epochs: [epoch(0), epoch(1)],
        })
    }

    /// Writes it, and leaves the sealed copies and all epoch bits as they are.
    pub(crate) fn write(&self, page: &mut [u8]) {
        page[..FORMAT_BYTE].copy_from_slice(MAGIC);
        page[FORMAT_BYTE] = FORMAT;
        page[ID_AT..EPOCHS_AT].copy_from_slice(self.id.as_bytes());
        for (n, epoch) in self.epochs.iter().enumerate() {
            let bytes = &mut page[EPOCHS_AT + n * EPOCH_LEN..][..EPOCH_LEN];
            match epoch {
                None => bytes.fill(0),
                Some(epoch) => {
                    bytes[..16].copy_from_slice(epoch.key.as_bytes());
                    bytes[16..][..SALT_LEN].copy_from_slice(&epoch.salt);
                    bytes[16 + SALT_LEN..].copy_from_slice(&epoch.commitment);
                }
            }
        }
    }
}

/// The open part as the sealed copies bind it: all of it but the byte with the epoch bits.
pub(crate) fn bound_part(page: &[u8]) -> [&[u8]; 2] {
    [&page[..EPOCH_BYTE], &page[ID_AT..COPIES_AT]]
}

/// Where copy 0 or 1 lies in the page.
pub(crate) fn copy_at(copy: u8) -> std::ops::Range<usize> {
    let start = COPIES_AT + usize::from(copy) * SEALED_COPY_LEN;
    start..start + SEALED_COPY_LEN
}

/// The bit of [`EPOCH_BYTE`] that names the epoch which sealed this copy.
pub(crate) const fn copy_epoch_bit(copy: u8) -> u8 {
    2 << copy
}

/// Bits of [`EPOCH_BYTE`] that have no meaning and must be zero.
pub(crate) const UNUSED_EPOCH_BITS: u8 = !7;

/// What a sealed copy tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SealedPart {
    /// Counted up, wrapping, with each write of a header; even numbers stand in copy 0.
    pub(crate) number: u32,
    pub(crate) size: u64,
    pub(crate) dirty: bool,
    /// The epoch under which new seals are made.
    pub(crate) current: usize,
    /// Seals reserved under each epoch: multiples of [`SealBudget::BATCH`].
    pub(crate) reserved: [u64; 2],
}

impl SealedPart {
    pub(crate) fn to_bytes(self) -> [u8; COPY_LEN] {
        let mut bytes = [0; COPY_LEN];
        bytes[..4].copy_from_slice(&self.number.to_le_bytes());
        for (n, reserved) in self.reserved.iter().enumerate() {
            // At most 2^30 / 2^16.
            let batches = (reserved / SealBudget::BATCH) as u16;
            bytes[4 + 2 * n..][..2].copy_from_slice(&batches.to_le_bytes());
        }
        bytes[8..].copy_from_slice(&self.size.to_le_bytes());
        bytes[15] =
            if self.dirty { DIRTY } else { 0 } | if self.current == 1 { CURRENT_EPOCH } else { 0 };
        bytes
    }

    pub(crate) fn parse(bytes: &[u8; COPY_LEN]) -> Option<Self> {
        let flags = bytes[15];
        let batches = |n: usize| u64::from(u16::from_le_bytes(array(&bytes[4 + 2 * n..][..2])));
        let reserved = [batches(0) * SealBudget::BATCH, batches(1) * SealBudget::BATCH];
        let sound = flags & !(DIRTY | CURRENT_EPOCH) == 0
            && reserved.iter().all(|&r| r <= SealBudget::LIMIT);
        sound.then(|| Self {
            number: u32::from_le_bytes(array(&bytes[..4])),
            size: u64::from_le_bytes(array(&bytes[8..])) & MAX_SIZE,
            dirty: flags & DIRTY != 0,
            current: usize::from(flags & CURRENT_EPOCH != 0),
            reserved,
        })
    }

    pub(crate) const fn state(&self) -> FileState {
        FileState {
            size: self.size,
            dirty: self.dirty,
            seals_reserved: self.reserved[self.current],
        }
    }
}

/// Nonce, tag and ciphertext as they lie side by side.
pub(crate) fn split_sealed(bytes: &[u8]) -> (Seal, &[u8]) {
    let (nonce, rest) = bytes.split_at(NONCE_LEN);
    let (tag, sealed) = rest.split_at(TAG_LEN);
    (Seal { nonce: array(nonce), tag: array(tag) }, sealed)
}

/// Puts nonce, tag and ciphertext side by side.
pub(crate) fn join_sealed(bytes: &mut [u8], seal: &Seal, sealed: &[u8]) {
    bytes[..NONCE_LEN].copy_from_slice(&seal.nonce);
    bytes[NONCE_LEN..SEAL_LEN].copy_from_slice(&seal.tag);
    bytes[SEAL_LEN..].copy_from_slice(sealed);
}

/// The array with these bytes, which are as many.
pub(crate) fn array<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut array = [0; N];
    array.copy_from_slice(bytes);
    array
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_sealed_part_comes_back(
            number in any::<u32>(), size in 0..=MAX_SIZE, dirty in any::<bool>(),
            current in 0_usize..2, batches in [0_u64..=1 << 14, 0_u64..=1 << 14],
        ) {
            let part = SealedPart { number, size, dirty, current, reserved: batches.map(|b| b * SealBudget::BATCH) };
            prop_assert_eq!(SealedPart::parse(&part.to_bytes()), Some(part));
        }

        #[test]
        fn parsing_is_the_inverse_of_writing(bytes in any::<[u8; COPY_LEN]>(), flags in 0_u8..4) {
            let mut bytes = bytes;
            bytes[15] = flags;
            if let Some(part) = SealedPart::parse(&bytes) {
                prop_assert_eq!(part.to_bytes(), bytes);
            }
        }

        #[test]
        fn any_header_parses_or_errs(bytes in proptest::collection::vec(any::<u8>(), 0..300), ours in any::<bool>()) {
            let mut bytes = bytes;
            if ours && bytes.len() > 6 {
                bytes[..6].copy_from_slice(MAGIC);
                bytes[6] = FORMAT;
            }
            if let Ok(part) = OpenPart::parse(&bytes) {
                let mut again = bytes.clone();
                part.write(&mut again);
                prop_assert_eq!(again, bytes);
            }
        }
    }
}

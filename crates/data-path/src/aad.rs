//! The associated data of every AES-256-GCM seal: one pure function.

use kms_core::KeyId;

use crate::FileId;

/// Bytes of associated data: three AES blocks.
pub(crate) const AAD_LEN: usize = 48;

/// What a seal covers. Each has its own domain, so that nothing sealed as one thing opens as
/// another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Domain {
    /// A block; numbered over the file.
    Block,
    /// A hole map; numbered by region.
    HoleMap,
    /// A tag page's state; numbered by group. The page's entries follow as more associated data.
    TagPage,
    /// A copy of the file's sealed state; numbered 0 and 1. The header's open part follows.
    Header,
}

/// Domain, key id, file id, number and plaintext length, each at a fixed place.
pub(crate) fn aad(
    domain: Domain,
    key: KeyId,
    file: FileId,
    number: u64,
    len: usize,
) -> [u8; AAD_LEN] {
    let mut aad = [0; AAD_LEN];
    aad[..4].copy_from_slice(match domain {
        Domain::Block => b"CFBL",
        Domain::HoleMap => b"CFHM",
        Domain::TagPage => b"CFTP",
        Domain::Header => b"CFHD",
    });
    aad[4..20].copy_from_slice(key.as_bytes());
    aad[20..36].copy_from_slice(file.as_bytes());
    aad[36..44].copy_from_slice(&number.to_le_bytes());
    // Every length here is at most a page.
    aad[44..].copy_from_slice(&(len as u32).to_le_bytes());
    aad
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_has_its_place() {
        let aad = aad(
            Domain::Block,
            KeyId::from_bytes([0x11; 16]),
            FileId::from_bytes([0x22; 16]),
            0x0102_0304_0506_0708,
            4096,
        );
        let expected = format!(
            "{}{}{}{}{}",
            hex::encode("CFBL"),
            "11".repeat(16),
            "22".repeat(16),
            "0807060504030201",
            "00100000"
        );
        assert_eq!(hex::encode(aad), expected);
    }

    #[test]
    fn no_two_inputs_share_their_associated_data() {
        let (a, b) = (KeyId::from_bytes([1; 16]), KeyId::from_bytes([2; 16]));
        let (f, g) = (FileId::from_bytes([1; 16]), FileId::from_bytes([2; 16]));
        let all = [
            aad(Domain::Block, a, f, 0, 16),
            aad(Domain::HoleMap, a, f, 0, 16),
            aad(Domain::TagPage, a, f, 0, 16),
            aad(Domain::Header, a, f, 0, 16),
            aad(Domain::Block, b, f, 0, 16),
            aad(Domain::Block, a, g, 0, 16),
            aad(Domain::Block, a, f, 1, 16),
            aad(Domain::Block, a, f, 0, 17),
        ];
        for (i, one) in all.iter().enumerate() {
            assert!(all[..i].iter().all(|other| other != one));
        }
    }
}

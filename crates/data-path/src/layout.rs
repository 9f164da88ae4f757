//! Where everything lies in a backing file. Every position is a pure function of a block's number,
//! and the plain size of a file is a pure function of the backing file's, so `stat` decrypts
//! nothing.
//!
//! | unit | bytes | is |
//! |---|---|---|
//! | page | 4 KiB | one block of data, a tag page, or a hole map |
//! | group | 64 pages, 256 KiB | a tag page and 63 pages that its entries describe |
//! | region | 32,768 groups, 8 GiB | what one hole map describes |
//!
//! Entry 62 (the last) of each region's first group describes the region's hole map instead of a
//! block; all other entries describe blocks, in order. The last block is not padded: the backing
//! file ends where it ends.
//!
//! Sizes are at most [`MAX_SIZE`]; beyond it the functions saturate, and their answers mean nothing.

use std::ops::Range;

use crate::FormatError;

/// Bytes in a page, and in every block of a file but the last.
pub const PAGE: usize = 4096;
/// Entries in a tag page.
pub const ENTRIES: usize = 63;
/// Bytes in a whole group.
pub const GROUP: usize = (ENTRIES + 1) * PAGE;
/// Groups in a region: as many as a hole map has bits.
pub const REGION_GROUPS: u64 = (PAGE * 8) as u64;
/// The entry of a region's first group that describes the region's hole map.
pub const HOLE_MAP_ENTRY: usize = ENTRIES - 1;
/// The largest size that a file can have. (Seals run out first: see [`crate::SealBudget::LIMIT`].)
pub const MAX_SIZE: u64 = (1 << 56) - 1;

const PAGE_U64: u64 = PAGE as u64;
const GROUP_U64: u64 = GROUP as u64;
const ENTRIES_U64: u64 = ENTRIES as u64;
const HOLE_MAP_ENTRY_U64: u64 = HOLE_MAP_ENTRY as u64;
const REGION_BLOCKS: u64 = REGION_GROUPS * ENTRIES_U64 - 1;

/// Where a block is described: which group, which entry of its tag page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// The group's number, from 0.
    pub group: u64,
    /// The entry in its tag page, below [`ENTRIES`].
    pub entry: usize,
}

impl Place {
    /// The place of this block.
    pub const fn of_block(block: u64) -> Self {
        let in_region = block % REGION_BLOCKS;
        let entry = in_region + (in_region >= HOLE_MAP_ENTRY_U64) as u64;
        Self {
            group: block / REGION_BLOCKS * REGION_GROUPS + entry / ENTRIES_U64,
            entry: (entry % ENTRIES_U64) as usize,
        }
    }

    /// The byte of the backing file at which the described page starts.
    pub const fn position(self) -> u64 {
        group_position(self.group).saturating_add(PAGE_U64 + (self.entry % ENTRIES * PAGE) as u64)
    }
}

/// Whether this group is the first of its region. It always has a tag page, and its last entry
/// describes the region's hole map.
pub const fn is_region_start(group: u64) -> bool {
    group.is_multiple_of(REGION_GROUPS)
}

/// The region of this group.
pub const fn region_of(group: u64) -> u64 {
    group / REGION_GROUPS
}

/// The byte of the backing file at which this group starts, with its tag page.
pub const fn group_position(group: u64) -> u64 {
    group.saturating_mul(GROUP_U64)
}

/// How many blocks this group can hold.
pub const fn group_blocks(group: u64) -> usize {
    if is_region_start(group) { HOLE_MAP_ENTRY } else { ENTRIES }
}

/// The number of this group's first block.
pub const fn first_block(group: u64) -> u64 {
    let in_region = group % REGION_GROUPS;
    let before = in_region * ENTRIES_U64 - (in_region > 0) as u64;
    region_of(group).saturating_mul(REGION_BLOCKS).saturating_add(before)
}

/// The bytes of the file that lie in this group when the file has this size; empty past its end.
pub fn group_data(group: u64, size: u64) -> Range<u64> {
    let start = first_block(group).saturating_mul(PAGE_U64).min(size);
    let end = first_block(group.saturating_add(1)).saturating_mul(PAGE_U64).min(size);
    start..end
}

/// How many groups a file of this size has. An empty one has one: it starts with the file's header.
pub const fn group_count(size: u64) -> u64 {
    match size.checked_sub(1) {
        None => 1,
        Some(last) => Place::of_block(last / PAGE_U64).group + 1,
    }
}

/// Bytes that this group has in the backing file when the file has this size; 0 past its end.
pub fn group_len(group: u64, size: u64) -> usize {
    let end = backing_len(size).saturating_sub(group_position(group));
    usize::try_from(end).unwrap_or(GROUP).min(GROUP)
}

/// The part of a group's buffer that holds the file's bytes, when the buffer is a group of this
/// length.
pub fn data_range(group: u64, buffer_len: usize) -> Range<usize> {
    let end = PAGE * (group_blocks(group) + 1);
    PAGE.min(buffer_len)..end.min(buffer_len)
}

/// The length of the backing file of a file of this size.
pub const fn backing_len(size: u64) -> u64 {
    match size.checked_sub(1) {
        None => PAGE_U64,
        Some(last) => {
            Place::of_block(last / PAGE_U64).position().saturating_add(last % PAGE_U64 + 1)
        }
    }
}

/// The size of the file whose backing file has this length.
///
/// # Errors
/// [`FormatError::BackingLength`] for a length that no file's backing has: the file was cut or
/// extended.
pub const fn logical_size(backing_len: u64) -> Result<u64, FormatError> {
    match size_within(backing_len) {
        Some(size) if self::backing_len(size) == backing_len => Ok(size),
        _ => Err(FormatError::BackingLength { found: backing_len }),
    }
}

/// The greatest size whose backing file is no longer than this: what a dirty file has whose writer
/// died in a new group, after its tag page or a hole map and before a block.
pub(crate) const fn size_within(backing_len: u64) -> Option<u64> {
    let Some(last) = backing_len.checked_sub(1) else { return None };
    let (group, page) = (last / GROUP_U64, last % GROUP_U64 / PAGE_U64);
    let whole_blocks = page.saturating_sub(1);
    let size = if page == 0 || (page == ENTRIES_U64 && is_region_start(group)) {
        (first_block(group) + whole_blocks) * PAGE_U64
    } else {
        (first_block(group) + whole_blocks) * PAGE_U64 + last % PAGE_U64 + 1
    };
    if backing_len < PAGE_U64 || size > MAX_SIZE { None } else { Some(size) }
}

/// Whether all of it is zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    let (chunks, rest) = bytes.as_chunks::<16>();
    chunks.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0)
        && rest.iter().all(|&byte| byte == 0)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Walks the pages as the module's documentation describes them, to hold the formulas against.
    #[test]
    fn the_formulas_follow_the_page_by_page_description() {
        let mut block = 0;
        for group in (0..3).chain(REGION_GROUPS - 1..REGION_GROUPS + 3) {
            if group == REGION_GROUPS - 1 {
                block = first_block(group);
                assert_eq!(block, group * 63 - 1);
            }
            assert_eq!(first_block(group), block);
            for entry in 0..ENTRIES {
                if group.is_multiple_of(REGION_GROUPS) && entry == 62 {
                    continue;
                }
                let place = Place { group, entry };
                assert_eq!(Place::of_block(block), place);
                assert_eq!(place.position(), group * 262_144 + 4096 * (entry as u64 + 1));
                block += 1;
            }
            assert_eq!(group_blocks(group) as u64, block - first_block(group));
        }
    }

    #[test]
    fn sizes_at_the_edges() {
        for (size, backing, groups) in [
            (0, 4096, 1),
            (1, 4097, 1),
            (4096, 8192, 1),
            (62 * 4096, 63 * 4096, 1),
            (62 * 4096 + 1, 65 * 4096 + 1, 2),
            (125 * 4096, 128 * 4096, 2),
            (125 * 4096 + 1, 129 * 4096 + 1, 3),
        ] {
            assert_eq!(backing_len(size), backing, "size {size}");
            assert_eq!(logical_size(backing).unwrap(), size);
            assert_eq!(group_count(size), groups);
        }
        for impossible in [0, 1, 4095, 63 * 4096 + 1, 64 * 4096, 64 * 4096 + 1, 65 * 4096, u64::MAX]
        {
            assert!(logical_size(impossible).is_err(), "length {impossible}");
        }
        assert_eq!(logical_size(backing_len(MAX_SIZE)).unwrap(), MAX_SIZE);
        assert!(logical_size(backing_len(MAX_SIZE) + 1).is_err());
    }

    proptest! {
        #[test]
        fn size_and_backing_length_are_inverse(size in 0..=MAX_SIZE) {
            prop_assert_eq!(logical_size(backing_len(size)).unwrap(), size);
        }

        #[test]
        fn no_two_sizes_share_a_backing_length(backing in any::<u64>()) {
            if let Ok(size) = logical_size(backing) {
                prop_assert_eq!(backing_len(size), backing);
            }
        }

        #[test]
        fn what_fits_into_a_length_is_the_most_that_fits(backing in PAGE_U64..9 << 30) {
            let size = size_within(backing).unwrap();
            prop_assert!(backing_len(size) <= backing && backing < backing_len(size + 1));
        }

        #[test]
        fn groups_tile_the_file(size in 0_u64..(9 << 30), pick in any::<u64>()) {
            let count = group_count(size);
            let group = pick % count;
            let data = group_data(group, size);
            prop_assert_eq!(data.start == 0, group == 0);
            prop_assert_eq!(data.end == size, group + 1 == count);
            prop_assert_eq!(group_data(group + 1, size).start, data.end);
            let len = group_len(group, size);
            prop_assert_eq!(len as u64, (backing_len(size) - group_position(group)).min(GROUP as u64));
            prop_assert_eq!(data_range(group, len).len() as u64, data.end - data.start);
        }

        #[test]
        fn no_input_panics(n in any::<u64>(), m in any::<u64>(), len in any::<usize>()) {
            let _ = (Place::of_block(n).position(), group_data(n, m), group_len(n, m), group_count(n));
            let _ = (backing_len(n), logical_size(n), data_range(n, len), first_block(n));
            let _ = group_data(u64::MAX, m);
        }

        #[test]
        fn is_zero_sees_every_byte(len in 0_usize..100, at in any::<usize>()) {
            let mut bytes = vec![0; len];
            prop_assert!(is_zero(&bytes));
            if len > 0 {
                bytes[at % len] = 1;
                prop_assert!(!is_zero(&bytes));
            }
        }
    }
}

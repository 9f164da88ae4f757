//! Tag pages: what authenticates a group's blocks.
//!
//! Each entry has two slots. Overwriting a block fills the older slot, which thereby becomes the
//! newer, then writes the block: whenever the process dies, the block on disk opens with one of the
//! two. A block that was a hole is written first and its slot afterwards: until then it reads as
//! zeros.

use crate::aead::Seal;
use crate::header::{SEAL_LEN, array, join_sealed, split_sealed};
use crate::layout::{ENTRIES, PAGE};

pub(crate) const SLOT_LEN: usize = SEAL_LEN + 2;
const ENTRY_LEN: usize = 2 * SLOT_LEN;
/// Bytes of all entries; they end with the page.
pub(crate) const ENTRIES_LEN: usize = ENTRIES * ENTRY_LEN;
/// Where the entries start in a tag page.
pub(crate) const ENTRIES_AT: usize = PAGE - ENTRIES_LEN;

const EPOCH_BIT: u16 = 1 << 15;

/// Some of a group's entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Entries(u64);

impl Entries {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// All 63.
    pub const ALL: Self = Self((1 << ENTRIES) - 1);

    /// The first `n`.
    pub const fn first(n: usize) -> Self {
        if n >= ENTRIES { Self::ALL } else { Self((1 << n) - 1) }
    }

    /// Whether `entry` is among them.
    pub const fn contains(self, entry: usize) -> bool {
        entry < ENTRIES && self.0 >> entry & 1 == 1
    }

    /// Adds `entry`; one past the last is ignored.
    pub const fn insert(&mut self, entry: usize) {
        self.0 |= Self::one(entry);
    }

    /// Takes `entry` out.
    pub const fn remove(&mut self, entry: usize) {
        self.0 &= !Self::one(entry);
    }

    /// Whether there are none.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// How many there are.
    pub const fn len(self) -> usize {
        self.0.count_ones() as usize
    }

    /// Those that lie side by side, as ranges, in ascending order.
    pub fn runs(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let mut rest = self;
        std::iter::from_fn(move || {
            let start = rest.iter().next()?;
            let end = (start..=ENTRIES).find(|&entry| !rest.contains(entry))?;
            (start..end).for_each(|entry| rest.remove(entry));
            Some(start..end)
        })
    }

    /// In ascending order.
    pub fn iter(self) -> impl Iterator<Item = usize> {
        (0..ENTRIES).filter(move |&entry| self.contains(entry))
    }

    const fn one(entry: usize) -> u64 {
        if entry < ENTRIES { 1 << entry } else { 0 }
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    /// `None` when a bit is set that stands for no entry.
    pub(crate) const fn from_bits(bits: u64) -> Option<Self> {
        if bits & !Self::ALL.0 == 0 { Some(Self(bits)) } else { None }
    }
}

impl FromIterator<usize> for Entries {
    fn from_iter<I: IntoIterator<Item = usize>>(entries: I) -> Self {
        let mut all = Self::NONE;
        entries.into_iter().for_each(|entry| all.insert(entry));
        all
    }
}

/// What opens one block as it was written once: nonce, tag, length and epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    pub(crate) seal: Seal,
    pub(crate) len: u16,
    pub(crate) epoch: usize,
}

impl Slot {
    /// Bytes in the block, 1 to 4096.
    pub const fn block_len(&self) -> usize {
        self.len as usize
    }

    /// `None` for bytes that are no slot.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (seal, rest) = split_sealed(bytes);
        let word = u16::from_le_bytes(array(rest));
        let (len, epoch) = (word & !EPOCH_BIT, usize::from(word & EPOCH_BIT != 0));
        (1..=PAGE).contains(&usize::from(len)).then_some(Self { seal, len, epoch })
    }

    fn write(&self, bytes: &mut [u8]) {
        let word = self.len | if self.epoch == 1 { EPOCH_BIT } else { 0 };
        join_sealed(bytes, &self.seal, &word.to_le_bytes());
    }
}

/// The opened content of a tag page: plain functions over it are all that the ways of writing a
/// block need.
#[derive(Clone, PartialEq, Eq)]
pub struct TagPage {
    pub(crate) entries: Box<[u8; ENTRIES_LEN]>,
    pub(crate) written: Entries,
    pub(crate) second_is_newer: Entries,
}

impl Default for TagPage {
    fn default() -> Self {
        Self {
            entries: Box::new([0; ENTRIES_LEN]),
            written: Entries::NONE,
            second_is_newer: Entries::NONE,
        }
    }
}

impl TagPage {
    /// The entries that describe something written; the others are holes, and read as zeros.
    pub const fn written(&self) -> Entries {
        self.written
    }

    /// What opens the entry's block; `None` for a hole.
    pub fn newer(&self, entry: usize) -> Option<Slot> {
        self.slot(entry, self.second_is_newer.contains(entry))
    }

    /// What opens the block as it was before its last overwriting, if it was overwritten. It counts
    /// only while the file is dirty.
    pub fn older(&self, entry: usize) -> Option<Slot> {
        self.slot(entry, !self.second_is_newer.contains(entry))
    }

    /// Fills the older slot, which thereby becomes the newer, and keeps the other. Overwriting:
    /// seal this page, write it, then write the block. Into a hole: write the block, then this
    /// page.
    pub fn fill_older(&mut self, entry: usize, slot: &Slot) {
        if self.written.contains(entry) && !self.second_is_newer.contains(entry) {
            self.second_is_newer.insert(entry);
        } else {
            self.second_is_newer.remove(entry);
        }
        self.written.insert(entry);
        let second = self.second_is_newer.contains(entry);
        if let Some(bytes) = self.slot_bytes(entry, second) {
            slot.write(bytes);
        }
    }

    /// Makes the older slot the newer again: the overwriting that filled the other one never
    /// reached the block.
    pub fn settle_on_older(&mut self, entry: usize) {
        if self.second_is_newer.contains(entry) {
            self.second_is_newer.remove(entry);
        } else {
            self.second_is_newer.insert(entry);
        }
    }

    /// Empties the older slot, which nothing needs once the block is written; answers whether anything was in it.
    pub(crate) fn clear_older(&mut self, entry: usize) -> bool {
        let older = !self.second_is_newer.contains(entry);
        match self.slot_bytes(entry, older) {
            Some(bytes) if bytes.iter().any(|&byte| byte != 0) => {
                bytes.fill(0);
                true
            }
            _ => false,
        }
    }

    /// Makes a hole of the entry.
    pub fn clear(&mut self, entry: usize) {
        self.written.remove(entry);
        self.second_is_newer.remove(entry);
        for second in [false, true] {
            if let Some(bytes) = self.slot_bytes(entry, second) {
                bytes.fill(0);
            }
        }
    }

    fn slot(&self, entry: usize, second: bool) -> Option<Slot> {
        let at = slot_at(entry, second);
        if self.written.contains(entry) { Slot::parse(self.entries.get(at)?) } else { None }
    }

    fn slot_bytes(&mut self, entry: usize, second: bool) -> Option<&mut [u8]> {
        self.entries.get_mut(slot_at(entry, second))
    }
}

fn slot_at(entry: usize, second: bool) -> std::ops::Range<usize> {
    let start = entry.min(ENTRIES) * ENTRY_LEN + if second { SLOT_LEN } else { 0 };
    start..start + SLOT_LEN
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slot(byte: u8) -> Slot {
        Slot {
            seal: Seal { nonce: [byte; 12], tag: [byte; 16] },
            len: 4096,
            epoch: usize::from(byte & 1),
        }
    }

    fn nonces(page: &TagPage, entry: usize) -> (Option<u8>, Option<u8>) {
        let first = |slot: Option<Slot>| slot.map(|s| s.seal.nonce[0]);
        (first(page.newer(entry)), first(page.older(entry)))
    }

    #[test]
    fn the_last_two_slots_are_kept() {
        for entry in [0, 1, 31, 62] {
            let mut page = TagPage::default();
            assert_eq!(nonces(&page, entry), (None, None));
            page.fill_older(entry, &slot(1));
            assert_eq!(nonces(&page, entry), (Some(1), None));
            for n in 2..6 {
                page.fill_older(entry, &slot(n));
                assert_eq!(nonces(&page, entry), (Some(n), Some(n - 1)));
            }
            page.settle_on_older(entry);
            assert_eq!(nonces(&page, entry), (Some(4), Some(5)));
            page.fill_older(entry, &slot(9));
            assert_eq!(nonces(&page, entry), (Some(9), Some(4)));
            page.clear(entry);
            assert!(page == TagPage::default());
        }
    }

    #[test]
    fn entries_past_the_last_are_ignored() {
        let mut page = TagPage::default();
        page.fill_older(ENTRIES, &slot(1));
        page.settle_on_older(ENTRIES);
        page.clear(usize::MAX);
        assert!(page == TagPage::default() && page.newer(ENTRIES).is_none());
    }

    #[test]
    fn sets_of_entries() {
        let some: Entries = [0, 7, 62, 63].into_iter().collect();
        assert_eq!(some.iter().collect::<Vec<_>>(), [0, 7, 62]);
        assert_eq!((some.len(), Entries::ALL.len(), Entries::NONE.is_empty()), (3, 63, true));
        assert_eq!(Entries::first(2).iter().collect::<Vec<_>>(), [0, 1]);
        assert_eq!(Entries::first(100), Entries::ALL);
        assert_eq!(Entries::from_bits(some.bits()), Some(some));
        assert_eq!(Entries::from_bits(1 << 63), None);
    }
}

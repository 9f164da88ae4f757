//! Whole groups in one buffer: the fast way in and out of a file.

use crate::FormatError;
use std::fmt;

use crate::aad::Domain;
use crate::file::FileCipher;
use crate::layout::{self, GROUP, HOLE_MAP_ENTRY, PAGE};
use crate::tag_page::{Entries, Slot, TagPage};

/// Which groups of a region lie wholly in a hole. They have no tag page: the backing file has a
/// hole there too.
#[derive(Clone, PartialEq, Eq)]
pub struct HoleMap(Box<[u8; PAGE]>);

impl Default for HoleMap {
    fn default() -> Self {
        Self(Box::new([0; PAGE]))
    }
}

impl HoleMap {
    /// Whether this group of the map's region is a hole. The region's first group never is.
    pub fn is_hole(&self, group: u64) -> bool {
        let (byte, bit) = Self::place(group);
        !layout::is_region_start(group) && self.0[byte] & bit != 0
    }

    /// Makes a hole of this group of the map's region; a region's first group is left as it is.
    pub fn set_hole(&mut self, group: u64) {
        let (byte, bit) = Self::place(group);
        if !layout::is_region_start(group) {
            self.0[byte] |= bit;
        }
    }

    /// Whether no group is a hole.
    pub fn is_empty(&self) -> bool {
        layout::is_zero(&*self.0)
    }

    /// The map's bytes, as `docs/formats.md` has them.
    pub const fn as_bytes(&self) -> &[u8; PAGE] {
        &self.0
    }

    /// The map with these bytes.
    pub fn from_bytes(bytes: [u8; PAGE]) -> Self {
        Self(Box::new(bytes))
    }

    const fn place(group: u64) -> (usize, u8) {
        let in_region = (group % layout::REGION_GROUPS) as usize;
        (in_region / 8, 1 << (in_region % 8))
    }
}

impl fmt::Debug for HoleMap {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let holes: u32 = self.0.iter().map(|byte| byte.count_ones()).sum();
        write!(f, "HoleMap({holes} groups)")
    }
}

/// What was found in a group that could be opened. The data is in the buffer; what could not be
/// read is zeros there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenedGroup {
    group: u64,
    /// Entries whose blocks were written; the others are holes.
    pub written: Entries,
    /// Entries whose blocks are not authentic, or are missing.
    pub damaged: Entries,
    /// Entries that are holes and have bytes other than zero.
    pub strays: Entries,
    /// Entries of a dirty file whose blocks opened with their older slot: see
    /// [`TagPage::settle_on_older`].
    pub on_older: Entries,
    /// Which groups of the region are holes, when this is a region's first group and any is.
    pub holes: Option<HoleMap>,
    hole_map_damaged: bool,
}

impl OpenedGroup {
    /// Everything that is wrong with the group, in order.
    pub fn damage(&self) -> impl Iterator<Item = FormatError> {
        let first = layout::first_block(self.group);
        let region = layout::region_of(self.group);
        (self.damaged.iter().map(move |entry| FormatError::Block(first + entry as u64)))
            .chain(self.strays.iter().map(move |entry| FormatError::Hole(first + entry as u64)))
            .chain(self.hole_map_damaged.then_some(FormatError::HoleMap(region)))
    }

    /// Whether all of it is as it was written.
    pub fn is_sound(&self) -> bool {
        self.damage().next().is_none()
    }
}

impl FileCipher {
    /// Seals a group in place. `buffer` is the group as it will lie in the backing file,
    /// [`layout::group_len`] bytes: room for the tag page, then the data at [`layout::data_range`],
    /// then, in a region's first group that is whole, room for the hole map.
    ///
    /// Entries that are not in `written` become holes and zeros, whatever `buffer` has there.
    /// `holes` belongs to a region's first group. In group 0 the first bytes are the header, which
    /// [`Self::write_header`] writes before or after this.
    ///
    /// # Errors
    /// [`FormatError::Buffer`], [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`].
    pub fn seal_group(
        &self,
        group: u64,
        buffer: &mut [u8],
        written: Entries,
        holes: Option<&HoleMap>,
    ) -> Result<(), FormatError> {
        let parts = Parts::split(group, buffer)?;
        let holes = holes.filter(|map| !map.is_empty());
        let blocks = (0..parts.data.len().div_ceil(PAGE)).filter(|&n| written.contains(n)).count();
        self.take_seals(blocks + 1 + usize::from(holes.is_some()))?;
        let first = layout::first_block(group);
        let mut tags = TagPage::default();
        for (entry, block) in parts.data.chunks_mut(PAGE).enumerate() {
            if written.contains(entry) {
                let number = first + entry as u64;
                tags.fill_older(entry, &self.seal_page(Domain::Block, number, block)?);
            } else {
                block.fill(0);
            }
        }
        match (holes, parts.hole_map) {
            (Some(map), Some(page)) => {
                page.copy_from_slice(&*map.0);
                let slot = self.seal_page(Domain::HoleMap, layout::region_of(group), page)?;
                tags.fill_older(HOLE_MAP_ENTRY, &slot);
            }
            (_, page) => page.into_iter().for_each(|page| page.fill(0)),
        }
        self.put_tag_page(group, &tags, parts.tag_page)
    }

    /// Opens a group in place; `buffer` is the group as it lies in the backing file. Damaged blocks
    /// are reported and spoil no others.
    ///
    /// # Errors
    /// [`FormatError::TagPage`] when nothing of the group can be read (`buffer` then holds nothing
    /// of use), [`FormatError::Buffer`].
    pub fn open_group(&self, group: u64, buffer: &mut [u8]) -> Result<OpenedGroup, FormatError> {
        let parts = Parts::split(group, buffer)?;
        let tags = self.open_tag_page(group, parts.tag_page)?;
        let mut opened = OpenedGroup {
            group,
            written: tags.written(),
            damaged: Entries::NONE,
            strays: Entries::NONE,
            on_older: Entries::NONE,
            holes: None,
            hole_map_damaged: false,
        };
        let first = layout::first_block(group);
        let mut expected = tags.written();
        for (entry, block) in parts.data.chunks_mut(PAGE).enumerate() {
            let number = first + entry as u64;
            match self.open_entry(&tags, entry, Domain::Block, number, block) {
                Found::Newer => {}
                Found::Older => opened.on_older.insert(entry),
                Found::Damage => opened.damaged.insert(entry),
                Found::Stray => opened.strays.insert(entry),
            }
            expected.remove(entry);
        }
        if layout::is_region_start(group) {
            opened.written.remove(HOLE_MAP_ENTRY);
            let mapped = expected.contains(HOLE_MAP_ENTRY);
            expected.remove(HOLE_MAP_ENTRY);
            let region = layout::region_of(group);
            match parts.hole_map {
                None => opened.hole_map_damaged = mapped,
                Some(page) => {
                    match self.open_entry(&tags, HOLE_MAP_ENTRY, Domain::HoleMap, region, page) {
                        Found::Newer => {}
                        Found::Older => opened.on_older.insert(HOLE_MAP_ENTRY),
                        Found::Damage | Found::Stray => opened.hole_map_damaged = true,
                    }
                    if mapped && !opened.hole_map_damaged {
                        let mut map = HoleMap::default();
                        map.0.copy_from_slice(page);
                        opened.holes = Some(map);
                    }
                }
            }
        }
        // Written, and the buffer ends before them.
        expected.iter().for_each(|entry| opened.damaged.insert(entry));
        Ok(opened)
    }

    /// Opens one described page, in place. What can't be read becomes zeros.
    pub(crate) fn open_entry(
        &self,
        tags: &TagPage,
        entry: usize,
        domain: Domain,
        number: u64,
        page: &mut [u8],
    ) -> Found {
        if !tags.written().contains(entry) {
            if layout::is_zero(page) {
                return Found::Newer;
            }
            page.fill(0);
            // A writer fills a hole before its tag page says so: one that died leaves bytes there.
            return if self.state().dirty { Found::Newer } else { Found::Stray };
        }
        let opens = |slot: Option<Slot>, page: &mut [u8]| {
            slot.is_some_and(|slot| self.open_page(domain, number, page, &slot))
        };
        if self.state().dirty {
            let as_found = page.to_vec();
            if opens(tags.newer(entry), page) {
                return Found::Newer;
            }
            page.copy_from_slice(&as_found);
            if opens(tags.older(entry), page) {
                return Found::Older;
            }
        } else if opens(tags.newer(entry), page) {
            return Found::Newer;
        }
        page.fill(0);
        Found::Damage
    }
}

/// How an entry's page was found.
pub(crate) enum Found {
    /// It opened with its newer slot, or is a hole.
    Newer,
    /// It opened with its older slot: its writer died before it.
    Older,
    Damage,
    /// The entry is not written, and there is something.
    Stray,
}

/// A group's buffer, taken apart.
pub(crate) struct Parts<'a> {
    pub(crate) tag_page: &'a mut [u8; PAGE],
    pub(crate) data: &'a mut [u8],
    /// Only in a region's first group that is whole.
    pub(crate) hole_map: Option<&'a mut [u8]>,
}

impl<'a> Parts<'a> {
    pub(crate) fn split(group: u64, buffer: &'a mut [u8]) -> Result<Self, FormatError> {
        let found = buffer.len();
        let wrong = FormatError::Buffer { group, found };
        let data_end = layout::data_range(group, found).end;
        let fits = found == data_end || found == GROUP;
        let exists = group < layout::group_count(layout::MAX_SIZE);
        let (tag_page, rest) = buffer.split_first_chunk_mut().ok_or(wrong.clone())?;
        if !exists || !fits || (rest.is_empty() && group > 0) {
            return Err(wrong);
        }
        let (data, rest) = rest.split_at_mut(data_end - PAGE);
        Ok(Self { tag_page, data, hole_map: (!rest.is_empty()).then_some(rest) })
    }
}

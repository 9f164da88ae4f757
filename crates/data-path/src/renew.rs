//! Overwriting in place: blocks of a file that exists get new content, or the same under a new epoch.
//!
//! One order holds for all of it (`docs/formats.md`, "Writing"): the file is dirty; each block's new seal goes into the
//! older of its two slots; the tag page is written, then the blocks. Whenever the process dies, each block opens with one
//! of its slots. [`FileCipher::overwrite`] is that step. [`FileCipher::renew_group`] takes it for all that a group has
//! under the *former* epoch, the one that is not current: once no slot, state or copy of the header names that epoch any
//! more, [`FileCipher::drop_former`] takes it out of the header.

use kms_core::KeyId;

use crate::aad::Domain;
use crate::file::{FileCipher, FileState};
use crate::group::{Found, Parts};
use crate::header::EPOCH_BYTE;
use crate::layout::{self, HOLE_MAP_ENTRY, PAGE};
use crate::tag_page::{Entries, TagPage};
use crate::{FormatError, HoleMap};

/// What was done with a group. What has to be written now is in the buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RenewedGroup {
    group: u64,
    /// Whether the tag page changed: it is written first.
    pub tag_page: bool,
    /// Entries whose pages changed: they are written after the tag page.
    pub pages: Entries,
    /// Entries that are not authentic, or are missing: they stay as they are.
    pub damaged: Entries,
    /// Which groups of the region are holes, when this is a region's first group and any is.
    pub holes: Option<HoleMap>,
}

impl RenewedGroup {
    /// Its number.
    pub const fn group(&self) -> u64 {
        self.group
    }

    /// Everything that could not be renewed, in order.
    pub fn damage(&self) -> impl Iterator<Item = FormatError> {
        let group = self.group;
        self.damaged.iter().map(move |entry| match described(group, entry) {
            (Domain::HoleMap, region) => FormatError::HoleMap(region),
            (_, block) => FormatError::Block(block),
        })
    }
}

/// How an entry's page is sealed, and its number.
fn described(group: u64, entry: usize) -> (Domain, u64) {
    if layout::is_region_start(group) && entry == HOLE_MAP_ENTRY {
        (Domain::HoleMap, layout::region_of(group))
    } else {
        (Domain::Block, layout::first_block(group) + entry as u64)
    }
}

impl FileCipher {
    /// Begins to overwrite written blocks of a group: seals each page in place, fills its entry's older slot in `tags`,
    /// and seals those into the group's tag page. `page` is to be written next, and after it the pages. A page has as many
    /// bytes as its block.
    ///
    /// # Errors
    /// [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`]; what was given means nothing then.
    pub fn overwrite<'a>(
        &self,
        group: u64,
        tags: &mut TagPage,
        page: &mut [u8; PAGE],
        pages: impl IntoIterator<Item = (usize, &'a mut [u8])>,
    ) -> Result<(), FormatError> {
        for (entry, data) in pages {
            let (domain, number) = described(group, entry);
            self.take_seals(1)?;
            tags.fill_older(entry, &self.seal_page(domain, number, data)?);
        }
        self.seal_tag_page(group, tags, page)
    }

    /// Whether the file has an epoch besides the current one.
    pub const fn has_former(&self) -> bool {
        self.former().is_some()
    }

    /// The keys of the epochs: the current one's, and the former one's.
    pub fn epoch_keys(&self) -> (Option<KeyId>, Option<KeyId>) {
        (self.key_of(self.current_epoch()), self.former().and_then(|former| self.key_of(former)))
    }

    /// Whether the tag page of a group, whose content is `tags`, needs the former epoch, or a block may lie as it was before its
    /// last overwriting. A group of which neither is true is done.
    pub fn is_unsettled(&self, tags: &TagPage, page: &[u8; PAGE]) -> bool {
        let current = self.current_epoch();
        usize::from(page[EPOCH_BYTE] & 1) != current
            || tags.written().iter().any(|entry| {
                tags.older(entry).is_some()
                    || tags.newer(entry).is_none_or(|slot| slot.epoch != current)
            })
    }

    /// Seals again under the current epoch what of a group lies under the former one. `buffer` is the group as it lies in
    /// the backing file, of a file that is marked dirty there; afterwards it is the group as it will lie.
    ///
    /// # Errors
    /// [`FormatError::TagPage`], [`FormatError::Buffer`]; [`FormatError::SealsNotReserved`],
    /// [`FormatError::SealsExhausted`], after which the buffer means nothing.
    pub fn renew_group(&self, group: u64, buffer: &mut [u8]) -> Result<RenewedGroup, FormatError> {
        let current = self.current_epoch();
        let Parts { tag_page, data, hole_map } = Parts::split(group, buffer)?;
        let mut tags = self.open_tag_page(group, tag_page)?;
        let mut renewed = RenewedGroup {
            group,
            tag_page: usize::from(tag_page[EPOCH_BYTE] & 1) != current,
            pages: Entries::NONE,
            damaged: tags.written(),
            holes: None,
        };
        let with_map = hole_map.map(|page| (HOLE_MAP_ENTRY, page));
        let mut pages: Vec<(usize, &mut [u8])> = Vec::new();
        for (entry, page) in data.chunks_mut(PAGE).enumerate().chain(with_map) {
            if !tags.written().contains(entry) {
                continue;
            }
            let as_found = page.to_vec();
            let (domain, number) = described(group, entry);
            match self.open_entry(&tags, entry, domain, number, page) {
                Found::Damage | Found::Stray => {
                    page.copy_from_slice(&as_found);
                    continue;
                }
                Found::Older => {
                    tags.settle_on_older(entry);
                    renewed.tag_page = true;
                }
                Found::Newer => {}
            }
            renewed.damaged.remove(entry);
            if domain == Domain::HoleMap {
                renewed.holes = <[u8; PAGE]>::try_from(&*page).ok().map(HoleMap::from_bytes);
            }
            if tags.newer(entry).is_some_and(|slot| slot.epoch == current) {
                page.copy_from_slice(&as_found);
            } else {
                renewed.pages.insert(entry);
                pages.push((entry, page));
            }
        }
        renewed.tag_page |= !pages.is_empty();
        if renewed.tag_page {
            self.overwrite(group, &mut tags, tag_page, pages)?;
        }
        Ok(renewed)
    }

    /// Empties in a group's tag page the older slots of all entries but the `damaged`, when the blocks are written,
    /// durably. Answers whether the page changed, which is to be written then.
    ///
    /// # Errors
    /// [`FormatError::TagPage`], [`FormatError::SealsNotReserved`], [`FormatError::SealsExhausted`].
    pub fn forget_older(
        &self,
        group: u64,
        page: &mut [u8; PAGE],
        damaged: Entries,
    ) -> Result<bool, FormatError> {
        let mut tags = self.open_tag_page(group, page)?;
        let written = tags.written();
        let emptied = written.iter().filter(|&entry| !damaged.contains(entry));
        let changed = emptied.filter(|&entry| tags.clear_older(entry)).count() > 0;
        if changed {
            self.seal_tag_page(group, &tags, page)?;
        }
        Ok(changed)
    }

    /// Takes the former epoch out of the header. `state` goes into both of its copies in `first_page`. Nothing may need
    /// the epoch any more, durably.
    ///
    /// # Errors
    /// As of [`Self::update_header`].
    pub fn drop_former(
        mut self,
        first_page: &mut [u8],
        state: &FileState,
    ) -> Result<Self, FormatError> {
        self.clear_former();
        self.write_both(first_page, state)?;
        Ok(self)
    }
}

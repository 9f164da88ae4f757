//! One encrypted file, sealed again in place under the current key.
//!
//! A segment at a time: its tag pages are written, then (when they are durable) its blocks, and when those are durable the
//! tag pages without what opened the blocks before. Wherever a crash ends it, the file can be read with both keys, and the
//! next one goes on. When all segments are done the header names the new key alone.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use data_path::layout::{self, GROUP, PAGE};
use data_path::{Entries, FileCipher, FileState, FormatError, HoleMap, RenewedGroup, SealBudget};

use crate::error::{Doing, Fault};
use crate::keys::TreeKeys;
use crate::sealed_file::{Damage, seals_for};
use crate::side::{SEGMENT_GROUPS, segments};
use crate::sys;

/// Seals that are reserved at a time: for some 4 GiB.
const RESERVE: u64 = 1 << 20;

pub(crate) struct Renewal {
    fd: OwnedFd,
    cipher: FileCipher,
    len: u64,
    /// The first page as it is to be: the header, and the first group's tag page.
    first_page: Box<[u8; PAGE]>,
    reserved: u64,
    /// Something was, or is to be, written.
    touched: bool,
    holes: BTreeMap<u64, HoleMap>,
    /// The segment that is being renewed, group by group where they lie in it.
    buffer: Vec<u8>,
    first: u64,
    renewed: Vec<RenewedGroup>,
    /// Tag pages of groups whose blocks are written, and which of these could not be renewed.
    written: Vec<(u64, Box<[u8; PAGE]>, Entries)>,
    damage: Damage,
}

impl Renewal {
    /// Whether anything of the file lies under a key that is not the current one.
    pub(crate) fn is_needed(keys: &TreeKeys, cipher: &FileCipher) -> bool {
        let (current, former) = cipher.epoch_keys();
        let key = Some(keys.current.key_id());
        current != key || (former.is_some() && former != key)
    }

    /// Opens a file to renew it, and gives it its new epoch, unless a former run did or one of its two epochs has to go
    /// first. Nothing is written yet.
    pub(crate) fn begin(keys: &TreeKeys, fd: OwnedFd, backing_len: u64) -> Result<Self, Fault> {
        let mut first_page = Box::new([0; PAGE]);
        let got = sys::read_at(&fd, first_page.as_mut_slice(), 0).doing("read")?;
        let mut cipher = keys.open_file(&first_page[..got], backing_len).doing("opened")?;
        let len = cipher.size();
        let mut reserved = cipher.state().seals_reserved;
        let mut touched = cipher.state().dirty;
        if layout::backing_len(len) != backing_len {
            // Its writer died where it was about to grow.
            sys::set_len(&fd, layout::backing_len(len)).doing("written")?;
        }
        if !cipher.has_former() && Self::is_needed(keys, &cipher) {
            reserved = seals_for(len).min(RESERVE);
            let state = FileState { size: len, dirty: true, seals_reserved: reserved };
            cipher = cipher
                .renew_salt(&keys.current, first_page.as_mut_slice(), &state)
                .doing("encrypted")?;
            touched = true;
        }
        Ok(Self {
            fd,
            cipher,
            len,
            first_page,
            reserved,
            touched,
            holes: BTreeMap::new(),
            buffer: Vec::new(),
            first: 0,
            renewed: Vec::new(),
            written: Vec::new(),
            damage: Damage::default(),
        })
    }

    pub(crate) const fn segments(&self) -> u64 {
        segments(self.len)
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub(crate) const fn cipher(&self) -> &FileCipher {
        &self.cipher
    }

    /// Whether the file has tag pages besides the first one.
    pub(crate) const fn has_more_groups(&self) -> bool {
        layout::group_count(self.len) > 1
    }

    /// Whether something is, or is to be, written.
    pub(crate) const fn is_touched(&self) -> bool {
        self.touched
    }

    /// Seals segment `index` again, in memory.
    pub(crate) fn renew(&mut self, index: u64) -> Result<(), Fault> {
        self.first = index * SEGMENT_GROUPS;
        let last = (self.first + SEGMENT_GROUPS).min(layout::group_count(self.len)) - 1;
        let end = layout::group_position(last) + layout::group_len(last, self.len) as u64;
        self.buffer.resize((end - layout::group_position(self.first)) as usize, 0);
        loop {
            let first_page = self.first_page.clone();
            match self.try_renew()? {
                Ok(()) => return Ok(()),
                // From the beginning, for what is sealed already is not what lies there.
                Err(()) => self.first_page = first_page,
            }
            self.reserve()?;
        }
    }

    /// `Err`: more seals are needed.
    fn try_renew(&mut self) -> Result<Result<(), ()>, Fault> {
        self.renewed.clear();
        let mut damage = Vec::new();
        let last = (self.first + SEGMENT_GROUPS).min(layout::group_count(self.len));
        for group in self.first..last {
            if self.holes.get(&layout::region_of(group)).is_some_and(|map| map.is_hole(group)) {
                continue;
            }
            match self.renew_group(group)? {
                Ok(None) => {}
                Ok(Some(renewed)) => {
                    damage.extend(renewed.damage());
                    if let Some(map) = &renewed.holes {
                        self.holes.insert(layout::region_of(group), map.clone());
                    }
                    self.renewed.push(renewed);
                }
                Err(FormatError::SealsNotReserved) => return Ok(Err(())),
                Err(error) if error.is_damage() => damage.push(error),
                Err(error) => return Err(Fault::format("encrypted", &error)),
            }
        }
        self.touched |= self.renewed.iter().any(|renewed| renewed.tag_page);
        damage.iter().for_each(|error| self.damage.add(error));
        Ok(Ok(()))
    }

    /// `None`: it is done.
    fn renew_group(
        &mut self,
        group: u64,
    ) -> Result<Result<Option<RenewedGroup>, FormatError>, Fault> {
        let at = (group - self.first) as usize * GROUP;
        let buffer = &mut self.buffer[at..][..layout::group_len(group, self.len)];
        let (tag_page, blocks) = buffer.split_at_mut(PAGE);
        let position = layout::group_position(group);
        let fill = |bytes: &mut [u8], position| {
            let got = sys::read_at(&self.fd, bytes, position).doing("read")?;
            // A file that was cut: what is missing is not authentic.
            bytes[got..].fill(0);
            Ok::<_, Fault>(())
        };
        if group == 0 {
            tag_page.copy_from_slice(self.first_page.as_slice());
        } else {
            fill(tag_page, position)?;
        }
        let Some(page) = tag_page.first_chunk() else { return Ok(Ok(None)) };
        match self.cipher.open_tag_page(group, page) {
            Err(error) => return Ok(Err(error)),
            // The hole map of a region is needed in any case.
            Ok(tags) if !layout::is_region_start(group) => {
                if !self.cipher.is_unsettled(&tags, page) {
                    return Ok(Ok(None));
                }
            }
            Ok(_) => {}
        }
        fill(blocks, position + PAGE as u64)?;
        let renewed = self.cipher.renew_group(group, buffer);
        if group == 0 && renewed.is_ok() {
            self.first_page.copy_from_slice(&buffer[..PAGE]);
        }
        Ok(renewed.map(Some))
    }

    /// Reserves more seals, durably, and marks the file dirty by the way.
    fn reserve(&mut self) -> Result<(), Fault> {
        if self.reserved >= SealBudget::LIMIT {
            return Err(Fault::format("encrypted", &FormatError::SealsExhausted));
        }
        self.reserved = (self.reserved + seals_for(self.len).min(RESERVE)).min(SealBudget::LIMIT);
        let state = FileState { size: self.len, dirty: true, seals_reserved: self.reserved };
        self.cipher.update_header(self.first_page.as_mut_slice(), &state).doing("encrypted")?;
        self.cipher.grant_seals(self.reserved).doing("encrypted")?;
        self.touched = true;
        self.write_first_page()?;
        sys::sync_file(&self.fd).doing("written")
    }

    /// The header, and the first group's tag page. It is durable before the other tag pages are written.
    pub(crate) fn write_first_page(&self) -> Result<(), Fault> {
        sys::write_at(&self.fd, self.first_page.as_slice(), 0).doing("written")
    }

    /// Of the segment that was renewed, but for the first page. They are durable before the blocks are written.
    pub(crate) fn write_tag_pages(&self) -> Result<(), Fault> {
        for renewed in self.renewed.iter().filter(|renewed| renewed.tag_page && renewed.group() > 0)
        {
            let at = (renewed.group() - self.first) as usize * GROUP;
            let position = layout::group_position(renewed.group());
            sys::write_at(&self.fd, &self.buffer[at..at + PAGE], position).doing("written")?;
        }
        Ok(())
    }

    /// Of the segment that was renewed.
    pub(crate) fn write_blocks(&mut self) -> Result<(), Fault> {
        for renewed in std::mem::take(&mut self.renewed) {
            let at = (renewed.group() - self.first) as usize * GROUP;
            let len = layout::group_len(renewed.group(), self.len);
            let position = layout::group_position(renewed.group());
            for run in renewed.pages.runs() {
                let (from, to) = (PAGE * (run.start + 1), (PAGE * (run.end + 1)).min(len));
                let bytes = &self.buffer[at + from..at + to];
                sys::write_at(&self.fd, bytes, position + from as u64).doing("written")?;
            }
            let mut page = Box::new([0; PAGE]);
            page.copy_from_slice(&self.buffer[at..at + PAGE]);
            self.written.push((renewed.group(), page, renewed.damaged));
        }
        Ok(())
    }

    /// Forgets what opened the blocks before, in the tag pages of those that are durable by now; but the first page is
    /// written with the header. The groups of a segment that is being renewed have no part in it.
    pub(crate) fn forget_older(&mut self) -> Result<(), Fault> {
        for (group, mut page, damaged) in std::mem::take(&mut self.written) {
            let tag_page = if group == 0 { &mut self.first_page } else { &mut page };
            let changed = match self.cipher.forget_older(group, tag_page, damaged) {
                Err(FormatError::SealsNotReserved) => {
                    self.reserve()?;
                    let tag_page = if group == 0 { &mut self.first_page } else { &mut page };
                    self.cipher.forget_older(group, tag_page, damaged)
                }
                other => other,
            };
            if changed.doing("encrypted")? && group > 0 {
                let position = layout::group_position(group);
                sys::write_at(&self.fd, page.as_slice(), position).doing("written")?;
            }
        }
        Ok(())
    }

    /// Ends it when all else is durable: the header becomes clean and, if nothing is damaged, names the current epoch
    /// alone.
    pub(crate) fn end(mut self) -> Result<(), Fault> {
        let whole = self.damage.is_none();
        if self.touched || (whole && self.cipher.has_former()) {
            if self.cipher.seals_left() < 2 {
                self.reserved = (self.reserved + SealBudget::BATCH).min(SealBudget::LIMIT);
                self.cipher.grant_seals(self.reserved).doing("encrypted")?;
            }
            let state = FileState { size: self.len, dirty: false, seals_reserved: self.reserved };
            if whole {
                let dropped = self.cipher.drop_former(self.first_page.as_mut_slice(), &state);
                self.cipher = dropped.doing("encrypted")?;
            } else {
                let page = self.first_page.as_mut_slice();
                self.cipher.update_header(page, &state).doing("encrypted")?;
            }
            self.write_first_page()?;
        }
        self.damage.into_result()
    }
}

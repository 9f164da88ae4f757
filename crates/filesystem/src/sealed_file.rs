//! One encrypted file: its segments sealed and written, read and opened.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use data_path::layout::{self, GROUP, PAGE};
use data_path::{Entries, FileCipher, FileState, FormatError, HoleMap, OpenedGroup, SealBudget};

use crate::error::{Doing, Fault};
use crate::keys::TreeKeys;
use crate::report::{Unfinished, lock};
use crate::side::{Buffers, SEGMENT_GROUPS, segment, segments};
use crate::sys;

/// An open encrypted file.
pub(crate) struct SealedFile {
    fd: OwnedFd,
    pub(crate) cipher: FileCipher,
    len: u64,
    /// The first page of a file that is being written.
    header: Box<[u8; PAGE]>,
    /// The hole maps by region: those found so far of a file that is read, those made so far of one that is written.
    holes: Mutex<BTreeMap<u64, Arc<HoleMap>>>,
}

impl AsFd for SealedFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl SealedFile {
    /// Opens a file by its header.
    pub(crate) fn open(keys: &TreeKeys, fd: OwnedFd, backing_len: u64) -> Result<Self, Fault> {
        let mut header = Box::new([0; PAGE]);
        let got = sys::read_at(&fd, header.as_mut_slice(), 0).doing("read")?;
        let cipher = keys.open_file(&header[..got], backing_len).doing("opened")?;
        let len = cipher.size();
        Ok(Self { fd, cipher, len, header, holes: Mutex::default() })
    }

    pub(crate) const fn len(&self) -> u64 {
        self.len
    }

    pub(crate) const fn segments(&self) -> u64 {
        segments(self.len)
    }

    /// The first page with both copies of the header whole, made from the one that opens.
    pub(crate) fn mended_header(&self, keys: &TreeKeys) -> Result<Box<[u8; PAGE]>, Fault> {
        let mut page = self.header.clone();
        // The damaged copy may have been the newer one, of a writer that took this file up again and reserved more.
        let reserved = self.cipher.state().seals_reserved + seals_for(self.len) + seals_for(0);
        let state = FileState { seals_reserved: reserved, ..self.cipher.state() };
        // It replaces the copy that is not the newest authentic one.
        self.cipher.update_header(page.as_mut_slice(), &state).doing("encrypted")?;
        let backing_len = layout::backing_len(self.len);
        let mended = keys.open_file(page.as_slice(), backing_len).doing("encrypted")?;
        match mended.header_damage() {
            Some(error) => Err(Fault::format("encrypted", &error)),
            None => Ok(page),
        }
    }

    /// The bytes of the file that are lost, or not what they should be, by this damage.
    pub(crate) fn lost_bytes(&self, error: &FormatError) -> Option<Range<u64>> {
        let range = match *error {
            FormatError::Block(block) | FormatError::Hole(block) => {
                let start = block * PAGE as u64;
                start..(start + PAGE as u64).min(self.len)
            }
            FormatError::TagPage(group) | FormatError::HoleGroup(group) => {
                layout::group_data(group, self.len)
            }
            _ => return None,
        };
        (!range.is_empty()).then_some(range)
    }

    /// Opens segment `index` as [`Self::read_segment`] does, and fails when anything in it is damaged.
    pub(crate) fn read_sound_segment(
        &self,
        index: u64,
        buffers: &mut Buffers,
    ) -> Result<Vec<Range<usize>>, Fault> {
        let mut damage = Damage::default();
        let data = self.read_segment(index, buffers, &mut |error| damage.add(&error))?;
        damage.into_result()?;
        Ok(data)
    }

    /// Opens segment `index` into `buffers.plain` and answers where data lies in it; the rest means
    /// nothing and is holes. What is damaged is told to `damaged` and reads as a hole.
    pub(crate) fn read_segment(
        &self,
        index: u64,
        buffers: &mut Buffers,
        damaged: &mut dyn FnMut(FormatError),
    ) -> Result<Vec<Range<usize>>, Fault> {
        let Buffers { plain, sealed } = buffers;
        let range = segment(index, self.len);
        plain.resize((range.end - range.start) as usize, 0);
        let first = index * SEGMENT_GROUPS;
        let last = (first + SEGMENT_GROUPS).min(layout::group_count(self.len));
        let end = layout::group_position(last - 1) + layout::group_len(last - 1, self.len) as u64;
        sealed.resize((end - layout::group_position(first)) as usize, 0);
        let there = self.read_groups(first..last, sealed)?;
        let mut data: Vec<Range<usize>> = Vec::new();
        for ((group, buffer), there) in (first..last).zip(sealed.chunks_mut(GROUP)).zip(there) {
            if !there {
                if !layout::is_region_start(group) && self.is_hole(group)? {
                    continue;
                }
                // Its absence is not authentic.
                buffer.fill(0);
            }
            let Some(written) = self.open_group(group, buffer, damaged)? else { continue };
            let in_file = layout::group_data(group, self.len);
            let start = (in_file.start - range.start) as usize;
            let target = &mut plain[start..(in_file.end - range.start) as usize];
            target.copy_from_slice(&buffer[layout::data_range(group, buffer.len())]);
            for entry in written.iter() {
                let from = (start + entry * PAGE).min(plain.len());
                let to = (from + PAGE).min((in_file.end - range.start) as usize);
                match data.last_mut() {
                    Some(range) if range.end == from => range.end = to,
                    _ => data.push(from..to),
                }
            }
        }
        Ok(data)
    }

    /// Reads these groups, but for those that the backing says to have no byte of; answers which
    /// it has. (A backing that can't tell says that it has all.)
    fn read_groups(
        &self,
        groups: Range<u64>,
        sealed: &mut [u8],
    ) -> Result<[bool; SEGMENT_GROUPS as usize], Fault> {
        let mut there = [false; SEGMENT_GROUPS as usize];
        let position = layout::group_position(groups.start);
        let end = position + sealed.len() as u64;
        let mut group = groups.start;
        while group < groups.end {
            let (from, to) = if self.segments() == 1 {
                (position, end)
            } else {
                let next = sys::next_data(&self.fd, layout::group_position(group)).doing("read")?;
                let Some((from, to)) = next.filter(|(from, _)| *from < end) else { break };
                (from, to.min(end))
            };
            let run = from / GROUP as u64..to.div_ceil(GROUP as u64);
            let at = (layout::group_position(run.start) - position) as usize;
            let len = (layout::group_position(run.end).min(end) - position) as usize - at;
            let buffer = &mut sealed[at..at + len];
            let got = sys::read_at(&self.fd, buffer, position + at as u64).doing("read")?;
            // A file that was cut since it was opened: what is missing is not authentic.
            buffer[got..].fill(0);
            there[(run.start - groups.start) as usize..(run.end - groups.start) as usize]
                .fill(true);
            group = run.end;
        }
        Ok(there)
    }

    /// Opens one group in place and answers what is written in it; `None` when all of it is a hole, or unreadable.
    fn open_group(
        &self,
        group: u64,
        buffer: &mut [u8],
        damaged: &mut dyn FnMut(FormatError),
    ) -> Result<Option<Entries>, Fault> {
        if !layout::is_region_start(group) && self.is_hole(group)? {
            if !layout::is_zero(buffer) {
                damaged(FormatError::HoleGroup(group));
            }
            return Ok(None);
        }
        match self.cipher.open_group(group, buffer) {
            Ok(opened) => {
                opened.damage().for_each(&mut *damaged);
                if layout::is_region_start(group) {
                    let holes = Arc::new(opened.holes.unwrap_or_default());
                    lock(&self.holes).insert(layout::region_of(group), holes);
                }
                Ok(Some(opened.written))
            }
            Err(error) => {
                damaged(error);
                Ok(None)
            }
        }
    }

    /// Whether the hole map of the group's region calls it a hole. A map that can't be read has
    /// none: its damage is told when the group that has it is read.
    fn is_hole(&self, group: u64) -> Result<bool, Fault> {
        let region = layout::region_of(group);
        if let Some(map) = lock(&self.holes).get(&region) {
            return Ok(map.is_hole(group));
        }
        let start = region * layout::REGION_GROUPS;
        let mut buffer = vec![0; layout::group_len(start, self.len)];
        sys::read_at(&self.fd, &mut buffer, layout::group_position(start)).doing("read")?;
        let opened = self.cipher.open_group(start, &mut buffer);
        let map = Arc::new(opened.ok().and_then(|opened| opened.holes).unwrap_or_default());
        let is_hole = map.is_hole(group);
        lock(&self.holes).insert(region, map);
        Ok(is_hole)
    }
}

/// Writing a new file, also over a stop.
impl SealedFile {
    /// Begins a new file of `len` plain bytes.
    pub(crate) fn begin(keys: &TreeKeys, fd: OwnedFd, len: u64) -> Result<Self, Fault> {
        let seals_reserved = seals_for(len);
        if seals_reserved > SealBudget::LIMIT {
            return Err(Fault::format("encrypted", &FormatError::SealsExhausted));
        }
        let cipher = keys.current.create_file().doing("encrypted")?;
        let mut header = Box::new([0; PAGE]);
        let state = FileState { size: len, dirty: false, seals_reserved };
        // Both copies.
        for _ in 0..2 {
            cipher.update_header(header.as_mut_slice(), &state).doing("encrypted")?;
        }
        cipher.grant_seals(seals_reserved).doing("encrypted")?;
        if segments(len) > 1 {
            // With these a stopped import can open what it finds.
            sys::write_at(&fd, header.as_slice(), 0).doing("written")?;
            sys::set_len(&fd, layout::backing_len(len)).doing("written")?;
        }
        Ok(Self { fd, cipher, len, header, holes: Mutex::default() })
    }

    /// Goes on with a file that has all segments below `first`.
    pub(crate) fn resume(
        keys: &TreeKeys,
        fd: OwnedFd,
        len: u64,
        first: u64,
        unfinished: &Unfinished,
    ) -> Result<Self, Fault> {
        let mut file = Self::open(keys, fd, layout::backing_len(len))?;
        if file.cipher.epoch_keys().0 != Some(keys.current.key_id()) {
            return Err(Fault::damaged("resumed", "it was begun under the previous key"));
        }
        if file.id() != unfinished.file {
            return Err(Fault::damaged("resumed", "another file lies in its place"));
        }
        // What was reserved counts as used, so the rest of the file needs a reservation of its own,
        // durable before it is used; the first groups of all regions may be sealed again.
        let rest = seals_for(len - segment(first, len).start) + seals_for(0);
        let seals_reserved = file.cipher.state().seals_reserved + rest;
        if seals_reserved > SealBudget::LIMIT {
            return Err(Fault::format("encrypted", &FormatError::SealsExhausted));
        }
        let state = FileState { size: len, dirty: false, seals_reserved };
        file.cipher.grant_seals(seals_reserved).doing("encrypted")?;
        file.cipher.update_header(file.header.as_mut_slice(), &state).doing("encrypted")?;
        sys::write_at(&file.fd, file.header.as_slice(), 0).doing("written")?;
        sys::sync_file(&file.fd).doing("written")?;
        let first_group = first * SEGMENT_GROUPS;
        file.take_over(&unfinished.holes, first_group)?;
        file.drop_from(first_group)?;
        Ok(file)
    }

    /// Removes all groups from `first` on. An earlier run may have written data where the source has a hole by now.
    fn drop_from(&self, first: u64) -> Result<(), Fault> {
        // A death between the two leaves what the checkpoint tells of, under no name in the tree: the next run does the
        // same again.
        sys::set_len(&self.fd, layout::group_position(first))
            .and_then(|()| sys::set_len(&self.fd, layout::backing_len(self.len)))
            .doing("written")
    }

    /// What [`Self::resume`] has to be told of what was written so far.
    pub(crate) fn unfinished(&self) -> Unfinished {
        let maps = lock(&self.holes);
        let holes = maps.iter().map(|(region, map)| (*region, hex::encode(map.as_bytes())));
        Unfinished { file: self.id(), holes: holes.collect() }
    }

    fn id(&self) -> String {
        hex::encode(self.cipher.id().as_bytes())
    }

    /// Seals and writes segment `index`, of which `data` is data and the rest holes. Segments come in any order, several
    /// at once.
    pub(crate) fn write_segment(
        &self,
        index: u64,
        data: &[Range<usize>],
        buffers: &mut Buffers,
    ) -> Result<(), Fault> {
        let Buffers { plain, sealed } = buffers;
        let start = segment(index, self.len).start;
        let first = index * SEGMENT_GROUPS;
        let last = (first + SEGMENT_GROUPS).min(layout::group_count(self.len));
        sealed.resize(SEGMENT_GROUPS as usize * GROUP, 0);
        // Groups from `run` on are sealed and not yet written; they lie in a row.
        let mut run: Option<u64> = None;
        let flush = |run: &mut Option<u64>, end: usize, sealed: &[u8]| match run.take() {
            Some(group) => {
                let from = (group - first) as usize * GROUP;
                let position = layout::group_position(group);
                sys::write_at(&self.fd, &sealed[from..end], position).doing("written")?;
                if segments(self.len) > 1 {
                    sys::start_writing(&self.fd, position, end - from);
                }
                Ok(())
            }
            None => Ok(()),
        };
        let mut end = 0;
        for group in first..last {
            let in_file = layout::group_data(group, self.len);
            let in_plain = (in_file.start - start) as usize..(in_file.end - start) as usize;
            let written = written_entries(&in_plain, data);
            if written.is_empty() && !layout::is_region_start(group) {
                flush(&mut run, end, sealed)?;
                let mut holes = lock(&self.holes);
                let map = holes.entry(layout::region_of(group)).or_default();
                Arc::make_mut(map).set_hole(group);
                continue;
            }
            let at = (group - first) as usize * GROUP;
            end = at + layout::group_len(group, self.len);
            let buffer = &mut sealed[at..end];
            if group == 0 {
                buffer[..PAGE].copy_from_slice(self.header.as_slice());
            }
            buffer[layout::data_range(group, end - at)].copy_from_slice(&plain[in_plain]);
            self.cipher.seal_group(group, buffer, written, None).doing("encrypted")?;
            run.get_or_insert(group);
        }
        flush(&mut run, end, sealed)
    }

    /// Writes what is known only when all segments are there.
    pub(crate) fn end(&self) -> Result<(), Fault> {
        let holes = lock(&self.holes);
        for (region, map) in holes.iter() {
            let group = region * layout::REGION_GROUPS;
            let (mut buffer, opened) = self.read_sound_group(group)?;
            self.cipher
                .seal_group(group, &mut buffer, opened.written, Some(map))
                .doing("encrypted")?;
            sys::write_at(&self.fd, &buffer, layout::group_position(group)).doing("written")?;
        }
        if !holes.is_empty() {
            // The last group may be a hole.
            sys::set_len(&self.fd, layout::backing_len(self.len)).doing("written")?;
        }
        Ok(())
    }

    /// Opens all of a group, and fails when anything in it is damaged.
    fn read_sound_group(&self, group: u64) -> Result<(Vec<u8>, OpenedGroup), Fault> {
        let mut buffer = vec![0; layout::group_len(group, self.len)];
        sys::read_at(&self.fd, &mut buffer, layout::group_position(group)).doing("read")?;
        let opened = self.cipher.open_group(group, &mut buffer).doing("read")?;
        let mut damage = Damage::default();
        opened.damage().for_each(|error| damage.add(&error));
        damage.into_result()?;
        Ok((buffer, opened))
    }

    /// Takes over these holes; all other groups below `end`, which were written before a stop, must be there.
    fn take_over(&self, holes: &BTreeMap<u64, String>, end: u64) -> Result<(), Fault> {
        let mut maps = lock(&self.holes);
        for (region, text) in holes {
            let mut bytes = [0; PAGE];
            hex::decode_to_slice(text, &mut bytes)
                .map_err(|_| Fault::damaged("resumed", "its hole map is none"))?;
            maps.insert(*region, Arc::new(HoleMap::from_bytes(bytes)));
        }
        let mut page = [0; PAGE];
        for group in 0..end {
            if layout::is_region_start(group) {
                // With all its blocks: a run that died after the last segment may have sealed it again in part, or
                // left a hole map, in whose place another one is sealed.
                if self.read_sound_group(group)?.1.holes.is_some() {
                    maps.entry(layout::region_of(group)).or_default();
                }
            } else if !maps.get(&layout::region_of(group)).is_some_and(|map| map.is_hole(group)) {
                sys::read_at(&self.fd, &mut page, layout::group_position(group)).doing("read")?;
                self.cipher.open_tag_page(group, &page).doing("resumed")?;
            }
        }
        Ok(())
    }
}

/// Seals that writing a new file of `len` bytes makes at most, in whole batches: those of every
/// group, twice those of each region's first group (which is sealed again with the hole map), and
/// the header's copies.
pub(crate) fn seals_for(len: u64) -> u64 {
    let groups = layout::group_count(len);
    let regions = layout::region_of(groups - 1) + 1;
    let blocks = len.div_ceil(PAGE as u64);
    (blocks + 2 * groups + 65 * regions + 4).next_multiple_of(SealBudget::BATCH)
}

/// The entries of a group that hold data, when the group's bytes are `group` of the segment.
fn written_entries(group: &Range<usize>, data: &[Range<usize>]) -> Entries {
    let mut written = Entries::NONE;
    for range in data.iter().filter(|range| range.start < group.end && range.end > group.start) {
        let from = range.start.max(group.start) - group.start;
        let to = range.end.min(group.end) - group.start;
        (from / PAGE..to.div_ceil(PAGE)).for_each(|entry| written.insert(entry));
    }
    written
}

/// The first thing that is wrong with a file, and how many more.
#[derive(Default)]
pub(crate) struct Damage {
    first: Option<String>,
    more: usize,
}

impl Damage {
    pub(crate) fn add(&mut self, error: &FormatError) {
        match self.first {
            None => self.first = Some(error.to_string()),
            Some(_) => self.more += 1,
        }
    }

    pub(crate) const fn is_none(&self) -> bool {
        self.first.is_none()
    }

    pub(crate) fn into_result(self) -> Result<(), Fault> {
        match (self.first, self.more) {
            (None, _) => Ok(()),
            (Some(first), 0) => Err(Fault::damaged("read", first)),
            (Some(first), more) => Err(Fault::damaged("read", format!("{first}, and {more} more"))),
        }
    }
}

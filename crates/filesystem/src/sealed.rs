//! The sealed side: how a tree lies in the backing directory, which import writes and export reads.
//!
//! Each directory has a record of its id (`coffer.dir`), which its names are bound to. A name whose
//! ciphertext is too long for a name has a side file; a link's target whose ciphertext is too long
//! has a record in `coffer.links`. `docs/formats.md` specifies all of them.

use std::collections::BTreeMap;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use data_path::layout::{self, GROUP, PAGE};
use data_path::xattr::BACKING_PREFIX;
use data_path::{
    BackingEntry, DirId, Entries, FileCipher, FileState, FilesystemKeys, FormatError, HoleMap,
    Node, SealBudget, XattrOwner, dir, symlink,
};

use crate::error::{Doing, Fault};
use crate::names::Names;
use crate::report::{Holes, lock};
use crate::side::{
    Buffers, Kind, Owner, Place, SEGMENT_GROUPS, Side, Sink, Source, segment, segments,
};
use crate::stage::Stage;
use crate::sys::{self, Errno, FileType, Stat, Xattr};

/// The ciphertext tree of an open filesystem.
#[derive(Debug)]
pub(crate) struct SealedTree {
    pub(crate) keys: FilesystemKeys,
    /// The root of the tree.
    pub(crate) root: OwnedFd,
    /// Long link targets.
    pub(crate) links: OwnedFd,
    pub(crate) stage: Stage,
}

impl Side for SealedTree {
    type Dir = DirId;
    type File = SealedFile;
}

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

impl SealedTree {
    /// Opens the root, whose id does not depend on its record.
    pub(crate) fn open_root(&self) -> Result<Place<DirId>, Fault> {
        let fd = sys::open_dir(&self.root, b".").doing("opened")?;
        Ok(Place { fd, dir: self.keys.root_directory() })
    }

    /// Shows that the key is this tree's: by the root's record, or when that is lost by any name in the root. A root
    /// without record and names shows nothing; then it counts whether the backing directory is `named` after the key.
    pub(crate) fn prove_key(&self, named: bool) -> Result<(), Fault> {
        let lost = match self.check_root_record() {
            Ok(()) => return Ok(()),
            Err(newer @ Fault::Refused { .. }) => return Err(newer),
            Err(lost) => lost,
        };
        let root = self.open_root()?;
        let encrypted = |raw: &[u8]| {
            matches!(BackingEntry::classify(raw), BackingEntry::Short | BackingEntry::Long { .. })
        };
        let names = Names::read(&root.fd, encrypted).doing("read")?;
        let shown = names.iter().any(|raw| self.plain_name(&root, raw).is_ok());
        let blank = || {
            let record = sys::stat(&root.fd, dir::RECORD_NAME.as_bytes());
            names.get(0).is_none() && record.err() == Some(Errno::NOENT)
        };
        if shown || (named && blank()) { Ok(()) } else { Err(lost) }
    }

    /// Whether the root has its record, as every directory does.
    pub(crate) fn check_root_record(&self) -> Result<(), Fault> {
        if self.directory_id(&self.root)? == self.keys.root_directory() {
            return Ok(());
        }
        Err(Fault::damaged("opened", "its record coffer.dir is another directory's"))
    }

    /// Puts the root's record in place.
    pub(crate) fn write_root_record(&self) -> Result<(), Fault> {
        let record = self.keys.seal_directory(self.keys.root_directory());
        self.put_file(&self.root, dir::RECORD_NAME.as_bytes(), &record)
    }

    /// Reads the id of an open directory.
    fn with_id(&self, fd: OwnedFd) -> Result<Place<DirId>, Fault> {
        let dir = self.directory_id(&fd)?;
        Ok(Place { fd, dir })
    }

    fn directory_id(&self, fd: &OwnedFd) -> Result<DirId, Fault> {
        // One byte more than a record has, to see one that was extended.
        let mut record = [0; dir::RECORD_LEN + 1];
        let len = match sys::open_file(fd, dir::RECORD_NAME.as_bytes()) {
            Ok(file) => sys::read_at(file, &mut record, 0).doing("read")?,
            Err(Errno::NOENT) => {
                return Err(Fault::damaged("opened", "its record coffer.dir is missing"));
            }
            Err(errno) => return Err(errno).doing("opened"),
        };
        self.keys.open_directory(&record[..len]).doing("opened")
    }

    /// Puts a small file in place as a whole.
    fn put_file(&self, dir: &OwnedFd, name: &[u8], content: &[u8]) -> Result<(), Fault> {
        let (tmp, staged) = (self.stage.tmp(), self.stage.fresh());
        let file = sys::create(tmp, &staged, 0o600).doing("written")?;
        sys::write_at(&file, content, 0)
            .and_then(|()| sys::rename(tmp, &staged, dir, name))
            .doing("written")
            .inspect_err(|_| {
                let _ = sys::unlink(tmp, &staged);
            })
    }

    /// All of a small file; `None` when there is none.
    pub(crate) fn small_file(dir: &OwnedFd, name: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        const MAX: usize = 64 * 1024;
        let file = match sys::open_file(dir, name) {
            Ok(file) => file,
            Err(Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(errno).doing("opened"),
        };
        let mut content = vec![0; MAX];
        let len = sys::read_at(file, &mut content, 0).doing("read")?;
        content.truncate(len);
        Ok(Some(content))
    }

    /// Opens a file's header.
    pub(crate) fn open_sealed(&self, fd: OwnedFd, backing_len: u64) -> Result<SealedFile, Fault> {
        let mut header = Box::new([0; PAGE]);
        let got = sys::read_at(&fd, header.as_mut_slice(), 0).doing("read")?;
        let cipher = self.keys.open_file(&header[..got], backing_len).doing("opened")?;
        let len = cipher.size();
        Ok(SealedFile { fd, cipher, len, header, holes: Mutex::default() })
    }

    fn xattr_owner(of: &Owner<'_, Self>) -> Option<XattrOwner> {
        match of {
            Owner::Directory(place) => Some(XattrOwner::Directory(place.dir)),
            Owner::File(file) => Some(XattrOwner::File(file.cipher.id())),
            // The kernel allows no `user.*` attributes on links and nodes.
            Owner::Named(..) => None,
        }
    }
}

/// Makes an empty directory with this id among the things in the making.
pub(crate) fn stage_directory(
    keys: &FilesystemKeys,
    stage: &Stage,
    id: DirId,
) -> Result<(Vec<u8>, Place<DirId>), Fault> {
    let (tmp, staged) = (stage.tmp(), stage.fresh());
    sys::make_dir(tmp, &staged).doing("written")?;
    let fd = sys::open_dir(tmp, &staged).doing("written")?;
    let record = sys::create(&fd, dir::RECORD_NAME.as_bytes(), 0o600).doing("written")?;
    sys::write_at(&record, &keys.seal_directory(id), 0).doing("written")?;
    Ok((staged, Place { fd, dir: id }))
}

impl Source for SealedTree {
    const SEALED: bool = true;
    const ROOT: &[u8] = crate::filesystem::ROOT;

    fn root(&self) -> Result<Place<DirId>, Fault> {
        self.open_root()
    }

    fn kind(&self, stat: &Stat) -> Result<Kind, Fault> {
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Kind::Directory),
            FileType::Symlink => Ok(Kind::Symlink),
            FileType::RegularFile if Node::is_record(stat.st_size.cast_unsigned()) => {
                Ok(Kind::Node)
            }
            FileType::RegularFile => Ok(Kind::File),
            // A node of the tree is a record; this one has nothing that shows whose it is.
            _ => Err(Fault::damaged(
                "read",
                "it is a FIFO, a socket or a device, and Coffer puts none there",
            )),
        }
    }

    fn is_entry(&self, _: &Place<DirId>, raw: &[u8]) -> bool {
        // What is not ours is taken for an entry, and refused by name.
        !matches!(
            BackingEntry::classify(raw),
            BackingEntry::Side { .. } | BackingEntry::DirectoryRecord
        )
    }

    fn plain_name(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        let side = match BackingEntry::classify(raw) {
            BackingEntry::Long { side } => Self::small_file(&dir.fd, side.as_bytes())?,
            BackingEntry::Foreign => {
                return Err(Fault::damaged("read", "it is nothing that Coffer put there"));
            }
            _ => None,
        };
        self.keys.open_name(dir.dir, raw, side.as_deref()).doing("read (its name)")
    }

    fn enter(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Place<DirId>, Fault> {
        self.with_id(sys::open_dir(&dir.fd, raw).doing("opened")?)
    }

    fn open(&self, dir: &Place<DirId>, raw: &[u8], stat: &Stat) -> Result<SealedFile, Fault> {
        let fd = sys::open_file(&dir.fd, raw).doing("opened")?;
        self.open_sealed(fd, u64::try_from(stat.st_size).unwrap_or(0))
    }

    fn estimate(&self, stat: &Stat) -> u64 {
        // A file that was cut has no size; opening it will say so.
        u64::try_from(stat.st_size).map_or(0, |len| layout::logical_size(len).unwrap_or(0))
    }

    fn len(&self, file: &SealedFile) -> u64 {
        file.len
    }

    fn read(
        &self,
        file: &SealedFile,
        index: u64,
        buffers: &mut Buffers,
    ) -> Result<Vec<Range<usize>>, Fault> {
        let mut damage = Damage::default();
        let data = file.read_segment(index, buffers, &mut |error| damage.add(&error))?;
        damage.into_result()?;
        Ok(data)
    }

    fn confirm(&self, _: &SealedFile) -> Result<(), Fault> {
        // Everything was authenticated, and nobody else has the filesystem open.
        Ok(())
    }

    fn target(&self, dir: &Place<DirId>, raw: &[u8]) -> Result<Vec<u8>, Fault> {
        let text = sys::read_link(&dir.fd, raw).doing("read")?;
        let record = match symlink::target_record(&text) {
            Some(name) => Self::small_file(&self.links, name.as_bytes())?,
            None => None,
        };
        self.keys.open_target(&text, record.as_deref()).doing("read")
    }

    fn node(&self, dir: &Place<DirId>, raw: &[u8], _: &Stat) -> Result<Node, Fault> {
        let record = Self::small_file(&dir.fd, raw)?.unwrap_or_default();
        self.keys.open_node(&record).doing("read")
    }

    fn plain_xattr(&self, of: &Owner<'_, Self>, raw: Xattr) -> Result<Option<Xattr>, Fault> {
        if !raw.0.starts_with(b"user.") {
            return Ok(Some(raw));
        }
        match Self::xattr_owner(of) {
            Some(owner) if raw.0.starts_with(BACKING_PREFIX.as_bytes()) => {
                self.keys.open_xattr(owner, &raw.0, &raw.1).map(Some).doing("read")
            }
            _ => Err(Fault::damaged("read", "it is nothing that Coffer put there")),
        }
    }
}

/// The first thing that is wrong with a file, and how many more.
#[derive(Default)]
struct Damage {
    first: Option<String>,
    more: usize,
}

impl Damage {
    fn add(&mut self, error: &FormatError) {
        match self.first {
            None => self.first = Some(error.to_string()),
            Some(_) => self.more += 1,
        }
    }

    fn into_result(self) -> Result<(), Fault> {
        match (self.first, self.more) {
            (None, _) => Ok(()),
            (Some(first), 0) => Err(Fault::damaged("read", first)),
            (Some(first), more) => Err(Fault::damaged("read", format!("{first}, and {more} more"))),
        }
    }
}

impl SealedFile {
    pub(crate) const fn segments(&self) -> u64 {
        segments(self.len)
    }

    /// The first page with both copies of the header whole, made from the one that opens.
    pub(crate) fn mended_header(&self, keys: &FilesystemKeys) -> Result<Box<[u8; PAGE]>, Fault> {
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

/// Seals that writing a new file of `len` bytes makes at most, in whole batches: those of every
/// group, twice those of each region's first group (which is sealed again with the hole map), and
/// the header's copies.
fn seals_for(len: u64) -> u64 {
    let groups = layout::group_count(len);
    let regions = layout::region_of(groups - 1) + 1;
    let blocks = len.div_ceil(PAGE as u64);
    (blocks + 2 * groups + 65 * regions + 4).next_multiple_of(SealBudget::BATCH)
}

impl Sink for SealedTree {
    fn root(&self) -> Result<Place<DirId>, Fault> {
        self.open_root()
    }

    fn make_dir(&self, parent: &Place<DirId>, name: &[u8]) -> Result<Place<DirId>, Fault> {
        let raw = self.raw_name(parent, name)?;
        match sys::open_dir(&parent.fd, &raw) {
            Ok(fd) => self.with_id(fd),
            Err(Errno::NOENT) => {
                let (staged, place) =
                    stage_directory(&self.keys, &self.stage, DirId::random().doing("written")?)?;
                sys::rename(self.stage.tmp(), &staged, &parent.fd, &raw).doing("written")?;
                Ok(place)
            }
            Err(Errno::NOTDIR | Errno::LOOP) => {
                Err(Fault::Conflict("something that is no directory has its name"))
            }
            Err(errno) => Err(errno).doing("opened"),
        }
    }

    fn raw_name(&self, dir: &Place<DirId>, name: &[u8]) -> Result<Vec<u8>, Fault> {
        let sealed = self.keys.seal_name(dir.dir, name).doing("encrypted (its name)")?;
        if let Some(side) = sealed.side
            && Self::small_file(&dir.fd, side.name.as_bytes())?.as_ref() != Some(&side.content)
        {
            self.put_file(&dir.fd, side.name.as_bytes(), &side.content)?;
        }
        Ok(sealed.name.into_bytes())
    }

    fn begin(&self, fd: OwnedFd, len: u64) -> Result<SealedFile, Fault> {
        let seals_reserved = seals_for(len);
        if seals_reserved > SealBudget::LIMIT {
            return Err(Fault::format("encrypted", &FormatError::SealsExhausted));
        }
        let cipher = self.keys.create_file().doing("encrypted")?;
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
        Ok(SealedFile { fd, cipher, len, header, holes: Mutex::default() })
    }

    fn resume(
        &self,
        fd: OwnedFd,
        len: u64,
        first: u64,
        holes: &Holes,
    ) -> Result<SealedFile, Fault> {
        let mut file = self.open_sealed(fd, layout::backing_len(len))?;
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
        file.take_over(holes, first * SEGMENT_GROUPS)?;
        Ok(file)
    }

    fn holes(&self, file: &SealedFile) -> Holes {
        let holes = lock(&file.holes);
        holes.iter().map(|(region, map)| (*region, hex::encode(map.as_bytes()))).collect()
    }

    fn write(
        &self,
        file: &SealedFile,
        index: u64,
        data: &[Range<usize>],
        buffers: &mut Buffers,
    ) -> Result<(), Fault> {
        let Buffers { plain, sealed } = buffers;
        let start = segment(index, file.len).start;
        let first = index * SEGMENT_GROUPS;
        let last = (first + SEGMENT_GROUPS).min(layout::group_count(file.len));
        sealed.resize(SEGMENT_GROUPS as usize * GROUP, 0);
        // Groups from `run` on are sealed and not yet written; they lie in a row.
        let mut run: Option<u64> = None;
        let flush = |run: &mut Option<u64>, end: usize, sealed: &[u8]| match run.take() {
            Some(group) => {
                let from = (group - first) as usize * GROUP;
                let position = layout::group_position(group);
                sys::write_at(&file.fd, &sealed[from..end], position).doing("written")?;
                if segments(file.len) > 1 {
                    sys::start_writing(&file.fd, position, end - from);
                }
                Ok(())
            }
            None => Ok(()),
        };
        let mut end = 0;
        for group in first..last {
            let in_file = layout::group_data(group, file.len);
            let in_plain = (in_file.start - start) as usize..(in_file.end - start) as usize;
            let written = written_entries(&in_plain, data);
            if written.is_empty() && !layout::is_region_start(group) {
                flush(&mut run, end, sealed)?;
                let mut holes = lock(&file.holes);
                let map = holes.entry(layout::region_of(group)).or_default();
                Arc::make_mut(map).set_hole(group);
                continue;
            }
            let at = (group - first) as usize * GROUP;
            end = at + layout::group_len(group, file.len);
            let buffer = &mut sealed[at..end];
            if group == 0 {
                buffer[..PAGE].copy_from_slice(file.header.as_slice());
            }
            buffer[layout::data_range(group, end - at)].copy_from_slice(&plain[in_plain]);
            file.cipher.seal_group(group, buffer, written, None).doing("encrypted")?;
            run.get_or_insert(group);
        }
        flush(&mut run, end, sealed)
    }

    fn end(&self, file: &SealedFile) -> Result<(), Fault> {
        let holes = lock(&file.holes);
        for (region, map) in holes.iter().filter(|(_, map)| !map.is_empty()) {
            let group = region * layout::REGION_GROUPS;
            let position = layout::group_position(group);
            let mut buffer = vec![0; layout::group_len(group, file.len)];
            sys::read_at(&file.fd, &mut buffer, position).doing("read")?;
            let opened = file.cipher.open_group(group, &mut buffer).doing("read")?;
            file.cipher
                .seal_group(group, &mut buffer, opened.written, Some(map))
                .doing("encrypted")?;
            sys::write_at(&file.fd, &buffer, position).doing("written")?;
        }
        if !holes.is_empty() {
            // The last group may be a hole.
            sys::set_len(&file.fd, layout::backing_len(file.len)).doing("written")?;
        }
        Ok(())
    }

    fn raw_target(&self, _: &Place<DirId>, target: &[u8]) -> Result<Vec<u8>, Fault> {
        let sealed = self.keys.seal_target(target).doing("encrypted")?;
        if let Some(record) = sealed.record {
            self.put_file(&self.links, sealed.text.as_bytes(), &record)?;
        }
        Ok(sealed.text.into_bytes())
    }

    fn make_node(&self, dir: &OwnedFd, name: &[u8], node: Node) -> Result<(), Fault> {
        let file = sys::create(dir, name, 0o600).doing("written")?;
        sys::write_at(file, &self.keys.seal_node(node), 0).doing("written")
    }

    /// The record of a long link, unless the link has other names too.
    fn kept_elsewhere(&self, dir: &Place<DirId>, raw: &[u8]) -> Option<String> {
        let text = sys::read_link(&dir.fd, raw).ok()?;
        let record = symlink::target_record(&text)?.to_owned();
        let stat = sys::stat(&dir.fd, raw).ok()?;
        (stat.st_nlink == 1).then_some(record)
    }

    fn forget(&self, record: &str) {
        let _ = sys::unlink(&self.links, record.as_bytes());
    }

    fn raw_xattr(&self, of: &Owner<'_, Self>, plain: Xattr) -> Result<Xattr, Fault> {
        let (name, value) = plain;
        if !name.starts_with(b"user.") {
            return Ok((name, value));
        }
        let owner = Self::xattr_owner(of).ok_or(Fault::Conflict("such things have none"))?;
        let sealed = self.keys.seal_xattr(owner, &name, &value).doing("encrypted")?;
        Ok((self.keys.xattr_name(owner, &name).into_bytes(), sealed))
    }
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

impl SealedFile {
    /// Takes over these holes; all other groups below `end`, which were written before a stop, must be there.
    fn take_over(&self, holes: &Holes, end: u64) -> Result<(), Fault> {
        let mut maps = lock(&self.holes);
        for (region, text) in holes {
            let mut bytes = [0; PAGE];
            hex::decode_to_slice(text, &mut bytes)
                .map_err(|_| Fault::damaged("resumed", "its hole map is none"))?;
            maps.insert(*region, Arc::new(HoleMap::from_bytes(bytes)));
        }
        let mut page = [0; PAGE];
        for group in 0..end {
            if !maps.get(&layout::region_of(group)).is_some_and(|map| map.is_hole(group)) {
                sys::read_at(&self.fd, &mut page, layout::group_position(group)).doing("read")?;
                self.cipher.open_tag_page(group, &page).doing("resumed")?;
            }
        }
        Ok(())
    }
}

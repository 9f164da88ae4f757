//! What a filesystem holds, looked at without opening a file's data.

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use data_path::{BackingEntry, DirId, NodeKind};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Fault};
use crate::filesystem::Filesystem;
use crate::names::NameWalk;
use crate::report::{Problem, ProblemKind};
use crate::side::{Kind, Place, Source};
use crate::sys::{self, FileType, Stat};

/// So many things that can't be listed are named, and the rest counted: it may be all of a large directory.
const UNREADABLE_MAX: usize = 1000;
/// Bytes of names and link targets after which a page ends.
const TEXT_MAX: usize = 4 << 20;

/// What lies in a directory, or a page of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// Its entries by name.
    pub entries: Vec<Entry>,
    /// What can't be listed, with names in this directory for paths: with the first page those whose names can't be read,
    /// with each those of its own. `verify` tells more.
    pub unreadable: Vec<Problem>,
    /// How many more of them there are.
    pub unreadable_omitted: u64,
    /// The name after which the next page begins; `None` at the end.
    pub next: Option<OsString>,
}

impl Listing {
    fn add_unreadable(&mut self, name: &[u8], raw: &[u8], fault: &Fault) {
        let problem = Problem::new(name, Some(raw), fault.kind(), fault.to_string());
        if self.unreadable.len() < UNREADABLE_MAX {
            self.unreadable.push(problem);
            return;
        }
        self.unreadable_omitted += 1;
        // Whether there is damage can be told from them in any case.
        if let Some(last) = self.unreadable.last_mut()
            && problem.kind == ProblemKind::Damaged
        {
            *last = problem;
        }
    }
}

/// The smallest names of all that it is offered.
struct Smallest {
    limit: usize,
    /// The greatest of them on top.
    names: BinaryHeap<Vec<u8>>,
    /// Others were left out.
    more: bool,
}

impl Smallest {
    fn offer(&mut self, name: Vec<u8>) {
        if self.names.len() < self.limit {
            return self.names.push(name);
        }
        self.more = true;
        if let Some(mut greatest) = self.names.peek_mut()
            && name < *greatest
        {
            *greatest = name;
        }
    }
}

/// One entry of a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its name, any bytes but `/` and NUL.
    pub name: OsString,
    /// What it is.
    pub kind: EntryKind,
    /// Bytes of plaintext of a file, of a link's target; else 0.
    pub size: u64,
    /// Permission bits (`chmod(2)`).
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// When its content last changed, in milliseconds since 1970; negative before.
    pub modified_ms: i64,
    /// Where a symlink points.
    pub target: Option<PathBuf>,
}

/// What an entry is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A FIFO (named pipe).
    Fifo,
    /// A character device.
    CharacterDevice,
    /// A block device.
    BlockDevice,
}

/// How much a filesystem holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Names of regular files; a file with two hard links counts twice.
    pub files: u64,
    /// Directories below the root.
    pub directories: u64,
    /// Links and nodes.
    pub others: u64,
    /// Bytes of plaintext, holes included.
    pub bytes: u64,
    /// Bytes that the tree takes in the backing directory.
    pub backing_bytes: u64,
}

impl Filesystem {
    /// All that lies at `path`, for a directory that is known to be small: [`Self::list_page`] in one page.
    ///
    /// # Errors
    /// Those of [`Self::list_page`].
    pub fn list(&self, path: &Path) -> Result<Listing, Error> {
        self.list_page(path, None, usize::MAX)
    }

    /// What lies at `path` (relative to the root; `/` or empty is the root): of a directory the first `limit` entries
    /// by name, of those that follow the name `after`; or the one entry that is no directory. No file's data is opened.
    ///
    /// Names lie encrypted and in no order, so that each page reads and opens all names of the directory; but only what
    /// is answered is looked at, and no more than `limit` names are held.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is no such entry; or the way to it is damaged.
    pub fn list_page(
        &self,
        path: &Path,
        after: Option<&OsStr>,
        limit: usize,
    ) -> Result<Listing, Error> {
        let _quiet = self.quiet();
        let list = || {
            let mut place = self.tree.open_root()?;
            let parts = path.as_os_str().as_bytes().split(|b| *b == b'/');
            let mut parts = parts.filter(|part| !part.is_empty()).peekable();
            while let Some(name) = parts.next() {
                let (raw, stat) = self.tree.find(&place, name)?;
                if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                    if parts.peek().is_some() {
                        return Err(Fault::NotFound);
                    }
                    let entry = self.entry(&place, &raw, name, &stat)?;
                    return Ok(Listing { entries: vec![entry], ..Listing::default() });
                }
                place = self.tree.enter(&place, &raw)?;
            }
            self.list_directory(&place, after.map(OsStr::as_bytes), limit)
        };
        list().map_err(|fault: Fault| fault.at_path(path))
    }

    fn list_directory(
        &self,
        place: &Place<DirId>,
        after: Option<&[u8]>,
        limit: usize,
    ) -> Result<Listing, Fault> {
        let mut listing = Listing::default();
        let Smallest { names, mut more, .. } =
            self.smallest_names(place, after, limit, &mut listing)?;
        let (mut last, mut text) = (None, 0);
        for name in names.into_sorted_vec() {
            if text >= TEXT_MAX {
                more = true;
                break;
            }
            let found = self.tree.find(place, &name);
            let (raw, entry) = match found {
                Ok((raw, stat)) => {
                    let entry = self.entry(place, &raw, &name, &stat);
                    (raw, entry)
                }
                Err(fault) => (Vec::new(), Err(fault)),
            };
            match entry {
                Ok(entry) => {
                    let target = entry.target.as_ref().map_or(0, |target| target.as_os_str().len());
                    text += name.len() + target;
                    listing.entries.push(entry);
                }
                // Removed since its name was read.
                Err(Fault::NotFound) => {}
                Err(fault) => listing.add_unreadable(&name, &raw, &fault),
            }
            last = Some(name);
        }
        listing.next = last.filter(|_| more).map(OsString::from_vec);
        Ok(listing)
    }

    /// The first `limit` names after `after`. With the first page, what has none is put into `listing`.
    fn smallest_names(
        &self,
        place: &Place<DirId>,
        after: Option<&[u8]>,
        limit: usize,
        listing: &mut Listing,
    ) -> Result<Smallest, Fault> {
        let mut smallest = Smallest { limit, names: BinaryHeap::new(), more: false };
        let each = |raw: &[u8]| {
            if !self.tree.is_entry(place, raw) {
                return;
            }
            match (self.tree.plain_name(place, raw), after) {
                (Ok(name), after) if after.is_none_or(|after| &*name > after) => {
                    smallest.offer(name);
                }
                (Err(fault), None) => listing.add_unreadable(b"", raw, &fault),
                _ => {}
            }
        };
        sys::names(&place.fd, each).doing("read")?;
        listing.unreadable.sort_by(|a, b| a.ciphertext.cmp(&b.ciphertext));
        Ok(smallest)
    }

    fn entry(
        &self,
        place: &Place<DirId>,
        raw: &[u8],
        name: &[u8],
        stat: &Stat,
    ) -> Result<Entry, Fault> {
        let mut target = None;
        let (kind, size) = match self.tree.kind(stat)? {
            Kind::File => (EntryKind::File, self.tree.estimate(stat)),
            Kind::Directory => (EntryKind::Directory, 0),
            Kind::Symlink => {
                let plain = self.tree.target(place, raw)?;
                let len = plain.len() as u64;
                target = Some(OsString::from_vec(plain).into());
                (EntryKind::Symlink, len)
            }
            Kind::Node | Kind::Socket => match self.tree.node(place, raw, stat)?.kind {
                NodeKind::Fifo => (EntryKind::Fifo, 0),
                NodeKind::CharacterDevice => (EntryKind::CharacterDevice, 0),
                NodeKind::BlockDevice => (EntryKind::BlockDevice, 0),
            },
        };
        Ok(Entry {
            name: OsStr::from_bytes(name).to_owned(),
            kind,
            size,
            mode: sys::permissions(stat),
            uid: stat.st_uid,
            gid: stat.st_gid,
            modified_ms: stat.st_mtime * 1000 + (stat.st_mtime_nsec / 1_000_000) as i64,
            target,
        })
    }

    /// How much the filesystem holds. Walks all of it, and opens no file.
    ///
    /// # Errors
    /// When the backing directory can't be read.
    pub fn usage(&self) -> Result<Usage, Error> {
        sys::raise_file_limit();
        let _quiet = self.quiet();
        let usage = || {
            let mut usage = Usage::default();
            let open = |dir: OwnedFd| {
                NameWalk::start(&dir, |_| true).map(|names| (dir, names)).doing("read")
            };
            let mut stack = vec![open(sys::open_dir(&self.tree.root, b".").doing("read")?)?];
            while let Some((dir, names)) = stack.last_mut() {
                let Some(raw) = names.get().map(<[u8]>::to_vec) else {
                    stack.pop();
                    continue;
                };
                let raw = raw.as_slice();
                names.advance(&*dir, |_| true).doing("read")?;
                let stat = sys::stat(&*dir, raw).doing("read")?;
                usage.backing_bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                let uncounted = matches!(
                    BackingEntry::classify(raw),
                    BackingEntry::Side { .. }
                        | BackingEntry::DirectoryRecord
                        | BackingEntry::Foreign
                );
                match self.tree.kind(&stat) {
                    _ if uncounted => {}
                    Ok(Kind::Directory) => {
                        usage.directories += 1;
                        let below = open(sys::open_dir(&*dir, raw).doing("read")?)?;
                        stack.push(below);
                    }
                    Ok(Kind::File) => {
                        usage.files += 1;
                        usage.bytes += self.tree.estimate(&stat);
                    }
                    _ => usage.others += 1,
                }
            }
            Ok(usage)
        };
        usage().map_err(|fault: Fault| fault.at_path(self.backing()))
    }
}

//! What a filesystem holds, looked at without opening a file's data.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use data_path::{BackingEntry, DirId, NodeKind};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, Error, Fault};
use crate::filesystem::Filesystem;
use crate::names::{NameWalk, Names};
use crate::side::{Kind, Place, Source};
use crate::sys::{self, Errno, FileType, Stat};

/// What lies in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    /// Its entries by name.
    pub entries: Vec<Entry>,
    /// Backing names of entries that are damaged, and why; `verify` tells more.
    pub unreadable: Vec<(OsString, String)>,
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
    /// What lies at `path` (relative to the root; `/` or empty is the root): a directory's
    /// entries sorted by name, or the one entry that is no directory. No file's data is opened.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`](crate::ErrorKind::NotFound) when there is no such entry; or the way to it is damaged.
    pub fn list(&self, path: &Path) -> Result<Listing, Error> {
        let list = || {
            let mut place = self.tree.open_root()?;
            let mut components = path
                .as_os_str()
                .as_bytes()
                .split(|b| *b == b'/')
                .filter(|c| !c.is_empty())
                .peekable();
            while let Some(name) = components.next() {
                let raw = self.tree.keys.seal_name(place.dir, name).doing("found")?.name;
                let stat = match sys::stat(&place.fd, raw.as_bytes()) {
                    Err(Errno::NOENT) => return Err(Fault::NotFound),
                    other => other.doing("found")?,
                };
                let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
                if !is_dir {
                    if components.peek().is_some() {
                        return Err(Fault::NotFound);
                    }
                    let entry = self.entry(&place, raw.as_bytes(), &stat)?;
                    return Ok(Listing { entries: vec![entry], unreadable: Vec::new() });
                }
                place = self.tree.enter(&place, raw.as_bytes())?;
            }
            self.list_directory(&place)
        };
        list().map_err(|fault: Fault| fault.at_path(path))
    }

    fn list_directory(&self, place: &Place<DirId>) -> Result<Listing, Fault> {
        let mut listing = Listing { entries: Vec::new(), unreadable: Vec::new() };
        let names = Names::read(&place.fd, |raw| self.tree.is_entry(place, raw)).doing("read")?;
        for raw in names.iter() {
            let stat = sys::stat(&place.fd, raw).doing("read")?;
            match self.entry(place, raw, &stat) {
                Ok(entry) => listing.entries.push(entry),
                Err(fault) => {
                    let name = OsString::from_vec(raw.to_vec());
                    listing.unreadable.push((name, fault.to_string()));
                }
            }
        }
        listing.entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(listing)
    }

    fn entry(&self, place: &Place<DirId>, raw: &[u8], stat: &Stat) -> Result<Entry, Fault> {
        let name = OsString::from_vec(self.tree.plain_name(place, raw)?);
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
            name,
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
                let own = matches!(
                    BackingEntry::classify(raw),
                    BackingEntry::Side { .. } | BackingEntry::DirectoryRecord
                );
                match self.tree.kind(&stat) {
                    Ok(Kind::Directory) => {
                        usage.directories += 1;
                        let below = open(sys::open_dir(&*dir, raw).doing("read")?)?;
                        stack.push(below);
                    }
                    _ if own => {}
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

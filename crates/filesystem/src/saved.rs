//! What a re-encryption of an inode in place changes by the way, written down before, so that it can be given back after
//! a crash too: times, the mode where the owner may not write, a capability, which every write takes away.
//!
//! Each worker has a file of its own among the things in the making. It holds what its turn works on, and nothing between
//! turns. It is there against the death of the process, and is not synced.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::{Deserialize, Serialize};

use crate::names::Names;
use crate::sys::{self, Errno, Inode, Stat, Times, Xattr};
use crate::trail::Trail;

/// The attribute that a write removes.
const CAPABILITY: &[u8] = b"security.capability";

/// What an inode has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Saved {
    /// Its raw name in hex.
    name: String,
    inode: u64,
    mode: u32,
    times: Times,
    /// Name and value in hex.
    attributes: Vec<(String, String)>,
}

impl Saved {
    /// Of the inode with this raw name: `.` for the directory itself.
    pub(crate) fn of(name: &[u8], stat: &Stat) -> Self {
        Self {
            name: hex::encode(name),
            inode: stat.st_ino,
            mode: sys::permissions(stat),
            times: Times::of(stat),
            attributes: Vec::new(),
        }
    }

    /// Adds the capability that the inode has, if it has one.
    pub(crate) fn add_capability(&mut self, of: Inode<'_>) -> sys::Result<()> {
        if let Some(value) = sys::xattr(of, CAPABILITY)? {
            self.add(&(CAPABILITY.to_vec(), value));
        }
        Ok(())
    }

    /// Adds an attribute that is about to be removed.
    pub(crate) fn add(&mut self, (name, value): &Xattr) {
        self.attributes.push((hex::encode(name), hex::encode(value)));
    }

    /// Gives the mode, the capability and the times back.
    pub(crate) fn give_back(&self, to: BorrowedFd<'_>) -> sys::Result<()> {
        let mode = sys::permissions(&sys::stat_open(to)?);
        if mode != self.mode {
            sys::set_mode(to, self.mode)?;
        }
        for (name, value) in &self.attributes {
            let (Ok(name), Ok(value)) = (hex::decode(name), hex::decode(value)) else { continue };
            if name == CAPABILITY {
                sys::set_xattr(Inode::Open(to), &name, &value)?;
            }
        }
        sys::set_times_to(to, &self.times)
    }

    /// Gives all of it back after a crash, if the inode is still where it was.
    fn give_back_in(&self, dir: &OwnedFd) -> sys::Result<()> {
        let name = hex::decode(&self.name).map_err(|_| Errno::INVAL)?;
        let inode = sys::open_file(dir, &name)?;
        if sys::stat_open(&inode)?.st_ino != self.inode {
            return Ok(());
        }
        let there = sys::xattr_names(Inode::Open(inode.as_fd()))?;
        for (name, value) in &self.attributes {
            let (Ok(name), Ok(value)) = (hex::decode(name), hex::decode(value)) else { continue };
            if !there.contains(&name) {
                sys::set_xattr(Inode::Open(inode.as_fd()), &name, &value)?;
            }
        }
        self.give_back(inode.as_fd())
    }
}

/// What is in a worker's file.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(crate) struct Notes(Vec<Below>);

/// What is to be given back in one directory.
#[derive(Debug, Serialize, Deserialize)]
struct Below {
    /// Its raw path, from the backing directory on, in hex.
    dir: String,
    all: Vec<Saved>,
}

impl Notes {
    /// Adds what an entry of a directory has. Entries of one directory come one after the other.
    pub(crate) fn add(&mut self, dir: &Trail, saved: Saved) -> Saved {
        let path = hex::encode(dir.raw());
        match self.0.last_mut() {
            Some(last) if last.dir == path => last.all.push(saved.clone()),
            _ => self.0.push(Below { dir: path, all: vec![saved.clone()] }),
        }
        saved
    }

    fn give_back(&self, backing: &OwnedFd) -> sys::Result<()> {
        let each = self.0.iter().flat_map(|below| {
            let dir = below.open(backing);
            below.all.iter().map(move |saved| match &dir {
                Ok(dir) => saved.give_back_in(dir),
                Err(errno) => Err(*errno),
            })
        });
        // One whose inode is gone keeps no other from its own.
        each.collect::<Vec<_>>().into_iter().collect()
    }
}

impl Below {
    fn open(&self, backing: &OwnedFd) -> sys::Result<OwnedFd> {
        let path = hex::decode(&self.dir).map_err(|_| Errno::INVAL)?;
        let mut dir = sys::open_dir(backing, b".")?;
        for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            dir = sys::open_dir(&dir, part)?;
        }
        Ok(dir)
    }
}

/// A worker's file.
#[derive(Debug)]
pub(crate) struct Slip(OwnedFd);

impl Slip {
    pub(crate) fn open(dir: &OwnedFd, name: &[u8]) -> sys::Result<Self> {
        match sys::create(dir, name, 0o600) {
            Err(Errno::EXIST) => sys::open_to_write(dir, name).map(Self),
            other => other.map(Self),
        }
    }

    /// Writes down what is about to be changed.
    pub(crate) fn put(&self, notes: &Notes) -> sys::Result<()> {
        let text = serde_json::to_vec(notes).map_err(|_| Errno::INVAL)?;
        self.clear()?;
        sys::write_at(&self.0, &text, 0)
    }

    /// Against a power cut too.
    pub(crate) fn sync(&self) -> sys::Result<()> {
        sys::sync_file(&self.0)
    }

    pub(crate) fn clear(&self) -> sys::Result<()> {
        sys::set_len(&self.0, 0)
    }
}

/// Gives back what turns that a crash ended had written down in `dir`. What can't be given back is lost: a time, as a rule.
pub(crate) fn give_back_all(dir: &OwnedFd, backing: &OwnedFd) -> sys::Result<()> {
    for name in Names::read(dir, |name| name.starts_with(SLIP))?.iter() {
        let file = sys::open_file(dir, name)?;
        let len = usize::try_from(sys::stat_open(&file)?.st_size).unwrap_or_default();
        let mut text = vec![0; len.min(MAX)];
        sys::read_at(file, &mut text, 0)?;
        // One that was being written is of a turn that had not begun.
        let notes: Notes = serde_json::from_slice(&text).unwrap_or_default();
        if notes.give_back(backing) == Err(Errno::ROFS) {
            return Err(Errno::ROFS);
        }
        sys::unlink(dir, name)?;
    }
    Ok(())
}

/// The most that such a file has: 128 names and the paths to them.
const MAX: usize = 256 << 20;
/// Begins the names of those files.
pub(crate) const SLIP: &[u8] = b"turn-";

//! Where things in the making lie until they are whole.
//!
//! Each file, link, node and directory is built here and then renamed into its place, so that
//! nothing half done ever has a name in a tree. What a resumed job needs lies apart from the rest:
//! large files that are done in part, and an *anchor* for each inode with several names, which the
//! later names are linked to.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::names::{NameWalk, Names};
use crate::report::lock;
use crate::sys::{self, Errno, Result, Stat};

/// Holds what survives a stop, inside the staging directory.
const RESUME: &[u8] = b"resume";

#[derive(Debug)]
pub(crate) struct Stage {
    tmp: OwnedFd,
    resume: OwnedFd,
    next: AtomicU64,
    /// What a file made here gets without asking, so that most files need no `fchown` and `fchmod`.
    defaults: Stat,
}

impl Stage {
    /// Opens (or makes) the staging directory `name`, and empties all of it but what a resumed job needs.
    pub(crate) fn open(parent: &OwnedFd, name: &[u8]) -> Result<Self> {
        let tmp = make_or_open(parent, name)?;
        remove_contents(&tmp, RESUME)?;
        sys::remove_default_acl(&tmp)?;
        let resume = make_or_open(&tmp, RESUME)?;
        sys::remove_default_acl(&resume)?;
        let probe = sys::create(&tmp, b"probe", 0o777)?;
        let defaults = sys::stat_open(&probe)?;
        sys::unlink(&tmp, b"probe")?;
        Ok(Self { tmp, resume, next: AtomicU64::new(0), defaults })
    }

    /// Where things are made; each under a [`Stage::fresh`] name.
    pub(crate) const fn tmp(&self) -> &OwnedFd {
        &self.tmp
    }

    /// Where large files and anchors are kept.
    pub(crate) const fn kept(&self) -> &OwnedFd {
        &self.resume
    }

    /// A name that nothing here has.
    pub(crate) fn fresh(&self) -> Vec<u8> {
        format!("{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// A name for a large file that no earlier job can have left.
    pub(crate) fn fresh_kept(&self) -> Vec<u8> {
        format!("large-{}", kms_core::KeyId::random()).into_bytes()
    }

    /// Makes a file that will get the mode and owner of `like`, and says whether it still needs them.
    pub(crate) fn create(&self, dir: &OwnedFd, name: &[u8], like: &Stat) -> Result<OwnedFd> {
        sys::create(dir, name, sys::permissions(like) & 0o777)
    }

    pub(crate) const fn needs_owner(&self, like: &Stat) -> bool {
        like.st_uid != self.defaults.st_uid || like.st_gid != self.defaults.st_gid
    }

    pub(crate) const fn needs_mode(&self, like: &Stat) -> bool {
        // The probe was made with 0777, so its mode is what the umask leaves of that.
        sys::permissions(like) & !sys::permissions(&self.defaults) != 0
    }

    /// Forgets what an earlier job left to be resumed.
    pub(crate) fn forget(&self) -> Result<()> {
        remove_contents(&self.resume, b"")
    }

    /// Removes large files in the making but for `keep`; the anchors stay.
    pub(crate) fn drop_large(&self, keep: Option<&[u8]>) -> Result<()> {
        for name in
            Names::read(&sys::open_dir(&self.resume, b".")?, |n| n.starts_with(b"large-"))?.iter()
        {
            if Some(name) != keep {
                sys::unlink(&self.resume, name)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn make_or_open(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    match sys::make_dir(parent, name) {
        Ok(()) | Err(Errno::EXIST) => sys::open_dir(parent, name),
        Err(e) => Err(e),
    }
}

/// Removes everything in `dir`, however deep, but what is called `keep` at its top.
pub(crate) fn remove_contents(dir: &OwnedFd, keep: &[u8]) -> Result<()> {
    struct Level<'a> {
        dir: OwnedFd,
        names: NameWalk,
        keep: &'a [u8],
    }
    impl<'a> Level<'a> {
        fn open(parent: &OwnedFd, name: &[u8], keep: &'a [u8]) -> Result<Self> {
            let dir = sys::open_dir(parent, name)?;
            let names = NameWalk::start(&dir, |name| name != keep)?;
            Ok(Self { dir, names, keep })
        }

        fn advance(&mut self) -> Result<()> {
            self.names.advance(&self.dir, |name| name != self.keep)
        }
    }
    let mut stack = vec![Level::open(dir, b".", keep)?];
    while let Some(top) = stack.last_mut() {
        let Some(name) = top.names.get() else {
            stack.pop();
            if let Some(above) = stack.last_mut() {
                if let Some(name) = above.names.get() {
                    sys::remove_dir(&above.dir, name)?;
                }
                above.advance()?;
            }
            continue;
        };
        match sys::unlink(&top.dir, name) {
            // Linux says ISDIR, POSIX PERM.
            Err(Errno::ISDIR | Errno::PERM) => {
                let below = Level::open(&top.dir, name, b"")?;
                stack.push(below);
            }
            Ok(()) | Err(Errno::NOENT) => top.advance()?,
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Device and inode of something with several names.
pub(crate) type InodeId = (u64, u64);

/// The anchors of a job.
#[derive(Debug, Default)]
pub(crate) struct Anchors {
    states: Mutex<HashMap<InodeId, Anchor>>,
    settled: Condvar,
}

#[derive(Debug, Clone, Copy)]
enum Anchor {
    /// The first name is being copied.
    Making,
    /// It lies in the stage, made in this epoch.
    Made(u64),
}

impl Anchors {
    /// Takes over the anchors of a stopped job up to `epoch`; later ones may not be durable and are removed.
    pub(crate) fn resume(stage: &Stage, epoch: u64) -> Result<Self> {
        let mut states = HashMap::new();
        for name in Names::read(&sys::open_dir(stage.kept(), b".")?, |_| true)?.iter() {
            match parse_anchor(name) {
                Some((inode, made)) if made <= epoch => {
                    states.insert(inode, Anchor::Made(made));
                }
                Some(_) => sys::unlink(stage.kept(), name)?,
                None => {}
            }
        }
        Ok(Self { states: Mutex::new(states), settled: Condvar::new() })
    }

    /// The anchor's name to link to; `None` when the caller is the first and must [`Anchors::settle`].
    /// Waits while another thread copies the first name.
    pub(crate) fn claim(&self, inode: InodeId) -> Option<Vec<u8>> {
        let mut states = lock(&self.states);
        loop {
            match states.get(&inode) {
                None => {
                    states.insert(inode, Anchor::Making);
                    return None;
                }
                Some(Anchor::Made(epoch)) => return Some(anchor_name(inode, *epoch)),
                Some(Anchor::Making) => {
                    states = self.settled.wait(states).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Tells those who wait that the anchor was made in `epoch`; or, with `None`, that the next must try.
    pub(crate) fn settle(&self, inode: InodeId, epoch: Option<u64>) {
        let mut states = lock(&self.states);
        match epoch {
            Some(epoch) => states.insert(inode, Anchor::Made(epoch)),
            None => states.remove(&inode),
        };
        self.settled.notify_all();
    }
}

pub(crate) fn anchor_name((device, inode): InodeId, epoch: u64) -> Vec<u8> {
    format!("{device:x}-{inode:x}-{epoch:x}").into_bytes()
}

fn parse_anchor(name: &[u8]) -> Option<(InodeId, u64)> {
    let mut parts = std::str::from_utf8(name).ok()?.splitn(3, '-');
    let mut number = || u64::from_str_radix(parts.next()?, 16).ok();
    Some(((number()?, number()?), number()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_anchor_s_name_tells_its_inode_and_epoch() {
        let name = anchor_name((0xfd00, 1234), 7);
        assert_eq!(parse_anchor(&name), Some(((0xfd00, 1234), 7)));
        assert_eq!(parse_anchor(b"large-6f1c"), None);
    }
}

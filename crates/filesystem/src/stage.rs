//! Where things in the making lie until they are whole.
//!
//! Each file, link, node and directory is built here and then renamed into its place, so that
//! nothing half done ever has a name in a tree. What a resumed job needs lies apart from the rest, by source
//! ([`Kept`]): large files that are done in part, and an *anchor* for each inode with several names, which the later
//! names are linked to.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::names::{NameWalk, Names};
use crate::report::{Fingerprint, lock};
use crate::sys::{self, Errno, Result, Stat};

/// Holds what survives a stop, inside the staging directory.
const RESUME: &[u8] = b"resume";
/// Begins the names of large files that are done in part.
const LARGE: &[u8] = b"large-";
/// What the owner of a file in the making may do.
const OWN: u32 = 0o600;
/// So many stopped jobs keep their anchors while others run: what an anchor's names are removed from, or replaced in,
/// takes room until the anchor goes.
const STOPPED_MAX: usize = 8;

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

    /// As [`Stage::open`]; where nothing can be written, one in which nothing can be made (`ROFS`).
    pub(crate) fn open_if_writable(parent: &OwnedFd, name: &[u8]) -> Result<Self> {
        match Self::open(parent, name) {
            Err(Errno::ROFS) => {
                let tmp = sys::open_dir(parent, name).or_else(|_| sys::open_dir(parent, b"."))?;
                let resume = sys::open_dir(&tmp, RESUME).or_else(|_| sys::open_dir(&tmp, b"."))?;
                let defaults = sys::stat_open(&tmp)?;
                Ok(Self { tmp, resume, next: AtomicU64::new(0), defaults })
            }
            other => other,
        }
    }

    /// Where things are made; each under a [`Stage::fresh`] name.
    pub(crate) const fn tmp(&self) -> &OwnedFd {
        &self.tmp
    }

    /// Where what survives a stop lies.
    pub(crate) const fn resume(&self) -> &OwnedFd {
        &self.resume
    }

    /// A name that nothing here has.
    pub(crate) fn fresh(&self) -> Vec<u8> {
        format!("{:x}", self.next.fetch_add(1, Ordering::Relaxed)).into_bytes()
    }

    /// Makes a file that will get the mode of `like`, and that a later run can go on with whatever that is.
    pub(crate) fn create(&self, dir: &OwnedFd, name: &[u8], like: &Stat) -> Result<OwnedFd> {
        sys::create(dir, name, sys::permissions(like) & 0o777 | OWN)
    }

    pub(crate) const fn needs_owner(&self, like: &Stat) -> bool {
        !sys::same_owner(like, &self.defaults)
    }

    pub(crate) const fn needs_mode(&self, mode: u32) -> bool {
        // The probe was made with 0777, so its mode is what the umask leaves of that.
        mode & !sys::permissions(&self.defaults) != 0 || mode & OWN != OWN
    }

    /// Whether a job that copied the tree with this root has begun here, and not ended.
    pub(crate) fn keeps(&self, root: InodeId) -> Result<bool> {
        match sys::stat(&self.resume, &kept_name(root)) {
            Err(Errno::NOENT) => Ok(false),
            other => other.map(|_| true),
        }
    }

    /// What a job that copies the tree with this root keeps over a stop.
    pub(crate) fn kept_of(&self, root: InodeId) -> Result<Kept> {
        let name = kept_name(root);
        Ok(Kept { dir: make_or_open(&self.resume, &name)?, name })
    }

    /// Forgets what `kept` has, and what others have that takes much room: their large files are begun anew when they
    /// are taken up, and the oldest anchors are given up.
    pub(crate) fn begin_anew(&self, kept: &Kept) -> Result<()> {
        remove_contents(&kept.dir, b"")?;
        let mut others = Vec::new();
        let resume = sys::open_dir(&self.resume, b".")?;
        // Where a stage could not be made (see `open_if_writable`) other things may lie beside.
        let is_other = |name: &[u8]| name != kept.name && is_kept(name);
        for name in Names::read(&resume, is_other)?.iter() {
            let other = Kept { dir: sys::open_dir(&resume, name)?, name: name.to_vec() };
            other.drop_large(None)?;
            let stat = sys::stat_open(&other.dir)?;
            others.push(((stat.st_mtime, stat.st_mtime_nsec), other.name));
        }
        others.sort();
        let surplus = others.len().saturating_sub(STOPPED_MAX);
        others[..surplus].iter().try_for_each(|(_, name)| remove_tree(&resume, name))
    }

    /// Forgets what stopped jobs keep, but where all of it `may_stay`: such a job begins anew when it is taken up.
    pub(crate) fn forget_unless(
        &self,
        mut may_stay: impl FnMut(&OwnedFd, &[u8]) -> Result<bool>,
    ) -> Result<()> {
        let resume = sys::open_dir(&self.resume, b".")?;
        for name in Names::read(&resume, is_kept)?.iter() {
            let kept = sys::open_dir(&resume, name)?;
            let mut all = true;
            for entry in Names::read(&kept, |_| true)?.iter() {
                all = all && may_stay(&kept, entry)?;
            }
            if !all {
                remove_tree(&resume, name)?;
            }
        }
        Ok(())
    }

    /// Forgets what a job kept that has come to its end.
    pub(crate) fn forget(&self, kept: &Kept) -> Result<()> {
        remove_tree(&self.resume, &kept.name)
    }
}

/// What a job keeps over a stop. Jobs with other sources may run in between.
#[derive(Debug)]
pub(crate) struct Kept {
    dir: OwnedFd,
    name: Vec<u8>,
}

impl Kept {
    /// Where its large files and anchors lie.
    pub(crate) const fn dir(&self) -> &OwnedFd {
        &self.dir
    }

    /// A name for a large file that no earlier job can have left.
    pub(crate) fn fresh(&self) -> Vec<u8> {
        [LARGE, kms_core::KeyId::random().to_string().as_bytes()].concat()
    }

    /// Removes large files in the making but for `keep`; the anchors stay.
    pub(crate) fn drop_large(&self, keep: Option<&[u8]>) -> Result<()> {
        let large = |name: &[u8]| name.starts_with(LARGE) && Some(name) != keep;
        let names = Names::read(sys::open_dir(&self.dir, b".")?, large)?;
        names.iter().try_for_each(|name| sys::unlink(&self.dir, name))
    }
}

fn kept_name((device, inode): InodeId) -> Vec<u8> {
    format!("{device:x}-{inode:x}").into_bytes()
}

/// Whether it is a name of [`Stage::kept_of`].
fn is_kept(name: &[u8]) -> bool {
    let hex = |part: &[u8]| !part.is_empty() && part.iter().all(u8::is_ascii_hexdigit);
    let mut parts = name.split(|byte| *byte == b'-');
    matches!((parts.next(), parts.next(), parts.next()), (Some(a), Some(b), None) if hex(a) && hex(b))
}

pub(crate) fn make_or_open(parent: &OwnedFd, name: &[u8]) -> Result<OwnedFd> {
    match sys::make_dir(parent, name) {
        Ok(()) | Err(Errno::EXIST) => sys::open_dir(parent, name),
        Err(Errno::ROFS) => sys::open_dir(parent, name).map_err(|_| Errno::ROFS),
        Err(e) => Err(e),
    }
}

/// Removes everything in `dir`, however deep, but what is called `keep` at its top. Stops at what is mounted below (`XDEV`).
pub(crate) fn remove_contents(dir: &OwnedFd, keep: &[u8]) -> Result<()> {
    struct Level<'a> {
        dir: OwnedFd,
        names: NameWalk,
        keep: &'a [u8],
    }
    impl<'a> Level<'a> {
        fn open(parent: &OwnedFd, name: &[u8], keep: &'a [u8]) -> Result<Self> {
            let dir = sys::open_to_empty(parent, name)?;
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

/// Removes a directory and all that is in it, if it is there.
pub(crate) fn remove_tree(parent: &OwnedFd, name: &[u8]) -> Result<()> {
    match sys::open_to_empty(parent, name) {
        Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(errno),
        Ok(dir) => {
            remove_contents(&dir, b"")?;
            sys::remove_dir(parent, name)
        }
    }
}

/// Device and inode.
pub(crate) type InodeId = (u64, u64);

/// The anchors of a job: what stands for an inode of the source that has several names.
///
/// They go by [`Fingerprint`], not by inode: a source may give an inode to another file, or write to it, while a job
/// runs or is stopped. It is also why no two threads can wait for each other. Whether a file is copied by the walker
/// in segments or by a worker at once follows from its length, which is in the fingerprint: a worker waits only for
/// one that is copying, the walker only for segments that it has handed out.
#[derive(Debug, Default)]
pub(crate) struct Anchors {
    states: Mutex<HashMap<Fingerprint, Anchor>>,
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
    pub(crate) fn resume(kept: &Kept, epoch: u64) -> Result<Self> {
        let mut states = HashMap::new();
        for name in Names::read(sys::open_dir(&kept.dir, b".")?, |_| true)?.iter() {
            match parse_anchor(name) {
                Some((file, made)) if made <= epoch => {
                    states.insert(file, Anchor::Made(made));
                }
                Some(_) => sys::unlink(&kept.dir, name)?,
                None => {}
            }
        }
        Ok(Self { states: Mutex::new(states), settled: Condvar::new() })
    }

    /// The anchor's name to link to; `None` when the caller is the first and must [`Anchors::settle`].
    /// Waits while another thread copies the first name.
    pub(crate) fn claim(&self, file: Fingerprint) -> Option<Vec<u8>> {
        let mut states = lock(&self.states);
        loop {
            match states.get(&file) {
                None => {
                    states.insert(file, Anchor::Making);
                    return None;
                }
                Some(Anchor::Made(epoch)) => return Some(anchor_name(file, *epoch)),
                Some(Anchor::Making) => {
                    states = self.settled.wait(states).unwrap_or_else(PoisonError::into_inner);
                }
            }
        }
    }

    /// Tells those who wait that the anchor was made in `epoch`; or, with `None`, that the next must try.
    pub(crate) fn settle(&self, file: Fingerprint, epoch: Option<u64>) {
        let mut states = lock(&self.states);
        match epoch {
            Some(epoch) => states.insert(file, Anchor::Made(epoch)),
            None => states.remove(&file),
        };
        self.settled.notify_all();
    }
}

pub(crate) fn anchor_name(file: Fingerprint, epoch: u64) -> Vec<u8> {
    format!("{}-{epoch:x}", hex::encode(file)).into_bytes()
}

fn parse_anchor(name: &[u8]) -> Option<(Fingerprint, u64)> {
    let (file, epoch) = std::str::from_utf8(name).ok()?.split_once('-')?;
    let mut fingerprint = Fingerprint::default();
    hex::decode_to_slice(file, &mut fingerprint).ok()?;
    Some((fingerprint, u64::from_str_radix(epoch, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::filesystem::{HEADER, ROOT};
    use crate::lock::LOCK;
    use crate::report::Identity;

    #[test]
    fn an_anchor_s_name_tells_its_file_and_epoch() {
        let name = anchor_name([0xa5; 16], 7);
        assert_eq!(parse_anchor(&name), Some(([0xa5; 16], 7)));
        assert_eq!(parse_anchor(b"large-6f1c"), None);
    }

    /// One that grows between two looks at its names is small under the first and large under the second: a single
    /// worker that waited for the large one would wait for itself.
    #[test]
    fn a_file_that_changed_is_another_one_and_nobody_waits_for_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        std::fs::write(&path, "small").unwrap();
        let open = sys::open_root(dir.path()).unwrap();
        let fingerprint = || Identity::of(&sys::stat(&open, b"file").unwrap()).fingerprint();
        let small = fingerprint();
        let inode = std::fs::metadata(&path).unwrap().ino();
        std::fs::File::options().write(true).open(&path).unwrap().set_len(9_000_000).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().ino(), inode);
        let anchors = Anchors::default();
        assert_eq!(anchors.claim(fingerprint()), None);
        assert_eq!(anchors.claim(small), None);
        anchors.settle(small, Some(1));
        assert_eq!(anchors.claim(small), Some(anchor_name(small, 1)));
    }

    #[test]
    fn few_stopped_jobs_keep_their_anchors_and_none_its_large_files() {
        let dir = tempfile::tempdir().unwrap();
        let stage = Stage::open(&sys::open_root(dir.path()).unwrap(), b"stage").unwrap();
        let left = || std::fs::read_dir(dir.path().join("stage/resume")).unwrap().count();
        for inode in 0..20 {
            let kept = stage.kept_of((1, inode)).unwrap();
            stage.begin_anew(&kept).unwrap();
            assert_eq!(left(), STOPPED_MAX.min(inode as usize) + 1);
            for name in [kept.fresh(), anchor_name([0; 16], 0)] {
                sys::create(kept.dir(), &name, 0o600).unwrap();
            }
        }
        let last = stage.kept_of((1, 19)).unwrap();
        assert_eq!(Names::read(last.dir(), |_| true).unwrap().iter().count(), 2);
        let before = stage.kept_of((1, 18)).unwrap();
        assert_eq!(Names::read(before.dir(), |_| true).unwrap().iter().count(), 1);
        stage.forget(&last).unwrap();
        assert_eq!(left(), STOPPED_MAX);
        let others = [HEADER, LOCK, ROOT];
        for name in others {
            sys::create(&stage.resume, name, 0o600).unwrap();
        }
        stage.begin_anew(&stage.kept_of((1, 20)).unwrap()).unwrap();
        let there = Names::read(&stage.resume, |name| others.contains(&name)).unwrap();
        assert_eq!(there.iter().count(), 3, "what is not a job's stays");
    }
}

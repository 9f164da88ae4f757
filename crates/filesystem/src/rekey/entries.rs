//! What is beside the content: attributes, links, names, and the records of directories.

use std::os::fd::{AsFd as _, BorrowedFd};
use std::sync::atomic::Ordering;

use data_path::dir::RECORD_NAME;
use data_path::xattr::BACKING_PREFIX;
use data_path::{BackingEntry, XattrOwner, symlink};

use super::{Dir, Item, Needed, Pass};
use crate::error::{Doing, Fault, shown};
use crate::names::NameWalk;
use crate::report::lock;
use crate::saved::{Notes, Saved, Slip};
use crate::sealed::SealedTree;
use crate::side::Source as _;
use crate::sys::{self, Errno, Inode, Stat, Xattr};
use crate::trail::Trail;

/// So many names are dealt with in one turn.
const NAMES_EACH_TURN: usize = 512;

/// Changes what is in a directory, which keeps its times, and its mode.
fn keeping_times(
    dir: &Dir,
    slip: &Slip,
    act: impl FnOnce() -> Result<(), Fault>,
) -> Result<(), Fault> {
    let fd = &dir.place.fd;
    let mut notes = Notes::default();
    let saved = Saved::of(b".", &sys::stat_open(fd).doing("read")?);
    let saved = notes.add(&dir.trail, saved);
    slip.put(&notes).doing("written")?;
    sys::give_owner_s_rights(fd).doing("written")?;
    let acted = act();
    acted.and(saved.give_back(fd.as_fd()).doing("given its times"))
}

impl Pass<'_> {
    /// Seals the attributes of an inode again: that of the entry `raw` in `dir`, or of `dir` itself (`.`).
    pub(super) fn xattrs(
        &self,
        at: &Trail,
        dir: &Dir,
        raw: &[u8],
        inode: BorrowedFd<'_>,
        owner: XattrOwner,
    ) -> Result<(), Fault> {
        let (keys, of) = (&self.tree.keys, Inode::Open(inode));
        for old in sealed_xattrs(of)? {
            if keys.current.open_xattr(owner, &old.0, &old.1).is_ok() {
                continue;
            }
            let (name, value) = match keys.open_xattr(owner, &old) {
                Ok(plain) => plain,
                Err(error) => {
                    let fault = Fault::format("read", &error);
                    let reason = format!("its attribute {} can't be read: {fault}", shown(&old.0));
                    self.problem(at, fault.kind_of_attribute(), reason, true);
                    continue;
                }
            };
            let sealed = keys.current.seal_xattr(owner, &name, &value).doing("encrypted")?;
            let renewed = (keys.current.xattr_name(owner, &name).into_bytes(), sealed);
            match sys::set_xattr(of, &renewed.0, &renewed.1) {
                Ok(()) => sys::remove_xattr(of, &old.0).doing("written")?,
                // An inode may have no room for both.
                Err(Errno::NOSPC | Errno::DQUOT | Errno::TOOBIG) => {
                    self.with_slip(|slip| swap_xattr(dir, raw, inode, slip, &old, &renewed))?;
                }
                Err(errno) => return Err(errno).doing("written"),
            }
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Puts a link under the current key in the place of an old one.
    pub(super) fn link(&self, item: &Item) {
        let _alone = lock(&self.links);
        let replace = || {
            let Some(needed) = self.needs(item)? else { return Ok(()) };
            self.with_slip(|slip| keeping_times(&item.dir, slip, || self.replace_link(&needed)))
        };
        if let Err(fault) = replace() {
            self.trouble(&item.trail(), fault);
        }
    }

    /// Its other names are kept together.
    fn replace_link(&self, needed: &Needed<'_>) -> Result<(), Fault> {
        let Needed { item, stat, .. } = needed;
        let (fd, tmp) = (&item.dir.place.fd, self.tree.stage.tmp());
        let text = sys::read_link(fd, &item.raw).doing("read")?;
        let staged = self.tree.stage.fresh();
        // One that has, or had, other names was made once already, or will be needed again.
        let anchor = format!("link-{:x}", stat.st_ino).into_bytes();
        match sys::hard_link(self.kept, &anchor, tmp, &staged) {
            Ok(()) => {}
            Err(Errno::NOENT) => {
                let target = self.tree.open_target(&text)?;
                self.make_link(item, stat, &target, &staged)?;
                if stat.st_nlink > 1 {
                    sys::hard_link(tmp, &staged, self.kept, &anchor).doing("linked")?;
                }
            }
            Err(errno) => return Err(errno).doing("linked"),
        }
        sys::rename(tmp, &staged, fd, &item.raw).doing("given its name").inspect_err(|_| {
            let _ = sys::unlink(tmp, &staged);
        })?;
        self.changed.fetch_add(1, Ordering::Relaxed);
        if let Some(record) = symlink::target_record(&text).filter(|_| stat.st_nlink == 1) {
            let _ = sys::unlink(&self.tree.links, record.as_bytes());
        }
        Ok(())
    }

    fn make_link(
        &self,
        item: &Item,
        stat: &Stat,
        target: &[u8],
        staged: &[u8],
    ) -> Result<(), Fault> {
        let tmp = self.tree.stage.tmp();
        let text = self.tree.seal_target(target)?;
        sys::make_link(tmp, staged, &text).doing("written")?;
        let made = sys::stat(tmp, staged).doing("read")?;
        if !sys::same_owner(&made, stat)
            && !sys::set_owner_at(tmp, staged, stat).doing("given its owner")?
        {
            return Err(Errno::PERM).doing("given its owner");
        }
        let new = Inode::Named(tmp.as_fd(), staged);
        for (name, value) in
            sys::xattrs(Inode::Named(item.dir.place.fd.as_fd(), &item.raw)).doing("read")?
        {
            sys::set_xattr(new, &name, &value).doing("written")?;
        }
        sys::set_times_at(tmp, staged, stat).doing("given its times")
    }

    /// The names in a directory, when all that is below them is done; then its attributes, and last its record.
    pub(super) fn directory(&self, dir: &Dir) -> Result<(), Fault> {
        let fd = &dir.place.fd;
        let is_old = |raw: &[u8]| self.is_old_name(dir, raw);
        let mut names = NameWalk::start(fd, is_old).doing("read")?;
        loop {
            let Some(_turn) = self.turn() else { return Ok(()) };
            let mut old = Vec::new();
            while let Some(raw) = names.get().filter(|_| old.len() < NAMES_EACH_TURN) {
                old.push(raw.to_vec());
                names.advance(fd, is_old).doing("read")?;
            }
            if old.is_empty() {
                break;
            }
            self.with_slip(|slip| keeping_times(dir, slip, || self.rename_all(dir, &old)))?;
        }
        let Some(_turn) = self.turn() else { return Ok(()) };
        let owner = XattrOwner::Directory(dir.place.dir);
        let of = Inode::Open(fd.as_fd());
        let current = &self.tree.keys.current;
        let old_xattrs = sealed_xattrs(of)?
            .iter()
            .any(|(name, value)| current.open_xattr(owner, name, value).is_err());
        let record = SealedTree::small_file(fd, RECORD_NAME.as_bytes())?.unwrap_or_default();
        let old_record = current.open_directory(&record) != Ok(dir.place.dir);
        if !old_xattrs && !old_record {
            return Ok(());
        }
        self.with_slip(|slip| {
            keeping_times(dir, slip, || {
                self.xattrs(&dir.trail, dir, b".", fd.as_fd(), owner)?;
                if old_record {
                    self.tree.renew_record(&dir.place)?;
                    self.changed.fetch_add(1, Ordering::Relaxed);
                }
                Ok(())
            })
        })
    }

    /// Whether it is an entry, or the side file of one, whose name is under the previous key.
    fn is_old_name(&self, dir: &Dir, raw: &[u8]) -> bool {
        let side = match BackingEntry::classify(raw) {
            BackingEntry::Short => None,
            BackingEntry::Long { side } => {
                SealedTree::small_file(&dir.place.fd, side.as_bytes()).ok().flatten()
            }
            BackingEntry::Side { of } => {
                // Of one that is gone; with the others goes their entry.
                let alone = sys::stat(&dir.place.fd, of.as_bytes()).err() == Some(Errno::NOENT);
                return alone && self.opens_before(dir, of.as_bytes(), raw);
            }
            BackingEntry::DirectoryRecord | BackingEntry::Foreign => return false,
        };
        self.tree.keys.current.open_name(dir.place.dir, raw, side.as_deref()).is_err()
    }

    fn opens_before(&self, dir: &Dir, raw: &[u8], side: &[u8]) -> bool {
        let content = SealedTree::small_file(&dir.place.fd, side).ok().flatten();
        let id = self.tree.keys.id_under(self.previous, dir.place.dir);
        self.previous.open_name(id, raw, content.as_deref()).is_ok()
    }

    fn rename_all(&self, dir: &Dir, old: &[Vec<u8>]) -> Result<(), Fault> {
        for raw in old {
            if let BackingEntry::Side { .. } = BackingEntry::classify(raw) {
                sys::unlink(&dir.place.fd, raw).doing("tidied up")?;
                self.changed.fetch_add(1, Ordering::Relaxed);
                continue;
            }
            // The walk has told of one that can't be read.
            let Ok(name) = self.tree.plain_name(&dir.place, raw) else { continue };
            match self.tree.settle_name(&dir.place, &name) {
                Ok(()) => drop(self.changed.fetch_add(1, Ordering::Relaxed)),
                Err(fault) => self.trouble(&dir.trail.entry(raw, &name), fault),
            }
        }
        Ok(())
    }
}

/// Puts an attribute in the place of another one, which lies written down, durably, while neither is there.
fn swap_xattr(
    dir: &Dir,
    raw: &[u8],
    inode: BorrowedFd<'_>,
    slip: &Slip,
    old: &Xattr,
    new: &Xattr,
) -> Result<(), Fault> {
    let mut notes = Notes::default();
    let mut saved = Saved::of(raw, &sys::stat_open(inode).doing("read")?);
    saved.add(old);
    notes.add(&dir.trail, saved);
    slip.put(&notes).and_then(|()| slip.sync()).doing("written")?;
    let of = Inode::Open(inode);
    sys::remove_xattr(of, &old.0).doing("written")?;
    sys::set_xattr(of, &new.0, &new.1).doing("written").inspect_err(|_| {
        let _ = sys::set_xattr(of, &old.0, &old.1);
    })
}

/// The encrypted attributes of an inode, as they lie.
pub(super) fn sealed_xattrs(of: Inode<'_>) -> Result<Vec<Xattr>, Fault> {
    let all = sys::xattrs(of).doing("read (its attributes)")?;
    Ok(all.into_iter().filter(|(name, _)| name.starts_with(BACKING_PREFIX.as_bytes())).collect())
}

//! What an entry gets besides its content and its name: owner, mode, attributes, times.
//!
//! In this order: a change of owner clears the set-id bits and capabilities; what its owner may not write takes no
//! `user.*` attributes of his; and each of them changes the times.

use std::os::fd::AsFd;
use std::sync::atomic::Ordering;

use crate::copy::{Copy, Pair};
use crate::error::{Doing, Fault, shown};
use crate::report::Problem;
use crate::side::{Owner, Sink, Source};
use crate::sys::{self, Errno, FileType, Stat, Xattr};
use crate::trail::Trail;

const SET_ID: u32 = 0o6000;

/// Whether an entry has the owner that it had in the source.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ownership {
    /// It was made with it.
    Has,
    Given,
    /// It is the node's. With a set-id bit it would run as the node, whatever another one wrote into it.
    Lost,
}

impl Ownership {
    const fn mode(self, like: &Stat) -> u32 {
        match self {
            Self::Lost => sys::permissions(like) & !SET_ID,
            Self::Has | Self::Given => sys::permissions(like),
        }
    }
}

impl<S: Source, K: Sink> Copy<'_, S, K> {
    /// Gives a file all but its name.
    pub(crate) fn dress_file(
        &self,
        at: &Trail,
        stat: &Stat,
        from: &S::File,
        to: &K::File,
    ) -> Result<(), Fault> {
        let owner = self.give_owner(stat, || sys::set_owner(to, stat))?;
        self.dress(at, &Owner::File(from), &Owner::File(to))?;
        let mode = owner.mode(stat);
        if owner == Ownership::Given || self.stage.needs_mode(mode) {
            sys::set_mode(to, mode).doing("given its mode")?;
        }
        sys::set_times(to, stat).doing("given its times")
    }

    /// Gives a link or a node all but its name.
    pub(crate) fn dress_named(
        &self,
        at: &Trail,
        stat: &Stat,
        from: &Owner<'_, S>,
        staged: &[u8],
    ) -> Result<(), Fault> {
        let tmp = self.stage.tmp();
        let owner = self.give_owner(stat, || sys::set_owner_at(tmp, staged, stat))?;
        self.dress(at, from, &Owner::Named(tmp.as_fd(), staged))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
            sys::set_mode_at(tmp, staged, owner.mode(stat)).doing("given its mode")?;
        }
        sys::set_times_at(tmp, staged, stat).doing("given its times")
    }

    /// Gives a directory all but its name, when all of its entries are there.
    pub(crate) fn dress_directory(&self, pair: &Pair<S, K>) -> Result<(), Fault> {
        let (stat, to) = (&pair.stat, &pair.to.fd);
        // In any case, for it may have been there before, as another's.
        let given = sys::is_root() && sys::set_owner(to, stat).doing("given its owner")?;
        if !given && !sys::same_owner(&sys::stat_open(to).doing("read")?, stat) {
            self.tally.owners_lost.fetch_add(1, Ordering::Relaxed);
        }
        self.dress(&pair.trail, &Owner::Directory(&pair.from), &Owner::Directory(&pair.to))?;
        sys::set_mode(to, sys::permissions(stat)).doing("given its mode")?;
        sys::set_times(to, stat).doing("given its times")
    }

    /// Gives what was made its owner, where it needs one. What needs one and can't get it is counted.
    fn give_owner(
        &self,
        like: &Stat,
        give: impl FnOnce() -> sys::Result<bool>,
    ) -> Result<Ownership, Fault> {
        if !self.stage.needs_owner(like) {
            return Ok(Ownership::Has);
        }
        if sys::is_root() && give().doing("given its owner")? {
            return Ok(Ownership::Given);
        }
        self.tally.owners_lost.fetch_add(1, Ordering::Relaxed);
        Ok(Ownership::Lost)
    }

    /// Copies extended attributes, ACLs among them. One that can't be opened or set is a problem,
    /// not the end of the file.
    fn dress(&self, at: &Trail, from: &Owner<'_, S>, to: &Owner<'_, K>) -> Result<(), Fault> {
        let attributes = self.attributes(at, from, to)?;
        if matches!(to, Owner::Directory(_)) {
            self.strip(at, to, &attributes)?;
        }
        for Attribute { plain_name, raw: (name, value) } in attributes {
            let Err(fault) = sys::set_xattr(to.inode(), &name, &value).doing("written") else {
                continue;
            };
            if fault.is_final() && !attribute_too_large(&fault) {
                return Err(fault);
            }
            // Nor does what a directory had before stay in its place.
            let _ = sys::remove_xattr(to.inode(), &name);
            self.lost_attribute(at, &plain_name, &fault);
        }
        Ok(())
    }

    /// What the source has, as it is to lie in the target, in the order in which it can be given.
    fn attributes(
        &self,
        at: &Trail,
        from: &Owner<'_, S>,
        to: &Owner<'_, K>,
    ) -> Result<Vec<Attribute>, Fault> {
        let mut attributes = Vec::new();
        for raw in sys::xattrs(from.inode()).doing("read (its attributes)")? {
            let mut name = raw.0.clone();
            let carried = self.source.plain_xattr(from, raw).and_then(|plain| {
                let Some(plain) = plain else { return Ok(None) };
                name.clone_from(&plain.0);
                self.sink.raw_xattr(to, plain).map(Some)
            });
            match carried {
                Ok(Some(raw)) => attributes.push(Attribute { plain_name: name, raw }),
                Ok(None) => {}
                Err(fault) if fault.is_final() => return Err(fault),
                Err(fault) => self.lost_attribute(at, &name, &fault),
            }
        }
        // An ACL can take the right to give the others.
        attributes.sort_by_key(|attribute| !attribute.plain_name.starts_with(b"user."));
        Ok(attributes)
    }

    /// Takes from a directory, which may have been there before, what the source's does not have. An ACL that stayed would
    /// let somebody in.
    fn strip(&self, at: &Trail, of: &Owner<'_, K>, but: &[Attribute]) -> Result<(), Fault> {
        for name in sys::xattr_names(of.inode()).doing("read (its attributes)")? {
            if !self.sink.gives_xattr(&name) || but.iter().any(|kept| kept.raw.0 == name) {
                continue;
            }
            match sys::remove_xattr(of.inode(), &name).doing("written") {
                Err(fault) if fault.is_final() => return Err(fault),
                Err(fault) => {
                    let name = shown(&name);
                    let reason = format!("its old attribute {name} stays: {fault}");
                    self.attribute_problem(at, &fault, reason);
                }
                Ok(()) => {}
            }
        }
        Ok(())
    }

    fn lost_attribute(&self, at: &Trail, name: &[u8], fault: &Fault) {
        let reason = format!("its attribute {} is lost: {fault}", shown(name));
        self.attribute_problem(at, fault, reason);
    }

    fn attribute_problem(&self, at: &Trail, fault: &Fault, reason: String) {
        let problem = Problem::new(&at.plain(), None, fault.kind_of_attribute(), reason);
        self.tally.problem(problem, self.control);
    }
}

struct Attribute {
    plain_name: Vec<u8>,
    /// As it lies in the target.
    raw: Xattr,
}

/// Filesystems answer NOSPC also when one inode's attributes are full, which is no full disk.
const fn attribute_too_large(fault: &Fault) -> bool {
    matches!(fault, Fault::System { errno: Errno::NOSPC, .. })
}

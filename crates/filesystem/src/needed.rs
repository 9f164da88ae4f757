//! Which records of link targets something needs, as far as that can be told.
//!
//! A record that nothing needs is left over, and repair moves it away. So no link may be overlooked: neither one that
//! can't be read at the moment, nor one that lies outside the tree.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use data_path::symlink;

use crate::names::NameWalk;
use crate::report::lock;
use crate::sys::{self, Errno, FileType, Result};

/// The records that links need.
#[derive(Debug, Default)]
pub(crate) struct Needed {
    records: Mutex<HashSet<Vec<u8>>>,
    /// Links may be there that were not met.
    unsure: AtomicBool,
}

impl Needed {
    /// Adds what a link with this text needs.
    pub(crate) fn add(&self, text: &[u8]) {
        if let Some(name) = symlink::target_record(text) {
            lock(&self.records).insert(name.as_bytes().to_vec());
        }
    }

    /// Something can't be read that may be a link or have one in it.
    pub(crate) fn be_unsure(&self) {
        self.unsure.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_unsure(&self) -> bool {
        self.unsure.load(Ordering::Relaxed)
    }

    pub(crate) fn has(&self, record: &[u8]) -> bool {
        lock(&self.records).contains(record)
    }

    /// Adds what all links below a directory need, whether their names can be read or not.
    pub(crate) fn add_links_below(&self, parent: &OwnedFd, name: &[u8]) {
        match self.try_add_links_below(parent, name) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(_) => self.be_unsure(),
        }
    }

    fn try_add_links_below(&self, parent: &OwnedFd, name: &[u8]) -> Result<()> {
        let open = |parent: &OwnedFd, name: &[u8]| -> Result<(OwnedFd, NameWalk)> {
            let dir = sys::open_dir(parent, name)?;
            let names = NameWalk::start(&dir, |_| true)?;
            Ok((dir, names))
        };
        let mut stack = vec![open(parent, name)?];
        while let Some((dir, names)) = stack.last_mut() {
            let Some(raw) = names.get().map(<[u8]>::to_vec) else {
                stack.pop();
                continue;
            };
            names.advance(&*dir, |_| true)?;
            match FileType::from_raw_mode(sys::stat(&*dir, &raw)?.st_mode) {
                FileType::Symlink => self.add(&sys::read_link(&*dir, &raw)?),
                FileType::Directory => {
                    let below = open(dir, &raw)?;
                    stack.push(below);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

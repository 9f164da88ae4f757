//! The content of files and nodes, sealed again: many small files in one turn, a large one segment by segment.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::Ordering;

use data_path::layout::PAGE;
use data_path::{Node, XattrOwner};

use super::entries::sealed_xattrs;
use super::{Claim, Item, Needed, Open, Pass, is_link};
use crate::error::{Doing, Fault};
use crate::renewal::Renewal;
use crate::report::lock;
use crate::saved::{Notes, Saved, Slip};
use crate::side::segment;
use crate::sys::{self, Errno, FileType, Inode, Stat, Xattr};

impl Pass<'_> {
    /// Files of one segment, records of nodes, and links.
    pub(super) fn batch(&self, items: &[Item]) {
        let Some(_turn) = self.turn() else { return };
        self.count(items.iter().map(|item| item.len).sum());
        let mut files = Vec::new();
        for item in items {
            match self.needs(item) {
                Ok(None) => {}
                Ok(Some(Needed { stat, claim, .. })) if is_link(&stat) => {
                    drop(claim);
                    self.link(item);
                }
                Ok(Some(needed)) => files.push(needed),
                Err(fault) => self.trouble(&item.trail(), fault),
            }
        }
        if !files.is_empty()
            && let Err(fault) = self.with_slip(|slip| self.files(files, slip))
        {
            self.trouble(&items[0].dir.trail, fault);
        }
    }

    /// Whether anything of an entry lies under the previous key; nobody else touches its inode then.
    pub(super) fn needs<'a>(&'a self, item: &'a Item) -> Result<Option<Needed<'a>>, Fault> {
        let fd = &item.dir.place.fd;
        let stat = || match sys::stat(fd, &item.raw) {
            Err(errno) => {
                self.gone_or(&item.trail(), errno);
                None
            }
            Ok(stat) => Some(stat),
        };
        let Some(before) = stat() else { return Ok(None) };
        let inode = (before.st_dev, before.st_ino);
        if !lock(&self.claimed).insert(inode) {
            // Another worker has it, under another name. The next walk will see how it ended.
            self.changed.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let claim = Claim { claimed: &self.claimed, inode };
        // Again: another worker may just have let go of it.
        let Some(stat) = stat() else { return Ok(None) };
        let needed = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => {
                !self.link_is_current(&sys::read_link(fd, &item.raw).doing("read")?)
            }
            FileType::RegularFile => {
                let file = match sys::open_file(fd, &item.raw) {
                    // Its owner may have taken the right to read it from himself.
                    Err(Errno::ACCESS) => {
                        let file = sys::open_to_rewrite(fd, &item.raw).doing("opened")?;
                        sys::set_mode(&file, sys::permissions(&stat)).doing("given its mode")?;
                        file
                    }
                    other => other.doing("opened")?,
                };
                self.file_is_old(file.as_fd(), stat.st_size.cast_unsigned())?
            }
            _ => false,
        };
        Ok(needed.then_some(Needed { item, stat, claim }))
    }

    fn file_is_old(&self, file: BorrowedFd<'_>, len: u64) -> Result<bool, Fault> {
        let keys = &self.tree.keys;
        let mut page = vec![0; PAGE];
        let got = sys::read_at(file, &mut page, 0).doing("read")?;
        if Node::is_record(len) {
            return Ok(keys.current.open_node(&page[..got]).is_err());
        }
        let cipher = keys.open_file(&page[..got], len).doing("opened")?;
        if Renewal::is_needed(keys, &cipher) {
            return Ok(true);
        }
        let owner = XattrOwner::File(cipher.id());
        let is_old = |(name, value): &Xattr| keys.current.open_xattr(owner, name, value).is_err();
        Ok(sealed_xattrs(Inode::Open(file))?.iter().any(is_old))
    }

    fn files<'a>(&'a self, needed: Vec<Needed<'a>>, slip: &Slip) -> Result<(), Fault> {
        let mut notes = Notes::default();
        let mut saved = Vec::new();
        for Needed { item, stat, .. } in &needed {
            saved.push(notes.add(&item.dir.trail, save(item, stat)?));
        }
        slip.put(&notes).doing("written")?;
        let mut open = Vec::new();
        for (needed, saved) in needed.into_iter().zip(saved) {
            let item = needed.item;
            match self.begin(needed, saved) {
                Ok(Some(file)) => open.push(file),
                Ok(None) => {}
                Err(fault) => self.trouble(&item.trail(), fault),
            }
        }
        self.renew_all(open)
    }

    /// Deals with all of a file but its content, or with a node, and begins with the content, in memory.
    fn begin<'a>(&self, needed: Needed<'a>, saved: Saved) -> Result<Option<Open<'a>>, Fault> {
        let Needed { item, claim, .. } = needed;
        let fd = sys::open_to_rewrite(&item.dir.place.fd, &item.raw).doing("opened")?;
        let file = fd.try_clone().map_err(|_| Errno::MFILE).doing("opened")?;
        let begun = self.begin_with(item, fd);
        if !matches!(begun, Ok(Some(_))) {
            saved.give_back(file.as_fd()).doing("given its times")?;
        }
        Ok(begun?.map(|renewal| Open { item, renewal, saved, claim }))
    }

    fn begin_with(&self, item: &Item, fd: OwnedFd) -> Result<Option<Renewal>, Fault> {
        let len = sys::stat_open(&fd).doing("read")?.st_size.cast_unsigned();
        if Node::is_record(len) {
            let mut record = [0; Node::RECORD_LEN];
            sys::read_at(&fd, &mut record, 0).doing("read")?;
            let node = self.tree.keys.open_node(&record).doing("read")?;
            sys::write_at(&fd, &self.tree.keys.current.seal_node(node), 0).doing("written")?;
            self.changed.fetch_add(1, Ordering::Relaxed);
            return Ok(None);
        }
        let renewal = Renewal::begin(&self.tree.keys, fd, len)?;
        let owner = XattrOwner::File(renewal.cipher().id());
        self.xattrs(&item.trail(), &item.dir, &item.raw, renewal.file(), owner)?;
        Ok(Some(renewal))
    }

    /// Files of one segment: each step for all of them, so that one sync serves all.
    fn renew_all(&self, open: Vec<Open<'_>>) -> Result<(), Fault> {
        let mut open = self.each(open, |file| file.renewal.renew(0));
        if open.iter().any(|file| file.renewal.is_touched()) {
            let more = open.iter().any(|file| file.renewal.has_more_groups());
            open = self.each(open, |file| match file.renewal.is_touched() {
                true => file.renewal.write_first_page(),
                false => Ok(()),
            });
            open = self.synced(open)?;
            if more {
                open = self.each(open, |file| file.renewal.write_tag_pages());
                open = self.synced(open)?;
            }
            open = self.each(open, |file| file.renewal.write_blocks());
            open = self.synced(open)?;
            open = self.each(open, |file| file.renewal.forget_older());
            if more {
                open = self.synced(open)?;
            }
        }
        for Open { item, renewal, saved, claim } in open {
            if let Err(fault) = self.end(renewal, &saved) {
                self.trouble(&item.trail(), fault);
            }
            drop(claim);
        }
        Ok(())
    }

    /// Takes a step with each file; one that can't go on is left as it is, to be taken up later.
    fn each<'a>(
        &self,
        files: Vec<Open<'a>>,
        step: impl Fn(&mut Open<'a>) -> Result<(), Fault>,
    ) -> Vec<Open<'a>> {
        let going = files.into_iter().filter_map(|mut file| match step(&mut file) {
            Ok(()) => Some(file),
            Err(fault) => {
                let _ = file.saved.give_back(file.renewal.file());
                self.trouble(&file.item.trail(), fault);
                None
            }
        });
        going.collect()
    }

    /// Makes what was written of these files durable.
    fn synced<'a>(&self, files: Vec<Open<'a>>) -> Result<Vec<Open<'a>>, Fault> {
        let synced = match &files[..] {
            [] => Ok(()),
            [file] => sys::sync_file(file.renewal.file()),
            _ => sys::sync_all(self.kept),
        };
        synced.doing("made durable").inspect_err(|_| {
            for file in &files {
                let _ = file.saved.give_back(file.renewal.file());
            }
        })?;
        Ok(files)
    }

    /// What is damaged of the file is a fault; the rest is done.
    fn end(&self, renewal: Renewal, saved: &Saved) -> Result<(), Fault> {
        let file = renewal.file().try_clone_to_owned().map_err(|_| Errno::MFILE).doing("opened")?;
        if renewal.is_touched() {
            self.changed.fetch_add(1, Ordering::Relaxed);
        }
        let ended = renewal.end();
        saved.give_back(file.as_fd()).doing("given its times")?;
        ended
    }

    /// A file of several segments, each in a turn of its own.
    pub(super) fn large_file(&self, item: &Item) {
        let mut counted = 0;
        if let Err(fault) = self.try_large_file(item, &mut counted) {
            self.trouble(&item.trail(), fault);
        }
        self.count(item.len.saturating_sub(counted));
    }

    fn try_large_file(&self, item: &Item, counted: &mut u64) -> Result<(), Fault> {
        let mut going: Option<Open<'_>> = None;
        for index in 0.. {
            let Some(_turn) = self.turn() else { return Ok(()) };
            let turned = self.with_slip(|slip| match going.take() {
                Some(Open { item, renewal, claim, .. }) => {
                    let stat = sys::stat_open(renewal.file()).doing("read")?;
                    let saved = put_alone(item, &stat, slip)?;
                    self.large_turn(Open { item, renewal, saved, claim }, index)
                }
                None => {
                    let Some(needed) = self.needs(item)? else { return Ok(None) };
                    let saved = put_alone(item, &needed.stat, slip)?;
                    let begun = self.begin(needed, saved)?;
                    begun.map_or(Ok(None), |open| self.large_turn(open, index))
                }
            });
            going = turned?;
            let Some(Open { renewal, .. }) = &going else { return Ok(()) };
            let done = segment(index, renewal.len());
            self.count(done.end - done.start);
            *counted += done.end - done.start;
        }
        Ok(())
    }

    /// One segment, or what comes after the last; `None`: it has come to its end.
    fn large_turn<'a>(&self, mut open: Open<'a>, index: u64) -> Result<Option<Open<'a>>, Fault> {
        let renewal = &mut open.renewal;
        let stepped = if index < renewal.segments() {
            large_step(renewal, index)
        } else if renewal.is_touched() {
            large_end(renewal)
        } else {
            Ok(())
        };
        if index < renewal.segments() || stepped.is_err() {
            let given = open.saved.give_back(open.renewal.file()).doing("given its times");
            return stepped.and(given).map(|()| Some(open));
        }
        self.end(open.renewal, &open.saved).map(|()| None)
    }
}

/// What an entry has to be given back.
fn save(item: &Item, stat: &Stat) -> Result<Saved, Fault> {
    let mut saved = Saved::of(&item.raw, stat);
    let inode = Inode::Named(item.dir.place.fd.as_fd(), &item.raw);
    saved.add_capability(inode).doing("read")?;
    Ok(saved)
}

/// The same, written down.
fn put_alone(item: &Item, stat: &Stat, slip: &Slip) -> Result<Saved, Fault> {
    let mut notes = Notes::default();
    let saved = notes.add(&item.dir.trail, save(item, stat)?);
    slip.put(&notes).doing("written")?;
    Ok(saved)
}

/// One segment of a large file. Its blocks are durable with the next one's tag pages.
fn large_step(renewal: &mut Renewal, index: u64) -> Result<(), Fault> {
    renewal.renew(index)?;
    if !renewal.is_touched() {
        return Ok(());
    }
    if index == 0 {
        renewal.write_first_page()?;
        sys::sync_file(renewal.file()).doing("made durable")?;
    }
    renewal.write_tag_pages()?;
    sys::sync_file(renewal.file()).doing("made durable")?;
    renewal.forget_older()?;
    renewal.write_blocks()
}

fn large_end(renewal: &mut Renewal) -> Result<(), Fault> {
    sys::sync_file(renewal.file()).doing("made durable")?;
    renewal.forget_older()?;
    sys::sync_file(renewal.file()).doing("made durable")
}

//! Re-encryption: all that lies under the previous key is sealed again under the current one, in place.
//!
//! One thread walks the tree and hands out what is in it; workers seal it again. When all that is below a directory is
//! done, its names, its attributes and its record follow. All of it happens in turns ([`crate::turns`]), each short, and
//! between two turns the tree is whole: what is done under the one key, what is not under the other. A name is under one
//! of them, so nothing is there twice. (A crash in a turn leaves little: the names of one symlink that it cut short are
//! two links until the next run.)
//!
//! Imports change the tree between turns, and seal what they make under the current key. So the tree is walked again until a walk
//! finds nothing to do.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use data_path::dir::RECORD_NAME;
use data_path::layout::PAGE;
use data_path::xattr::BACKING_PREFIX;
use data_path::{BackingEntry, DirId, FilesystemKeys, Node, XattrOwner, symlink};

use crate::error::{Doing, Error, Fault, shown};
use crate::filesystem::{LINKS, LOST, ROOT};
use crate::names::{NameWalk, Names};
use crate::renewal::Renewal;
use crate::report::{Control, Problem, ProblemKind, Report, Tally, lock};
use crate::saved::{Notes, SLIP, Saved, Slip};
use crate::sealed::SealedTree;
use crate::side::{Place, Source, segment, segments};
use crate::stage::{InodeId, make_or_open, remove_tree};
use crate::sys::{self, Errno, FileType, Inode, Stat, Xattr};
use crate::trail::Trail;
use crate::turns::Turns;
use crate::work::{Ended, Queue, watch, workers};

/// A batch is handed out when it has this many entries, or this many bytes of content and paths.
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: u64 = 4 << 20;
/// So many names are dealt with in one turn.
const NAMES_EACH_TURN: usize = 512;
/// Holds what this keeps over a stop, among the things in the making.
pub(crate) const KEPT: &[u8] = b"rekey";

/// Seals again all that lies under the previous key.
pub(crate) fn rekey(
    tree: &SealedTree,
    backing: &OwnedFd,
    turns: &Turns,
    control: &dyn Control,
) -> Result<Report, Error> {
    let tally = Tally::default();
    let Some(previous) = &tree.keys.previous else {
        return Ok(tally.report(false, None));
    };
    let kept = make_or_open(tree.stage.resume(), KEPT).doing("prepared");
    let kept = kept.map_err(|fault| fault.at(b"what is in the making"))?;
    let mut first = true;
    let (ended, problems) = loop {
        let pass = Pass {
            tree,
            previous,
            backing,
            kept: &kept,
            turns,
            control,
            tally: first.then_some(&tally),
            queue: Queue::default(),
            slips: Mutex::default(),
            claimed: Mutex::default(),
            links: Mutex::default(),
            changed: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            problems: Mutex::default(),
            failure: Mutex::default(),
        };
        let ended = pass.run()?;
        first = false;
        if !ended || pass.changed.load(Ordering::Relaxed) == 0 {
            let problems = pass.problems.into_inner();
            break (ended, problems.unwrap_or_else(PoisonError::into_inner));
        }
    };
    if ended && problems.is_empty() {
        let removed = remove_tree(tree.stage.resume(), KEPT).doing("tidied up");
        removed.map_err(|fault| fault.at(b"what is in the making"))?;
    }
    for (problem, costs) in problems {
        if costs {
            tally.problem(problem, control);
        } else {
            tally.blemish(problem, control);
        }
    }
    sys::sync_all(backing).doing("made durable").map_err(|fault| fault.at(ROOT))?;
    control.progress(&tally.progress());
    Ok(tally.report(!ended, None))
}

/// One walk over the tree.
struct Pass<'a> {
    tree: &'a SealedTree,
    previous: &'a FilesystemKeys,
    backing: &'a OwnedFd,
    kept: &'a OwnedFd,
    turns: &'a Turns,
    control: &'a dyn Control,
    /// Of the first one: what is told of how far it is.
    tally: Option<&'a Tally>,
    queue: Queue<Vec<Item>>,
    /// Those that no thread uses now.
    slips: Mutex<Slips>,
    /// Inodes that a worker has in its hands.
    claimed: Mutex<HashSet<InodeId>>,
    /// Held by whoever puts new links in the place of old ones.
    links: Mutex<()>,
    /// What was sealed again, or was not where it had been.
    changed: AtomicU64,
    stopped: AtomicBool,
    /// And whether something is lost.
    problems: Mutex<Vec<(Problem, bool)>>,
    /// What ends it early.
    failure: Mutex<Option<Error>>,
}

#[derive(Default)]
struct Slips {
    idle: Vec<Slip>,
    made: usize,
}

/// A directory; its own turn comes when nothing uses it any more.
struct Dir {
    place: Place<DirId>,
    trail: Arc<Trail>,
    /// Bytes of its raw path, which can be long.
    path_len: u64,
    above: Option<Arc<Self>>,
    /// The walk, batches, and directories in it.
    users: AtomicUsize,
}

/// An entry that is no directory, and one use of the directory that it is in.
struct Item {
    dir: Arc<Dir>,
    raw: Vec<u8>,
    name: Vec<u8>,
    len: u64,
}

impl Item {
    fn trail(&self) -> Trail {
        self.dir.trail.entry(&self.raw, &self.name)
    }
}

/// Items that are handed out together, of several directories, so that one sync serves many.
#[derive(Default)]
struct Batch {
    items: Vec<Item>,
    bytes: u64,
}

struct Level {
    dir: Arc<Dir>,
    names: NameWalk,
}

/// An entry of which something lies under the previous key.
struct Needed<'a> {
    item: &'a Item,
    stat: Stat,
    claim: Claim<'a>,
}

/// A file that is open to be renewed.
struct Open<'a> {
    item: &'a Item,
    renewal: Renewal,
    saved: Saved,
    claim: Claim<'a>,
}

/// An inode that no other worker touches.
struct Claim<'a> {
    claimed: &'a Mutex<HashSet<InodeId>>,
    inode: InodeId,
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        lock(self.claimed).remove(&self.inode);
    }
}

impl Pass<'_> {
    fn count(&self, bytes: u64) {
        if let Some(tally) = self.tally {
            tally.bytes_done.fetch_add(bytes, Ordering::Relaxed);
        }
    }

    /// `false`: it was asked to stop.
    fn run(&self) -> Result<bool, Error> {
        let ended = Ended::default();
        let walked = std::thread::scope(|scope| {
            for _ in 0..workers() {
                scope.spawn(|| self.work());
            }
            if let Some(tally) = self.tally {
                scope.spawn(|| watch(self.tree, tally, self.control, &ended));
            }
            let walked = self.prepare().and_then(|()| self.walk());
            self.queue.drain();
            self.queue.close();
            ended.set();
            walked
        });
        if let Some(error) = lock(&self.failure).take() {
            return Err(error);
        }
        walked.map_err(|fault| fault.at(ROOT))?;
        let ended = !self.stopped.load(Ordering::Relaxed);
        if ended {
            self.check_lost()?;
            self.clear_links()?;
        }
        Ok(ended)
    }

    /// What a stopped import kept goes on under the key that it began with: it begins anew.
    fn prepare(&self) -> Result<(), Fault> {
        let Some(_turn) = self.turn() else { return Ok(()) };
        self.tree.stage.forget_unless(|dir, name| self.is_current(dir, name)).doing("tidied up")
    }

    /// Whether nothing of this entry, whatever it is, lies under the previous key.
    fn is_current(&self, dir: &OwnedFd, name: &[u8]) -> sys::Result<bool> {
        let current = &self.tree.keys.current;
        let stat = sys::stat(dir, name)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                let file = sys::open_file(dir, name)?;
                let mut page = vec![0; PAGE];
                let got = sys::read_at(&file, &mut page, 0)?;
                let len = stat.st_size.cast_unsigned();
                if Node::is_record(len) {
                    return Ok(current.open_node(&page[..got]).is_ok());
                }
                Ok(current.open_file(&page[..got], len).is_ok())
            }
            FileType::Symlink => Ok(self.link_is_current(&sys::read_link(dir, name)?)),
            _ => Ok(false),
        }
    }

    fn link_is_current(&self, text: &[u8]) -> bool {
        let record = symlink::target_record(text)
            .and_then(|name| SealedTree::small_file(&self.tree.links, name.as_bytes()).ok()?);
        self.tree.keys.current.open_target(text, record.as_deref()).is_ok()
    }

    fn walk(&self) -> Result<(), Fault> {
        let trail = Trail::root(ROOT);
        let mut stack = vec![self.level(self.tree.open_root()?, trail, None)?];
        let (mut batch, mut linked) = (Batch::default(), Vec::new());
        while let Some(top) = stack.last_mut() {
            if self.is_over() {
                return Ok(());
            }
            if let Some(raw) = top.names.get().map(<[u8]>::to_vec) {
                let below = self.step(top, raw, &mut batch, &mut linked);
                stack.extend(below);
            } else {
                let dir = Arc::clone(&top.dir);
                stack.pop();
                self.release(dir);
            }
        }
        self.flush(&mut batch);
        self.queue.drain();
        linked.sort_by_key(|(inode, _)| *inode);
        for names in linked.chunk_by(|(one, _), (other, _)| one == other) {
            if let Some(_turn) = self.turn() {
                names.iter().for_each(|(_, item)| self.link(item));
            }
        }
        linked.into_iter().for_each(|(_, item)| self.release(item.dir));
        Ok(())
    }

    fn level(
        &self,
        place: Place<DirId>,
        trail: Arc<Trail>,
        above: Option<Arc<Dir>>,
    ) -> Result<Level, Fault> {
        let names = NameWalk::start(&place.fd, is_entry).doing("read")?;
        if let Some(above) = &above {
            above.users.fetch_add(1, Ordering::Relaxed);
        }
        let above_len = above.as_ref().map_or(0, |above| above.path_len);
        let path_len = above_len + trail.raw_name().len() as u64 + 1;
        let dir = Arc::new(Dir { place, trail, path_len, above, users: AtomicUsize::new(1) });
        Ok(Level { dir, names })
    }

    /// Deals with an entry; answers the level below if it is a directory.
    fn step(
        &self,
        top: &mut Level,
        raw: Vec<u8>,
        batch: &mut Batch,
        linked: &mut Vec<(InodeId, Item)>,
    ) -> Option<Level> {
        let dir = Arc::clone(&top.dir);
        if let Err(fault) = top.names.advance(&dir.place.fd, is_entry).doing("read") {
            self.trouble(&dir.trail, fault);
        }
        let stat = match sys::stat(&dir.place.fd, &raw) {
            Ok(stat) => stat,
            Err(errno) => {
                self.gone_or(&dir.trail.entry(&raw, b""), errno);
                return None;
            }
        };
        let name = match self.tree.plain_name(&dir.place, &raw) {
            Ok(name) => name,
            Err(fault) => {
                self.trouble(&dir.trail.entry(&raw, b"(a name that can't be read)"), fault);
                return None;
            }
        };
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let trail = Arc::new(dir.trail.entry(&raw, &name));
            let entered = self.tree.enter(&dir.place, &raw);
            let entered =
                entered.and_then(|place| self.level(place, Arc::clone(&trail), Some(dir)));
            return entered.map_err(|fault| self.trouble(&trail, fault)).ok();
        }
        let len = self.tree.estimate(&stat);
        dir.users.fetch_add(1, Ordering::Relaxed);
        if is_link(&stat) && stat.st_nlink > 1 {
            // In one turn with its other names.
            linked.push(((stat.st_dev, stat.st_ino), Item { dir, raw, name, len }));
            return None;
        }
        if segments(len) > 1 {
            self.queue.put(vec![Item { dir, raw, name, len }]);
            return None;
        }
        // It is written down in hex.
        batch.bytes += len + 2 * dir.path_len;
        batch.items.push(Item { dir, raw, name, len });
        if batch.items.len() == BATCH_ENTRIES || batch.bytes >= BATCH_BYTES {
            self.flush(batch);
        }
        None
    }

    fn flush(&self, batch: &mut Batch) {
        let Batch { items, .. } = std::mem::take(batch);
        if !items.is_empty() {
            self.queue.put(items);
        }
    }

    fn work(&self) {
        while let Some(items) = self.queue.take() {
            if !self.is_over() {
                match &items[..] {
                    [large] if segments(large.len) > 1 => self.large_file(large),
                    _ => self.batch(&items),
                }
                if let Some(tally) = self.tally {
                    tally.files_done.fetch_add(items.len() as u64, Ordering::Relaxed);
                }
            }
            items.into_iter().for_each(|item| self.release(item.dir));
            self.queue.done();
        }
    }

    /// Ends one use of a directory; after the last one it has its own turn.
    fn release(&self, dir: Arc<Dir>) {
        let mut next = Some(dir);
        while let Some(dir) = next {
            if dir.users.fetch_sub(1, Ordering::AcqRel) != 1 {
                return;
            }
            if !self.is_over() {
                if let Err(fault) = self.directory(&dir) {
                    self.trouble(&dir.trail, fault);
                }
                if let Some(tally) = self.tally {
                    tally.files_done.fetch_add(1, Ordering::Relaxed);
                }
            }
            next = dir.above.clone();
        }
    }

    /// Whether it has come to its end: asked to, or because going on is pointless.
    fn is_over(&self) -> bool {
        if self.control.stop_requested() {
            self.stopped.store(true, Ordering::Relaxed);
        }
        self.stopped.load(Ordering::Relaxed) || lock(&self.failure).is_some()
    }

    fn turn(&self) -> Option<crate::turns::Turn<'_>> {
        self.turns.turn(|| self.is_over())
    }

    /// Lends a slip for a turn, which writes down in it what it is about to change.
    fn with_slip<T>(&self, act: impl FnOnce(&Slip) -> Result<T, Fault>) -> Result<T, Fault> {
        let idle = lock(&self.slips).idle.pop();
        let slip = match idle {
            Some(slip) => slip,
            None => {
                let mut slips = lock(&self.slips);
                let name = [SLIP, slips.made.to_string().as_bytes()].concat();
                slips.made += 1;
                Slip::open(self.kept, &name).doing("written")?
            }
        };
        let result = act(&slip);
        let cleared = slip.clear().doing("written");
        lock(&self.slips).idle.push(slip);
        result.and_then(|value| cleared.map(|()| value))
    }

    /// Files of one segment, records of nodes, and links.
    fn batch(&self, items: &[Item]) {
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
    fn needs<'a>(&'a self, item: &'a Item) -> Result<Option<Needed<'a>>, Fault> {
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
    fn large_file(&self, item: &Item) {
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

/// Attributes, links, directories.
impl Pass<'_> {
    /// Seals the attributes of an inode again: that of the entry `raw` in `dir`, or of `dir` itself (`.`).
    fn xattrs(
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
    fn link(&self, item: &Item) {
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
    fn directory(&self, dir: &Dir) -> Result<(), Fault> {
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
                    self.tree.write_record(&dir.place)?;
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

/// What lies outside the tree, and what goes wrong.
impl Pass<'_> {
    /// What a repair set aside has no place any more, so that nobody can tell what it was bound to.
    fn check_lost(&self) -> Result<(), Error> {
        let check = || -> Result<(), Fault> {
            let lost = match sys::open_dir(self.backing, LOST) {
                Err(Errno::NOENT) => return Ok(()),
                other => other.doing("opened")?,
            };
            // Notes are in the open, a name's side file goes with its entry.
            let is_thing = |name: &[u8]| !name.contains(&b'.');
            for name in Names::read(&lost, is_thing).doing("read")?.iter() {
                if !self.is_current(&lost, name).doing("read")? {
                    let at = Trail::root(LOST).entry(name, b"");
                    let why = "it was set aside by a repair, and may lie under the previous key; look \
                        through it, then remove it";
                    self.problem(&at, ProblemKind::Damaged, why.to_owned(), false);
                }
            }
            Ok(())
        };
        check().map_err(|fault| fault.at(LOST))
    }

    /// Targets of links that are gone: a crash left them, when nothing of the tree lies under the previous key any more.
    fn clear_links(&self) -> Result<(), Error> {
        if self.changed.load(Ordering::Relaxed) > 0 || !lock(&self.problems).is_empty() {
            return Ok(());
        }
        let Some(_turn) = self.turn() else { return Ok(()) };
        let clear = || -> Result<(), Fault> {
            let links = sys::open_dir(&self.tree.links, b".").doing("read")?;
            for name in Names::read(&links, |_| true).doing("read")?.iter() {
                let record = SealedTree::small_file(&links, name)?;
                if self.previous.open_target(name, record.as_deref()).is_ok() {
                    sys::unlink(&links, name).doing("tidied up")?;
                }
            }
            Ok(())
        };
        clear().map_err(|fault| fault.at(LINKS))
    }

    /// An entry that is not where it was met was removed or renamed by an import; the next walk sees.
    fn gone_or(&self, at: &Trail, errno: Errno) {
        if errno == Errno::NOENT {
            self.changed.fetch_add(1, Ordering::Relaxed);
        } else {
            self.trouble(at, Fault::System { doing: "read", errno });
        }
    }

    fn trouble(&self, at: &Trail, fault: Fault) {
        if fault.is_final() {
            lock(&self.failure).get_or_insert(fault.at(&at.plain()));
        } else {
            let problem = fault.problem(&at.plain(), Some(&at.raw()));
            lock(&self.problems).push((problem, true));
        }
    }

    fn problem(&self, at: &Trail, kind: ProblemKind, reason: String, costs: bool) {
        let problem = Problem::new(&at.plain(), Some(&at.raw()), kind, reason);
        lock(&self.problems).push((problem, costs));
    }
}

fn is_link(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Symlink
}

fn is_entry(raw: &[u8]) -> bool {
    matches!(BackingEntry::classify(raw), BackingEntry::Short | BackingEntry::Long { .. })
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
fn sealed_xattrs(of: Inode<'_>) -> Result<Vec<Xattr>, Fault> {
    let all = sys::xattrs(of).doing("read (its attributes)")?;
    Ok(all.into_iter().filter(|(name, _)| name.starts_with(BACKING_PREFIX.as_bytes())).collect())
}

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

mod entries;
mod files;

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use data_path::layout::PAGE;
use data_path::{BackingEntry, DirId, FilesystemKeys, Node, symlink};

use crate::error::{Doing, Error, Fault};
use crate::filesystem::{LINKS, LOST, ROOT};
use crate::names::{NameWalk, Names};
use crate::renewal::Renewal;
use crate::report::{Control, Problem, ProblemKind, Report, Tally, lock};
use crate::saved::{SLIP, Saved, Slip};
use crate::sealed::SealedTree;
use crate::side::{Place, Source as _, segments};
use crate::stage::{InodeId, make_or_open, remove_tree};
use crate::sys::{self, Errno, FileType, Stat};
use crate::trail::Trail;
use crate::turns::Turns;
use crate::work::{Ended, Queue, watch, workers};

/// A batch is handed out when it has this many entries, or this many bytes of content and paths.
const BATCH_ENTRIES: usize = 128;
const BATCH_BYTES: u64 = 4 << 20;
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

    fn count_entries(&self, number: usize) {
        if let Some(tally) = self.tally {
            tally.files_done.fetch_add(number as u64, Ordering::Relaxed);
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
                self.count_entries(names.len());
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
                self.count_entries(items.len());
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
                self.count_entries(1);
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

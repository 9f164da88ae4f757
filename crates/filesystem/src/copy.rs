//! The engine of import and export: walks a [`Source`], copies to a [`Sink`], in parallel, and can
//! be stopped and taken up again.
//!
//! One thread walks, in the order of raw names, and hands out work; as many workers as there are
//! processors take it: a batch of small files, or one segment of a large one. The walker also
//! takes *checkpoints*: it lets the workers finish what they have, notes where it is, and goes on
//! while another thread makes everything so far durable and then gives the checkpoint to the
//! [`Control`]. No file is synced by itself. A directory gets its mode and times when the last of
//! its entries is done.

use std::collections::VecDeque;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error, Fault, shown};
use crate::names::Names;
use crate::report::{
    Checkpoint, Control, Identity, Partial, Problem, ProblemKind, Report, Tally, lock,
};
use crate::side::{Buffers, Owner, Place, Sink, Source, segment, segments};
use crate::stage::{Anchors, Stage, anchor_name};
use crate::sys::{self, Errno, FileType, Stat};
use crate::work::{Ended, Queue, watch, workers};

/// A batch is handed out when it has this many entries, or this many bytes.
const BATCH_ENTRIES: usize = 32;
const BATCH_BYTES: u64 = 1 << 20;
/// Time between checkpoints: the most work that a crash can cost.
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

/// Copies all of `source` to `sink`, from `resume` on when a former run was stopped.
///
/// What is wrong with one entry is a problem in the report; an error means that nothing more can
/// be done (the disk is full), and the last checkpoint given to `control` says where to go on.
pub(crate) fn copy<S: Source, K: Sink>(
    source: &S,
    sink: &K,
    stage: &Stage,
    resume: Option<Checkpoint>,
    control: &dyn Control,
) -> Result<Report, Error> {
    let prepare = || -> Result<(Anchors, u64), Fault> {
        let Some(checkpoint) = &resume else {
            stage.forget().doing("prepared")?;
            return Ok((Anchors::default(), 0));
        };
        let keep = checkpoint.partial.as_ref().map(|partial| partial.staged.as_bytes());
        stage.drop_large(keep).doing("prepared")?;
        let anchors = Anchors::resume(stage, checkpoint.epoch).doing("prepared")?;
        Ok((anchors, checkpoint.epoch + 1))
    };
    let (anchors, epoch) = prepare().map_err(|fault| fault.at(b"what is in the making"))?;
    let copy = Copy {
        source,
        sink,
        stage,
        control,
        tally: Tally::resumed(resume.as_ref()),
        anchors,
        epoch: AtomicU64::new(epoch),
        queue: Queue::default(),
        failure: Mutex::new(None),
    };
    copy.run(resume)
}

struct Copy<'a, S: Source, K: Sink> {
    source: &'a S,
    sink: &'a K,
    stage: &'a Stage,
    control: &'a dyn Control,
    tally: Tally,
    anchors: Anchors,
    epoch: AtomicU64,
    queue: Queue<Job<S, K>>,
    /// What ended the job early.
    failure: Mutex<Option<Error>>,
}

/// A directory on both sides. Finished by whoever is the last to be done with it.
struct Pair<S: Source, K: Sink> {
    from: Place<S::Dir>,
    to: Place<K::Dir>,
    /// As it was before its entries were read, which changes its access time.
    stat: Stat,
    /// The path of raw names, and that of plain ones.
    raw: Vec<u8>,
    plain: Vec<u8>,
    /// The walker, and each job on its entries.
    users: AtomicUsize,
}

enum Job<S: Source, K: Sink> {
    Batch(Arc<Pair<S, K>>, Vec<Item>),
    Segment(Arc<Large<S, K>>, u64),
}

/// An entry that is no directory.
struct Item {
    raw: Vec<u8>,
    stat: Stat,
}

/// A file of more than one segment.
struct Large<S: Source, K: Sink> {
    pair: Arc<Pair<S, K>>,
    item: Item,
    from: S::File,
    to: K::File,
    /// Its name among the things that are kept over a stop.
    staged: Vec<u8>,
    segments_left: AtomicU64,
    failed: AtomicBool,
}

impl<S: Source, K: Sink> Copy<'_, S, K> {
    fn run(&self, resume: Option<Checkpoint>) -> Result<Report, Error> {
        let ended = Ended::default();
        let checkpoint = std::thread::scope(|scope| {
            for _ in 0..workers() {
                scope.spawn(|| self.work());
            }
            scope.spawn(|| watch(self.source, &self.tally, self.control, &ended));
            let walked = Walker::new(self, scope).walk(resume);
            self.queue.close();
            ended.set();
            walked
        });
        if let Some(error) = lock(&self.failure).take() {
            // Room for the next try; what is in the tree is whole. Anchors take no room.
            let _ = self.stage.drop_large(None);
            return Err(error);
        }
        let checkpoint = checkpoint?;
        self.control.progress(&self.tally.progress());
        Ok(self.tally.report(checkpoint.is_some(), checkpoint))
    }

    fn work(&self) {
        let mut buffers = Buffers::default();
        while let Some(job) = self.queue.take() {
            let going = lock(&self.failure).is_none();
            match job {
                Job::Batch(pair, items) => {
                    for item in &items {
                        if going {
                            self.entry(&pair, item, &mut buffers);
                        }
                    }
                    self.release(&pair);
                }
                Job::Segment(large, index) => {
                    if going && !large.failed.load(Ordering::Relaxed) {
                        self.segment(&large, index, &mut buffers);
                    }
                    if large.segments_left.fetch_sub(1, Ordering::AcqRel) == 1 {
                        self.end_large(&large);
                    }
                }
            }
            self.queue.done();
        }
    }

    /// Notes what went wrong with the entry `raw` in `pair`.
    fn trouble(&self, pair: &Pair<S, K>, raw: &[u8], fault: Fault) {
        let plain = self.source.plain_name(&pair.from, raw);
        let plain = join(&pair.plain, plain.as_deref().unwrap_or(b"(a name that can't be read)"));
        self.trouble_at(&plain, &join(&pair.raw, raw), fault);
    }

    fn trouble_at(&self, plain: &[u8], raw: &[u8], fault: Fault) {
        if fault.is_final() {
            lock(&self.failure).get_or_insert(fault.at(plain));
        } else {
            self.tally.problem(fault.problem(plain, S::SEALED.then_some(raw)), self.control);
        }
    }

    fn lost_attribute(&self, plain: &[u8], what: &[u8], fault: &Fault) {
        let reason = format!("its attribute {} is lost: {fault}", shown(what));
        self.tally.problem(Problem::new(plain, None, ProblemKind::Attribute, reason), self.control);
    }

    /// Copies an entry that is no directory and no large file.
    fn entry(&self, pair: &Pair<S, K>, item: &Item, buffers: &mut Buffers) {
        let inode = (item.stat.st_nlink > 1).then_some((item.stat.st_dev, item.stat.st_ino));
        let anchor = inode.and_then(|inode| self.anchors.claim(inode));
        let result = match &anchor {
            Some(anchor) => self.link(pair, item, anchor),
            None => self.content(pair, item, buffers),
        };
        if let (Some(inode), None) = (inode, &anchor) {
            let epoch = self.epoch.load(Ordering::Relaxed);
            self.anchors.settle(inode, result.is_ok().then_some(epoch));
        }
        if let Err(fault) = result {
            self.trouble(pair, &item.raw, fault);
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
    }

    fn content(&self, pair: &Pair<S, K>, item: &Item, buffers: &mut Buffers) -> Result<(), Fault> {
        let name = self.source.plain_name(&pair.from, &item.raw)?;
        let staged = self.stage.fresh();
        let made = match FileType::from_raw_mode(item.stat.st_mode) {
            FileType::RegularFile => self.small_file(pair, item, &name, &staged, buffers),
            FileType::Socket => {
                let (plain, raw) = (join(&pair.plain, &name), join(&pair.raw, &item.raw));
                let reason = "it is a socket, which means nothing without its process";
                let ciphertext = S::SEALED.then_some(raw.as_slice());
                let problem = Problem::new(&plain, ciphertext, ProblemKind::Skipped, reason);
                self.tally.problem(problem, self.control);
                return Ok(());
            }
            kind => self.link_or_node(pair, item, kind, &name, &staged),
        };
        made.and_then(|()| self.publish(pair, item, self.stage.tmp(), &name, &staged)).inspect_err(
            |_| {
                // It may not even have been made.
                let _ = sys::unlink(self.stage.tmp(), &staged);
            },
        )
    }

    fn small_file(
        &self,
        pair: &Pair<S, K>,
        item: &Item,
        name: &[u8],
        staged: &[u8],
        buffers: &mut Buffers,
    ) -> Result<(), Fault> {
        let from = self.source.open(&pair.from, &item.raw, &item.stat)?;
        let len = self.source.len(&from);
        let file = self.stage.create(self.stage.tmp(), staged, &item.stat).doing("written")?;
        let to = self.sink.begin(file, len)?;
        for index in 0..segments(len) {
            let data = self.source.read(&from, index, buffers)?;
            self.sink.write(&to, index, &data, buffers)?;
            self.tally.bytes_done.fetch_add(buffers.plain.len() as u64, Ordering::Relaxed);
        }
        self.source.confirm(&from)?;
        self.sink.end(&to)?;
        self.dress_file(&pair.plain, name, &item.stat, &from, &to)
    }

    fn link_or_node(
        &self,
        pair: &Pair<S, K>,
        item: &Item,
        kind: FileType,
        name: &[u8],
        staged: &[u8],
    ) -> Result<(), Fault> {
        let tmp = self.stage.tmp();
        if kind == FileType::Symlink {
            let target = self.source.target(&pair.from, &item.raw)?;
            let target = self.sink.raw_target(&pair.to, &target)?;
            sys::make_link(tmp, staged, &target).doing("written")?;
        } else {
            sys::make_node(tmp, staged, &item.stat).doing("made (a device needs root)")?;
        }
        if sys::is_root() && self.stage.needs_owner(&item.stat) {
            sys::set_owner_at(tmp, staged, &item.stat).doing("given its owner")?;
        }
        if kind != FileType::Symlink {
            sys::set_mode_at(tmp, staged, sys::permissions(&item.stat)).doing("given its mode")?;
        }
        let from = Owner::Named(pair.from.fd.as_fd(), &item.raw);
        self.dress(&join(&pair.plain, name), &from, &Owner::Named(tmp.as_fd(), staged))?;
        sys::set_times_at(tmp, staged, &item.stat).doing("given its times")
    }

    /// Gives a file all but its name.
    fn dress_file(
        &self,
        dir: &[u8],
        name: &[u8],
        stat: &Stat,
        from: &S::File,
        to: &K::File,
    ) -> Result<(), Fault> {
        // In this order: a change of owner clears the set-id bits and capabilities.
        let needs_owner = sys::is_root() && self.stage.needs_owner(stat);
        if needs_owner {
            sys::set_owner(to, stat).doing("given its owner")?;
        }
        if needs_owner || self.stage.needs_mode(stat) {
            sys::set_mode(to, sys::permissions(stat)).doing("given its mode")?;
        }
        let path = || join(dir, name);
        self.dress_with(path, &Owner::File(from), &Owner::File(to))?;
        sys::set_times(to, stat).doing("given its times")
    }

    fn dress(&self, path: &[u8], from: &Owner<'_, S>, to: &Owner<'_, K>) -> Result<(), Fault> {
        self.dress_with(|| path.to_vec(), from, to)
    }

    /// Copies extended attributes, ACLs among them. One that can't be opened or set is a problem,
    /// not the end of the file.
    fn dress_with(
        &self,
        path: impl Fn() -> Vec<u8>,
        from: &Owner<'_, S>,
        to: &Owner<'_, K>,
    ) -> Result<(), Fault> {
        for raw in sys::xattrs(from.inode()).doing("read (its attributes)")? {
            let raw_name = raw.0.clone();
            let plain = match self.source.plain_xattr(from, raw) {
                Ok(plain) => plain,
                Err(fault) => {
                    self.lost_attribute(&path(), &raw_name, &fault);
                    continue;
                }
            };
            let Some(plain) = plain else { continue };
            let name = plain.0.clone();
            let set = self.sink.raw_xattr(to, plain).and_then(|(name, value)| {
                sys::set_xattr(to.inode(), &name, &value).doing("written")
            });
            match set {
                Err(fault) if fault.is_final() && !attribute_too_large(&fault) => {
                    return Err(fault);
                }
                Err(fault) => self.lost_attribute(&path(), &name, &fault),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Gives what was staged its name; it replaces what had the name before.
    fn publish(
        &self,
        pair: &Pair<S, K>,
        item: &Item,
        dir: &OwnedFd,
        name: &[u8],
        staged: &[u8],
    ) -> Result<(), Fault> {
        let raw = self.sink.raw_name(&pair.to, name)?;
        if item.stat.st_nlink > 1 {
            let inode = (item.stat.st_dev, item.stat.st_ino);
            let anchor = anchor_name(inode, self.epoch.load(Ordering::Relaxed));
            sys::hard_link(dir, staged, self.stage.kept(), &anchor).doing("linked")?;
        }
        put_in_place(dir, staged, &pair.to.fd, &raw)
    }

    /// Gives an inode that was copied before another name.
    fn link(&self, pair: &Pair<S, K>, item: &Item, anchor: &[u8]) -> Result<(), Fault> {
        let name = self.source.plain_name(&pair.from, &item.raw)?;
        let raw = self.sink.raw_name(&pair.to, &name)?;
        if FileType::from_raw_mode(item.stat.st_mode) == FileType::RegularFile {
            let len = self.source.estimate(&item.stat);
            self.tally.bytes_done.fetch_add(len, Ordering::Relaxed);
        }
        match sys::hard_link(self.stage.kept(), anchor, &pair.to.fd, &raw) {
            Err(Errno::EXIST) => {
                let (tmp, staged) = (self.stage.tmp(), self.stage.fresh());
                sys::hard_link(self.stage.kept(), anchor, tmp, &staged).doing("linked")?;
                let placed = put_in_place(tmp, &staged, &pair.to.fd, &raw);
                // rename(2) leaves both names when they are the same file's already.
                match sys::unlink(tmp, &staged) {
                    Ok(()) | Err(Errno::NOENT) => placed,
                    Err(errno) => placed.and(Err(errno).doing("linked")),
                }
            }
            other => other.doing("linked"),
        }
    }

    fn segment(&self, large: &Large<S, K>, index: u64, buffers: &mut Buffers) {
        let copied = self
            .source
            .read(&large.from, index, buffers)
            .and_then(|data| self.sink.write(&large.to, index, &data, buffers));
        match copied {
            Ok(()) => {
                self.tally.bytes_done.fetch_add(buffers.plain.len() as u64, Ordering::Relaxed);
            }
            Err(fault) => {
                // One report for each file, however many of its segments fail.
                if !large.failed.swap(true, Ordering::Relaxed) {
                    self.trouble(&large.pair, &large.item.raw, fault);
                }
            }
        }
    }

    fn end_large(&self, large: &Large<S, K>) {
        let (pair, item) = (&*large.pair, &large.item);
        let stopped = large.failed.load(Ordering::Relaxed) || lock(&self.failure).is_some();
        let done = !stopped && {
            let end = || {
                self.source.confirm(&large.from)?;
                self.sink.end(&large.to)?;
                let name = self.source.plain_name(&pair.from, &item.raw)?;
                self.dress_file(&pair.plain, &name, &item.stat, &large.from, &large.to)?;
                self.publish(pair, item, self.stage.kept(), &name, &large.staged)
            };
            end().map_err(|fault| self.trouble(pair, &item.raw, fault)).is_ok()
        };
        if !done {
            let _ = sys::unlink(self.stage.kept(), &large.staged);
        }
        if item.stat.st_nlink > 1 {
            let epoch = self.epoch.load(Ordering::Relaxed);
            let inode = (item.stat.st_dev, item.stat.st_ino);
            self.anchors.settle(inode, done.then_some(epoch));
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
        self.release(pair);
    }

    /// Ends one use of a directory; after the last it gets its attributes and times.
    fn release(&self, pair: &Pair<S, K>) {
        if pair.users.fetch_sub(1, Ordering::AcqRel) != 1 || lock(&self.failure).is_some() {
            return;
        }
        let finish = || {
            if sys::is_root() {
                sys::set_owner(&pair.to.fd, &pair.stat).doing("given its owner")?;
            }
            sys::set_mode(&pair.to.fd, sys::permissions(&pair.stat)).doing("given its mode")?;
            self.dress(&pair.plain, &Owner::Directory(&pair.from), &Owner::Directory(&pair.to))?;
            sys::set_times(&pair.to.fd, &pair.stat).doing("given its times")
        };
        if let Err(fault) = finish() {
            self.trouble_at(&pair.plain, &pair.raw, fault);
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
    }
}

/// Filesystems answer NOSPC also when one inode's attributes are full, which is no full disk.
const fn attribute_too_large(fault: &Fault) -> bool {
    matches!(fault, Fault::System { errno: Errno::NOSPC, .. })
}

fn put_in_place(from: &OwnedFd, staged: &[u8], dir: &OwnedFd, raw: &[u8]) -> Result<(), Fault> {
    match sys::rename(from, staged, dir, raw) {
        Err(Errno::ISDIR) => Err(Fault::Conflict("a directory has its name")),
        other => other.doing("given its name"),
    }
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

/// The thread that walks.
struct Walker<'c, 'scope, 'env, S: Source, K: Sink> {
    copy: &'c Copy<'env, S, K>,
    scope: &'scope Scope<'scope, 'env>,
    stack: Vec<Level<S, K>>,
    batch: Vec<Item>,
    batch_bytes: u64,
    saved: Instant,
    saving: Option<ScopedJoinHandle<'scope, Result<(), Error>>>,
}

/// One directory on the way down to where the walker is.
struct Level<S: Source, K: Sink> {
    pair: Arc<Pair<S, K>>,
    names: Names,
    next: usize,
}

/// Why the walk did not go to the end.
enum Halt {
    Stop(Option<Partial>),
    /// The failure is noted already.
    Failure,
}

impl<'c, 'scope, 'env, S: Source, K: Sink> Walker<'c, 'scope, 'env, S, K>
where
    'c: 'scope,
{
    fn new(copy: &'c Copy<'env, S, K>, scope: &'scope Scope<'scope, 'env>) -> Self {
        let (stack, batch) = (Vec::new(), Vec::new());
        Self { copy, scope, stack, batch, batch_bytes: 0, saved: Instant::now(), saving: None }
    }

    /// Walks to the end, or to where it is stopped; the checkpoint says where.
    fn walk(mut self, resume: Option<Checkpoint>) -> Result<Option<Checkpoint>, Error> {
        let (mut skip, mut partial) = (VecDeque::new(), None);
        if let Some(checkpoint) = resume {
            for name in checkpoint.next {
                skip.push_back(hex::decode(&name).map_err(|_| bad_checkpoint())?);
            }
            partial = checkpoint.partial;
        }
        let root = self.copy.source.root().and_then(|from| {
            let stat = sys::stat_open(&from.fd).doing("read")?;
            Ok((from, self.copy.sink.root()?, stat))
        });
        let (from, to, stat) = root.map_err(|fault| fault.at(b"the tree's root"))?;
        let entered = self.descend(from, to, stat, (S::ROOT.to_vec(), Vec::new()), &mut skip);
        entered.map_err(|fault| fault.at(b"the tree's root"))?;
        let halt = loop {
            match self.step(&mut skip, &mut partial) {
                Ok(true) => {}
                Ok(false) => break None,
                Err(halt) => break Some(halt),
            }
        };
        self.flush();
        self.copy.queue.drain();
        if let Some(saving) = self.saving.take() {
            saving.join().unwrap_or(Ok(()))?;
        }
        match halt {
            Some(Halt::Failure) => Ok(None),
            Some(Halt::Stop(partial)) => {
                let checkpoint = self.checkpoint(partial);
                save(self.copy, &checkpoint)?;
                Ok(Some(checkpoint))
            }
            None => {
                if lock(&self.copy.failure).is_none() {
                    let stage = self.copy.stage;
                    let sync = sys::sync_all(stage.tmp()).doing("made durable");
                    sync.and_then(|()| stage.forget().doing("tidied up"))
                        .map_err(|fault| fault.at(b"the tree"))?;
                }
                Ok(None)
            }
        }
    }

    /// Deals with the next entry; `false` when there is none.
    fn step(
        &mut self,
        skip: &mut VecDeque<Vec<u8>>,
        partial: &mut Option<Partial>,
    ) -> Result<bool, Halt> {
        let Some(level) = self.stack.last() else { return Ok(false) };
        let pair = Arc::clone(&level.pair);
        let Some(raw) = level.names.get(level.next).map(<[u8]>::to_vec) else {
            self.flush();
            self.stack.pop();
            self.copy.release(&pair);
            if let Some(above) = self.stack.last_mut() {
                above.next += 1;
            }
            return Ok(true);
        };
        // Not before the level is known to have a next entry, which a checkpoint names; and not on
        // the way down to where a stopped job goes on, so that each run comes further.
        if skip.is_empty() {
            self.pause(None)?;
        }
        match sys::stat(&pair.from.fd, &raw).doing("read") {
            Err(fault) => self.copy.trouble(&pair, &raw, fault),
            Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                FileType::Directory => match self.enter(&pair, &raw, stat, skip) {
                    Ok(()) => return Ok(true),
                    Err(fault) => self.copy.trouble(&pair, &raw, fault),
                },
                FileType::RegularFile if segments(self.copy.source.estimate(&stat)) > 1 => {
                    self.large(&pair, Item { raw, stat }, partial.take())?;
                }
                _ => self.add(Item { raw, stat }),
            },
        }
        skip.clear();
        if let Some(level) = self.stack.last_mut() {
            level.next += 1;
        }
        Ok(true)
    }

    fn enter(
        &mut self,
        above: &Arc<Pair<S, K>>,
        raw: &[u8],
        stat: Stat,
        skip: &mut VecDeque<Vec<u8>>,
    ) -> Result<(), Fault> {
        self.flush();
        let name = self.copy.source.plain_name(&above.from, raw)?;
        let from = self.copy.source.enter(&above.from, raw)?;
        let to = self.copy.sink.make_dir(&above.to, &name)?;
        let paths = (join(&above.raw, raw), join(&above.plain, &name));
        self.descend(from, to, stat, paths, skip)
    }

    fn descend(
        &mut self,
        from: Place<S::Dir>,
        to: Place<K::Dir>,
        stat: Stat,
        (raw, plain): (Vec<u8>, Vec<u8>),
        skip: &mut VecDeque<Vec<u8>>,
    ) -> Result<(), Fault> {
        let source = self.copy.source;
        let names = Names::read(&from.fd, |raw| source.is_entry(&from, raw)).doing("read")?;
        let next = match skip.pop_front() {
            Some(name) => {
                let next = names.position(&name);
                if names.get(next) != Some(&name) {
                    // It is gone; what came below it too.
                    skip.clear();
                }
                next
            }
            None => 0,
        };
        let pair = Arc::new(Pair { from, to, stat, raw, plain, users: AtomicUsize::new(1) });
        self.stack.push(Level { pair, names, next });
        Ok(())
    }

    fn add(&mut self, item: Item) {
        self.batch_bytes += self.copy.source.estimate(&item.stat);
        self.batch.push(item);
        if self.batch.len() >= BATCH_ENTRIES || self.batch_bytes >= BATCH_BYTES {
            self.flush();
        }
    }

    /// Hands the batch out. A batch is of one directory: the top of the stack.
    fn flush(&mut self) {
        if let Some(level) = self.stack.last()
            && !self.batch.is_empty()
        {
            level.pair.users.fetch_add(1, Ordering::Relaxed);
            let batch = std::mem::take(&mut self.batch);
            self.batch_bytes = 0;
            self.copy.queue.put(Job::Batch(Arc::clone(&level.pair), batch));
        }
    }

    /// Hands out the segments of a large file.
    fn large(
        &mut self,
        pair: &Arc<Pair<S, K>>,
        item: Item,
        partial: Option<Partial>,
    ) -> Result<(), Halt> {
        self.flush();
        let copy = self.copy;
        let inode = (item.stat.st_dev, item.stat.st_ino);
        let linked = item.stat.st_nlink > 1;
        if linked && let Some(anchor) = copy.anchors.claim(inode) {
            if let Err(fault) = copy.link(pair, &item, &anchor) {
                copy.trouble(pair, &item.raw, fault);
            }
            copy.tally.files_done.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let opened = copy.source.open(&pair.from, &item.raw, &item.stat);
        let opened = opened.and_then(|from| {
            let (to, staged, first) = self.large_target(&item, copy.source.len(&from), partial)?;
            Ok((from, to, staged, first))
        });
        let (from, to, staged, first) = match opened {
            Ok(opened) => opened,
            Err(fault) => {
                if linked {
                    copy.anchors.settle(inode, None);
                }
                copy.trouble(pair, &item.raw, fault);
                copy.tally.files_done.fetch_add(1, Ordering::Relaxed);
                return Ok(());
            }
        };
        let segments = segments(copy.source.len(&from)).max(first + 1);
        let (pair, failed) = (Arc::clone(pair), AtomicBool::new(false));
        pair.users.fetch_add(1, Ordering::Relaxed);
        let segments_left = AtomicU64::new(segments - first);
        let identity = Identity::of(&item.stat);
        let large = Arc::new(Large { pair, item, from, to, staged, segments_left, failed });
        for segment in first..segments {
            if segment > first {
                self.pause(Some((&large, segment, identity)))?;
            }
            copy.queue.put(Job::Segment(Arc::clone(&large), segment));
        }
        Ok(())
    }

    /// A new file in the making, or the one that `partial` tells of when it is still of use.
    fn large_target(
        &self,
        item: &Item,
        len: u64,
        partial: Option<Partial>,
    ) -> Result<(K::File, Vec<u8>, u64), Fault> {
        let (sink, stage) = (self.copy.sink, self.copy.stage);
        if let Some(partial) = partial {
            let staged = partial.staged.into_bytes();
            if partial.source == Identity::of(&item.stat)
                && let Ok(file) = sys::open_to_write(stage.kept(), &staged)
                && let Ok(file) = sink.resume(file, len, partial.segment)
            {
                return Ok((file, staged, partial.segment));
            }
            let done = segment(partial.segment, len).start;
            self.copy.tally.bytes_done.fetch_sub(done, Ordering::Relaxed);
            let _ = sys::unlink(stage.kept(), &staged);
        }
        let staged = stage.fresh_kept();
        let file = stage.create(stage.kept(), &staged, &item.stat).doing("written")?;
        Ok((sink.begin(file, len)?, staged, 0))
    }

    /// Between two pieces of work: stops when asked to, and takes a checkpoint when it is time.
    fn pause(&mut self, large: Option<(&Arc<Large<S, K>>, u64, Identity)>) -> Result<(), Halt> {
        let copy = self.copy;
        if lock(&copy.failure).is_some() {
            return Err(Halt::Failure);
        }
        let stop = copy.control.stop_requested();
        let saving = self.saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if !stop && (saving || self.saved.elapsed() < CHECKPOINT_EVERY) {
            return Ok(());
        }
        self.flush();
        copy.queue.drain();
        let partial = large.filter(|(large, ..)| !large.failed.load(Ordering::Relaxed)).map(
            |(large, segment, source)| Partial {
                staged: String::from_utf8_lossy(&large.staged).into_owned(),
                segment,
                source,
            },
        );
        if stop {
            return Err(Halt::Stop(partial));
        }
        if lock(&copy.failure).is_some() {
            return Err(Halt::Failure);
        }
        let checkpoint = self.checkpoint(partial);
        self.saved = Instant::now();
        self.saving = Some(self.scope.spawn(move || save(copy, &checkpoint)));
        Ok(())
    }

    /// Where the walk is. Call it when the workers are idle.
    fn checkpoint(&self, partial: Option<Partial>) -> Checkpoint {
        let next = self.stack.iter().filter_map(|level| level.names.get(level.next));
        Checkpoint {
            next: next.map(hex::encode).collect(),
            partial,
            epoch: self.copy.epoch.fetch_add(1, Ordering::Relaxed),
            progress: self.copy.tally.progress(),
            problems: self.copy.tally.problems(),
        }
    }
}

/// Makes what is done so far durable, and then says so.
fn save<S: Source, K: Sink>(copy: &Copy<'_, S, K>, checkpoint: &Checkpoint) -> Result<(), Error> {
    let synced = sys::sync_all(copy.stage.tmp()).doing("made durable");
    synced.map_err(|fault| fault.at(b"the tree"))?;
    copy.control.checkpoint(checkpoint);
    Ok(())
}

fn bad_checkpoint() -> Error {
    let why = "the checkpoint is not one of this program's".to_owned();
    Fault::Refused { doing: "resumed", why, cure: "start the job anew" }.at(b"the job")
}

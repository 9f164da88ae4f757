//! The engine of import and export: walks a [`Source`], copies to a [`Sink`], in parallel, and can
//! be stopped and taken up again.
//!
//! One thread walks ([`crate::walk`]) and hands out work; as many workers as there are processors
//! take it: a batch of small files, or one segment of a large one. No file is synced by itself. A
//! directory gets its mode and times when the last of its entries is done.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::{Doing, Error, Fault};
use crate::report::{
    Checkpoint, Control, Fingerprint, Identity, Problem, ProblemKind, Report, Tally, lock,
};
use crate::side::{Buffers, Kind, Owner, Place, Sink, Source, segments};
use crate::stage::{Anchors, Kept, Stage, anchor_name};
use crate::sys::{self, Errno, FileType, Stat};
use crate::trail::Trail;
use crate::walk::Walker;
use crate::work::{Ended, Queue, watch, workers};

/// Copies all of `source` to `sink`, from `resume` on when a former run was stopped. Where that run kept nothing it
/// copied another tree or wrote elsewhere, whatever the paths say, and the copy begins anew.
///
/// What is wrong with one entry is a problem in the report; an error means that nothing more can
/// be done (the disk is full), and the last checkpoint given to `control` says where to go on.
pub(crate) fn copy<S: Source, K: Sink>(
    source: &S,
    sink: &K,
    stage: &Stage,
    resume: Option<Checkpoint>,
    checkpoint_every: Duration,
    control: &dyn Control,
) -> Result<Report, Error> {
    let prepare = || -> Result<(Kept, Anchors, Option<Checkpoint>), Fault> {
        let root = sys::stat_open(source.root()?.fd).doing("read")?;
        let root = (root.st_dev, root.st_ino);
        // Once all is done, what was kept is gone for good reason.
        let began = stage.keeps(root).doing("prepared")?;
        let (resume, stale) = match resume {
            Some(checkpoint) if !began && !checkpoint.finished => (None, true),
            // What is done would be told from what is not by names that changed: all is done again.
            Some(it) if !it.finished && !it.next.is_empty() && it.order != source.order() => {
                (Some(Checkpoint::default()), true)
            }
            other => (other, false),
        };
        if stale {
            // Before anything is kept, which a crash would leave beside the old checkpoint.
            control.checkpoint(&Checkpoint::default());
        }
        let kept = stage.kept_of(root).doing("prepared")?;
        let Some(checkpoint) = &resume else {
            stage.begin_anew(&kept).doing("prepared")?;
            return Ok((kept, Anchors::default(), None));
        };
        let keep = checkpoint.partial.as_ref().map(|partial| partial.staged.as_bytes());
        kept.drop_large(keep).doing("prepared")?;
        let anchors = Anchors::resume(&kept, checkpoint.epoch).doing("prepared")?;
        Ok((kept, anchors, resume))
    };
    let (kept, anchors, resume) = prepare().map_err(|fault| fault.at(b"what is in the making"))?;
    let epoch = resume.as_ref().map_or(Checkpoint::default().epoch, |checkpoint| checkpoint.epoch);
    let copy = Copy {
        source,
        sink,
        stage,
        kept,
        checkpoint_every,
        control,
        tally: Tally::resumed(resume.as_ref()),
        anchors,
        epoch: AtomicU64::new(epoch + 1),
        queue: Queue::default(),
        failure: Mutex::new(None),
    };
    copy.run(resume)
}

/// A running copy, shared by its threads.
pub(crate) struct Copy<'a, S: Source, K: Sink> {
    pub(crate) source: &'a S,
    pub(crate) sink: &'a K,
    pub(crate) stage: &'a Stage,
    pub(crate) kept: Kept,
    pub(crate) checkpoint_every: Duration,
    pub(crate) control: &'a dyn Control,
    pub(crate) tally: Tally,
    pub(crate) anchors: Anchors,
    /// Counts the checkpoints; anchors tell theirs.
    pub(crate) epoch: AtomicU64,
    pub(crate) queue: Queue<Job<S, K>>,
    /// What ended the job early.
    pub(crate) failure: Mutex<Option<Error>>,
}

/// A directory on both sides. Finished by whoever is the last to be done with it.
pub(crate) struct Pair<S: Source, K: Sink> {
    pub(crate) from: Place<S::Dir>,
    pub(crate) to: Place<K::Dir>,
    /// As it was before its entries were read, which changes its access time.
    pub(crate) stat: Stat,
    pub(crate) trail: Arc<Trail>,
    /// The walker, and each job on its entries.
    pub(crate) users: AtomicUsize,
}

pub(crate) enum Job<S: Source, K: Sink> {
    Batch(Arc<Pair<S, K>>, Vec<Item>),
    Segment(Arc<Large<S, K>>, u64),
}

/// An entry that is no directory.
pub(crate) struct Item {
    pub(crate) raw: Vec<u8>,
    pub(crate) stat: Stat,
}

impl Item {
    /// What tells it from all others, if it has other names. Of a socket nothing is made that they could be linked to.
    pub(crate) fn linked(&self) -> Option<Fingerprint> {
        let is_socket = FileType::from_raw_mode(self.stat.st_mode) == FileType::Socket;
        let has_others = self.stat.st_nlink > 1 && !is_socket;
        has_others.then(|| Identity::of(&self.stat).fingerprint())
    }
}

/// A file of more than one segment.
pub(crate) struct Large<S: Source, K: Sink> {
    pub(crate) pair: Arc<Pair<S, K>>,
    pub(crate) item: Item,
    pub(crate) from: S::File,
    pub(crate) to: K::File,
    /// Its name among the things that are kept over a stop.
    pub(crate) staged: Vec<u8>,
    pub(crate) segments_left: AtomicU64,
    pub(crate) failed: AtomicBool,
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
        self.control.progress(&self.tally.progress());
        if let Some(error) = lock(&self.failure).take() {
            // Room for the next try; what is in the tree is whole. Anchors take no room.
            let _ = self.kept.drop_large(None);
            return Err(error);
        }
        let checkpoint = checkpoint?;
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
    pub(crate) fn trouble(&self, pair: &Pair<S, K>, raw: &[u8], fault: Fault) {
        let plain = self.source.plain_name(&pair.from, raw);
        let plain = plain.as_deref().unwrap_or(b"(a name that can't be read)");
        self.trouble_at(&pair.trail.entry(raw, plain), fault);
    }

    pub(crate) fn trouble_at(&self, at: &Trail, fault: Fault) {
        if fault.is_final() {
            lock(&self.failure).get_or_insert(fault.at(&at.plain()));
        } else {
            let raw = S::SEALED.then(|| at.raw());
            self.tally.problem(fault.problem(&at.plain(), raw.as_deref()), self.control);
        }
    }

    /// Copies an entry that is no directory and no large file.
    fn entry(&self, pair: &Pair<S, K>, item: &Item, buffers: &mut Buffers) {
        let linked = item.linked();
        let anchor = linked.and_then(|file| self.anchors.claim(file));
        let result = match &anchor {
            Some(anchor) => self.link(pair, item, anchor),
            None => self.content(pair, item, buffers),
        };
        if let (Some(file), None) = (linked, &anchor) {
            let epoch = self.epoch.load(Ordering::Relaxed);
            self.anchors.settle(file, result.is_ok().then_some(epoch));
        }
        if let Err(fault) = result {
            self.trouble(pair, &item.raw, fault);
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
    }

    fn content(&self, pair: &Pair<S, K>, item: &Item, buffers: &mut Buffers) -> Result<(), Fault> {
        let name = self.source.plain_name(&pair.from, &item.raw)?;
        let staged = self.stage.fresh();
        let made = match self.source.kind(&item.stat)? {
            Kind::File => self.small_file(pair, item, &name, &staged, buffers),
            Kind::Socket => {
                let path = pair.trail.entry(&item.raw, &name).plain();
                let reason = "it is a socket, which means nothing without its process";
                let problem = Problem::new(&path, None, ProblemKind::Skipped, reason);
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
        self.dress_file(&pair.trail.entry(&item.raw, name), &item.stat, &from, &to)
    }

    fn link_or_node(
        &self,
        pair: &Pair<S, K>,
        item: &Item,
        kind: Kind,
        name: &[u8],
        staged: &[u8],
    ) -> Result<(), Fault> {
        let tmp = self.stage.tmp();
        if kind == Kind::Symlink {
            let target = self.source.target(&pair.from, &item.raw)?;
            let target = self.sink.raw_target(&pair.to, &target)?;
            sys::make_link(tmp, staged, &target).doing("written")?;
        } else {
            let node = self.source.node(&pair.from, &item.raw, &item.stat)?;
            self.sink.make_node(tmp, staged, node)?;
        }
        let at = pair.trail.entry(&item.raw, name);
        let from = Owner::Named(pair.from.fd.as_fd(), &item.raw);
        self.dress_named(&at, &item.stat, &from, staged)
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
        let epoch = self.epoch.load(Ordering::Relaxed);
        let anchor = item.linked().map(|file| anchor_name(file, epoch));
        if let Some(anchor) = &anchor {
            sys::hard_link(dir, staged, self.kept.dir(), anchor).doing("linked")?;
        }
        self.put_in_place(dir, staged, &pair.to, &raw).inspect_err(|_| {
            // Another name of it makes its own.
            if let Some(anchor) = &anchor {
                let _ = sys::unlink(self.kept.dir(), anchor);
            }
        })
    }

    /// Moves what was staged to its name; what it replaces goes with all that it kept elsewhere.
    fn put_in_place(
        &self,
        from: &OwnedFd,
        staged: &[u8],
        to: &Place<K::Dir>,
        raw: &[u8],
    ) -> Result<(), Fault> {
        let replaced = self.sink.kept_elsewhere(to, raw);
        match sys::rename(from, staged, &to.fd, raw) {
            Err(Errno::ISDIR) => return Err(Fault::Conflict("a directory has its name")),
            other => other.doing("given its name")?,
        }
        if let Some(kept) = replaced {
            self.sink.forget(&kept);
        }
        Ok(())
    }

    /// Gives an inode that was copied before another name.
    pub(crate) fn link(&self, pair: &Pair<S, K>, item: &Item, anchor: &[u8]) -> Result<(), Fault> {
        let name = self.source.plain_name(&pair.from, &item.raw)?;
        let raw = self.sink.raw_name(&pair.to, &name)?;
        if FileType::from_raw_mode(item.stat.st_mode) == FileType::RegularFile {
            let len = self.source.estimate(&item.stat);
            self.tally.bytes_done.fetch_add(len, Ordering::Relaxed);
        }
        match sys::hard_link(self.kept.dir(), anchor, &pair.to.fd, &raw) {
            Err(Errno::EXIST) => {
                let (tmp, staged) = (self.stage.tmp(), self.stage.fresh());
                sys::hard_link(self.kept.dir(), anchor, tmp, &staged).doing("linked")?;
                let placed = self.put_in_place(tmp, &staged, &pair.to, &raw);
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
                let at = pair.trail.entry(&item.raw, &name);
                self.dress_file(&at, &item.stat, &large.from, &large.to)?;
                self.publish(pair, item, self.kept.dir(), &name, &large.staged)
            };
            end().map_err(|fault| self.trouble(pair, &item.raw, fault)).is_ok()
        };
        if !done {
            let _ = sys::unlink(self.kept.dir(), &large.staged);
        }
        if let Some(file) = item.linked() {
            let epoch = self.epoch.load(Ordering::Relaxed);
            self.anchors.settle(file, done.then_some(epoch));
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
        self.release(pair);
    }

    /// Ends one use of a directory; after the last it gets its attributes and times.
    pub(crate) fn release(&self, pair: &Pair<S, K>) {
        if pair.users.fetch_sub(1, Ordering::AcqRel) != 1 || lock(&self.failure).is_some() {
            return;
        }
        if let Err(fault) = self.dress_directory(pair) {
            self.trouble_at(&pair.trail, fault);
        }
        self.tally.files_done.fetch_add(1, Ordering::Relaxed);
    }
}

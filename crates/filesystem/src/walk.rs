//! The thread that walks: the order of things, stops, checkpoints and taking up again.
//!
//! A walk goes through each directory in the order of raw names, so a path is a place in it:
//! everything before is done, or in the workers' hands. To take a *checkpoint* the walker lets the
//! workers finish what they have, notes its path (and in a large file the segment), and goes on while another thread
//! makes everything so far durable and only then gives the checkpoint to the [`Control`].
//!
//! [`Control`]: crate::Control

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Instant;

use crate::copy::{Copy, Item, Job, Large, Pair};
use crate::error::{Doing, Error, Fault};
use crate::names::NameWalk;
use crate::report::{Checkpoint, Identity, Partial, lock};
use crate::side::{Place, Sink, Source, segment, segments};
use crate::sys::{self, FileType, Stat};
use crate::trail::Trail;

/// A batch is handed out when it has this many entries, or this many bytes.
const BATCH_ENTRIES: usize = 32;
const BATCH_BYTES: u64 = 1 << 20;
/// The thread that walks.
pub(crate) struct Walker<'c, 'scope, 'env, S: Source, K: Sink> {
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
    names: NameWalk,
}

/// Why the walk did not go to the end.
enum Halt {
    Stop(Option<Box<Partial>>),
    /// The failure is noted already.
    Failure,
}

impl<'c, 'scope, 'env, S: Source, K: Sink> Walker<'c, 'scope, 'env, S, K>
where
    'c: 'scope,
{
    pub(crate) fn new(copy: &'c Copy<'env, S, K>, scope: &'scope Scope<'scope, 'env>) -> Self {
        let (stack, batch) = (Vec::new(), Vec::new());
        Self { copy, scope, stack, batch, batch_bytes: 0, saved: Instant::now(), saving: None }
    }

    /// Walks to the end, or to where it is stopped; the checkpoint says where.
    pub(crate) fn walk(mut self, resume: Option<Checkpoint>) -> Result<Option<Checkpoint>, Error> {
        let (mut skip, mut partial) = (VecDeque::new(), None);
        if let Some(checkpoint) = resume {
            if checkpoint.finished {
                self.tidy_up()?;
                return Ok(None);
            }
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
        let entered = self.descend(from, to, stat, Trail::root(S::ROOT), &mut skip);
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
                let checkpoint = self.checkpoint(partial.map(|partial| *partial));
                save(self.copy, &checkpoint)?;
                Ok(Some(checkpoint))
            }
            None => {
                if lock(&self.copy.failure).is_none() {
                    // A job that died between the tidying and its caller's note that it is done
                    // would go on from an older checkpoint without its anchors.
                    let checkpoint = Checkpoint { finished: true, ..self.checkpoint(None) };
                    save(self.copy, &checkpoint)?;
                    self.tidy_up()?;
                }
                Ok(None)
            }
        }
    }

    fn tidy_up(&self) -> Result<(), Error> {
        let forgotten = self.copy.stage.forget(&self.copy.kept).doing("tidied up");
        forgotten.map_err(|fault| fault.at(b"what is in the making"))
    }

    /// Deals with the next entry; `false` when there is none.
    fn step(
        &mut self,
        skip: &mut VecDeque<Vec<u8>>,
        partial: &mut Option<Partial>,
    ) -> Result<bool, Halt> {
        let Some(level) = self.stack.last() else { return Ok(false) };
        let pair = Arc::clone(&level.pair);
        let Some(raw) = level.names.get().map(<[u8]>::to_vec) else {
            self.flush();
            self.stack.pop();
            self.copy.release(&pair);
            self.advance();
            return Ok(true);
        };
        // Not before the level is known to have a next entry, which a checkpoint names; and not on
        // the way down to where a stopped job goes on, so that each run comes further.
        if skip.is_empty() {
            self.pause(None)?;
        }
        if self.copy.source.is_foreign(&raw) {
            self.copy.trouble_at(&pair.trail.entry(&raw, b""), Fault::Foreign);
            skip.clear();
            self.advance();
            return Ok(true);
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
        self.advance();
        Ok(true)
    }

    /// Goes on to the next name of the innermost directory.
    fn advance(&mut self) {
        let Some(level) = self.stack.last_mut() else { return };
        let (source, pair) = (self.copy.source, &level.pair);
        let wanted = |raw: &[u8]| source.is_entry(&pair.from, raw);
        if let Err(fault) = level.names.advance(&pair.from.fd, wanted).doing("read") {
            self.copy.trouble_at(&pair.trail, fault);
        }
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
        self.descend(from, to, stat, Arc::new(above.trail.entry(raw, &name)), skip)
    }

    fn descend(
        &mut self,
        from: Place<S::Dir>,
        to: Place<K::Dir>,
        stat: Stat,
        trail: Arc<Trail>,
        skip: &mut VecDeque<Vec<u8>>,
    ) -> Result<(), Fault> {
        let source = self.copy.source;
        let first = skip.pop_front().unwrap_or_default();
        let wanted = |raw: &[u8]| raw >= &*first && source.is_entry(&from, raw);
        let names = NameWalk::start(&from.fd, wanted).doing("read")?;
        if names.get() != Some(&first) {
            // It is gone; what came below it too.
            skip.clear();
        }
        let pair = Arc::new(Pair { from, to, stat, trail, users: AtomicUsize::new(1) });
        self.stack.push(Level { pair, names });
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
        let linked = item.linked();
        if let Some(anchor) = linked.and_then(|file| copy.anchors.claim(file)) {
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
                if let Some(file) = linked {
                    copy.anchors.settle(file, None);
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
        let large = Arc::new(Large { pair, item, from, to, staged, segments_left, failed });
        for segment in first..segments {
            if segment > first {
                self.pause(Some((&large, segment)))?;
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
        let (sink, stage, kept) = (self.copy.sink, self.copy.stage, &self.copy.kept);
        if let Some(partial) = partial {
            let staged = partial.staged.into_bytes();
            if partial.source == Identity::of(&item.stat)
                && let Ok(file) = sys::open_to_write(kept.dir(), &staged)
                && let Ok(file) = sink.resume(file, len, partial.segment, &partial.unfinished)
            {
                return Ok((file, staged, partial.segment));
            }
            let done = segment(partial.segment, len).start;
            self.copy.tally.bytes_done.fetch_sub(done, Ordering::Relaxed);
            let _ = sys::unlink(kept.dir(), &staged);
        }
        let staged = kept.fresh();
        let file = stage.create(kept.dir(), &staged, &item.stat).doing("written")?;
        Ok((sink.begin(file, len)?, staged, 0))
    }

    /// Between two pieces of work: stops when asked to, and takes a checkpoint when it is time.
    fn pause(&mut self, large: Option<(&Large<S, K>, u64)>) -> Result<(), Halt> {
        let copy = self.copy;
        if lock(&copy.failure).is_some() {
            return Err(Halt::Failure);
        }
        let stop = copy.control.stop_requested();
        let saving = self.saving.as_ref().is_some_and(|saving| !saving.is_finished());
        if !stop && (saving || self.saved.elapsed() < copy.checkpoint_every) {
            return Ok(());
        }
        self.flush();
        copy.queue.drain();
        let unfailed = large.filter(|(large, _)| !large.failed.load(Ordering::Relaxed));
        let partial = unfailed.map(|(large, segment)| Partial {
            staged: String::from_utf8_lossy(&large.staged).into_owned(),
            segment,
            unfinished: copy.sink.unfinished(&large.to),
            source: Identity::of(&large.item.stat),
        });
        if stop {
            return Err(Halt::Stop(partial.map(Box::new)));
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
        let next = self.stack.iter().filter_map(|level| level.names.get());
        Checkpoint {
            next: next.map(hex::encode).collect(),
            partial,
            order: self.copy.source.order(),
            finished: false,
            epoch: self.copy.epoch.fetch_add(1, Ordering::Relaxed),
            progress: self.copy.tally.progress(),
            problems: self.copy.tally.problems(),
            told: Some(self.copy.tally.told()),
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

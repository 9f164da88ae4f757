//! What jobs share: a queue for their workers, and the thread that counts and tells the progress.

use std::collections::VecDeque;
use std::num::NonZero;
use std::sync::atomic::Ordering;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::error::{Doing, Fault};
use crate::names::Names;
use crate::report::{Control, Tally, lock};
use crate::side::{Place, Source};
use crate::sys::{self, FileType};

/// Jobs that may wait. Few: they are what a stop has to finish.
const QUEUE: usize = 8;
const PROGRESS_EVERY: Duration = Duration::from_millis(250);

/// The most workers, each of which holds up to 8 MiB. So many encrypt faster than disks write.
const WORKERS_MAX: usize = 8;

/// How many workers a job has.
pub(crate) fn workers() -> usize {
    std::thread::available_parallelism().map_or(2, NonZero::get).min(WORKERS_MAX)
}

/// Counts the source and tells the progress until the job has ended.
pub(crate) fn watch<S: Source>(source: &S, tally: &Tally, control: &dyn Control, ended: &Ended) {
    let mut told = Instant::now();
    let mut tell = || {
        if told.elapsed() >= PROGRESS_EVERY {
            told = Instant::now();
            control.progress(&tally.progress());
        }
        ended.get()
    };
    // A directory that can't be read is the job's to report.
    let _ = count(source, tally, &mut tell);
    while !ended.wait(PROGRESS_EVERY) {
        tell();
    }
}

fn count<S: Source>(
    source: &S,
    tally: &Tally,
    stop: &mut impl FnMut() -> bool,
) -> Result<(), Fault> {
    tally.files_total.fetch_add(1, Ordering::Relaxed);
    // Entries are counted while they are read; only directories are kept, to go into.
    let mut read = |place: Place<S::Dir>| {
        let directory = |raw: &[u8]| {
            if stop() || !source.is_entry(&place, raw) || source.is_foreign(raw) {
                return false;
            }
            let Ok(stat) = sys::stat(&place.fd, raw) else { return false };
            tally.files_total.fetch_add(1, Ordering::Relaxed);
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::RegularFile {
                tally.bytes_total.fetch_add(source.estimate(&stat), Ordering::Relaxed);
            }
            kind == FileType::Directory
        };
        let names = Names::read(&place.fd, directory).doing("read")?;
        Ok((place, names, 0))
    };
    let mut stack = vec![read(source.root()?)?];
    while let Some((place, names, next)) = stack.last_mut() {
        let Some(raw) = names.get(*next) else {
            stack.pop();
            continue;
        };
        *next += 1;
        if let Ok(below) = source.enter(place, raw).and_then(&mut read) {
            stack.push(below);
        }
    }
    Ok(())
}

/// Work for the workers: bounded, first in first out.
pub(crate) struct Queue<T> {
    state: Mutex<QueueState<T>>,
    /// Something was put in, or it was closed.
    filled: Condvar,
    /// Something was taken out.
    taken: Condvar,
    /// Nothing waits and nothing is being worked on.
    idle: Condvar,
}

struct QueueState<T> {
    jobs: VecDeque<T>,
    working: usize,
    closed: bool,
}

impl<T> Default for Queue<T> {
    fn default() -> Self {
        let state = QueueState { jobs: VecDeque::new(), working: 0, closed: false };
        let (filled, taken, idle) = (Condvar::new(), Condvar::new(), Condvar::new());
        Self { state: Mutex::new(state), filled, taken, idle }
    }
}

impl<T> Queue<T> {
    /// Adds a job, when there is room.
    pub(crate) fn put(&self, job: T) {
        let mut state = wait(&self.taken, lock(&self.state), |state| state.jobs.len() >= QUEUE);
        state.jobs.push_back(job);
        self.filled.notify_one();
    }

    /// The next job, to be followed by [`Queue::done`]; `None` when it is closed and empty.
    pub(crate) fn take(&self) -> Option<T> {
        let empty = |state: &QueueState<T>| state.jobs.is_empty() && !state.closed;
        let mut state = wait(&self.filled, lock(&self.state), empty);
        let job = state.jobs.pop_front()?;
        state.working += 1;
        self.taken.notify_one();
        Some(job)
    }

    pub(crate) fn done(&self) {
        let mut state = lock(&self.state);
        state.working -= 1;
        if state.working == 0 && state.jobs.is_empty() {
            self.idle.notify_all();
        }
    }

    /// Waits until every job is done.
    pub(crate) fn drain(&self) {
        let busy = |state: &QueueState<T>| state.working > 0 || !state.jobs.is_empty();
        drop(wait(&self.idle, lock(&self.state), busy));
    }

    pub(crate) fn close(&self) {
        lock(&self.state).closed = true;
        self.filled.notify_all();
    }
}

fn wait<'a, T>(
    condition: &Condvar,
    guard: MutexGuard<'a, T>,
    unmet: impl Fn(&T) -> bool,
) -> MutexGuard<'a, T> {
    condition.wait_while(guard, |state| unmet(state)).unwrap_or_else(PoisonError::into_inner)
}

/// Whether the walk has ended.
#[derive(Default)]
pub(crate) struct Ended {
    ended: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    pub(crate) fn set(&self) {
        *lock(&self.ended) = true;
        self.changed.notify_all();
    }

    pub(crate) fn get(&self) -> bool {
        *lock(&self.ended)
    }

    /// Waits for `time` at most.
    pub(crate) fn wait(&self, time: Duration) -> bool {
        let guard = lock(&self.ended);
        let waited = self.changed.wait_timeout_while(guard, time, |ended| !*ended);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

//! Who works with the tree: a re-encryption and the other jobs take turns.
//!
//! A re-encryption changes names, times and blocks below everybody else's feet. So it works in short turns, between which
//! all is as if nobody worked: each file can be read, each name is there once, each time is what it was. A job that is
//! about to begin waits for the end of the turn, and while one runs there is none.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::report::lock;

/// How often one that waits for a turn asks whether it still wants it.
const ASK_EVERY: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(crate) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Jobs that run or are about to.
    jobs: usize,
    /// Turns that are being taken; a re-encryption takes several at once.
    turns: usize,
}

impl Turns {
    /// Keeps the tree as it is for a job, until it is dropped. Waits for the end of a turn.
    pub(crate) fn job(&self) -> Quiet<'_> {
        let mut state = lock(&self.state);
        state.jobs += 1;
        while state.turns > 0 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        Quiet(self)
    }

    /// Takes a turn, when no job runs; `None` when it is not wanted any more.
    pub(crate) fn turn(&self, unwanted: impl Fn() -> bool) -> Option<Turn<'_>> {
        let mut state = lock(&self.state);
        while state.jobs > 0 {
            if unwanted() {
                return None;
            }
            let waited = self.changed.wait_timeout(state, ASK_EVERY);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        state.turns += 1;
        Some(Turn(self))
    }
}

/// A job runs: no turn begins.
#[derive(Debug)]
pub(crate) struct Quiet<'a>(&'a Turns);

impl Drop for Quiet<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).jobs -= 1;
        self.0.changed.notify_all();
    }
}

/// A turn of a re-encryption: no job begins its work.
#[derive(Debug)]
pub(crate) struct Turn<'a>(&'a Turns);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).turns -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_job_waits_for_the_turn_and_the_next_turn_for_the_job() {
        let turns = Turns::default();
        let ended = AtomicBool::new(false);
        let turn = turns.turn(|| false).unwrap();
        let another = turns.turn(|| false).unwrap();
        std::thread::scope(|scope| {
            let job = scope.spawn(|| {
                let quiet = turns.job();
                assert!(ended.load(Ordering::SeqCst), "it waited for both");
                assert!(turns.turn(|| true).is_none(), "and none begins while it runs");
                drop(quiet);
            });
            drop(another);
            ended.store(true, Ordering::SeqCst);
            drop(turn);
            job.join().unwrap();
        });
        assert!(turns.turn(|| true).is_some());
    }

    #[test]
    fn jobs_do_not_wait_for_each_other() {
        let turns = Turns::default();
        let (_one, _other) = (turns.job(), turns.job());
    }
}

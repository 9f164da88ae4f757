//! Keeps filesystems open: one loop for all of them, so that many do not make a stampede on a KMS that comes back.
//!
//! While the KMS is away it tries again after a random part ([`full_jitter`]) of a pause that doubles up to
//! [`LONGEST`]; what a KMS refuses is tried again now and then, for a permission can be granted there. No KMS is asked while
//! everything is open; what lies in the backing directories is compared with the store all the while.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use key_manager::{Error, KeyManager};
use kms_core::full_jitter;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use crate::health::Health;
use crate::jobs::{Jobs, MoveRun};
use crate::open::OpenFilesystems;

const FIRST: Duration = Duration::from_millis(200);
const LONGEST: Duration = Duration::from_secs(1);
const REFUSED: Duration = Duration::from_secs(60);
/// Between two comparisons of the copies of wrapped keys, by which a backing directory that went away is noticed.
const COMPARE_EVERY: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub(crate) struct Keeper {
    manager: Arc<KeyManager>,
    jobs: Arc<Jobs>,
    filesystems: Arc<OpenFilesystems>,
    wake: Notify,
}

/// How a round went.
enum Round {
    AllOpen,
    KmsAway,
    Refused,
}

impl Keeper {
    pub(crate) fn new(
        manager: Arc<KeyManager>,
        jobs: Arc<Jobs>,
        filesystems: Arc<OpenFilesystems>,
    ) -> Self {
        Self { manager, jobs, filesystems, wake: Notify::new() }
    }

    /// Something changed that can open filesystems or let jobs go on: try now.
    pub(crate) fn wake(&self) {
        self.wake.notify_one();
    }

    /// Opens what can be opened and takes up what can go on, for ever. That the KMS went away, or came back, has a look taken at it.
    pub(crate) async fn keep(&self, health: &Health) -> Infallible {
        let mut moves = self.jobs.move_runs();
        let mut away: u32 = 0;
        let mut round = self.round().await;
        if matches!(round, Round::AllOpen) {
            health.all_open();
        }
        let (mut settle_at, mut put_off) = (Instant::now(), false);
        loop {
            if settle_at <= Instant::now() {
                let removed = self.finish_removals().await;
                // A move looks at every copy itself, and its end wakes this loop. One that waits for its KMS puts this off once.
                put_off = self.jobs.moves_keys() && !put_off;
                let settled = !put_off && self.settle().await && removed;
                let pause = if settled { COMPARE_EVERY } else { REFUSED };
                settle_at = Instant::now() + full_jitter(pause);
            }
            let until = match round {
                Round::AllOpen => settle_at,
                Round::Refused => settle_at.min(Instant::now() + full_jitter(REFUSED)),
                Round::KmsAway => {
                    let pause = full_jitter(longest_pause(away));
                    away = away.saturating_add(1);
                    Instant::now() + pause
                }
            };
            let moved = tokio::select! {
                () = sleep_until(until) => None,
                () = self.wake.notified() => Some(MoveRun::Ended),
                Ok(()) = moves.changed() => Some(*moves.borrow_and_update()),
            };
            let was_well = matches!(round, Round::AllOpen);
            round = match moved {
                None => self.round().await,
                Some(MoveRun::Ended) => {
                    (away, settle_at) = (0, Instant::now());
                    self.round().await
                }
                Some(MoveRun::KmsAway) => Round::KmsAway,
                Some(MoveRun::Refused) => Round::Refused,
            };
            if was_well != matches!(round, Round::AllOpen) {
                health.look_soon();
            }
        }
    }

    async fn round(&self) -> Round {
        let locked = match self.manager.unlock_all().await {
            Ok(locked) => locked,
            Err(error) => {
                tracing::error!(%error, "the filesystems can't be unlocked");
                return Round::Refused;
            }
        };
        self.filesystems.hold_soon();
        let waits = match self.jobs.take_up().await {
            Ok(waits) => waits,
            Err(error) => {
                tracing::error!(%error, "the jobs can't be taken up");
                return Round::Refused;
            }
        };
        if locked.iter().any(|(_, reason)| reason.transient) || (locked.is_empty() && waits) {
            Round::KmsAway
        } else if locked.is_empty() {
            Round::AllOpen
        } else {
            Round::Refused
        }
    }

    /// Compares what lies in the backing directories with the store; whether all of it is as it should be.
    async fn settle(&self) -> bool {
        self.filesystems.compare_soon();
        self.settle_copies().await
    }

    /// Goes on with deletions that failed; whether none is left.
    async fn finish_removals(&self) -> bool {
        let finished = self.manager.finish_removals().await;
        finished.unwrap_or_else(|error| {
            tracing::warn!(%error, "what is half deleted can't be looked for");
            false
        })
    }

    /// Brings the copies of wrapped keys to what the store says; whether all of them are there.
    async fn settle_copies(&self) -> bool {
        match self.manager.settle_copies().await {
            Ok(failed) => failed.is_empty(),
            // Its end wakes this loop.
            Err(Error::Busy { .. }) => true,
            Err(error) => {
                tracing::warn!(%error, "the copies of the wrapped keys can't be compared");
                false
            }
        }
    }
}

/// The longest pause after so many rounds, one upon the other, that found the KMS away.
fn longest_pause(away: u32) -> Duration {
    FIRST.saturating_mul(2_u32.saturating_pow(away)).min(LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let pauses = [0, 1, 2, 3, u32::MAX].map(longest_pause);
        assert_eq!(pauses, [FIRST, FIRST * 2, FIRST * 4, LONGEST, LONGEST]);
    }
}

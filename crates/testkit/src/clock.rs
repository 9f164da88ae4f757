//! A clock that tests turn.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use kms_core::{Clock, UnixMillis};

/// Stands still until it is told otherwise. Share it by `Arc`; any thread may turn it.
#[derive(Debug)]
pub struct ManualClock(AtomicU64);

impl ManualClock {
    /// A clock that shows `now`.
    pub fn at(now: UnixMillis) -> Self {
        Self(AtomicU64::new(now.0))
    }

    /// Turns it forward, and answers what it then shows.
    pub fn advance(&self, by: Duration) -> UnixMillis {
        let turn = |now| Some(UnixMillis(now).plus(by).0);
        let before = self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, turn);
        UnixMillis(before.unwrap_or_else(|now| now)).plus(by)
    }

    /// Sets it, backward too, as an administrator or NTP may.
    pub fn set(&self, now: UnixMillis) {
        self.0.store(now.0, Ordering::SeqCst);
    }
}

/// A moment in 2026, so that nothing takes it for an unset one.
impl Default for ManualClock {
    fn default() -> Self {
        Self::at(UnixMillis(1_767_225_600_000))
    }
}

impl Clock for ManualClock {
    fn now(&self) -> UnixMillis {
        UnixMillis(self.0.load(Ordering::SeqCst))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_moves_only_when_told() {
        let clock = ManualClock::default();
        let start = clock.now();
        assert_eq!(clock.now(), start);
        assert_eq!(clock.advance(Duration::from_secs(2)), start.plus(Duration::from_secs(2)));
        assert_eq!(clock.now().since(start), Duration::from_secs(2));
        clock.set(UnixMillis(5));
        assert_eq!(clock.now(), UnixMillis(5));
    }
}

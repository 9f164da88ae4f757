//! That something of the node has changed, for those who show it: looked at by one task for all of them, and only while there are any.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, watch};
use tokio::time::{Instant, sleep};

/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// A look at a large node takes its time: so much longer is the pause after it, at least.
const REST: u32 = 9;

/// What those who show the node are told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Told {
    /// Nothing yet.
    Nothing,
    /// What names the node's state.
    State(Arc<str>),
    /// That the node ends.
    Over,
}

#[derive(Debug)]
pub(crate) struct Changes {
    told: watch::Sender<Told>,
    followed: Notify,
}

impl Changes {
    pub(crate) fn new() -> Self {
        Self { told: watch::Sender::new(Told::Nothing), followed: Notify::new() }
    }

    /// What is told from now on.
    pub(crate) fn follow(&self) -> watch::Receiver<Told> {
        let receiver = self.told.subscribe();
        self.followed.notify_one();
        receiver
    }

    /// Lets go of those who follow, for good.
    pub(crate) fn close(&self) {
        self.told.send_replace(Told::Over);
    }

    /// Looks, for ever.
    pub(crate) async fn watch<F: Future<Output = String>>(
        &self,
        look: impl Fn() -> F,
    ) -> Infallible {
        loop {
            while self.told.receiver_count() == 0 {
                // What was told last is long ago for the next one.
                self.told.send_if_modified(|told| {
                    if *told != Told::Over {
                        *told = Told::Nothing;
                    }
                    false
                });
                self.followed.notified().await;
            }
            let begun = Instant::now();
            let state = Told::State(look().await.into());
            self.told.send_if_modified(|told| {
                let is_new = *told != state && *told != Told::Over;
                if is_new {
                    *told = state;
                }
                is_new
            });
            sleep(LOOK_EVERY.max(begun.elapsed() * REST)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::ready;
    use std::sync::atomic::{AtomicU64, Ordering};

    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn one_look_serves_all_and_nobody_costs_nothing() {
        let (changes, looks, state) =
            (Arc::new(Changes::new()), Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let task = {
            let (changes, looks, state) =
                (Arc::clone(&changes), Arc::clone(&looks), Arc::clone(&state));
            tokio::spawn(async move {
                let look = || {
                    looks.fetch_add(1, Ordering::Relaxed);
                    ready(state.load(Ordering::Relaxed).to_string())
                };
                changes.watch(look).await
            })
        };
        sleep(Duration::from_secs(60)).await;
        assert_eq!(looks.load(Ordering::Relaxed), 0);

        let mut all: Vec<_> = (0..200).map(|_| changes.follow()).collect();
        let told = |n: u64| Told::State(n.to_string().into());
        for n in 0..3 {
            state.store(n, Ordering::Relaxed);
            for receiver in &mut all {
                receiver.changed().await.unwrap();
                assert_eq!(*receiver.borrow_and_update(), told(n));
            }
        }
        sleep(Duration::from_secs(10)).await;
        assert!(all.iter().all(|receiver| !receiver.has_changed().unwrap()), "nothing changed");
        assert!((10..=14).contains(&looks.load(Ordering::Relaxed)), "{looks:?}");

        all.truncate(1);
        changes.close();
        let mut last = all.remove(0);
        last.changed().await.unwrap();
        assert_eq!(*last.borrow_and_update(), Told::Over);
        assert_eq!(*changes.follow().borrow(), Told::Over);
        state.store(9, Ordering::Relaxed);
        timeout(Duration::from_secs(5), last.changed()).await.unwrap_err();
        drop(last);
        sleep(Duration::from_secs(2)).await;
        let before = looks.load(Ordering::Relaxed);
        sleep(Duration::from_secs(60)).await;
        assert_eq!(looks.load(Ordering::Relaxed), before);
        task.abort();
    }
}

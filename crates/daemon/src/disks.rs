//! Disks that may not answer: a network disk whose server is gone holds who asks for ever.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, timeout_at};

use crate::mutex::lock;

/// How long a place may take. A disk that has to wake up takes less.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// How many places are asked at once. There are a few of these in a node, and its other work needs threads too, however many places
/// don't answer.
const AT_ONCE: usize = 48;

/// Does what blocks beside the runtime, and gives a place up that does not answer.
#[derive(Debug)]
pub(crate) struct Disks {
    /// Places that have not answered yet. Each holds a thread, so nothing more is asked of it.
    silent: Arc<Mutex<HashSet<PathBuf>>>,
    threads: Arc<Semaphore>,
}

impl Default for Disks {
    fn default() -> Self {
        Self { silent: Arc::default(), threads: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

impl Disks {
    /// What `act` answers, which has to do with what lies at `place`.
    ///
    /// # Errors
    /// Why there is no answer.
    pub(crate) async fn ask<T: Send + 'static>(
        &self,
        place: &Path,
        act: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, String> {
        let no_answer = || "its disk does not answer".to_owned();
        if lock(&self.silent).contains(place) {
            return Err(no_answer());
        }
        let until = Instant::now() + ANSWER_WITHIN;
        let thread = Arc::clone(&self.threads).acquire_owned();
        let Ok(Ok(thread)) = timeout_at(until, thread).await else {
            return Err(format!(
                "it was not asked, for {AT_ONCE} others have not answered: their disks hang"
            ));
        };
        let answered = Arc::new(Mutex::new(false));
        let work = spawn_blocking({
            let (silent, answered) = (Arc::clone(&self.silent), Arc::clone(&answered));
            let place = place.to_owned();
            move || {
                let answer = act();
                let mut answered = lock(&answered);
                *answered = true;
                lock(&silent).remove(&place);
                drop(thread);
                answer
            }
        });
        match timeout_at(until, work).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(broken)) => Err(broken.to_string()),
            Err(_) => {
                // It may answer at this very moment, and then nobody would take it out again.
                let answered = lock(&answered);
                if !*answered {
                    lock(&self.silent).insert(place.to_owned());
                }
                Err(no_answer())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_place_that_does_not_answer_is_given_up_and_not_asked_again_until_it_does() {
        let (disks, home) = (Disks::default(), Path::new("/srv/home"));
        let (answer, answers) = channel();
        // The clock does not go on by itself while a thread is at work.
        let silent = tokio::join!(disks.ask(home, move || answers.recv().unwrap()), async {
            tokio::task::yield_now().await;
            tokio::time::advance(ANSWER_WITHIN).await;
        })
        .0;
        assert!(silent.unwrap_err().contains("does not answer"));
        let unasked = disks.ask(home, || panic!("it was asked again")).await;
        assert!(unasked.unwrap_err().contains("does not answer"));
        assert_eq!(disks.ask(Path::new("/srv/work"), || 1).await, Ok(1), "others answer");

        answer.send(()).unwrap();
        while lock(&disks.silent).contains(home) {
            tokio::task::yield_now().await;
        }
        assert_eq!(disks.ask(home, || 2).await, Ok(2));
    }

    #[tokio::test(start_paused = true)]
    async fn places_without_an_answer_leave_threads_for_other_work() {
        let disks = Disks::default();
        let (answer, answers) = channel::<()>();
        let answers = Arc::new(Mutex::new(answers));
        let silent = (0..AT_ONCE).map(|n| {
            let (answers, place) = (Arc::clone(&answers), PathBuf::from(format!("/srv/{n}")));
            let disks = &disks;
            // All of them wait for the first, which waits for the test.
            async move { disks.ask(&place, move || lock(&answers).recv().unwrap()).await }
        });
        let one_more = async {
            tokio::task::yield_now().await;
            disks.ask(Path::new("/srv/one-more"), || panic!("it was asked")).await
        };
        let let_time_pass = async {
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            tokio::time::advance(ANSWER_WITHIN).await;
        };
        let silent = futures::future::join_all(silent);
        let (silent, one_more, ()) = tokio::join!(silent, one_more, let_time_pass);
        assert!(silent.iter().all(Result::is_err));
        assert!(one_more.unwrap_err().contains("was not asked"));
        assert_eq!(lock(&disks.silent).len(), AT_ONCE, "what was not asked is not silent");

        (0..AT_ONCE).for_each(|_| answer.send(()).unwrap());
        assert_eq!(disks.ask(Path::new("/srv/one-more"), || 1).await, Ok(1));
    }
}

//! Disks that may not answer: a network disk whose server is gone holds who asks for ever.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::mutex::lock;

/// How long a place may take. A disk that has to wake up takes less.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// Does what blocks beside the runtime, and gives a place up that does not answer.
#[derive(Debug, Default)]
pub(crate) struct Disks {
    /// Places that have not answered yet. Each holds a thread, so nothing more is asked of it.
    silent: Arc<Mutex<HashSet<PathBuf>>>,
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
        let answered = Arc::new(Mutex::new(false));
        let work = spawn_blocking({
            let (silent, answered) = (Arc::clone(&self.silent), Arc::clone(&answered));
            let place = place.to_owned();
            move || {
                let answer = act();
                let mut answered = lock(&answered);
                *answered = true;
                lock(&silent).remove(&place);
                answer
            }
        });
        match timeout(ANSWER_WITHIN, work).await {
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
}

//! Copies of wrapped keys in places that may not answer: a network disk whose server is gone holds who asks for ever.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{FilesystemSite, HolderError, KeyCopy, KeyEnvelope, KeyHolder};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

/// How long a place may take. A disk that has to wake up takes less.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// A [`KeyHolder`] over one whose work blocks: it does that beside the runtime, and gives a place up that does not answer.
#[derive(Debug)]
pub struct Patience<H> {
    holder: Arc<H>,
    /// Places that have not answered yet. Each holds a thread, so nothing more is asked of it.
    silent: Arc<Mutex<HashSet<PathBuf>>>,
}

impl<H: KeyHolder + 'static> Patience<H> {
    /// Asks `holder`, and waits for it as long as is reasonable.
    pub fn new(holder: H) -> Self {
        Self { holder: Arc::new(holder), silent: Arc::default() }
    }

    async fn ask<T: Send + 'static>(
        &self,
        site: &FilesystemSite,
        doing: &'static str,
        act: impl FnOnce(&Handle, &H, &FilesystemSite) -> Result<T, HolderError> + Send + 'static,
    ) -> Result<T, HolderError> {
        let failed = |why: String| HolderError {
            location: site.backing.display().to_string(),
            doing,
            source: why.into(),
        };
        let no_answer = || failed("its disk does not answer".to_owned());
        if lock(&self.silent).contains(&site.backing) {
            return Err(no_answer());
        }
        let answered = Arc::new(Mutex::new(false));
        let work = spawn_blocking({
            let (holder, silent, site) =
                (Arc::clone(&self.holder), Arc::clone(&self.silent), site.clone());
            let (runtime, answered) = (Handle::current(), Arc::clone(&answered));
            move || {
                let answer = act(&runtime, &holder, &site);
                let mut answered = lock(&answered);
                *answered = true;
                lock(&silent).remove(&site.backing);
                answer
            }
        });
        match timeout(ANSWER_WITHIN, work).await {
            Ok(Ok(answer)) => answer,
            Ok(Err(broken)) => Err(failed(broken.to_string())),
            Err(_) => {
                // It may answer at this very moment, and then nobody would take it out again.
                let answered = lock(&answered);
                if !*answered {
                    lock(&self.silent).insert(site.backing.clone());
                }
                Err(no_answer())
            }
        }
    }
}

#[async_trait]
impl<H: KeyHolder + 'static> KeyHolder for Patience<H> {
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
        let list = |runtime: &Handle, holder: &H, site: &FilesystemSite| {
            // An error of its own is told from silence, in which there may be a copy.
            Ok(runtime.block_on(holder.list(site)))
        };
        match self.ask(site, "read", list).await {
            Ok(listed) => listed,
            Err(silence) => {
                let location = site.backing.display().to_string();
                Ok(vec![KeyCopy { location, envelope: Err(silence), uploaded: false }])
            }
        }
    }

    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError> {
        let (location, envelope) = (location.to_owned(), envelope.clone());
        let replace = move |runtime: &Handle, holder: &H, site: &FilesystemSite| {
            runtime.block_on(holder.replace(site, &location, &envelope))
        };
        self.ask(site, "replaced", replace).await
    }
}

/// What is held here is one flag or one set, so a panic leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, Sender, channel};

    use kms_core::KeyId;

    use super::*;

    /// Answers when it is told to.
    #[derive(Debug)]
    struct Slow {
        asked: Sender<()>,
        answer: Mutex<Receiver<()>>,
    }

    #[async_trait]
    impl KeyHolder for Slow {
        async fn list(&self, _: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
            self.asked.send(()).unwrap();
            lock(&self.answer).recv().unwrap();
            Ok(Vec::new())
        }

        async fn replace(
            &self,
            _: &FilesystemSite,
            _: &str,
            _: &KeyEnvelope,
        ) -> Result<(), HolderError> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_that_does_not_answer_is_given_up_and_not_asked_again_until_it_does() {
        let ((asked, was_asked), (answer, answers)) = (channel(), channel());
        let holder = Patience::new(Slow { asked, answer: Mutex::new(answers) });
        let site = FilesystemSite {
            name: "home".to_owned(),
            key_id: KeyId::random(),
            backing: "/srv/home".into(),
        };
        // The clock does not go on by itself while a thread is at work.
        let silent = tokio::join!(holder.list(&site), async {
            tokio::task::yield_now().await;
            tokio::time::advance(ANSWER_WITHIN).await;
        })
        .0;
        let copies = silent.unwrap();
        let error = copies[0].envelope.as_ref().unwrap_err().to_string();
        assert!(error.contains("/srv/home") && error.contains("does not answer"), "{error}");
        assert_eq!(holder.list(&site).await.unwrap().len(), 1);
        assert_eq!(was_asked.iter().take(1).count(), 1);
        assert!(was_asked.try_recv().is_err(), "it was asked once");

        answer.send(()).unwrap();
        while lock(&holder.silent).contains(&site.backing) {
            tokio::task::yield_now().await;
        }
        answer.send(()).unwrap();
        assert!(holder.list(&site).await.unwrap().is_empty());
    }
}

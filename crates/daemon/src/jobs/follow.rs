//! Jobs as those see them who follow them. However many follow one, it is looked at once for all of them, and while nobody does not at all.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use admin_api::Problem;
use key_manager::JobId;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::{Jobs, lock};
use crate::problem;

/// Between two looks at a job: as often as a person sees a bar move.
const LOOK_EVERY: Duration = Duration::from_millis(250);

/// A job at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Shown {
    /// The job in JSON; once it has ended, with the first page of its damage.
    pub(crate) job: Arc<str>,
    /// Whether nothing more happens to it by itself.
    pub(crate) ended: bool,
}

impl Jobs {
    /// The job as it is, and as it becomes until it has ended or the node ends.
    pub(crate) async fn follow(
        self: &Arc<Self>,
        id: JobId,
    ) -> Result<watch::Receiver<Shown>, Problem> {
        let shown = self.shown(id).await?;
        let mut followed = lock(&self.followed);
        if let Some(sender) = followed.get(&id) {
            return Ok(sender.subscribe());
        }
        let (sender, receiver) = watch::channel(shown);
        followed.insert(id, sender.clone());
        let this = Arc::clone(self);
        tokio::spawn(async move { this.show_followers(id, &sender).await });
        Ok(receiver)
    }

    async fn show_followers(&self, id: JobId, sender: &watch::Sender<Shown>) {
        loop {
            let changed = self.changed.notified();
            // Asked after the wait has begun, so that a change in between is not missed.
            let closing = self.closing.load(Ordering::Acquire);
            let shown = match self.shown(id).await {
                Ok(shown) if !closing => shown,
                _ => break,
            };
            let ended = shown.ended;
            sender.send_if_modified(|before| {
                let is_new = *before != shown;
                *before = shown;
                is_new
            });
            if ended {
                break;
            }
            tokio::select! {
                _ = timeout(LOOK_EVERY, changed) => {}
                // Whoever comes back at once finds it going on.
                () = sender.closed() => sleep(LOOK_EVERY).await,
            }
            let mut followed = lock(&self.followed);
            if sender.receiver_count() == 0 {
                followed.remove(&id);
                return;
            }
        }
        lock(&self.followed).remove(&id);
    }

    async fn shown(&self, id: JobId) -> Result<Shown, Problem> {
        let mut job = self.look(id).await?;
        let ended = job.state.is_ended();
        if ended {
            job = self.get(id, 0).await?;
        }
        let job = serde_json::to_string(&job);
        let job = job.map_err(|e| problem::internal("the job can't be shown", e))?;
        Ok(Shown { job: job.into(), ended })
    }
}

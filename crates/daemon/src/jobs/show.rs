//! A job as it is answered: its record, with what is known of it in this process and what its notes tell.

use std::sync::atomic::Ordering;
use std::time::Duration;

use admin_api::{
    BytePath, Damage, Exit, Job, JobKind as ApiKind, JobState as ApiState, Pace, Problem,
};
use key_manager::{JobId, JobKind, JobRecord, JobState, LockReason, Progress};
use tokio::task::spawn_blocking;

use super::{Jobs, Spec, Standing, lock};
use crate::problem;

impl Jobs {
    pub(crate) async fn list(&self) -> Result<Vec<Job>, Problem> {
        let records = self.manager.jobs().await;
        let records = records.map_err(|e| problem::of_keys("the jobs can't be listed", &e))?;
        Ok(records.iter().map(|record| self.show(record)).collect())
    }

    /// The job with a page of what it could not do, from this place in its report on.
    pub(crate) async fn get(&self, id: JobId, damage_after: u64) -> Result<Job, Problem> {
        let (mut job, record) = self.with_record(id).await?;
        if record.kind == JobKind::Move {
            job.damage = record.failures.iter().map(|failure| of_key(failure)).collect();
        } else {
            self.add_names(&mut job, &record, damage_after).await;
        }
        Ok(job)
    }

    /// As [`Self::get`], without what it could not do.
    pub(super) async fn look(&self, id: JobId) -> Result<Job, Problem> {
        Ok(self.with_record(id).await?.0)
    }

    async fn with_record(&self, id: JobId) -> Result<(Job, JobRecord), Problem> {
        let record = self.manager.job(id).await;
        let record = record.map_err(|e| problem::of_keys("the job can't be shown", &e))?;
        let mut job = self.show(&record);
        if job.state == ApiState::Waiting
            && record.kind != JobKind::Move
            && job.problem.is_none()
            && let Ok(name) = record.filesystem.parse()
            && let Err(error) = self.manager.key(&name).await
        {
            job.problem = Some(problem::of_keys("the job waits", &error));
        }
        Ok((job, record))
    }

    /// Adds what names files, if the filesystem whose files they are is unlocked.
    async fn add_names(&self, job: &mut Job, record: &JobRecord, damage_after: u64) {
        let detail = Standing::of(record).detail;
        let has_report = self.notes.has_report(record.id);
        if !has_report && detail.is_none() {
            return;
        }
        job.names_sealed = true;
        let Ok(name) = record.filesystem.parse() else { return };
        let Ok(filesystem) = self.filesystems.get(&name, "its files can't be named").await else {
            return;
        };
        let notes = self.notes.of(record.id, filesystem);
        if let (Some(problem), Some(sealed)) = (&mut job.problem, detail) {
            // Another filesystem may have the name now.
            let Some(detail) = notes.open("reason", sealed.as_bytes()) else { return };
            problem.detail = detail;
        }
        let page = spawn_blocking(move || notes.damage(damage_after)).await;
        let (damage, next) = page.unwrap_or_default();
        job.names_sealed = has_report && damage.is_empty() && damage_after == 0;
        job.next_damage = next;
        job.damage = damage;
    }

    /// The record, with what is known of it in this process.
    pub(super) fn show(&self, record: &JobRecord) -> Job {
        let live = self.find_live(record.id);
        let standing = Standing::of(record);
        let unrecorded = self.why_unrecorded(record);
        let waits =
            unrecorded.is_some() || record.blocked.as_ref().is_some_and(|reason| reason.transient);
        let state = match (record.state, &live) {
            (JobState::Running, Some(live)) if live.stop.load(Ordering::Acquire) => {
                ApiState::Stopping
            }
            // One more try, of what the KMS was away for or of a record: it still waits until that comes to something.
            (JobState::Running, Some(live)) if waits && !live.went_on.load(Ordering::Acquire) => {
                ApiState::Waiting
            }
            (JobState::Running, Some(_)) => ApiState::Running,
            (JobState::Running, None) => ApiState::Waiting,
            (JobState::Stopped, _) => ApiState::Stopped,
            (JobState::Done, _) => ApiState::Done,
            (JobState::PartlyDone, _) => ApiState::Partly,
            (JobState::Failed, _) => ApiState::Failed,
        };
        let done = live.as_ref().map_or(record.progress, |live| *lock(&live.progress));
        let known = |total: u64| (total > 0).then_some(total);
        let spec: Option<Spec> = serde_json::from_value(record.spec.clone()).ok();
        let is_move = record.kind == JobKind::Move;
        Job {
            id: record.id.to_string(),
            kind: api_kind(record),
            filesystem: Some(record.filesystem.clone()).filter(|name| !name.is_empty()),
            path: spec.and_then(|spec| spec.path),
            state,
            resumed: standing.resumed,
            progress: admin_api::Progress {
                items: done.items_done,
                total_items: known(done.items_total),
                failed_items: done.items_failed,
                bytes: done.bytes_done,
                total_bytes: known(done.bytes_total),
                pace: live.map(|live| pace(&live.from, &done, live.began.elapsed())),
            },
            created_at: record.created.0,
            ended_at: record.ended.map(|at| at.0),
            owners_lost: standing.owners_lost,
            keys_from_memory: if is_move { record.from_memory() } else { 0 },
            keys_already: if is_move { record.already() } else { 0 },
            problem: match unrecorded {
                Some(problem) => Some(problem),
                None if is_move => move_problem(record, state),
                None => standing.problem,
            },
            damage: Vec::new(),
            next_damage: None,
            names_sealed: false,
        }
    }
}

/// What was done from one moment to another, by the time between them.
fn pace(from: &Progress, to: &Progress, took: Duration) -> Pace {
    let items = to.items_done.saturating_sub(from.items_done);
    let bytes = to.bytes_done.saturating_sub(from.bytes_done);
    // As a float: no product of such figures is too large, and a float that is too large for an integer becomes its largest.
    let in_a_second = |done: u64| (done as f64 / took.as_secs_f64().max(0.001)) as u64;
    let (done, left) = match to.bytes_total {
        0 => (items, to.items_total.saturating_sub(to.items_done.saturating_add(to.items_failed))),
        total => (bytes, total.saturating_sub(to.bytes_done)),
    };
    let total_known = to.items_total > 0 || to.bytes_total > 0;
    let seconds_left = (total_known && done > 0)
        .then(|| (left as f64 * took.as_secs_f64() / done as f64).ceil() as u64);
    let (items_per_second, bytes_per_second) = (in_a_second(items), in_a_second(bytes));
    Pace { items_per_second, bytes_per_second, seconds_left }
}

fn move_problem(record: &JobRecord, state: ApiState) -> Option<Problem> {
    let title = || "not every key was moved".to_owned();
    match (state, &record.blocked) {
        (ApiState::Partly, _) => Some(
            Problem::new(Exit::Partly, "partly-done", title(), record.message.clone())
                .cure("mend what the job names, then give coffer fs kms rewrap"),
        ),
        (ApiState::Waiting, Some(reason)) => {
            let exit = problem::exit_of_lock(reason);
            let title = "the keys can't all be moved now";
            let waits = Problem::new(exit, &reason.code, title, reason.why.clone());
            Some(waits.cure(waiting_cure(reason)))
        }
        (ApiState::Failed, _) => Some(
            Problem::new(Exit::State, "superseded", title(), record.message.clone())
                .cure("see coffer fs kms"),
        ),
        _ => None,
    }
}

fn waiting_cure(reason: &LockReason) -> String {
    const AGAIN: &str = "the node tries again by itself";
    match &reason.cure {
        Some(cure) => format!("{cure}; {AGAIN}"),
        None => format!("{AGAIN}; see coffer fs kms"),
    }
}

fn of_key(failure: &str) -> Damage {
    Damage {
        path: BytePath::default(),
        ciphertext: None,
        kind: "key".to_owned(),
        what: failure.to_owned(),
    }
}

fn api_kind(record: &JobRecord) -> ApiKind {
    match record.kind {
        JobKind::Import => ApiKind::Import,
        JobKind::Export => ApiKind::Export,
        JobKind::Verify => ApiKind::Verify,
        JobKind::Rekey => ApiKind::Rekey,
        JobKind::Move => match record.spec.get("purpose").and_then(|purpose| purpose.as_str()) {
            Some("rewrap") => ApiKind::Rewrap,
            Some("renew") => ApiKind::Renew,
            Some("downgrade") => ApiKind::Downgrade,
            _ => ApiKind::Move,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pace_is_of_this_run_and_foretells_the_rest() {
        let keys = |done, failed| Progress {
            items_done: done,
            items_failed: failed,
            items_total: 1000,
            ..Progress::default()
        };
        let of = |from: Progress, to| pace(&from, &to, Duration::from_secs(2));
        let half = of(keys(100, 0), keys(500, 100));
        assert_eq!((half.items_per_second, half.seconds_left), (200, Some(2)));
        assert_eq!(of(keys(0, 0), keys(0, 0)).seconds_left, None, "nothing is done");
        assert_eq!(of(keys(0, 0), keys(1000, 0)).seconds_left, Some(0));

        let files = Progress { items_done: 1, bytes_done: 3000, ..Progress::default() };
        let unknown = of(Progress::default(), files);
        assert_eq!((unknown.bytes_per_second, unknown.seconds_left), (1500, None));
        let known = of(Progress::default(), Progress { bytes_total: 9000, ..files });
        assert_eq!(known.seconds_left, Some(4));
        let most = Progress { items_done: u64::MAX, items_total: u64::MAX, ..Progress::default() };
        assert_eq!(pace(&Progress::default(), &most, Duration::ZERO).seconds_left, Some(0));
    }
}

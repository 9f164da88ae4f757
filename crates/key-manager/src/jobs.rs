//! Jobs: long work that is recorded, so that it is finished or undone after a crash.

use std::fmt;
use std::str::FromStr;

use kms_core::{Commit, Record, StoreError, UnixMillis};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::records::{self, Stored};
use crate::unlock::{LockReason, changed};
use crate::{Error, KeyManager};

const PREFIX: &str = "job/";
/// Of what was asked to stop and is recorded as running still.
const STOPS: &str = "job-stop/";

/// Bytes that the failures of a job may take in its record.
const FAILURES_LEN: usize = Record::MAX_VALUE / 2;

/// Names a job. Ids sort by the time at which the jobs were made (UUID version 7 order is not
/// needed: [`JobRecord::created`] says when).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobId(Uuid);

impl JobId {
    pub(crate) fn random() -> Self {
        Self(Uuid::new_v4())
    }

    fn key(self) -> String {
        format!("{PREFIX}{self}")
    }

    fn stop_key(self) -> String {
        format!("{STOPS}{self}")
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for JobId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        Uuid::try_parse(text).map(Self).map_err(|_| Error::Invalid {
            input: None,
            what: "the job id".into(),
            why: "a UUID was expected".into(),
            cure: "coffer job list shows the ids",
        })
    }
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Wraps keys anew: rewrap, a move to another KMS, a downgrade. Its `spec` is a [`crate::MoveSpec`].
    Move,
    /// Copies a directory into a filesystem.
    Import,
    /// Copies a filesystem out.
    Export,
    /// Reads everything and says what is damaged.
    Verify,
    /// Re-encrypts a filesystem under its new key.
    Rekey,
}

/// How a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It runs, or the node died while it did.
    Running,
    /// Somebody stopped it; it can be taken up again.
    Stopped,
    /// All of it is done.
    Done,
    /// It went to its end and some items failed; `failures` names them.
    PartlyDone,
    /// It ended early.
    Failed,
}

impl JobState {
    /// Whether nothing more will happen.
    pub const fn is_final(self) -> bool {
        matches!(self, Self::Done | Self::PartlyDone | Self::Failed)
    }
}

/// How far a job is. `items` are keys or files, `bytes` is 0 where it has no meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Progress {
    /// Items done.
    pub items_done: u64,
    /// Items in all, as far as is known.
    pub items_total: u64,
    /// Items that failed.
    pub items_failed: u64,
    /// Bytes done.
    pub bytes_done: u64,
    /// Bytes in all, as far as is known.
    pub bytes_total: u64,
}

/// What a running job needs from whoever runs it. Called often; it must not block for long.
pub trait JobControl: Send + Sync {
    /// Takes the newest figures.
    fn progress(&self, progress: Progress);
    /// Whether the job should end at its next safe point.
    fn stop_requested(&self) -> bool;
    /// Whether such a stop is for now alone: the job stays recorded as running, and the next node takes it up.
    fn goes_on_later(&self) -> bool;
}

/// A job as it is recorded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct JobRecord {
    /// Its id.
    pub id: JobId,
    /// What it does.
    pub kind: JobKind,
    /// The filesystem it works on; empty for all.
    pub filesystem: String,
    /// How it stands.
    pub state: JobState,
    /// When it was made.
    pub created: UnixMillis,
    /// When it ended.
    pub ended: Option<UnixMillis>,
    /// What exactly to do; understood by whoever runs this kind.
    pub spec: serde_json::Value,
    /// Where to take it up again; understood by whoever runs this kind.
    pub checkpoint: serde_json::Value,
    /// How far it was when it was last recorded.
    pub progress: Progress,
    /// What failed, item by item; at most [`JobRecord::MAX_FAILURES`], each cut to a line.
    pub failures: Vec<String>,
    /// Why it ended early, or what it has to say at its end.
    pub message: String,
    /// Why it waits, while it can't go on.
    #[serde(default)]
    pub blocked: Option<LockReason>,
}

/// What a move has to say of its runs.
#[derive(Debug, Default, Serialize, Deserialize)]
struct MoveCheckpoint {
    from_memory: u64,
    /// Of the last run alone: what an earlier one moved counts there.
    #[serde(default)]
    already: u64,
}

impl JobRecord {
    /// How many failures are kept by name; `progress.items_failed` counts all.
    pub const MAX_FAILURES: usize = 100;

    /// A new job, not yet recorded.
    pub fn new(
        kind: JobKind,
        filesystem: impl Into<String>,
        spec: serde_json::Value,
        now: UnixMillis,
    ) -> Self {
        Self {
            id: JobId::random(),
            kind,
            filesystem: filesystem.into(),
            state: JobState::Running,
            created: now,
            ended: None,
            spec,
            checkpoint: serde_json::Value::Null,
            progress: Progress::default(),
            failures: Vec::new(),
            message: String::new(),
            blocked: None,
        }
    }

    /// Adds a failure, up to the limits.
    pub fn fail_item(&mut self, what: &str) {
        let what: String = what.chars().take(300).collect();
        // As it stands in the record, which has an end: what is escaped there is longer.
        let length = |text: &String| serde_json::to_string(text).map_or(0, |text| text.len());
        let kept: usize = self.failures.iter().map(length).sum();
        if self.failures.len() < Self::MAX_FAILURES && kept + length(&what) <= FAILURES_LEN {
            self.failures.push(what);
        }
    }

    /// Of a move: how many keys were taken from this node's memory.
    pub fn from_memory(&self) -> u64 {
        self.move_checkpoint().from_memory
    }

    /// Of a move that has ended: how many keys its last run found where they should be.
    pub fn already(&self) -> u64 {
        self.move_checkpoint().already
    }

    pub(crate) fn add_from_memory(&mut self, keys: u64) {
        if keys > 0 {
            let before = self.move_checkpoint();
            let from_memory = before.from_memory.saturating_add(keys);
            self.checkpoint = serde_json::json!(MoveCheckpoint { from_memory, ..before });
        }
    }

    pub(crate) fn found_already(&mut self, already: u64) {
        if already > 0 {
            let before = self.move_checkpoint();
            self.checkpoint = serde_json::json!(MoveCheckpoint { already, ..before });
        }
    }

    fn move_checkpoint(&self) -> MoveCheckpoint {
        MoveCheckpoint::deserialize(&self.checkpoint).unwrap_or_default()
    }
}

impl Stored for JobRecord {
    const WHAT: &'static str = "job";

    /// A program that does not know this kind can't read the record.
    fn format(&self) -> u32 {
        if self.kind == JobKind::Rekey { 2 } else { 1 }
    }
}

impl KeyManager {
    /// Records a job: a new one, or the present state of one that is known. Durable on `Ok`.
    ///
    /// # Errors
    /// [`Error::Changed`]: the job is a move that has come to its end, by another that took its place.
    pub async fn save_job(&self, job: &JobRecord) -> Result<(), Error> {
        let mut commit = put_job(Commit::new(), job)?;
        if job.kind == JobKind::Move {
            let (record, recorded) = self.job_record(job.id).await?;
            if recorded.state.is_final() {
                return Err(Error::Changed { what: format!("job {}", job.id) });
            }
            commit = commit.unchanged(&record);
        }
        let what = format!("job {}", job.id);
        self.store().commit(commit).await.map_err(|e| changed(e, &what))?;
        Ok(())
    }

    /// Records that a job that runs is asked to stop, until it is recorded as anything but running. Durable on `Ok`, which has the
    /// job as it is recorded: it may have ended by then.
    pub async fn ask_to_stop(&self, id: JobId) -> Result<JobRecord, Error> {
        loop {
            let (record, job) = self.job_record(id).await?;
            if job.state != JobState::Running {
                return Ok(job);
            }
            // Beside the record, which whoever runs the job writes meanwhile.
            let ask = Commit::new().unchanged(&record).put(id.stop_key(), Vec::new());
            match self.store().commit(ask).await {
                Err(StoreError::Conflict { .. }) => {}
                asked => return Ok(asked.map(|_| job)?),
            }
        }
    }

    /// Whether a job that is recorded as running was asked to stop.
    pub async fn is_asked_to_stop(&self, id: JobId) -> Result<bool, Error> {
        Ok(self.store().get(&id.stop_key()).await?.is_some())
    }

    /// The job with this id.
    pub async fn job(&self, id: JobId) -> Result<JobRecord, Error> {
        Ok(self.job_record(id).await?.1)
    }

    pub(crate) async fn job_record(&self, id: JobId) -> Result<(Record, JobRecord), Error> {
        match self.store().get(&id.key()).await? {
            Some(record) => {
                let job = records::decode(&record)?;
                Ok((record, job))
            }
            None => Err(Error::Unknown { what: format!("job {id}") }),
        }
    }

    /// All jobs, the newest first.
    pub async fn jobs(&self) -> Result<Vec<JobRecord>, Error> {
        let mut jobs = Vec::new();
        for record in records::all(self.store(), PREFIX).await? {
            jobs.push(records::decode::<JobRecord>(&record)?);
        }
        jobs.sort_by_key(|job| std::cmp::Reverse((job.created, job.id)));
        Ok(jobs)
    }

    /// Removes the oldest ended jobs beyond the newest `keep`.
    pub async fn forget_old_jobs(&self, keep: usize) -> Result<(), Error> {
        let ended = self.jobs().await?.into_iter().filter(|job| job.state.is_final()).skip(keep);
        let commit = ended.fold(Commit::new(), |commit, job| commit.delete(job.id.key()));
        if !commit.deletes.is_empty() {
            self.store().commit(commit).await?;
        }
        Ok(())
    }

    /// Ends the move that has not come to its end, if there is one, with `commit`: what is to be done now takes its place.
    /// A run of it that is under way commits nothing more. Answers the job, for the audit log.
    pub(crate) async fn supersede_move(
        &self,
        commit: Commit,
        by: &str,
    ) -> Result<(Commit, Option<JobRecord>), Error> {
        let Some(JobRecord { id, .. }) = self.unfinished_move().await? else {
            return Ok((commit, None));
        };
        let (record, mut job) = self.job_record(id).await?;
        job.state = JobState::Failed;
        job.ended = Some(self.parts().clock.now());
        job.message = format!("{by} took its place before it had come to its end");
        job.blocked = None;
        Ok((put_job(commit.unchanged(&record), &job)?, Some(job)))
    }

    /// The move that has not come to its end, if any: at most one exists at a time.
    pub async fn unfinished_move(&self) -> Result<Option<JobRecord>, Error> {
        let jobs = self.jobs().await?;
        Ok(jobs.into_iter().find(|job| job.kind == JobKind::Move && !job.state.is_final()))
    }
}

/// Adds the job's record to a commit. That it was asked to stop is over once it does not run.
pub(crate) fn put_job(commit: Commit, job: &JobRecord) -> Result<Commit, Error> {
    let key = job.id.key();
    let value = records::encode(job);
    if value.len() > Record::MAX_VALUE {
        return Err(Error::Invalid {
            input: None,
            what: format!("the job record {}", job.id),
            why: format!("it takes {} bytes, more than a record holds", value.len()),
            cure: "name directories with shorter paths",
        });
    }
    let commit = match job.state {
        JobState::Running => commit,
        _ => commit.delete(job.id.stop_key()),
    };
    Ok(commit.put(key, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn however_many_failures_the_record_can_be_kept() {
        for text in ["a/path", "道路".repeat(200).as_str(), "\u{1}".repeat(300).as_str()] {
            let mut job = JobRecord::new(JobKind::Move, "", serde_json::Value::Null, UnixMillis(1));
            (0..500).for_each(|_| job.fail_item(text));
            assert!(!job.failures.is_empty());
            put_job(Commit::new(), &job).unwrap();
        }
    }
}

//! A new key for a filesystem: how its re-encryption begins and ends. In between it is a job on data like others.

use std::fmt::Display;
use std::io;
use std::sync::Arc;

use admin_api::{Exit, Job, Problem};
use key_manager::{Error, FilesystemName, JobKind, JobRecord, JobState, NewKey};
use tokio::task::spawn_blocking;

use super::{Jobs, Spec, Standing, busy, copying, word};
use crate::problem;

/// Why a job has not ended yet.
pub(super) enum NotEnded {
    /// It can't be recorded now.
    Unrecorded(Problem),
    /// Something else keeps it.
    Refused(Problem),
}

impl NotEnded {
    pub(super) fn of(title: &str, error: &Error) -> Self {
        let problem = problem::of_keys(title, error);
        match error {
            Error::Store(_) => Self::Unrecorded(problem),
            _ => Self::Refused(problem),
        }
    }
}

impl Jobs {
    /// Gives a filesystem its new key, which the KMS has wrapped, and starts its re-encryption. One that was begun and has not
    /// come to its end goes on under the keys that it has, whatever kept it.
    pub(crate) async fn rekey(
        self: &Arc<Self>,
        name: &FilesystemName,
        new: Option<NewKey>,
    ) -> Result<Job, Problem> {
        let title = format!("the {} of {name} can't start", word(JobKind::Rekey));
        let of_keys = |e| problem::of_keys(&title, &e);
        let spec = Spec::default().of(&self.manager.filesystem(name).await.map_err(of_keys)?);
        let same = |r: &JobRecord| r.kind == JobKind::Rekey && r.filesystem == name.as_str();
        let _starting = self.starting_after(same).await.map_err(of_keys)?;
        let records = self.manager.jobs().await.map_err(of_keys)?;
        let newest = records.iter().find(|record| same(record));
        if let Some(running) = newest.filter(|record| record.state == JobState::Running) {
            return Ok(self.show(running));
        }
        // What has the filesystem open with the old key alone would not understand what is written from now on.
        if let Some(running) = copying(&records, name).filter(|_| new.is_some()) {
            return Err(busy(title, running));
        }
        let left = newest.filter(|record| {
            new.is_none()
                && record.spec == spec
                && matches!(record.state, JobState::Stopped | JobState::Failed)
        });
        let record = left.cloned().unwrap_or_else(|| {
            JobRecord::new(JobKind::Rekey, name.as_str(), spec, self.clock.now())
        });
        let record = JobRecord { state: JobState::Running, ..record };
        self.manager.begin_rekey(name, new, &record).await.map_err(of_keys)?;
        self.begin(record).await.map_err(of_keys)
    }

    /// Lets the old key go, with the record of the job that left nothing under it. It is partly done where the new one has
    /// been exposed meanwhile.
    pub(super) async fn end_rekey(&self, record: &mut JobRecord) -> Result<(), NotEnded> {
        let again = format!("give coffer fs rekey {} again", record.filesystem);
        let ended = self.try_end_rekey(record).await;
        ended.map_err(|not_ended| match not_ended {
            NotEnded::Refused(problem) => NotEnded::Refused(match &problem.cure {
                Some(cure) => {
                    let cure = format!("{cure}; then {again}");
                    problem.cure(cure)
                }
                None => problem.cure(again),
            }),
            unrecorded @ NotEnded::Unrecorded(_) => unrecorded,
        })
    }

    async fn try_end_rekey(&self, record: &mut JobRecord) -> Result<(), NotEnded> {
        let title = format!("the old key of {} can't be let go", record.filesystem);
        let of_keys = |e| NotEnded::of(&title, &e);
        let name: FilesystemName = record.filesystem.parse().map_err(of_keys)?;
        self.reseal_notes(&name, &title).await?;
        let mut ended = record.clone();
        if self.manager.has_exposed_key(&name).await.map_err(of_keys)? {
            let mut standing = Standing::of(&ended);
            standing.problem = Some(still_exposed(&name));
            standing.put(&mut ended);
            ended.state = JobState::PartlyDone;
        }
        self.manager.end_rekey(&name, &ended).await.map_err(of_keys)?;
        *record = ended;
        self.filesystems.drop_former_key(&name).await;
        Ok(())
    }

    /// Seals under the new key what is kept of other jobs and names files: the old one would open it no more for us, and
    /// for good for whoever has it. What runs seals its own.
    async fn reseal_notes(&self, name: &FilesystemName, title: &str) -> Result<(), NotEnded> {
        let of_keys = |e| NotEnded::of(title, &e);
        let failed = |why: &dyn Display| {
            let why = format!("what is kept of its jobs can't be sealed under the new one: {why}");
            Problem::new(Exit::Failed, "job-failed", title, why)
        };
        let unwritten = |error: io::Error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                NotEnded::Unrecorded(failed(&error).cure("make room in the state directory"))
            }
            _ => NotEnded::Refused(failed(&error).cure("mend the state directory and rekey again")),
        };
        let filesystem = self.filesystems.get(name, title).await.map_err(NotEnded::Refused)?;
        let _starting = self.starting.lock().await;
        for mut record in self.manager.jobs().await.map_err(of_keys)? {
            let is_of_others = record.kind == JobKind::Move || record.filesystem != name.as_str();
            if is_of_others || self.find_live(record.id).is_some() {
                continue;
            }
            let notes = self.notes.of(record.id, Arc::clone(&filesystem));
            let mut standing = Standing::of(&record);
            if let Some(detail) = &standing.detail
                && let Some(reason) = notes.open::<String>("reason", detail.as_bytes())
            {
                standing.detail = Some(notes.seal("reason", &reason).map_err(unwritten)?);
                standing.put(&mut record);
                self.manager.save_job(&record).await.map_err(of_keys)?;
            }
            let resealed = spawn_blocking(move || notes.reseal()).await;
            resealed.map_err(|e| NotEnded::Refused(failed(&e)))?.map_err(unwritten)?;
        }
        Ok(())
    }
}

fn still_exposed(name: &FilesystemName) -> Problem {
    let title = format!("{name} is still exposed");
    let why =
        "all of it lies under its new key alone, which has lain under local wrapping too meanwhile";
    Problem::new(Exit::Partly, "partly-done", title, why)
        .cure(format!("with a KMS set, give coffer fs rekey {name} once more"))
}

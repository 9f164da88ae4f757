//! A new key for a filesystem: how its re-encryption begins and ends. In between it is a job on data like others.

use std::sync::Arc;

use admin_api::{Job, Problem};
use key_manager::{FilesystemName, JobKind, JobRecord, JobState, NewKey};

use super::{Jobs, Spec, busy, copying, word};
use crate::problem;

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
            new.is_none() && matches!(record.state, JobState::Stopped | JobState::Failed)
        });
        let record = left.cloned().unwrap_or_else(|| {
            // A plain struct of names serialises without fail.
            let spec = serde_json::to_value(Spec::default()).unwrap_or_default();
            JobRecord::new(JobKind::Rekey, name.as_str(), spec, self.clock.now())
        });
        let record = JobRecord { state: JobState::Running, ..record };
        self.manager.begin_rekey(name, new, &record).await.map_err(of_keys)?;
        self.begin(record).await.map_err(of_keys)
    }

    /// Lets the old key go, with the record of the job that left nothing under it.
    pub(super) async fn end_rekey(&self, record: &JobRecord) -> Result<(), Problem> {
        let title = format!("the old key of {} can't be let go", record.filesystem);
        let of_keys = |e| problem::of_keys(&title, &e);
        let name: FilesystemName = record.filesystem.parse().map_err(of_keys)?;
        self.manager.end_rekey(&name, record).await.map_err(of_keys)?;
        self.filesystems.drop_former_key(&name).await;
        Ok(())
    }
}

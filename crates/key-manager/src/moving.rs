//! Wrapping keys anew: rewrap under the newest version, a move to another KMS, a downgrade to local wrapping.
//!
//! All of them are one job: bring every key to its target configuration, at its newest version, and then every
//! copy to what the store says. A key that has a master key of its own goes to that one, in whatever KMS the others go to; a downgrade
//! takes all to local wrapping. The job keeps no list of what it did: a key that is already there is skipped, so
//! running it again after a crash at any point sends nothing twice and ends at the same place. For each batch:
//!
//! 1. rewrap in the KMS, or take the keys from memory (or open them under their old configuration) and wrap them;
//! 2. open every new wrapped key under the target and compare its id, and prove that the target is the one that is meant;
//! 3. commit the batch, each record on the condition that it is as it was read;
//! 4. replace the copies in the backing directories, while the next batch is at steps 1 and 2.
//!
//! The old wrapped key is let go in step 3 and 4 only, when the new one has been shown to open. A stop between 3 and 4
//! leaves copies that are behind; the job's next run renews them, and they still open until the old configuration is
//! retired, which needs that every copy was seen to be current.

mod run;

use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{StreamExt as _, stream};
use kms_core::{Commit, FilesystemSite, HolderError, KmsConfigId, KmsError, KmsErrorKind, Outcome};
use serde::{Deserialize, Serialize};

use self::run::Run;
use crate::filesystems::envelope;
use crate::jobs::{JobControl, JobId, JobKind, JobRecord, JobState, Progress, put_job};
use crate::manager::write;
use crate::records::{ConfigRecord, FilesystemRecord, FilesystemState, KeyEntry};
use crate::unlock::{DISKS_AT_ONCE, LockReason, changed};
use crate::{Error, FilesystemName, KeyManager};

/// Keys in one batch. Small enough that a stop or a crash costs little, large enough that round trips do not count.
pub(crate) const BATCH: usize = 1250;

/// What a move has to do; the `spec` of its job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MoveSpec {
    /// Where the keys go that have no master key of their own; with `only`, where that one goes.
    pub target: KmsConfigId,
    /// Why.
    pub purpose: Purpose,
    /// Only the key of this filesystem.
    pub only: Option<FilesystemName>,
}

/// Why keys are wrapped anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Purpose {
    /// The master key was rotated.
    Rewrap,
    /// Another KMS was set.
    Move,
    /// The KMS was removed.
    Downgrade,
    /// The same KMS is reached in another way: only the copies change.
    Renew,
}

/// How a move ended.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct MoveReport {
    /// Keys that were wrapped anew.
    pub moved: u64,
    /// Those of them that were taken from this node's memory: what had wrapped them was not asked, or did not open them.
    pub from_memory: u64,
    /// Keys that were there already.
    pub already: u64,
    /// Copies that were replaced.
    pub copies: u64,
    /// How long it wrapped, proved and recorded keys while no copy was written.
    pub keys_took: Duration,
    /// How long it worked on copies.
    pub copies_took: Duration,
    /// What failed, and why.
    pub failed: Vec<String>,
    /// Whether it was stopped before its end.
    pub stopped: bool,
}

impl KeyManager {
    /// Makes the job that rewraps every key (or one filesystem's) under the newest version of its master key. Run it with [`KeyManager::run_move`].
    /// It takes the place of an unfinished rewrap of one filesystem that it includes, or that was stopped.
    ///
    /// # Errors
    /// [`Error::NotConfigured`]; [`Error::Busy`] while another move is unfinished; [`Error::Kms`] when the master key is not
    /// the one that was configured, or can't be asked.
    pub async fn start_rewrap(&self, only: Option<FilesystemName>) -> Result<JobId, Error> {
        let Some(targets) = self.targets().await? else { return Err(Error::NotConfigured) };
        self.refuse_second_move(only.as_ref()).await?;
        let own = match &only {
            Some(name) => {
                // The run tells what can't be read.
                let entry = self.key_entry(self.filesystem(name).await?.key_id).await.ok();
                entry.and_then(|(_, entry)| entry.own_master_key)
            }
            None => None,
        };
        let target = targets.of(own.as_deref()).ok_or_else(|| unknown(own.as_deref()))?;
        let config = self.config(target).await?;
        let kms = self.kms(config.config.id).await?;
        self.prove_identity(&config, kms.as_ref()).await?;
        let _act = self.begin_act().await;
        self.refuse_second_move(only.as_ref()).await?;
        if let Some(name) = &only {
            self.filesystem(name).await?;
        }
        let job = self.new_move(config.config.id, Purpose::Rewrap, only);
        let commit = put_job(Commit::new().unchanged(&targets.pointer), &job)?;
        let (commit, superseded) = self.supersede_move(commit, &format!("job {}", job.id)).await?;
        self.store().commit(commit).await.map_err(|e| changed(e, "the move of keys"))?;
        self.audit_superseded(superseded.as_ref());
        Ok(job.id)
    }

    /// A move that is not recorded yet.
    pub(crate) fn new_move(
        &self,
        target: KmsConfigId,
        purpose: Purpose,
        only: Option<FilesystemName>,
    ) -> JobRecord {
        let filesystem = only.as_ref().map(ToString::to_string).unwrap_or_default();
        // A plain struct of names serialises without fail.
        let spec = serde_json::to_value(MoveSpec { target, purpose, only }).unwrap_or_default();
        JobRecord::new(JobKind::Move, filesystem, spec, self.parts().clock.now())
    }

    async fn refuse_second_move(&self, only: Option<&FilesystemName>) -> Result<(), Error> {
        let gives_way = |begun: &JobRecord| {
            let of_one = !begun.filesystem.is_empty();
            of_one && (only.is_none() || begun.state == JobState::Stopped)
        };
        match self.unfinished_move().await? {
            Some(begun) if !gives_way(&begun) => {
                let spec = serde_json::from_value::<MoveSpec>(begun.spec);
                let what = spec.map_or("move of keys", |spec| purpose_word(spec.purpose));
                Err(Error::Busy { what: format!("the {what} that job {} does", begun.id) })
            }
            _ => Ok(()),
        }
    }

    /// Runs a move to its end, or until `control` asks for a stop; also one that an earlier node began.
    /// Records how it ended. One move runs at a time.
    ///
    /// # Errors
    /// What kept it from going on (the KMS is away, the store fails): the job stays unfinished and can be run again.
    /// [`Error::Changed`]: another move has taken its place.
    pub async fn run_move(&self, id: JobId, control: &dyn JobControl) -> Result<MoveReport, Error> {
        let _move = self.moves.lock().await;
        let (record, mut job) = self.job_record(id).await?;
        if job.state.is_final() {
            return Err(Error::Invalid {
                input: None,
                what: format!("job {id}"),
                why: "it has come to its end already".into(),
                cure: "see how it ended: coffer job list",
            });
        }
        let spec: MoveSpec = serde_json::from_value(job.spec.clone()).map_err(|e| {
            Error::Record { key: format!("job {id}"), why: format!("its spec can't be read: {e}") }
        })?;
        let before = job.clone();
        job.state = JobState::Running;
        let mut run = Run::begin(self, &spec, record, control).await?;
        let began = Instant::now();
        let done = run.all(&spec).await;
        run.report.keys_took = began.elapsed().saturating_sub(run.report.copies_took);
        if let Err(error) = done {
            job.blocked = Some(LockReason::from(&error));
            if control.stop_requested() && !control.goes_on_later() {
                job.state = JobState::Stopped;
            }
            if run.progress.items_total > 0 {
                job.progress = run.progress;
            }
            job.add_from_memory(run.report.from_memory);
            // One that waits is tried again and again.
            if job != before {
                self.save_job(&job).await?;
            }
            return Err(error);
        }
        let Run { progress, report, .. } = run;
        if !(report.stopped && control.goes_on_later()) {
            self.end_move(job, &spec, progress, &report).await?;
        }
        Ok(report)
    }

    /// Brings every copy to what the store says, after a stop or once a backing directory can be reached again, and
    /// then forgets the configurations that nothing names any more. Answers what can't be brought along, which keeps them
    /// all. Asks no KMS.
    ///
    /// # Errors
    /// [`Error::Busy`] while a move runs, which brings them along itself.
    pub async fn settle_copies(&self) -> Result<Vec<String>, Error> {
        let moves = self.moves.try_lock();
        let _move = moves.map_err(|_| Error::Busy { what: "a move of keys".to_owned() })?;
        let act = self.begin_act().await;
        let filesystems = self.filesystems().await?;
        // Disks take their time, or hang: other acts go on meanwhile.
        drop(act);
        let there = filesystems.into_iter().filter(|fs| fs.state == FilesystemState::Ready);
        let settled = there.map(|filesystem| self.settle_copies_of(filesystem));
        let mut settled = stream::iter(settled).buffer_unordered(DISKS_AT_ONCE);
        let mut failed = Vec::new();
        while let Some(failures) = settled.next().await {
            failed.extend(failures?);
        }
        drop(settled);
        failed.sort();
        write(&self.copies).compared = true;
        let _act = self.begin_act().await;
        self.retire_unused().await?;
        Ok(failed)
    }

    async fn settle_copies_of(&self, filesystem: FilesystemRecord) -> Result<Vec<String>, Error> {
        let mut failed = Vec::new();
        for key in filesystem.keys() {
            // A record that can't be read keeps its filesystem locked and says so there.
            let Ok((_, entry)) = self.key_entry(key).await else { continue };
            // Else it has been deleted meanwhile.
            let Some(config) = self.config_if_kept(entry.wrapped.config_id).await? else {
                continue;
            };
            let (_, renewed) = self.renew_copies(filesystem.site(), entry, Arc::new(config)).await;
            failed.extend(renewed.err().map(|error| format!("{}: {error}", filesystem.name)));
        }
        Ok(failed)
    }

    /// The filesystem, unless it was deleted or is being made.
    async fn ready_filesystem(
        &self,
        name: &FilesystemName,
    ) -> Result<Option<FilesystemRecord>, Error> {
        match self.filesystem(name).await {
            Err(Error::Unknown { .. } | Error::Deleting { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Brings every copy of this key that can be reached, uploaded snapshots aside, to what the store says, and
    /// answers how many were replaced. A copy that is ahead of the store is left: see [`KeyManager::unlock_all`].
    pub(crate) async fn renew_copies(
        &self,
        site: FilesystemSite,
        entry: KeyEntry,
        config: Arc<ConfigRecord>,
    ) -> (FilesystemSite, Result<u64, HolderError>) {
        let renewed = self.replace_copies(&site, &entry, &config).await;
        self.note_copies(&site, entry.wrapped.key_id, renewed.as_ref().map(drop));
        (site, renewed)
    }

    async fn replace_copies(
        &self,
        site: &FilesystemSite,
        entry: &KeyEntry,
        config: &ConfigRecord,
    ) -> Result<u64, HolderError> {
        // With two keys, each is put in its place first.
        self.bring_along(site).await.map_err(|error| {
            let location = site.backing.display().to_string();
            HolderError { location, doing: "replaced", source: error.into() }
        })?;
        let wanted = envelope(site, entry, config);
        let mut each = Vec::new();
        for holder in &self.parts().holders {
            each.push(holder.renew(site, &wanted).await);
        }
        kms_core::replaced(each)
    }

    async fn end_move(
        &self,
        mut job: JobRecord,
        spec: &MoveSpec,
        progress: Progress,
        report: &MoveReport,
    ) -> Result<(), Error> {
        job.progress = progress;
        job.add_from_memory(report.from_memory);
        job.found_already(report.already);
        job.failures.clear();
        report.failed.iter().for_each(|failure| job.fail_item(failure));
        job.state = match (report.stopped, report.failed.is_empty()) {
            (true, _) => JobState::Stopped,
            (false, true) => JobState::Done,
            (false, false) => JobState::PartlyDone,
        };
        job.ended = job.state.is_final().then(|| self.parts().clock.now());
        job.blocked = None;
        job.message = format!(
            "{} key(s) wrapped anew ({} from memory), {} already current, {} copies replaced, {} failure(s)",
            report.moved,
            report.from_memory,
            report.already,
            report.copies,
            report.failed.len()
        );
        self.save_job(&job).await?;
        let outcome = if report.failed.is_empty() { Outcome::Done } else { Outcome::Failed };
        let action = format!("kms.{}", purpose_word(spec.purpose));
        self.audit(&action, &spec.target.to_string(), outcome, &job.message);
        // An old configuration whose copies were not all renewed stays, so that they can still be opened.
        if job.state == JobState::Done {
            let _act = self.begin_act().await;
            self.retire_or_warn().await;
        }
        Ok(())
    }
}

const fn purpose_word(purpose: Purpose) -> &'static str {
    match purpose {
        Purpose::Rewrap => "rewrap",
        Purpose::Move => "move",
        Purpose::Downgrade => "downgrade",
        Purpose::Renew => "renew",
    }
}

/// As after a recovery from directories of several KMSs.
fn unknown(own: Option<&str>) -> KmsError {
    let own = own.unwrap_or_default();
    KmsError::new(
        KmsErrorKind::KeyMissing,
        format!("its own master key {own:?} is not known yet where the KMS is that is set; set that anew: coffer fs kms set-vault"),
    )
    .cure("give coffer fs kms set-vault")
}

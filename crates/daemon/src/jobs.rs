//! Long work: started, watched, stopped, and taken up again after a crash.
//!
//! A job is a record in the key store from the moment it is accepted. One that was running when the node died is
//! still recorded as running, and is taken up again as soon as its filesystem is open
//! ([`Jobs::take_up`]); one that somebody stopped waits for the same command. A copy goes on from its last
//! checkpoint, a verification begins anew, a move of keys looks at what is left.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use admin_api::{BytePath, Damage, Exit, Job, JobKind as ApiKind, JobState as ApiState, Problem};
use filesystem::{Checkpoint, Outcome, ProblemKind, Report};
use key_manager::{
    FilesystemName, JobControl, JobId, JobKind, JobRecord, JobState, KeyManager, Progress,
};
use kms_core::Clock;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinSet, spawn_blocking};

use crate::problem;
use crate::reports::{self, Reports};
use crate::volumes::OpenFilesystems;

/// How many ended jobs are remembered.
const REMEMBERED: usize = 200;

/// The jobs of a node.
pub(crate) struct Jobs {
    manager: Arc<KeyManager>,
    filesystems: Arc<OpenFilesystems>,
    reports: Reports,
    clock: Arc<dyn Clock>,
    live: Mutex<HashMap<JobId, Arc<Live>>>,
    tasks: Mutex<JoinSet<()>>,
    /// Starting is one at a time, so that no filesystem gets two jobs.
    starting: tokio::sync::Mutex<()>,
    /// Woken when a move of keys ended, which can have unlocked something.
    moved: Notify,
    /// Woken, for all that wait, when a job no longer runs and when the node ends.
    changed: Notify,
    closing: AtomicBool,
}

/// A job that runs in this process.
#[derive(Default)]
struct Live {
    stop: AtomicBool,
    progress: Mutex<Progress>,
}

/// What a copy or a verification has to do; the `spec` of its record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Where an import reads or an export writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<BytePath>,
    /// Whether a verification sets aside what it can't read.
    #[serde(default)]
    pub(crate) repair: bool,
}

/// How a copy or a verification stands; the `checkpoint` of its record.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Standing {
    /// Where to go on.
    resume: Option<Checkpoint>,
    /// Whether it has been taken up again.
    resumed: bool,
    /// Why it failed, or did only a part.
    problem: Option<Problem>,
}

impl Standing {
    fn of(record: &JobRecord) -> Self {
        serde_json::from_value(record.checkpoint.clone()).unwrap_or_default()
    }

    fn put(&self, record: &mut JobRecord) {
        // Plain structs with string keys: turning them into a value can't fail.
        record.checkpoint = serde_json::to_value(self).unwrap_or_default();
    }
}

impl Jobs {
    pub(crate) fn new(
        manager: Arc<KeyManager>,
        filesystems: Arc<OpenFilesystems>,
        reports: Reports,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            manager,
            filesystems,
            reports,
            clock,
            live: Mutex::default(),
            tasks: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            moved: Notify::new(),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
        }
    }

    /// Starts a copy or a verification. The same one that runs already is answered as it is; one
    /// that was stopped, or failed, is taken up where it was.
    pub(crate) async fn start(
        self: &Arc<Self>,
        kind: JobKind,
        name: &FilesystemName,
        spec: Spec,
    ) -> Result<Job, Problem> {
        let title = format!("the {} of {name} can't start", word(kind));
        let of_keys = |e| problem::of_keys(&title, &e);
        let _starting = self.starting.lock().await;
        // An unlocked filesystem first: a job that could only wait is refused.
        self.manager.key(name).await.map_err(of_keys)?;
        let spec = serde_json::to_value(&spec).unwrap_or_default();
        let records = self.manager.jobs().await.map_err(of_keys)?;
        let same =
            |r: &JobRecord| r.kind == kind && r.filesystem == name.as_str() && r.spec == spec;
        let mut of_this = records.iter().filter(|r| r.filesystem == name.as_str());
        if let Some(running) = of_this.find(|r| r.state == JobState::Running) {
            if same(running) {
                return Ok(self.show(running));
            }
            return Err(Problem::new(
                Exit::State,
                "busy",
                title,
                format!("the {} that job {} does is under way", word(running.kind), running.id),
            )
            .cure(format!("wait for it, or stop it with coffer job stop {}", running.id)));
        }
        // Only the newest run of this very command: an older one may know less.
        let left = records.into_iter().find(same).filter(|record| {
            matches!(record.state, JobState::Stopped | JobState::Failed)
                && Standing::of(record).resume.is_some()
        });
        let record = match left {
            Some(record) => record,
            None => JobRecord::new(kind, name.as_str(), spec, self.clock.now()),
        };
        self.begin(record).await.map_err(of_keys)
    }

    /// Runs a move of keys that the key manager has recorded.
    pub(crate) async fn run_move(self: &Arc<Self>, id: JobId) -> Result<Job, Problem> {
        let of_keys = |e| problem::of_keys("the keys can't be moved", &e);
        let _starting = self.starting.lock().await;
        let mut record = self.manager.job(id).await.map_err(of_keys)?;
        if self.find_live(id).is_some() {
            return Ok(self.show(&record));
        }
        let stopped = record.state == JobState::Stopped;
        record.state = JobState::Running;
        let mut job = self.begin(record).await.map_err(of_keys)?;
        job.resumed = stopped;
        Ok(job)
    }

    /// Takes up what was running when a node died, as far as it can go on now. Called again whenever that may have
    /// changed; answers whether something still waits.
    pub(crate) async fn take_up(self: &Arc<Self>) -> Result<bool, key_manager::Error> {
        let _starting = self.starting.lock().await;
        let mut waits = false;
        for record in self.manager.jobs().await? {
            if record.state != JobState::Running || self.find_live(record.id).is_some() {
                continue;
            }
            let can_go_on = match record.filesystem.parse::<FilesystemName>() {
                Ok(name) => self.manager.key(&name).await.is_ok(),
                Err(_) => record.kind == JobKind::Move,
            };
            if can_go_on && !self.closing.load(Ordering::Acquire) {
                tracing::info!(job = %record.id, kind = word(record.kind), "taking the job up again");
                self.begin(record).await?;
            } else {
                waits = true;
            }
        }
        Ok(waits)
    }

    /// Waits until a move of keys has ended.
    pub(crate) async fn move_ended(&self) {
        self.moved.notified().await;
    }

    /// How many jobs run or wait.
    pub(crate) async fn unfinished(&self) -> Result<u64, key_manager::Error> {
        let records = self.manager.jobs().await?;
        Ok(records.iter().filter(|record| record.state == JobState::Running).count() as u64)
    }

    /// Asks a job to stop at its next safe point.
    pub(crate) async fn stop(&self, id: JobId) -> Result<Job, Problem> {
        let title = format!("job {id} can't be stopped");
        let of_keys = |e| problem::of_keys(&title, &e);
        let _starting = self.starting.lock().await;
        let mut record = self.manager.job(id).await.map_err(of_keys)?;
        match (self.find_live(id), record.state) {
            (Some(live), _) => live.stop.store(true, Ordering::Release),
            (None, JobState::Running) => {
                record.state = JobState::Stopped;
                self.manager.save_job(&record).await.map_err(of_keys)?;
                self.changed.notify_waiters();
            }
            (None, _) => {
                return Err(Problem::new(Exit::State, "job-ended", title, "it has ended already"));
            }
        }
        Ok(self.show(&record))
    }

    /// Stops what runs on this filesystem and waits for it.
    ///
    /// # Errors
    /// Something runs, and `force` is not given.
    pub(crate) async fn clear(
        &self,
        name: &FilesystemName,
        force: bool,
        title: &str,
    ) -> Result<(), Problem> {
        let records = self.manager.jobs().await.map_err(|e| problem::of_keys(title, &e))?;
        let of_this = |r: &&JobRecord| r.filesystem == name.as_str() && r.kind != JobKind::Move;
        for record in records.iter().filter(of_this).filter(|r| r.state == JobState::Running) {
            if !force {
                return Err(Problem::new(
                    Exit::State,
                    "busy",
                    title,
                    format!("the {} that job {} does uses it", word(record.kind), record.id),
                )
                .cure(format!("wait for it, or stop it with coffer job stop {}", record.id)));
            }
            self.stop(record.id).await?;
            self.until_gone(record.id).await;
        }
        Ok(())
    }

    pub(crate) async fn list(&self) -> Result<Vec<Job>, Problem> {
        let records = self.manager.jobs().await;
        let records = records.map_err(|e| problem::of_keys("the jobs can't be listed", &e))?;
        Ok(records.iter().map(|record| self.show(record)).collect())
    }

    /// Waits until the job has ended, but no longer than `longest`, nor than the node takes requests. A job that waits for its
    /// filesystem or the KMS has not ended.
    pub(crate) async fn until_ended(&self, id: JobId, longest: Duration) -> Result<(), Problem> {
        let ended = async {
            loop {
                let changed = self.changed.notified();
                // Asked after the wait has begun, so that an end in between is not missed.
                let record = self.manager.job(id).await?;
                if record.state != JobState::Running || self.closing.load(Ordering::Acquire) {
                    return Ok(());
                }
                changed.await;
            }
        };
        let ended = tokio::time::timeout(longest, ended).await.unwrap_or(Ok(()));
        ended.map_err(|e| problem::of_keys("the job can't be shown", &e))
    }

    /// Lets go of those who wait for a job, and begins no other.
    pub(crate) fn begin_close(&self) {
        self.closing.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// The job with everything that it could not do, as far as an answer holds it.
    pub(crate) async fn get(&self, id: JobId) -> Result<Job, Problem> {
        let record = self.manager.job(id).await;
        let record = record.map_err(|e| problem::of_keys("the job can't be shown", &e))?;
        let mut job = self.show(&record);
        if job.state == ApiState::Waiting
            && job.problem.is_none()
            && let Ok(name) = record.filesystem.parse()
            && let Err(error) = self.manager.key(&name).await
        {
            job.problem = Some(problem::of_keys("the job waits", &error));
        }
        job.damage = match record.kind {
            JobKind::Move => record.failures.iter().map(|failure| of_key(failure)).collect(),
            _ => {
                let reports = self.reports.clone();
                spawn_blocking(move || reports.read(id)).await.unwrap_or_default()
            }
        };
        Ok(job)
    }

    /// Stops everything and waits for it. What was running is taken up by the next node.
    pub(crate) async fn close(&self) {
        self.begin_close();
        for live in self.lock_live().values() {
            live.stop.store(true, Ordering::Release);
        }
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        while tasks.join_next().await.is_some() {}
    }

    /// Forgets the oldest ended jobs, and their reports.
    pub(crate) async fn forget_old(&self) -> Result<(), key_manager::Error> {
        self.manager.forget_old_jobs(REMEMBERED).await?;
        let known: HashSet<JobId> = self.manager.jobs().await?.iter().map(|job| job.id).collect();
        let reports = self.reports.clone();
        if let Ok(Err(error)) = spawn_blocking(move || reports.keep_only(&known)).await {
            tracing::warn!(%error, "old job reports can't be removed");
        }
        Ok(())
    }

    async fn begin(self: &Arc<Self>, mut record: JobRecord) -> Result<Job, key_manager::Error> {
        let mut standing = Standing::of(&record);
        if record.kind != JobKind::Move {
            standing.resumed = standing.resume.is_some();
            standing.problem = None;
            standing.put(&mut record);
        }
        record.state = JobState::Running;
        record.ended = None;
        record.message.clear();
        self.manager.save_job(&record).await?;
        let live = Arc::new(Live { progress: Mutex::new(record.progress), ..Live::default() });
        self.lock_live().insert(record.id, Arc::clone(&live));
        let job = self.show(&record);
        let this = Arc::clone(self);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move {
            let id = record.id;
            match record.kind {
                JobKind::Move => this.move_keys(id, &live).await,
                _ => this.copy(record, &live).await,
            }
            this.lock_live().remove(&id);
            this.changed.notify_waiters();
            if let Err(error) = this.forget_old().await {
                tracing::warn!(%error, "old jobs can't be removed");
            }
        });
        Ok(job)
    }

    async fn move_keys(&self, id: JobId, live: &Live) {
        match self.manager.run_move(id, live).await {
            Ok(report) => tracing::info!(
                job = %id, moved = report.moved, failed = report.failed.len(), stopped = report.stopped,
                "the move of keys ended"
            ),
            // It stays recorded as running, and is taken up again with the next round of unlocking.
            Err(error) => {
                tracing::warn!(job = %id, %error, "the move of keys can't go on now");
                return;
            }
        }
        self.moved.notify_one();
    }

    /// Runs a copy or a verification and records how it ended.
    async fn copy(&self, record: JobRecord, live: &Arc<Live>) {
        let (id, kind) = (record.id, record.kind);
        let result = self.run_copy(&record, live).await;
        // What the checkpoints have recorded meanwhile.
        let mut record = match self.manager.job(id).await {
            Ok(record) => record,
            Err(error) => {
                tracing::error!(job = %id, %error, "the job's record can't be read; it is taken up again later");
                return;
            }
        };
        let mut standing = Standing::of(&record);
        record.progress = *lock(&live.progress);
        match result {
            Ok(report) => {
                record.progress = progress(&report.progress);
                standing.problem = problem_of(kind, &record.filesystem, &report);
                record.state = match report.outcome {
                    // A node that ends leaves it as running: the next one takes it up.
                    Outcome::Stopped if self.closing.load(Ordering::Acquire) => JobState::Running,
                    Outcome::Stopped => JobState::Stopped,
                    Outcome::Done => JobState::Done,
                    Outcome::PartlyDone => JobState::PartlyDone,
                };
                standing.resume = report.checkpoint;
            }
            Err(problem) => {
                record.state = JobState::Failed;
                record.message = problem.to_string();
                standing.problem = Some(problem);
            }
        }
        record.ended = record.state.is_final().then(|| self.clock.now());
        standing.put(&mut record);
        tracing::info!(job = %id, kind = word(kind), filesystem = record.filesystem, state = ?record.state, "the job ended");
        if let Err(error) = self.manager.save_job(&record).await {
            tracing::error!(job = %id, %error, "the end of the job can't be recorded; it is taken up again");
        }
    }

    async fn run_copy(&self, record: &JobRecord, live: &Arc<Live>) -> Result<Report, Problem> {
        let (id, kind) = (record.id, record.kind);
        let title = format!("the {} of {} failed", word(kind), record.filesystem);
        let name: FilesystemName =
            record.filesystem.parse().map_err(|e| problem::of_keys(&title, &e))?;
        let spec: Spec = serde_json::from_value(record.spec.clone())
            .map_err(|e| problem::internal(&title, e))?;
        let resume = Standing::of(record).resume;
        let filesystem = self.filesystems.get(&name, &title).await?;
        let report_file = if resume.is_none() { self.reports.clear(id) } else { Ok(()) }
            .and_then(|()| self.reports.append(id))
            .map_err(|e| problem::internal(&title, format!("its report can't be written: {e}")))?;
        let control = CopyControl {
            live: Arc::clone(live),
            manager: Arc::clone(&self.manager),
            runtime: Handle::current(),
            record: Mutex::new(record.clone()),
            report_file,
        };
        let path = spec.path.as_ref().map_or_else(PathBuf::new, |path| path.as_path().to_owned());
        let run = move || match kind {
            JobKind::Import => filesystem.import(&path, resume, &control),
            JobKind::Export => filesystem.export(&path, resume, &control),
            _ => filesystem.verify(spec.repair, &control),
        };
        spawn_blocking(run)
            .await
            .map_err(|e| problem::internal(&title, io::Error::from(e)))?
            .map_err(|e| problem::of_filesystem(&title, &e))
    }

    /// The record, with what is known of it in this process.
    fn show(&self, record: &JobRecord) -> Job {
        let live = self.find_live(record.id);
        let standing = Standing::of(record);
        let state = match (record.state, &live) {
            (JobState::Running, Some(live)) if live.stop.load(Ordering::Acquire) => {
                ApiState::Stopping
            }
            (JobState::Running, Some(_)) => ApiState::Running,
            (JobState::Running, None) => ApiState::Waiting,
            (JobState::Stopped, _) => ApiState::Stopped,
            (JobState::Done, _) => ApiState::Done,
            (JobState::PartlyDone, _) => ApiState::Partly,
            (JobState::Failed, _) => ApiState::Failed,
        };
        let done = live.map_or(record.progress, |live| *lock(&live.progress));
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
            },
            created_at: record.created.0,
            ended_at: record.ended.map(|at| at.0),
            problem: if is_move { move_problem(record) } else { standing.problem },
            damage: Vec::new(),
            report: (!is_move).then(|| self.reports.path(record.id).into()),
        }
    }

    fn find_live(&self, id: JobId) -> Option<Arc<Live>> {
        self.lock_live().get(&id).cloned()
    }

    async fn until_gone(&self, id: JobId) {
        loop {
            let changed = self.changed.notified();
            // Asked after the wait has begun, so that an end in between is not missed.
            if self.find_live(id).is_none() {
                return;
            }
            changed.await;
        }
    }

    fn lock_live(&self) -> MutexGuard<'_, HashMap<JobId, Arc<Live>>> {
        lock(&self.live)
    }
}

impl std::fmt::Debug for Jobs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Jobs").field("live", &self.lock_live().len()).finish_non_exhaustive()
    }
}

impl JobControl for Live {
    fn progress(&self, progress: Progress) {
        *lock(&self.progress) = progress;
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}

/// What a copy asks and tells while it runs, from threads that are none of the runtime's.
struct CopyControl {
    live: Arc<Live>,
    manager: Arc<KeyManager>,
    runtime: Handle,
    record: Mutex<JobRecord>,
    report_file: File,
}

impl filesystem::Control for CopyControl {
    fn stop_requested(&self) -> bool {
        self.live.stop.load(Ordering::Acquire)
    }

    fn progress(&self, now: &filesystem::Progress) {
        *lock(&self.live.progress) = progress(now);
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        let mut record = lock(&self.record);
        let mut standing = Standing::of(&record);
        standing.resume = Some(checkpoint.clone());
        standing.put(&mut record);
        record.progress = *lock(&self.live.progress);
        if let Err(error) = self.runtime.block_on(self.manager.save_job(&record)) {
            // The one before it still stands: more is done again, nothing is lost.
            tracing::warn!(job = %record.id, %error, "a checkpoint can't be recorded");
        }
    }

    fn problem(&self, problem: &filesystem::Problem) {
        if let Err(error) = reports::write(&self.report_file, problem) {
            tracing::error!(path = %problem.path.display(), reason = problem.reason, %error, "a problem can't be written to the job's report");
        }
    }
}

fn progress(from: &filesystem::Progress) -> Progress {
    Progress {
        items_done: from.files_done,
        items_total: from.files_total,
        items_failed: from.failed,
        bytes_done: from.bytes_done,
        bytes_total: from.bytes_total,
    }
}

/// What a run that came to its end has to answer for.
fn problem_of(kind: JobKind, name: &str, report: &Report) -> Option<Problem> {
    let count = report.progress.failed;
    if report.outcome != Outcome::PartlyDone {
        return None;
    }
    let damaged = report.problems.iter().any(|problem| problem.kind == ProblemKind::Damaged);
    let (exit, code) =
        if damaged { (Exit::NotAuthentic, "damaged") } else { (Exit::Partly, "partly-done") };
    let title = match kind {
        JobKind::Verify => format!("{name} is not sound"),
        _ => format!("the {} of {name} is not complete", word(kind)),
    };
    let detail = format!("{count} problem(s); the rest is done");
    let cure = match (kind, damaged) {
        (JobKind::Verify, _) => format!(
            "bring the files back from a copy; coffer fs verify {name} --repair sets aside what can't be read"
        ),
        (_, true) => format!(
            "bring the files back from a copy; coffer fs verify {name} names all that is damaged"
        ),
        _ => "see the list, mend what it names, and give the command again".to_owned(),
    };
    Some(Problem::new(exit, code, title, detail).cure(cure))
}

fn move_problem(record: &JobRecord) -> Option<Problem> {
    let title = || "not every key was moved".to_owned();
    match record.state {
        JobState::PartlyDone => Some(
            Problem::new(Exit::Partly, "partly-done", title(), record.message.clone())
                .cure("mend what the job names, then give coffer fs kms rewrap"),
        ),
        JobState::Running if !record.message.is_empty() => Some(
            Problem::new(Exit::KmsUnreachable, "waiting", title(), record.message.clone())
                .cure("the node tries again by itself; see coffer fs kms"),
        ),
        _ => None,
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
        JobKind::Move => match record.spec.get("purpose").and_then(|purpose| purpose.as_str()) {
            Some("rewrap") => ApiKind::Rewrap,
            Some("renew") => ApiKind::Renew,
            Some("downgrade") => ApiKind::Downgrade,
            _ => ApiKind::Move,
        },
    }
}

pub(crate) const fn word(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Import => "import",
        JobKind::Export => "export",
        JobKind::Verify => "verification",
        JobKind::Move => "move of the keys",
    }
}

/// A lock whose holder can't have left it half changed, so that a panic elsewhere is no reason to stop.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

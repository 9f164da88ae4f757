//! Long work: started, watched, stopped, and taken up again after a crash.
//!
//! A job is a record in the key store from the moment it is accepted. One that was running when the node died is
//! still recorded as running, and is taken up again as soon as its filesystem is open
//! ([`Jobs::take_up`]); one that somebody stopped, or had asked to stop by then, waits for the same command. A copy goes on from its last
//! checkpoint, a verification begins anew, a move of keys and a re-encryption look at what is left; until then each tells how far it
//! was when that was last recorded. One whose filesystem is gone fails, stopped or not, and also if another one has the name.
//!
//! What can't be recorded, for want of room as a rule, is tried again until it can: the job waits meanwhile, and says why.
//!
//! A filesystem has one job at a time; others may run beside its re-encryption, which begins while none does.

mod copy;
mod follow;
mod notes;
mod rekey;
mod show;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use admin_api::{BytePath, Exit, Job, Problem};
use key_manager::{
    Error, FilesystemName, FilesystemRecord, JobControl, JobId, JobKind, JobRecord, JobState,
    KeyManager, Progress,
};
use kms_core::{Clock, UnixMillis};
use serde::{Deserialize, Serialize};
use tokio::sync::{Notify, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tracing::Instrument as _;

pub(crate) use follow::Shown;
pub(crate) use notes::{Notes, damage};

use crate::mutex::lock;
use crate::open::OpenFilesystems;
use crate::problem;

/// How long a job that was asked to stop may take. It looks between two blocks.
const STOP_WITHIN: Duration = Duration::from_secs(20);

/// Between two tries to record how a job ended.
const RECORD_EVERY: Duration = Duration::from_secs(2);

/// How many ended jobs are remembered.
const REMEMBERED: usize = 200;

/// The jobs of a node.
pub(crate) struct Jobs {
    manager: Arc<KeyManager>,
    filesystems: Arc<OpenFilesystems>,
    notes: Notes,
    clock: Arc<dyn Clock>,
    live: Mutex<HashMap<JobId, Arc<Live>>>,
    /// Why jobs wait of which nothing can be recorded now, so that their records can't tell.
    unrecorded: Mutex<HashMap<JobId, Problem>>,
    tasks: Mutex<JoinSet<()>>,
    /// Starting is one at a time, so that no filesystem gets two jobs.
    starting: tokio::sync::Mutex<()>,
    /// How the last run of a move of keys ended.
    moved: watch::Sender<MoveRun>,
    /// Woken, for all that wait, when a job is to stop, when one no longer runs, and when the node ends.
    changed: Notify,
    closing: AtomicBool,
    /// Jobs that somebody follows.
    followed: Mutex<HashMap<JobId, watch::Sender<Shown>>>,
}

/// A job that runs in this process.
struct Live {
    moves_keys: bool,
    stop: AtomicBool,
    /// It stops because the node ends, and the next one takes it up.
    node_ends: AtomicBool,
    /// Whether it has come further since it was begun.
    went_on: AtomicBool,
    progress: Mutex<Progress>,
    began: Instant,
    /// How far it was then.
    from: Progress,
}

impl Live {
    fn begin(record: &JobRecord) -> Self {
        // The others look at everything anew, and count what is there already.
        let goes_on = goes_on_from_a_checkpoint(record.kind);
        let from = if goes_on { record.progress } else { Progress::default() };
        Self {
            moves_keys: record.kind == JobKind::Move,
            stop: AtomicBool::new(false),
            node_ends: AtomicBool::new(false),
            went_on: AtomicBool::new(false),
            progress: Mutex::new(record.progress),
            began: Instant::now(),
            from,
        }
    }
}

/// A job is live as long as this is, also if its task breaks.
struct Runs<'a> {
    jobs: &'a Jobs,
    id: JobId,
}

impl Drop for Runs<'_> {
    fn drop(&mut self) {
        self.jobs.lock_live().remove(&self.id);
        self.jobs.changed.notify_waiters();
    }
}

/// How a run of a move of keys ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MoveRun {
    /// At its end, or where somebody stopped it. It can have unlocked something.
    Ended,
    /// It has to be run again: the KMS is away.
    KmsAway,
    /// It has to be run again: something refuses, and may not for ever.
    Refused,
}

/// What a copy or a verification has to do; the `spec` of its record.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Spec {
    /// Where an import reads or an export writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) path: Option<BytePath>,
    /// Whether a verification sets aside what it can't read.
    #[serde(default)]
    pub(crate) repair: bool,
    /// When the filesystem was made that it is for: another one may have its name later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) made: Option<UnixMillis>,
}

impl Spec {
    /// This one, for this filesystem.
    fn of(self, fs: &FilesystemRecord) -> serde_json::Value {
        // A plain struct of names and numbers serialises without fail.
        serde_json::to_value(Self { made: Some(fs.created), ..self }).unwrap_or_default()
    }

    /// Whether it is for this filesystem.
    fn is_of(&self, fs: &FilesystemRecord) -> bool {
        self.made.is_none_or(|made| made == fs.created)
    }
}

/// How a copy or a verification stands; the `checkpoint` of its record. What names files lies in its [`Notes`].
#[derive(Debug, Default, Serialize, Deserialize)]
struct Standing {
    /// Whether it has been taken up again.
    resumed: bool,
    /// Why it failed, or did only a part.
    problem: Option<Problem>,
    /// The problem's detail, sealed, where it can name files.
    detail: Option<String>,
    /// Entries that were copied without their owner.
    #[serde(default)]
    owners_lost: u64,
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
        notes: Notes,
        clock: Arc<dyn Clock>,
    ) -> Self {
        Self {
            manager,
            filesystems,
            notes,
            clock,
            live: Mutex::default(),
            unrecorded: Mutex::default(),
            tasks: Mutex::default(),
            starting: tokio::sync::Mutex::default(),
            moved: watch::Sender::new(MoveRun::Ended),
            changed: Notify::new(),
            closing: AtomicBool::new(false),
            followed: Mutex::default(),
        }
    }

    /// Starts a copy or a verification. The same one that runs already is answered as it is; one
    /// that was stopped, or failed, is taken up where it was. One that is about to stop is waited for.
    pub(crate) async fn start(
        self: &Arc<Self>,
        kind: JobKind,
        name: &FilesystemName,
        spec: Spec,
    ) -> Result<Job, Problem> {
        let title = format!("the {} of {name} can't start", word(kind));
        let of_keys = |e| problem::of_keys(&title, &e);
        let spec = spec.of(&self.manager.filesystem(name).await.map_err(of_keys)?);
        let same =
            |r: &JobRecord| r.kind == kind && r.filesystem == name.as_str() && r.spec == spec;
        let _starting = self.starting_after(same).await.map_err(of_keys)?;
        // An unlocked filesystem first: a job that could only wait is refused.
        self.manager.key(name).await.map_err(of_keys)?;
        let records = self.manager.jobs().await.map_err(of_keys)?;
        if let Some(running) = copying(&records, name) {
            if same(running) {
                return Ok(self.show(running));
            }
            return Err(busy(title, running));
        }
        // Only the newest run of this very command: an older one may know less. Nor one of an import that another has
        // followed, which may have replaced what it brought.
        let overtakes = |r: &JobRecord| {
            kind == JobKind::Import && r.kind == kind && r.filesystem == name.as_str()
        };
        let newest = records.into_iter().find(|record| same(record) || overtakes(record));
        let left = newest.filter(|record| {
            same(record)
                && matches!(record.state, JobState::Stopped | JobState::Failed)
                && self.notes.has_checkpoint(record.id)
        });
        let record = match left {
            Some(record) => record,
            None => JobRecord::new(kind, name.as_str(), spec, self.clock.now()),
        };
        self.begin(record).await.map_err(of_keys)
    }

    /// Runs a move of keys that the key manager has recorded, again if it is about to stop. One that it took the place
    /// of goes no further.
    pub(crate) async fn run_move(self: &Arc<Self>, id: JobId) -> Result<Job, Problem> {
        let of_keys = |e| problem::of_keys("the keys can't be moved", &e);
        let _starting = self.starting_after(|record| record.id == id).await.map_err(of_keys)?;
        let record = self.manager.job(id).await.map_err(of_keys)?;
        if self.find_live(id).is_some() || record.state.is_final() {
            return Ok(self.show(&record));
        }
        for ended in self.manager.jobs().await.map_err(of_keys)? {
            if ended.kind == JobKind::Move && ended.state.is_final() {
                self.find_live(ended.id).inspect(|live| live.stop.store(true, Ordering::Release));
            }
        }
        let stopped = record.state == JobState::Stopped;
        let mut job = self.begin(record).await.map_err(of_keys)?;
        job.resumed = stopped;
        Ok(job)
    }

    /// Takes up what was running when a node died, as far as it can go on now. Called again whenever that may have
    /// changed; answers whether something still waits.
    pub(crate) async fn take_up(self: &Arc<Self>) -> Result<bool, key_manager::Error> {
        let _starting = self.starting.lock().await;
        let mut waits = false;
        let records = self.settled().await?;
        self.fail_stopped(&records).await?;
        for record in records {
            if record.state != JobState::Running || self.find_live(record.id).is_some() {
                continue;
            }
            let can_go_on = match record.filesystem.parse::<FilesystemName>() {
                // It takes no open filesystem: the KMS opens the key.
                _ if record.kind == JobKind::Move => true,
                // One whose filesystem is gone ends with that.
                Ok(name) => {
                    matches!(self.manager.key(&name).await, Ok(_) | Err(Error::Unknown { .. }))
                }
                Err(_) => false,
            };
            if !can_go_on || self.closing.load(Ordering::Acquire) {
                waits = true;
                continue;
            }
            let (id, kind) = (record.id, word(record.kind));
            match self.begin(record).await {
                Ok(_) => tracing::info!(job = %id, kind, "the job is taken up again"),
                Err(error) => {
                    self.cannot_record(id, &error);
                    waits = true;
                }
            }
        }
        Ok(waits)
    }

    /// Fails what was stopped and is of a filesystem that is gone: nothing takes it up.
    pub(crate) async fn fail_orphans(&self) -> Result<(), key_manager::Error> {
        let _starting = self.starting.lock().await;
        self.fail_stopped(&self.settled().await?).await
    }

    /// As [`Self::fail_orphans`], of all jobs.
    async fn fail_stopped(&self, records: &[JobRecord]) -> Result<(), key_manager::Error> {
        let stopped = |record: &&JobRecord| {
            record.state == JobState::Stopped
                && record.kind != JobKind::Move
                && self.find_live(record.id).is_none()
        };
        for record in records.iter().filter(stopped) {
            let Ok(name) = record.filesystem.parse::<FilesystemName>() else { continue };
            let title = failed_title(record);
            let why = match self.manager.filesystem(&name).await {
                Ok(fs) => match serde_json::from_value::<Spec>(record.spec.clone()) {
                    Ok(spec) if !spec.is_of(&fs) => copy::is_of_another(title, &name),
                    _ => continue,
                },
                Err(error @ Error::Unknown { .. }) => problem::of_keys(&title, &error),
                Err(Error::Deleting { .. }) => continue,
                Err(error) => return Err(error),
            };
            let ended = Some(self.clock.now());
            let mut failed = JobRecord { state: JobState::Failed, ended, ..record.clone() };
            let standing = Standing { problem: Some(why), detail: None, ..Standing::of(record) };
            standing.put(&mut failed);
            self.manager.save_job(&failed).await?;
            tracing::info!(job = %record.id, "the job was stopped, and its filesystem is gone");
        }
        Ok(())
    }

    /// Tells each time how a run of a move of keys ended.
    pub(crate) fn move_runs(&self) -> watch::Receiver<MoveRun> {
        self.moved.subscribe()
    }

    /// Whether keys are being moved in this moment.
    pub(crate) fn moves_keys(&self) -> bool {
        self.lock_live().values().any(|live| live.moves_keys)
    }

    /// What runs or waits.
    pub(crate) async fn unfinished(&self) -> Result<Vec<Job>, key_manager::Error> {
        let records = self.manager.jobs().await?;
        let unfinished = records.iter().filter(|record| record.state == JobState::Running);
        Ok(unfinished.map(|record| self.show(record)).collect())
    }

    /// Asks a job to stop at its next safe point. That holds also if the node dies before, unless it can't be recorded, which the job
    /// tells then.
    pub(crate) async fn stop(&self, id: JobId) -> Result<Job, Problem> {
        let title = format!("job {id} can't be stopped");
        let of_keys = |e| problem::of_keys(&title, &e);
        let _starting = self.starting.lock().await;
        let mut record = self.manager.job(id).await.map_err(of_keys)?;
        match (self.find_live(id), record.state) {
            (Some(live), state) if !state.is_final() => {
                match self.manager.ask_to_stop(id).await {
                    Ok(asked) => record = asked,
                    Err(error @ key_manager::Error::Store(_)) => self.cannot_record(id, &error),
                    Err(error) => return Err(of_keys(error)),
                }
                live.stop.store(true, Ordering::Release);
                self.changed.notify_waiters();
            }
            (None, JobState::Running) => {
                record.state = JobState::Stopped;
                self.manager.save_job(&record).await.map_err(of_keys)?;
                self.changed.notify_waiters();
            }
            _ => {
                let why = "it has ended already";
                return Err(Problem::new(Exit::State, "job-ended", title, why)
                    .cure(format!("see how it ended: coffer job show {id}")));
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
            if timeout(STOP_WITHIN, self.until_gone(record.id)).await.is_err() {
                return Err(self.does_not_stop(record, title));
            }
        }
        Ok(())
    }

    /// Why a job that was asked to stop is there still.
    fn does_not_stop(&self, record: &JobRecord, title: &str) -> Problem {
        let (why, cure) = match self.why_unrecorded(record) {
            Some(Problem { title, detail, cure, .. }) => (format!("{title}: {detail}"), cure),
            None => {
                let cure = "check the disk and its mount, and try again".to_owned();
                ("its disk may not answer".to_owned(), Some(cure))
            }
        };
        let asked = format!(
            "the {} that job {} does has been asked to stop and does not: {why}",
            word(record.kind),
            record.id
        );
        let problem = Problem::new(Exit::State, "busy", title, asked);
        cure.into_iter().fold(problem, Problem::cure)
    }

    /// Waits until the job has ended, or something refuses that it goes on, but no longer than `longest`, nor than the node takes
    /// requests. A job that waits for its filesystem or the KMS has not ended.
    pub(crate) async fn until_ended(&self, id: JobId, longest: Duration) -> Result<(), Problem> {
        let ended = async {
            loop {
                let changed = self.changed.notified();
                // Asked after the wait has begun, so that an end in between is not missed.
                let record = self.manager.job(id).await?;
                let refuses = record.blocked.as_ref().is_some_and(|reason| !reason.transient)
                    || (record.kind == JobKind::Move && self.why_unrecorded(&record).is_some());
                let refused = refuses && self.find_live(id).is_none();
                let ended = record.state != JobState::Running;
                if ended || refused || self.closing.load(Ordering::Acquire) {
                    return Ok(());
                }
                changed.await;
            }
        };
        let ended = timeout(longest, ended).await.unwrap_or(Ok(()));
        ended.map_err(|e| problem::of_keys("the job can't be shown", &e))
    }

    /// Lets go of those who wait for a job, and begins no other.
    pub(crate) fn begin_close(&self) {
        self.closing.store(true, Ordering::Release);
        self.changed.notify_waiters();
    }

    /// Stops everything and waits for it, as long as is reasonable. What was running is taken up by the next node.
    pub(crate) async fn close(&self) {
        self.begin_close();
        for live in self.lock_live().values() {
            // One that somebody has stopped stays so.
            live.node_ends.store(!live.stop_requested(), Ordering::Release);
            live.stop.store(true, Ordering::Release);
        }
        let mut tasks = std::mem::take(&mut *lock(&self.tasks));
        let all = async { while tasks.join_next().await.is_some() {} };
        if timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!(
                "a job does not stop: its disk may not answer. It is taken up where its last checkpoint was"
            );
        }
    }

    /// Forgets the oldest ended jobs, and their notes.
    pub(crate) async fn forget_old(&self) -> Result<(), key_manager::Error> {
        // A job that begins meanwhile would not be known, and lose its notes.
        let _starting = self.starting.lock().await;
        self.manager.forget_old_jobs(REMEMBERED).await?;
        let jobs = self.manager.jobs().await?;
        let runs = |id: &JobId| jobs.iter().any(|j| j.id == *id && j.state == JobState::Running);
        lock(&self.unrecorded).retain(|id, _| runs(id));
        let known: HashSet<JobId> = jobs.iter().map(|job| job.id).collect();
        let notes = self.notes.clone();
        if let Ok(Err(error)) = spawn_blocking(move || notes.keep_only(&known)).await {
            tracing::warn!(%error, "the notes of old jobs can't be removed");
        }
        Ok(())
    }

    /// The right to start a job, once `same` that is on its way out has ended: whoever asks for it again wants it to go on.
    async fn starting_after(
        &self,
        same: impl Fn(&JobRecord) -> bool,
    ) -> Result<tokio::sync::MutexGuard<'_, ()>, key_manager::Error> {
        loop {
            let starting = self.starting.lock().await;
            let records = self.settled().await?;
            let ends = |record: &&JobRecord| {
                self.find_live(record.id).is_some_and(|live| {
                    live.stop.load(Ordering::Acquire) || record.state != JobState::Running
                })
            };
            let Some(ending) = records.iter().filter(|record| same(record)).find(ends) else {
                return Ok(starting);
            };
            // Others may start and stop theirs meanwhile.
            drop(starting);
            self.until_gone(ending.id).await;
        }
    }

    /// All jobs, the newest first. Those that were asked to stop when an earlier node died are recorded as stopped. The caller
    /// has the right to start jobs.
    async fn settled(&self) -> Result<Vec<JobRecord>, key_manager::Error> {
        let mut records = self.manager.jobs().await?;
        for record in &mut records {
            if record.state == JobState::Running
                && self.find_live(record.id).is_none()
                && self.manager.is_asked_to_stop(record.id).await?
            {
                record.state = JobState::Stopped;
                self.manager.save_job(record).await?;
                tracing::info!(job = %record.id, "the job was asked to stop, and is not taken up");
            }
        }
        Ok(records)
    }

    async fn begin(self: &Arc<Self>, mut record: JobRecord) -> Result<Job, key_manager::Error> {
        let before = record.clone();
        if record.kind != JobKind::Move {
            let resumed = self.notes.has_checkpoint(record.id);
            Standing { resumed, ..Standing::default() }.put(&mut record);
        }
        record.state = JobState::Running;
        record.ended = None;
        record.message.clear();
        // A move that runs is recorded already, and one that waits is begun again and again.
        if record.kind != JobKind::Move || record != before {
            self.manager.save_job(&record).await?;
        }
        // A move tells when it has come further.
        if record.kind != JobKind::Move {
            lock(&self.unrecorded).remove(&record.id);
        }
        let live = Arc::new(Live::begin(&record));
        self.lock_live().insert(record.id, Arc::clone(&live));
        let job = self.show(&record);
        let this = Arc::clone(self);
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        // Of its own, whoever began it: the request that did is answered long before it ends.
        let span = tracing::error_span!(
            parent: None, "job", job = %record.id, kind = word(record.kind), filesystem = record.filesystem
        );
        let run = async move {
            let id = record.id;
            let runs = Runs { jobs: &this, id };
            let moved = match record.kind {
                JobKind::Move => Some(this.move_keys(id, &live).await),
                _ => {
                    this.copy(record, &live).await;
                    None
                }
            };
            drop(runs);
            // Told when it is no longer live, so that it can be begun again.
            if let Some(run) = moved {
                this.moved.send_replace(run);
            }
            if let Err(error) = this.forget_old().await {
                tracing::warn!(%error, "old jobs can't be removed");
            }
        };
        tasks.spawn(run.instrument(span));
        Ok(job)
    }

    /// A move that can't go on stays recorded as running; the keeper runs it again.
    async fn move_keys(&self, id: JobId, live: &Live) -> MoveRun {
        match self.manager.run_move(id, live).await {
            Ok(report) => {
                lock(&self.unrecorded).remove(&id);
                let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
                let (keys_ms, copies_ms) = (millis(report.keys_took), millis(report.copies_took));
                tracing::info!(
                    moved = report.moved,
                    failed = report.failed.len(),
                    stopped = report.stopped,
                    keys_ms,
                    copies_ms,
                    "the move of keys ended"
                );
                MoveRun::Ended
            }
            Err(error) => {
                tracing::warn!(%error, "the move of keys can't go on now");
                match &error {
                    key_manager::Error::Store(_) => self.cannot_record(id, &error),
                    _ => drop(lock(&self.unrecorded).remove(&id)),
                }
                match error.is_transient() {
                    true => MoveRun::KmsAway,
                    false => MoveRun::Refused,
                }
            }
        }
    }

    /// Notes why a job waits that can't be recorded, for [`Jobs::show`].
    fn cannot_record(&self, id: JobId, error: &key_manager::Error) {
        let problem = problem::of_keys("the job can't be recorded now", error);
        self.waits_unrecorded(id, problem);
    }

    fn waits_unrecorded(&self, id: JobId, problem: Problem) {
        const AGAIN: &str = "the node tries again by itself";
        let cure = match &problem.cure {
            Some(cure) => format!("{cure}; {AGAIN}"),
            None => AGAIN.to_owned(),
        };
        let problem = problem.cure(cure);
        let before = lock(&self.unrecorded).insert(id, problem.clone());
        if before.is_none_or(|before| before.detail != problem.detail) {
            tracing::error!(job = %id, reason = problem.detail, "the job waits: {}", problem.title);
        }
    }

    /// Why the job waits, if it is because nothing of it can be recorded.
    fn why_unrecorded(&self, record: &JobRecord) -> Option<Problem> {
        let why = lock(&self.unrecorded).get(&record.id).cloned();
        why.filter(|_| record.state == JobState::Running)
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
        self.went_on.store(true, Ordering::Release);
        *lock(&self.progress) = progress;
    }

    fn stop_requested(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn goes_on_later(&self) -> bool {
        self.node_ends.load(Ordering::Acquire)
    }
}

/// The copy or verification of this filesystem that runs, or waits.
fn copying<'a>(records: &'a [JobRecord], name: &FilesystemName) -> Option<&'a JobRecord> {
    records.iter().find(|record| {
        record.filesystem == name.as_str()
            && record.state == JobState::Running
            && !matches!(record.kind, JobKind::Move | JobKind::Rekey)
    })
}

fn busy(title: impl Into<String>, running: &JobRecord) -> Problem {
    let why = format!("the {} that job {} does is under way", word(running.kind), running.id);
    Problem::new(Exit::State, "busy", title, why)
        .cure(format!("wait for it, or stop it with coffer job stop {}", running.id))
}

fn failed_title(record: &JobRecord) -> String {
    format!("the {} of {} failed", word(record.kind), record.filesystem)
}

/// Whether a job of this kind begins where its last checkpoint was.
const fn goes_on_from_a_checkpoint(kind: JobKind) -> bool {
    matches!(kind, JobKind::Import | JobKind::Export)
}

pub(crate) const fn word(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Import => "import",
        JobKind::Export => "export",
        JobKind::Verify => "verification",
        JobKind::Move => "move of the keys",
        JobKind::Rekey => "re-encryption",
    }
}

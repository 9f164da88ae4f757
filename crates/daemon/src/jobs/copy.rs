//! A run of an import, an export, a verification or a re-encryption, from its record to how it ended.

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin_api::{Exit, Problem};
use filesystem::{Checkpoint, Outcome, ProblemKind, Report};
use key_manager::{
    FilesystemName, JobControl as _, JobKind, JobRecord, JobState, KeyManager, Progress,
};
use tokio::runtime::Handle;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::notes::JobNotes;
use super::rekey::NotEnded;
use super::{
    Jobs, Live, RECORD_EVERY, Spec, Standing, failed_title, goes_on_from_a_checkpoint, lock, word,
};
use crate::problem;

/// What stands in the record in the place of a reason that can name files.
const SEALED: &str = "the reason can name files; it is shown while the filesystem is unlocked";

/// How often it is recorded how far a job is that has no checkpoints, so that the next node can tell it before it goes on.
const PROGRESS_EVERY: Duration = Duration::from_secs(1);

/// Why a run ended early.
struct Failure {
    problem: Problem,
    /// The problem's detail, sealed.
    detail: Option<String>,
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { problem, detail: None }
    }
}

impl Failure {
    fn of_files(mut problem: Problem, notes: &JobNotes) -> Self {
        // Without random bytes the reason is lost, and no name told.
        let detail = notes.seal("reason", &problem.detail).ok();
        problem.detail = SEALED.to_owned();
        Self { problem, detail }
    }
}

impl Jobs {
    /// Runs a job on the data of a filesystem and records how it ended.
    pub(super) async fn copy(&self, mut record: JobRecord, live: &Arc<Live>) {
        let (id, kind) = (record.id, record.kind);
        let mut standing = Standing::of(&record);
        match self.run_copy(&record, live).await {
            Ok(report) => {
                record.progress = progress(&report.progress);
                standing.resumed = report.resumed;
                let spec = serde_json::from_value::<Spec>(record.spec.clone());
                let repair = spec.is_ok_and(|spec| spec.repair);
                standing.problem = problem_of(kind, repair, &record.filesystem, &report);
                standing.owners_lost = report.progress.owners_lost;
                record.state = match report.outcome {
                    // A node that ends leaves it as running: the next one takes it up.
                    Outcome::Stopped if live.goes_on_later() => JobState::Running,
                    Outcome::Stopped => JobState::Stopped,
                    Outcome::Done => JobState::Done,
                    Outcome::PartlyDone => JobState::PartlyDone,
                };
            }
            Err(Failure { problem, detail }) => {
                record.progress = *lock(&live.progress);
                record.state = JobState::Failed;
                (standing.problem, standing.detail) = (Some(problem), detail);
            }
        }
        record.ended = record.state.is_final().then(|| self.clock.now());
        standing.put(&mut record);
        if !self.record_end(&mut record, live).await {
            return;
        }
        tracing::info!(state = ?record.state, "the job ended");
        // Not before: a node that died in between would begin anew.
        if matches!(record.state, JobState::Done | JobState::PartlyDone)
            && let Err(error) = self.notes.remove_checkpoint(id)
        {
            tracing::warn!(%error, "a checkpoint that is not needed any more can't be removed");
        }
    }

    /// Records how a job ended, and lets the old key go of which a re-encryption has left nothing. What can't be recorded now is
    /// tried again until it can, and told meanwhile. Answers whether it is recorded: not if the node ends before, and the next one takes the job up.
    async fn record_end(&self, record: &mut JobRecord, live: &Live) -> bool {
        loop {
            let lets_go = record.kind == JobKind::Rekey && record.state == JobState::Done;
            let recorded = match lets_go {
                true => self.end_rekey(record).await,
                false => self.save_end(record).await,
            };
            match recorded {
                Ok(()) => return true,
                Err(NotEnded::Refused(problem)) if lets_go => {
                    record.state = JobState::Failed;
                    Standing { problem: Some(problem), ..Standing::of(record) }.put(record);
                    continue;
                }
                Err(NotEnded::Refused(problem)) => {
                    let why = problem.detail;
                    tracing::error!(
                        why,
                        "the end of the job can't be recorded; it is taken up again"
                    );
                    return false;
                }
                Err(NotEnded::Unrecorded(problem)) => self.waits_unrecorded(record.id, problem),
            }
            let changed = self.changed.notified();
            if self.closing.load(Ordering::Acquire) {
                return false;
            }
            let stops = || lets_go && live.stop_requested() && !live.goes_on_later();
            if !stops() {
                // Whatever wakes it: the next try tells.
                let _ = timeout(RECORD_EVERY, changed).await;
            }
            // The old key can be let go at another time.
            if stops() {
                (record.state, record.ended) = (JobState::Stopped, None);
            }
        }
    }

    async fn save_end(&self, record: &JobRecord) -> Result<(), NotEnded> {
        let saved = self.manager.save_job(record).await;
        saved.map_err(|e| NotEnded::of("the end of the job can't be recorded", &e))
    }

    async fn run_copy(&self, record: &JobRecord, live: &Arc<Live>) -> Result<Report, Failure> {
        let kind = record.kind;
        let title = failed_title(record);
        let name: FilesystemName =
            record.filesystem.parse().map_err(|e| problem::of_keys(&title, &e))?;
        let spec: Spec = serde_json::from_value(record.spec.clone())
            .map_err(|e| problem::internal(&title, e))?;
        let filesystem = self.filesystems.get(&name, &title).await?;
        // What is open is no newer than what is recorded by now.
        let of_now = self.manager.filesystem(&name).await;
        if !spec.is_of(&of_now.map_err(|e| problem::of_keys(&title, &e))?) {
            return Err(is_of_another(title, &name).into());
        }
        let notes = self.notes.of(record.id, Arc::clone(&filesystem));
        let resume = notes.read_checkpoint();
        let report_file = notes
            .begin_report(resume.as_ref())
            .map_err(|e| problem::internal(&title, format!("its report can't be written: {e}")))?;
        let control = CopyControl {
            live: Arc::clone(live),
            manager: Arc::clone(&self.manager),
            runtime: Handle::current(),
            record: record.clone(),
            notes: notes.clone(),
            report_file,
            recorded: Mutex::new(Instant::now()),
        };
        let path = spec.path.as_ref().map_or_else(PathBuf::new, |path| path.as_path().to_owned());
        let run = move || {
            let report = match kind {
                JobKind::Import => filesystem.import(&path, resume, &control),
                JobKind::Export => filesystem.export(&path, resume, &control),
                JobKind::Rekey => filesystem.rekey(&control),
                _ => filesystem.verify(spec.repair, &control),
            }?;
            if let Some(checkpoint) = &report.checkpoint {
                control.keep(checkpoint);
            }
            Ok(report)
        };
        let span = tracing::Span::current();
        spawn_blocking(move || span.in_scope(run))
            .await
            .map_err(|e| problem::internal(&title, io::Error::from(e)))?
            .map_err(|e| Failure::of_files(problem::of_filesystem(&title, &e), &notes))
    }
}

/// What a copy asks and tells while it runs, from threads that are none of the runtime's.
struct CopyControl {
    live: Arc<Live>,
    manager: Arc<KeyManager>,
    runtime: Handle,
    /// As it was at the start.
    record: JobRecord,
    notes: JobNotes,
    report_file: File,
    /// When how far it is was recorded last.
    recorded: Mutex<Instant>,
}

impl CopyControl {
    /// The checkpoint before still stands if this fails: more is done again, nothing is lost.
    fn keep(&self, checkpoint: &Checkpoint) {
        if let Err(error) = self.notes.save_checkpoint(checkpoint) {
            tracing::warn!(%error, "a checkpoint can't be kept");
        }
    }

    /// Records how far it is.
    fn record_progress(&self) {
        let record = JobRecord { progress: *lock(&self.live.progress), ..self.record.clone() };
        if let Err(error) = self.runtime.block_on(self.manager.save_job(&record)) {
            tracing::warn!(%error, "the progress can't be recorded");
        }
    }
}

impl filesystem::Control for CopyControl {
    fn stop_requested(&self) -> bool {
        self.live.stop.load(Ordering::Acquire)
    }

    fn progress(&self, now: &filesystem::Progress) {
        *lock(&self.live.progress) = progress(now);
        // A copy does it with its checkpoints; the others have none.
        if goes_on_from_a_checkpoint(self.record.kind) {
            return;
        }
        let mut recorded = lock(&self.recorded);
        if recorded.elapsed() >= PROGRESS_EVERY {
            self.record_progress();
            *recorded = Instant::now();
        }
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        self.keep(checkpoint);
        if *checkpoint == Checkpoint::default()
            && let Err(error) = self.report_file.set_len(0)
        {
            tracing::warn!(%error, "the report of an earlier run can't be emptied");
        }
        self.record_progress();
    }

    fn problem(&self, problem: &filesystem::Problem) {
        if let Err(error) = self.notes.add(&self.report_file, problem) {
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

pub(super) fn is_of_another(title: String, name: &FilesystemName) -> Problem {
    let why = "the filesystem that it was for is gone; what has its name now was made later";
    Problem::new(Exit::State, "unknown", title, why)
        .cure(format!("if it is meant for the new {name}, give the command again"))
}

/// What a run that came to its end has to answer for.
fn problem_of(kind: JobKind, repair: bool, name: &str, report: &Report) -> Option<Problem> {
    let count = report.progress.failed;
    if report.outcome != Outcome::PartlyDone {
        return None;
    }
    let damaged = report.problems.iter().any(|problem| problem.kind == ProblemKind::Damaged);
    let (exit, code) = match kind {
        // What is damaged was so before.
        JobKind::Rekey => (Exit::Partly, "partly-done"),
        _ if damaged => (Exit::NotAuthentic, "damaged"),
        _ => (Exit::Partly, "partly-done"),
    };
    let title = match kind {
        JobKind::Verify if damaged => format!("{name} is not sound"),
        _ => format!("the {} of {name} is not complete", word(kind)),
    };
    let detail = match kind {
        // What the system did not let be read may be sound.
        JobKind::Verify if !damaged => {
            format!("{count} item(s) can't be read now; no damage was found")
        }
        JobKind::Rekey => format!(
            "{count} problem(s); what they name lies under the old key still, which stays for it; the rest is done"
        ),
        _ => format!("{count} problem(s); the rest is done"),
    };
    let cure = match kind {
        JobKind::Verify if damaged => cure_of_damage(repair, name, report.lost),
        JobKind::Verify => format!(
            "check what the list names (the disk, the mount, the limit on open files), then give coffer fs verify {name} again"
        ),
        JobKind::Rekey if damaged => format!(
            "see the list: coffer fs verify {name} --repair sets aside what is damaged, to be brought back from a copy; look through what lies in coffer.lost, and remove it; then give coffer fs rekey {name} again"
        ),
        JobKind::Rekey => format!(
            "see the list, mend what it names, and give coffer fs rekey {name} again: it goes on with what is left"
        ),
        _ if damaged => format!(
            "bring the files back from a copy; coffer fs verify {name} names all that is damaged"
        ),
        // Its directory is not empty by now.
        JobKind::Export => {
            "see the list, mend what it names, and export to a new directory".to_owned()
        }
        _ => "see the list, mend what it names, and give the command again".to_owned(),
    };
    Some(Problem::new(exit, code, title, detail).cure(cure))
}

fn cure_of_damage(repair: bool, name: &str, lost: bool) -> String {
    match (lost, repair) {
        (true, false) => format!(
            "bring the files back from a copy; coffer fs verify {name} --repair sets aside what can't be read"
        ),
        (true, true) => "bring back from a copy what was set aside; the list names it".to_owned(),
        (false, false) => format!(
            "nothing is lost; coffer fs verify {name} --repair writes again what is there a second time"
        ),
        (false, true) => {
            "nothing is lost; the list tells what was written again, and what has to be done for the rest"
                .to_owned()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(kinds: &[ProblemKind], lost: bool) -> Report {
        let problem = |kind: &ProblemKind| filesystem::Problem {
            path: "file".into(),
            ciphertext: None,
            kind: *kind,
            reason: "why".into(),
        };
        Report {
            outcome: Outcome::PartlyDone,
            resumed: false,
            progress: filesystem::Progress { failed: kinds.len() as u64, ..Default::default() },
            problems: kinds.iter().map(problem).collect(),
            problems_omitted: 0,
            lost,
            checkpoint: None,
        }
    }

    fn verified(kinds: &[ProblemKind]) -> Problem {
        partly(JobKind::Verify, kinds)
    }

    fn partly(job: JobKind, kinds: &[ProblemKind]) -> Problem {
        problem_of(job, false, "home", &report(kinds, true)).unwrap()
    }

    #[test]
    fn files_are_to_be_brought_back_only_where_some_are_lost() {
        let cure = |repair, lost| {
            let report = report(&[ProblemKind::Damaged], lost);
            problem_of(JobKind::Verify, repair, "home", &report).unwrap().cure.unwrap()
        };
        assert!(
            cure(false, true).contains("from a copy") && cure(true, true).contains("from a copy")
        );
        for cure in [cure(false, false), cure(true, false)] {
            assert!(cure.starts_with("nothing is lost") && !cure.contains("from a copy"), "{cure}");
        }
        assert!(!cure(true, true).contains("--repair"));
    }

    #[test]
    fn what_the_system_does_not_let_be_read_is_not_called_unsound() {
        for kind in [ProblemKind::Leftover, ProblemKind::Attribute] {
            let unread = verified(&[ProblemKind::Io, kind]);
            assert_eq!(unread.exit, Exit::Partly);
            assert_eq!(unread.title, "the verification of home is not complete");
            let cure = unread.cure.unwrap();
            assert!(cure.contains("disk") && !cure.contains("copy"), "{cure}");
        }
        let unsound = verified(&[ProblemKind::Io, ProblemKind::Damaged]);
        assert_eq!(
            (unsound.exit, unsound.title.as_str()),
            (Exit::NotAuthentic, "home is not sound")
        );
        assert!(unsound.cure.unwrap().contains("from a copy"));
    }

    /// The command itself would answer that the directory is not empty.
    #[test]
    fn an_export_that_is_not_complete_is_given_again_to_a_new_directory() {
        let cure = |job| partly(job, &[ProblemKind::Io]).cure.unwrap();
        assert!(cure(JobKind::Import).ends_with("give the command again"));
        let cure = cure(JobKind::Export);
        assert!(cure.contains("new directory") && !cure.contains("command again"), "{cure}");
        let damaged = partly(JobKind::Export, &[ProblemKind::Io, ProblemKind::Damaged]);
        assert!(damaged.cure.unwrap().contains("from a copy"));
    }
}

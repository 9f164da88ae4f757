//! What the node keeps of jobs that names files: what each could not do, in full, and where it goes on.
//!
//! It lies in the state directory, where nothing readable of an encrypted filesystem may lie, so it is sealed under the
//! filesystem's key and can be read while that is unlocked. The job's record has no room for it either.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, BufWriter, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admin_api::{Damage, paths};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filesystem::{Checkpoint, Filesystem, ProblemKind};
use key_manager::JobId;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Where the notes of all jobs lie.
#[derive(Debug, Clone)]
pub(crate) struct Notes {
    directory: PathBuf,
}

impl Notes {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    /// Those of one job, which its filesystem seals and opens.
    pub(super) fn of(&self, id: JobId, filesystem: Arc<Filesystem>) -> JobNotes {
        JobNotes { id, report: self.report(id), checkpoint: self.checkpoint(id), filesystem }
    }

    /// Whether there is something that the job could not do.
    pub(super) fn has_report(&self, id: JobId) -> bool {
        fs::metadata(self.report(id)).is_ok_and(|report| report.len() > 0)
    }

    /// Whether the job can go on where it was.
    pub(super) fn has_checkpoint(&self, id: JobId) -> bool {
        self.checkpoint(id).exists()
    }

    /// For a job that has come to its end.
    pub(super) fn remove_checkpoint(&self, id: JobId) -> io::Result<()> {
        remove(&self.checkpoint(id))
    }

    /// Removes those of jobs that are remembered no more.
    pub(super) fn keep_only(&self, jobs: &HashSet<JobId>) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<JobId>().ok());
            if id.is_some_and(|id| !jobs.contains(&id)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    fn report(&self, id: JobId) -> PathBuf {
        self.directory.join(format!("{id}.report"))
    }

    fn checkpoint(&self, id: JobId) -> PathBuf {
        self.directory.join(format!("{id}.checkpoint"))
    }
}

/// The notes of one job.
#[derive(Debug, Clone)]
pub(super) struct JobNotes {
    id: JobId,
    report: PathBuf,
    checkpoint: PathBuf,
    filesystem: Arc<Filesystem>,
}

impl JobNotes {
    /// Opens the report to add to it. It keeps what an earlier run had told when `resume` was taken, for the rest comes
    /// again.
    pub(super) fn begin_report(&self, resume: Option<&Checkpoint>) -> io::Result<File> {
        let mut options = OpenOptions::new();
        let report = options.read(true).append(true).create(true).mode(0o600).open(&self.report)?;
        let told = resume.map_or(0, |checkpoint| checkpoint.problems_told().unwrap_or(u64::MAX));
        report.set_len(end_of_lines(&report, told)?)?;
        Ok(report)
    }

    /// Adds to the report. Whoever reads gets whole lines: it is one write.
    pub(super) fn add(&self, mut report: &File, problem: &filesystem::Problem) -> io::Result<()> {
        report.write_all((self.seal("report", &damage(problem))? + "\n").as_bytes())
    }

    /// A page of the report, from this byte of it on, and where the next one begins. What can't be opened is not shown.
    pub(super) fn damage(&self, from: u64) -> (Vec<Damage>, Option<u64>) {
        self.try_damage(from).unwrap_or_default()
    }

    fn try_damage(&self, from: u64) -> io::Result<(Vec<Damage>, Option<u64>)> {
        let mut file = File::open(&self.report)?;
        file.seek(SeekFrom::Start(from))?;
        let mut rest = BufReader::new(file);
        let (mut page, mut at, mut line) = (Vec::new(), from, Vec::new());
        while page.len() < paths::PAGE_LIMIT && rest.read_until(b'\n', &mut line)? > 0 {
            at += line.len() as u64;
            page.extend(self.open("report", &line));
            line.clear();
        }
        let more = !rest.fill_buf()?.is_empty();
        Ok((page, more.then_some(at)))
    }

    /// Keeps this in the place of the checkpoint before, durably; a crash meanwhile leaves one of the two.
    pub(super) fn save_checkpoint(&self, checkpoint: &Checkpoint) -> io::Result<()> {
        let sealed = self.seal("checkpoint", checkpoint)?;
        replace(&self.checkpoint, |file| file.write_all(sealed.as_bytes()))
    }

    /// Seals all of it anew, under the key that its filesystem has by now. What can't be opened stays as it is.
    pub(super) fn reseal(&self) -> io::Result<()> {
        if let Some(checkpoint) = self.read_checkpoint() {
            self.save_checkpoint(&checkpoint)?;
        }
        let report = match File::open(&self.report) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            report => report?,
        };
        replace(&self.report, |file| {
            let (mut lines, mut line) = (BufReader::new(report), Vec::new());
            let mut file = BufWriter::new(file);
            while lines.read_until(b'\n', &mut line)? > 0 {
                match self.open::<serde_json::Value>("report", &line) {
                    Some(damage) => writeln!(file, "{}", self.seal("report", &damage)?)?,
                    None => file.write_all(&line)?,
                }
                line.clear();
            }
            file.flush()
        })
    }

    /// Where to go on. One that can't be opened is none: the job begins anew, and nothing is lost.
    pub(super) fn read_checkpoint(&self) -> Option<Checkpoint> {
        let sealed = fs::read_to_string(&self.checkpoint).ok()?;
        let opened = self.open("checkpoint", sealed.as_bytes());
        if opened.is_none() {
            tracing::warn!(job = %self.id, "the checkpoint can't be opened: the job begins anew");
        }
        opened
    }

    /// `what` tells notes of one job apart.
    pub(super) fn seal(&self, what: &str, note: &impl Serialize) -> io::Result<String> {
        let plain = serde_json::to_vec(note)?;
        let sealed = self.filesystem.seal_note(self.context(what).as_bytes(), &plain);
        Ok(STANDARD.encode(sealed.map_err(io::Error::other)?))
    }

    /// `None`: it is no note of this job and filesystem.
    pub(super) fn open<T: DeserializeOwned>(&self, what: &str, sealed: &[u8]) -> Option<T> {
        let sealed = STANDARD.decode(sealed.trim_ascii_end()).ok()?;
        let plain = self.filesystem.open_note(self.context(what).as_bytes(), &sealed).ok()?;
        serde_json::from_slice(&plain).ok()
    }

    fn context(&self, what: &str) -> String {
        format!("{what} of job {}", self.id)
    }
}

/// Puts a private file with this content in the place of another, durably; a crash meanwhile leaves one of the two.
fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    let new = path.with_extension("new");
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    write(&mut file)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    path.parent().map_or(Ok(()), |dir| File::open(dir)?.sync_all())
}

/// Where so many lines end, or all that are whole.
fn end_of_lines(file: &File, lines: u64) -> io::Result<u64> {
    let (mut file, mut line, mut end) = (BufReader::new(file), Vec::new(), 0);
    for _ in 0..lines {
        file.read_until(b'\n', &mut line)?;
        if line.last() != Some(&b'\n') {
            break;
        }
        end += line.len() as u64;
        line.clear();
    }
    Ok(end)
}

/// A problem with a file, in the words of the API.
pub(crate) fn damage(problem: &filesystem::Problem) -> Damage {
    Damage {
        path: problem.path.clone().into(),
        ciphertext: problem.ciphertext.clone().map(Into::into),
        kind: word(problem.kind).to_owned(),
        what: problem.reason.clone(),
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

const fn word(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Damaged => "damaged",
        ProblemKind::Changed => "changed",
        ProblemKind::Io => "io",
        ProblemKind::Conflict => "conflict",
        ProblemKind::Attribute => "attribute",
        ProblemKind::Skipped => "skipped",
        ProblemKind::Leftover => "leftover",
    }
}

#[cfg(test)]
mod tests {
    use filesystem::Backend;
    use kms_core::FilesystemKey;
    use testkit::key_holder::envelope;

    use super::*;

    fn id(n: u32) -> JobId {
        format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
    }

    fn key() -> Arc<FilesystemKey> {
        Arc::new(FilesystemKey::generate().unwrap())
    }

    fn filesystem(backing: &Path) -> Arc<Filesystem> {
        with(backing, &key())
    }

    fn with(backing: &Path, key: &Arc<FilesystemKey>) -> Arc<Filesystem> {
        let key = Arc::clone(key);
        let envelope = envelope(key.id());
        Arc::new(Filesystem::create(backing, key, &envelope, Backend::default()).unwrap())
    }

    fn problem(n: usize) -> filesystem::Problem {
        filesystem::Problem {
            path: format!("canary-{n}").into(),
            ciphertext: None,
            kind: ProblemKind::Damaged,
            reason: "altered".into(),
        }
    }

    #[test]
    fn what_comes_again_when_a_job_goes_on_is_told_once() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path().to_owned());
        let of_job = notes.of(id(1), filesystem(&dir.path().join("home")));
        let mut report = of_job.begin_report(None).unwrap();
        (0..5).for_each(|n| of_job.add(&report, &problem(n)).unwrap());
        // It died in the middle of a line.
        report.write_all(b"AAAA").unwrap();
        let mut checkpoint = serde_json::to_value(Checkpoint::default()).unwrap();
        checkpoint["next"] = vec!["00"].into();
        let told = |report: u64| -> Vec<_> {
            let (page, next) = of_job.damage(report);
            assert_eq!(next, None);
            page.into_iter().map(|damage| damage.path.to_string()).collect()
        };
        for (kept, number) in [(5, None), (3, Some(3)), (3, Some(7))] {
            checkpoint["told"] = number.into();
            let checkpoint = serde_json::from_value(checkpoint.clone()).unwrap();
            of_job.begin_report(Some(&checkpoint)).unwrap();
            let expected: Vec<_> = (0..kept).map(|n| format!("canary-{n}")).collect();
            assert_eq!(told(0), expected);
        }
        of_job.begin_report(Some(&Checkpoint::default())).unwrap();
        assert!(told(0).is_empty());
    }

    #[test]
    fn everything_is_kept_sealed_and_shown_by_pages() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path().to_owned());
        let filesystem = filesystem(&dir.path().join("home"));
        let of_job = notes.of(id(1), Arc::clone(&filesystem));
        let report = of_job.begin_report(None).unwrap();
        assert!(!notes.has_report(id(1)));
        for n in 0..=paths::PAGE_LIMIT {
            of_job.add(&report, &problem(n)).unwrap();
        }
        let (page, next) = of_job.damage(0);
        assert_eq!(page.len(), paths::PAGE_LIMIT);
        assert_eq!(page[1].path.as_bytes(), b"canary-1");
        let (page, end) = of_job.damage(next.unwrap());
        assert_eq!((page.len(), end, page[0].path.as_bytes()), (1, None, &b"canary-1000"[..]));
        assert_eq!(of_job.damage(u64::MAX >> 1), (Vec::new(), None));
        let text = fs::read_to_string(notes.report(id(1))).unwrap();
        assert_eq!(text.lines().count(), paths::PAGE_LIMIT + 1);
        assert!(!text.contains("canary") && !text.contains("altered"));
        // Another job's report it is not, nor another filesystem's.
        fs::copy(notes.report(id(1)), notes.report(id(2))).unwrap();
        assert!(notes.of(id(2), filesystem).damage(0).0.is_empty());
        let other = super::tests::filesystem(&dir.path().join("other"));
        assert!(notes.of(id(1), other).damage(0).0.is_empty());
        of_job.begin_report(None).unwrap();
        assert!(!notes.has_report(id(1)));
    }

    #[test]
    fn what_is_sealed_anew_opens_under_the_new_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path().to_owned());
        let backing = dir.path().join("home");
        let (old, new) = (key(), key());
        let of_job = notes.of(id(1), with(&backing, &old));
        let mut report = of_job.begin_report(None).unwrap();
        (0..3).for_each(|n| of_job.add(&report, &problem(n)).unwrap());
        report.write_all(b"AAAA\n").unwrap();
        let mut checkpoint = serde_json::to_value(Checkpoint::default()).unwrap();
        checkpoint["next"] = vec!["00"].into();
        let checkpoint = serde_json::from_value(checkpoint).unwrap();
        of_job.save_checkpoint(&checkpoint).unwrap();
        drop(of_job);

        let locks = filesystem::BackingLocks::default();
        let (from, to) = (envelope(old.id()), envelope(new.id()));
        filesystem::begin_rekey(&locks, &backing, &from, &to).unwrap();
        let (key, previous) = (Arc::clone(&new), Some(Arc::clone(&old)));
        let between = Filesystem::open_sharing(&locks, &backing, key, previous, Backend::default());
        let between = notes.of(id(1), Arc::new(between.unwrap()));
        let told = between.damage(0);
        between.reseal().unwrap();
        notes.of(id(2), Arc::clone(&between.filesystem)).reseal().unwrap();
        assert!(!notes.report(id(2)).exists());

        let of_old = notes.of(id(1), with(&dir.path().join("old"), &old));
        assert_eq!((of_old.damage(0).0.len(), of_old.read_checkpoint()), (0, None));
        let of_new = notes.of(id(1), with(&dir.path().join("new"), &new));
        assert_eq!((told.0.len(), of_new.damage(0)), (3, told));
        assert_eq!(of_new.read_checkpoint(), Some(checkpoint));
        assert!(fs::read_to_string(notes.report(id(1))).unwrap().ends_with("AAAA\n"));
    }

    #[test]
    fn what_nobody_remembers_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let notes = Notes::new(dir.path().to_owned());
        for name in ["report", "checkpoint", "new"] {
            fs::write(dir.path().join(format!("{}.{name}", id(1))), "x").unwrap();
        }
        fs::write(notes.checkpoint(id(2)), "x").unwrap();
        fs::write(dir.path().join("other"), "x").unwrap();
        notes.keep_only(&HashSet::from([id(2)])).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
        assert!(notes.has_checkpoint(id(2)) && !notes.has_checkpoint(id(1)));
    }
}

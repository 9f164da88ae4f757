//! How a job is watched, stopped, resumed and reported.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// What a running job asks and tells. Called from several threads at once.
pub trait Control: Sync {
    /// Whether the job should stop; asked before each file and each 4 MiB of a large one. The
    /// job then finishes what is in its hands, makes it durable and answers [`Outcome::Stopped`].
    fn stop_requested(&self) -> bool;

    /// How far the job is; called at most a few times in a second, and once at the end.
    fn progress(&self, progress: &Progress);

    /// Everything before `checkpoint` is durable: keep it, in place of the one before. The default one says that the
    /// job begins anew, and nothing of an earlier run counts.
    fn checkpoint(&self, checkpoint: &Checkpoint);

    /// Something could not be done, or was done in part; the job goes on. The report has the first thousand of them.
    fn problem(&self, problem: &Problem);
}

/// Never stops a job, and does not watch it: the report is enough.
#[derive(Debug, Clone, Copy)]
pub struct Unattended;

impl Control for Unattended {
    fn stop_requested(&self) -> bool {
        false
    }

    fn progress(&self, _: &Progress) {}

    fn checkpoint(&self, _: &Checkpoint) {}

    fn problem(&self, _: &Problem) {}
}

/// How far a job is. The totals grow while the source is still being counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Bytes of file content found so far.
    pub bytes_total: u64,
    /// Bytes of file content dealt with; a hole counts as its length.
    pub bytes_done: u64,
    /// Entries found so far: files, directories, links and nodes.
    pub files_total: u64,
    /// Entries dealt with, those with problems too.
    pub files_done: u64,
    /// Problems met; an entry may have several. What was skipped or is left over is none.
    pub failed: u64,
    /// Entries that were copied without their owner or group, which only root can give, and not everywhere. None is a
    /// problem of its own: where the process is not root's it may be all of them. Files among them have no set-id bits.
    pub owners_lost: u64,
}

/// Where a job can go on after a stop, a crash or a power cut. Opaque: what is in it may change. It names files and
/// says what of one in the making is a hole: keep it as [`Filesystem::seal_note`](crate::Filesystem::seal_note) seals
/// it, or where nobody but its owner reads and writes. The default one is the beginning.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Checkpoint {
    /// The path of names (hex) to the first entry that is not yet done; everything before it is durable.
    pub(crate) next: Vec<String>,
    /// A large file that is done in part.
    pub(crate) partial: Option<Partial>,
    /// What the order of those names depends on: see [`Source::order`](crate::side::Source::order).
    #[serde(default)]
    pub(crate) order: Option<String>,
    /// Everything is done; what is left is to tidy up.
    pub(crate) finished: bool,
    /// Hard-link anchors of a later epoch than this may not be durable.
    pub(crate) epoch: u64,
    pub(crate) progress: Progress,
    pub(crate) problems: Vec<Problem>,
    /// `None`: it was not counted yet when this was taken.
    #[serde(default)]
    pub(crate) told: Option<u64>,
}

impl Checkpoint {
    /// How many problems the job had told ([`Control::problem`]) when it was here. Those that it told later come again
    /// when it goes on from here, as far as they are still there. `None` for one of an older program.
    pub fn problems_told(&self) -> Option<u64> {
        if *self == Self::default() { Some(0) } else { self.told }
    }
}

/// A large file that is done in part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Partial {
    /// Its name among the things in the making.
    pub(crate) staged: String,
    /// The first segment that is not yet done.
    pub(crate) segment: u64,
    /// What it can't show by itself.
    pub(crate) unfinished: Unfinished,
    /// What the source looked like; if it no longer does, the file is started anew.
    pub(crate) source: Identity,
}

/// What a sealed file that is not yet whole can't show by itself: that it is the one that was begun, and that what is
/// absent from it is a hole and was not removed. Empty for a plain one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Unfinished {
    /// The file's id in hex.
    pub(crate) file: String,
    /// Hole maps by region, in hex.
    pub(crate) holes: BTreeMap<u64, String>,
}

/// What tells that a source file is still the same: device, inode, length, modification and change time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Identity {
    inode: (u64, u64),
    len: i64,
    modified: (i64, u64),
    changed: (i64, u64),
}

impl Identity {
    pub(crate) const fn of(stat: &crate::sys::Stat) -> Self {
        Self {
            inode: (stat.st_dev, stat.st_ino),
            len: stat.st_size,
            modified: (stat.st_mtime, stat.st_mtime_nsec),
            changed: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }

    /// It in few bytes, of which there are many in memory.
    pub(crate) fn fingerprint(&self) -> Fingerprint {
        let mut hash = Sha256::new();
        let Self { inode, len, modified, changed } = self;
        for number in [inode.0, inode.1, modified.1, changed.1] {
            hash.update(number.to_le_bytes());
        }
        for number in [*len, modified.0, changed.0] {
            hash.update(number.to_le_bytes());
        }
        let mut short = Fingerprint::default();
        short.copy_from_slice(&hash.finalize()[..size_of::<Fingerprint>()]);
        short
    }
}

/// Half of the SHA-256 of an [`Identity`].
pub(crate) type Fingerprint = [u8; 16];

/// What a job came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// How it ended.
    pub outcome: Outcome,
    /// Whether it went on from a checkpoint: of what was done before that, no change since is seen.
    pub resumed: bool,
    /// The counts at the end.
    pub progress: Progress,
    /// What could not be done, the first thousand.
    pub problems: Vec<Problem>,
    /// How many more there are.
    pub problems_omitted: u64,
    /// Whether something that is damaged can't be read. Other damage costs nothing: what it befell is there a second time.
    pub lost: bool,
    /// Where to go on, when an import or export was stopped.
    pub checkpoint: Option<Checkpoint>,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Everything is done and durable.
    Done,
    /// It went through to the end, with problems; the rest is done and durable.
    PartlyDone,
    /// It was asked to stop.
    Stopped,
}

/// One thing that could not be done, or not in full.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The plain path inside the filesystem, as far as it is known.
    #[serde(with = "hex_path")]
    pub path: PathBuf,
    /// Where the ciphertext lies, relative to the backing directory, when it is about that.
    #[serde(with = "hex_path::option")]
    pub ciphertext: Option<PathBuf>,
    /// What sort of problem it is.
    pub kind: ProblemKind,
    /// Why, in words.
    pub reason: String,
}

impl Problem {
    pub(crate) fn new(
        path: &[u8],
        ciphertext: Option<&[u8]>,
        kind: ProblemKind,
        reason: impl Into<String>,
    ) -> Self {
        Self {
            path: to_path(path),
            ciphertext: ciphertext.map(to_path),
            kind,
            reason: reason.into(),
        }
    }
}

fn to_path(bytes: &[u8]) -> PathBuf {
    OsString::from_vec(bytes.to_vec()).into()
}

/// Paths may have any bytes, JSON may not.
mod hex_path {
    use std::ffi::OsString;
    use std::os::unix::ffi::OsStringExt;
    use std::path::{Path, PathBuf};

    use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

    fn encode(path: &Path) -> String {
        hex::encode(path.as_os_str().as_encoded_bytes())
    }

    fn decode(text: &str) -> Result<PathBuf, hex::FromHexError> {
        hex::decode(text).map(|bytes| OsString::from_vec(bytes).into())
    }

    pub(super) fn serialize<S: Serializer>(path: &Path, to: S) -> Result<S::Ok, S::Error> {
        encode(path).serialize(to)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<PathBuf, D::Error> {
        decode(&String::deserialize(from)?).map_err(D::Error::custom)
    }

    pub(super) mod option {
        use super::{
            Deserialize, Deserializer, Error, PathBuf, Serialize, Serializer, decode, encode,
        };

        #[expect(clippy::ref_option, reason = "serde's signature")]
        pub(in super::super) fn serialize<S: Serializer>(
            path: &Option<PathBuf>,
            to: S,
        ) -> Result<S::Ok, S::Error> {
            path.as_deref().map(encode).serialize(to)
        }

        pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
            from: D,
        ) -> Result<Option<PathBuf>, D::Error> {
            let text = Option::<String>::deserialize(from)?;
            text.as_deref().map(decode).transpose().map_err(D::Error::custom)
        }
    }
}

/// What sort of problem it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ProblemKind {
    /// It failed authentication, or a part of it is missing. Of an attribute, its content is there.
    Damaged,
    /// It changed while it was being read; nothing of it was taken.
    Changed,
    /// The system refused.
    Io,
    /// Something of another type has its name in the target, which stays.
    Conflict,
    /// Its content is there; an attribute can't be read now, or not be set.
    Attribute,
    /// Left out with good reason: a socket, which is not copied; leftovers that can't be told from what is needed.
    Skipped,
    /// Left behind by an interrupted act, or by something else; nothing depends on it.
    Leftover,
}

/// The most problems that a report has. Whether there is damage can be told from them in any case.
const PROBLEMS_MAX: usize = 1000;

/// The counts and problems of a running job.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    resumed: bool,
    pub(crate) bytes_total: AtomicU64,
    pub(crate) bytes_done: AtomicU64,
    pub(crate) files_total: AtomicU64,
    pub(crate) files_done: AtomicU64,
    failed: AtomicU64,
    pub(crate) owners_lost: AtomicU64,
    /// Failures, leftovers and what was skipped.
    listed: AtomicU64,
    lost: AtomicBool,
    problems: Mutex<Vec<Problem>>,
}

impl Tally {
    pub(crate) fn resumed(checkpoint: Option<&Checkpoint>) -> Self {
        let Some(checkpoint) = checkpoint else { return Self::default() };
        let Progress { bytes_done, files_done, failed, owners_lost, .. } = checkpoint.progress;
        let is_damage = |problem: &Problem| problem.kind == ProblemKind::Damaged;
        Self {
            // The default one is the beginning.
            resumed: checkpoint.finished || !checkpoint.next.is_empty(),
            bytes_done: bytes_done.into(),
            files_done: files_done.into(),
            failed: failed.into(),
            owners_lost: owners_lost.into(),
            listed: checkpoint
                .problems_told()
                .unwrap_or_else(|| failed.max(checkpoint.problems.len() as u64))
                .into(),
            lost: checkpoint.problems.iter().any(is_damage).into(),
            problems: Mutex::new(checkpoint.problems.clone()),
            ..Self::default()
        }
    }

    pub(crate) fn problem(&self, problem: Problem, control: &dyn Control) {
        if problem.kind == ProblemKind::Damaged {
            self.lost.store(true, Ordering::Relaxed);
        }
        self.blemish(problem, control);
    }

    /// A problem that costs nothing.
    pub(crate) fn blemish(&self, problem: Problem, control: &dyn Control) {
        control.problem(&problem);
        self.listed.fetch_add(1, Ordering::Relaxed);
        // What lies about unused or can be no file in any copy is worth telling, and nothing failed.
        if !matches!(problem.kind, ProblemKind::Leftover | ProblemKind::Skipped) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
        let mut problems = lock(&self.problems);
        if problems.len() < PROBLEMS_MAX {
            problems.push(problem);
        } else if let Some(last) = problems.last_mut()
            && problem.kind == ProblemKind::Damaged
        {
            *last = problem;
        }
    }

    pub(crate) fn progress(&self) -> Progress {
        let (bytes_done, files_done) =
            (self.bytes_done.load(Ordering::Relaxed), self.files_done.load(Ordering::Relaxed));
        Progress {
            // The count of the source runs beside the copy and may be behind it.
            bytes_total: self.bytes_total.load(Ordering::Relaxed).max(bytes_done),
            files_total: self.files_total.load(Ordering::Relaxed).max(files_done),
            bytes_done,
            files_done,
            failed: self.failed.load(Ordering::Relaxed),
            owners_lost: self.owners_lost.load(Ordering::Relaxed),
        }
    }

    /// How many problems were told.
    pub(crate) fn told(&self) -> u64 {
        self.listed.load(Ordering::Relaxed)
    }

    pub(crate) fn problems(&self) -> Vec<Problem> {
        lock(&self.problems).clone()
    }

    pub(crate) fn report(&self, stopped: bool, checkpoint: Option<Checkpoint>) -> Report {
        let (progress, problems) = (self.progress(), self.problems());
        let outcome = match (stopped, progress.failed) {
            (true, _) => Outcome::Stopped,
            (false, 0) => Outcome::Done,
            (false, _) => Outcome::PartlyDone,
        };
        let problems_omitted = self.told().saturating_sub(problems.len() as u64);
        let (resumed, lost) = (self.resumed, self.lost.load(Ordering::Relaxed));
        Report { outcome, resumed, progress, problems, problems_omitted, lost, checkpoint }
    }
}

/// A lock whose holder can't have left it half changed, so that a panic elsewhere is no reason to stop.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

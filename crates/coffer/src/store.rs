//! The node's key store: refused unless it is the one that was here, and followed by a note outside of it.
//!
//! By itself a store notices what is damaged or older among its own files. A directory that was emptied, or put back whole from
//! another time, it can't notice; so how far it was stands in `<state-dir>/generation` too. A commit is noted there when it
//! has reached the disk and before it is acknowledged: stopped in between, by kill -9 or a power cut, the note is
//! behind by what nobody was told of. It is never ahead.
//!
//! A store that failed half-way answers nothing more, and its node can do nothing. It ends ([`NotedStore::broke`]), so that the next
//! one reads back what is stored.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use admin_api::{Exit, Problem};
use async_trait::async_trait;
use filesystem::read_envelope;
use key_store::SledStore;
use kms_core::{Commit, KeyStore, Page, Record, StoreError, Version};
use tokio::sync::watch;
use tokio::task::spawn_blocking;

use crate::parts::store_dir;

/// A store whose commits are noted outside of it.
#[derive(Debug)]
pub(crate) struct NotedStore {
    store: SledStore,
    state_dir: PathBuf,
    note: Arc<Mutex<Note>>,
    /// Why it answers nothing more.
    broken: watch::Sender<Option<String>>,
}

impl NotedStore {
    /// Opens the store of this state directory, or makes one where no node has ever been.
    ///
    /// # Errors
    /// [`Refused`]; the note can't be written.
    pub(crate) fn open(state_dir: &Path) -> Result<Self, Problem> {
        const TITLE: &str = "the node can't start";
        let store = open(state_dir).map_err(|refused| refused.problem(TITLE, state_dir))?;
        let note = Note::begin(state_dir, store.generation()).map_err(|e| {
            let why = format!("{} can't be written: {e}", note_file(state_dir).display());
            Problem::new(Exit::State, "start", TITLE, why).cure("see to it that it can be written")
        })?;
        let note = Arc::new(Mutex::new(note));
        let broken = watch::Sender::default();
        Ok(Self { store, state_dir: state_dir.to_owned(), note, broken })
    }

    /// Whether something was ever recorded in it.
    pub(crate) fn is_used(&self) -> bool {
        self.store.generation() > Version(0)
    }

    /// Copies what a start would find of it into another state directory. Blocks.
    pub(crate) fn copy_to(&self, state_dir: &Path) -> Result<(), StoreError> {
        // The note first: it must not be ahead of its store.
        match fs::copy(note_file(&self.state_dir), note_file(state_dir)) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                Err(StoreError::Io { doing: "copied", source: error.into() })
            }
            _ => self.store.copy_to(&store_dir(state_dir)),
        }
    }

    /// Completes when a commit has failed half-way.
    pub(crate) async fn broke(&self) -> Problem {
        let mut broken = self.broken.subscribe();
        let why = match broken.wait_for(Option::is_some).await {
            Ok(why) => why.clone().unwrap_or_default(),
            Err(closed) => closed.to_string(),
        };
        Problem::new(Exit::Failed, "store-failed", "the node can't go on", why)
            .cure("see to the disk of the state directory and start it again: what is stored is read back")
    }

    /// Looks at what the store answered. Who asked for the commit that failed may be gone.
    fn watched<T>(&self, answer: Result<T, StoreError>) -> Result<T, StoreError> {
        if let Err(error) = &answer
            && (matches!(error, StoreError::Unknown { .. }) || self.store.has_failed())
        {
            self.breaks(format!("a change of the key store failed half-way: {error}"));
        }
        answer
    }

    fn breaks(&self, why: String) {
        self.broken.send_if_modified(|broken| {
            let first = broken.is_none();
            broken.get_or_insert(why);
            first
        });
    }

    async fn noted(&self, version: Version) {
        let note = Arc::clone(&self.note);
        let keep_up = move || note.lock().unwrap_or_else(PoisonError::into_inner).keep_up(version);
        let noted = spawn_blocking(keep_up).await.unwrap_or_else(|e| Err(io::Error::other(e)));
        // It has happened, and the note is behind only. But nobody would notice an older store that is put back later.
        if let Err(error) = noted {
            self.breaks(format!("how far the key store is can't be noted beside it: {error}"));
        }
    }
}

#[async_trait]
impl KeyStore for NotedStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.watched(self.store.get(key).await)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.watched(self.store.list(prefix, after, limit).await)
    }

    async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let version = self.watched(self.store.commit(commit).await)?;
        self.noted(version).await;
        Ok(version)
    }
}

/// Opens the store of this state directory if nothing shows that another one was here.
pub(crate) fn open(state_dir: &Path) -> Result<SledStore, Refused> {
    let dir = store_dir(state_dir);
    // One that is there is opened before its note is looked for: that a node has it open goes before all else.
    if !SledStore::is_in(&dir) {
        refuse_lost(state_dir, read_note(state_dir)?)?;
    }
    let store = SledStore::open(&dir)?;
    // Until now another node may have gone on with it.
    match read_note(state_dir)? {
        Some(known) if known <= store.generation() => Ok(store),
        Some(known) => Err(Refused::Older(format!(
            "the key store is at generation {} and was at {} before: an older store was put back",
            store.generation().0,
            known.0
        ))),
        // Stopped before the first note.
        None if store.generation() == Version(0) && left_by_a_node(state_dir).is_none() => {
            Ok(store)
        }
        None => Err(Refused::Lost(no_note(state_dir))),
    }
}

/// What an earlier node left where there is no store: an empty one must not take its place.
fn refuse_lost(state_dir: &Path, known: Option<Version>) -> Result<(), Refused> {
    let left = match known {
        Some(Version(known)) if known > 0 => Some(format!("it was at generation {known} before")),
        _ => left_by_a_node(state_dir),
    };
    let dir = store_dir(state_dir);
    left.map_or(Ok(()), |left| {
        Err(Refused::Lost(format!("the key store {} is gone, and {left}", dir.display())))
    })
}

fn no_note(state_dir: &Path) -> String {
    format!(
        "{} is gone, without which it can't be told whether the key store beside it is an older one",
        note_file(state_dir).display()
    )
}

/// What shows that a node had its state here.
fn left_by_a_node(state_dir: &Path) -> Option<String> {
    let filesystems = fs::read_dir(state_dir.join("filesystems")).into_iter().flatten();
    let mut backings = filesystems.filter_map(Result::ok).map(|entry| entry.path());
    match backings.find(|path| read_envelope(path).is_ok()) {
        Some(found) => Some(format!("there is a filesystem in {}", found.display())),
        None => state_dir
            .join("audit.jsonl")
            .exists()
            .then(|| "the audit log tells that a node had its state here".to_owned()),
    }
}

/// Why a store is not used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Refused {
    /// There was another one, and it is not here.
    #[error("{0}")]
    Lost(String),
    /// It is behind what was noted of it, or that can't be told.
    #[error("{0}")]
    Older(String),
    /// It says so itself.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl Refused {
    /// What can't be done with the store of this state directory, and the way to recover.
    pub(crate) fn problem(self, title: &str, state_dir: &Path) -> Problem {
        let filesystems = state_dir.join("filesystems");
        let rebuild = format!(
            "put the newest backup of the state directory back, or rebuild the store: coffer recover --from {} (and the backing \
             directories elsewhere)",
            filesystems.display()
        );
        match self {
            Self::Store(error @ StoreError::InUse { .. }) => daemon::of_keys(title, &error.into())
                .cure("stop the other node, or give this one another place with --state-dir DIR"),
            Self::Store(error) => daemon::of_keys(title, &error.into()),
            Self::Lost(why) => {
                Problem::new(Exit::NotAuthentic, "store-lost", title, why).cure(format!(
                    "{rebuild}; a node that begins anew takes an empty directory (--state-dir DIR)"
                ))
            }
            Self::Older(why) => {
                Problem::new(Exit::NotAuthentic, "store-older", title, why).cure(rebuild)
            }
        }
    }
}

/// Whether the store of this state directory, whatever became of it, had something recorded.
pub(crate) fn was_used(state_dir: &Path) -> bool {
    read_note(state_dir).map_or(true, |known| known.is_some_and(|known| known > Version(0)))
}

/// How far a store is, in a file that always has the same length: it is written over where it lies, within one sector, so that it
/// is the old or the new one whatever happens, and takes no room on a full disk.
#[derive(Debug)]
struct Note {
    file: File,
    at: Version,
}

/// The digits of the largest number, and a line end.
const NOTE_LEN: u64 = 21;

impl Note {
    /// Notes how far a store is that lies in this state directory, or is about to be put there.
    fn begin(state_dir: &Path, at: Version) -> io::Result<Self> {
        let path = note_file(state_dir);
        match File::options().write(true).open(&path) {
            Ok(file) if file.metadata()?.len() == NOTE_LEN => {
                write_note(&file, at)?;
                return Ok(Self { file, at });
            }
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // It appears when it is whole.
        let new = path.with_extension("new");
        let file = File::create(&new)?;
        write_note(&file, at)?;
        fs::rename(new, path)?;
        File::open(state_dir)?.sync_all()?;
        Ok(Self { file, at })
    }

    /// Notes a commit, unless a later one has been noted meanwhile.
    fn keep_up(&mut self, version: Version) -> io::Result<()> {
        if version > self.at {
            write_note(&self.file, version)?;
            self.at = version;
        }
        Ok(())
    }
}

fn write_note(file: &File, at: Version) -> io::Result<()> {
    file.write_all_at(format!("{:020}\n", at.0).as_bytes(), 0)?;
    file.sync_data()
}

fn note_file(state_dir: &Path) -> PathBuf {
    state_dir.join("generation")
}

fn read_note(state_dir: &Path) -> Result<Option<Version>, Refused> {
    let path = note_file(state_dir);
    let known = match fs::read_to_string(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        read => read.ok().and_then(|text| text.trim().parse().ok()),
    };
    let unreadable = || {
        Refused::Older(format!(
            "{} can't be read, so the store's age can't be told",
            path.display()
        ))
    };
    known.map(|known| Some(Version(known))).ok_or_else(unreadable)
}

/// Puts the store in `new`, which is at `generation`, in the place where a node looks for its own. At no moment does an empty one lie
/// there, and at no moment does the note speak for the one before.
pub(crate) fn replace(
    state_dir: &Path,
    new: &Path,
    generation: Version,
    aside: Option<&Path>,
) -> io::Result<()> {
    let (store, sync) = (store_dir(state_dir), || File::open(state_dir)?.sync_all());
    if let Some(aside) = aside {
        fs::rename(&store, aside)?;
        sync()?;
    }
    Note::begin(state_dir, generation)?;
    fs::rename(new, store)?;
    sync()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    fn put(key: &str) -> Commit {
        Commit::new().put(key, vec![1])
    }

    fn noted(state_dir: &Path) -> u64 {
        read_note(state_dir).unwrap().unwrap().0
    }

    fn refused(state_dir: &Path) -> Problem {
        open(state_dir).unwrap_err().problem("it can't be used", state_dir)
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn contract() {
        let root = tempfile::tempdir().unwrap();
        let next = AtomicU32::new(0);
        let make = async || {
            let dir = root.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
            fs::create_dir(&dir).unwrap();
            NotedStore::open(&dir).unwrap()
        };
        testkit::store::key_store_contract(make).await;
        let dir = tempfile::tempdir().unwrap();
        let open = async || NotedStore::open(dir.path()).unwrap();
        testkit::store::key_store_keeps_everything(open).await;
    }

    #[tokio::test]
    async fn each_commit_is_noted_before_it_is_acknowledged() {
        let dir = tempfile::tempdir().unwrap();
        let store = Arc::new(NotedStore::open(dir.path()).unwrap());
        assert_eq!(noted(dir.path()), 0);
        for n in 1..4 {
            store.commit(put("a")).await.unwrap();
            assert_eq!(noted(dir.path()), n);
        }
        let together = (0..20).map(|n| {
            let store = Arc::clone(&store);
            tokio::spawn(async move { store.commit(put(&n.to_string())).await.unwrap() })
        });
        for commit in together.collect::<Vec<_>>() {
            let version = commit.await.unwrap();
            assert!(noted(dir.path()) >= version.0);
        }
        assert_eq!(noted(dir.path()), 23);
    }

    #[tokio::test]
    async fn an_older_store_is_refused_and_what_was_not_acknowledged_is_no_reason() {
        let dir = tempfile::tempdir().unwrap();
        let store = NotedStore::open(dir.path()).unwrap();
        store.commit(put("a")).await.unwrap();
        // Stopped between a commit and its note.
        store.store.commit(put("b")).await.unwrap();
        drop(store);
        drop(NotedStore::open(dir.path()).unwrap());
        assert_eq!(noted(dir.path()), 2);
        drop(Note::begin(dir.path(), Version(3)).unwrap());
        let problem = refused(dir.path());
        assert_eq!((problem.exit, problem.code.as_str()), (Exit::NotAuthentic, "store-older"));
        assert!(problem.cure.unwrap().contains("coffer recover"));
        fs::write(note_file(dir.path()), "").unwrap();
        assert!(refused(dir.path()).detail.contains("can't be read"));
    }

    #[tokio::test]
    async fn a_store_that_is_gone_is_not_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let (store, note) = (store_dir(dir.path()), note_file(dir.path()));
        let opened = NotedStore::open(dir.path()).unwrap();
        opened.commit(put("a")).await.unwrap();
        drop(opened);
        fs::write(dir.path().join("audit.jsonl"), "").unwrap();
        fs::rename(&note, dir.path().join("aside")).unwrap();
        assert!(refused(dir.path()).detail.contains("generation is gone"));
        fs::remove_dir_all(&store).unwrap();
        assert!(refused(dir.path()).detail.contains("audit log"));
        fs::create_dir(&store).unwrap();
        assert!(refused(dir.path()).detail.contains("audit log"));
        fs::remove_file(dir.path().join("audit.jsonl")).unwrap();
        fs::rename(dir.path().join("aside"), &note).unwrap();
        assert!(refused(dir.path()).detail.contains("it was at generation 1"));
        assert!(!SledStore::is_in(&store));
        fs::remove_file(&note).unwrap();
        open(dir.path()).unwrap();
    }

    #[tokio::test]
    async fn a_store_that_a_node_has_open_is_that_whatever_became_of_its_note() {
        let dir = tempfile::tempdir().unwrap();
        let running = NotedStore::open(dir.path()).unwrap();
        running.commit(put("a")).await.unwrap();
        fs::write(dir.path().join("audit.jsonl"), "").unwrap();
        fs::remove_file(note_file(dir.path())).unwrap();
        let in_use = open(dir.path()).unwrap_err();
        assert!(matches!(in_use, Refused::Store(StoreError::InUse { .. })), "{in_use}");
    }

    #[test]
    fn a_first_start_that_was_stopped_is_gone_on_with() {
        let dir = tempfile::tempdir().unwrap();
        drop(SledStore::open(&store_dir(dir.path())).unwrap());
        drop(NotedStore::open(dir.path()).unwrap());
        drop(NotedStore::open(dir.path()).unwrap());
    }

    #[tokio::test]
    async fn a_note_of_an_earlier_program_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        let store = NotedStore::open(dir.path()).unwrap();
        store.commit(put("a")).await.unwrap();
        drop(store);
        fs::write(note_file(dir.path()), "1\n").unwrap();
        drop(NotedStore::open(dir.path()).unwrap());
        assert_eq!(fs::metadata(note_file(dir.path())).unwrap().len(), NOTE_LEN);
        assert_eq!(noted(dir.path()), 1);
    }
}

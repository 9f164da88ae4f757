//! A store on disk, in sled 0.34.
//!
//! ```text
//! <dir>/lock         held while the store is open
//! <dir>/generation   which state the records must be in; see `head`
//! <dir>/sled/        the records; see `entries`
//! ```
//!
//! # What sled is trusted with
//!
//! Little. It gives atomic batches over kill -9; everything else stands around it:
//!
//! - Its flush is no fsync, so each commit syncs `db` before it is answered, then replaces `generation`.
//! - It drops a damaged tail without a word and takes an old or an empty `db` as it is, so the records
//!   must match `generation`: number and digest.
//! - It panics on some damage, so calls are guarded and a panic while it opens is reported as damage.
//! - Its readers see a batch before it is durable, so reads come from a table in memory.
//!
//! # When a commit fails half-way
//!
//! After a write or a sync that failed nobody can tell what is on disk, and asking again can answer what
//! is only in the page cache. The commit answers [`StoreError::Unknown`] and the store answers nothing more:
//! reading back is opening it again. A disk that is nearly full, and a process that may open no more files, is
//! refused before, with nothing done.

mod entries;
mod files;
mod head;

use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::thread;
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{Commit, KeyStore, Page, Record, StoreError, Version};
use tokio::sync::oneshot;

use self::entries::Contents;
use self::files::SledFiles;
use self::head::{Head, HeadError, HeadFile};
use crate::table::{Table, is_empty};

/// Free space below which no commit is begun. A commit of the largest records takes a few sled segments of 512 KiB.
const RESERVE: u64 = 16 * 1024 * 1024;

const WAY_BACK: &str = "Put back the newest backup of the whole directory, or set the directory aside and rebuild it \
     from the copies of the wrapped keys: coffer recover --from <backing directory>…";

/// Keeps records in a directory of its own, mode 0700, through kill -9 and power cuts.
///
/// Any number of threads and tasks may use it; one process at a time. Reads come from memory and
/// never wait for the disk. A commit runs on a thread of the store's own and takes a few milliseconds
/// (three syncs); one whose future is dropped is still carried out.
///
/// When it is opened it notices a damaged, an emptied and an older set of records, and refuses
/// them. It can't notice a whole directory that was put back, `generation` included: compare
/// [`SledStore::generation`] with what is known elsewhere. Replaced and deleted values may remain
/// readable in sled's log until it reuses the space.
pub struct SledStore {
    inner: Arc<Inner>,
    writer: Sender<Asked>,
}

/// A commit that is asked for. It keeps the store open until it is done.
struct Asked {
    inner: Arc<Inner>,
    commit: Commit,
    answer: oneshot::Sender<Result<Version, StoreError>>,
}

impl SledStore {
    /// Opens the store in `dir`, or makes an empty one. Blocks while it reads every record.
    ///
    /// # Errors
    /// [`StoreError::InUse`], at once; [`StoreError::Newer`], with nothing touched;
    /// [`StoreError::Damaged`] with the way to recover, also on every later try;
    /// [`StoreError::Io`].
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        let (table, disk) = Disk::open(dir).map_err(|fault| fault.while_opening(dir))?;
        let inner = Inner {
            dir: dir.to_owned(),
            state: RwLock::new(State { table, failed: None }),
            disk: Mutex::new(disk),
        };
        let writer = start_writer();
        let writer = writer.map_err(|e| StoreError::Io { doing: "opened", source: e.into() })?;
        Ok(Self { inner: Arc::new(inner), writer })
    }

    /// Whether there is one in `dir`, sound or not: then [`SledStore::open`] makes none there.
    pub fn is_in(dir: &Path) -> bool {
        !matches!(Head::read_file(dir), Ok(None)) || db_file(&dir.join("sled")).is_file()
    }

    /// Copies what lies on disk, as it is after a commit, to a directory that does not exist: another process can open that. No
    /// commit is made meanwhile. Blocks.
    ///
    /// # Errors
    /// [`StoreError::Io`]; what was copied by then is left.
    pub fn copy_to(&self, dir: &Path) -> Result<(), StoreError> {
        let _no_commits = self.inner.disk.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.inner.readable()?);
        let copied = files::copy_private(&self.inner.dir, dir);
        copied.map_err(|e| StoreError::Io { doing: "copied", source: e.into() })
    }

    /// Whether a commit failed half-way, so that nothing more is answered.
    pub fn has_failed(&self) -> bool {
        self.inner.state().failed.is_some()
    }

    /// The number of the last acknowledged commit, counted over the whole life of the store.
    pub fn generation(&self) -> Version {
        self.inner.state().table.version()
    }
}

#[async_trait]
impl KeyStore for SledStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.inner.readable()?.table.get(key))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        Ok(self.inner.readable()?.table.list(prefix, after, limit))
    }

    async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let (answer, answered) = oneshot::channel();
        let asked = Asked { inner: Arc::clone(&self.inner), commit, answer };
        let broken = || StoreError::Unknown { source: "the thread that writes broke".into() };
        self.writer.send(asked).map_err(|_| broken())?;
        answered.await.unwrap_or_else(|_| Err(broken()))
    }
}

/// Starts the thread that makes commits, one after the other, until its store is dropped. It is always the same one: what a large
/// commit needs for a moment is kept by the allocator for the thread that had it.
fn start_writer() -> io::Result<Sender<Asked>> {
    let (writer, commits) = channel::<Asked>();
    let write = move || {
        for Asked { inner, commit, answer } in commits {
            let done = inner.commit(commit);
            // First, so that who has the answer can drop the store and open it again.
            drop(inner);
            let _ = answer.send(done);
        }
    };
    thread::Builder::new().name("key-store".into()).spawn(write)?;
    Ok(writer)
}

impl fmt::Debug for SledStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SledStore({} at {})", self.inner.dir.display(), self.generation().0)
    }
}

struct Inner {
    dir: PathBuf,
    state: RwLock<State>,
    /// Held during a whole commit: one writer.
    disk: Mutex<Disk>,
}

struct State {
    table: Table,
    /// Why nobody knows any more what is on disk.
    failed: Option<String>,
}

impl Inner {
    fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn readable(&self) -> Result<RwLockReadGuard<'_, State>, StoreError> {
        let state = self.state();
        match &state.failed {
            None => Ok(state),
            Some(why) => Err(StoreError::Io { doing: "read", source: reopen(why) }),
        }
    }

    fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let mut disk = self.disk.lock().unwrap_or_else(PoisonError::into_inner);
        let state = self.state();
        if let Some(why) = &state.failed {
            return Err(not_written(reopen(why)));
        }
        let version = state.table.admit(&commit)?;
        if is_empty(&commit) {
            return Ok(version);
        }
        disk.has_room(&self.dir, RESERVE)?;
        let head_file = HeadFile::open(&self.dir).map_err(not_written)?;
        let (batch, head) = entries::batch(&state.table, &disk.head, &commit, version);
        drop(state);
        match disk.write(batch, head, head_file) {
            Ok(()) => {
                self.state_mut().table.apply(commit, version);
                Ok(version)
            }
            Err(e) => {
                self.state_mut().failed = Some(e.to_string());
                Err(StoreError::Unknown { source: e.into() })
            }
        }
    }
}

/// Nothing was done.
fn not_written(source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> StoreError {
    StoreError::Io { doing: "written", source: source.into() }
}

fn reopen(why: &str) -> Box<dyn std::error::Error + Send + Sync> {
    format!("an earlier change failed half-way ({why}); restart the node, which reads back what is stored").into()
}

/// The store's files, open. Fields drop in this order: the lock goes last.
struct Disk {
    db: sled::Db,
    files: SledFiles,
    head: Head,
    _lock: std::fs::File,
}

impl Disk {
    fn open(dir: &Path) -> Result<(Table, Self), Fault> {
        files::make_private_dir(dir)?;
        let lock = files::lock(dir)?.ok_or(Fault::InUse)?;

        // Before sled touches anything, because its recovery writes.
        let acknowledged = match Head::read_file(dir)? {
            Some(text) => Some(Head::decode(&text)?),
            None => None,
        };
        let sled_dir = dir.join("sled");
        match (acknowledged, db_file(&sled_dir).is_file()) {
            (Some(_), false) => return Err(Fault::Contents("its records are gone".into())),
            (None, false) => make_empty(dir, &sled_dir)?,
            (_, true) => files::remove_unfinished_snapshots(&sled_dir)?,
        }

        let db = open_sled(&sled_dir)?;
        let Contents { head, records, digest } = guarded(|| entries::read_all(&db))?;
        if head.digest != digest {
            let why = "records are missing, or others lie in their place";
            return Err(Fault::Contents(why.into()));
        }
        let files = SledFiles::settle(&sled_dir)?;
        if settle(acknowledged, head)? {
            HeadFile::open(dir)?.write(&head)?;
        }
        Ok((Table::new(records, head.generation), Self { db, files, head, _lock: lock }))
    }

    fn has_room(&self, dir: &Path, reserve: u64) -> Result<(), StoreError> {
        match files::free_space(dir).map_err(not_written)? {
            Some(free) if free < reserve => Err(not_written(format!(
                "{} has {free} bytes left and {reserve} are kept free; make room on its disk",
                dir.display()
            ))),
            _ => Ok(()),
        }
    }

    /// Makes a commit durable: records first, then the file that says they must be there.
    fn write(&mut self, batch: sled::Batch, head: Head, file: HeadFile) -> Result<(), Fault> {
        write_sled(&self.db, batch)?;
        self.files.sync()?;
        file.write(&head)?;
        self.head = head;
        Ok(())
    }
}

/// Compares the records' head with the file `generation`, and says whether the file is to follow.
fn settle(acknowledged: Option<Head>, found: Head) -> Result<bool, Fault> {
    match acknowledged {
        Some(head) if head == found => Ok(false),
        // Stopped between the records and the file.
        Some(head) if found.follows(&head) => Ok(true),
        Some(head) => Err(Fault::Contents(format!(
            "its records are of generation {}, and {} was acknowledged: an older copy was put back, or the newest part is lost",
            found.generation.0, head.generation.0
        ))),
        // Stopped before the file was there for the first time.
        None if found == Head::default() => Ok(true),
        None => Err(Fault::Contents("the file generation is gone".into())),
    }
}

/// What goes wrong below this file.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked: {0}")]
    Panic(String),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Contents(String),
    #[error("format {0} is newer than this program")]
    Newer(u64),
    #[error("somebody else has it open")]
    InUse,
}

impl Fault {
    fn while_opening(self, dir: &Path) -> StoreError {
        let place = dir.display().to_string();
        match self {
            Self::Newer(format) => StoreError::Newer { place, format },
            Self::InUse => StoreError::InUse { place },
            Self::Io(source) => StoreError::Io { doing: "opened", source: source.into() },
            // Errors without a number are sled's own words for what it finds in a file.
            Self::Sled(sled::Error::Io(source))
                if source.raw_os_error().is_some() && source.kind() != io::ErrorKind::NotFound =>
            {
                StoreError::Io { doing: "opened", source: source.into() }
            }
            damage => StoreError::Damaged { place, why: format!("{damage}. {WAY_BACK}") },
        }
    }
}

impl From<HeadError> for Fault {
    fn from(e: HeadError) -> Self {
        match e {
            HeadError::Newer(format) => Self::Newer(format),
            HeadError::Damaged => Self::Contents("its generation can't be read".into()),
        }
    }
}

/// Runs calls of sled, which panics on damage that it does not expect.
fn guarded<T>(f: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    catch_unwind(AssertUnwindSafe(f)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Fault::Panic(text.unwrap_or("without words").to_owned()))
    })
}

/// Makes the records of a new store, under another name until they are whole: sled's own files are not, for a moment.
fn make_empty(dir: &Path, sled_dir: &Path) -> Result<(), Fault> {
    let unfinished = dir.join("sled.new");
    files::make_new_private_dir(&unfinished)?;
    let db = open_sled(&unfinished)?;
    write_sled(&db, entries::first_batch())?;
    drop(db);
    SledFiles::settle(&unfinished)?;
    std::fs::rename(&unfinished, sled_dir)?;
    Ok(files::sync_dir(dir)?)
}

/// What sled has as soon as it has anything.
fn db_file(sled_dir: &Path) -> PathBuf {
    sled_dir.join("db")
}

fn open_sled(sled_dir: &Path) -> Result<sled::Db, Fault> {
    // Nothing runs behind our back: no timed flush, and a cache that holds what a commit touches.
    let config = sled::Config::new()
        .path(sled_dir)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(4 * 1024 * 1024)
        .flush_every_ms(None);
    let mut tries = 0;
    loop {
        match guarded(|| Ok(config.open()?)) {
            // We hold the store's own lock, so this is a store of this process that was just dropped, whose threads still end.
            Err(Fault::Sled(sled::Error::Io(e))) if tries < 100 && lock_is_held(&e) => {
                tries += 1;
                thread::sleep(Duration::from_millis(10));
            }
            Err(Fault::Sled(sled::Error::Io(e))) if lock_is_held(&e) => return Err(Fault::InUse),
            opened => return opened,
        }
    }
}

fn lock_is_held(e: &io::Error) -> bool {
    e.to_string().contains("could not acquire lock")
}

fn write_sled(db: &sled::Db, batch: sled::Batch) -> Result<(), Fault> {
    guarded(|| {
        db.apply_batch(batch)?;
        db.flush()?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn put(key: &str) -> Commit {
        Commit::new().put(key, b"value".to_vec())
    }

    fn open_err(dir: &Path) -> StoreError {
        SledStore::open(dir).unwrap_err()
    }

    #[tokio::test]
    async fn stopped_before_the_generation_file_it_is_settled_when_opened() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        store.commit(put("first")).await.unwrap();
        {
            let disk = store.inner.disk.lock().unwrap();
            let state = store.inner.state();
            let (batch, _) = entries::batch(&state.table, &disk.head, &put("second"), Version(2));
            write_sled(&disk.db, batch).unwrap();
        }
        drop(store);

        let store = SledStore::open(dir.path()).unwrap();
        assert_eq!(store.generation(), Version(2));
        assert!(store.get("second").await.unwrap().is_some());
        drop(store);
        // It was settled: the file has followed.
        let text = Head::read_file(dir.path()).unwrap().unwrap();
        assert!(matches!(Head::decode(&text), Ok(head) if head.generation == Version(2)));
    }

    #[tokio::test]
    async fn two_steps_ahead_is_damage() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let before = std::fs::read(dir.path().join("generation")).unwrap();
        store.commit(put("first")).await.unwrap();
        store.commit(put("second")).await.unwrap();
        drop(store);
        std::fs::write(dir.path().join("generation"), before).unwrap();
        assert!(matches!(open_err(dir.path()), StoreError::Damaged { .. }));
    }

    #[tokio::test]
    async fn a_commit_that_fails_half_way_is_unknown_and_ends_the_store() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        store.commit(put("first")).await.unwrap();
        // A directory in its place makes the generation file impossible to replace.
        let (file, aside) = (dir.path().join("generation"), dir.path().join("aside"));
        std::fs::rename(&file, &aside).unwrap();
        std::fs::create_dir(&file).unwrap();
        let failed = store.commit(put("second")).await;
        assert!(matches!(failed, Err(StoreError::Unknown { .. })), "{failed:?}");
        assert!(store.has_failed());
        std::fs::remove_dir(&file).unwrap();
        std::fs::rename(&aside, &file).unwrap();

        assert!(matches!(store.get("first").await, Err(StoreError::Io { .. })));
        assert!(matches!(store.list("", None, 9).await, Err(StoreError::Io { .. })));
        assert!(matches!(store.commit(put("third")).await, Err(StoreError::Io { .. })));
        drop(store);
        // Opening it reads back what came of it.
        let store = SledStore::open(dir.path()).unwrap();
        assert!(store.get("second").await.unwrap().is_some());
        assert!(store.get("third").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn what_stops_a_commit_before_its_records_leaves_the_store_in_use() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let obstacle = dir.path().join("generation.new");
        std::fs::create_dir(&obstacle).unwrap();
        let refused = store.commit(put("first")).await;
        assert!(matches!(refused, Err(StoreError::Io { doing: "written", .. })), "{refused:?}");
        std::fs::remove_dir(&obstacle).unwrap();
        assert!(store.get("first").await.unwrap().is_none());
        store.commit(put("first")).await.unwrap();
    }

    #[tokio::test]
    async fn a_full_disk_is_refused_with_nothing_done() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(dir.path()).unwrap();
        let refused = store.inner.disk.lock().unwrap().has_room(dir.path(), u64::MAX);
        let Err(StoreError::Io { doing: "written", source }) = refused else {
            panic!("{refused:?}")
        };
        assert!(source.to_string().contains("make room"), "{source}");
        store.commit(put("with room")).await.unwrap();
    }

    #[tokio::test]
    async fn a_newer_format_is_refused_before_anything_is_touched() {
        let dir = tempfile::tempdir().unwrap();
        let generation = dir.path().join("generation");
        drop(SledStore::open(dir.path()).unwrap());
        let text = String::from_utf8(std::fs::read(&generation).unwrap()).unwrap();
        let (lines, _) = text.rsplit_once("check ").unwrap();
        let lines = lines.replace("format 1", "format 2");
        let check = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&lines));
        std::fs::write(&generation, format!("{lines}check {check}\n")).unwrap();
        let db = dir.path().join("sled/db");
        let before = std::fs::read(&db).unwrap();
        assert!(matches!(open_err(dir.path()), StoreError::Newer { format: 2, .. }));
        assert!(std::fs::read(&db).unwrap() == before);
    }
}

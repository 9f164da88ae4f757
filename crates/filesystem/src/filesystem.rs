//! A filesystem on its backing directory: made, opened, filled, emptied, removed.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::Duration;

use data_path::{Backend, dir};
use kms_core::{FilesystemKey, KeyEnvelope, KeyId};

use crate::copy::copy;
use crate::error::{Doing, Error, Fault};
use crate::header;
use crate::keys::{TreeKeys, is_of};
use crate::lock::{BackingLock, BackingLocks, LOCK, owner, put_owner};
use crate::names::Names;
use crate::plain::{PlainSink, PlainSource};
use crate::rekey::{KEPT, rekey};
use crate::report::{Checkpoint, Control, Outcome, Report};
use crate::saved::give_back_all;
use crate::sealed::{SealedTree, stage_directory};
use crate::stage::{Stage, make_or_open, remove_tree};
use crate::sys::{self, Errno};
use crate::turns::{Quiet, Turns};
use crate::verify::verify;

/// The copy of the wrapped key.
pub(crate) const HEADER: &[u8] = b"coffer.key";
/// The copy of the wrapped key that the filesystem is being re-encrypted from.
pub(crate) const PREVIOUS: &[u8] = b"coffer.previous-key";
/// Things in the making.
const STAGE: &[u8] = b"coffer.tmp";
/// What `verify --repair` set aside.
pub(crate) const LOST: &[u8] = b"coffer.lost";
/// Long link targets.
pub(crate) const LINKS: &[u8] = b"coffer.links";
/// The ciphertext tree.
pub(crate) const ROOT: &[u8] = b"root";
/// Things in the making of an export, in its target.
const EXPORT_STAGE: &[u8] = b".coffer-export";
const CHECKPOINT_EVERY: Duration = Duration::from_secs(20);

/// An open encrypted filesystem.
///
/// It holds the filesystem's lock ([`BackingLocks`]), which no second process or node gets ([`ErrorKind::InUse`]),
/// until it is dropped. Any number of threads may use it; jobs ([`Self::import`],
/// [`Self::export`], [`Self::verify`]) run one at a time.
///
/// [`ErrorKind::InUse`]: crate::ErrorKind::InUse
#[derive(Debug)]
pub struct Filesystem {
    path: PathBuf,
    backing: OwnedFd,
    pub(crate) tree: SealedTree,
    checkpoint_every: Duration,
    /// Held by the job that runs.
    job: Mutex<()>,
    /// Held by a rekey, which runs beside the others.
    rekeying: Mutex<()>,
    turns: Turns,
    _lock: Arc<BackingLock>,
}

impl Filesystem {
    /// Makes a filesystem in `backing`, which is made too or must be empty, and opens it. It is
    /// there when its header is, and that is written last and durably; what an interrupted attempt
    /// left is taken over, what a failed one made is removed.
    ///
    /// # Errors
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a directory that holds something, or
    /// an envelope of another key.
    pub fn create(
        backing: &Path,
        key: Arc<FilesystemKey>,
        envelope: &KeyEnvelope,
        cipher: Backend,
    ) -> Result<Self, Error> {
        let made = !backing.exists();
        Self::try_create(backing, key, envelope, cipher).map_err(|fault| {
            if made {
                // Only what is empty goes: what is not belongs to another attempt.
                let _ = std::fs::remove_dir(backing);
            }
            fault.at_path(backing)
        })
    }

    fn try_create(
        path: &Path,
        key: Arc<FilesystemKey>,
        envelope: &KeyEnvelope,
        cipher: Backend,
    ) -> Result<Self, Fault> {
        if envelope.wrapped.key_id != key.id() {
            return Err(refused(
                "created",
                "the envelope is of another key",
                "check the key store",
            ));
        }
        let keys = TreeKeys::new(key, None, cipher).doing("created")?;
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::INVAL))
            .map_err(no_place)?;
        let backing = sys::open_root(path).map_err(no_place)?;
        check_vacant(&backing)?;
        let lock = BackingLocks::default().lock(&backing)?;
        // Again, for now nobody else is making one here.
        check_vacant(&backing)?;
        let build = || -> Result<(OwnedFd, SealedTree), Fault> {
            // Durable with the rest, before the header.
            put_owner(lock.file(), keys.current.key_id()).doing("created")?;
            let stage = Stage::open(&backing, STAGE).doing("created")?;
            let links = make_or_open(&backing, LINKS).doing("created")?;
            make_or_open(&backing, LOST).doing("created")?;
            remove_vacant_root(&backing).doing("created")?;
            let (staged, root) = stage_directory(&keys, &stage, keys.current.root_directory())?;
            sys::rename(stage.tmp(), &staged, &backing, ROOT).doing("created")?;
            sys::sync_all(&backing).doing("made durable")?;
            header::write(&backing, HEADER, envelope)?;
            if let Ok(parent) = sys::open_root(&path.join("..")) {
                sys::sync_file(parent).doing("made durable")?;
            }
            let opened = sys::open_dir(&backing, b".").doing("opened")?;
            Ok((opened, SealedTree { keys, root: root.fd, links, stage }))
        };
        let (opened, tree) = build().inspect_err(|_| {
            // Nothing of value is here: the header comes last. What can't be removed now stays known as ours.
            let gone = |name: &&[u8]| remove_tree(&backing, name).is_ok();
            if [ROOT, STAGE, LINKS, LOST].iter().all(gone) {
                let _ = sys::unlink(&backing, LOCK);
            }
        })?;
        Ok(Self::new(path.to_owned(), opened, tree, lock))
    }

    /// Opens the filesystem in `backing`, and removes what an interrupted act left half done. Where nothing can be written,
    /// on a disk that was remounted after an error or on a backup, all of it can be read.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when it is open elsewhere,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when it is none or of another key,
    /// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) when its root can't be read, or does not show that the key is
    /// right: it has lost its record, and no name in it opens.
    pub fn open(backing: &Path, key: Arc<FilesystemKey>, cipher: Backend) -> Result<Self, Error> {
        Self::open_sharing(&BackingLocks::default(), backing, key, None, cipher)
    }

    /// As [`Self::open`], by a node that may have its lock already. With `previous` it is a filesystem between two keys
    /// ([`begin_rekey`](crate::begin_rekey)): what lies under either is read, and everything new is sealed under `key`.
    /// No other [`Filesystem`] of this node may have the same backing directory open then.
    ///
    /// # Errors
    /// Those of [`Self::open`].
    pub fn open_sharing(
        locks: &BackingLocks,
        backing: &Path,
        key: Arc<FilesystemKey>,
        previous: Option<Arc<FilesystemKey>>,
        cipher: Backend,
    ) -> Result<Self, Error> {
        let opened = Self::try_open(locks, backing, key, previous, cipher);
        opened.map_err(|fault| fault.at_path(backing))
    }

    fn try_open(
        locks: &BackingLocks,
        path: &Path,
        key: Arc<FilesystemKey>,
        previous: Option<Arc<FilesystemKey>>,
        cipher: Backend,
    ) -> Result<Self, Fault> {
        sys::raise_file_limit();
        let backing = sys::open_root(path).doing("opened")?;
        let root = open_tree(&backing)?;
        let lock = locks.lock(&backing)?;
        let former = previous.as_ref().map(|key| key.id());
        let ours = |id: KeyId| is_of(id, key.id(), former);
        let owned = owner(lock.file()).doing("read")?.is_some_and(ours);
        let named = match header::read(&backing, HEADER) {
            Ok(there) if !ours(there.wrapped.key_id) => {
                return Err(of_another_key(there.wrapped.key_id));
            }
            Ok(_) => true,
            // A lost copy of the wrapped key is for the holder of copies to report and to mend.
            Err(_) => owned,
        };
        let keys = TreeKeys::new(key, previous, cipher).doing("opened")?;
        let stage = Stage::open_if_writable(&backing, STAGE).doing("opened")?;
        let links = make_or_open(&backing, LINKS).doing("opened")?;
        for name in header::left_over(&backing, keys.current.key_id(), former)? {
            if_writable(sys::unlink(&backing, &name)).doing("opened")?;
        }
        let tree = SealedTree { keys, root, links, stage };
        tree.prove_key(named)?;
        // What a crash kept a rekey from giving back.
        if let Ok(kept) = sys::open_dir(tree.stage.resume(), KEPT) {
            if_writable(give_back_all(&kept, &backing)).doing("opened")?;
        }
        if !owned {
            if_writable(put_owner(lock.file(), tree.keys.current.key_id())).doing("locked")?;
        }
        let path = path.to_owned();
        Ok(Self::new(path, backing, tree, lock))
    }

    fn new(path: PathBuf, backing: OwnedFd, tree: SealedTree, lock: Arc<BackingLock>) -> Self {
        let checkpoint_every = CHECKPOINT_EVERY;
        let (job, rekeying, turns) = (Mutex::default(), Mutex::default(), Turns::default());
        Self { path, backing, tree, checkpoint_every, job, rekeying, turns, _lock: lock }
    }

    /// Removes the filesystem with the key `key` (or still `previous`, if it is between two keys) in `backing`: the copies
    /// of its wrapped keys first and durably, then everything else of Coffer's there, and the directory when that leaves it empty. What an interrupted creation or
    /// removal left is removed too. Answers whether anything of it was there.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) while another node has it, or this one with the locks `locks` uses it;
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) for a filesystem with another key, or data of one whose key
    /// can't be told: nothing is removed then.
    pub fn remove(
        locks: &BackingLocks,
        backing: &Path,
        key: KeyId,
        previous: Option<KeyId>,
    ) -> Result<bool, Error> {
        let remove = || -> Result<bool, Fault> {
            let dir = match sys::open_root(backing) {
                Err(Errno::NOENT) => return Ok(false),
                other => other.doing("removed")?,
            };
            let names = Names::read(&dir, |_| true).doing("removed")?;
            if !names.contains(LOCK) && !names.contains(HEADER) {
                return Ok(false);
            }
            let lock = locks.lock_alone(&dir)?;
            check_owner(&dir, &lock, key, previous)?;
            for name in names.iter().filter(|name| is_copy(name)) {
                sys::unlink(&dir, name).doing("removed")?;
            }
            sys::sync_file(&dir).doing("removed")?;
            for name in [ROOT, STAGE, LINKS, LOST] {
                remove_tree(&dir, name).doing("removed")?;
            }
            sys::unlink(&dir, LOCK).doing("removed")?;
            sys::sync_file(&dir).doing("removed")?;
            Ok(true)
        };
        let was_there = remove().map_err(|fault| fault.at_path(backing))?;
        // What somebody else put there stays, and the directory with it.
        let _ = std::fs::remove_dir(backing);
        Ok(was_there)
    }

    /// Changes how often a job takes a [`Checkpoint`]: the most work that a crash can cost. It is
    /// 20 seconds; each time the whole backing filesystem is synced.
    pub const fn set_checkpoint_interval(&mut self, interval: Duration) {
        self.checkpoint_every = interval;
    }

    /// The backing directory.
    pub fn backing(&self) -> &Path {
        &self.path
    }

    /// Copies everything below `source` into the filesystem, as `cp -a` does: what has the same
    /// name is replaced, file by file and each in one step; what is not in `source` stays, but for the ACLs and `user.*`
    /// attributes of a directory that is in it.
    ///
    /// It streams in parallel within 128 MiB of memory, and reads each file to its end, whatever length it is said to
    /// have (`/proc` and some mounts say 0). What can't be read, changes while it is
    /// read, or meets something of another type under its name is a problem in the report, and the
    /// rest is copied. On return everything is durable. After a stop, an error or a crash, give the
    /// last [`Checkpoint`] as `resume` with the same `source` to go on from there: what changed in the meantime before
    /// that point is not seen ([`Report::resumed`]). Where another directory is at `source` now it begins anew.
    ///
    /// # Errors
    /// When going on is pointless: the disk is full ([`ErrorKind::Full`](crate::ErrorKind::Full)),
    /// `source` can't be opened, another job runs.
    pub fn import(
        &self,
        source: &Path,
        resume: Option<Checkpoint>,
        control: &dyn Control,
    ) -> Result<Report, Error> {
        let _job = self.begin_job()?;
        let prepare = || {
            let root = sys::open_root(source).doing("opened")?;
            self.refuse_inside(source)?;
            let backing = sys::stat_open(&self.backing).doing("read")?;
            Ok(PlainSource::new(root, (backing.st_dev, backing.st_ino)))
        };
        let plain = prepare().map_err(|fault: Fault| fault.at_path(source))?;
        copy(&plain, &self.tree, &self.tree.stage, resume, self.checkpoint_every, control)
    }

    /// Copies the whole filesystem in plain to `target`, which is made or must be empty unless a
    /// stopped export is taken up with `resume`. One whose target is no longer there, or another one, begins anew.
    ///
    /// A file of which anything is damaged is a problem in the report, with its plain path and
    /// where its ciphertext lies, and nothing appears under its name, but for an attribute, without which it is copied; so
    /// is the rest.
    ///
    /// # Errors
    /// As [`Self::import`]; [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when `target` is not empty.
    pub fn export(
        &self,
        target: &Path,
        resume: Option<Checkpoint>,
        control: &dyn Control,
    ) -> Result<Report, Error> {
        let _job = self.begin_job()?;
        let staging = self.export_stage().map_err(|fault| fault.at_path(&self.path))?;
        let prepare = || {
            self.refuse_inside(target)?;
            match std::fs::DirBuilder::new().mode(0o700).create(target) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
                    return Err(errno).doing("made");
                }
                _ => {}
            }
            let root = sys::open_root(target).doing("opened")?;
            let there = Names::read(&root, |_| true).doing("read")?;
            // The stage is there from the export's beginning on, until it is finished.
            let resume = resume.filter(|it| it.finished || there.contains(&staging));
            if resume.is_none() && there.iter().any(|name| name != staging) {
                let why = "it is not empty";
                return Err(refused("written", why, "name a new or an empty directory"));
            }
            // One that was taken up may have its mode already, and an empty one gets another.
            sys::give_owner_s_rights(&root).doing("written")?;
            let stage = Stage::open(&root, &staging).doing("written")?;
            Ok((root, stage, resume))
        };
        let (root, stage, resume) = prepare().map_err(|fault: Fault| fault.at_path(target))?;
        let finish = |root: &OwnedFd| {
            // It lies in the root, whose mode and times are its own.
            let before = sys::stat_open(root).doing("read")?;
            let was_closed = sys::give_owner_s_rights(root).doing("tidied up")?;
            remove_tree(root, &staging).doing("tidied up")?;
            if was_closed {
                sys::set_mode(root, sys::permissions(&before)).doing("given its mode")?;
            }
            sys::set_times(root, &before).doing("given its times")?;
            sys::sync_all(root).doing("made durable")
        };
        if resume.is_none() {
            // From now on the target is not empty, and it is this export that fills it.
            control.checkpoint(&Checkpoint::default());
        }
        let handle = sys::open_dir(&root, b".").doing("opened").map_err(|f| f.at_path(target))?;
        let sink = PlainSink::new(root, &stage);
        let report = copy(&self.tree, &sink, &stage, resume, self.checkpoint_every, control)?;
        if report.outcome != Outcome::Stopped {
            finish(&handle).map_err(|fault: Fault| fault.at_path(target))?;
        }
        Ok(report)
    }

    /// A name for the stage of an export that nothing in the root has: what is exported may be what a
    /// stopped export left. It is the same each time, so that an export that is taken up finds its stage.
    fn export_stage(&self) -> Result<Vec<u8>, Fault> {
        let root = self.tree.open_root()?;
        let mut name = EXPORT_STAGE.to_vec();
        loop {
            match self.tree.find(&root, &name) {
                Err(Fault::NotFound) => return Ok(name),
                Err(fault) => return Err(fault),
                Ok(_) => name.push(b'~'),
            }
        }
    }

    /// Authenticates everything: each name, record, link, attribute, header, group and block. All
    /// that is damaged is in the report, with its plain path as far as that can be read, and where
    /// its ciphertext lies.
    ///
    /// With `repair`, what can't be read (a file of which anything is lost, an attribute) and what is left over is
    /// moved to `coffer.lost` in the backing directory, each with a note of where it lay and why; a damaged copy of a
    /// file's header and the root's record are written again. The report has all of it. Where a directory, a name or a
    /// link can't be read, what it may need is not taken for left over.
    ///
    /// # Errors
    /// When the backing directory can't be read at all, or another job runs.
    pub fn verify(&self, repair: bool, control: &dyn Control) -> Result<Report, Error> {
        let _job = self.begin_job()?;
        verify(&self.tree, &self.backing, repair, control)
    }

    /// Re-encrypts in place all that lies under the previous key, if this filesystem is between two keys
    /// ([`Self::open_sharing`]). The other jobs may run meanwhile; two of these at once may not.
    ///
    /// What is done is not done again: after a stop, a crash or a problem another call goes on with what is left, and only
    /// looks at the rest. [`Outcome::Done`] means that nothing lies under the previous key any more; otherwise the
    /// problems name what does.
    ///
    /// # Errors
    /// When going on is pointless: the disk is full ([`ErrorKind::Full`](crate::ErrorKind::Full)), nothing can be written,
    /// another rekey runs.
    pub fn rekey(&self, control: &dyn Control) -> Result<Report, Error> {
        let _rekeying = alone(&self.rekeying, "another rekey works on this filesystem")
            .map_err(|fault| fault.at_path(&self.path))?;
        sys::raise_file_limit();
        rekey(&self.tree, &self.backing, &self.turns, control)
    }

    /// Keeps a rekey from changing anything.
    pub(crate) fn quiet(&self) -> Quiet<'_> {
        self.turns.job()
    }

    fn begin_job(&self) -> Result<(MutexGuard<'_, ()>, Quiet<'_>), Error> {
        sys::raise_file_limit();
        let job = alone(&self.job, "another job works on this filesystem");
        Ok((job.map_err(|fault| fault.at_path(&self.path))?, self.quiet()))
    }

    /// Refuses a source or target that lies in the backing directory, or would.
    fn refuse_inside(&self, path: &Path) -> Result<(), Fault> {
        if real_place(path).starts_with(real_place(&self.path)) {
            let why = "it lies in the backing directory of this filesystem";
            return Err(refused("used", why, "name a directory outside it"));
        }
        Ok(())
    }
}

/// Takes what only one may have at a time.
fn alone<'a>(of: &'a Mutex<()>, otherwise: &'static str) -> Result<MutexGuard<'a, ()>, Fault> {
    match of.try_lock() {
        Ok(guard) => Ok(guard),
        Err(TryLockError::Poisoned(poisoned)) => Ok(poisoned.into_inner()),
        Err(TryLockError::WouldBlock) => Err(Fault::InUse(otherwise)),
    }
}

/// Where a path leads once every symbolic link is followed, whether it exists already or would be made.
pub fn real_place(path: &Path) -> PathBuf {
    for ancestor in path.ancestors() {
        if let Ok(real) = ancestor.canonicalize() {
            return match path.strip_prefix(ancestor) {
                Ok(rest) if !rest.as_os_str().is_empty() => real.join(rest),
                _ => real,
            };
        }
    }
    path.to_owned()
}

/// Whether it is a copy of a wrapped key, or one in the making.
fn is_copy(name: &[u8]) -> bool {
    name.starts_with(HEADER) || name.starts_with(PREVIOUS)
}

/// Why a directory can't be where one was named: also because none can be.
fn no_place(errno: Errno) -> Fault {
    match errno {
        Errno::NOTDIR | Errno::EXIST | Errno::NAMETOOLONG | Errno::INVAL | Errno::LOOP => refused(
            "created",
            &format!("no directory can be there ({})", std::io::Error::from(errno)),
            "name a directory, or a place where one can be made",
        ),
        errno => Fault::System { doing: "created", errno },
    }
}

pub(crate) fn refused(doing: &'static str, why: &str, cure: &'static str) -> Fault {
    Fault::Refused { doing, why: why.to_owned(), cure }
}

pub(crate) fn of_another_key(key: KeyId) -> Fault {
    let why = format!("it belongs to the key {key}");
    Fault::Refused { doing: "opened", why, cure: "check the filesystem's backing directory" }
}

/// The ciphertext tree. Where a disk is not mounted there is none, and nothing must be made.
pub(crate) fn open_tree(backing: &OwnedFd) -> Result<OwnedFd, Fault> {
    match sys::open_dir(backing, ROOT) {
        Err(Errno::NOENT) => {
            let why = "there is no encrypted filesystem in it";
            Err(refused("opened", why, "check the path of the backing directory"))
        }
        other => other.doing("opened"),
    }
}

/// What needs not be done where nothing can be written.
fn if_writable(done: sys::Result<()>) -> sys::Result<()> {
    match done {
        Err(Errno::ROFS) => Ok(()),
        other => other,
    }
}

/// Refuses a directory that is not known to be of this key.
fn check_owner(
    backing: &OwnedFd,
    lock: &BackingLock,
    key: KeyId,
    previous: Option<KeyId>,
) -> Result<(), Fault> {
    let cure = "check the path; if nobody needs what lies there, remove it by hand";
    let header = header::read(backing, HEADER).ok().map(|envelope| envelope.wrapped.key_id);
    let named = [header, owner(lock.file()).doing("read")?];
    if let Some(other) = named.into_iter().flatten().find(|named| !is_of(*named, key, previous)) {
        let why = format!("it belongs to the key {other}, not to {key}");
        return Err(Fault::Refused { doing: "removed", why, cure });
    }
    if named != [None, None] {
        return Ok(());
    }
    occupied(backing)?.map_or(Ok(()), |why| Err(refused("removed", why, cure)))
}

/// Refuses a directory that holds anything but what an interrupted `create` leaves.
fn check_vacant(backing: &OwnedFd) -> Result<(), Fault> {
    match occupied(backing)? {
        Some(why) => Err(refused("created", why, "choose a new or an empty directory")),
        None => Ok(()),
    }
}

/// What a directory holds besides what an interrupted `create` leaves.
fn occupied(backing: &OwnedFd) -> Result<Option<&'static str>, Fault> {
    for name in Names::read(backing, |_| true).doing("read")?.iter() {
        if name == HEADER {
            return Ok(Some("there is an encrypted filesystem in it already"));
        }
        if name == ROOT && !root_is_vacant(backing).doing("read")? {
            let why = "there is data of an encrypted filesystem in it, whose coffer.key is missing";
            return Ok(Some(why));
        }
        let ours = [LOCK, STAGE, LOST, LINKS, ROOT].contains(&name);
        if !ours && !is_copy(name) && name != b"lost+found" {
            return Ok(Some("it is not empty"));
        }
    }
    Ok(None)
}

fn root_is_vacant(backing: &OwnedFd) -> sys::Result<bool> {
    let data = |name: &[u8]| name != dir::RECORD_NAME.as_bytes();
    Ok(Names::read(&sys::open_dir(backing, ROOT)?, data)?.get(0).is_none())
}

fn remove_vacant_root(backing: &OwnedFd) -> sys::Result<()> {
    match sys::stat(backing, ROOT) {
        Err(Errno::NOENT) => Ok(()),
        _ => remove_tree(backing, ROOT),
    }
}

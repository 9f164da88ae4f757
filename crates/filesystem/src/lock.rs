//! `coffer.lock`: one node for each filesystem, and whose it is.

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::sleep;
use std::time::Duration;

use kms_core::KeyId;

use crate::error::{Doing, Error, Fault};
use crate::filesystem::{HEADER, of_another_key, open_tree};
use crate::header;
use crate::keys::is_of;
use crate::sys::{self, Errno};

/// Whoever has the filesystem unlocked has this locked. It has the key id as text, so that what is half made or half
/// removed, and has no header, is known to be whose it is.
pub(crate) const LOCK: &[u8] = b"coffer.lock";

/// How often a lock is tried for, and how long apart: who has it for a moment, to renew a copy of a key, lets go soon.
const TRIES: u32 = 20;
const TRY_EVERY: Duration = Duration::from_millis(5);

/// The locks that one node holds. What it does at the same time with one filesystem shares its lock; another node, or
/// another one of these, gets it only when all of that is done.
#[derive(Debug, Default, Clone)]
pub struct BackingLocks {
    held: Arc<Held>,
}

#[derive(Debug, Default)]
struct Held(Mutex<HashMap<Identity, Weak<BackingLock>>>);

/// Device and inode of a lock file.
type Identity = (u64, u64);

/// The lock of a filesystem, held until the last who shares it drops it. It takes one open file.
#[derive(Debug)]
pub struct BackingLock {
    file: OwnedFd,
    identity: Identity,
    of: Weak<Held>,
    /// The filesystem is being removed: nobody else of the node gets it.
    going: Mutex<bool>,
    /// Had by whoever puts copies of its wrapped keys in each other's places.
    copies: Mutex<()>,
}

impl BackingLocks {
    /// Takes the lock of the filesystem in `backing`, which has the key `key` (or still `previous`, if it is between two
    /// keys), or shares it.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when another node has it, or it is being removed;
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when there is none, or one of another key.
    pub fn take(
        &self,
        backing: &Path,
        key: KeyId,
        previous: Option<KeyId>,
    ) -> Result<Arc<BackingLock>, Error> {
        let take = || -> Result<Arc<BackingLock>, Fault> {
            sys::raise_file_limit();
            let backing = sys::open_root(backing).doing("opened")?;
            open_tree(&backing)?;
            let lock = self.lock(&backing)?;
            let named = match header::read(&backing, HEADER) {
                Ok(envelope) => Some(envelope.wrapped.key_id),
                Err(_) => owner(lock.file()).doing("read")?,
            };
            match named {
                Some(other) if !is_of(other, key, previous) => Err(of_another_key(other)),
                _ => Ok(lock),
            }
        };
        take().map_err(|fault| fault.at_path(backing))
    }

    /// How many this node holds.
    pub fn count(&self) -> usize {
        self.held.locks().len()
    }

    /// The lock of whatever lies in this directory, if this node holds it.
    pub(crate) fn held(&self, backing: &OwnedFd) -> Option<Arc<BackingLock>> {
        let file = sys::stat(backing, LOCK).ok()?;
        self.held.shared(identity(&file)).ok().flatten()
    }

    /// The lock of whatever lies in this directory.
    pub(crate) fn lock(&self, backing: &OwnedFd) -> Result<Arc<BackingLock>, Fault> {
        for tried in 1.. {
            let file = sys::open_lock(backing, LOCK).doing("locked")?;
            let identity = identity(&sys::stat_open(&file).doing("locked")?);
            if let Some(shared) = self.held.shared(identity)? {
                return Ok(shared);
            }
            match sys::try_lock(&file) {
                // Its last holder may have removed it while it was being waited for.
                Ok(())
                    if sys::stat(backing, LOCK).is_ok_and(|s| self::identity(&s) == identity) =>
                {
                    let of = Arc::downgrade(&self.held);
                    let (going, copies) = Default::default();
                    let lock = Arc::new(BackingLock { file, identity, of, going, copies });
                    self.held.locks().insert(identity, Arc::downgrade(&lock));
                    return Ok(lock);
                }
                Ok(()) | Err(Errno::WOULDBLOCK) if tried < TRIES => sleep(TRY_EVERY),
                Ok(()) | Err(Errno::WOULDBLOCK) => break,
                Err(other) => return Err(other).doing("locked"),
            }
        }
        Err(Fault::InUse("another process or node has it open"))
    }

    /// The lock of whatever lies in this directory, for the one who removes it: shared with nobody.
    pub(crate) fn lock_alone(&self, backing: &OwnedFd) -> Result<Arc<BackingLock>, Fault> {
        let lock = self.lock(backing)?;
        let _others_wait = self.held.locks();
        if Arc::strong_count(&lock) > 1 {
            return Err(Fault::InUse("this node works with it"));
        }
        *guard(&lock.going) = true;
        Ok(lock)
    }
}

impl Held {
    fn shared(&self, identity: Identity) -> Result<Option<Arc<BackingLock>>, Fault> {
        // Dropped without the map, which the last one's drop takes.
        let shared = self.locks().get(&identity).and_then(Weak::upgrade);
        match shared {
            Some(lock) if *guard(&lock.going) => Err(Fault::InUse("it is being removed")),
            shared => Ok(shared),
        }
    }

    fn locks(&self) -> MutexGuard<'_, HashMap<Identity, Weak<BackingLock>>> {
        guard(&self.0)
    }
}

impl BackingLock {
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// The right to put copies of its wrapped keys in each other's places, which one of the node has at a time.
    pub(crate) fn copies(&self) -> MutexGuard<'_, ()> {
        guard(&self.copies)
    }

    /// Whether this is still the lock of what lies in `backing`: a disk can be mounted over it, a copy put in its place.
    pub fn is_at(&self, backing: &Path) -> bool {
        sys::open_root(backing).is_ok_and(|dir| self.is_in(&dir))
    }

    pub(crate) fn is_in(&self, backing: &OwnedFd) -> bool {
        sys::stat(backing, LOCK).is_ok_and(|stat| identity(&stat) == self.identity)
    }
}

impl Drop for BackingLock {
    fn drop(&mut self) {
        let Some(held) = self.of.upgrade() else { return };
        let mut locks = held.locks();
        // Another one may have its place already.
        if locks.get(&self.identity).is_some_and(|lock| lock.strong_count() == 0) {
            locks.remove(&self.identity);
        }
    }
}

/// Whether a process has the filesystem in `backing` unlocked at this moment.
pub fn is_open(backing: &Path) -> bool {
    sys::open_root(backing).is_ok_and(|dir| sys::is_locked(&dir, LOCK))
}

/// The key id that the lock file names; `None` when its writer died before that.
pub(crate) fn owner(lock: impl AsFd) -> sys::Result<Option<KeyId>> {
    let mut text = [0; 64];
    let len = sys::read_at(lock, &mut text, 0)?;
    let text = std::str::from_utf8(&text[..len]).ok();
    Ok(text.and_then(|text| text.strip_suffix('\n')?.parse().ok()))
}

/// Writes it down whose it is.
pub(crate) fn put_owner(lock: impl AsFd, key: KeyId) -> sys::Result<()> {
    let owner = format!("{key}\n");
    // In this order what is there is written over, which a full disk lets be done.
    sys::write_at(&lock, owner.as_bytes(), 0)?;
    sys::set_len(lock, owner.len() as u64)
}

fn identity(stat: &sys::Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

/// What is held here is a right, a flag, or a map whose entries stand alone, so a panic leaves it whole.
fn guard<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

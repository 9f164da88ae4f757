//! Filesystems that are unlocked: held against other nodes from then on, opened when they are first used, and shared.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::convert::Infallible;
use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use admin_api::{Exit, Problem};
use filesystem::{Backend, BackingLock, BackingLocks, Filesystem};
use futures::StreamExt as _;
use futures::stream;
use key_manager::{FilesystemName, FilesystemRecord, KeyManager, KeyState, OpenKeys};
use kms_core::KeyId;
use rustix::process::{Resource, getrlimit};
use tokio::sync::{Notify, OnceCell};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::disks::Disks;
use crate::mutex::lock;
use crate::problem;

/// How many filesystems stay open that nobody uses, where the limit on open files does not allow for fewer.
const IDLE_OPEN: u64 = 256;

/// Of the open files that a process may have, an idle filesystem gets no more than its part of so many. It has six, and what is in
/// use, the store and the connections need theirs.
const FILES_EACH: u64 = 16;

/// And one that is held and not open. It has one.
const FILES_EACH_HELD: u64 = 4;

/// How often is looked whether what is open with its old keys is still in use, and how long apart.
const LOOKS: u32 = 400;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// How many disks are asked for a lock at a time.
const AT_ONCE: usize = 16;

/// The filesystems that are unlocked here. From then on until it is locked one is held, so that a second node meets its
/// lock; it is opened when it is first used and stays open, but beyond [`IDLE_OPEN`] the idle ones are closed.
pub(crate) struct OpenFilesystems {
    manager: Arc<KeyManager>,
    cipher: Backend,
    locks: BackingLocks,
    disks: Disks,
    places: Mutex<Places>,
    /// Unlocked, and not held: why.
    unheld: Mutex<BTreeMap<FilesystemName, Unheld>>,
    wake: Notify,
    /// Whether what is held is to be compared with what lies at its path.
    compare: AtomicBool,
}

/// Why a filesystem that is unlocked is not held against other nodes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Unheld {
    /// Another process or node has it: what was answered.
    InUse(String),
    /// What is open is not what lies at its path any more.
    Replaced(PathBuf),
    /// The limit on open files does not allow for it.
    TooMany,
}

#[derive(Default)]
struct Places {
    places: HashMap<FilesystemName, Place>,
    /// Those that are being deleted.
    leaving: HashSet<FilesystemName>,
}

impl Places {
    fn of(&mut self, name: &FilesystemName) -> Place {
        if self.leaving.contains(name) {
            return Place::default();
        }
        self.places.entry(name.clone()).or_default().clone()
    }
}

/// A filesystem that is being deleted.
#[derive(Debug)]
pub(crate) struct Leaving<'a> {
    of: &'a OpenFilesystems,
    name: &'a FilesystemName,
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        lock(&self.of.places).leaving.remove(self.name);
    }
}

/// A filesystem whose keys are in memory.
struct Unlocked {
    place: Place,
    keys: OpenKeys,
    backing: PathBuf,
}

impl Unlocked {
    fn key_ids(&self) -> KeyIds {
        KeyIds {
            key: self.keys.key.id(),
            previous: self.keys.previous.as_ref().map(|key| key.id()),
        }
    }
}

/// Which key a filesystem has, and which one it is being re-encrypted from.
#[derive(Clone, Copy, PartialEq, Eq)]
struct KeyIds {
    key: KeyId,
    previous: Option<KeyId>,
}

/// Where an open filesystem is, or will be: two that want it at once wait for one opening, and nobody
/// waits for another filesystem's slow disk.
#[derive(Default, Clone)]
struct Place {
    held: Arc<OnceCell<Arc<BackingLock>>>,
    opened: Arc<OnceCell<Opened>>,
    /// What was open here with other keys. It and what is opened now must not be in use at once.
    former: Weak<Filesystem>,
}

/// An open filesystem.
struct Opened {
    filesystem: Arc<Filesystem>,
    keys: KeyIds,
}

impl Opened {
    /// Whether it does for what has these keys now: it may have one more, which nothing lies under any more.
    fn serves(&self, keys: KeyIds) -> bool {
        self.keys == keys || (self.keys.key == keys.key && keys.previous.is_none())
    }
}

impl Place {
    /// Whether there is nothing, and nobody is about to put something there.
    fn is_empty(&self) -> bool {
        !self.held.initialized()
            && Arc::strong_count(&self.held) == 1
            && Arc::strong_count(&self.opened) == 1
    }

    /// Whether it is open and nobody uses it.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.opened) == 1
            && self.opened.get().is_some_and(|it| Arc::strong_count(&it.filesystem) == 1)
    }
}

impl OpenFilesystems {
    pub(crate) fn new(manager: Arc<KeyManager>, cipher: Backend, locks: BackingLocks) -> Self {
        Self {
            manager,
            cipher,
            locks,
            disks: Disks::default(),
            places: Mutex::default(),
            unheld: Mutex::default(),
            wake: Notify::new(),
            compare: AtomicBool::new(false),
        }
    }

    /// The filesystem with this name, which must be unlocked. `title` says what fails if that does.
    pub(crate) async fn get(
        &self,
        name: &FilesystemName,
        title: &str,
    ) -> Result<Arc<Filesystem>, Problem> {
        let mut read_before = None;
        loop {
            let unlocked = self.unlocked(name).await.map_err(|e| problem::of_keys(title, &e))?;
            let keys = unlocked.key_ids();
            let place = unlocked.place.clone();
            if !place.opened.initialized() {
                self.make_room();
            }
            self.held(name, &unlocked, title).await?;
            let open = || self.open(name, unlocked, title);
            let opened = place.opened.get_or_try_init(open).await?;
            if opened.serves(keys) {
                return Ok(Arc::clone(&opened.filesystem));
            }
            // Which of the two is the older is known once the keys were read after it was open.
            if read_before == Some(keys) {
                self.replace(name, &place, opened);
            }
            read_before = Some(keys);
        }
    }

    /// Nothing is opened with two keys before what was open with one alone is closed, and the directory has both wrapped.
    async fn open(
        &self,
        name: &FilesystemName,
        unlocked: Unlocked,
        title: &str,
    ) -> Result<Opened, Problem> {
        let ids = unlocked.key_ids();
        let Unlocked { place, keys: OpenKeys { key, previous }, backing } = unlocked;
        let mut looks = 1;
        while place.former.strong_count() > 0 {
            if looks == LOOKS {
                let why = "it has got a new key, and what began before that still uses it";
                let cure = "wait for it; a disk that does not answer holds it up: check the disk and its mount";
                return Err(Problem::new(Exit::State, "busy", title, why).cure(cure));
            }
            looks += 1;
            sleep(LOOK_EVERY).await;
        }
        if previous.is_some() {
            let settled = self.manager.settle_rekey(name).await;
            settled.map_err(|e| problem::of_keys(title, &e))?;
        }
        let (cipher, locks) = (self.cipher, self.locks.clone());
        let open = move || Filesystem::open_sharing(&locks, &backing, key, previous, cipher);
        match spawn_blocking(open).await {
            Ok(Ok(filesystem)) => Ok(Opened { filesystem: Arc::new(filesystem), keys: ids }),
            Ok(Err(error)) => Err(problem::of_filesystem(title, &error)),
            Err(error) => Err(problem::internal(title, io::Error::from(error))),
        }
    }

    /// Has what is open with other keys than the filesystem has now opened anew by whoever comes next.
    fn replace(&self, name: &FilesystemName, place: &Place, opened: &Opened) {
        if let Some(there) = lock(&self.places).places.get_mut(name)
            && Arc::ptr_eq(&there.opened, &place.opened)
        {
            there.opened = Arc::default();
            there.former = Arc::downgrade(&opened.filesystem);
        }
    }

    /// Closes what is open with a key that the filesystem does not have any more, if nobody uses it. Whoever comes next
    /// opens it anew.
    pub(crate) async fn drop_former_key(&self, name: &FilesystemName) {
        let has_two =
            |place: &Place| place.opened.get().is_some_and(|it| it.keys.previous.is_some());
        if !lock(&self.places).places.get(name).is_some_and(has_two) {
            return;
        }
        let Ok(unlocked) = self.unlocked(name).await else { return };
        let keys = unlocked.key_ids();
        drop(unlocked);
        if let Some(there) = lock(&self.places).places.get_mut(name)
            && there.is_idle()
            && there.opened.get().is_some_and(|opened| opened.keys != keys)
        {
            there.opened = Arc::default();
        }
    }

    /// Holds this filesystem, if it is unlocked, until it is closed. What keeps it from being held is told by
    /// [`Self::unheld`], or by its first use.
    pub(crate) async fn hold(&self, name: &FilesystemName) {
        let Ok(unlocked) = self.unlocked(name).await else { return };
        if unlocked.place.held.initialized() {
            return;
        }
        if self.locks.count() as u64 >= files() / FILES_EACH_HELD {
            self.note(name, Unheld::TooMany);
            return;
        }
        let _ = self.held(name, &unlocked, "it can't be held").await;
    }

    /// Holds what is unlocked by now.
    pub(crate) fn hold_soon(&self) {
        self.wake.notify_one();
    }

    /// Looks too whether what is held still lies at its path.
    pub(crate) fn compare_soon(&self) {
        self.compare.store(true, Ordering::Release);
        self.wake.notify_one();
    }

    /// Holds what is unlocked each time somebody asks for it, for ever.
    pub(crate) async fn keep_holding(&self) -> Infallible {
        loop {
            self.wake.notified().await;
            let compare = self.compare.swap(false, Ordering::AcqRel);
            match self.unlocked_names().await {
                Ok(names) => {
                    let wanted = names.into_iter().filter(|name| compare || !self.is_held(name));
                    let each = |name| async move {
                        self.compare(&name).await;
                        self.drop_former_key(&name).await;
                        self.hold(&name).await;
                    };
                    stream::iter(wanted).for_each_concurrent(AT_ONCE, each).await;
                }
                Err(error) => {
                    tracing::error!(%error, "the filesystems can't be held against other nodes");
                }
            }
        }
    }

    /// Notes whether what is held of this filesystem still lies at its path. Where it does not and nothing of it is open, it is
    /// let go, so that what lies there now is held instead.
    async fn compare(&self, name: &FilesystemName) {
        let Ok(Unlocked { place, backing, .. }) = self.unlocked(name).await else { return };
        let Some(held) = place.held.get().cloned() else { return };
        let at = backing.clone();
        match self.disks.ask(&backing, move || held.is_at(&at)).await {
            Ok(true) => drop(lock(&self.unheld).remove(name)),
            Ok(false) if place.opened.initialized() => self.note(name, Unheld::Replaced(backing)),
            Ok(false) => self.close(name),
            Err(_) => {}
        }
    }

    /// Filesystems that are unlocked and not held, and why.
    pub(crate) fn unheld(&self) -> Vec<(FilesystemName, Unheld)> {
        lock(&self.unheld).iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// Closes it as soon as its last user lets it go.
    pub(crate) fn close(&self, name: &FilesystemName) {
        lock(&self.places).places.remove(name);
        lock(&self.unheld).remove(name);
    }

    /// Closes it, and keeps nothing open of who comes yet, as long as the answer lives.
    pub(crate) fn close_for_good<'a>(&'a self, name: &'a FilesystemName) -> Leaving<'a> {
        lock(&self.places).leaving.insert(name.clone());
        self.close(name);
        Leaving { of: self, name }
    }

    /// Closes all of them.
    pub(crate) fn close_all(&self) {
        lock(&self.places).places.clear();
    }

    async fn unlocked(&self, name: &FilesystemName) -> Result<Unlocked, key_manager::Error> {
        // The place comes before the key: a lock that comes after the key then closes this place, held or not.
        let place = lock(&self.places).of(name);
        let found = async {
            let keys = self.manager.keys(name).await?;
            Ok((keys, self.manager.filesystem(name).await?.backing))
        };
        match found.await {
            Ok((keys, backing)) => Ok(Unlocked { place, keys, backing }),
            Err(error) => {
                drop(place);
                lock(&self.places).places.retain(|of, place| of != name || !place.is_empty());
                Err(error)
            }
        }
    }

    async fn held(
        &self,
        name: &FilesystemName,
        unlocked: &Unlocked,
        title: &str,
    ) -> Result<(), Problem> {
        let KeyIds { key, previous } = unlocked.key_ids();
        let backing = &unlocked.backing;
        let take = || async {
            let (at, locks) = (backing.clone(), self.locks.clone());
            let taken = self.disks.ask(backing, move || locks.take(&at, key, previous)).await;
            let taken = taken.map_err(|why| problem::of_silence(title, backing, &why))?;
            taken.map_err(|e| problem::of_filesystem(title, &e))
        };
        let held = unlocked.place.held.get_or_try_init(take).await;
        match &held {
            Ok(_) => drop(lock(&self.unheld).remove(name)),
            Err(problem) if problem.code == problem::IN_USE => {
                self.note(name, Unheld::InUse(problem.detail.clone()));
            }
            Err(_) => {}
        }
        held.map(drop)
    }

    fn note(&self, name: &FilesystemName, why: Unheld) {
        let mut unheld = lock(&self.unheld);
        // Those that are too many have one cause.
        let is_news = match why {
            Unheld::TooMany => !unheld.values().any(|known| *known == Unheld::TooMany),
            _ => unheld.get(name) != Some(&why),
        };
        if is_news {
            tracing::warn!(filesystem = %name, ?why, "the filesystem is not held against other nodes");
        }
        unheld.insert(name.clone(), why);
    }

    async fn unlocked_names(&self) -> Result<Vec<FilesystemName>, key_manager::Error> {
        let filesystems = self.manager.filesystems().await?;
        let unlocked = |fs: &FilesystemRecord| self.manager.state_of(fs) == KeyState::Unlocked;
        Ok(filesystems.into_iter().filter(unlocked).map(|fs| fs.name).collect())
    }

    fn is_held(&self, name: &FilesystemName) -> bool {
        lock(&self.places).places.get(name).is_some_and(|place| place.held.initialized())
    }

    /// Makes room for one more that is open: closes those that are idle where there are too many, and lets them go where
    /// too many are held.
    fn make_room(&self) {
        let (files, held) = (files(), self.locks.count() as u64);
        let places = &mut lock(&self.places).places;
        let open = places.values().filter(|place| place.opened.initialized()).count() as u64;
        if open < IDLE_OPEN.min(files / FILES_EACH) {
            return;
        }
        let mut excess = held.saturating_sub(files / FILES_EACH_HELD);
        places.retain(|name, place| {
            if !place.is_idle() {
                return true;
            }
            place.opened = Arc::default();
            if excess == 0 {
                return true;
            }
            excess -= 1;
            self.note(name, Unheld::TooMany);
            false
        });
    }
}

/// How many files this process may have open.
fn files() -> u64 {
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX)
}

impl fmt::Debug for OpenFilesystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFilesystems").finish_non_exhaustive()
    }
}

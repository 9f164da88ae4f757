//! Backing directories: made, removed, opened once and shared.

use std::collections::{HashMap, HashSet};
use std::error::Error;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use admin_api::Problem;
use async_trait::async_trait;
use filesystem::{Backend, ErrorKind, Filesystem};
use key_manager::{FilesystemName, KeyManager, Removal, Volumes};
use kms_core::{FilesystemKey, FilesystemSite, KeyEnvelope, KeyId};
use rustix::process::{Resource, getrlimit};
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;

use crate::problem;

/// Makes and removes backing directories for the key manager, with `cipher` for their data.
#[derive(Debug)]
pub struct BackingVolumes {
    cipher: Backend,
    /// Keys whose directory refused to become theirs, so that nothing of theirs lies there.
    never_made: Mutex<HashSet<KeyId>>,
}

impl BackingVolumes {
    /// One that encrypts with `cipher`; each opens what the other sealed.
    pub fn new(cipher: Backend) -> Self {
        Self { cipher, never_made: Mutex::default() }
    }

    fn never_made(&self) -> MutexGuard<'_, HashSet<KeyId>> {
        self.never_made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

type Failure = Box<dyn Error + Send + Sync>;

#[async_trait]
impl Volumes for BackingVolumes {
    async fn create(
        &self,
        site: &FilesystemSite,
        key: Arc<FilesystemKey>,
        envelope: &KeyEnvelope,
    ) -> Result<(), Failure> {
        let (backing, envelope, cipher) = (site.backing.clone(), envelope.clone(), self.cipher);
        let made =
            spawn_blocking(move || Filesystem::create(&backing, key, &envelope, cipher)).await?;
        // What failed in another way may have left something that is ours.
        let refused = |error: &filesystem::Error| {
            matches!(error.kind(), ErrorKind::Invalid | ErrorKind::InUse)
        };
        if made.as_ref().is_err_and(refused) {
            self.never_made().insert(site.key_id);
        }
        made.map(drop).map_err(Failure::from)
    }

    async fn remove(&self, site: &FilesystemSite) -> Result<Removal, Failure> {
        // What refused to become ours is somebody else's: it stays as it is.
        if self.never_made().remove(&site.key_id) {
            return Ok(Removal::NothingThere);
        }
        let (backing, key_id) = (site.backing.clone(), site.key_id);
        spawn_blocking(move || match Filesystem::remove(&backing, key_id) {
            Ok(true) => Ok(Removal::Removed),
            Ok(false) => Ok(Removal::NothingThere),
            Err(error) if error.kind() == ErrorKind::Invalid => {
                Ok(Removal::NotOurs { why: error.to_string() })
            }
            Err(error) => Err(error.into()),
        })
        .await?
    }
}

/// How many filesystems stay open that nobody uses, where the limit on open files does not allow for fewer.
const IDLE_OPEN: u64 = 256;

/// Of the open files that a process may have, an idle filesystem gets no more than its part of so many. It has six, and what is in
/// use, the store and the connections need theirs.
const FILES_EACH: u64 = 16;

/// The filesystems that are open here. One is opened when it is first used and stays open until it is locked, so that a
/// second node meets its lock; only beyond [`IDLE_OPEN`] the idle ones are closed.
pub(crate) struct OpenFilesystems {
    manager: Arc<KeyManager>,
    cipher: Backend,
    open: Mutex<HashMap<FilesystemName, Place>>,
}

/// Where an open filesystem is, or will be: two that want it at once wait for one opening, and nobody
/// waits for another filesystem's slow disk.
type Place = Arc<OnceCell<Arc<Filesystem>>>;

impl OpenFilesystems {
    pub(crate) fn new(manager: Arc<KeyManager>, cipher: Backend) -> Self {
        Self { manager, cipher, open: Mutex::default() }
    }

    /// The filesystem with this name, which must be unlocked. `title` says what fails if that does.
    pub(crate) async fn get(
        &self,
        name: &FilesystemName,
        title: &str,
    ) -> Result<Arc<Filesystem>, Problem> {
        let of_keys = |e| problem::of_keys(title, &e);
        // The place comes before the key: a lock that comes after the key then closes this place, opened or not.
        let place = self.place(name);
        let key = self.manager.key(name).await.map_err(of_keys)?;
        let backing = self.manager.filesystem(name).await.map_err(of_keys)?.backing;
        let cipher = self.cipher;
        let open = || async move {
            let opened = spawn_blocking(move || Filesystem::open(&backing, key, cipher));
            match opened.await {
                Ok(opened) => opened.map(Arc::new).map_err(|e| problem::of_filesystem(title, &e)),
                Err(error) => Err(problem::internal(title, io::Error::from(error))),
            }
        };
        place.get_or_try_init(open).await.cloned()
    }

    fn place(&self, name: &FilesystemName) -> Place {
        let mut open = self.lock();
        let files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        if open.len() as u64 >= IDLE_OPEN.min(files / FILES_EACH) {
            open.retain(|_, place| {
                let used = |filesystem| Arc::strong_count(filesystem) > 1;
                Arc::strong_count(place) > 1 || place.get().is_some_and(used)
            });
        }
        Arc::clone(open.entry(name.clone()).or_default())
    }

    /// Closes it as soon as its last user lets it go.
    pub(crate) fn close(&self, name: &FilesystemName) {
        self.lock().remove(name);
    }

    /// Closes all of them.
    pub(crate) fn close_all(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<FilesystemName, Place>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for OpenFilesystems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenFilesystems").finish_non_exhaustive()
    }
}

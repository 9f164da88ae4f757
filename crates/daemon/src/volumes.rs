//! Backing directories: made, given the wrapped key of a new key, removed.

use std::collections::HashSet;
use std::error::Error;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use filesystem::{
    Backend, BackingLocks, ErrorKind, Filesystem, begin_rekey, end_rekey, prepare_rekey,
};
use key_manager::{Removal, Volumes};
use kms_core::{FilesystemKey, FilesystemSite, KeyEnvelope, KeyId};
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::disks::Disks;
use crate::mutex::lock;

/// How often a removal looks again whether a filesystem is still in use, and how long apart. A listing that was under way
/// lets go soon.
const LOOKS: u32 = 20;
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Makes and removes backing directories for the key manager, with `cipher` for their data.
#[derive(Debug)]
pub struct BackingVolumes {
    cipher: Backend,
    locks: BackingLocks,
    disks: Disks,
    /// Keys whose directory refused to become theirs, so that nothing of theirs lies there.
    never_made: Mutex<HashSet<KeyId>>,
}

impl BackingVolumes {
    /// One that encrypts with `cipher` (each opens what the other sealed), of the node that has these locks.
    pub fn new(cipher: Backend, locks: BackingLocks) -> Self {
        Self { cipher, locks, disks: Disks::default(), never_made: Mutex::default() }
    }

    /// Fails where a disk does not answer. What has begun on one takes the time that it takes.
    async fn answers(&self, backing: &Path) -> Result<(), Failure> {
        let at = backing.to_owned();
        let asked = self.disks.ask(backing, move || at.symlink_metadata().map(drop)).await;
        asked.map(drop).map_err(|why| format!("{}: {why}", backing.display()).into())
    }

    /// Does something small there, and gives a disk up that does not answer.
    async fn ask(
        &self,
        site: &FilesystemSite,
        act: impl FnOnce() -> Result<(), filesystem::Error> + Send + 'static,
    ) -> Result<(), Failure> {
        match self.disks.ask(&site.backing, act).await {
            Ok(done) => Ok(done?),
            Err(why) => Err(format!("{}: {why}", site.backing.display()).into()),
        }
    }

    fn never_made(&self) -> MutexGuard<'_, HashSet<KeyId>> {
        lock(&self.never_made)
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
        self.answers(&site.backing).await?;
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
        self.answers(&site.backing).await?;
        let mut looks = 1;
        loop {
            let (site, locks) = (site.clone(), self.locks.clone());
            let remove =
                move || Filesystem::remove(&locks, &site.backing, site.key_id, site.previous);
            let removed = spawn_blocking(remove).await?;
            match removed {
                Ok(true) => return Ok(Removal::Removed),
                Ok(false) => return Ok(Removal::NothingThere),
                Err(error) if error.kind() == ErrorKind::Invalid => {
                    return Ok(Removal::NotOurs { why: error.to_string() });
                }
                Err(error) if error.kind() == ErrorKind::InUse && looks < LOOKS => {
                    looks += 1;
                    sleep(LOOK_EVERY).await;
                }
                Err(error) if error.kind() == ErrorKind::InUse => {
                    return Ok(Removal::InUse(error.into()));
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn prepare_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Failure> {
        let (locks, backing) = (self.locks.clone(), site.backing.clone());
        let (from, to) = (from.clone(), to.clone());
        self.ask(site, move || prepare_rekey(&locks, &backing, &from, &to)).await
    }

    async fn begin_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Failure> {
        let (locks, backing) = (self.locks.clone(), site.backing.clone());
        let (from, to) = (from.clone(), to.clone());
        self.ask(site, move || begin_rekey(&locks, &backing, &from, &to)).await
    }

    async fn end_rekey(&self, site: &FilesystemSite) -> Result<(), Failure> {
        let (locks, backing, key_id) = (self.locks.clone(), site.backing.clone(), site.key_id);
        self.ask(site, move || end_rekey(&locks, &backing, key_id)).await
    }
}

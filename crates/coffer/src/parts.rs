//! The parts of a node in its state directory.
//!
//! ```text
//! <state-dir>/store/          the key store
//! <state-dir>/store.new/      a store that `recover` is rebuilding
//! <state-dir>/store.set-aside-<time>/  one that `recover` replaced; nothing removes it
//! <state-dir>/generation      how far the store was known to be
//! <state-dir>/local-*.key     keys of local wrapping, while there is any
//! <state-dir>/filesystems/    backing directories that were given no other place
//! <state-dir>/jobs/           what jobs could not do, in full
//! <state-dir>/audit.jsonl     the audit log
//! <state-dir>/coffer.sock     the admin socket
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admin_api::{Exit, Problem};
use daemon::{BackingVolumes, Patience};
use filesystem::{Backend, BackingHeaders, BackingLocks};
use key_manager::KeyManager;
use key_store::SledStore;
use kms_core::{AuditSink, SystemClock};
use local_kms::LocalProvider;
use vault_transit::VaultProvider;

/// Where the key store lies.
pub(crate) fn store_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("store")
}

/// What manages the keys of the node with this state directory, over its store or a copy of it.
pub(crate) fn key_manager(
    state_dir: &Path,
    store: Arc<SledStore>,
    locks: &BackingLocks,
    audit: Arc<dyn AuditSink>,
) -> KeyManager {
    KeyManager::new(key_manager::Parts {
        store,
        providers: vec![
            Arc::new(VaultProvider::default()),
            Arc::new(LocalProvider::new(state_dir)),
        ],
        holders: vec![Arc::new(Patience::new(BackingHeaders::new(locks.clone())))],
        volumes: Arc::new(BackingVolumes::new(Backend::default(), locks.clone())),
        clock: Arc::new(SystemClock),
        audit,
    })
}

/// Makes the state directory, or sees to it that nobody else may put files into it.
pub(crate) fn make_state_dir(state_dir: &Path) -> Result<(), Problem> {
    let unusable = |why: String| {
        let title = format!("the state directory {} can't be used", state_dir.display());
        Problem::new(Exit::State, "state-dir", title, why)
            .cure("give a directory of your own with --state-dir DIR")
    };
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(state_dir)
        .map_err(|e| unusable(e.to_string()))?;
    let found = fs::metadata(state_dir).map_err(|e| unusable(e.to_string()))?;
    if found.mode() & 0o022 != 0 {
        return Err(unusable("others may write to it".to_owned()));
    }
    Ok(())
}

/// How far the store is known to have been, in a file beside it: an older store that is put back whole is
/// noticed by it. The note may be behind (it is written when a node starts and ends), never ahead.
pub(crate) struct Generation(PathBuf);

impl Generation {
    pub(crate) fn of(state_dir: &Path) -> Self {
        Self(state_dir.join("generation"))
    }

    /// # Errors
    /// The store is older than it was known to be.
    pub(crate) fn check(&self, store: &SledStore) -> Result<(), Problem> {
        let known = match fs::read_to_string(&self.0) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            read => read.ok().and_then(|text| text.trim().parse::<u64>().ok()),
        };
        let now = store.generation().0;
        let why = match known {
            Some(known) if known <= now => return Ok(()),
            Some(known) => format!(
                "it is at generation {now} and was at {known} before: an older store was put back"
            ),
            None => format!("{} can't be read, so its age can't be told", self.0.display()),
        };
        Err(Problem::new(Exit::NotAuthentic, "store-older", "the key store is not trusted", why)
            .cure(
                "put the newest backup back, or rebuild the store from the backing directories: \
                 coffer recover --from DIR…",
            ))
    }

    /// Notes where the store is now, in one step.
    pub(crate) fn note(&self, store: &SledStore) -> io::Result<()> {
        let new = self.0.with_extension("new");
        fs::write(&new, format!("{}\n", store.generation().0))?;
        fs::File::open(&new)?.sync_all()?;
        fs::rename(&new, &self.0)
    }

    /// Forgets it: another store comes.
    pub(crate) fn forget(&self) -> io::Result<()> {
        match fs::remove_file(&self.0) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use kms_core::{Commit, KeyStore as _};

    use super::*;

    #[tokio::test]
    async fn an_older_store_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let store = SledStore::open(&store_dir(dir.path())).unwrap();
        let generation = Generation::of(dir.path());
        generation.check(&store).unwrap();
        generation.note(&store).unwrap();
        store.commit(Commit::new().put("a", vec![1])).await.unwrap();
        generation.check(&store).unwrap();
        generation.note(&store).unwrap();
        generation.check(&store).unwrap();
        drop(store);
        fs::remove_dir_all(store_dir(dir.path())).unwrap();
        let older = SledStore::open(&store_dir(dir.path())).unwrap();
        let refused = generation.check(&older).unwrap_err();
        assert_eq!(refused.exit, Exit::NotAuthentic);
        assert!(refused.cure.unwrap().contains("coffer recover"));
        generation.forget().unwrap();
        generation.check(&older).unwrap();
    }

    #[test]
    fn a_state_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        make_state_dir(&dir.path().join("new/state")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(make_state_dir(dir.path()).unwrap_err().exit, Exit::State);
    }
}

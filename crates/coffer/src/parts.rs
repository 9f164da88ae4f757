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
//! <state-dir>/audit.jsonl     the audit log; audit/ has its older lines, audit.head how far it is
//! <state-dir>/coffer.sock     the admin socket
//! ```

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, Problem};
use daemon::{AuditLog, BackingVolumes, Patience};
use filesystem::{Backend, BackingHeaders, BackingLocks};
use key_manager::KeyManager;
use kms_core::{AuditSink, KeyStore, SystemClock};
use local_kms::LocalProvider;
use vault_transit::{Limits, VaultProvider};

/// Where the key store lies.
pub(crate) fn store_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("store")
}

/// The audit log, which is missed if it is gone from where a node has been.
pub(crate) fn audit_log(state_dir: &Path, used: bool) -> io::Result<AuditLog> {
    let path = state_dir.join("audit.jsonl");
    if used { AuditLog::open_again(&path) } else { AuditLog::open(&path) }
}

/// What manages the keys of the node with this state directory, over its store or a copy of it.
pub(crate) fn key_manager(
    state_dir: &Path,
    store: Arc<dyn KeyStore>,
    locks: &BackingLocks,
    audit: Arc<dyn AuditSink>,
    kms_deadline: Duration,
) -> KeyManager {
    KeyManager::new(key_manager::Parts {
        store,
        providers: vec![
            Arc::new(VaultProvider::with_limits(Limits::within(kms_deadline))),
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_state_directory_that_others_may_write_to_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        make_state_dir(&dir.path().join("new/state")).unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o770)).unwrap();
        assert_eq!(make_state_dir(dir.path()).unwrap_err().exit, Exit::State);
    }
}

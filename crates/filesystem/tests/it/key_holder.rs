//! The copies in backing directories keep the promises of a holder, also while their filesystems are open.

use std::fs;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use filesystem::{Backend, BackingHeaders, BackingLocks, Filesystem, begin_rekey};
use kms_core::{FilesystemKey, FilesystemSite, KeyEnvelope, KeyHolder};
use tempfile::TempDir;
use testkit::key_holder::{
    KeyHolderFixture, TwoKeysFixture, key_holder_contract, two_keys_contract,
};

/// Filesystems side by side, open until the test ends.
struct Directories {
    dir: TempDir,
    locks: BackingLocks,
    open: Mutex<Vec<Filesystem>>,
}

#[async_trait]
impl KeyHolderFixture for Directories {
    async fn make(&self, envelope: &KeyEnvelope) -> FilesystemSite {
        let mut open = self.open.lock().unwrap();
        let backing = self.dir.path().join(open.len().to_string());
        let key_id = envelope.wrapped.key_id;
        let key = Arc::new(FilesystemKey::from_bytes(key_id, &[7; 32]).unwrap());
        let cipher = Backend::default();
        drop(Filesystem::create(&backing, Arc::clone(&key), envelope, cipher).unwrap());
        open.push(Filesystem::open_sharing(&self.locks, &backing, key, None, cipher).unwrap());
        FilesystemSite { name: envelope.filesystem.clone(), key_id, previous: None, backing }
    }

    fn holder(&self) -> Arc<dyn KeyHolder> {
        Arc::new(BackingHeaders::new(self.locks.clone()))
    }

    async fn spoil(&self, _: &FilesystemSite, location: &str) {
        fs::write(location, b"{ not a wrapped key").unwrap();
    }
}

#[async_trait]
impl TwoKeysFixture for Directories {
    async fn make_between(&self, from: &KeyEnvelope, to: &KeyEnvelope) -> FilesystemSite {
        let site = self.make(from).await;
        begin_rekey(&self.locks, &site.backing, from, to).unwrap();
        let (key_id, previous) = (to.wrapped.key_id, Some(from.wrapped.key_id));
        FilesystemSite { key_id, previous, ..site }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_in_backing_directories_keep_the_promises() {
    let dir = tempfile::tempdir().unwrap();
    let (locks, open) = (BackingLocks::default(), Mutex::default());
    let directories = Directories { dir, locks, open };
    key_holder_contract(&directories).await;
    two_keys_contract(&directories).await;
}

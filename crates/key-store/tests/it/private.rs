//! Values may hold a token: only their owner may read them.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;

use key_store::SledStore;
use kms_core::{Commit, KeyStore};

use crate::history::{assert_whole, write_up_to};

fn assert_private(path: &Path) {
    let meta = fs::metadata(path).unwrap();
    let mode = meta.permissions().mode() & 0o777;
    assert_eq!(mode, if meta.is_dir() { 0o700 } else { 0o600 }, "{}", path.display());
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            assert_private(&entry.unwrap().path());
        }
    }
}

#[tokio::test]
async fn files_are_their_owners_alone() {
    let root = tempfile::tempdir().unwrap();
    let dir = root.path().join("state/store");
    let store = SledStore::open(&dir).unwrap();
    write_up_to(&store, 40).await;
    assert_private(&root.path().join("state"));
    drop(store);
    let store = SledStore::open(&dir).unwrap();
    write_up_to(&store, 60).await;
    assert_private(&dir);
}

#[tokio::test]
async fn a_directory_that_was_open_to_others_is_closed() {
    let root = tempfile::tempdir().unwrap();
    fs::set_permissions(root.path(), Permissions::from_mode(0o755)).unwrap();
    let store = SledStore::open(root.path()).unwrap();
    assert_private(root.path());
    drop(store);
}

#[tokio::test]
async fn debug_shows_no_value() {
    let root = tempfile::tempdir().unwrap();
    let store = SledStore::open(root.path()).unwrap();
    store.commit(Commit::new().put("kms", b"hvs.secret".to_vec())).await.unwrap();
    let record = store.get("kms").await.unwrap();
    let shown = format!("{store:?} {record:?}");
    assert!(shown.contains("10 bytes") && !shown.contains("hvs"), "{shown}");
}

/// Taken again and again while commits are made; each is whole, and of a moment.
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_is_a_store_of_its_own() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(SledStore::open(&root.path().join("store")).unwrap());
    let writer = tokio::spawn({
        let store = Arc::clone(&store);
        async move { write_up_to(&store, 60).await }
    });
    for n in 0..10 {
        let (from, to) = (Arc::clone(&store), root.path().join(format!("copy-{n}")));
        let before = store.generation();
        let copied = to.clone();
        tokio::task::spawn_blocking(move || from.copy_to(&copied)).await.unwrap().unwrap();
        assert_private(&to);
        let copy = SledStore::open(&to).unwrap();
        assert!((before..=store.generation()).contains(&copy.generation()));
        assert_whole(&copy).await;
        assert!(store.copy_to(&to).is_err(), "over nothing that is there");
    }
    writer.await.unwrap();
    assert_whole(&store).await;
}

//! Both stores keep the trait's promises.

use std::sync::atomic::{AtomicU32, Ordering};

use key_store::{MemoryStore, SledStore};
use testkit::store::{key_store_contract, key_store_keeps_everything};

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    key_store_contract(async || MemoryStore::new()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled() {
    let root = tempfile::tempdir().unwrap();
    let next = AtomicU32::new(0);
    key_store_contract(async || {
        let dir = root.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
        SledStore::open(&dir).unwrap()
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_opened_again() {
    let root = tempfile::tempdir().unwrap();
    key_store_keeps_everything(async || SledStore::open(root.path()).unwrap()).await;
}

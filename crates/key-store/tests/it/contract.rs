//! Both stores keep the trait's promises.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use key_store::{MemoryStore, SledStore};
use testkit::store::{key_store_contract, key_store_keeps_everything};

#[tokio::test(flavor = "multi_thread")]
async fn memory() {
    key_store_contract(async || Arc::new(MemoryStore::new())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled() {
    let root = tempfile::tempdir().unwrap();
    let next = AtomicU32::new(0);
    key_store_contract(async || {
        let dir = root.path().join(next.fetch_add(1, Ordering::Relaxed).to_string());
        Arc::new(SledStore::open(&dir).unwrap())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn sled_opened_again() {
    let root = tempfile::tempdir().unwrap();
    key_store_keeps_everything(async || Arc::new(SledStore::open(root.path()).unwrap())).await;
}

//! A history of commits that is the same each time, so that what a store must hold follows from its generation.

use std::collections::BTreeMap;

use key_store::SledStore;
use kms_core::{Commit, KeyStore, Record, Version};

/// Commit number `n`: records of many sizes come, change and go.
pub(crate) fn commit(n: u64) -> Commit {
    let key = |n: u64| format!("record/{}", n % 11);
    let value = |n: u64| {
        let length = (n * 7919 % 9000) as usize * if n.is_multiple_of(5) { 7 } else { 1 };
        format!("{n}:").into_bytes().into_iter().cycle().take(length).collect::<Vec<u8>>()
    };
    Commit::new().put(key(n), value(n)).put("last", value(n)).delete(key(n + 4))
}

/// What the first `n` commits leave.
pub(crate) fn records_after(n: u64) -> Vec<Record> {
    let mut records = BTreeMap::new();
    for n in 1..=n {
        let commit = commit(n);
        for key in &commit.deletes {
            records.remove(key);
        }
        for (key, value) in commit.puts {
            records.insert(key.clone(), Record { key, version: Version(n), value });
        }
    }
    records.into_values().collect()
}

/// Does the commits up to `n`.
pub(crate) async fn write_up_to(store: &SledStore, n: u64) {
    for n in store.generation().0 + 1..=n {
        assert_eq!(store.commit(commit(n)).await.unwrap(), Version(n));
    }
}

/// Compares the whole store with what its generation says.
pub(crate) async fn assert_whole(store: &SledStore) {
    let page = store.list("", None, 1000).await.unwrap();
    assert!(page.records == records_after(store.generation().0), "{store:?} holds other records");
}

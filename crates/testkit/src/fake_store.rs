//! A store in memory that can stop: from the n-th commit on every commit fails, as if the process had died there.
//! What a process finds after that is what the other handles on the same records show.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use kms_core::{Check, Commit, KeyStore, Page, Record, StoreError, Version};

use crate::late::{Gate, Late};

/// One handle on records that several may share.
#[derive(Debug)]
pub struct FakeStore {
    state: Arc<Mutex<State>>,
    commits_left: AtomicU64,
}

#[derive(Debug, Default)]
struct State {
    records: BTreeMap<String, Record>,
    version: Version,
    /// Whether there is no room for a commit.
    full: bool,
    /// The record whose next reader waits.
    late: Option<(String, Gate)>,
    /// What `late` becomes when a record under this prefix is written.
    late_after: Option<(&'static str, String, Gate)>,
}

impl Default for FakeStore {
    fn default() -> Self {
        Self { state: Arc::default(), commits_left: AtomicU64::new(u64::MAX) }
    }
}

impl FakeStore {
    /// Another handle on the same records, which lets `commits` commits through.
    #[must_use]
    pub fn stopping_after(&self, commits: u64) -> Self {
        Self { state: Arc::clone(&self.state), commits_left: AtomicU64::new(commits) }
    }

    /// How many commits this handle still lets through.
    pub fn commits_left(&self) -> u64 {
        self.commits_left.load(Ordering::SeqCst)
    }

    /// Whether its disk is full: no commit is taken, and nothing changed, until it has room again.
    pub fn set_full(&self, full: bool) {
        self.state().full = full;
    }

    /// Holds the next reading of this record back.
    pub fn hold(&self, key: &str) -> Late {
        let (gate, late) = Late::new();
        self.state().late = Some((key.to_owned(), gate));
        late
    }

    /// Holds the first reading of this record back that comes after a record under `prefix` was written: what is read before
    /// that, and how often, makes no difference.
    pub fn hold_after(&self, prefix: &'static str, key: &str) -> Late {
        let (gate, late) = Late::new();
        self.state().late_after = Some((prefix, key.to_owned(), gate));
        late
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

#[async_trait]
impl KeyStore for FakeStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        let (record, late) = {
            let mut state = self.state();
            let late = state.late.take_if(|(of, _)| of == key);
            (state.records.get(key).cloned(), late)
        };
        if let Some((_, gate)) = late {
            gate.pass().await;
        }
        Ok(record)
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        let state = self.state();
        let mut found = state.records.values().filter(|record| {
            record.key.starts_with(prefix) && after.is_none_or(|after| record.key.as_str() > after)
        });
        let records = found.by_ref().take(limit).cloned().collect();
        Ok(Page { records, more: found.next().is_some() })
    }

    async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let mut state = self.state();
        well_formed(&commit)?;
        for check in &commit.checks {
            let (key, holds) = match check {
                Check::Absent(key) => (key, !state.records.contains_key(key)),
                Check::Unchanged(key, version) => {
                    (key, state.records.get(key).is_some_and(|record| record.version == *version))
                }
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        if commit.puts.is_empty() && commit.deletes.is_empty() {
            return Ok(state.version);
        }
        if state.full {
            return Err(StoreError::Io { doing: "written", source: "its disk is full".into() });
        }
        let take = |left: u64| left.checked_sub(1);
        if self.commits_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take).is_err() {
            return Err(StoreError::Io { doing: "written", source: "it stopped here".into() });
        }
        state.version.0 += 1;
        let version = state.version;
        for key in commit.deletes {
            state.records.remove(&key);
        }
        for (key, value) in commit.puts {
            let after = state.late_after.take_if(|(prefix, ..)| key.starts_with(*prefix));
            state.late = after.map(|(_, of, gate)| (of, gate)).or(state.late.take());
            state.records.insert(key.clone(), Record { key, version, value });
        }
        Ok(version)
    }
}

fn well_formed(commit: &Commit) -> Result<(), StoreError> {
    let mut seen = HashSet::new();
    let puts = commit.puts.iter().map(|(key, value)| (key, value.len()));
    for (key, len) in puts.chain(commit.deletes.iter().map(|key| (key, 0))) {
        let fits = !key.is_empty() && key.len() <= Record::MAX_KEY && len <= Record::MAX_VALUE;
        if !fits || key.contains('\0') || !seen.insert(key) {
            return Err(StoreError::Invalid { key: key.clone(), why: "it is malformed".into() });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_the_promises_of_a_store() {
        crate::store::key_store_contract(async || FakeStore::default()).await;
    }

    #[tokio::test]
    async fn it_is_full_for_a_while() {
        let store = FakeStore::default();
        for (full, at) in [(true, "a"), (false, "b")] {
            store.set_full(full);
            let put = store.commit(Commit::new().put(at, vec![1])).await;
            assert_eq!((put.is_err(), store.get(at).await.unwrap().is_none()), (full, full));
        }
    }

    #[tokio::test]
    async fn it_stops() {
        let store = FakeStore::default();
        let dying = store.stopping_after(1);
        dying.commit(Commit::new().put("a", vec![1])).await.unwrap();
        assert!(dying.commit(Commit::new().put("b", vec![1])).await.is_err());
        assert!(store.get("a").await.unwrap().is_some());
        assert!(store.get("b").await.unwrap().is_none());
    }
}

//! What both stores answer from: all records, in memory, as of the last commit.
//!
//! A store holds some ten thousand records of a few hundred bytes, so they fit; readers then never
//! wait for a disk, a page is one moment, and a change that is still being written is never seen.

use std::collections::{BTreeMap, HashSet};
use std::ops::Bound;

use kms_core::{Check, Commit, Page, Record, StoreError, Version};

/// Records by key, and the number of the last commit.
#[derive(Default)]
pub(crate) struct Table {
    records: BTreeMap<String, Stored>,
    version: Version,
}

/// A record without its key.
pub(crate) struct Stored {
    pub(crate) version: Version,
    pub(crate) value: Box<[u8]>,
}

impl Table {
    #[cfg(feature = "sled")]
    pub(crate) fn new(records: BTreeMap<String, Stored>, version: Version) -> Self {
        Self { records, version }
    }

    /// The number of the last commit.
    pub(crate) fn version(&self) -> Version {
        self.version
    }

    #[cfg(feature = "sled")]
    pub(crate) fn stored(&self, key: &str) -> Option<&Stored> {
        self.records.get(key)
    }

    pub(crate) fn get(&self, key: &str) -> Option<Record> {
        self.records.get(key).map(|stored| record(key, stored))
    }

    pub(crate) fn list(&self, prefix: &str, after: Option<&str>, limit: usize) -> Page {
        let from = match after {
            Some(after) if after >= prefix => Bound::Excluded(after),
            _ => Bound::Included(prefix),
        };
        let mut found = self
            .records
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(key, _)| key.starts_with(prefix));
        let records = found.by_ref().take(limit).map(|(key, stored)| record(key, stored)).collect();
        Page { records, more: found.next().is_some() }
    }

    /// Whether `commit` may happen now, and the version that it then gets. A commit that changes
    /// nothing is only its checks, and stays at the last version.
    pub(crate) fn admit(&self, commit: &Commit) -> Result<Version, StoreError> {
        well_formed(commit)?;
        for check in &commit.checks {
            let (key, holds) = match check {
                Check::Absent(key) => (key, !self.records.contains_key(key)),
                Check::Unchanged(key, version) => {
                    (key, self.records.get(key).is_some_and(|stored| stored.version == *version))
                }
            };
            if !holds {
                return Err(StoreError::Conflict { key: key.clone() });
            }
        }
        Ok(if is_empty(commit) { self.version } else { Version(self.version.0 + 1) })
    }

    /// Does what was admitted.
    pub(crate) fn apply(&mut self, commit: Commit, version: Version) {
        for key in commit.deletes {
            self.records.remove(&key);
        }
        for (key, value) in commit.puts {
            self.records.insert(key, Stored { version, value: value.into() });
        }
        self.version = version;
    }
}

/// Whether nothing is written by it.
pub(crate) fn is_empty(commit: &Commit) -> bool {
    commit.puts.is_empty() && commit.deletes.is_empty()
}

/// Refuses keys and values that can't be stored, and a key that is named twice: puts and deletes
/// happen together, so which of two comes last would mean nothing (etcd refuses it, too).
fn well_formed(commit: &Commit) -> Result<(), StoreError> {
    let invalid = |key: &str, why: String| {
        Err(StoreError::Invalid { key: key.chars().take(64).collect(), why })
    };
    let mut seen = HashSet::new();
    for key in commit.puts.iter().map(|(key, _)| key).chain(&commit.deletes) {
        if key.is_empty() || key.contains('\0') {
            return invalid(key, "a key is not empty and has no NUL".into());
        }
        if key.len() > Record::MAX_KEY {
            return invalid(key, format!("the key is longer than {} bytes", Record::MAX_KEY));
        }
        if !seen.insert(key) {
            return invalid(key, "one commit may put or delete a record once".into());
        }
    }
    match commit.puts.iter().find(|(_, value)| value.len() > Record::MAX_VALUE) {
        Some((key, _)) => {
            invalid(key, format!("the value is longer than {} bytes", Record::MAX_VALUE))
        }
        None => Ok(()),
    }
}

fn record(key: &str, stored: &Stored) -> Record {
    Record { key: key.to_owned(), version: stored.version, value: stored.value.to_vec() }
}

//! The key store: where wrapped keys, filesystems, jobs and the KMS configuration are recorded.

use std::error::Error;
use std::fmt;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

/// Atomic commits with preconditions over versioned records.
///
/// Keys are short UTF-8 paths (`fs/home`), at most [`Record::MAX_KEY`] bytes; values are opaque
/// bytes, at most [`Record::MAX_VALUE`]. Any number of calls may run at once; commits are
/// serialised. A commit that returned `Ok` survives a power cut, and one that returned a definite
/// error left nothing behind. The trait fits etcd: [`Version`] is its `mod_revision`.
#[async_trait]
pub trait KeyStore: fmt::Debug + Send + Sync {
    /// The record under this key as of the last commit.
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError>;

    /// Up to `limit` records whose keys start with `prefix`, in byte order, those after `after` only.
    /// One page is one moment; two pages need not be.
    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError>;

    /// Does all of it or nothing: every check holds at that moment, then puts and deletes happen
    /// together. Answers the version that the put records now have.
    ///
    /// # Errors
    /// [`StoreError::Conflict`] when a check failed. [`StoreError::Unknown`] when it can't be told whether
    /// the commit happened: read back.
    async fn commit(&self, commit: Commit) -> Result<Version, StoreError>;
}

/// The commit that wrote a record, counted upward over the whole store. 0 is before every commit.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, Default,
)]
#[serde(transparent)]
pub struct Version(pub u64);

/// One record.
#[derive(Clone, PartialEq, Eq)]
pub struct Record {
    /// Its key.
    pub key: String,
    /// The commit that wrote it.
    pub version: Version,
    /// Its bytes. May hold a credential, so `Debug` shows only the length.
    pub value: Vec<u8>,
}

impl Record {
    /// Longest key, in bytes.
    pub const MAX_KEY: usize = 512;
    /// Longest value, in bytes.
    pub const MAX_VALUE: usize = 64 * 1024;
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Record({} at {}, {} bytes)", self.key, self.version.0, self.value.len())
    }
}

/// Part of a listing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// In byte order of their keys.
    pub records: Vec<Record>,
    /// Whether more may follow: ask again after the last key.
    pub more: bool,
}

/// Something that must hold for a commit to happen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Check {
    /// No record has this key.
    Absent(String),
    /// The record with this key was last written by this commit.
    Unchanged(String, Version),
}

/// An atomic change, built up and then given to [`KeyStore::commit`].
#[derive(Clone, Default)]
pub struct Commit {
    /// All must hold.
    pub checks: Vec<Check>,
    /// Written, whether they exist or not.
    pub puts: Vec<(String, Vec<u8>)>,
    /// Removed; one that does not exist is no error.
    pub deletes: Vec<String>,
}

impl Commit {
    /// Nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Requires that no record has this key.
    #[must_use]
    pub fn absent(mut self, key: impl Into<String>) -> Self {
        self.checks.push(Check::Absent(key.into()));
        self
    }

    /// Requires that this record is as it was read.
    #[must_use]
    pub fn unchanged(mut self, record: &Record) -> Self {
        self.checks.push(Check::Unchanged(record.key.clone(), record.version));
        self
    }

    /// Writes a record.
    #[must_use]
    pub fn put(mut self, key: impl Into<String>, value: Vec<u8>) -> Self {
        self.puts.push((key.into(), value));
        self
    }

    /// Removes a record.
    #[must_use]
    pub fn delete(mut self, key: impl Into<String>) -> Self {
        self.deletes.push(key.into());
        self
    }
}

impl fmt::Debug for Commit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let puts: Vec<_> = self.puts.iter().map(|(key, value)| (key, value.len())).collect();
        f.debug_struct("Commit")
            .field("checks", &self.checks)
            .field("puts", &puts)
            .field("deletes", &self.deletes)
            .finish()
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else changed this record in between, or it does not exist as expected. Nothing was done.
    #[error("the record {key} was changed by somebody else in between")]
    Conflict {
        /// The record whose check failed.
        key: String,
    },
    /// A key or a value is too long or malformed. Nothing was done.
    #[error("the record {key} can't be stored: {why}")]
    Invalid {
        /// The record.
        key: String,
        /// What is wrong with it.
        why: String,
    },
    /// What is stored is damaged, older than what was acknowledged, or not ours. Nothing was changed.
    #[error("the key store in {place} is damaged: {why}")]
    Damaged {
        /// Where the store lies.
        place: String,
        /// What was found.
        why: String,
    },
    /// It was written by a newer Coffer.
    #[error(
        "the key store in {place} is in format {format}, newer than this program knows; use a newer one"
    )]
    Newer {
        /// Where the store lies.
        place: String,
        /// Its format.
        format: u64,
    },
    /// Another process has it open.
    #[error("the key store in {place} is in use by another process")]
    InUse {
        /// Where the store lies.
        place: String,
    },
    /// It could not be read or written (disk full, no permission). Nothing was done.
    #[error("the key store can't be {doing}: {source}")]
    Io {
        /// "read" or "written".
        doing: &'static str,
        /// The system's error.
        source: Box<dyn Error + Send + Sync>,
    },
    /// Whether the commit happened can't be told: read back.
    #[error("whether the key store took a change can't be told: {source}")]
    Unknown {
        /// What happened.
        source: Box<dyn Error + Send + Sync>,
    },
}

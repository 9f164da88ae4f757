//! A store that stops: from the n-th commit on, every commit fails, before or after it was done.
//! What a process finds after a crash at that point is what lies in the store below.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use kms_core::{Commit, KeyStore, Page, Record, StoreError, Version};

/// Passes everything on until its commits are used up.
#[derive(Debug)]
pub struct FailingStore {
    inner: Arc<dyn KeyStore>,
    commits_left: AtomicU64,
}

impl FailingStore {
    /// Lets `commits` commits through; `u64::MAX` for all.
    pub fn new(inner: Arc<dyn KeyStore>, commits: u64) -> Self {
        Self { inner, commits_left: AtomicU64::new(commits) }
    }

    /// How many commits it would still let through.
    pub fn commits_left(&self) -> u64 {
        self.commits_left.load(Ordering::SeqCst)
    }
}

#[async_trait]
impl KeyStore for FailingStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        self.inner.get(key).await
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        self.inner.list(prefix, after, limit).await
    }

    async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let take = |left: u64| left.checked_sub(1);
        match self.commits_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => self.inner.commit(commit).await,
            Err(_) => Err(StoreError::Io { doing: "written", source: "it stopped here".into() }),
        }
    }
}

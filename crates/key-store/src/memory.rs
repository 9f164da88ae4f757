//! A store for tests and for trying things out.

use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use kms_core::{Commit, KeyStore, Page, Record, StoreError, Version};

use crate::table::Table;

/// Keeps records in memory until it is dropped: what the trait promises, but for outliving a power cut.
#[derive(Default)]
pub struct MemoryStore {
    table: Mutex<Table>,
}

impl MemoryStore {
    /// An empty store.
    pub fn new() -> Self {
        Self::default()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[async_trait]
impl KeyStore for MemoryStore {
    async fn get(&self, key: &str) -> Result<Option<Record>, StoreError> {
        Ok(self.table().get(key))
    }

    async fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Page, StoreError> {
        Ok(self.table().list(prefix, after, limit))
    }

    async fn commit(&self, commit: Commit) -> Result<Version, StoreError> {
        let mut table = self.table();
        let version = table.admit(&commit)?;
        table.apply(commit, version);
        Ok(version)
    }
}

impl fmt::Debug for MemoryStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "MemoryStore(at {})", self.table().version().0)
    }
}

//! An audit sink that tests look into.

use std::sync::{Mutex, MutexGuard, PoisonError};

use kms_core::{AuditEvent, AuditSink};

/// Keeps every event in memory, in the order in which it came. Share it by `Arc`.
#[derive(Debug, Default)]
pub struct CollectingAudit(Mutex<Vec<AuditEvent>>);

impl CollectingAudit {
    /// Every event so far.
    pub fn events(&self) -> Vec<AuditEvent> {
        self.lock().clone()
    }

    /// Every event since the last call, and forgets them.
    pub fn take(&self) -> Vec<AuditEvent> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AuditEvent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditSink for CollectingAudit {
    fn record(&self, event: &AuditEvent) {
        self.lock().push(event.clone());
    }
}

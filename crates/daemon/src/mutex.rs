//! Locks that no panic elsewhere closes.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// A lock whose holder can't have left it half changed, so that a panic elsewhere is no reason to stop.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

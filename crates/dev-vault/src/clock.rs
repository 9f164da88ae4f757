//! The server's clock: the system's, set forward by whoever tests lives and expiry.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[derive(Debug, Default)]
pub(crate) struct Clock {
    ahead: Mutex<Duration>,
}

impl Clock {
    pub(crate) fn advance(&self, by: Duration) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead = ahead.saturating_add(by);
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        system.saturating_add(ahead).as_secs()
    }
}

/// As Vault prints times.
pub(crate) fn rfc3339(seconds: u64) -> String {
    // humantime prints years up to 9999; a later time is shown as the last one.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

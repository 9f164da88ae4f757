//! The server's clock: the system's, set forward and back by whoever tests lives and expiry.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

#[derive(Debug, Default)]
pub(crate) struct Clock {
    /// Milliseconds before the system's clock.
    ahead: Mutex<i64>,
}

impl Clock {
    pub(crate) fn advance(&self, by: Duration) {
        self.shift(i64::try_from(by.as_millis()).unwrap_or(i64::MAX));
    }

    /// Backwards if this is negative.
    pub(crate) fn jump(&self, seconds: i64) {
        self.shift(seconds.saturating_mul(1000));
    }

    fn shift(&self, milliseconds: i64) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        *ahead = ahead.saturating_add(milliseconds);
    }

    /// Seconds since 1970.
    pub(crate) fn now(&self) -> u64 {
        let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let system = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let system = i64::try_from(system.as_millis()).unwrap_or(i64::MAX);
        u64::try_from(system.saturating_add(ahead) / 1000).unwrap_or(0)
    }
}

/// As Vault prints times.
pub(crate) fn rfc3339(seconds: u64) -> String {
    // humantime prints years up to 9999; a later time is shown as the last one.
    const LAST: u64 = 253_402_300_799;
    let time = UNIX_EPOCH + Duration::from_secs(seconds.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()
}

/// As HTTP dates answers.
pub(crate) fn http_date(seconds: u64) -> String {
    // httpdate prints years before 9999 only.
    const LAST: u64 = 253_370_764_799;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.min(LAST)))
}

//! Pauses that a Vault, or a proxy before it, has asked for (Retry-After): it is not asked again before, whoever wants to.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use kms_core::{KmsError, KmsErrorKind};
use reqwest::header::{HeaderMap, RETRY_AFTER};

/// No Vault keeps filesystems shut for longer than this by one answer, whatever it says.
const LONGEST: Duration = Duration::from_secs(60);

/// The pauses of now by origin, shared by all that one provider opens: several configurations can lead to one Vault.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pauses(Arc<Mutex<HashMap<String, Pause>>>);

#[derive(Debug)]
struct Pause {
    until: Instant,
    /// The answer that asked for it, again for each who would have asked meanwhile.
    kind: KmsErrorKind,
    what: String,
    cure: Option<String>,
}

impl Pauses {
    /// Takes down how long this origin wants to be left alone with the answer `error`.
    pub(crate) fn begin(&self, origin: &str, wanted: Duration, error: &KmsError) {
        let pause = Pause {
            until: Instant::now() + wanted,
            kind: error.kind(),
            what: error.to_string(),
            cure: error.how_to_mend().map(str::to_owned),
        };
        let mut pauses = self.lock();
        // Of answers to requests that were under way at once, the longest pause is kept.
        if pauses.get(origin).is_none_or(|known| known.until < pause.until) {
            pauses.insert(origin.to_owned(), pause);
        }
    }

    /// How long this origin is still to be left alone, and the answer that said so.
    pub(crate) fn left(&self, origin: &str) -> Option<(Duration, KmsError)> {
        let mut pauses = self.lock();
        let Pause { until, kind, what, cure } = pauses.get(origin)?;
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            pauses.remove(origin);
            return None;
        }
        let error = KmsError::new(*kind, what);
        Some((left, cure.iter().fold(error, |error, cure| error.cure(cure))))
    }

    /// Entries are replaced whole, so a panic leaves the map whole.
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Pause>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The pause that an answer asks for, [`LONGEST`] at most; `None` if it asks for none. Vault's quotas send whole seconds; a proxy may
/// send a date (RFC 9110, 10.2.3), which is meant by the clock by which the answer was given `at` that moment.
pub(crate) fn wanted(headers: &HeaderMap, at: SystemTime) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let pause = match text.parse() {
        Ok(seconds) => Duration::from_secs(seconds),
        Err(_) => httpdate::parse_http_date(text).ok()?.duration_since(at).ok()?,
    };
    (!pause.is_zero()).then(|| pause.min(LONGEST))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn no_answer_asks_for_hours() {
        // 00:00:00 on 29 November 2026.
        let at = UNIX_EPOCH + Duration::from_secs(1_795_910_400);
        let wanted = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, HeaderValue::from_static(text));
            wanted(&headers, at).map(|pause| pause.as_secs())
        };
        assert_eq!(["1", "20", "60"].map(wanted), [Some(1), Some(20), Some(60)]);
        assert_eq!(["61", "86400", "18446744073709551615"].map(wanted), [Some(60); 3]);
        assert_eq!(["0", "-1", "", "18446744073709551616", "soon"].map(wanted), [None; 5]);
        let dates = [
            "Sun, 29 Nov 2026 00:00:20 GMT",
            "Sunday, 29-Nov-26 00:00:20 GMT",
            "Sun Nov 29 00:00:20 2026",
        ];
        assert_eq!(dates.map(wanted), [Some(20); 3]);
        assert_eq!(wanted("Fri, 31 Dec 9999 23:59:59 GMT"), Some(60));
        let past = [
            "Sun, 29 Nov 2026 00:00:00 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
            "Sun, 29 Nov 2026 00:00:20 CET",
        ];
        assert_eq!(past.map(wanted), [None; 3]);
    }

    #[test]
    fn the_longest_pause_of_an_origin_stands_until_it_is_over() {
        let pauses = Pauses::default();
        let error = KmsError::new(KmsErrorKind::Unreachable, "429").cure("wait");
        pauses.begin("a", Duration::from_secs(50), &error);
        pauses.begin("a", Duration::from_secs(10), &error);
        let (left, told) = pauses.left("a").unwrap();
        assert!(left > Duration::from_secs(40), "{left:?}");
        assert_eq!((told.to_string(), told.how_to_mend()), ("429".to_owned(), Some("wait")));
        assert!(pauses.left("b").is_none());
        pauses.begin("b", Duration::ZERO, &error);
        assert!(pauses.left("b").is_none());
    }
}

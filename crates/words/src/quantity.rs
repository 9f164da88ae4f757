//! Quantities and moments.

use std::time::{Duration, SystemTime};

/// Bytes with a binary unit: `512 B`, `1.5 MiB`.
pub fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// `1 file`, `2 files`.
pub fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// A length of time in its largest unit that is at least two, rounded down as the node's warnings are: `31 days`, `90 minutes`, `1 second`.
pub fn span(seconds: u64) -> String {
    let (unit, one) = match seconds {
        172_800.. => (86_400, "day"),
        7_200.. => (3_600, "hour"),
        120.. => (60, "minute"),
        _ => (1, "second"),
    };
    count(seconds / unit, one)
}

/// A moment in RFC 3339, to the second, in UTC.
pub fn moment(unix_millis: u64) -> String {
    let time = SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(unix_millis));
    // humantime formats years up to 9999 and fails beyond.
    let latest = SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799);
    let time = time.map_or(latest, |time| time.min(latest));
    humantime::format_rfc3339_seconds(time).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_read_well() {
        assert_eq!(span(768 * 3600), "32 days");
        assert_eq!(span(119), "119 seconds");
        assert_eq!(span(3599), "59 minutes");
        assert_eq!(span(90_000), "25 hours");
        assert_eq!(span(431_999), "4 days");
        assert_eq!(bytes(1536), "1.50 KiB");
        assert_eq!(moment(0), "1970-01-01T00:00:00Z");
        assert_eq!(moment(u64::MAX), "9999-12-31T23:59:59Z");
    }
}

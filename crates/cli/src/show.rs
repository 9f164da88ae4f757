//! How quantities, moments and tables read.

use std::time::{Duration, SystemTime};

/// Rows under a head line, in columns that are two spaces apart. The last column is not padded.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let head = head.map(str::to_owned);
    let mut widths = head.each_ref().map(|cell| cell.chars().count());
    for row in rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(&head).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Name and value, a line each, the values under each other.
pub(crate) fn fields(fields: &[(&str, String)]) -> String {
    let width = fields.iter().map(|(name, _)| name.len()).max().unwrap_or_default() + 1;
    let line = |(name, value): &(&str, String)| {
        format!("{:width$}  {}\n", format!("{name}:"), under(value, width + 2))
    };
    fields.iter().map(line).collect()
}

/// A text whose further lines stand so far to the right, so that none looks like a line of ours.
pub(crate) fn under(text: &str, columns: usize) -> String {
    text.trim_end().replace('\n', &format!("\n{:columns$}", ""))
}

/// Bytes with a binary unit: `512 B`, `1.5 MiB`.
pub(crate) fn bytes(n: u64) -> String {
    indicatif::BinaryBytes(n).to_string()
}

/// `1 file`, `2 files`.
pub(crate) fn count(n: u64, one: &str) -> String {
    if n == 1 { format!("1 {one}") } else { format!("{n} {one}s") }
}

/// A length of time in its largest unit that is at least two, rounded down as the node's warnings are: `31 days`, `90 minutes`, `1 second`.
pub(crate) fn span(seconds: u64) -> String {
    let (unit, one) = match seconds {
        172_800.. => (86_400, "day"),
        7_200.. => (3_600, "hour"),
        120.. => (60, "minute"),
        _ => (1, "second"),
    };
    count(seconds / unit, one)
}

/// A moment in RFC 3339, to the second, in UTC.
pub(crate) fn moment(unix_millis: u64) -> String {
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
    fn a_table_stands_in_columns_and_no_line_ends_in_spaces() {
        let rows = [["home".into(), "unlocked".into()], ["a".into(), String::new()]];
        assert_eq!(table(["NAME", "STATE"], &rows), "NAME  STATE\nhome  unlocked\na\n");
    }

    #[test]
    fn what_has_lines_looks_like_one_field() {
        let text = fields(&[("do", "this\nand that\n".into()), ("state", "locked".into())]);
        assert_eq!(text, "do:     this\n        and that\nstate:  locked\n");
    }

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

//! The lines of the audit log, each with the hash of the one before.
//!
//! A line is a JSON object with `seq` (from 1), `prev` (the hash of the line before, 64 zeros for the first), the event's own
//! fields, and `hash`: SHA-256 in hexadecimal over the line as it would stand without `hash`.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read as _};

use kms_core::AuditEvent;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// A place in the chain: behind this line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    /// The line's number; 0 before the first.
    pub(crate) seq: u64,
    /// The line's hash.
    pub(crate) hash: String,
}

impl Place {
    /// Before the first line.
    pub(super) fn start() -> Self {
        Self { seq: 0, hash: "0".repeat(64) }
    }
}

/// A line without its hash, which is what the hash is made of.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Line {
    pub(crate) seq: u64,
    pub(crate) prev: String,
    #[serde(flatten)]
    pub(crate) event: AuditEvent,
}

/// A line as it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct HashedLine {
    #[serde(flatten)]
    pub(crate) line: Line,
    pub(crate) hash: String,
}

impl HashedLine {
    fn place(&self) -> Place {
        Place { seq: self.line.seq, hash: self.hash.clone() }
    }

    /// Whether it comes after `before`, and is all that stands in `text`: a field that was put in is not in the hash.
    fn follows(&self, before: &Place, text: &[u8]) -> bool {
        self.line.seq == before.seq.saturating_add(1)
            && self.line.prev == before.hash
            && hash(&self.line) == self.hash
            && self.text() == text
    }

    fn text(&self) -> Vec<u8> {
        // A plain struct with string keys: serialising it to memory can't fail.
        let mut text = serde_json::to_vec(self).unwrap_or_default();
        text.push(b'\n');
        text
    }
}

/// The text of the line that comes after `place`, and the place behind it.
pub(super) fn link(place: &Place, event: &AuditEvent) -> (Vec<u8>, Place) {
    let line =
        Line { seq: place.seq.saturating_add(1), prev: place.hash.clone(), event: event.clone() };
    let hashed = HashedLine { hash: hash(&line), line };
    (hashed.text(), hashed.place())
}

fn hash(line: &Line) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(line).unwrap_or_default()))
}

/// What a file of lines was found to be.
#[derive(Debug)]
pub(super) struct Scan {
    /// The number of its first line, if it has one.
    pub(super) first: Option<u64>,
    /// Behind its last line.
    pub(super) end: Place,
    /// The line at which the chain breaks first.
    pub(super) broken_at: Option<u64>,
    /// Bytes of its whole lines; what comes after is half a line.
    pub(super) length: u64,
}

/// Follows the chain through a file. It begins behind `from`; without that, the first line is believed where it begins.
pub(super) fn scan(
    file: &File,
    from: Option<Place>,
    mut each: impl FnMut(&HashedLine),
) -> io::Result<Scan> {
    let mut known = from.is_some();
    let end = from.unwrap_or_else(Place::start);
    let mut scan = Scan { first: None, end, broken_at: None, length: 0 };
    let (mut reader, mut text) = (BufReader::new(file), Vec::new());
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text)?;
        if text.last() != Some(&b'\n') {
            return Ok(scan);
        }
        scan.length += read as u64;
        let expected = scan.end.seq.saturating_add(1);
        match serde_json::from_slice::<HashedLine>(&text) {
            Ok(hashed) => {
                if !known {
                    let before = hashed.line.seq.saturating_sub(1);
                    scan.end = Place { seq: before, hash: hashed.line.prev.clone() };
                }
                if !hashed.follows(&scan.end, &text) {
                    scan.broken_at.get_or_insert(expected);
                }
                scan.first.get_or_insert(hashed.line.seq);
                scan.end = hashed.place();
                each(&hashed);
            }
            Err(_) => {
                scan.broken_at.get_or_insert(expected);
                scan.end.seq = expected;
            }
        }
        known = true;
    }
}

/// The lines of this action, whether the chain holds or not. Only they are parsed: a start looks through all files for them.
pub(super) fn recorded(mut file: &File, action: &str) -> io::Result<Vec<Line>> {
    let mut text = Vec::new();
    file.read_to_end(&mut text)?;
    // Quotes within a string are escaped, so nothing else has this.
    let mark = format!("\"action\":\"{action}\"");
    let text = String::from_utf8_lossy(&text);
    let lines = text.lines().filter(|line| line.contains(&mark));
    Ok(lines.filter_map(|line| serde_json::from_str(line).ok()).collect())
}

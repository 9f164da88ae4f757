//! The audit log: every act on a key and every administrative request, a line of JSON each, chained by hashes.
//!
//! A line is an object with `seq` (from 1), `prev` (the hash of the line before, 64 zeros for the first), the
//! event's own fields, and `hash`: SHA-256 in hexadecimal over the line as it would stand without `hash`. A
//! line that is changed, taken out or put in breaks the chain at that place; [`AuditLog::open`] says where. What it does
//! not show is a tail that was cut off: compare the last hash with one that was noted elsewhere.
//!
//! A line is written before the act is answered, so it survives the node's death, and it is synced
//! within [`SYNC_WITHIN`], so a power cut can lose the last moment: ten thousand unlocks at start can't
//! wait for as many syncs.

use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kms_core::{AuditEvent, AuditSink};
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::mutex::lock;

/// The longest time that a written line is not synced.
pub const SYNC_WITHIN: Duration = Duration::from_millis(200);

const NO_HASH: &str = "0000000000000000000000000000000000000000000000000000000000000000";

/// The audit log of a node: an append-only file, readable by its owner alone.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    state: Mutex<State>,
    /// Wakes the thread that syncs; taken at the end.
    wake: Option<SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct State {
    file: Arc<File>,
    seq: u64,
    last_hash: String,
    trouble: Option<String>,
}

/// A line without its hash, which is what the hash is made of.
#[derive(Serialize, Deserialize)]
struct Line {
    seq: u64,
    prev: String,
    #[serde(flatten)]
    event: AuditEvent,
}

#[derive(Serialize, Deserialize)]
struct HashedLine {
    #[serde(flatten)]
    line: Line,
    hash: String,
}

impl AuditLog {
    /// Opens the log, or makes it, and checks its chain. A line that a crash left half written is taken
    /// out; a broken chain is kept, reported by [`AuditLog::trouble`] and in the log, and continued.
    ///
    /// # Errors
    /// The file can't be read or written, or is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        // Neither through a link, nor into a pipe, which would hold the start.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let mut options = OpenOptions::new();
        options.read(true).append(true).create(true).mode(0o600);
        let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let found = check(&file)?;
        if let Some(torn_at) = found.torn_at {
            tracing::warn!(log = %path.display(), "the last line of the audit log was half written and is taken out");
            file.set_len(torn_at)?;
        }
        if let Some(trouble) = &found.trouble {
            tracing::error!(log = %path.display(), "{trouble}");
        }
        let file = Arc::new(file);
        let (wake, woken) = mpsc::sync_channel(1);
        let syncer = thread::Builder::new().name("audit-sync".into()).spawn({
            let file = Arc::clone(&file);
            move || sync_when_woken(&file, &woken)
        })?;
        let Found { seq, last_hash, trouble, .. } = found;
        Ok(Self {
            path: path.to_owned(),
            state: Mutex::new(State { file, seq, last_hash, trouble }),
            wake: Some(wake),
            syncer: Some(syncer),
        })
    }

    /// What is wrong with the log, if something is: a broken chain, or lines that could not be written.
    pub fn trouble(&self) -> Option<String> {
        self.lock().trouble.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl AuditSink for AuditLog {
    fn record(&self, event: &AuditEvent) {
        let mut state = self.lock();
        let line = Line { seq: state.seq + 1, prev: state.last_hash.clone(), event: event.clone() };
        let hash = hash(&line);
        let hashed = HashedLine { line, hash };
        // A plain struct with string keys: serialising it to memory can't fail.
        let mut text = serde_json::to_vec(&hashed).unwrap_or_default();
        text.push(b'\n');
        match (&*state.file).write_all(&text) {
            Ok(()) => {
                state.seq += 1;
                state.last_hash = hashed.hash;
            }
            Err(error) => {
                let trouble =
                    format!("the audit log {} can't be written: {error}", self.path.display());
                tracing::error!(action = %event.action, subject = %event.subject, "{trouble}");
                state.trouble = Some(trouble);
            }
        }
        drop(state);
        // Full: the syncer has been woken and has not looked yet. Gone: only while the log is dropped.
        match self.wake.as_ref().map(|wake| wake.try_send(())) {
            None | Some(Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) => {}
        }
    }
}

impl Drop for AuditLog {
    fn drop(&mut self) {
        drop(self.wake.take());
        if let Some(syncer) = self.syncer.take() {
            let _ = syncer.join();
        }
    }
}

fn sync_when_woken(file: &File, woken: &mpsc::Receiver<()>) {
    let mut going = true;
    while going && woken.recv().is_ok() {
        // Lines that come meanwhile share the sync.
        going = woken.recv_timeout(SYNC_WITHIN / 2) != Err(RecvTimeoutError::Disconnected);
        if let Err(error) = file.sync_data() {
            tracing::error!(%error, "the audit log can't be synced");
        }
    }
}

fn hash(line: &Line) -> String {
    hex::encode(Sha256::digest(serde_json::to_vec(line).unwrap_or_default()))
}

/// What a log was found to be.
struct Found {
    seq: u64,
    last_hash: String,
    trouble: Option<String>,
    /// Where a last line without its end begins.
    torn_at: Option<u64>,
}

fn check(file: &File) -> io::Result<Found> {
    let mut found = Found { seq: 0, last_hash: NO_HASH.to_owned(), trouble: None, torn_at: None };
    let (mut reader, mut text, mut offset) = (BufReader::new(file), Vec::new(), 0_u64);
    loop {
        text.clear();
        let read = reader.read_until(b'\n', &mut text)?;
        if read == 0 {
            return Ok(found);
        }
        if text.last() != Some(&b'\n') {
            found.torn_at = Some(offset);
            return Ok(found);
        }
        offset += read as u64;
        let expected = found.seq + 1;
        match serde_json::from_slice::<HashedLine>(&text) {
            Ok(HashedLine { line, hash: claimed }) => {
                let sound =
                    line.seq == expected && line.prev == found.last_hash && hash(&line) == claimed;
                if !sound {
                    broken(&mut found, expected);
                }
                found.seq = line.seq;
                found.last_hash = claimed;
            }
            Err(_) => {
                broken(&mut found, expected);
                found.seq = expected;
            }
        }
    }
}

fn broken(found: &mut Found, line: u64) {
    found.trouble.get_or_insert_with(|| {
        format!("the chain of the audit log breaks at line {line}: lines there were changed, taken out or put in")
    });
}

#[cfg(test)]
mod tests {
    use std::fs;

    use kms_core::{Outcome, UnixMillis};

    use super::*;

    fn event(n: u64) -> AuditEvent {
        AuditEvent {
            at: UnixMillis(n),
            action: "fs.create".into(),
            subject: format!("fs{n}"),
            outcome: Outcome::Done,
            detail: "\"quoted\"\n".into(),
        }
    }

    fn written(path: &Path, events: u64) {
        let log = AuditLog::open(path).unwrap();
        (0..events).for_each(|n| log.record(&event(n)));
        assert_eq!(log.trouble(), None);
    }

    fn trouble(path: &Path) -> Option<String> {
        AuditLog::open(path).unwrap().trouble()
    }

    #[test]
    fn the_chain_goes_on_over_restarts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        written(&path, 2);
        written(&path, 1);
        let text = fs::read_to_string(&path).unwrap();
        let lines: Vec<HashedLine> =
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.iter().map(|l| l.line.seq).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(lines[0].line.prev, NO_HASH);
        assert_eq!(lines[2].line.prev, lines[1].hash);
    }

    #[test]
    fn only_a_file_of_its_own_is_opened() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        let elsewhere = dir.path().join("elsewhere");
        fs::write(&elsewhere, "no line of a log").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &path).unwrap();
        AuditLog::open(&path).unwrap_err();
        assert_eq!(fs::read_to_string(&elsewhere).unwrap(), "no line of a log");

        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(AuditLog::open(&path).unwrap_err().to_string().contains("regular"));
    }

    #[test]
    fn every_change_breaks_it_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        written(&path, 4);
        let good = fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = good.lines().collect();
        let changed = good.replacen("fs1", "fs9", 1);
        let without = [lines[0], lines[2], lines[3], ""].join("\n");
        let swapped = [lines[0], lines[2], lines[1], lines[3], ""].join("\n");
        let noise = [lines[0], "{}", lines[1], lines[2], lines[3], ""].join("\n");
        for bad in [changed, without, swapped, noise] {
            fs::write(&path, bad).unwrap();
            assert!(trouble(&path).is_some_and(|t| t.contains("line 2:")), "{:?}", trouble(&path));
        }
        fs::write(&path, &good).unwrap();
        assert_eq!(trouble(&path), None);
    }

    #[test]
    fn a_line_that_a_crash_cut_is_taken_out() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        written(&path, 2);
        let good = fs::read(&path).unwrap();
        fs::write(&path, &good[..good.len() - 7]).unwrap();
        written(&path, 1);
        assert_eq!(trouble(&path), None);
        assert_eq!(fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn only_its_owner_reads_it() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.jsonl");
        written(&path, 1);
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }
}

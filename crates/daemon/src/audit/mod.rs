//! The audit log: every act on a key and every administrative request, a line of JSON each, chained by hashes.
//!
//! A line that is changed, taken out or put in breaks the chain at that place; a tail that is cut off is noticed by the head, which
//! lies in a file of its own. What was found when the log was opened is its [`AuditLog::trouble`], and becomes a line of the log
//! ([`TROUBLE`]) before the head goes on, so that it is told as long as that line is kept; [`AuditLog::verify`] follows the chain
//! through all of it.
//!
//! | module | its part |
//! |---|---|
//! | `chain` | lines, hashes, and the way along them |
//! | `head` | how far the log is known to be |
//! | `files` | where the lines lie: files of [`FILE_BYTES`], the newest [`FILES_KEPT`] of them |
//! | `reading` | lines that somebody asks for, and the whole chain |
//!
//! A line is written before the act is answered, so it survives the node's death, and it is synced within [`SYNC_WITHIN`], so a
//! power cut can lose the last moment: ten thousand unlocks at start can't wait for as many syncs.

mod chain;
mod files;
mod head;
mod reading;

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::slice;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender, TrySendError};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kms_core::{AuditEvent, AuditSink, Clock as _, Outcome, SystemClock, UnixMillis};

pub(crate) use self::chain::HashedLine;
use self::chain::{Place, Scan, link, recorded, scan};
use self::files::Files;
use self::head::Head;
pub(crate) use self::reading::{Query, Verified};
use crate::mutex::lock;

/// The longest time that a written line is not synced.
pub const SYNC_WITHIN: Duration = Duration::from_millis(200);

/// When a sync that failed is tried again.
const SYNC_AGAIN: Duration = Duration::from_secs(1);

/// The length at which another file is begun.
const FILE_BYTES: u64 = 4 << 20;

/// How many events that come together are written at once.
const EVENTS_AT_ONCE: usize = 250;

/// How many files are kept beside the one that is written. A larger number would take each log for one whose files were deleted
/// that has dropped lines by the smaller one.
const FILES_KEPT: usize = 128;

/// What a line is called that tells what was found to be wrong with the log itself.
const TROUBLE: &str = "audit.trouble";

/// What a line is called that tells of events before it that could not be recorded.
const GAP: &str = "audit.gap";

/// The audit log of a node: append-only files, readable by their owner alone.
#[derive(Debug)]
pub struct AuditLog {
    path: PathBuf,
    files: Files,
    limits: Limits,
    state: Arc<Mutex<State>>,
    head: Arc<Head>,
    /// Wakes the thread that syncs; taken at the end.
    wake: Option<SyncSender<()>>,
    syncer: Option<JoinHandle<()>>,
}

#[derive(Debug, Clone, Copy)]
struct Limits {
    file_bytes: u64,
    kept: usize,
}

const LIMITS: Limits = Limits { file_bytes: FILE_BYTES, kept: FILES_KEPT };

/// Whether there was a log before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Begun {
    Perhaps,
    Surely,
}

#[derive(Debug)]
struct State {
    file: Arc<File>,
    /// Bytes in it.
    length: u64,
    /// The number of its first line, or of the line that will be.
    first: u64,
    end: Place,
    /// What was found to be wrong with the lines, and goes before the next one.
    owed: Option<String>,
    /// What a line that is kept says to be wrong with the lines.
    on_record: Option<String>,
    /// Events that could not be recorded since the last line, which the next one tells.
    gap: Option<Gap>,
    /// What is wrong with the files at this time.
    trouble: Option<String>,
    /// Why the last sync failed, if it did.
    unsynced: Option<String>,
}

#[derive(Debug, Clone)]
struct Gap {
    events: u64,
    from: UnixMillis,
    to: UnixMillis,
    why: String,
}

impl AuditLog {
    /// Opens the log, or makes it, and checks the chain of its newest file and its head. A line that a crash left half written
    /// is taken out; a broken chain is kept, reported by [`AuditLog::trouble`], in the node's log and in a line of its own, and
    /// continued.
    ///
    /// # Errors
    /// A file can't be read or written, or is no regular file.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::open_within(path, LIMITS, Begun::Perhaps)
    }

    /// As [`AuditLog::open`], of a node that has kept a log before: that it is gone, its head too, is [`AuditLog::trouble`].
    ///
    /// # Errors
    /// As [`AuditLog::open`].
    pub fn open_again(path: &Path) -> io::Result<Self> {
        Self::open_within(path, LIMITS, Begun::Surely)
    }

    fn open_within(path: &Path, limits: Limits, begun: Begun) -> io::Result<Self> {
        let files = Files::of(path);
        let file = files.open_current()?;
        let (head, noted) = Head::open(&path.with_extension("head"))?;
        let ended = files.ended()?;
        let newest = match ended.last() {
            Some((_, newest)) => Some(scan(&File::open(newest)?, None, |_| {})?),
            None => None,
        };
        let before = newest.as_ref().map_or_else(Place::start, |newest| newest.end.clone());
        let mut at_head = None;
        let noted_seq = noted.as_ref().ok().and_then(|noted| Some(noted.as_ref()?.seq));
        let found = scan(&file, Some(before.clone()), |line| {
            if Some(line.line.seq) == noted_seq {
                at_head = Some(line.hash.clone());
            }
        })?;
        if found.length < file.metadata()?.len() {
            tracing::warn!(log = %path.display(), "the last line of the audit log was half written and is taken out");
            file.set_len(found.length)?;
        }
        let first = ended.first().map(|(first, _)| *first).or(found.first);
        let trouble = deleted(first, ended.len(), limits)
            .or_else(|| newest.and_then(|newest| newest.broken_at).or(found.broken_at).map(broken))
            .or_else(|| compare(noted, begun, &before, &found, at_head.as_deref()));
        let (on_record, unreadable) =
            on_record(ended.iter().map(|(_, file)| file.as_path()).chain([path]));
        let known =
            trouble.as_ref().is_some_and(|trouble| on_record.iter().any(|(_, it)| it == trouble));
        let mut state = State {
            file: Arc::new(file),
            length: found.length,
            // What an ended file is called has to be more than what those before it are.
            first: found.first.unwrap_or(0).max(before.seq.saturating_add(1)),
            end: found.end,
            owed: trouble.filter(|_| !known),
            on_record: on_record.into_iter().next().map(|(line, trouble)| says(line, &trouble)),
            gap: None,
            trouble: unreadable,
            unsynced: None,
        };
        if let Some(trouble) = state.trouble() {
            tracing::error!(log = %path.display(), "{trouble}");
        }
        match state.settle() {
            Ok(()) => {
                // From here on a head that is gone is noticed.
                state.file.sync_data()?;
                head.put(&state.end)?;
            }
            // The head stays as it is: it shows the trouble again.
            Err(error) => state.note(unwritable(path, &error)),
        }
        let (state, head) = (Arc::new(Mutex::new(state)), Arc::new(head));
        let (wake, woken) = mpsc::sync_channel(1);
        let syncer = thread::Builder::new().name("audit-sync".into()).spawn({
            let (state, head) = (Arc::clone(&state), Arc::clone(&head));
            move || sync_when_woken(&state, &head, &woken)
        })?;
        Ok(Self {
            path: path.to_owned(),
            files,
            limits,
            state,
            head,
            wake: Some(wake),
            syncer: Some(syncer),
        })
    }

    /// What is wrong with the log, if something is: a broken chain, or lines that could not be written.
    pub fn trouble(&self) -> Option<String> {
        lock(&self.state).trouble()
    }

    /// As [`AuditSink::record`], for an act that is not to be done without its record.
    ///
    /// # Errors
    /// The line can't be written, and is not there.
    pub(crate) fn try_record(&self, event: &AuditEvent) -> Result<(), String> {
        self.try_record_all(slice::from_ref(event))
    }

    fn try_record_all(&self, events: &[AuditEvent]) -> Result<(), String> {
        let mut state = lock(&self.state);
        let written = match state.unsynced.clone() {
            Some(trouble) => Err(trouble),
            None => self.write(&mut state, events).map_err(|error| unwritable(&self.path, &error)),
        };
        if let Err(trouble) = written {
            for AuditEvent { at, action, subject, .. } in events {
                tracing::error!(action, subject, "{trouble}");
                state.miss(*at, &trouble);
            }
            return Err(trouble);
        }
        drop(state);
        // Full: the syncer has been woken and has not looked yet. Gone: only while the log is dropped.
        match self.wake.as_ref().map(|wake| wake.try_send(())) {
            None | Some(Ok(()) | Err(TrySendError::Full(()) | TrySendError::Disconnected(()))) => {}
        }
        Ok(())
    }

    fn write(&self, state: &mut State, events: &[AuditEvent]) -> io::Result<()> {
        self.files.check_current(&state.file)?;
        if state.length >= self.limits.file_bytes
            && let Err(error) = self.turn(state)
        {
            // The lines go on, in the old file or the new one.
            let path = self.path.display();
            state.note(format!("another file of the audit log {path} can't be begun, or old ones not removed: {error}"));
        }
        state.settle()?;
        state.append(events)
    }

    fn turn(&self, state: &mut State) -> io::Result<()> {
        state.file.sync_data()?;
        let ended = self.files.ended()?;
        if let Some(trouble) =
            deleted(ended.first().map(|(first, _)| *first), ended.len(), self.limits)
        {
            tracing::error!(log = %self.path.display(), "{trouble}");
            state.owed.get_or_insert(trouble);
        }
        let begun = self.files.turn(state.first)?;
        (state.file, state.length, state.first) = (Arc::new(begun), 0, state.end.seq + 1);
        self.files.tidy(self.limits.kept)
    }
}

impl AuditSink for AuditLog {
    fn record(&self, event: &AuditEvent) {
        // It is in the node's log and in its findings.
        let _ = self.try_record(event);
    }

    fn record_all(&self, events: &[AuditEvent]) {
        for events in events.chunks(EVENTS_AT_ONCE) {
            let _ = self.try_record_all(events);
        }
    }
}

impl State {
    /// What is wrong: with the lines first, since that can't be mended.
    fn trouble(&self) -> Option<String> {
        let now = self.owed.clone().or_else(|| self.unrecorded());
        now.or_else(|| self.broken())
    }

    /// What is wrong with what was written.
    fn broken(&self) -> Option<String> {
        let now = self.owed.as_ref().or(self.trouble.as_ref());
        now.or(self.on_record.as_ref()).cloned()
    }

    /// Why the newest can't be written, or made durable.
    fn unrecorded(&self) -> Option<String> {
        let gap = self.gap.as_ref().map(|gap| &gap.why);
        self.unsynced.as_ref().or(gap).cloned()
    }

    /// Puts on record what is owed. On an error it is owed still.
    fn settle(&mut self) -> io::Result<()> {
        if let Some(trouble) = self.owed.clone() {
            self.append(&[about_itself(TROUBLE, trouble.clone())])?;
            self.owed = None;
            self.on_record.get_or_insert(says(self.end.seq, &trouble));
        }
        if let Some(Gap { events, from, to, why }) = self.gap.clone() {
            let (UnixMillis(from), UnixMillis(to)) = (from, to);
            let detail = format!(
                "{events} events from {from} to {to} (Unix time in ms) could not be recorded: {why}"
            );
            self.append(&[about_itself(GAP, detail)])?;
            self.gap = None;
        }
        Ok(())
    }

    /// Counts an event that could not be recorded.
    fn miss(&mut self, at: UnixMillis, why: &str) {
        let new = || Gap { events: 0, from: at, to: at, why: why.to_owned() };
        let gap = self.gap.get_or_insert_with(new);
        (gap.events, gap.to) = (gap.events + 1, at);
    }

    /// Writes a line for each. On an error none of them is there.
    fn append(&mut self, events: &[AuditEvent]) -> io::Result<()> {
        let (mut text, mut end) = (Vec::new(), self.end.clone());
        for event in events {
            let (line, behind) = link(&end, &event.bounded());
            text.extend(line);
            end = behind;
        }
        if let Err(error) = (&*self.file).write_all(&text) {
            // Half a line would break the chain.
            return Err(self.file.set_len(self.length).err().unwrap_or(error));
        }
        (self.length, self.end) = (self.length + text.len() as u64, end);
        Ok(())
    }

    /// Takes what became of a sync: until one succeeds no line is taken.
    fn synced(&mut self, sync: io::Result<()>) {
        self.unsynced = sync.err().map(|error| format!("the audit log can't be synced: {error}"));
        if let Some(trouble) = &self.unsynced {
            tracing::error!("{trouble}");
        }
    }

    fn note(&mut self, trouble: String) {
        self.trouble.get_or_insert(trouble);
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

/// Syncs when lines came, and again and again while it fails, until the log is dropped.
fn sync_when_woken(state: &Mutex<State>, head: &Head, woken: &mpsc::Receiver<()>) {
    let mut going = true;
    while going && wait(state, woken) {
        // Lines that come meanwhile share the sync.
        going = woken.recv_timeout(SYNC_WITHIN / 2) != Err(RecvTimeoutError::Disconnected);
        let (file, end) = {
            let state = lock(state);
            (Arc::clone(&state.file), state.end.clone())
        };
        let sync = file.sync_data().and_then(|()| head.put(&end));
        lock(state).synced(sync);
    }
}

/// Waits for lines, or for the time to try again; `false` once the log is dropped and all is synced that can be.
fn wait(state: &Mutex<State>, woken: &mpsc::Receiver<()>) -> bool {
    if lock(state).unsynced.is_none() {
        return woken.recv().is_ok();
    }
    woken.recv_timeout(SYNC_AGAIN) != Err(RecvTimeoutError::Disconnected)
}

/// What the head shows to be wrong with the newest file and what lies before it.
fn compare(
    noted: Result<Option<Place>, String>,
    begun: Begun,
    before: &Place,
    found: &Scan,
    at_head: Option<&str>,
) -> Option<String> {
    let head = match noted {
        Ok(Some(head)) => head,
        Ok(None) if found.end.seq == 0 => {
            return (begun == Begun::Surely)
                .then(|| "the audit log is gone, with all its lines and its head".to_owned());
        }
        Ok(None) => {
            return Some("the head of the audit log is gone, so it can't be told whether lines were cut off at its end".into());
        }
        Err(why) => return Some(why),
    };
    let there = if head.seq == before.seq { Some(before.hash.as_str()) } else { at_head };
    if head.seq > found.end.seq {
        Some(cut_off(&found.end, &head))
    } else if head.seq >= before.seq && there != Some(&head.hash) {
        Some(format!(
            "line {} of the audit log is not the one that was noted: the lines were made anew",
            head.seq
        ))
    } else {
        None
    }
}

/// What is wrong with a log that ends here and not there.
fn cut_off(here: &Place, there: &Place) -> String {
    let (from, to) = (here.seq + 1, there.seq);
    format!("lines {from} to {to} of the audit log are gone: they were cut off at its end")
}

/// What the files have on record about the log itself, the oldest first, and what can't be read of them.
fn on_record<'a>(files: impl Iterator<Item = &'a Path>) -> (Vec<(u64, String)>, Option<String>) {
    let (mut all, mut unreadable) = (Vec::new(), None);
    for path in files {
        match File::open(path).and_then(|file| recorded(&file, TROUBLE)) {
            Ok(lines) => all.extend(lines.into_iter().map(|line| (line.seq, line.event.detail))),
            Err(error) => {
                unreadable =
                    Some(format!("{} of the audit log can't be read: {error}", path.display()));
            }
        }
    }
    (all, unreadable)
}

/// Whether files were deleted: the node itself removes the oldest only when more than are kept are there.
fn deleted(first: Option<u64>, ended: usize, limits: Limits) -> Option<String> {
    let before = first.filter(|first| *first > 1 && ended < limits.kept)? - 1;
    Some(format!(
        "lines up to {before} of the audit log are gone: files of it were deleted before their time"
    ))
}

/// An event of the log itself.
fn about_itself(action: &str, detail: String) -> AuditEvent {
    AuditEvent {
        at: SystemClock.now(),
        action: action.to_owned(),
        subject: "audit log".to_owned(),
        outcome: Outcome::Failed,
        who: None,
        key: None,
        requests: Vec::new(),
        detail,
    }
}

/// What line `line` has on record.
fn says(line: u64, trouble: &str) -> String {
    format!("{trouble} (found earlier, and recorded in line {line})")
}

fn unwritable(path: &Path, why: &io::Error) -> String {
    format!("the audit log {} can't be written: {why}", path.display())
}

fn broken(line: u64) -> String {
    format!(
        "the chain of the audit log breaks at line {line}: lines there were changed, taken out or put in"
    )
}

#[cfg(test)]
mod tests;

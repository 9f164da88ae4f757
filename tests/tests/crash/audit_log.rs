//! The audit log, killed at each of its calls where it begins another file and removes the oldest one: nothing that was acknowledged is
//! missing, and nothing is taken for an intruder's work.
//!
//! A node writes gigabytes before it removes a file. Here another process, which is this test's program again, writes to a log
//! that is as long as that, with files that are as short as they can be.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use coffer_tests::node::Place;
use daemon::AuditLog;
use kms_core::{AuditEvent, AuditSink as _, Outcome, UnixMillis};
use serde_json::Value;

use crate::child;
use crate::every_step::tell;

/// At this length another file is begun; so many are kept beside it.
const FILE_BYTES: u64 = 4 << 20;
const FILES_KEPT: usize = 128;
/// A subject that is not shortened.
const LINE: usize = 2000;

/// How many acts the child records.
const ACTS: u64 = 3;

#[test]
fn audit_log_at_the_end_of_a_file() {
    let place = Place::in_memory();
    place.start().stop();
    fill(&place.state());
    let prepared = place.copy();
    for kill_at in 1.. {
        place.restore(&prepared);
        let home = place.path("");
        let killed = child::killed_at("audit_log::the_child_that_is_killed", &home, kill_at);
        let acknowledged = fs::metadata(place.path("acknowledged")).map_or(0, |found| found.len());
        assert!(killed || acknowledged == ACTS);
        let node = place.start();
        place.ok(&["audit", "verify"]);
        let page = place.json(&["audit", "show", "--action", "of.a.test"]);
        let lines = page["lines"].as_array().unwrap();
        let number = |line: &Value| -> u64 { line["subject"].as_str().unwrap().parse().unwrap() };
        let recorded: Vec<u64> = lines.iter().map(number).collect();
        // The one that was under way may be there.
        let expected = [acknowledged, acknowledged + 1].map(|n| (0..n).collect::<Vec<_>>());
        assert!(expected.contains(&recorded), "{kill_at}: {recorded:?} of {acknowledged}");
        node.stop();
        let ended = fs::read_dir(place.state().join("audit")).unwrap().count();
        // One more lies there only until the next file is begun.
        assert!([FILES_KEPT, FILES_KEPT + 1].contains(&ended), "{kill_at}: {ended}");
        if !killed {
            assert_eq!(ended, FILES_KEPT);
            assert!(!ended_file(&place.state(), 1).exists(), "another file was begun");
            tell(&format!("audit log at the end of a file: killed at {} steps", kill_at - 1));
            assert!(kill_at > 20, "{kill_at}");
            return;
        }
    }
}

/// Puts as many ended files there as are kept, of a line each, and makes the file that is written as long as it may be.
fn fill(state: &Path) {
    let current = state.join("audit.jsonl");
    let log = AuditLog::open(&current).unwrap();
    let there = fs::read_to_string(&current).unwrap().lines().count();
    (there..FILES_KEPT).for_each(|n| log.record(&event("filler", n.to_string())));
    drop(log);
    fs::create_dir(state.join("audit")).unwrap();
    let text = fs::read_to_string(&current).unwrap();
    for (n, line) in text.split_inclusive('\n').enumerate() {
        fs::write(ended_file(state, n + 1), line).unwrap();
    }
    // Emptied, not replaced, so that it is still the owner's alone.
    fs::write(&current, "").unwrap();
    let log = AuditLog::open(&current).unwrap();
    while fs::metadata(&current).unwrap().len() < FILE_BYTES {
        log.record(&event("filler", "x".repeat(LINE)));
    }
}

/// The ended file that begins with this line.
fn ended_file(state: &Path, first: usize) -> PathBuf {
    state.join("audit").join(format!("{first:020}.jsonl"))
}

#[test]
#[ignore = "started, and killed, by the test above"]
fn the_child_that_is_killed() {
    let home = child::home();
    let log = AuditLog::open(&home.join("state/audit.jsonl")).unwrap();
    let acknowledged = File::create(home.join("acknowledged")).unwrap();
    for n in 0..ACTS {
        log.record(&event("of.a.test", n.to_string()));
        acknowledged.set_len(n + 1).unwrap();
    }
}

fn event(action: &str, subject: String) -> AuditEvent {
    AuditEvent {
        at: UnixMillis(0),
        action: action.to_owned(),
        subject,
        outcome: Outcome::Done,
        who: None,
        key: None,
        requests: Vec::new(),
        detail: String::new(),
    }
}

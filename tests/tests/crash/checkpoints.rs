//! An import that takes a checkpoint wherever it may, killed at each of its calls and gone on with from the last one.
//!
//! A node takes one every 20 seconds, so a job that is short enough to be killed at each call has none but that at its
//! end. Here another process, which is this test's program again, asks the library for more.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use filesystem::{Backend, Checkpoint, Control, Filesystem, Outcome, Problem, Progress, Report};
use kms_core::{FilesystemKey, KeyId};
use serde_json::Value;
use tempfile::TempDir;
use testkit::tree;

use crate::every_step::tell;
use crate::{child, source};

#[test]
fn an_import_goes_on_from_any_of_its_checkpoints() {
    let (mut points, mut resumed) = (0, 0);
    for kill_at in 1.. {
        let home = prepared();
        let killed = killed_at(home.path(), kill_at);
        resumed += u64::from(comes_to_its_end(home.path(), killed, kill_at));
        if !killed {
            break;
        }
        points = kill_at;
    }
    tell(&format!("checkpoints of an import: killed at {points} steps"));
    assert!(points > 60 && resumed > points / 2, "{resumed} of {points}");
}

/// What was taken up in the middle of a file reserves more seals for it, and drops what lies behind.
#[test]
fn an_import_that_was_taken_up_goes_on_too() {
    let mut cut = 1;
    for kill_at in 1.. {
        let home = cut_in_a_file(&mut cut);
        let killed = killed_at(home.path(), kill_at);
        assert!(comes_to_its_end(home.path(), killed, kill_at), "{kill_at}: it begins anew");
        if !killed {
            tell(&format!("an import that was taken up: killed at {} steps", kill_at - 1));
            assert!(kill_at > 30, "{kill_at}");
            return;
        }
    }
}

/// A filesystem, and what is to be imported. In memory, for each checkpoint syncs all of its disk.
fn prepared() -> TempDir {
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    source::make(&home.path().join("source"));
    let (backing, envelope) =
        (home.path().join("backing"), testkit::key_holder::envelope(key().id()));
    drop(Filesystem::create(&backing, key(), &envelope, Backend::default()).unwrap());
    home
}

/// The same, imported until a call after which the last checkpoint is in a file: this one, or another, for threads differ from run to run.
fn cut_in_a_file(cut: &mut u64) -> TempDir {
    loop {
        let home = prepared();
        let killed = killed_at(home.path(), *cut);
        if killed && checkpoint(home.path()).is_some_and(|it| !it["partial"].is_null()) {
            return home;
        }
        *cut = if killed { *cut + 1 } else { 1 };
    }
}

/// Imports in another process until that call, or to its end; whether it was killed.
fn killed_at(home: &Path, kill_at: u64) -> bool {
    // It begins with this.
    let _ = fs::remove_file(home.join("go"));
    child::killed_at("checkpoints::the_child_that_is_killed", home, kill_at)
}

/// The last one that was kept.
fn checkpoint(home: &Path) -> Option<Value> {
    let text = fs::read(home.join("checkpoint")).ok()?;
    Some(serde_json::from_slice(&text).unwrap())
}

/// The next import brings all of it; whether it went on with what was there.
fn comes_to_its_end(home: &Path, killed: bool, kill_at: u64) -> bool {
    assert!(killed || checkpoint(home).unwrap()["finished"] == true, "it failed without a kill");
    let report = import(home);
    assert_eq!((report.outcome, &report.problems[..]), (Outcome::Done, &[][..]), "{kill_at}");
    assert_whole(home, kill_at);
    report.resumed
}

fn assert_whole(home: &Path, kill_at: u64) {
    let (filesystem, target) = (open(home), home.join("target"));
    for report in [
        filesystem.verify(false, &ToFile::new(home)),
        filesystem.export(&target, None, &ToFile::new(home)),
    ] {
        // A target of a link that was cut off may lie about.
        assert_eq!(report.unwrap().outcome, Outcome::Done, "{kill_at}");
    }
    let differences = tree::differences(home.join("source"), target).unwrap();
    assert_eq!(differences, Vec::<String>::new(), "{kill_at}");
    let resume = home.join("backing/coffer.tmp/resume");
    assert_eq!(fs::read_dir(resume).unwrap().count(), 0, "{kill_at}");
}

#[test]
#[ignore = "started, and killed, by the test above"]
fn the_child_that_is_killed() {
    import(&child::home());
}

/// Imports from the last checkpoint on.
fn import(home: &Path) -> Report {
    let mut filesystem = open(home);
    filesystem.set_checkpoint_interval(Duration::ZERO);
    let control = ToFile::new(home);
    let resume = fs::read(&control.0).ok().map(|text| serde_json::from_slice(&text).unwrap());
    filesystem.import(&home.join("source"), resume, &control).unwrap()
}

fn open(home: &Path) -> Filesystem {
    Filesystem::open(&home.join("backing"), key(), Backend::default()).unwrap()
}

fn key() -> Arc<FilesystemKey> {
    let id: KeyId = "00000000-0000-4000-8000-000000000001".parse().unwrap();
    Arc::new(FilesystemKey::from_bytes(id, &[7; 32]).unwrap())
}

/// Keeps checkpoints as a node does.
struct ToFile(std::path::PathBuf);

impl ToFile {
    fn new(home: &Path) -> Self {
        Self(home.join("checkpoint"))
    }
}

impl Control for ToFile {
    fn stop_requested(&self) -> bool {
        false
    }
    fn progress(&self, _: &Progress) {}
    fn checkpoint(&self, checkpoint: &Checkpoint) {
        let next = self.0.with_extension("next");
        fs::write(&next, serde_json::to_vec(checkpoint).unwrap()).unwrap();
        fs::rename(next, &self.0).unwrap();
    }
    fn problem(&self, _: &Problem) {}
}

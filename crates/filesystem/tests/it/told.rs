//! What a job tells of problems, over a crash.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use filesystem::{Checkpoint, Control, Outcome, Problem, Progress};

use crate::support::Home;

/// Keeps in their order the problems and the checkpoints, and stops at the `stop_at`th question.
#[derive(Default)]
struct Told {
    stop_at: u64,
    asked: AtomicU64,
    problems: Mutex<Vec<PathBuf>>,
    checkpoints: Mutex<Vec<Checkpoint>>,
}

impl Control for Told {
    fn stop_requested(&self) -> bool {
        self.asked.fetch_add(1, Ordering::Relaxed) + 1 >= self.stop_at
    }
    fn progress(&self, _: &Progress) {}
    fn checkpoint(&self, checkpoint: &Checkpoint) {
        self.checkpoints.lock().unwrap().push(checkpoint.clone());
    }
    fn problem(&self, problem: &Problem) {
        self.problems.lock().unwrap().push(problem.path.clone());
    }
}

/// Sockets, which are told and left out, and files.
fn make_source(source: &Path) -> BTreeSet<PathBuf> {
    let mut sockets = BTreeSet::new();
    for n in 0..60 {
        let path = PathBuf::from(format!("{}/{n}", n % 7));
        fs::create_dir_all(source.join(&path).parent().unwrap()).unwrap();
        UnixListener::bind(source.join(&path)).unwrap();
        fs::write(source.join(&path).with_extension("file"), "content").unwrap();
        sockets.insert(path);
    }
    sockets
}

#[test]
fn what_was_told_before_a_checkpoint_and_after_it_is_everything_once() {
    let sources = Home::in_memory();
    let source = sources.path("source");
    let sockets = make_source(&source);
    for nth in 0..4 {
        let home = Home::in_memory();
        let mut filesystem = home.create();
        filesystem.set_checkpoint_interval(Duration::ZERO);
        // It tells more after the checkpoint that is gone on with.
        let first = Told { stop_at: 100, ..Told::default() };
        let report = filesystem.import(&source, None, &first).unwrap();
        assert_eq!(report.outcome, Outcome::Stopped);
        let checkpoints = first.checkpoints.into_inner().unwrap();
        let checkpoint = checkpoints[nth.min(checkpoints.len() - 1)].clone();
        let mut told = first.problems.into_inner().unwrap();
        told.truncate(checkpoint.problems_told().unwrap() as usize);
        let second = Told { stop_at: u64::MAX, ..Told::default() };
        filesystem.import(&source, Some(checkpoint), &second).unwrap();
        told.extend(second.problems.into_inner().unwrap());
        assert_eq!(told.len(), sockets.len());
        assert_eq!(told.into_iter().collect::<BTreeSet<_>>(), sockets);
    }
}

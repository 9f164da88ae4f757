//! A filesystem in a temporary directory, and a control that watches and stops.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use filesystem::{
    Backend, Checkpoint, Control, Error, ErrorKind, Filesystem, Outcome, Problem, Progress, Report,
};
use kms_core::FilesystemKey;
use rustix::fs::{Gid, Uid};
use rustix::thread::CapabilitySet;
use tempfile::TempDir;
pub(crate) use testkit::key_holder::envelope;

pub(crate) struct Home {
    pub(crate) dir: TempDir,
    pub(crate) key: Arc<FilesystemKey>,
}

impl Home {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        Self { dir, key: Arc::new(FilesystemKey::generate().unwrap()) }
    }

    /// Where a sync costs nothing: for tests that stop a job often, and each stop syncs.
    pub(crate) fn in_memory() -> Self {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        Self { dir, ..Self::new() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn backing(&self) -> PathBuf {
        self.path("backing")
    }

    pub(crate) fn create(&self) -> Filesystem {
        let envelope = envelope(self.key.id());
        Filesystem::create(&self.backing(), Arc::clone(&self.key), &envelope, Backend::default())
            .unwrap()
    }

    /// Another test may be starting a process, which has a copy of the closed filesystem's lock until it runs its
    /// program.
    pub(crate) fn open(&self) -> Filesystem {
        let open = || Filesystem::open(&self.backing(), Arc::clone(&self.key), Backend::default());
        let is_locked = |error: &Error| error.kind() == ErrorKind::InUse;
        for _ in 0..100 {
            match open() {
                Err(error) if is_locked(&error) => thread::sleep(Duration::from_millis(10)),
                opened => return opened.unwrap(),
            }
        }
        open().unwrap()
    }

    /// The backing file of the only regular file of this plain size.
    pub(crate) fn backing_file(&self, plain_size: u64) -> PathBuf {
        let wanted = data_path::layout::backing_len(plain_size);
        let found: Vec<_> = files_below(&self.backing().join("root"))
            .into_iter()
            .filter(|path| fs::symlink_metadata(path).unwrap().len() == wanted)
            .filter(|path| path.file_name().unwrap() != "coffer.dir")
            .collect();
        assert_eq!(found.len(), 1, "one file of {plain_size} bytes in {found:?}");
        found[0].clone()
    }
}

/// Regular files below `dir`, sorted.
pub(crate) fn files_below(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut stack = vec![dir.to_owned()];
    while let Some(dir) = stack.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                stack.push(entry.path());
            } else if kind.is_file() {
                found.push(entry.path());
            } else {
                assert!(
                    kind.is_symlink()
                        || kind.is_fifo()
                        || kind.is_char_device()
                        || kind.is_block_device()
                );
            }
        }
    }
    found.sort();
    found
}

/// Keeps what a job tells, and asks it to stop at the `stop_at`th question.
#[derive(Default)]
pub(crate) struct Watch {
    pub(crate) stop_at: Option<u64>,
    pub(crate) asked: AtomicU64,
    pub(crate) checkpoint: Mutex<Option<Checkpoint>>,
    pub(crate) problems: Mutex<Vec<Problem>>,
    pub(crate) progress: Mutex<Progress>,
}

impl Control for Watch {
    fn stop_requested(&self) -> bool {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed) + 1;
        self.stop_at.is_some_and(|stop_at| asked >= stop_at)
    }

    fn progress(&self, progress: &Progress) {
        *self.progress.lock().unwrap() = *progress;
    }

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        *self.checkpoint.lock().unwrap() = Some(checkpoint.clone());
    }

    fn problem(&self, problem: &Problem) {
        self.problems.lock().unwrap().push(problem.clone());
    }
}

/// Imports all of `source`, which must go through without a problem.
pub(crate) fn import(filesystem: &Filesystem, source: &Path) -> Report {
    done(filesystem.import(source, None, &Watch::default()).unwrap())
}

/// Exports all to `target`, which must go through without a problem.
pub(crate) fn export(filesystem: &Filesystem, target: &Path) -> Report {
    done(filesystem.export(target, None, &Watch::default()).unwrap())
}

pub(crate) fn done(report: Report) -> Report {
    assert_eq!(report.problems, []);
    assert_eq!(report.outcome, Outcome::Done);
    report
}

pub(crate) fn assert_equal_trees(left: &Path, right: &Path) {
    assert_eq!(testkit::tree::differences(left, right).unwrap(), Vec::<String>::new());
}

pub(crate) fn needs_root() {
    let root = rustix::process::geteuid().is_root();
    assert!(
        root,
        "this test needs root: run it as root (or in a user namespace with its own root)"
    );
}

pub(crate) const ACCESS_ACL: &str = "system.posix_acl_access";
pub(crate) const DEFAULT_ACL: &str = "system.posix_acl_default";

pub(crate) fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    rustix::fs::setxattr(path, name, value, rustix::fs::XattrFlags::empty()).unwrap();
}

/// An ACL in the kernel's form (`linux/posix_acl_xattr.h`) that lets the owner do this, and the user 1234 and the
/// group read.
pub(crate) fn acl(owner: u16) -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    const READ: u16 = 4;
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, owner, NONE),
        (0x02, READ, 1234),
        (0x04, READ, NONE),
        (0x10, READ, NONE),
        (0x20, 0, NONE),
    ] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

/// Runs `work` in a thread without this capability; the threads that it starts don't have it either.
pub(crate) fn without(capability: CapabilitySet, work: impl FnOnce() + Send) {
    in_a_thread(|| {
        let mut sets = rustix::thread::capabilities(None).unwrap();
        sets.effective -= capability;
        sets.permitted -= capability;
        rustix::thread::set_capabilities(None, sets).unwrap();
        work();
    });
}

/// Runs `work` as a user who is not root, whose `home` it is: nobody, or whoever runs the tests.
pub(crate) fn as_ordinary_user(home: &Home, work: impl FnOnce() + Send) {
    const NOBODY: u32 = 65534;
    if !rustix::process::geteuid().is_root() {
        return work();
    }
    std::os::unix::fs::chown(home.dir.path(), Some(NOBODY), Some(NOBODY)).unwrap();
    in_a_thread(|| {
        let (user, group) = (Uid::from_raw(NOBODY), Gid::from_raw(NOBODY));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        work();
    });
}

/// Rights are a thread's own on Linux, so that other tests keep theirs.
fn in_a_thread(work: impl FnOnce() + Send) {
    let ended = thread::scope(|scope| scope.spawn(work).join());
    ended.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

//! A tree that is as deep as no path is long.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::Command;

use rustix::fs::{Mode, OFlags, mkdirat, openat};

use crate::support::{Home, Watch, done, export, import};

const LEVELS: usize = 2_000;

/// Directories in each other, with names of 200 bytes, and a file in each.
fn make_deep(root: &Path) {
    fs::create_dir(root).unwrap();
    let mut dir = OwnedFd::from(fs::File::open(root).unwrap());
    for level in 0..LEVELS {
        let name = format!("{level:0200}");
        let create = OFlags::CREATE | OFlags::WRONLY | OFlags::CLOEXEC;
        openat(&dir, "file", create, Mode::RUSR).unwrap();
        mkdirat(&dir, &name, Mode::RWXU).unwrap();
        let below = openat(&dir, &name, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
        dir = below.unwrap();
    }
}

#[test]
fn a_deep_tree_takes_little_memory() {
    let ran = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--ignored", "--nocapture", "deep::the_process_that_is_measured"])
        .output()
        .unwrap();
    assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
}

#[test]
#[ignore = "started by the test above, so that nothing else takes memory beside it"]
fn the_process_that_is_measured() {
    let home = Home::in_memory();
    let (source, target) = (home.path("source"), home.path("target"));
    make_deep(&source);
    let filesystem = home.create();
    let report = import(&filesystem, &source);
    assert_eq!(report.progress.files_done as usize, 2 * LEVELS + 1);
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(&filesystem, &target);
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    // With a path for each level it takes hundreds of MiB.
    assert!(kib < 64 << 10, "{kib} KiB");
}

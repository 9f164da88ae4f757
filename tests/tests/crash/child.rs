//! A process that is this test's program again, works at a directory, and is killed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use coffer_tests::kill::Watched;

const HOME: &str = "COFFER_TEST_HOME";

/// Runs this ignored test, which begins with [`home`], until that call or its end; whether it was killed.
pub(crate) fn killed_at(test: &str, home: &Path, kill_at: u64) -> bool {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--ignored", test]).env(HOME, home).stdout(Stdio::null());
    let child = Watched::start(command, kill_at);
    child.arm();
    // Only from here on does it do anything that counts.
    fs::write(home.join("go"), "").unwrap();
    child.wait()
}

/// The directory that the child works at, once it may.
pub(crate) fn home() -> PathBuf {
    let home = PathBuf::from(std::env::var_os(HOME).unwrap());
    while !home.join("go").exists() {
        std::thread::sleep(Duration::from_millis(1));
    }
    home
}

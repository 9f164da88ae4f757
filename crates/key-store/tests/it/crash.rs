//! kill -9 at many moments: what was acknowledged is there, and nothing is half done.

use std::env;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use key_store::SledStore;
use kms_core::{KeyStore, StoreError};

use crate::history::{assert_whole, commit, write_up_to};

const DIR: &str = "KEY_STORE_CRASH_DIR";

/// The process that is killed: this test binary, running this only. Says each commit that it knows to be done.
#[tokio::test]
#[ignore = "started by the tests below, which kill it"]
async fn child() {
    let Some(dir) = env::var_os(DIR) else { return };
    let store = SledStore::open(Path::new(&dir)).unwrap();
    loop {
        let n = store.generation().0 + 1;
        store.commit(commit(n)).await.unwrap();
        writeln!(std::io::stdout(), "\ndone {n}").unwrap();
    }
}

fn start(dir: &Path) -> Child {
    Command::new(env::current_exe().unwrap())
        .args(["--exact", "crash::child", "--ignored", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit())
        .spawn()
        .unwrap()
}

/// Kills it and answers the last commit that it said was done.
fn kill(mut child: Child) -> u64 {
    child.kill().unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let done = lines.filter_map(|line| line.unwrap().strip_prefix("done ")?.parse().ok()).last();
    child.wait().unwrap();
    done.unwrap_or(0)
}

async fn check(dir: &Path, acknowledged: u64, moment: Duration) -> u64 {
    let store = SledStore::open(dir).unwrap();
    let found = store.generation().0;
    assert!(found >= acknowledged, "{found} after {acknowledged} was done, killed at {moment:?}");
    assert_whole(&store).await;
    found
}

#[tokio::test]
async fn killed_at_any_moment_of_its_life() {
    let dir = tempfile::tempdir().unwrap();
    let mut acknowledged = 0;
    // From before it opens, through many commits; each step lands elsewhere in a commit.
    // On a busy machine it takes longer to get there.
    for step in 0..1000 {
        if step >= 80 && acknowledged > 20 {
            break;
        }
        let moment = Duration::from_micros(step * 1370);
        let child = start(dir.path());
        thread::sleep(moment);
        acknowledged = acknowledged.max(kill(child));
        let found = check(dir.path(), acknowledged, moment).await;
        assert!(found <= acknowledged + 1, "{found} when only {acknowledged} was done");
        acknowledged = found;
    }
    assert!(acknowledged > 20, "only {acknowledged} commits: nothing was tested");
}

#[tokio::test]
async fn killed_while_it_is_made() {
    for step in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        let moment = Duration::from_micros(step * 700);
        let child = start(dir.path());
        thread::sleep(moment);
        let acknowledged = kill(child);
        check(dir.path(), acknowledged, moment).await;
    }
}

#[tokio::test]
async fn a_second_process_is_told_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut child = start(dir.path());
    let mut lines = BufReader::new(child.stdout.as_mut().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().starts_with("done ")), "it never got to work");
    let asked = Instant::now();
    let answer = SledStore::open(dir.path());
    assert!(matches!(answer, Err(StoreError::InUse { .. })), "{answer:?}");
    assert!(asked.elapsed() < Duration::from_millis(500), "{:?}", asked.elapsed());
    kill(child);
    check(dir.path(), 1, Duration::ZERO).await;
}

/// What a kill while sled writes its snapshot leaves; sled alone refuses to open it.
#[tokio::test]
async fn an_unfinished_snapshot_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    write_up_to(&SledStore::open(dir.path()).unwrap(), 20).await;
    fs::write(dir.path().join("sled/snap.FFFFFFFFFFFFFFFF.generating"), b"half").unwrap();
    assert_eq!(check(dir.path(), 20, Duration::ZERO).await, 20);
}

/// What a kill while the store is made leaves.
#[tokio::test]
async fn the_beginning_of_a_store_is_begun_again() {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("sled.new/blobs")).unwrap();
    fs::write(dir.path().join("sled.new/conf"), b"segment_size: 524288\n").unwrap();
    assert_eq!(check(dir.path(), 0, Duration::ZERO).await, 0);
    assert!(!dir.path().join("sled.new").exists());
}

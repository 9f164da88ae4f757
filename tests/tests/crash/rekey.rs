//! A filesystem that gets another key, killed at each call of its re-encryption: it can be read with both keys, and the
//! next run goes on to the end.

use std::fs;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::thread::sleep;
use std::time::{Duration, Instant, SystemTime};

use filesystem::{
    Backend, BackingLocks, Error, ErrorKind, Filesystem, Outcome, Unattended, begin_rekey,
    end_rekey,
};
use kms_core::FilesystemKey;
use testkit::key_holder::envelope;
use testkit::tree;

use crate::every_step::tell;
use crate::{child, source};

#[test]
fn a_rekey_goes_on_wherever_it_was_killed() {
    // In memory, for it syncs often.
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    let at = |name: &str| home.path().join(name);
    make(&at("source"));
    let old = envelope(key(1).id());
    let made = Filesystem::create(&at("backing"), key(1), &old, Backend::default()).unwrap();
    made.import(&at("source"), None, &Unattended).unwrap();
    drop(made);
    begin_rekey(&BackingLocks::default(), &at("backing"), &old, &envelope(key(2).id())).unwrap();
    fs::rename(at("backing"), at("prepared")).unwrap();
    for kill_at in 1.. {
        let copied = Command::new("cp").arg("-a").args([at("prepared"), at("backing")]).status();
        assert!(copied.unwrap().success());
        let killed = child::killed_at("rekey::the_child_that_is_killed", home.path(), kill_at);
        let between = open(home.path(), Some(key(1)));
        // The names of one link get the new link one after the other, in a moment. A kill in it leaves two links until the
        // next run.
        let differences = differences(home.path(), &between, kill_at);
        let others = differences.iter().filter(|line| !line.contains("long link"));
        assert_eq!(others.collect::<Vec<_>>(), Vec::<&String>::new(), "{kill_at}");
        if !killed {
            tell(&format!("rekey of the data: killed at {} steps", kill_at - 1));
            assert_eq!(differences, Vec::<String>::new());
            assert!(kill_at > 150, "{kill_at}");
            return;
        }
        let report = between.rekey(&Unattended).unwrap();
        assert_eq!((report.outcome, &report.problems[..]), (Outcome::Done, &[][..]), "{kill_at}");
        assert_whole(home.path(), &between, kill_at);
        drop(between);
        let locks = BackingLocks::default();
        once_free(|| end_rekey(&locks, &at("backing"), key(2).id()));
        let renewed = open(home.path(), None);
        assert_whole(home.path(), &renewed, kill_at);
        drop(renewed);
        let resume = at("backing/coffer.tmp/resume");
        assert_eq!(fs::read_dir(resume).unwrap().count(), 0, "{kill_at}");
        fs::remove_dir_all(at("backing")).unwrap();
        fs::remove_file(at("go")).unwrap();
    }
}

/// What the import's tests have, and files and links that lie in another way.
fn make(root: &Path) {
    source::make(root);
    let more = root.join("more");
    fs::create_dir(&more).unwrap();
    fs::write(more.join("two groups"), tree::noise(5, 300_000)).unwrap();
    fs::write(more.join("n".repeat(255)), "named").unwrap();
    symlink("t".repeat(2000), more.join("long link")).unwrap();
    fs::hard_link(more.join("long link"), root.join("long link, linked")).unwrap();
    fs::hard_link(more.join("two groups"), root.join("two groups, linked")).unwrap();
    let file = fs::File::create(more.join("sparse")).unwrap();
    file.set_len(9 << 20).unwrap();
    file.write_all_at(b"in the middle", 5 << 20).unwrap();
    for dir in [root, &more, &root.join("sub")] {
        fs::read_dir(dir).unwrap().for_each(|entry| read_last(&entry.unwrap()));
    }
}

/// In an hour: then copying it changes its access time no more.
fn read_last(entry: &fs::DirEntry) {
    if entry.file_type().unwrap().is_file() {
        let file = fs::File::open(entry.path()).unwrap();
        let then = SystemTime::now() + Duration::from_secs(3600);
        file.set_times(fs::FileTimes::new().set_accessed(then)).unwrap();
    }
}

fn assert_whole(home: &Path, filesystem: &Filesystem, kill_at: u64) {
    assert_eq!(differences(home, filesystem, kill_at), Vec::<String>::new(), "{kill_at}");
}

/// All of it can be read; what of it is not as in the source.
fn differences(home: &Path, filesystem: &Filesystem, kill_at: u64) -> Vec<String> {
    let target = home.join("target");
    let _ = fs::remove_dir_all(&target);
    // A target of a link that was cut off may lie about.
    let verified = filesystem.verify(false, &Unattended).unwrap();
    assert_eq!(verified.outcome, Outcome::Done, "{kill_at}: {:?}", verified.problems);
    let exported = filesystem.export(&target, None, &Unattended).unwrap();
    assert_eq!(exported.outcome, Outcome::Done, "{kill_at}: {:?}", exported.problems);
    tree::differences(home.join("source"), target).unwrap()
}

#[test]
#[ignore = "started, and killed, by the test above"]
fn the_child_that_is_killed() {
    open(&child::home(), Some(key(1))).rekey(&Unattended).unwrap();
}

fn open(home: &Path, previous: Option<Arc<FilesystemKey>>) -> Filesystem {
    let (locks, backing) = (BackingLocks::default(), home.join("backing"));
    once_free(|| {
        let backend = Backend::default();
        Filesystem::open_sharing(&locks, &backing, key(2), previous.clone(), backend)
    })
}

/// A process that another test is about to start has the locks of this one, until it is its own program.
fn once_free<T>(act: impl Fn() -> Result<T, Error>) -> T {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        match act() {
            Err(error) if error.kind() == ErrorKind::InUse && Instant::now() < deadline => {
                sleep(Duration::from_millis(5));
            }
            done => return done.unwrap(),
        }
    }
}

fn key(n: u8) -> Arc<FilesystemKey> {
    let id = format!("00000000-0000-4000-8000-00000000000{n}").parse().unwrap();
    Arc::new(FilesystemKey::from_bytes(id, &[n; 32]).unwrap())
}

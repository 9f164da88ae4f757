//! kill -9 at every system call that changes something on disk, in backing directories, store and audit log alike, for each act
//! that takes several steps. Then a node starts on what lies there: nothing acknowledged is lost, nothing is half
//! done, the job is finished or undone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod acts;
mod audit_log;
mod batches;
mod checkpoints;
mod child;
mod every_step;
mod job_stop;
mod own_keys;
mod rekey;
mod source;
mod starts;
mod steps;
mod two_acts;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coffer_tests::kill::Watched;
use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::{Place, program};
use serde_json::Value;
use testkit::tree;

use crate::every_step::{at_every_step, tell};
use crate::own_keys::{
    add_own_key, assert_each_under_its_own, lowest_needed, with_own_and_a_rotation,
};

#[test]
fn create() {
    at_every_step(
        "create",
        20,
        |place, kms| place.set_vault(kms),
        |_| vec!["fs".into(), "create".into(), "new".into()],
        |place, done| {
            let there = names(place).contains(&"new".to_owned());
            assert!(there || !done, "an acknowledged create is lost");
            assert_eq!(place.state().join("filesystems/new").exists(), there);
            if there {
                place.wait_for_state("new", "unlocked");
                assert_eq!(place.json(&["fs", "verify", "new"])["state"], "done");
            } else {
                place.ok(&["fs", "create", "new"]);
            }
        },
    );
}

#[test]
fn import() {
    at_every_step(
        "import",
        80,
        |place, _| {
            source::make(&place.path("source"));
            place.ok(&["fs", "create", "home", "--allow-no-kms"]);
        },
        |place| {
            let source = place.path("source");
            vec!["fs".into(), "import".into(), "home".into(), source.to_str().unwrap().into()]
        },
        |place, done| {
            place.wait_for_state("home", "unlocked");
            wait_for_jobs(place);
            // What is there can be read, whatever was cut off; what was acknowledged is there.
            assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
            let source = place.path("source");
            if !done {
                let again = place.json(&["fs", "import", "home", source.to_str().unwrap()]);
                assert_eq!(again["state"], "done", "{again}");
            }
            let target = place.path("target");
            place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
            assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
            let left = tree::survey(place.state().join("filesystems/home/coffer.tmp")).unwrap();
            let left: Vec<_> = left
                .iter()
                .filter(|(_, entry)| entry.content != tree::Content::Directory)
                .collect();
            assert!(left.is_empty(), "temporary files stay behind: {left:?}");
        },
    );
}

#[test]
fn rewrap() {
    at_every_step(
        "rewrap",
        60,
        |place, kms| with_own_and_a_rotation(place, kms, &["one", "two"]),
        |_| words(&["fs", "kms", "rewrap"]),
        |place, done| {
            wait_for_jobs(place);
            let versions = versions(place);
            assert!(versions == [2; 3] || (!done && versions == [1; 3]), "{versions:?}");
            assert_each_under_its_own(place);
            assert_copies(place, &format!("vault:v{}:", versions[0]), &["one", "own", "two"]);
            // The canaries need a version too.
            eventually(place, "older versions are needed", || {
                lowest_needed(place) == [versions[0]; 2]
            });
        },
    );
}

#[test]
fn rekey() {
    at_every_step(
        "rekey",
        60,
        to_be_rekeyed,
        |_| words(&["fs", "rekey", "home"]),
        |place, done| {
            assert_rekeyed(place, done);
            // The source was read to put it back.
            let unread = |root: PathBuf| {
                let all = tree::survey(root).unwrap().into_iter();
                all.map(|(path, it)| (path, tree::Entry { atime: None, ..it })).collect::<Vec<_>>()
            };
            assert_eq!(unread(place.path("target")), unread(place.path("source")));
        },
    );
}

#[test]
fn downgrade() {
    at_every_step(
        "downgrade",
        20,
        two_and_a_rotation,
        |_| ["fs", "kms", "unset", "--allow-downgrade", "--yes"].map(String::from).to_vec(),
        |place, done| {
            wait_for_jobs(place);
            let set = !place.json(&["fs", "kms"])["configured"].is_null();
            assert!(!(set && done));
            for fs in ["one", "two"] {
                let shown = place.wait_for_state(fs, "unlocked");
                let kind = if set { "vault" } else { "local" };
                assert_eq!(shown["wrapped_by"]["kind"], kind, "{shown}");
                assert_eq!(shown["exposed"], !set, "{shown}");
            }
            eventually(place, "the local key lives exactly as long as it is needed", || {
                local_keys(place) == usize::from(!set)
            });
        },
    );
}

#[test]
fn unset() {
    at_every_step(
        "unset",
        5,
        |place, kms| place.set_vault(kms),
        |_| ["fs", "kms", "unset", "--yes"].map(String::from).to_vec(),
        |place, done| {
            let set = !place.json(&["fs", "kms"])["configured"].is_null();
            assert!(!(set && done));
            // Whichever it is, it is whole.
            if set {
                place.ok(&["fs", "create", "new"]);
            } else {
                place.fails(5, &["fs", "create", "new"]);
            }
        },
    );
}

#[test]
fn rewrap_of_one() {
    at_every_step(
        "rewrap one",
        20,
        two_and_a_rotation,
        |_| ["fs", "kms", "rewrap", "one"].map(String::from).to_vec(),
        |place, done| {
            wait_for_jobs(place);
            let versions = versions(place);
            assert!(versions == [2, 1] || (!done && versions == [1, 1]), "{versions:?}");
            assert_copies(place, &format!("vault:v{}:", versions[0]), &["one"]);
            assert_opens(place);
        },
    );
}

#[test]
fn move_to_another_kms() {
    let other = Kms::start(Kind::Embedded);
    let token = add_own_key(&other);
    at_every_step(
        "move to another KMS",
        60,
        |place, kms| with_own_and_a_rotation(place, kms, &["one"]),
        |_| set_vault(other.url(), &token),
        |place, done| {
            wait_for_jobs(place);
            let url = place.json(&["status"])["kms"]["configured"]["base_url"].clone();
            assert!(url == other.url() || !done, "{url}");
            // All hang on the one that is set.
            assert_copies(place, url.as_str().unwrap(), &["one", "own"]);
            assert_each_under_its_own(place);
            place.ok(&["fs", "kms", "rehearse"]);
        },
    );
}

#[test]
fn take_over() {
    at_every_step(
        "take over at another URL",
        20,
        two_and_a_rotation,
        |place| {
            let url = place.json(&["status"])["kms"]["configured"]["base_url"].clone();
            let token = fs::read_to_string(place.path("token")).unwrap();
            set_vault(&url.as_str().unwrap().replace("127.0.0.1", "localhost"), &token)
        },
        |place, done| {
            wait_for_jobs(place);
            let url = place.json(&["status"])["kms"]["configured"]["base_url"].clone();
            let url = url.as_str().unwrap();
            assert!(url.contains("localhost") || !done, "{url}");
            eventually(place, "the copies tell another address", || {
                ["one", "two"].iter().all(|fs| copy(place, fs).contains(url))
            });
            assert_opens(place);
        },
    );
}

#[test]
fn from_local_to_a_kms() {
    let kms = Kms::start(Kind::Embedded);
    at_every_step(
        "from local wrapping to a KMS",
        30,
        |place, _| {
            place.ok(&["fs", "create", "one", "--allow-no-kms"]);
        },
        |_| set_vault(kms.url(), &kms.token()),
        |place, done| {
            wait_for_jobs(place);
            let set = !place.json(&["status"])["kms"]["configured"].is_null();
            assert!(set || !done);
            let shown = place.wait_for_state("one", "unlocked");
            assert_eq!(shown["wrapped_by"]["kind"], if set { "vault" } else { "local" }, "{shown}");
            assert_eq!(shown["exposed"], true, "{shown}");
            eventually(place, "the local key lives exactly as long as it is needed", || {
                local_keys(place) == usize::from(!set)
            });
            assert_opens(place);
        },
    );
}

#[test]
fn export() {
    at_every_step(
        "export",
        60,
        with_an_import,
        |place| words(&["fs", "export", "home", place.path("target").to_str().unwrap()]),
        |place, done| {
            place.wait_for_state("home", "unlocked");
            wait_for_jobs(place);
            let jobs = place.json(&["job", "list"]);
            let is_done = |job: &Value| job["kind"] == "export" && job["state"] == "done";
            let has_ended = jobs["jobs"].as_array().unwrap().iter().any(is_done);
            assert!(has_ended || !done, "{jobs}");
            let target = place.path("target");
            if !has_ended {
                place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
            }
            assert_eq!(contents(&target), contents(&place.path("source")));
        },
    );
}

#[test]
fn repair() {
    at_every_step(
        "verify --repair",
        10,
        |place, kms| {
            with_an_import(place, kms);
            damage_a_file(&place.state().join("filesystems/home"));
        },
        |_| words(&["fs", "verify", "home", "--repair"]),
        |place, _| {
            place.wait_for_state("home", "unlocked");
            wait_for_jobs(place);
            // What is damaged is set aside once, and nothing else is.
            place.coffer(&["fs", "verify", "home", "--repair"]);
            assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
            let target = place.path("target");
            place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
            let mut whole = contents(&place.path("source"));
            for damaged in ["medium", "sub/link"] {
                whole.remove(damaged.as_bytes());
            }
            assert_eq!(contents(&target), whole);
        },
    );
}

#[test]
fn delete() {
    at_every_step(
        "delete",
        20,
        |place, kms| {
            with_an_import(place, kms);
            place.ok(&["fs", "create", "other", "--allow-no-kms"]);
        },
        |_| words(&["fs", "delete", "home", "--yes"]),
        |place, done| {
            let directory = place.state().join("filesystems/home");
            let state = || place.coffer(&["fs", "show", "home", "--json"]);
            eventually(place, "it is neither there nor gone", || {
                let shown = state();
                if shown.code == 5 {
                    !directory.exists()
                } else {
                    shown.stdout.contains("\"unlocked\"")
                }
            });
            if state().code == 0 {
                assert!(!done, "a deleted filesystem is back");
                assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
            }
            place.wait_for_state("other", "unlocked");
            assert_eq!(place.json(&["fs", "verify", "other"])["state"], "done");
        },
    );
}

#[test]
fn first_start() {
    for kill_at in 1.. {
        let place = Place::new();
        let node = Watched::start(place.serve(), kill_at);
        node.arm();
        while !node.was_killed() && UnixStream::connect(place.socket()).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        let killed = node.end();
        // Nothing was here before, and nothing is missed.
        let node = place.start();
        assert!(names(&place).is_empty());
        place.ok(&["audit", "verify"]);
        node.stop();
        if !killed {
            tell(&format!("first start: killed at {} steps", kill_at - 1));
            assert!(kill_at > 20, "{kill_at}");
            return;
        }
    }
}

#[test]
fn recover() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    node.kill();
    let prepared = place.copy();
    let state = place.state();
    let from = state.join("filesystems");
    let args =
        ["recover", "--from", from.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    for kill_at in 1.. {
        place.restore(&prepared);
        let mut command = Command::new(program());
        command.args(args).stdout(Stdio::null()).stderr(Stdio::null());
        let watched = Watched::start(command, kill_at);
        watched.arm();
        let killed = watched.wait();
        place.ok(&args);
        let node = place.start();
        place.wait_for_state("home", "unlocked");
        node.stop();
        if !killed {
            tell(&format!("recover: killed at {} steps", kill_at - 1));
            assert!(kill_at > 20, "{kill_at}");
            return;
        }
    }
}

fn two_and_a_rotation(place: &Place, kms: &Kms) {
    place.set_vault(kms);
    place.ok(&["fs", "create", "one"]);
    place.ok(&["fs", "create", "two"]);
    kms.rotate();
}

fn with_an_import(place: &Place, _: &Kms) {
    let source = place.path("source");
    source::make(&source);
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
}

fn to_be_rekeyed(place: &Place, kms: &Kms) {
    with_an_import(place, kms);
    place.set_vault(kms);
}

/// All of it lies under one key, and is exported to `target`.
fn assert_rekeyed(place: &Place, done: bool) {
    place.wait_for_state("home", "unlocked");
    wait_for_jobs(place);
    let shown = place.json(&["fs", "show", "home"]);
    // What was begun comes to its end by itself.
    assert!(shown["previous_key_id"].is_null(), "{shown}");
    assert!(!done || shown["exposed"] == false, "{shown}");
    // One that was killed before it was recorded leaves a second copy of the key of now, which means nothing.
    let previous = place.state().join("filesystems/home/coffer.previous-key");
    assert!(!previous.exists() || shown["exposed"] == true, "{shown}");
    assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
    let target = place.path("target");
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
}

fn set_vault(url: &str, token: &str) -> Vec<String> {
    words(&["fs", "kms", "set-vault", url, KEY, token])
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

/// Changes a byte in the middle of the file that is `medium` and, linked, `sub/link`.
fn damage_a_file(backing: &Path) {
    let mut directories = vec![backing.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let (path, found) = (entry.path(), entry.metadata().unwrap());
            if found.is_dir() {
                directories.push(path);
            } else if (700_000..1_000_000).contains(&found.len()) {
                let file = fs::File::options().read(true).write(true).open(path).unwrap();
                let (mut byte, at) = ([0], 400_000);
                file.read_exact_at(&mut byte, at).unwrap();
                return file.write_all_at(&[!byte[0]], at).unwrap();
            }
        }
    }
    panic!("the file is not there");
}

/// What is in the files of a tree, by their paths. (Their times have changed: the place was copied.)
fn contents(tree: &Path) -> BTreeMap<Vec<u8>, tree::Content> {
    let survey = tree::survey(tree).unwrap();
    survey.into_iter().map(|(path, entry)| (path, entry.content)).collect()
}

fn copy(place: &Place, name: &str) -> String {
    fs::read_to_string(place.state().join(format!("filesystems/{name}/coffer.key"))).unwrap()
}

fn assert_copies(place: &Place, have: &str, names: &[&str]) {
    for name in names {
        assert!(copy(place, name).contains(have), "the copy of {name} is behind");
    }
}

/// Everything opens, now and at the next start.
fn assert_opens(place: &Place) {
    wait_until_unlocked(place);
    place.ok(&["fs", "kms", "rehearse"]);
}

fn local_keys(place: &Place) -> usize {
    let state = fs::read_dir(place.state()).unwrap();
    let local = |entry: &fs::DirEntry| entry.file_name().to_string_lossy().starts_with("local-");
    state.map(Result::unwrap).filter(local).count()
}

fn names(place: &Place) -> Vec<String> {
    let list = place.json(&["fs", "list"]);
    let all = list["filesystems"].as_array().unwrap().iter();
    all.map(|fs| fs["name"].as_str().unwrap().to_owned()).collect()
}

fn versions(place: &Place) -> Vec<u64> {
    let list = place.json(&["fs", "list"]);
    let all = list["filesystems"].as_array().unwrap().iter();
    all.map(|fs| fs["wrapped_by"]["version"].as_u64().unwrap()).collect()
}

fn wait_until_unlocked(place: &Place) {
    for name in names(place) {
        place.wait_for_state(&name, "unlocked");
    }
}

/// Waits until each filesystem is unlocked, but for those that an administrator has locked.
fn wait_until_settled(place: &Place) {
    eventually(place, "a filesystem stays locked", || {
        let list = place.json(&["fs", "list"]);
        list["filesystems"]
            .as_array()
            .unwrap()
            .iter()
            .all(|fs| fs["state"] == "unlocked" || fs["problem"]["code"] == "locked-by-admin")
    });
}

/// Waits until no job is under way: what a dead node left is taken up by the next one.
fn wait_for_jobs(place: &Place) {
    eventually(place, "a job does not end", || {
        let jobs = place.json(&["job", "list"]);
        !jobs["jobs"].as_array().unwrap().iter().any(is_under_way)
    });
}

fn is_under_way(job: &Value) -> bool {
    ["running", "waiting", "stopping"].map(Value::from).contains(&job["state"])
}

/// The node settles what it found beside answering, so what it promises comes true after a moment.
fn eventually(place: &Place, or_else: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{or_else}:\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

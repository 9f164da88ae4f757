//! kill -9 at every system call that changes something on disk, in backing directories and store alike, for each act
//! that takes several steps. Then a node starts on what lies there: nothing acknowledged is lost, nothing is half
//! done, the job is finished or undone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod checkpoints;
mod rekey;
mod source;

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use coffer_tests::kill::Watched;
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::{Place, program};
use serde_json::Value;
use testkit::tree;

#[test]
fn create() {
    let points = at_every_call(
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
    assert!(points > 20, "{points}");
}

#[test]
fn import() {
    let points = at_every_call(
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
    assert!(points > 80, "{points}");
}

#[test]
fn rewrap() {
    let points = at_every_call(
        two_and_a_rotation,
        |_| vec!["fs".into(), "kms".into(), "rewrap".into()],
        |place, done| {
            wait_for_jobs(place);
            let versions = versions(place);
            assert!(versions == [2, 2] || (!done && versions == [1, 1]), "{versions:?}");
            for fs in ["one", "two"] {
                place.wait_for_state(fs, "unlocked");
                let copy =
                    fs::read_to_string(place.state().join(format!("filesystems/{fs}/coffer.key")));
                let expected = format!("vault:v{}:", versions[0]);
                assert!(copy.unwrap().contains(&expected), "the copy of {fs} is behind");
            }
        },
    );
    assert!(points > 20, "{points}");
}

#[test]
fn rekey() {
    let points = at_every_call(
        |place, kms| {
            source::make(&place.path("source"));
            place.ok(&["fs", "create", "home", "--allow-no-kms"]);
            place.ok(&["fs", "import", "home", place.path("source").to_str().unwrap()]);
            place.set_vault(kms);
        },
        |_| ["fs", "rekey", "home"].map(String::from).to_vec(),
        |place, done| {
            place.wait_for_state("home", "unlocked");
            wait_for_jobs(place);
            let shown = place.json(&["fs", "show", "home"]);
            // What was begun comes to its end by itself.
            assert!(shown["previous_key_id"].is_null(), "{shown}");
            assert!(!done || shown["exposed"] == false, "{shown}");
            assert!(!place.state().join("filesystems/home/coffer.previous-key").exists());
            assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
            let target = place.path("target");
            place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
            // The source was read to put it back.
            let unread = |root: PathBuf| {
                let all = tree::survey(root).unwrap().into_iter();
                all.map(|(path, it)| (path, tree::Entry { atime: None, ..it })).collect::<Vec<_>>()
            };
            assert_eq!(unread(target), unread(place.path("source")));
        },
    );
    assert!(points > 60, "{points}");
}

#[test]
fn downgrade() {
    let points = at_every_call(
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
                let state = fs::read_dir(place.state()).unwrap();
                let local = |entry: &fs::DirEntry| {
                    entry.file_name().to_string_lossy().starts_with("local-")
                };
                state.map(Result::unwrap).filter(local).count() == usize::from(!set)
            });
        },
    );
    assert!(points > 20, "{points}");
}

#[test]
fn unset() {
    let points = at_every_call(
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
    assert!(points > 5, "{points}");
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
        node.stop();
        if !killed {
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

/// Prepares a place, then runs `act` on it again and again, each time killed at a later call, until it comes to its
/// end. After each kill `check` looks at a node that was started afterwards; it is told whether `act` was
/// acknowledged. Answers how many calls there were.
fn at_every_call(
    prepare: impl Fn(&Place, &Kms),
    act: impl Fn(&Place) -> Vec<String>,
    check: impl Fn(&Place, bool),
) -> u64 {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    prepare(&place, &kms);
    node.stop();
    let prepared = place.copy();
    let args = act(&place);
    for kill_at in 1.. {
        place.restore(&prepared);
        let node = Watched::start(place.serve(), kill_at);
        assert!(place.wait_for_socket(), "{}", place.log());
        wait_until_unlocked(&place);
        node.arm();
        let done = place.coffer(&args).code == 0;
        let killed = node.end();
        assert!(killed || done, "{args:?} failed without a kill:\n{}", place.log());

        let node = place.start();
        check(&place, done);
        node.stop();
        if !killed {
            return kill_at - 1;
        }
    }
    unreachable!()
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

/// Waits until no job is under way: what a dead node left is taken up by the next one.
fn wait_for_jobs(place: &Place) {
    eventually(place, "a job does not end", || {
        let jobs = place.json(&["job", "list"]);
        let under_way = |job: &Value| {
            ["running", "waiting", "stopping"].map(Value::from).contains(&job["state"])
        };
        !jobs["jobs"].as_array().unwrap().iter().any(under_way)
    });
}

/// The node settles what it found beside answering, so what it promises comes true after a moment.
fn eventually(place: &Place, or_else: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "{or_else}:\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

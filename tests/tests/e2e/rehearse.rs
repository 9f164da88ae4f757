//! `fs kms rehearse`: whether a start would succeed is told while everything is open, and is what then happens.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::{Value, json};

#[test]
fn what_is_rehearsed_happens() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let node = place.start();
        place.ok(&["fs", "create", "local", "--allow-no-kms"]);
        let alone = place.ok(&["fs", "kms", "rehearse"]);
        assert!(alone.contains("a start now would succeed: 1 filesystem can be opened"), "{alone}");
        let token = kms.admin().token("coffer-test", &policy(KEY), &json!({ "ttl": "2h" }));
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        for name in ["a", "b"] {
            place.ok(&["fs", "create", name]);
        }
        place.ok(&["fs", "lock", "b"]);
        let good = place.json(&["fs", "kms", "rehearse"]);
        assert_eq!((&good["open"], &good["shut"]), (&json!(3), &json!([])), "{kind:?}: {good}");
        assert_eq!(good["held"], json!(["b"]), "{good}");
        let left = good["credential_seconds_left"].as_u64().unwrap();
        assert!((7000..=7201).contains(&left), "{good}");
        assert!(good["warnings"].to_string().contains("not periodic"), "{good}");
        assert_eq!(good["stopped_seconds_left"], Value::Null, "nobody renews it: {good}");
        let token = kms.admin().token("coffer-test", &policy(KEY), &json!({ "period": "768h" }));
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        let renewed = place.json(&["fs", "kms", "rehearse"]);
        assert_eq!(renewed["credential_seconds_left"], Value::Null, "{renewed}");
        let stopped = renewed["stopped_seconds_left"].as_u64().unwrap();
        assert!((768 * 3600 - 300..=768 * 3600).contains(&stopped), "{renewed}");
        assert_eq!(place.json(&["fs", "show", "b"])["state"], "locked", "nothing is changed");

        // What is open hides that a permission is gone.
        let all = policy(KEY);
        let lacking: Vec<_> = all.lines().filter(|line| !line.contains("decrypt")).collect();
        let lacking = lacking.join("\n");
        kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": lacking }));
        place.ok(&["fs", "ls", "a"]);
        let refused = place.coffer(&["fs", "kms", "rehearse", "--json"]);
        let foretold: Value = serde_json::from_str(&refused.stdout).unwrap();
        assert_eq!(refused.code, 4, "{refused:?}");
        let told: Value = serde_json::from_str(&refused.stderr).unwrap();
        assert_eq!(told["exit"], "kms-refused", "{told}");
        assert!(told["detail"].to_string().contains("3 filesystems, the first: a: "), "{told}");
        let shut: Vec<_> =
            foretold["shut"].as_array().unwrap().iter().map(|fs| fs["name"].clone()).collect();
        assert_eq!(shut, ["a", "b", "local"], "{foretold}");
        assert!(
            foretold["shut"][0]["why"].as_str().unwrap().contains("transit/decrypt"),
            "{foretold}"
        );
        assert!(foretold["shut"][0]["cure"].as_str().unwrap().contains("decrypt"), "{foretold}");
        node.stop();
        let node = place.start();
        let locked = place.wait_for_state("a", "locked");
        assert!(locked.to_string().contains("transit/decrypt"), "{locked}");
        kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": policy(KEY) }));
        place.ok(&["fs", "unlock", "a"]);
        drop(kms);
        let away = place.coffer(&["fs", "kms", "rehearse"]).expect(3);
        assert!(away.stdout.contains("FAILED  a would stay locked"), "{away:?}");
        node.stop();
        let left = fs::read_dir(place.state()).unwrap().map(|entry| entry.unwrap().file_name());
        let copies = left.filter(|name| name.to_string_lossy().starts_with("rehearsal-")).count();
        assert_eq!(copies, 0, "no copy of the store is left");
        assert!(!place.log().contains(&token));
    }
}

/// A rehearsal would bring the end that it tells of.
#[test]
fn a_token_with_a_number_of_uses_is_spared() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let few = json!({ "period": "1h", "num_uses": 60 });
    let token = kms.admin().token("coffer-test", &policy(KEY), &few);
    let _node = place.start();
    place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
    place.ok(&["fs", "create", "home"]);
    place.until("the limit is seen", || {
        place.ok(&["status"]).contains("uses left and ends with the last")
    });
    let before = kms.embedded().requests().count("").requests;
    let refused = place.fails(5, &["fs", "kms", "rehearse"]);
    assert!(refused.contains("good for a number of uses only"), "{refused}");
    assert_eq!(kms.embedded().requests().count("").requests, before);
}

#[test]
fn what_keeps_a_node_from_its_store_is_told() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "a"]);
    // A copy that a killed node left is removed; a store that was spoilt on disk is seen before the node needs it.
    fs::create_dir(place.state().join("rehearsal-left")).unwrap();
    node.stop();
    let _node = place.start();
    assert!(!place.state().join("rehearsal-left").exists());
    let db = place.state().join("store/sled/db");
    let mut bytes = fs::read(&db).unwrap();
    bytes.fill(0);
    fs::write(&db, bytes).unwrap();
    place.ok(&["fs", "list"]);
    let refused = place.fails(6, &["fs", "kms", "rehearse"]);
    assert!(
        refused.contains("would refuse its key store") && refused.contains("coffer recover"),
        "{refused}"
    );
    assert!(!refused.contains("rehearsal-"), "a copy that is gone is named: {refused}");
}

#[test]
fn a_backing_directory_that_is_not_there_is_warned_of() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let names = ["away", "emptied", "damaged", "other", "sound"];
    names.iter().for_each(|name| drop(place.ok(&["fs", "create", name])));
    let backing = |name: &str| place.state().join("filesystems").join(name);
    fs::rename(backing("away"), place.path("away")).unwrap();
    fs::remove_file(backing("emptied").join("coffer.key")).unwrap();
    fs::write(backing("damaged").join("coffer.key"), "noise").unwrap();
    fs::copy(backing("sound").join("coffer.key"), backing("other").join("coffer.key")).unwrap();
    let told = place.json(&["fs", "kms", "rehearse"]);
    assert_eq!((&told["open"], &told["shut"]), (&json!(5), &json!([])), "{told}");
    let warnings: Vec<_> = told["warnings"].as_array().unwrap().iter().collect();
    for name in names {
        let says = format!("the backing directory of {name} is out of reach or changed");
        let warned = warnings.iter().any(|warning| warning.to_string().contains(&says));
        assert_eq!(warned, name != "sound", "{name}: {told}");
    }
}

/// The process that a node has rehearse, on a copy of the state.
fn rehearsing(place: &Place, copy: &Place, within: &str) -> Child {
    let (copy, state) = (copy.state(), place.state());
    let mut process = place.command_line(&[
        "rehearse-store",
        "--store",
        copy.to_str().unwrap(),
        "--state-dir",
        state.to_str().unwrap(),
        "--kms-deadline-seconds",
        "60",
        "--within-seconds",
        within,
    ]);
    let process = process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    process.spawn().unwrap()
}

#[test]
fn one_whose_time_is_over_names_the_kms_and_says_what_it_used() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "a"]);
    node.stop();
    let copy = place.copy();
    // Each answer comes in time, and all together do not.
    kms.embedded().faults().inject(Fault::Delay { milliseconds: 400 }.on(""));
    let mut process = rehearsing(&place, &copy, "2");
    let _held = process.stdin.take();
    let answer = process.wait_with_output().unwrap();
    let told: Value = serde_json::from_slice(&answer.stdout).unwrap();
    let problem = &told["rehearsal"]["Err"];
    assert_eq!(
        (&problem["exit"], &problem["code"]),
        (&json!("kms-unreachable"), &json!("rehearsal-too-slow")),
        "{told}"
    );
    let why = problem["detail"].as_str().unwrap();
    assert!(why.contains(kms.url()) && why.contains("within 2 s"), "{told}");
    assert!(problem["cure"].as_str().unwrap().contains("coffer fs kms check"), "{told}");
    assert!(told["uses"].to_string().contains("only the KMS's log tells"), "{told}");
}

/// Though a request may take as long as half of the time that all of it has.
#[test]
fn a_kms_that_is_silent_is_told_of_before_the_time_is_over() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    fs::write(place.config(), "kms_deadline_seconds = 60\n").unwrap();
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "a"]);
    kms.embedded().faults().inject(Fault::Delay { milliseconds: 3_600_000 }.on(""));
    let begun = Instant::now();
    let told = place.coffer(&["fs", "kms", "rehearse"]).expect(3);
    assert!(begun.elapsed() < Duration::from_secs(100), "{:?}", begun.elapsed());
    assert!(told.stdout.contains("FAILED  a would stay locked"), "{told:?}");
}

/// Also while it waits for a KMS that is silent.
#[test]
fn it_ends_with_its_node_whichever_way_that_ends() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    fs::write(place.config(), "kms_deadline_seconds = 60\n").unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "a"]);
    kms.embedded().faults().inject(Fault::Delay { milliseconds: 3_600_000 }.on("transit/"));
    let mut command = place.command_line(&["fs", "kms", "rehearse"]);
    let command = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut command = command.spawn().unwrap();
    let tasks = format!("/proc/{}/task", node.pid());
    let children = || -> Vec<PathBuf> {
        let tasks = fs::read_dir(&tasks).unwrap().map(|task| task.unwrap().path());
        let all = tasks.filter_map(|task| fs::read_to_string(task.join("children")).ok());
        let all = all.collect::<String>();
        all.split_whitespace().map(|pid| PathBuf::from("/proc").join(pid)).collect()
    };
    place.until("another process rehearses", || !children().is_empty());
    let children = children();
    std::thread::sleep(Duration::from_millis(500));
    node.kill();
    command.wait().unwrap();
    // Who takes its exit status in now may be slow to do so.
    let lives = |process: &PathBuf| {
        let status = fs::read_to_string(process.join("status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
    };
    place.until("it has ended", || !children.iter().any(lives));
}

//! A new key for a filesystem: `exposed` ends, the data stays, whatever stops it in between.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use coffer_tests::tmpfs::Tmpfs;
use dev_vault::Fault;
use serde_json::{Value, json};
use testkit::tree;

/// A filesystem whose key has lain under local wrapping, with a KMS set since. Answers its source.
fn exposed(place: &Place, kms: &Kms, large: usize) -> String {
    let source = place.path("source");
    tree::small_files(&source, 300).unwrap();
    fs::write(source.join("large"), tree::noise(7, large)).unwrap();
    let source = source.to_str().unwrap().to_owned();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "import", "home", &source]);
    place.set_vault(kms);
    assert_eq!(place.json(&["fs", "show", "home"])["exposed"], true);
    source
}

fn assert_export_is(place: &Place, source: &str, target: &str) {
    let target = place.path(target);
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
    let differences = tree::differences(Path::new(source), &target).unwrap();
    assert_eq!(differences, Vec::<String>::new());
}

/// All that is left of it when it has come to its end.
fn assert_has_one_key(place: &Place) {
    let shown = place.json(&["fs", "show", "home"]);
    assert_eq!((&shown["exposed"], &shown["previous_key_id"]), (&json!(false), &Value::Null));
    assert_eq!(place.json(&["fs", "kms"])["exposed_keys"], 0);
    let backing = place.state().join("filesystems/home");
    assert!(!backing.join("coffer.previous-key").exists());
    let copy = fs::read_to_string(backing.join("coffer.key")).unwrap();
    assert!(copy.contains(shown["key_id"].as_str().unwrap()), "{copy}");
    let verified = place.json(&["fs", "verify", "home"]);
    assert_eq!((&verified["state"], &verified["damage"]), (&json!("done"), &Value::Null));
}

/// The newest job, once it has done something and has more to do.
fn in_the_middle(place: &Place) -> String {
    loop {
        let job = place.json(&["job", "list"])["jobs"][0].clone();
        if job["kind"] != "rekey" {
            continue;
        }
        assert!(job["ended_at"].is_null(), "it was over too soon: {job}");
        if job["progress"]["bytes"].as_u64().unwrap() > 1 << 20 {
            return job["id"].as_str().unwrap().to_owned();
        }
    }
}

#[test]
fn a_new_key_ends_exposed() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    let source = exposed(&place, &kms, 3 << 20);
    assert!(place.ok(&["status"]).contains("coffer fs rekey"), "the cure is told");
    assert!(place.ok(&["fs", "show", "home"]).contains("coffer fs rekey home"));
    let old = place.json(&["fs", "show", "home"])["key_id"].clone();

    let told = place.ok(&["fs", "rekey", "home"]);
    assert!(told.contains("re-encrypted home under its new key: "), "{told}");
    assert_has_one_key(&place);
    let new = place.json(&["fs", "show", "home"])["key_id"].clone();
    assert_ne!(new, old);
    let warned = place.ok(&["status"]);
    assert!(!warned.contains("rekey") && !warned.contains("exposed"), "{warned}");
    assert_export_is(&place, &source, "target");
    let audit = place.json(&["audit", "show", "--action", "fs.rekey"]);
    let said: Vec<_> = audit["lines"].as_array().unwrap().iter().map(|e| &e["outcome"]).collect();
    assert_eq!(said, ["begun", "done"]);

    node.kill();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    assert_has_one_key(&place);
    assert_export_is(&place, &source, "again");
    // It is no matter of being exposed alone, and all goes on as before.
    place.ok(&["fs", "rekey", "home"]);
    place.ok(&["fs", "import", "home", &source]);
    assert_has_one_key(&place);
    assert_export_is(&place, &source, "third");
    assert_ne!(place.json(&["fs", "show", "home"])["key_id"], new);
}

#[test]
fn without_a_kms_or_while_it_is_away_nothing_begins() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let refused = place.fails(5, &["fs", "rekey", "home"]);
    assert!(refused.contains("coffer fs kms set-vault"), "{refused}");
    place.set_vault(&kms);
    let before = place.json(&["fs", "show", "home"]);
    kms.admin().ask("PUT", "sys/seal", &json!({}));
    let refused = place.fails(3, &["fs", "rekey", "home"]);
    assert!(refused.contains("sealed"), "{refused}");
    assert_eq!(place.json(&["fs", "show", "home"]), before);
    place.fails(5, &["fs", "rekey", "nope"]);
}

#[test]
fn it_goes_on_after_a_kill() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    let source = exposed(&place, &kms, 300 << 20);
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| place.coffer(&["fs", "rekey", "home"]));
        in_the_middle(&place);
        let shown = place.ok(&["fs", "show", "home"]);
        assert!(shown.contains("old key:") && shown.contains("exposed:     yes"), "{shown}");
        node.kill();
        assert_ne!(begun.join().unwrap().code, 0);
    });
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    // It went on by itself, and the same command watches it.
    let job = place.json(&["fs", "rekey", "home"]);
    assert_eq!(job["state"], "done", "{job}");
    assert_has_one_key(&place);
    assert_export_is(&place, &source, "target");
    node.stop();
}

/// A job without checkpoints, until it goes on.
#[test]
fn one_that_waits_after_a_kill_tells_how_far_it_was() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let node = place.start();
    let source = exposed(&place, &kms, 300 << 20);
    let job = || place.json(&["job", "list"])["jobs"][0].clone();
    let bytes = |job: &Value| job["progress"]["bytes"].as_u64().unwrap();
    // Until it takes so long that it is recorded how far it is.
    for more in 1..10 {
        let mut rekey = place.command_line(&["fs", "rekey", "home"]);
        let mut rekey = rekey.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let is_over = || rekey.try_wait().unwrap().is_some();
        if within(Duration::from_secs(2), is_over) {
            fs::write(Path::new(&source).join(more.to_string()), tree::noise(more, 900 << 20))
                .unwrap();
            place.ok(&["fs", "import", "home", &source]);
            continue;
        }
        node.kill();
        rekey.wait().unwrap();
        break;
    }
    kms.embedded().faults().inject(Fault::Drop);
    let node = place.start();
    place.wait_for_problem("home", "kms-unreachable");
    let waits = job();
    assert_eq!((&waits["kind"], &waits["state"]), (&json!("rekey"), &json!("waiting")));
    let total = waits["progress"]["total_bytes"].as_u64().unwrap();
    assert!(bytes(&waits) > 0 && bytes(&waits) <= total, "{waits}");
    assert!(waits["progress"]["total_items"].as_u64().unwrap() > 300, "{waits}");
    kms.embedded().faults().clear();
    place.until("it goes on to its end", || job()["state"] == "done");
    assert_has_one_key(&place);
    node.stop();
}

fn within(time: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while Instant::now() < deadline {
        if holds() {
            return true;
        }
        sleep(Duration::from_millis(10));
    }
    false
}

#[test]
fn it_can_be_stopped_and_gone_on_with_beside_other_jobs() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let source = exposed(&place, &kms, 300 << 20);
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| place.coffer(&["fs", "rekey", "home"]));
        let id = in_the_middle(&place);
        // Read and written meanwhile.
        fs::write(Path::new(&source).join("new"), "written in the middle").unwrap();
        place.ok(&["fs", "import", "home", &source]);
        assert_export_is(&place, &source, "in-the-middle");
        assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
        let stopped = place.coffer(&["job", "stop", &id]);
        let ended = begun.join().unwrap();
        // It may have been over by then.
        assert_eq!(ended.code, if stopped.code == 0 { 8 } else { 0 }, "{ended:?}");
    });
    if place.json(&["fs", "show", "home"])["previous_key_id"] != Value::Null {
        place.wait_for_finding("rekey-unfinished");
    }
    place.ok(&["fs", "lock", "home"]);
    let refused = place.fails(5, &["fs", "rekey", "home"]);
    assert!(refused.contains("coffer fs unlock home"), "{refused}");
    place.ok(&["fs", "unlock", "home"]);
    place.ok(&["fs", "rekey", "home"]);
    assert_has_one_key(&place);
    assert_export_is(&place, &source, "target");
}

#[test]
fn what_is_damaged_keeps_the_old_key_until_it_is_set_aside() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    exposed(&place, &kms, 3 << 20);
    let root = fs::read_dir(place.state().join("filesystems/home/root")).unwrap();
    let is_large = |path: &PathBuf| fs::metadata(path).unwrap().len() > 3 << 20;
    let large = root.map(|entry| entry.unwrap().path()).find(is_large).unwrap();
    let mut bytes = fs::read(&large).unwrap();
    bytes[1 << 20] ^= 1;
    fs::write(&large, bytes).unwrap();

    let partly = place.coffer(&["fs", "rekey", "home"]).expect(8);
    assert!(partly.stdout.contains("large"), "{partly:?}");
    assert!(partly.stderr.contains("--repair"), "{partly:?}");
    let shown = place.json(&["fs", "show", "home"]);
    assert!(shown["exposed"] == true && shown["previous_key_id"].is_string(), "{shown}");
    place.wait_for_finding("rekey-unfinished");
    place.fails(6, &["fs", "verify", "home", "--repair"]);
    // What was set aside lies under the old key too.
    let partly = place.coffer(&["fs", "rekey", "home"]).expect(8);
    assert!(partly.stdout.contains("coffer.lost/"), "{partly:?}");
    let lost = place.state().join("filesystems/home/coffer.lost");
    for entry in fs::read_dir(lost).unwrap() {
        fs::remove_file(entry.unwrap().path()).unwrap();
    }
    place.ok(&["fs", "rekey", "home"]);
    assert_has_one_key(&place);
    // What was said of it can be read still.
    let jobs = place.json(&["job", "list"]);
    let is_first = |job: &&Value| job["kind"] == "rekey" && job["state"] == "partly";
    let first = jobs["jobs"].as_array().unwrap().iter().rfind(is_first).unwrap();
    let shown = place.ok(&["job", "show", first["id"].as_str().unwrap()]);
    assert!(shown.contains("large"), "{shown}");
}

#[test]
fn a_store_that_is_lost_in_the_middle_is_rebuilt_and_the_rest_is_done() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    let source = exposed(&place, &kms, 1200 << 20);
    std::thread::scope(|scope| {
        let begun = scope.spawn(|| place.coffer(&["fs", "rekey", "home"]));
        in_the_middle(&place);
        node.kill();
        assert_ne!(begun.join().unwrap().code, 0);
    });
    fs::remove_dir_all(place.state().join("store")).unwrap();
    let from = place.state().join("filesystems");
    let state = place.state();
    let args =
        ["recover", "--from", from.to_str().unwrap(), "--state-dir", state.to_str().unwrap()];
    place.ok(&args);
    let _node = place.start();
    place.set_vault(&kms);
    place.wait_for_state("home", "unlocked");
    assert_export_is(&place, &source, "before");
    place.wait_for_finding("rekey-unfinished");
    place.ok(&["fs", "rekey", "home"]);
    assert_has_one_key(&place);
    assert_export_is(&place, &source, "target");
}

#[test]
fn a_full_state_directory_is_told_and_it_ends_when_there_is_room() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let (state, source, backing) = (place.state(), place.path("source"), place.path("backing"));
    fs::create_dir(&state).unwrap();
    let mounted = Tmpfs::mount(&state, "64m");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let _node = place.start();
    place.set_vault(&kms);
    tree::small_files(&source, 300).unwrap();
    fs::write(source.join("large"), tree::noise(7, 500 << 20)).unwrap();
    place.ok(&["fs", "create", "home", "--backing", backing.to_str().unwrap()]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);

    let mut rekey = place.command_line(&["fs", "rekey", "home"]);
    let mut rekey = rekey.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let job = in_the_middle(&place);
    mounted.resize("12m");
    let told: Vec<_> = BufReader::new(rekey.stderr.take().unwrap())
        .lines()
        .map(Result::unwrap)
        .take_while(|line| !line.contains("the node tries again by itself"))
        .collect();
    let told = told.join("\n");
    assert!(told.contains("the re-encryption waits: ") && told.contains("bytes left"), "{told}");
    for command in [&["job", "show", &job][..], &["job", "list"], &["status"]] {
        let shown = place.ok(command);
        assert!(shown.contains("wait") && shown.contains("bytes left"), "{shown}");
    }
    mounted.resize("64m");
    assert!(rekey.wait().unwrap().success());
    let shown = place.json(&["fs", "show", "home"]);
    assert_eq!(shown["previous_key_id"], Value::Null, "{shown}");
    assert_export_is(&place, source.to_str().unwrap(), "target");
}

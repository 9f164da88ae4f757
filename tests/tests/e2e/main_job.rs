//! The main job: create, import, restart, export, rotate, rewrap, over each KMS.

use std::fs;
use std::process::Command;

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use serde_json::json;
use testkit::tree;

#[test]
fn over_the_embedded_kms() {
    main_job(Kind::Embedded);
}

#[test]
fn over_the_oldest_vault() {
    main_job(Kind::Oldest);
}

#[test]
fn over_the_newest_vault() {
    main_job(Kind::Newest);
}

fn main_job(kind: Kind) {
    let kms = Kms::start(kind);
    let place = Place::new();
    let (source, target) = (place.path("source"), place.path("target"));
    tree::everything(&source).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home", "--encrypted"]);
    place.ok(&["fs", "create", "projects"]);
    let job = place.json(&["fs", "import", "home", source.to_str().unwrap()]);
    assert_eq!(job["state"], "done", "{job}");
    node.stop();

    // Restarted, the keys come from the KMS.
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    place.wait_for_state("projects", "unlocked");
    let job = place.json(&["fs", "export", "home", target.to_str().unwrap()]);
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());

    // Rotated and rewrapped, everything hangs on the new version, data and keys are as they were.
    let before = ciphertext(&place);
    kms.rotate();
    let rewrapped = place.json(&["fs", "kms", "rewrap"]);
    assert_eq!(rewrapped["state"], "done", "{rewrapped}");
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["latest_version"], 2, "{shown}");
    assert_eq!(shown["keys"].as_array().unwrap().len(), 1, "{shown}");
    assert_eq!((&shown["keys"][0]["version"], &shown["keys"][0]["keys"]), (&json!(2), &json!(2)));
    assert_eq!(ciphertext(&place), before, "a rewrap leaves data alone");
    let copy = fs::read_to_string(place.state().join("filesystems/home/coffer.key")).unwrap();
    assert!(copy.contains("vault:v2:") && !copy.contains("vault:v1:"), "{copy}");

    // The old version can go: after a restart everything opens under the new one alone.
    kms.configure(&json!({ "min_decryption_version": 2 }));
    node.stop();
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    let verified = place.json(&["fs", "verify", "home"]);
    assert_eq!(verified["state"], "done", "{verified}");

    place.ok(&["fs", "delete", "projects", "--yes"]);
    assert!(!place.state().join("filesystems/projects").exists());
    place.fails(5, &["fs", "kms", "unset", "--yes"]);
    place.ok(&["fs", "delete", "home", "--yes"]);
    place.ok(&["fs", "kms", "unset", "--yes"]);
    assert!(place.json(&["fs", "kms"])["configured"].is_null());
    node.stop();
}

/// Path, length and modification time of all that holds data. (By `find`, as the tree is deeper than a path is long.)
fn ciphertext(place: &Place) -> String {
    let root = place.state().join("filesystems/home/root");
    let found =
        Command::new("find").arg(root).args(["-printf", "%P %s %T@ %i\\n"]).output().unwrap();
    assert!(found.status.success() && found.stdout.len() > 1000);
    String::from_utf8_lossy(&found.stdout).into_owned()
}

#[test]
fn a_node_that_answers_ends_well_when_it_is_asked_to() {
    let place = Place::new();
    // As soon as its socket is there.
    (0..5).for_each(|_| place.start().stop());
}

//! Two nodes with one backing directory, which belongs to one of them: nothing is lost by what the other one does.

use std::fs;
use std::process::Command;

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::{Node, Place};
use testkit::tree;

/// A filesystem `home` with some content that both have in their stores, and the second one has unlocked.
fn both_have_it<'a>(kms: &Kms, first: &'a Place, second: &'a Place) -> (Node<'a>, Node<'a>) {
    let node = first.start();
    first.set_vault(kms);
    first.ok(&["fs", "create", "home"]);
    let source = first.path("source");
    tree::small_files(&source, 5).unwrap();
    first.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    let backing = first.state().join("filesystems/home");
    let state = second.state();
    let (backing, state) = (backing.to_str().unwrap(), state.to_str().unwrap());
    second.ok(&["recover", "--from", backing, "--state-dir", state]);
    let other = second.start();
    second.set_vault(kms);
    second.ok(&["fs", "ls", "home"]);
    let node = first.start();
    first.wait_for_state("home", "unlocked");
    first.wait_for_finding("filesystem-in-use");
    (node, other)
}

#[test]
fn what_is_refused_is_not_done_later() {
    let kms = Kms::start(Kind::Embedded);
    let (first, second) = (Place::new(), Place::new());
    let (node, other) = both_have_it(&kms, &first, &second);
    let refused = first.fails(5, &["fs", "delete", "home", "--yes"]);
    assert!(refused.contains("another process or node has it open"), "{refused}");
    assert_ne!(first.json(&["fs", "show", "home"])["state"], "deleting");
    node.stop();
    let node = first.start();
    second.ok(&["fs", "lock", "home"]);
    // Now the first one gets it, and nothing of it is gone.
    first.wait_for_state("home", "unlocked");
    first.ok(&["fs", "verify", "home"]);
    node.stop();
    second.ok(&["fs", "unlock", "home"]);
    second.ok(&["fs", "verify", "home"]);
    other.stop();
}

#[test]
fn the_key_of_who_has_it_stays_its_own() {
    let kms = Kms::start(Kind::Embedded);
    let (first, second) = (Place::new(), Place::new());
    let (node, other) = both_have_it(&kms, &first, &second);
    let header = first.state().join("filesystems/home/coffer.key");
    let before = fs::read(&header).unwrap();
    kms.rotate();
    let partly = first.coffer(&["fs", "kms", "rewrap"]).expect(8);
    assert!(format!("{partly:?}").contains("another process or node has it open"), "{partly:?}");
    assert_eq!(fs::read(&header).unwrap(), before);
    first.coffer(&["fs", "kms", "unset", "--allow-downgrade", "--yes"]).expect(8);
    assert_eq!(fs::read(&header).unwrap(), before);
    node.stop();
    other.stop();
    let _other = second.start();
    second.wait_for_state("home", "unlocked");
    second.ok(&["fs", "kms", "rewrap"]);
    second.ok(&["fs", "verify", "home"]);
}

#[test]
fn what_the_limit_on_open_files_does_not_let_be_held_is_told() {
    let place = Place::new();
    let node = place.start();
    let limit = ["--pid", &node.pid().to_string(), "--nofile=96"];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    for n in 0..60 {
        place.ok(&["fs", "create", &format!("fs-{n}"), "--allow-no-kms"]);
    }
    for n in 0..60 {
        place.ok(&["fs", "ls", &format!("fs-{n}")]);
    }
    place.wait_for_finding("filesystems-not-held");
}

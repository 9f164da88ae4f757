//! Versions of the master key that come and go: what Coffer shows as needed is all that it needs.

use std::time::{Duration, Instant};

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use serde_json::json;

#[test]
fn what_is_not_shown_as_needed_can_be_cut_off() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let _node = place.start();
        place.set_vault(&kms);
        kms.rotate();
        until_needed_from(&place, 1);

        // The first key on the new version takes along what shows that the master key is the same.
        place.ok(&["fs", "create", "home"]);
        until_needed_from(&place, 2);
        kms.configure(&json!({ "min_decryption_version": 2 }));
        place.ok(&["fs", "create", "projects"]);
        place.ok(&["fs", "kms", "rewrap"]);
    }
}

#[test]
fn one_filesystem_s_key_is_rewrapped_alone() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    for fs in ["home", "projects"] {
        place.ok(&["fs", "create", fs]);
    }
    kms.rotate();
    assert_eq!(place.ok(&["fs", "kms", "rewrap", "home"]), "rewrapped the key of home: 1 key\n");
    let version = |fs| place.json(&["fs", "show", fs])["wrapped_by"]["version"].clone();
    assert_eq!((version("home"), version("projects")), (json!(2), json!(1)));
    place.fails(5, &["fs", "kms", "rewrap", "nobody"]);
    place.ok(&["fs", "kms", "rewrap"]);
    assert_eq!(version("projects"), json!(2));
}

#[test]
fn a_master_key_that_nothing_can_prove_is_refused_with_the_cure() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let _node = place.start();
        place.set_vault(&kms);
        kms.rotate();
        kms.configure(&json!({ "min_decryption_version": 2 }));
        let refused = place.fails(4, &["fs", "create", "home"]);
        assert!(refused.contains("set-vault"), "{kind:?}: {refused}");
        place.set_vault(&kms);
        place.ok(&["fs", "create", "home"]);
    }
}

#[test]
fn keys_that_were_cut_off_are_warned_of_and_rewrapped_from_memory() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let node = place.start();
        place.set_vault(&kms);
        place.ok(&["fs", "create", "old"]);
        kms.rotate();
        place.ok(&["fs", "create", "new"]);
        kms.configure(&json!({ "min_decryption_version": 2 }));
        let shown = place.ok(&["fs", "kms"]);
        assert!(
            shown.contains("warning: a node that starts can't unlock old:"),
            "{kind:?}: {shown}"
        );
        place.ok(&["fs", "kms", "rewrap"]);
        assert!(!place.ok(&["fs", "kms"]).contains("warning: a node that starts"), "{kind:?}");
        drop(node);
        let _node = place.start();
        place.ok(&["fs", "unlock", "old"]);
        place.ok(&["fs", "ls", "old"]);
    }
}

/// Waits until the node knows, and says, that this is the oldest version that anything needs.
fn until_needed_from(place: &Place, version: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let shown = place.json(&["fs", "kms"]);
        match shown["configured"]["lowest_needed"].as_u64() {
            Some(needed) => return assert_eq!(needed, version, "{shown}"),
            None => assert!(Instant::now() < deadline, "{shown}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

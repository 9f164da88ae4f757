//! Versions of the master key that come and go: what Coffer shows as needed is all that it needs.

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
        let shown = place.json(&["fs", "kms"]);
        assert_eq!(shown["configured"]["lowest_needed"], 1, "{kind:?}: {shown}");

        // The first key on the new version takes along what shows that the master key is the same.
        place.ok(&["fs", "create", "home"]);
        let shown = place.json(&["fs", "kms"]);
        assert_eq!(shown["configured"]["lowest_needed"], 2, "{kind:?}: {shown}");
        kms.configure(&json!({ "min_decryption_version": 2 }));
        place.ok(&["fs", "create", "projects"]);
        place.ok(&["fs", "kms", "rewrap"]);
    }
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

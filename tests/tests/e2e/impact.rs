//! `fs kms impact`: what is foretold is what happens.

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use serde_json::{Value, json};

/// The names of filesystems in this state.
fn in_state(place: &Place, state: &str) -> Vec<String> {
    let listed = place.json(&["fs", "list"]);
    let all = listed["filesystems"].as_array().unwrap().iter();
    all.filter(|fs| fs["state"] == state)
        .map(|fs| fs["name"].as_str().unwrap().to_owned())
        .collect()
}

#[test]
fn what_is_foretold_happens() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let mut node = place.start();
        place.fails(5, &["fs", "kms", "impact", "--delete-key"]);
        let token = kms.token();
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        for name in ["a", "b"] {
            place.ok(&["fs", "create", name]);
        }
        kms.rotate();
        for name in ["c", "d"] {
            place.ok(&["fs", "create", name]);
        }
        place.ok(&["fs", "lock", "b"]);
        place.ok(&["fs", "lock", "d"]);
        let all = |args: &[&str]| place.json(&[&["fs", "kms", "impact"], args].concat());

        let versions = all(&["--min-version", "2"]);
        assert_eq!(versions["go_on"], json!(["a"]), "{versions}");
        assert_eq!(versions["shut_now"], json!(["b"]), "{versions}");
        assert_eq!(versions["shut_at_start"], json!(["a"]), "{versions}");
        assert_eq!(versions["untouched"], json!(["c", "d"]), "{versions}");
        assert!(!versions["cure"].to_string().contains("rotate"), "{versions}");
        let harmless = all(&["--min-version", "1"]);
        assert!(harmless["cure"].to_string().contains("nothing has to be done"), "{harmless}");
        let beyond = all(&["--min-version", "3"]);
        assert_eq!(beyond["untouched"], json!([]), "{beyond}");
        assert!(beyond["cure"].to_string().contains("rotate the key before"), "{beyond}");
        let token_gone = all(&["--revoke-token"]);
        assert_eq!(token_gone["go_on"], json!(["a", "c"]));
        assert_eq!(token_gone["shut_now"], json!(["b", "d"]));
        assert_eq!(token_gone["shut_at_start"], json!(["a", "c"]));
        assert_eq!(token_gone["stops_wrapping"], true);
        assert_eq!(all(&["--delete-key"])["shut_at_start"], json!(["a", "c"]));

        kms.configure(&json!({ "min_decryption_version": 2 }));
        assert_eq!(in_state(&place, "unlocked"), ["a", "c"]);
        place.fails(4, &["fs", "unlock", "b"]);
        node.stop();
        node = place.start();
        place.wait_for_state("c", "unlocked");
        assert_eq!(in_state(&place, "unlocked"), ["c"]);
        place.ok(&["fs", "unlock", "d"]);
        kms.configure(&json!({ "min_decryption_version": 1 }));
        place.ok(&["fs", "unlock", "a"]);
        // What could not be unlocked stayed as it was.
        assert_eq!(in_state(&place, "unlocked"), ["a", "c", "d"]);

        kms.admin().write("auth/token/revoke", &json!({ "token": token }));
        assert_eq!(in_state(&place, "unlocked"), ["a", "c", "d"]);
        place.fails(4, &["fs", "create", "e"]);
        node.stop();
        let _node = place.start();
        place.wait_for_state("a", "locked");
        assert_eq!(in_state(&place, "unlocked"), [""; 0]);
        let again = kms.admin().token("again", &policy(KEY), &json!({ "period": "1h" }));
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &again]);
        for name in ["a", "c", "d"] {
            place.wait_for_state(name, "unlocked");
        }

        let deleted = all(&["--delete-key"]);
        assert_eq!(deleted["go_on"], json!(["a", "c", "d"]));
        assert!(deleted["cure"].as_str().unwrap().contains("set-vault with another key saves"));
        kms.configure(&json!({ "deletion_allowed": true }));
        kms.admin().delete(&format!("transit/keys/{KEY}"));
        place.fails(4, &["fs", "unlock", "b"]);
        // What is in memory is saved by another key, as it says; what is not is named.
        kms.admin().write("transit/keys/another", &json!({}));
        let other = kms.admin().token("other", &policy("another"), &json!({ "period": "1h" }));
        let set = ["fs", "kms", "set-vault", kms.url(), "another", &other];
        let refused = place.fails(5, &set);
        assert!(refused.contains('b'), "{refused}");
        place.ok(&["fs", "delete", "b", "--yes"]);
        place.ok(&set);
        let shown: Value = place.json(&["fs", "show", "a"]);
        assert_eq!(shown["wrapped_by"]["master_key"], "another", "{shown}");
    }
}

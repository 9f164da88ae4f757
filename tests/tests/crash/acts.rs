//! Acts that are done at once.

use std::fs;

use coffer_tests::node::Place;
use serde_json::json;

use crate::every_step::at_every_step;
use crate::{assert_opens, set_vault, wait_for_jobs, wait_until_settled, words};

#[test]
fn first_configuration() {
    at_every_step(
        "first set-vault",
        20,
        // Its URL and token are known before it is set.
        |place, kms| {
            fs::write(place.path("token"), kms.token()).unwrap();
            fs::write(place.path("url"), kms.url()).unwrap();
        },
        set_as_prepared,
        |place, done| {
            let set = !place.json(&["fs", "kms"])["configured"].is_null();
            assert!(set || !done, "an acknowledged configuration is lost");
            if !set {
                place.ok(&set_as_prepared(place));
            }
            place.ok(&["fs", "create", "new"]);
            assert_opens(place);
        },
    );
}

#[test]
fn another_token() {
    at_every_step(
        "set-vault with another token",
        20,
        |place, kms| {
            place.set_vault(kms);
            place.ok(&["fs", "create", "one"]);
            fs::write(place.path("token"), kms.token()).unwrap();
            fs::write(place.path("url"), kms.url()).unwrap();
        },
        set_as_prepared,
        |place, _| {
            wait_for_jobs(place);
            assert_opens(place);
            assert_eq!(place.json(&["fs", "kms"])["configured"]["problem"], json!(null));
        },
    );
}

#[test]
fn lock() {
    at_every_step(
        "lock",
        10,
        |place, kms| {
            place.set_vault(kms);
            place.ok(&["fs", "create", "one"]);
        },
        |_| words(&["fs", "lock", "one"]),
        |place, done| {
            let locked = is_locked(place);
            assert!(locked || !done, "an acknowledged lock is lost");
            if locked {
                place.ok(&["fs", "unlock", "one"]);
            }
            assert_opens(place);
        },
    );
}

#[test]
fn unlock() {
    at_every_step(
        "unlock",
        10,
        |place, kms| {
            place.set_vault(kms);
            place.ok(&["fs", "create", "one"]);
            place.ok(&["fs", "lock", "one"]);
        },
        |_| words(&["fs", "unlock", "one"]),
        |place, done| {
            let locked = is_locked(place);
            assert!(!(locked && done), "an acknowledged unlocking is lost");
            if locked {
                place.ok(&["fs", "unlock", "one"]);
            }
            assert_opens(place);
        },
    );
}

/// Whether an administrator has locked it.
fn is_locked(place: &Place) -> bool {
    wait_until_settled(place);
    place.json(&["fs", "show", "one"])["state"] == "locked"
}

fn set_as_prepared(place: &Place) -> Vec<String> {
    let read = |name| fs::read_to_string(place.path(name)).unwrap();
    set_vault(&read("url"), &read("token"))
}

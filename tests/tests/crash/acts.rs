//! Acts that are done at once, and a start that has to go on with a job.

use std::fs;
use std::process::Stdio;

use coffer_tests::kms::{KEY, policy};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::json;

use crate::every_step::at_every_step;
use crate::{
    assert_copies, assert_opens, eventually, names, set_vault, versions, wait_for_jobs,
    wait_until_settled, words,
};

/// A master key that a filesystem has of its own.
const OWN: &str = "tenant-a";

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
fn create_under_its_own_key() {
    at_every_step(
        "create under a master key of its own",
        20,
        |place, kms| {
            kms.admin().write(&format!("transit/keys/{OWN}"), &json!({}));
            let token = kms.token_for(&(policy(KEY) + &policy(OWN)));
            place.ok(&set_vault(kms.url(), &token));
        },
        |_| words(&["fs", "create", "new", "--kms-key", OWN]),
        |place, done| {
            let there = names(place).contains(&"new".to_owned());
            assert!(there || !done, "an acknowledged create is lost");
            assert_eq!(place.state().join("filesystems/new").exists(), there);
            if !there {
                place.ok(&["fs", "create", "new", "--kms-key", OWN]);
            }
            let shown = place.wait_for_state("new", "unlocked");
            assert_eq!(shown["wrapped_by"]["master_key"], OWN, "{shown}");
            assert_opens(place);
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

#[test]
fn start_with_a_job() {
    at_every_step(
        "start with a rewrap to go on with",
        40,
        |place, kms| {
            place.set_vault(kms);
            place.ok(&["fs", "create", "one"]);
            place.ok(&["fs", "create", "two"]);
            kms.rotate();
            // Its job hangs until the node is stopped.
            let faults = kms.embedded().faults();
            faults.inject(Fault::Delay { milliseconds: 3_600_000 }.on("transit/rewrap/"));
            let mut rewrap = place.command_line(&["fs", "kms", "rewrap"]);
            let mut rewrap = rewrap.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
            eventually(place, "the rewrap does not begin", || {
                kms.embedded().requests().count("transit/rewrap/").requests > 1
            });
            rewrap.kill().unwrap();
            rewrap.wait().unwrap();
            faults.clear();
        },
        |_| Vec::new(),
        |place, _| {
            wait_for_jobs(place);
            assert_eq!(versions(place), [2, 2]);
            assert_copies(place, "vault:v2:", &["one", "two"]);
            assert_opens(place);
        },
    );
}

fn set_as_prepared(place: &Place) -> Vec<String> {
    let read = |name| fs::read_to_string(place.path(name)).unwrap();
    set_vault(&read("url"), &read("token"))
}

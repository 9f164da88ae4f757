//! A filesystem with a master key of its own, `own`, beside others: two configurations, each with its canary.

use coffer_tests::kms::{KEY, Kms, policy};
use coffer_tests::node::Place;
use serde_json::{Value, json};

use crate::every_step::at_every_step;
use crate::{assert_opens, names, set_vault, wait_until_settled, words};

/// The master key that a filesystem has of its own.
pub(crate) const OWN: &str = "tenant-a";

#[test]
fn create_under_its_own_key() {
    at_every_step(
        "create under a master key of its own",
        20,
        |place, kms| {
            place.ok(&set_vault(kms.url(), &add_own_key(kms)));
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

/// Makes the master key; a token that may use it, and the one for all.
pub(crate) fn add_own_key(kms: &Kms) -> String {
    kms.admin().write(&format!("transit/keys/{OWN}"), &json!({}));
    kms.token_for(&(policy(KEY) + &policy(OWN)))
}

/// These, and `own`; both master keys are rotated.
pub(crate) fn with_own_and_a_rotation(place: &Place, kms: &Kms, others: &[&str]) {
    let token = add_own_key(kms);
    place.ok(&set_vault(kms.url(), &token));
    for name in others {
        place.ok(&["fs", "create", name]);
    }
    place.ok(&["fs", "create", "own", "--kms-key", OWN]);
    kms.rotate();
    kms.admin().write(&format!("transit/keys/{OWN}/rotate"), &json!({}));
}

/// The versions that are needed of the master key for all, and of that of `own`.
pub(crate) fn lowest_needed(place: &Place) -> Vec<u64> {
    let configured = place.json(&["fs", "kms"])["configured"].clone();
    let needed = [&configured["lowest_needed"], &configured["own_keys"][0]["lowest_needed"]];
    needed.into_iter().filter_map(Value::as_u64).collect()
}

/// Each filesystem is unlocked, and hangs on the master key that it has to.
pub(crate) fn assert_each_under_its_own(place: &Place) {
    wait_until_settled(place);
    for fs in place.json(&["fs", "list"])["filesystems"].as_array().unwrap() {
        let master_key = if fs["name"] == "own" { OWN } else { KEY };
        assert_eq!(fs["wrapped_by"]["master_key"], master_key, "{fs}");
        assert_eq!(fs["state"], "unlocked", "{fs}");
    }
}

//! A job that is stopped while its KMS keeps it from going on.

use std::time::Duration;

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::Value;

use crate::every_step::at_every_step_of;
use crate::own_keys::{assert_each_under_its_own, with_own_and_a_rotation};
use crate::starts::left_in_a_rewrap;
use crate::{assert_copies, copy, eventually, is_under_way, versions, wait_for_jobs};

#[test]
fn job_stop() {
    let kms = Kms::start(Kind::Embedded);
    let faults = kms.embedded().faults();
    let prepare = |place: &Place, kms: &Kms| with_own_and_a_rotation(place, kms, &["one"]);
    let place = left_in_a_rewrap(&kms, prepare, Fault::Drop);
    let id = newest_job(&place);
    let hold = || faults.inject(Fault::Drop.on("transit/rewrap/"));
    let stop = |place: &Place| {
        let done = place.coffer(&["job", "stop", &id]).code == 0;
        // It comes to where it looks whether it is to stop: behind the first master key.
        faults.clear();
        while done && works(place) {
            std::thread::sleep(Duration::from_millis(5));
        }
        hold();
        done
    };
    at_every_step_of("job stop", 50, &place, Some(&stop), |place, done| {
        faults.clear();
        wait_for_jobs(place);
        let job = place.json(&["job", "show", &id]);
        let is_stopped = job["state"] == "stopped";
        assert!(is_stopped || (!done && job["state"] == "done"), "{done}: {job}");
        // Whatever it brought along it brought whole.
        eventually(place, "a copy is behind", || copies_are_along(place));
        assert_each_under_its_own(place);
        // The same command goes on with it.
        place.ok(&["fs", "kms", "rewrap"]);
        assert_eq!(place.json(&["job", "show", &id])["state"], "done");
        assert_eq!(versions(place), [2, 2]);
        assert_copies(place, "vault:v2:", &["one", "own"]);
        place.ok(&["fs", "kms", "rehearse"]);
        hold();
    });
}

fn newest_job(place: &Place) -> String {
    let node = place.start();
    let id = place.json(&["job", "list"])["jobs"][0]["id"].as_str().unwrap().to_owned();
    node.kill();
    id
}

/// Whether the node still is at a job. It can be killed at any moment.
fn works(place: &Place) -> bool {
    let answer = place.coffer(&["job", "list", "--json"]);
    let jobs: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(is_under_way))
}

/// Whether each copy has what the store has.
fn copies_are_along(place: &Place) -> bool {
    let versions = versions(place);
    ["one", "own"]
        .iter()
        .zip(versions)
        .all(|(name, version)| copy(place, name).contains(&format!("vault:v{version}:")))
}

//! A rewrap of several batches, killed in each of them: what is recorded is not sent to the KMS again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use coffer_tests::fleet::recovered_filesystems;
use coffer_tests::kill::Watched;
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::{Value, json};

use crate::every_step::tell;
use crate::own_keys::{OWN, add_own_key};
use crate::{assert_copies, is_under_way, set_vault, steps, versions, wait_for_jobs};

/// As many keys as a batch has, and some more.
const BATCH: usize = 1250;
const KEYS: usize = BATCH + 50;

/// Where it is killed: at these steps of the commits (of the job, three batches, two canaries, and the end), and of the copies.
const MOMENTS: [(&str, usize); 13] = [
    ("fsync db", 1),
    ("rename generation", 1),
    ("pwrite64 db", 4),
    ("rename generation", 2),
    ("fsync db", 3),
    ("pwrite64 db", 12),
    ("rename generation", 4),
    ("rename generation", 5),
    ("fsync db", 6),
    ("renameat coffer.key", BATCH / 3),
    ("renameat coffer.key", BATCH + 1),
    ("renameat coffer.key", BATCH + 2),
    ("renameat coffer.key", KEYS + 1),
];

#[test]
fn rewrap_of_several_batches() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::in_memory();
    recovered_filesystems(&place, &kms, KEYS);
    let node = place.start();
    place.ok(&set_vault(kms.url(), &add_own_key(&kms)));
    wait_until_open(&place);
    place.ok(&["fs", "create", "own", "--kms-key", OWN]);
    node.stop();
    let (mut killed, mut recorded) = (0, Vec::new());
    for (newest, (kind, nth)) in (2..).zip(MOMENTS) {
        kms.rotate();
        kms.admin().write(&format!("transit/keys/{OWN}/rotate"), &json!({}));
        killed += usize::from(rewrap_killed_at(&place, kind, nth));
        let (committed, begun) = left(&place, &kms, newest);
        recorded.push(committed);
        goes_on(&place, &kms, newest, committed, begun);
    }
    let mut between = recorded.clone();
    between.retain(|committed| *committed > 0 && *committed <= KEYS);
    between.sort_unstable();
    between.dedup();
    tell(&format!(
        "rewrap of several batches: killed at {killed} of {} moments, with {recorded:?} keys recorded",
        MOMENTS.len()
    ));
    assert!(killed + 2 >= MOMENTS.len(), "{killed}");
    assert_eq!(between, [1, BATCH + 1], "not every batch was the last one");
}

/// Whether it was killed there. It can be over before.
fn rewrap_killed_at(place: &Place, kind: &'static str, nth: usize) -> bool {
    let node = Watched::start_until(place.serve(), move |all| steps::is_nth(all, kind, nth));
    assert!(place.wait_for_socket(), "{}", place.log());
    wait_until_open(place);
    node.arm();
    place.coffer(&["fs", "kms", "rewrap"]);
    node.end()
}

/// How many keys are on record at the newest version, and the job, if it has not ended: what a node finds whose KMS rewraps
/// nothing.
fn left(place: &Place, kms: &Kms, newest: u64) -> (usize, Option<Value>) {
    let never = Fault::Delay { milliseconds: 3_600_000 };
    kms.embedded().faults().inject(never.on("transit/rewrap/"));
    let node = place.start();
    let versions = versions(place);
    assert!(versions.iter().all(|version| [newest - 1, newest].contains(version)), "{versions:?}");
    let jobs = place.json(&["job", "list"])["jobs"].as_array().unwrap().clone();
    node.kill();
    kms.embedded().faults().clear();
    let begun = jobs.into_iter().find(is_under_way);
    (
        versions.iter().filter(|version| **version == newest).count(),
        begun.map(|it| it["id"].clone()),
    )
}

/// The job comes to its end by itself, and asks for nothing but the keys that were not on record.
fn goes_on(place: &Place, kms: &Kms, newest: u64, committed: usize, begun: Option<Value>) {
    let requests = kms.embedded().requests();
    requests.clear();
    let node = place.start();
    place.ok(&["audit", "verify"]);
    wait_for_jobs(place);
    match begun {
        Some(id) => {
            let job = place.json(&["job", "show", id.as_str().unwrap()]);
            assert_eq!(job["state"], "done", "{job}");
        }
        // It was killed before it was recorded, or when it was done.
        None => {
            assert!([0, KEYS + 1].contains(&committed), "{committed}");
            place.ok(&["fs", "kms", "rewrap"]);
        }
    }
    // Each of the others was sent once: they are all at the newest version, and none was taken from memory.
    assert_eq!(versions(place), vec![newest; KEYS + 1]);
    let sent = requests.count("transit/rewrap/").items;
    assert_eq!(sent, (KEYS + 1 - committed) as u64, "{committed} were on record");
    let canaries = requests.count("transit/encrypt/").items;
    assert!(canaries <= 2, "{canaries}");
    wait_until_open(place);
    let is_along =
        |copy: &Path| fs::read_to_string(copy).unwrap().contains(&format!("vault:v{newest}:"));
    for n in 0..KEYS {
        let copy = place.path("backing").join(format!("fs-{n:04}/coffer.key"));
        assert!(is_along(&copy), "{} is behind", copy.display());
    }
    assert_copies(place, &format!("vault:v{newest}:"), &["own"]);
    node.stop();
}

/// Asks seldom: so many are no short answer.
fn wait_until_open(place: &Place) {
    let is_open = || {
        let counts = &place.json(&["status"])["filesystems"];
        counts["unlocked"] == counts["total"]
    };
    while !is_open() {
        std::thread::sleep(Duration::from_millis(100));
    }
}

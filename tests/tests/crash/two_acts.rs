//! Two acts at once, of which one moves keys; the node is killed in the middle of both. Whichever comes first: what was acknowledged is so, no
//! key is lost, and what was begun ends.

use std::cell::Cell;
use std::process::{Child, Stdio};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;
use serde_json::Value;

use crate::every_step::at_steps_of;
use crate::own_keys::{OWN, add_own_key, assert_each_under_its_own, with_own_and_a_rotation};
use crate::{
    assert_copies, assert_rekeyed, contents, copy, eventually, is_under_way, names, set_vault,
    to_be_rekeyed, wait_for_jobs, wait_until_unlocked, words,
};

/// One out of so many steps is one at which it is killed.
const APART: usize = 16;

/// What a key that moves is asked for takes so long that the other act falls into the middle of it.
const SLOW: Fault = Fault::Delay { milliseconds: 400 };

/// When the second act begins.
#[derive(Clone, Copy, PartialEq)]
enum Second {
    /// With the first one.
    AtOnce,
    /// When the job of the first one is under way.
    BesideTheJob,
}

/// Runs both commands on what `prepare` made, and kills the node at some of their steps. `check` is told which of them were acknowledged. The
/// second is refused with 5 where the first one forestalls it.
fn killed_in_both(
    name: &str,
    second: Second,
    prepare: impl Fn(&Place, &Kms),
    acts: [Vec<String>; 2],
    check: impl Fn(&Place, [bool; 2]),
) {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::in_memory();
    let node = place.start();
    prepare(&place, &kms);
    node.stop();
    kms.embedded().faults().inject(SLOW.on("transit/rewrap/"));
    let done = Cell::new([false; 2]);
    let both = |place: &Place| {
        let mut first = begin(place, &acts[0]);
        while second == Second::BesideTheJob
            && first.try_wait().unwrap().is_none()
            && !has_a_job(place)
        {}
        let other = begin(place, &acts[1]);
        let codes = [first, other].map(|mut act| act.wait().unwrap().code().unwrap_or(-1));
        done.set(codes.map(|code| code == 0));
        codes[0] == 0 && [0, 5].contains(&codes[1])
    };
    at_steps_of(name, (APART, 8), &place, Some(&both), |place, _| {
        wait_for_jobs(place);
        check(place, done.replace([false; 2]));
        // Nothing is lost: all of it opens, also at the next start, and is as it was written.
        wait_until_unlocked(place);
        for name in names(place) {
            let verified = place.json(&["fs", "verify", &name]);
            assert_eq!(verified["state"], "done", "{verified}");
        }
        place.ok(&["fs", "kms", "rehearse"]);
        assert_eq!(keys(place), names(place).len() as u64, "a key is left over, or missing");
        place.ok(&["audit", "verify"]);
    });
}

/// How many keys are on record.
fn keys(place: &Place) -> u64 {
    let kms = place.json(&["fs", "kms"]);
    kms["keys"].as_array().unwrap().iter().map(|it| it["keys"].as_u64().unwrap()).sum()
}

fn begin(place: &Place, args: &[String]) -> Child {
    let mut command = place.command_line(args);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Whether one is under way. The node can be killed at any moment.
fn has_a_job(place: &Place) -> bool {
    let answer = place.coffer(&["job", "list", "--json"]);
    let jobs: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
    answer.code != 0 || jobs["jobs"].as_array().is_some_and(|jobs| jobs.iter().any(is_under_way))
}

fn rewrap() -> Vec<String> {
    words(&["fs", "kms", "rewrap"])
}

/// Whether it is there, whole, and not against what was acknowledged.
fn is_made(place: &Place, name: &str, acknowledged: bool) -> bool {
    let there = names(place).iter().any(|it| it == name);
    assert!(there || !acknowledged, "an acknowledged create is lost");
    eventually(place, "what is half made stays", || {
        place.state().join("filesystems").join(name).exists() == there
    });
    there
}

/// Whether it is gone, whole, and not against what was acknowledged.
fn is_gone(place: &Place, name: &str, acknowledged: bool) -> bool {
    let directory = place.state().join("filesystems").join(name);
    let shows = || place.coffer(&["fs", "show", name, "--json"]);
    eventually(place, "it is neither there nor gone", || match shows().code {
        5 => !directory.exists(),
        _ => shows().stdout.contains("\"unlocked\""),
    });
    let gone = shows().code == 5;
    assert!(gone || !acknowledged, "a deleted filesystem is back");
    gone
}

/// All of these are at one version, the newest if a rewrap was acknowledged, and so are their copies.
fn assert_rewrapped(place: &Place, of: &[&str], acknowledged: bool) {
    let version = |name| place.json(&["fs", "show", name])["wrapped_by"]["version"].clone();
    let versions: Vec<_> = of.iter().map(|name| version(*name)).collect();
    let is = |wanted: u64| versions.iter().all(|version| *version == wanted);
    assert!(is(2) || (!acknowledged && is(1)), "{versions:?}");
    assert_copies(place, &format!("vault:v{}:", versions[0]), of);
}

#[test]
fn rewrap_beside_create() {
    killed_in_both(
        "rewrap beside create",
        Second::AtOnce,
        |place, kms| with_own_and_a_rotation(place, kms, &["one", "two"]),
        [rewrap(), words(&["fs", "create", "new", "--kms-key", OWN])],
        |place, [rewrapped, made]| {
            assert_rewrapped(place, &["one", "own", "two"], rewrapped);
            if is_made(place, "new", made) {
                let shown = place.wait_for_state("new", "unlocked");
                assert_eq!(shown["wrapped_by"]["master_key"], OWN, "{shown}");
            } else {
                place.ok(&["fs", "create", "new"]);
            }
        },
    );
}

#[test]
fn rewrap_beside_delete() {
    killed_in_both(
        "rewrap beside delete",
        Second::BesideTheJob,
        |place, kms| with_own_and_a_rotation(place, kms, &["one", "two"]),
        [rewrap(), words(&["fs", "delete", "own", "--yes"])],
        |place, [rewrapped, deleted]| {
            let gone = is_gone(place, "own", deleted);
            let left = if gone { &["one", "two"][..] } else { &["one", "two", "own"] };
            assert_rewrapped(place, left, rewrapped);
            assert_each_under_its_own(place);
        },
    );
}

#[test]
fn move_to_another_kms_beside_delete() {
    let (other, token) = slow_other();
    killed_in_both(
        "move to another KMS beside delete",
        Second::BesideTheJob,
        |place, kms| with_own_and_a_rotation(place, kms, &["one", "two"]),
        [set_vault(other.url(), &token), words(&["fs", "delete", "own", "--yes"])],
        |place, [moved, deleted]| {
            let gone = is_gone(place, "own", deleted);
            let left = if gone { &["one", "two"][..] } else { &["one", "two", "own"] };
            assert_on_one_kms(place, left, moved.then(|| other.url()));
            assert_each_under_its_own(place);
        },
    );
}

#[test]
fn move_to_another_kms_beside_create() {
    let (other, token) = slow_other();
    killed_in_both(
        "move to another KMS beside create",
        Second::BesideTheJob,
        |place, kms| with_own_and_a_rotation(place, kms, &["one"]),
        [set_vault(other.url(), &token), words(&["fs", "create", "new"])],
        |place, [moved, made]| {
            let there = is_made(place, "new", made);
            let all = if there { &["one", "own", "new"][..] } else { &["one", "own"] };
            assert_on_one_kms(place, all, moved.then(|| other.url()));
            assert_each_under_its_own(place);
        },
    );
}

/// A KMS to move to, and a token.
fn slow_other() -> (Kms, String) {
    let other = Kms::start(Kind::Embedded);
    let token = add_own_key(&other);
    let slow = Fault::Delay { milliseconds: 200 };
    other.embedded().faults().inject(slow.on("transit/encrypt/"));
    (other, token)
}

/// All of these hang on the KMS that is set, which is this one if that was acknowledged, and so do their copies.
fn assert_on_one_kms(place: &Place, all: &[&str], acknowledged: Option<&str>) {
    let url = place.json(&["status"])["kms"]["configured"]["base_url"].clone();
    assert!(acknowledged.is_none_or(|other| url == other), "{url}");
    let url = url.as_str().unwrap();
    eventually(place, "a copy tells another KMS", || {
        all.iter().all(|name| copy(place, name).contains(url))
    });
}

#[test]
fn rewrap_beside_rekey() {
    killed_in_both(
        "rewrap beside rekey",
        Second::AtOnce,
        |place, kms| {
            to_be_rekeyed(place, kms);
            place.ok(&["fs", "create", "two"]);
            kms.rotate();
        },
        [rewrap(), words(&["fs", "rekey", "home"])],
        |place, [rewrapped, rekeyed]| {
            assert_rekeyed(place, rekeyed);
            assert_eq!(contents(&place.path("target")), contents(&place.path("source")));
            let shown = place.json(&["fs", "show", "home"]);
            assert_eq!(shown["wrapped_by"]["master_key"], KEY, "{shown}");
            assert_rewrapped(place, &["two"], rewrapped);
            eventually(place, "a copy is behind", || {
                let version = &place.json(&["fs", "show", "home"])["wrapped_by"]["version"];
                copy(place, "home").contains(&format!("vault:v{version}:"))
            });
        },
    );
}

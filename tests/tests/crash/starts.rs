//! Starts that have to go on with what a node left that was killed; each is killed again, at each of its own steps.

use std::process::Stdio;

use coffer_tests::kill::Watched;
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use dev_vault::Fault;

use crate::every_step::at_every_step_of;
use crate::{
    assert_copies, assert_opens, assert_rekeyed, contents, eventually, names, steps, to_be_rekeyed,
    two_and_a_rotation, versions, wait_for_jobs, wait_until_settled, with_an_import,
};

#[test]
fn start_with_a_rewrap() {
    let kms = Kms::start(Kind::Embedded);
    let place =
        left_in_a_rewrap(&kms, two_and_a_rotation, Fault::Delay { milliseconds: 3_600_000 });
    kms.embedded().faults().clear();
    assert_copies(&place, "vault:v1:", &["one", "two"]);
    at_every_step_of("start with a rewrap to go on with", 80, &place, None, |place, _| {
        wait_for_jobs(place);
        assert_eq!(versions(place), [2, 2]);
        assert_copies(place, "vault:v2:", &["one", "two"]);
        assert_opens(place);
    });
}

#[test]
fn start_with_a_rekey() {
    let kms = Kms::start(Kind::Embedded);
    // The blocks of a file are half written.
    let rekey = ["fs", "rekey", "home"];
    let place = left_at(&kms, to_be_rekeyed, &rekey, "syncfs rekey", 3);
    at_every_step_of("start with a rekey to go on with", 120, &place, None, |place, _| {
        assert_rekeyed(place, true);
        assert_eq!(contents(&place.path("target")), contents(&place.path("source")));
    });
}

#[test]
fn start_after_a_create() {
    let kms = Kms::start(Kind::Embedded);
    let create = ["fs", "create", "new"];
    let place = left_at(&kms, Place::set_vault, &create, "syncfs new", 1);
    assert!(place.state().join("filesystems/new").exists());
    at_every_step_of("start after a create that was killed", 50, &place, None, |place, _| {
        eventually(place, "what is half made stays", || {
            names(place).is_empty() && !place.state().join("filesystems/new").exists()
        });
        place.ok(&create);
        assert_opens(place);
    });
}

#[test]
fn start_after_a_delete() {
    let kms = Kms::start(Kind::Embedded);
    let delete = ["fs", "delete", "home", "--yes"];
    let prepare = |place: &Place, kms: &Kms| {
        with_an_import(place, kms);
        place.ok(&["fs", "create", "other", "--allow-no-kms"]);
    };
    let place = left_at(&kms, prepare, &delete, "unlinkat coffer.key", 1);
    assert!(place.state().join("filesystems/home").exists());
    at_every_step_of("start after a delete that was killed", 60, &place, None, |place, _| {
        eventually(place, "what is half deleted stays", || {
            names(place) == ["other"] && !place.state().join("filesystems/home").exists()
        });
        place.wait_for_state("other", "unlocked");
        assert_eq!(place.json(&["fs", "verify", "other"])["state"], "done");
    });
}

/// A place whose node was killed in a rewrap, which this fault holds.
pub(crate) fn left_in_a_rewrap(kms: &Kms, prepare: impl Fn(&Place, &Kms), fault: Fault) -> Place {
    let place = Place::in_memory();
    let node = place.start();
    prepare(&place, kms);
    kms.embedded().faults().inject(fault.on("transit/rewrap/"));
    let requests = || kms.embedded().requests().count("transit/rewrap/").requests;
    let before = requests();
    let mut rewrap = place.command_line(&["fs", "kms", "rewrap"]);
    let mut rewrap = rewrap.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    eventually(&place, "the rewrap does not begin", || requests() > before);
    node.kill();
    rewrap.wait().unwrap();
    place
}

/// A place whose node was killed in a command, at the so many-th step of this kind.
fn left_at(
    kms: &Kms,
    prepare: impl Fn(&Place, &Kms),
    command: &[&str],
    kind: &'static str,
    nth: usize,
) -> Place {
    let place = Place::in_memory();
    let node = place.start();
    prepare(&place, kms);
    node.stop();
    let node = Watched::start_until(place.serve(), move |steps| steps::is_nth(steps, kind, nth));
    assert!(place.wait_for_socket(), "{}", place.log());
    wait_until_settled(&place);
    node.arm();
    place.coffer(command);
    assert!(node.end(), "{command:?} does not come to {kind} ({nth})");
    place
}

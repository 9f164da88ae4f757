//! An act of a node that is killed at each of its steps, those of its audit log too.

use std::fs;
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use coffer_tests::kill::Watched;
use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use serde_json::Value;

use crate::{steps, wait_until_settled};

/// How often a run is tried that does not come to the step at which it is to be killed.
const TRIES: usize = 5;

/// How many steps of an act may be such that none of [`TRIES`] runs came to them: what else a node does at the same time can take a step
/// from the act, or add one to an unbroken run.
const MISSED: usize = 3;

/// How many steps that come by time may be such that not every run takes them: a sync of the audit log is three. Of fifty acts, on a machine with
/// five times the work that it can do at once, one left out eleven, and the others at most eight; of five pairs of acts one left out sixteen.
const LEFT_OUT: usize = 24;

/// How long a node changes nothing that has come to rest. Its audit log is synced sooner.
const AT_REST: Duration = Duration::from_millis(400);

/// Prepares a place with a node, then runs the command that `act` names on it as [`at_every_step_of`] does.
pub(crate) fn at_every_step(
    name: &str,
    least: usize,
    prepare: impl Fn(&Place, &Kms),
    act: impl Fn(&Place) -> Vec<String>,
    check: impl Fn(&Place, bool),
) {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::in_memory();
    let node = place.start();
    prepare(&place, &kms);
    let args = act(&place);
    node.stop();
    // A repair that found something ends with 6, and all else that is done with 0.
    let is_done = |place: &Place| [0, 6].contains(&place.coffer(&args).code);
    at_every_step_of(name, least, &place, Some(&is_done), check);
}

/// Runs `act` on a node in `place`, or a start of it if that is `None`, again and again, each time from what the place holds now: twice
/// unbroken, then killed at each step that either run took, until the node has come to rest after its answer. After each kill a node is started: its audit log has no trouble and all that was acknowledged, and
/// `check` looks at it. `act` answers whether it was acknowledged, and `check` is told. Requires a kill at every step but
/// [`MISSED`], and at least at `least`; tells how many there were, and which were missed.
pub(crate) fn at_every_step_of(
    name: &str,
    least: usize,
    place: &Place,
    act: Option<&dyn Fn(&Place) -> bool>,
    check: impl Fn(&Place, bool),
) {
    at_steps_of(name, (1, least), place, act, check);
}

/// The same, at each so-manieth step of each kind, which are to be at least so many.
pub(crate) fn at_steps_of(
    name: &str,
    (apart, least): (usize, usize),
    place: &Place,
    act: Option<&dyn Fn(&Place) -> bool>,
    check: impl Fn(&Place, bool),
) {
    let recorded = requests_done(place);
    let prepared = place.copy();
    // Killed at the so many-th step of a kind, or never.
    let run = |end: Option<(String, usize)>| {
        place.restore(&prepared);
        let node = Watched::start_until(place.serve(), move |steps| {
            end.as_ref().is_some_and(|(kind, nth)| steps::is_nth(steps, kind, *nth))
        });
        let done = if let Some(act) = act {
            assert!(place.wait_for_socket(), "{}", place.log());
            wait_until_settled(place);
            node.arm();
            act(place)
        } else {
            node.arm();
            while !node.was_killed() && UnixStream::connect(place.socket()).is_err() {
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        };
        wait_for_rest(&node);
        let steps = node.steps();
        let killed = node.end();
        assert!(killed || done || act.is_none(), "{name} failed without a kill:\n{}", place.log());
        (killed, done, steps)
    };
    let checked = |done: bool| {
        assert!(!done || requests_done(place) > recorded, "{name}: it is not on record");
        let node = place.start();
        place.ok(&["audit", "verify"]);
        check(place, done);
        node.stop();
    };
    let unbroken = || steps::counted(&run(None).2);
    let runs = [unbroken(), unbroken()];
    let kinds = steps::of_both(&runs[0], &runs[1]);
    checked(act.is_some());
    let mut left_out = steps::left_out(&runs[0], &runs[1]);
    let (mut covered, mut missed) = (0, Vec::new());
    let each = kinds.iter().flat_map(|(kind, times)| (1..=*times).map(move |nth| (kind, nth)));
    let each: Vec<_> = each.step_by(apart).collect();
    for (kind, nth) in &each {
        let is_covered = (0..TRIES).any(|_| {
            let (killed, done, _) = run(Some(((*kind).clone(), *nth)));
            checked(done);
            killed
        });
        covered += usize::from(is_covered);
        if !is_covered && steps::comes_by_time(kind) {
            left_out += 1;
        } else if !is_covered {
            missed.push(format!("{kind} ({nth})"));
        }
    }
    let all = each.len();
    tell(&format!(
        "{name}: killed at {covered} of {all} steps; missed {missed:?}; left out {left_out} that come by time, and do not in each run"
    ));
    assert!(missed.len() <= MISSED, "{name}: no run came to {missed:?}");
    assert!(left_out <= LEFT_OUT, "{name}: {left_out} steps");
    assert!(covered >= least, "{name}: {covered} steps");
}

/// Past the capture of a test's output: the stage's log tells it.
pub(crate) fn tell(what: &str) {
    std::io::stderr().write_all(format!("crash: {what}\n").as_bytes()).unwrap();
}

/// How many requests that change something are on record as done. No node writes there.
fn requests_done(place: &Place) -> usize {
    let log = fs::read_to_string(place.state().join("audit.jsonl")).unwrap();
    // The last line may be half written.
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    lines.filter(|line| line["action"] == "admin.request" && line["outcome"] == "done").count()
}

/// Waits until the node has been killed, or has nothing more to do.
fn wait_for_rest(node: &Watched) {
    let (mut steps, mut since) = (0, Instant::now());
    while !node.was_killed() && since.elapsed() < AT_REST {
        let now = node.steps().len();
        if now != steps {
            (steps, since) = (now, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

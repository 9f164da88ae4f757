//! No command hangs, whatever the KMS was asked when it fell silent; and a command that was killed leaves nothing half done.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::{Node, Place};
use dev_vault::Fault;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

/// All that Vault is asked in the life of a node.
const PHASES: [&str; 6] = [
    "auth/token/lookup-self",
    "sys/capabilities-self",
    "transit/keys/",
    "transit/encrypt/",
    "transit/decrypt/",
    "transit/rewrap/",
];

/// Many times what a request may take here.
const LONGEST: Duration = Duration::from_secs(40);

/// A node with two filesystems under version 1 of a master key that has two, and another KMS to go to.
struct World {
    kms: Kms,
    other: Kms,
    place: Place,
}

impl World {
    fn new() -> Self {
        let (kms, other) = (Kms::start(Kind::Embedded), Kms::start(Kind::Embedded));
        let place = Place::new();
        fs::write(place.config(), "kms_deadline_seconds = 3\n").unwrap();
        let node = place.start();
        place.set_vault(&kms);
        for name in ["one", "two"] {
            place.ok(&["fs", "create", name]);
        }
        node.stop();
        kms.rotate();
        Self { kms, other, place }
    }

    /// Those that ask the KMS. Each is the last one in a world, or leaves what it found.
    fn commands(&self) -> [Vec<String>; 10] {
        let words = |line: &str| line.split(' ').map(str::to_owned).collect::<Vec<_>>();
        let to = |kms: &Kms| {
            words(&format!("fs kms set-vault {} {KEY} {} --wait 1", kms.url(), kms.token()))
        };
        [
            words("fs kms"),
            words("fs kms check"),
            words("fs kms rehearse"),
            words("fs unlock two"),
            words("fs create new"),
            words("fs kms rewrap one --wait 1"),
            words("fs kms rewrap --wait 1"),
            to(&self.kms),
            to(&self.other),
            words("fs kms unset --allow-downgrade --yes --wait 1"),
        ]
    }

    /// Requires that a node whose KMS is well again has come to an end with whatever was begun, and that all is whole.
    fn assert_whole(&self) {
        let place = &self.place;
        wait_for_requests(place);
        wait_for_jobs(place);
        let list = place.json(&["fs", "list"]);
        let all = list["filesystems"].as_array().unwrap();
        let mut names: Vec<&str> = all.iter().map(|fs| fs["name"].as_str().unwrap()).collect();
        assert!(names.contains(&"one") && names.contains(&"two"), "{list}");
        for name in &names {
            place.ok(&["fs", "unlock", name]);
            place.ok(&["fs", "verify", name]);
        }
        let directories = fs::read_dir(place.state().join("filesystems")).unwrap();
        let mut directories: Vec<String> = directories
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        names.sort_unstable();
        directories.sort_unstable();
        assert_eq!(
            directories, names,
            "a directory without its filesystem, or the other way round"
        );
        // One KMS, or none, wraps them all; and a start now would go well.
        let kinds = all.iter().map(|fs| &fs["wrapped_by"]["kind"]).collect::<Vec<_>>();
        assert!(kinds.windows(2).all(|two| two[0] == two[1]), "{list}");
        place.ok(&["fs", "kms", "rehearse"]);
    }
}

#[test]
fn a_kms_that_falls_silent_in_any_phase_holds_no_command() {
    std::thread::scope(|scope| {
        for phase in PHASES {
            scope.spawn(move || silent_in(phase));
        }
    });
}

/// The job is the node's: the command says how to see and to stop it, and it goes on without anybody's asking.
#[test]
fn a_job_whose_kms_goes_away_ends_its_command_and_goes_on_by_itself() {
    let world = World::new();
    let place = &world.place;
    let _node = place.start();
    place.wait_for_state("two", "unlocked");
    let hang = || Fault::Delay { milliseconds: 3_600_000 };
    let (rewraps, moves) = (world.commands()[6].clone(), world.commands()[8].clone());
    for (command, kms, path, before) in [
        (rewraps, &world.kms, "transit/rewrap/", 0),
        // The proof and the canary come before the keys.
        (moves, &world.other, "transit/encrypt/", 2),
    ] {
        let faults = kms.embedded().faults();
        faults.inject(Fault::Delay { milliseconds: 0 }.on(path).times(before));
        faults.inject(hang().on(path));
        let told = place.fails(3, &command);
        let job = place.json(&["job", "list"])["jobs"][0].clone();
        let id = job["id"].as_str().unwrap();
        for words in ["has not gone on for 1 s", "in time", "job show", "job stop", id] {
            assert!(told.contains(words), "{told}");
        }
        assert_eq!(job["state"], "waiting", "{job}");
        place.wait_for_finding("job-waits");
        faults.clear();
        wait_for_jobs(place);
        assert_eq!(place.json(&["job", "show", id])["state"], "done");
    }
    world.assert_whole();
}

/// A node on which this command has something to do.
fn start_for<'a>(place: &'a Place, command: &[String]) -> Node<'a> {
    let node = place.start();
    for name in ["one", "two"] {
        place.wait_for_state(name, "unlocked");
    }
    if command[1] == "unlock" {
        place.ok(&["fs", "lock", "two"]);
    }
    node
}

fn silent_in(phase: &str) {
    let world = World::new();
    let place = &world.place;
    for command in world.commands() {
        let _node = start_for(place, &command);
        for kms in [&world.kms, &world.other] {
            kms.embedded().faults().inject(Fault::Delay { milliseconds: 3_600_000 }.on(phase));
        }
        let begun = Instant::now();
        let answer = place.coffer(&command);
        let took = begun.elapsed();
        let shown = format!("silent in {phase}, after {took:?}: {answer:?}");
        assert!(took < LONGEST, "{shown}");
        assert!([0, 3].contains(&answer.code), "{shown}");
        assert!(answer.code == 0 || answer.says_what_to_do(), "{shown}");
        // What asks no KMS is not held up by one that is silent.
        let begun = Instant::now();
        place.ok(&["status"]);
        place.ok(&["job", "list"]);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} {shown}", begun.elapsed());
        for kms in [&world.kms, &world.other] {
            kms.embedded().faults().clear();
        }
        world.assert_whole();
    }
}

#[test]
fn a_command_that_is_killed_in_any_phase_leaves_nothing_half_done() {
    let killed = std::thread::scope(|scope| {
        let all_phases = |signal| {
            let world = World::new();
            PHASES.map(|phase| killed_in(&world, phase, signal))
        };
        [Signal::SIGINT, Signal::SIGKILL]
            .map(|signal| scope.spawn(move || all_phases(signal)))
            .map(|killing| killing.join().unwrap())
    });
    assert!(killed.as_flattened().iter().all(|killed| *killed > 0), "{killed:?}");
}

/// Kills each command that comes to this phase, there. Answers how many did.
fn killed_in(world: &World, phase: &str, signal: Signal) -> usize {
    let place = &world.place;
    let mut killed = 0;
    for command in world.commands() {
        let _node = start_for(place, &command);
        for kms in [&world.kms, &world.other] {
            kms.rotate();
            kms.embedded().requests().clear();
            kms.embedded().faults().inject(Fault::Delay { milliseconds: 500 }.on(phase));
        }
        let mut child = place.command_line(&command);
        let child = child.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = child.spawn().unwrap();
        let asked = || {
            let count = |kms: &Kms| kms.embedded().requests().count(phase).requests;
            count(&world.kms) + count(&world.other) > 0
        };
        while !asked() && child.try_wait().unwrap().is_none() {
            std::thread::sleep(Duration::from_millis(1));
        }
        if child.try_wait().unwrap().is_none() {
            kill(Pid::from_raw(child.id().cast_signed()), signal).unwrap();
            killed += 1;
        }
        child.wait().unwrap();
        for kms in [&world.kms, &world.other] {
            kms.embedded().faults().clear();
        }
        if place.json(&["fs", "kms"])["configured"].is_null() {
            place.set_vault(&world.kms);
        }
        world.assert_whole();
        let made = place.json(&["fs", "list"])["filesystems"].as_array().unwrap().len() == 3;
        if made {
            place.ok(&["fs", "delete", "new", "--yes"]);
        }
    }
    killed
}

/// Waits until the node has come to the end of every request, also of one that nobody waits for any more: the audit log has its begin and
/// its end.
fn wait_for_requests(place: &Place) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let lines = place.json(&["audit", "show", "--action", "admin.request", "--lines", "1000"]);
        let events = lines["lines"].as_array().unwrap();
        let begun = events.iter().filter(|event| event["outcome"] == "begun").count();
        if 2 * begun == events.len() {
            return;
        }
        assert!(Instant::now() < deadline, "a request does not end: {lines}\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn wait_for_jobs(place: &Place) {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let jobs = place.json(&["job", "list"]);
        let under_way = |job: &Value| {
            ["running", "waiting", "stopping"].map(Value::from).contains(&job["state"])
        };
        if !jobs["jobs"].as_array().unwrap().iter().any(under_way) {
            return;
        }
        assert!(Instant::now() < deadline, "a job does not end: {jobs}\n{}", place.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

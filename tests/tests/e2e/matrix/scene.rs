//! A node, its KMS and another one; all of it is put back before each cell.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms};
use coffer_tests::node::{Answer, Place};
use serde_json::{Value, json};
use testkit::tree;

use super::operations::{Operation, words};
use super::states::State;
use super::table::{Kept, Row, Table};
use super::vault::{OWN, Vault, Way};

/// How long a command may take, and what goes on by itself.
const LONGEST: Duration = Duration::from_secs(40);

/// Within which what goes on when it is asked for goes on without that. Not all of the machine is this node's.
const A_MINUTE: Duration = Duration::from_secs(60 + 40);

/// Longer than a node waits between two tries of what waits for its KMS, so that what it would still do shows.
const QUIET: Duration = Duration::from_millis(1200);

pub(crate) struct Scene {
    pub(crate) vault: Vault,
    pub(crate) other: Kms,
    pub(crate) place: Place,
    /// Whether what goes on when it is asked for is.
    asks_again: bool,
    /// What is restored.
    prepared: Place,
}

impl Scene {
    /// Two filesystems, of which the first has files in it, under version 1 of a master key that has two.
    pub(crate) fn over(vault: Vault) -> Self {
        let (other, place) = (Kms::start(Kind::Embedded), Place::in_memory());
        fs::write(place.config(), "kms_deadline_seconds = 9\n").unwrap();
        if let Some(door) = &vault.door {
            fs::write(place.path("ca"), door.certificate()).unwrap();
        }
        let (asks_again, prepared) = (true, Place::in_memory());
        let mut scene = Self { vault, other, place, asks_again, prepared };
        tree::small_files(scene.source().as_ref(), 5).unwrap();
        let node = scene.place.start();
        let mut set = words(&format!("fs kms set-vault {} {KEY}", scene.vault.url()));
        set.extend(scene.vault.credential());
        set.extend(scene.ca().into_iter().flat_map(|ca| ["--ca-cert".to_owned(), ca]));
        scene.place.ok(&set);
        scene.place.ok(&["fs", "create", "one"]);
        scene.place.ok(&["fs", "create", "two"]);
        scene.place.ok(&["fs", "import", "one", &scene.source()]);
        node.stop();
        scene.vault.ask("POST", &format!("transit/keys/{KEY}/rotate"), json!({}));
        scene.vault.save();
        scene.prepared = scene.place.copy();
        scene
    }

    /// One where what goes on when it is asked for is left to do so by itself.
    pub(crate) fn that_asks_once(self) -> Self {
        Self { asks_again: false, ..self }
    }

    /// Runs these operations in the state, one after the other on one node, and gives what was not as the table says.
    pub(crate) fn play(
        &mut self,
        state: &State,
        operations: &[&Operation],
        table: &Table,
    ) -> Vec<String> {
        self.vault.restore();
        self.place.restore(&self.prepared);
        let first = operations[0];
        let mut node = self.place.start();
        self.wait_until_open();
        (first.before)(self);
        if first.at_a_start {
            node.kill();
            // What the preparation did to it, too.
            self.vault.restore();
            (state.begin)(&mut self.vault);
            node = self.place.start();
            self.wait_until_settled();
        } else {
            (state.begin)(&mut self.vault);
        }
        let (mut wrong, at_first) = (Vec::new(), self.records());
        for operation in operations {
            let before = self.records();
            let command = (operation.command)(self);
            let begun = Instant::now();
            let mut answer = self.place.coffer(&command);
            let took = begun.elapsed();
            // A job that waits runs for a moment whenever it tries again.
            while answer.stdout.contains("state:       runs") && begun.elapsed() < LONGEST {
                answer = self.place.coffer(&command);
            }
            let Some(row) = table.cell(state.name, operation.name) else {
                wrong.push(told(state, operation, "it has no cell", &answer));
                continue;
            };
            if took > LONGEST {
                wrong.push(told(state, operation, &format!("it took {took:?}"), &answer));
            }
            if let Some(other) = differs(row, &answer) {
                wrong.push(told(state, operation, &other, &answer));
            }
            if row.kept == Kept::Nothing && self.records() != before {
                wrong.push(told(state, operation, "something has changed", &answer));
            }
            if row.kept == Kept::Done && !(operation.is_done)(self) {
                wrong.push(told(state, operation, "it is not done", &answer));
            }
            if operation.gentle {
                continue;
            }
            if !(operation.mends && row.kept == Kept::Done) {
                self.vault.restore();
                self.tell_the_node();
            }
            if let Err(why) = self.is_kept(operation, row.kept, &before) {
                let log = self.place.log();
                let log: Vec<&str> = log.lines().rev().take(15).collect();
                let log = log.into_iter().rev().collect::<Vec<_>>().join("\n      ");
                wrong.push(told(state, operation, &format!("{why}\n      {log}"), &answer));
            }
        }
        if first.gentle {
            self.vault.restore();
            self.tell_the_node();
            if let Err(why) = self.stays(&at_first) {
                wrong.push(format!("{} × {}…: {why}", state.name, first.name));
            }
        }
        if let Err(why) = self.is_whole() {
            wrong.push(format!("{} × {}…: {why}", state.name, first.name));
        }
        node.kill();
        wrong
    }

    /// The KMS is well again: a node whose login was refused would not log in for some minutes, but for a check.
    fn tell_the_node(&self) {
        if self.vault.way == Way::Login {
            self.place.coffer(&["fs", "kms", "check"]);
        }
    }

    /// Whether what the table promises of the time after is so, now that the KMS is well again.
    fn is_kept(&self, operation: &Operation, kept: Kept, before: &Value) -> Result<(), String> {
        let is_done = || (operation.is_done)(self);
        match kept {
            Kept::Nothing => self.stays(before),
            Kept::Done if is_done() => Ok(()),
            Kept::Done => Err("it is not done any more".to_owned()),
            Kept::GoesOn if eventually(is_done) => Ok(()),
            Kept::GoesOn => Err(format!("it does not go on: {}", self.records())),
            Kept::GoesOnWhenAsked if !self.asks_again => match within(A_MINUTE, is_done) {
                true => Ok(()),
                false => Err(format!("it does not go on by itself: {}", self.records())),
            },
            Kept::GoesOnWhenAsked => {
                let again = self.place.coffer(&(operation.again)(self));
                match again.code == 0 && eventually(is_done) {
                    true => Ok(()),
                    false => Err(format!("it does not go on: {again:?}")),
                }
            }
        }
    }

    /// Whether all is as before once the node has seen that its KMS is well, and stays so.
    fn stays(&self, before: &Value) -> Result<(), String> {
        let problem = || self.place.json(&["fs", "kms"])["configured"]["problem"].clone();
        if !eventually(|| problem().is_null()) {
            return Err(format!("the KMS is not found well again: {}", problem()));
        }
        let until = Instant::now() + QUIET;
        while Instant::now() < until {
            if self.records() != *before {
                return Err(format!("it has changed later: {before} is now {}", self.records()));
            }
            std::thread::sleep(QUIET / 4);
        }
        Ok(())
    }

    /// Whether all opens from what lies on disk.
    fn is_whole(&self) -> Result<(), String> {
        let rehearsal = self.place.coffer(&["fs", "kms", "rehearse"]);
        match rehearsal.code == 0 {
            true => Ok(()),
            false => Err(format!("all is well again, and not whole: {rehearsal:?}")),
        }
    }

    /// What is on record: filesystems and what wraps them, the KMS, jobs that have not ended; and what lies in the state directory.
    fn records(&self) -> Value {
        let kms = &self.place.json(&["status"])["kms"]["configured"];
        let kms = ["id", "base_url", "master_key"].map(|field| kms[field].clone());
        let filesystems: Vec<Value> = self
            .filesystems()
            .into_iter()
            .map(|mut fs| {
                // The words differ with what the last try met.
                fs.as_object_mut().unwrap().remove("problem");
                fs
            })
            .collect();
        let mut lies: Vec<String> = [self.place.state(), self.place.state().join("filesystems")]
            .iter()
            .flat_map(|directory| fs::read_dir(directory).unwrap())
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .collect();
        lies.sort();
        json!({ "kms": kms, "filesystems": filesystems, "jobs": self.unfinished_jobs(), "lies": lies })
    }

    pub(crate) fn filesystems(&self) -> Vec<Value> {
        self.place.json(&["fs", "list"])["filesystems"].as_array().unwrap().clone()
    }

    pub(crate) fn state_of(&self, name: &str) -> String {
        let all = self.filesystems();
        let found = all.iter().find(|fs| fs["name"] == name);
        found.map_or("none", |fs| fs["state"].as_str().unwrap()).to_owned()
    }

    /// Whether it is unlocked and hangs on the master key that it has of its own.
    pub(crate) fn is_under_own(&self, name: &str) -> bool {
        let all = self.filesystems();
        let found = all.iter().find(|fs| fs["name"] == name);
        found.is_some_and(|fs| fs["state"] == "unlocked" && fs["wrapped_by"]["master_key"] == OWN)
    }

    pub(crate) fn versions(&self) -> Vec<u64> {
        let all = self.filesystems();
        all.iter().map(|fs| fs["wrapped_by"]["version"].as_u64().unwrap()).collect()
    }

    /// `null` while none is set.
    pub(crate) fn kms_url(&self) -> Value {
        self.place.json(&["status"])["kms"]["configured"]["base_url"].clone()
    }

    fn unfinished_jobs(&self) -> Vec<Value> {
        let jobs = self.place.json(&["job", "list"])["jobs"].as_array().unwrap().clone();
        let ended = |job: &Value| {
            ["stopped", "done", "partly", "failed"].map(Value::from).contains(&job["state"])
        };
        jobs.into_iter().filter(|job| !ended(job)).map(|job| job["id"].clone()).collect()
    }

    /// Whether a command succeeds.
    pub(crate) fn answers(&self, line: &str) -> bool {
        self.place.coffer(&words(line)).code == 0
    }

    /// What is imported.
    pub(crate) fn source(&self) -> String {
        self.place.path("source").to_str().unwrap().to_owned()
    }

    /// The certificate of the KMS, if it has one.
    pub(crate) fn ca(&self) -> Option<String> {
        let ca = self.place.path("ca");
        ca.exists().then(|| ca.to_str().unwrap().to_owned())
    }

    /// Has the node begin a rewrap that it does not come to the end of, so that the next one finds the job.
    pub(crate) fn begin_a_rewrap(&self) {
        self.vault.hold_rewraps();
        let mut command = self.place.command_line(&["fs", "kms", "rewrap"]);
        let mut command = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        assert!(eventually(|| !self.unfinished_jobs().is_empty()));
        command.kill().unwrap();
        command.wait().unwrap();
    }

    /// The one that was begun last.
    pub(crate) fn job(&self) -> Value {
        self.place.json(&["job", "list"])["jobs"][0].clone()
    }

    /// A command to this job.
    pub(crate) fn to_the_job(&self, command: &str) -> Vec<String> {
        words(&format!("job {command} {}", self.job()["id"].as_str().unwrap()))
    }

    fn wait_until_open(&self) {
        for name in ["one", "two"] {
            self.place.wait_for_state(name, "unlocked");
        }
    }

    /// Waits until a node that has just started has tried what it can.
    fn wait_until_settled(&self) {
        let tried = |fs: &Value| fs["state"] == "unlocked" || fs["problem"]["code"] != "not-tried";
        assert!(eventually(|| self.filesystems().iter().all(tried)));
        assert!(eventually(|| {
            let jobs = self.place.json(&["job", "list"])["jobs"].as_array().unwrap().clone();
            jobs.iter().all(|job| job["state"] != "running")
        }));
    }
}

pub(crate) fn eventually(holds: impl Fn() -> bool) -> bool {
    within(LONGEST, holds)
}

pub(crate) fn within(time: Duration, holds: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !holds() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    true
}

/// How an answer is not as the row says.
fn differs(row: &Row, answer: &Answer) -> Option<String> {
    let said = format!("{}{}", answer.stdout, answer.stderr);
    if answer.code != row.exit {
        return Some(format!("it ends with {} instead of {}", answer.code, row.exit));
    }
    if let Some(missing) = row.says.iter().find(|words| !said.contains(*words)) {
        return Some(format!("it does not say {missing:?}"));
    }
    (answer.code != 0 && !answer.says_what_to_do()).then(|| "it does not say what to do".to_owned())
}

fn told(state: &State, operation: &Operation, what: &str, answer: &Answer) -> String {
    let said = format!("{}{}", answer.stdout, answer.stderr).replace('\n', "\n      ");
    format!("{} × {}: {what}\n    {} {said}", state.name, operation.name, answer.code)
}

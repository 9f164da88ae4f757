//! A start that is rehearsed: the node copies its key store and has another process open every key in the copy, with
//! nothing in memory and by the parts that a node starts with.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use admin_api::{Exit, Problem};
use async_trait::async_trait;
use cli::Console;
use daemon::{AuditLog, Rehearse};
use filesystem::BackingLocks;
use key_manager::{KeyManager, KmsOverview, Rehearsal};
use kms_core::{AuditEvent, AuditSink, Clock as _, Outcome, SystemClock};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::parts;
use crate::store::{self, NotedStore};

const TITLE: &str = "the start can't be rehearsed";
const TOO_SLOW: &str = "rehearsal-too-slow";

/// What the audit log calls what is done to keys here, and to which.
const PROVE: &str = "key.prove";
const SUBJECT: &str = "rehearsal of a start";

/// How long the other process may take to look at all: it meets the KMS's deadlines and disks that do not answer.
const WITHIN: Duration = Duration::from_secs(110);
/// When it is given up. By then it has said what it came to.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(120);
/// The longest time for one request to the KMS: one that is silent is to be told of before the time is over.
const LONGEST_REQUEST: Duration = Duration::from_secs(30);

/// What copies of the store begin with. One that a killed node left is removed at the next start.
const COPY: &str = "rehearsal-";

/// Rehearsals of the node in this state directory.
#[derive(Debug)]
pub(crate) struct Rehearsals {
    pub(crate) store: Arc<NotedStore>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) state_dir: PathBuf,
    pub(crate) kms_deadline: Duration,
}

#[async_trait]
impl Rehearse for Rehearsals {
    async fn rehearse(&self) -> Result<Rehearsal, Problem> {
        let failed = |why: String, cure: &str| {
            Problem::new(Exit::Failed, "rehearsal-failed", TITLE, why)
                .cure(format!("{cure}, and try again; the node itself is not touched"))
        };
        const ROOM: &str = "make room for a copy of the key store in the state directory";
        const PROCESS: &str = "see to it that a process can be started and has memory";
        let copy = tempfile::Builder::new().prefix(COPY).tempdir_in(&self.state_dir);
        let copy = copy.map_err(|e| failed(e.to_string(), ROOM))?;
        let (store, to) = (Arc::clone(&self.store), copy.path().to_owned());
        let copied = spawn_blocking(move || store.copy_to(&to)).await;
        let copied = copied.map_err(|e| failed(e.to_string(), ROOM))?;
        copied.map_err(|e| failed(e.to_string(), ROOM))?;
        // The very program that runs, also when its file has been replaced.
        let process = Command::new("/proc/self/exe")
            .arg(cli::RehearseStore::NAME)
            .arg("--store")
            .arg(copy.path())
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--kms-deadline-seconds")
            .arg(self.kms_deadline.min(LONGEST_REQUEST).as_secs().to_string())
            .arg("--within-seconds")
            .arg(WITHIN.as_secs().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn();
        let mut process = process.map_err(|e| failed(e.to_string(), PROCESS))?;
        // It ends with the node, whichever way that ends: then nobody holds this.
        let _alive = process.stdin.take();
        let ended = timeout(GIVEN_UP_AFTER, process.wait_with_output()).await.map_err(|_| {
            self.record_untold();
            Problem::new(
                Exit::Failed,
                TOO_SLOW,
                TITLE,
                "the process that rehearses does not come to its end",
            )
            .cure("a disk may not answer: look at those of the state directory and of the backing directories (coffer status), and try again; the node itself is not touched")
        })?;
        let ended = ended.map_err(|e| failed(e.to_string(), PROCESS))?;
        match serde_json::from_slice::<Told>(&ended.stdout) {
            Ok(Told { rehearsal, uses }) => {
                uses.iter().for_each(|event| self.audit.record(event));
                rehearsal
            }
            Err(_) => {
                self.record_untold();
                let (said, status) = (String::from_utf8_lossy(&ended.stderr), ended.status);
                let said = said.trim();
                let why = format!("the process that rehearses ended with {status}: {said}");
                Err(failed(why, PROCESS))
            }
        }
    }
}

impl Rehearsals {
    /// The process did not live to say what it used.
    fn record_untold(&self) {
        self.audit.record(&untold("the process that rehearsed did not come to its end: which keys it opened only the KMS's log tells"));
    }
}

fn untold(why: &str) -> AuditEvent {
    AuditEvent {
        at: SystemClock.now(),
        action: PROVE.to_owned(),
        subject: SUBJECT.to_owned(),
        outcome: Outcome::Failed,
        who: None,
        key: None,
        requests: Vec::new(),
        detail: why.to_owned(),
    }
}

/// What the process that rehearses says.
#[derive(Serialize, Deserialize)]
struct Told {
    rehearsal: Result<Rehearsal, Problem>,
    /// What it used of keys, which the node records.
    uses: Vec<AuditEvent>,
}

/// Removes copies that a killed node left.
pub(crate) fn remove_leftovers(state_dir: &Path) {
    for entry in fs::read_dir(state_dir).into_iter().flatten().filter_map(Result::ok) {
        if entry.file_name().to_string_lossy().starts_with(COPY)
            && let Err(error) = fs::remove_dir_all(entry.path())
        {
            tracing::warn!(%error, copy = %entry.path().display(), "a copy of the key store can't be removed");
        }
    }
}

/// Is the process that rehearses: answers on stdout what would come of a start.
pub(crate) fn run(
    arguments: &cli::RehearseStore,
    console: &mut Console<'_>,
) -> Result<Exit, Problem> {
    let failed = |e: &dyn std::fmt::Display| {
        Problem::new(Exit::Failed, "rehearsal-failed", TITLE, e.to_string())
            .cure("try again; the node itself is not touched")
    };
    daemon::harden().map_err(|e| failed(&e))?;
    end_with_the_node();
    let runtime = crate::runtime()?;
    let told = runtime.block_on(rehearse(arguments));
    // A disk that does not answer holds its thread, and the answer would wait for it.
    runtime.shutdown_background();
    let text = serde_json::to_string(&told).map_err(|e| failed(&e))?;
    console.show(&text);
    Ok(Exit::Done)
}

/// Ends this process once the node does not hold the other end of its stdin any more.
fn end_with_the_node() {
    thread::spawn(|| {
        let _ = io::copy(&mut io::stdin().lock(), &mut io::sink());
        std::process::exit(i32::from(Exit::Failed.code()));
    });
}

async fn rehearse(arguments: &cli::RehearseStore) -> Told {
    let uses = Arc::new(Uses::default());
    let rehearsal = rehearse_with(arguments, Arc::clone(&uses)).await;
    Told { rehearsal, uses: uses.take() }
}

async fn rehearse_with(
    arguments: &cli::RehearseStore,
    uses: Arc<Uses>,
) -> Result<Rehearsal, Problem> {
    const REFUSED: &str = "a node that starts now would refuse its key store";
    let of_keys = |e| daemon::of_keys(REFUSED, &e);
    let store = store::open(&arguments.store).map_err(|refused| {
        let mut problem = refused.problem(REFUSED, &arguments.state_dir);
        // The copy is gone when this is read.
        let [copy, own] =
            [&arguments.store, &arguments.state_dir].map(|dir| dir.display().to_string());
        problem.detail = problem.detail.replace(&copy, &own);
        problem
    })?;
    let (store, locks) = (Arc::new(store), BackingLocks::default());
    let deadline = Duration::from_secs(arguments.kms_deadline_seconds);
    let recorded = Arc::clone(&uses) as _;
    let manager = parts::key_manager(&arguments.state_dir, store, &locks, recorded, deadline);
    let within = Duration::from_secs(arguments.within_seconds);
    let rehearsal = match timeout(within, manager.rehearse()).await {
        Ok(rehearsal) => rehearsal.map_err(of_keys),
        Err(_) => {
            uses.record(&untold(
                "the time of the rehearsal was over: what it asked last only the KMS's log tells",
            ));
            Err(too_slow(&manager, within).await)
        }
    };
    manager.leave().await;
    rehearsal
}

/// Not all could be looked at in this time.
async fn too_slow(manager: &KeyManager, within: Duration) -> Problem {
    let seconds = within.as_secs();
    match manager.kms_recorded().await {
        Ok(KmsOverview { config: Some((config, _)), .. }) => Problem::new(
            Exit::KmsUnreachable,
            TOO_SLOW,
            TITLE,
            format!(
                "the KMS at {}, or the disk of a backing directory, is too slow: not all was looked at within {seconds} s",
                config.address
            ),
        )
        .cure("see whether the KMS answers in time (coffer fs kms check) and the backing directories are in reach (coffer status), and try again; the node itself is not touched"),
        _ => Problem::new(
            Exit::Failed,
            TOO_SLOW,
            TITLE,
            format!("a disk is too slow: not all was looked at within {seconds} s"),
        )
        .cure("see whether the backing directories are in reach (coffer status), and try again; the node itself is not touched"),
    }
}

/// What was used of keys. They are opened to see whether they open, so one line tells of all of them.
#[derive(Debug, Default)]
struct Uses(Mutex<Vec<AuditEvent>>);

impl Uses {
    fn take(&self) -> Vec<AuditEvent> {
        let events = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let (opened, mut uses): (Vec<_>, Vec<_>) =
            events.into_iter().partition(|event| event.action == "key.unwrap");
        let Some(last) = opened.last().cloned() else { return uses };
        let done = opened.iter().filter(|event| event.outcome == Outcome::Done).count();
        let mut requests: Vec<_> = opened.iter().flat_map(|event| event.requests.clone()).collect();
        requests.dedup();
        uses.push(AuditEvent {
            action: PROVE.to_owned(),
            subject: SUBJECT.to_owned(),
            outcome: if done > 0 { Outcome::Done } else { Outcome::Failed },
            key: None,
            requests,
            detail: format!(
                "whether a node that starts opens them: {done} of {} opened",
                opened.len()
            ),
            ..last
        });
        uses
    }
}

impl AuditSink for Uses {
    fn record(&self, event: &AuditEvent) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(event.clone());
    }
}

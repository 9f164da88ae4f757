//! A start that is rehearsed: the node copies its key store and has another process open every key in the copy, with
//! nothing in memory and by the parts that a node starts with.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use admin_api::{Exit, Problem};
use async_trait::async_trait;
use cli::Console;
use daemon::{AuditLog, Rehearse};
use filesystem::BackingLocks;
use key_manager::Rehearsal;
use kms_core::{AuditEvent, AuditSink, Clock as _, Outcome, SystemClock};
use serde::{Deserialize, Serialize};
use tokio::process::Command;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::parts;
use crate::store::{self, NotedStore};

const TITLE: &str = "the start can't be rehearsed";

/// What the audit log calls what is done to keys here, and to which.
const PROVE: &str = "key.prove";
const SUBJECT: &str = "rehearsal of a start";

/// How long the other process may take: it meets the KMS's deadlines and disks that do not answer.
const WITHIN: Duration = Duration::from_secs(120);

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
        let failed = |why: String| {
            Problem::new(Exit::Failed, "rehearsal-failed", TITLE, why)
                .cure("make room for a copy of the key store in the state directory, and try again; the node itself is not touched")
        };
        let copy = tempfile::Builder::new().prefix(COPY).tempdir_in(&self.state_dir);
        let copy = copy.map_err(|e| failed(e.to_string()))?;
        let (store, to) = (Arc::clone(&self.store), copy.path().to_owned());
        let copied = spawn_blocking(move || store.copy_to(&to)).await;
        copied.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
        // The very program that runs, also when its file has been replaced.
        let process = Command::new("/proc/self/exe")
            .arg(cli::RehearseStore::NAME)
            .arg("--store")
            .arg(copy.path())
            .arg("--state-dir")
            .arg(&self.state_dir)
            .arg("--kms-deadline-seconds")
            .arg(self.kms_deadline.as_secs().to_string())
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output();
        let ended = timeout(WITHIN, process).await.map_err(|_| {
            self.record_untold();
            failed("the process that rehearses does not come to its end".to_owned())
        })?;
        let ended = ended.map_err(|e| failed(e.to_string()))?;
        match serde_json::from_slice::<Told>(&ended.stdout) {
            Ok(Told { rehearsal, uses }) => {
                uses.iter().for_each(|event| self.audit.record(event));
                rehearsal
            }
            Err(_) => {
                self.record_untold();
                let (said, status) = (String::from_utf8_lossy(&ended.stderr), ended.status);
                let said = said.trim();
                Err(failed(format!("the process that rehearses ended with {status}: {said}")))
            }
        }
    }
}

impl Rehearsals {
    /// The process did not live to say what it used.
    fn record_untold(&self) {
        self.audit.record(&AuditEvent {
            at: SystemClock.now(),
            action: PROVE.to_owned(),
            subject: SUBJECT.to_owned(),
            outcome: Outcome::Failed,
            who: None,
            key: None,
            requests: Vec::new(),
            detail: "the process that rehearsed did not come to its end: which keys it opened only the KMS's log tells".to_owned(),
        });
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
    let told = crate::runtime()?.block_on(rehearse(arguments));
    let text = serde_json::to_string(&told).map_err(|e| failed(&e))?;
    console.show(&text);
    Ok(Exit::Done)
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
    let manager = parts::key_manager(&arguments.state_dir, store, &locks, uses, deadline);
    let rehearsal = manager.rehearse().await;
    manager.leave().await;
    rehearsal.map_err(of_keys)
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

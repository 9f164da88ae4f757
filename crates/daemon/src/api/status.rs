//! `/v1/status`

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;

use admin_api::{BytePath, FilesystemCounts, Finding, Job, JobKind, Problem, Status, paths};
use axum::Json;
use axum::extract::State;
use key_manager::{FilesystemName, FilesystemStatus, KeyState, LockReason};
use rustix::fs::{StatVfsMountFlags, statvfs};

use super::filesystems::is_unlocking;
use super::{Answer, kms};
use crate::open::Unheld;
use crate::strangers::Stranger;
use crate::{Shared, problem};

/// With less room on its disk the node soon can't record what it does.
const LITTLE_ROOM: u64 = 16 << 20;

/// Answers from what is known here; asks no KMS.
#[utoipa::path(
    get,
    path = paths::STATUS,
    operation_id = "getStatus",
    tag = "node",
    responses((status = 200, description = "The state", body = Status)),
)]
pub(crate) async fn show(State(shared): State<Arc<Shared>>) -> Answer<Status> {
    Ok(Json(status(&shared).await?.0))
}

/// The node's state, and the jobs that it counts.
pub(super) async fn status(shared: &Shared) -> Result<(Status, Vec<Job>), Problem> {
    let of_keys = |e| problem::of_keys("the node's state can't be read", &e);
    let (statuses, in_use) = shared.manager.survey().await.map_err(of_keys)?;
    let count = |is: fn(&KeyState) -> bool| statuses.iter().filter(|fs| is(&fs.key)).count() as u64;
    let filesystems = FilesystemCounts {
        total: statuses.len() as u64,
        unlocked: count(|key| matches!(key, KeyState::Unlocked)),
        locked: count(|key| matches!(key, KeyState::Locked(_)) && !is_unlocking(key)),
        unlocking: count(is_unlocking),
        deleting: count(|key| matches!(key, KeyState::Deleting(_))),
        exposed: statuses.iter().filter(|fs| fs.exposed).count() as u64,
    };
    let seen = shared.health.seen().await.map_err(of_keys)?;
    let jobs = shared.jobs.unfinished().await.map_err(of_keys)?;
    let status = Status {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        pid: std::process::id(),
        started_at: shared.started_at.0,
        state_dir: shared.state_dir.as_path().into(),
        filesystems,
        jobs_running: jobs.len() as u64,
        kms: kms::view(shared, &seen, &statuses, &in_use),
        findings: findings(shared, &statuses, &jobs),
    };
    Ok((status, jobs))
}

fn findings(shared: &Shared, statuses: &[FilesystemStatus], jobs: &[Job]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut add = |code: &str, what: String, cure: &str| {
        findings.push(Finding { code: code.to_owned(), what, cure: cure.to_owned() });
    };
    if !kms_core::arena_is_locked() {
        add(
            "memory-not-locked",
            "keys in memory are not locked, so that they can reach a swap device".to_owned(),
            "raise the limit on locked memory (LimitMEMLOCK in the unit, or ulimit -l), or encrypt the swap",
        );
    }
    if let Some(trouble) = shared.audit.trouble() {
        add("audit-trouble", trouble, "find out who changed the log or why it can't be written");
    }
    if let Some(trouble) = no_room(&shared.state_dir) {
        add(
            "state-disk-full",
            format!("{trouble}: keys, jobs and the audit log can't be recorded without room"),
            "make room there, or mount it for writing",
        );
    }
    if let Some(trouble) = shared.settling_failed() {
        add("half-done", trouble, "mend what it names and start the node again");
    }
    for Job { id, problem, .. } in jobs {
        let Some(problem) = problem else { continue };
        let what = format!("job {id} waits: {}", problem.detail);
        add("job-waits", what, problem.cure.as_deref().unwrap_or_default());
    }
    let goes_on = |name: &FilesystemName| {
        let of_this = |job: &Job| job.filesystem.as_deref() == Some(name.as_str());
        jobs.iter().any(|job| job.kind == JobKind::Rekey && of_this(job))
    };
    for fs in statuses {
        let name = &fs.filesystem.name;
        if fs.previous.is_some() && !matches!(fs.key, KeyState::Deleting(_)) && !goes_on(name) {
            let what = format!(
                "{name} has got a new key, and not all of its data lies under that: its re-encryption was stopped, or not all could be done"
            );
            let cure = format!(
                "go on with it: coffer fs rekey {name} (coffer job list shows how it ended)"
            );
            add("rekey-unfinished", what, &cure);
        }
    }
    for Stranger { name, backing } in shared.strangers.unknown(statuses) {
        add(
            "unknown-filesystem",
            format!(
                "the filesystem {} lies in {} and the key store does not know it: it was forgotten, or an older store was put back",
                BytePath::new(name.as_str()),
                BytePath::from(backing.as_path())
            ),
            "if it was forgotten, leave the directory or remove it; if not, stop the node and put the newest backup of the state \
             directory back, or rebuild the store: coffer recover --from DIR… (all backing directories)",
        );
    }
    let unlocked: HashSet<&FilesystemName> = statuses
        .iter()
        .filter(|fs| fs.key == KeyState::Unlocked)
        .map(|fs| &fs.filesystem.name)
        .collect();
    let mut too_many = 0_u64;
    for (name, why) in shared.filesystems.unheld() {
        match why {
            _ if !unlocked.contains(&name) => {}
            Unheld::InUse(why) => add(
                problem::IN_USE,
                format!("{name} can't be used here: {why}"),
                "a backing directory belongs to one node: stop the other one, or lock the filesystem there",
            ),
            Unheld::Replaced(backing) => add(
                "backing-replaced",
                format!(
                    "what is open of {name} is not what lies in {} any more: what is written goes to where that was moved",
                    backing.display()
                ),
                "put it back, or lock and unlock the filesystem to go on with what lies there now",
            ),
            Unheld::TooMany => too_many += 1,
        }
    }
    if too_many > 0 {
        add(
            "filesystems-not-held",
            format!(
                "the limit on open files does not let {too_many} filesystems be held while they are not used: another node could take them"
            ),
            "raise the limit (LimitNOFILE in the unit, or ulimit -Hn)",
        );
    }
    for fs in statuses {
        if let KeyState::Deleting(LockReason { code, why, cure: Some(cure), .. }) = &fs.key {
            let what = format!("{} is half deleted: {why}", fs.filesystem.name);
            add(code, what, cure);
        }
    }
    findings
}

/// What keeps the disk of the state directory from taking much more.
fn no_room(state_dir: &Path) -> Option<String> {
    let disk = statvfs(state_dir).ok()?;
    let room = disk.f_bavail.saturating_mul(disk.f_frsize);
    // Some filesystems count no files.
    let no_files = disk.f_files > 0 && disk.f_favail == 0;
    if disk.f_flag.contains(StatVfsMountFlags::RDONLY) {
        Some(format!("the disk of {} is mounted read-only", state_dir.display()))
    } else if room < LITTLE_ROOM || no_files {
        let left = if no_files {
            "for no more files".to_owned()
        } else {
            format!("for {} KiB", room >> 10)
        };
        Some(format!("the disk of {} has room {left}", state_dir.display()))
    } else {
        None
    }
}

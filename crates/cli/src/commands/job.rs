//! `coffer job list|show|stop`, and how an ended job reads.

use admin_api::{BytePath, Exit, Job, JobKind, JobState, Jobs, Problem, paths};

use super::Context;
use crate::grammar::JobCommand;
use crate::show::{bytes, count, fields, moment, span, table, under};
use crate::watch::{is_of_files, noun};

pub(super) async fn run(
    command: JobCommand,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    match command {
        JobCommand::List => {
            let jobs: Jobs = context.client.get(paths::JOBS).await?;
            Ok(context.answer(&jobs, list_text))
        }
        JobCommand::Show { id } => {
            let mut job: Job = context.client.get(&paths::of_job(paths::JOB, &id)).await?;
            context.complete(&mut job).await?;
            Ok(context.answer(&job, text))
        }
        JobCommand::Stop { id } => {
            let job: Job = context.client.post(&paths::of_job(paths::STOP, &id), &()).await?;
            Ok(context.answer(&job, |job| format!("the {} {}\n", noun(job.kind), state(job.state))))
        }
    }
}

fn list_text(jobs: &Jobs) -> String {
    if jobs.jobs.is_empty() {
        return "no jobs\n".to_owned();
    }
    let rows: Vec<_> = jobs
        .jobs
        .iter()
        .map(|job| {
            [
                job.id.clone(),
                noun(job.kind).to_owned(),
                job.filesystem.clone().unwrap_or_else(|| "all".to_owned()),
                state(job.state).to_owned(),
                progress(job),
                moment(job.created_at),
            ]
        })
        .collect();
    let mut text = table(["ID", "JOB", "FILESYSTEM", "STATE", "PROGRESS", "SINCE"], &rows);
    for job in jobs.jobs.iter().filter(|job| job.state == JobState::Waiting) {
        if let Some(problem) = &job.problem {
            text.push_str(&format!("{} waits: {}\n", job.id, under(&problem.detail, 2)));
        }
    }
    text
}

fn text(job: &Job) -> String {
    let mut lines = vec![("job", job.id.clone()), ("kind", noun(job.kind).to_owned())];
    lines.push(("filesystem", job.filesystem.clone().unwrap_or_else(|| "all".to_owned())));
    if let Some(path) = &job.path {
        lines.push(("directory", path.to_string()));
    }
    lines.push(("state", state(job.state).to_owned()));
    lines.push(("progress", progress(job)));
    lines.push(("since", moment(job.created_at)));
    if let Some(ended_at) = job.ended_at {
        lines.push(("ended", moment(ended_at)));
    }
    if let Some(taken_up) = taken_up(job) {
        lines.push(("taken up", taken_up));
    }
    if let Some(owners) = owners(job) {
        lines.push(("owners", owners));
    }
    if let Some(keys) = from_memory(job) {
        lines.push(("from memory", keys));
    }
    if let Some(keys) = current_already(job) {
        lines.push(("current already", keys));
    }
    if let Some(problem) = &job.problem {
        lines.push(("why", problem.detail.clone()));
        if let Some(cure) = &problem.cure {
            lines.push(("do", cure.clone()));
        }
    }
    fields(&lines) + &damage_text(job)
}

/// Whether an ended job did all of it, or why not.
pub(super) fn outcome(job: &Job) -> Result<Exit, Problem> {
    let problem = |exit, code: &str, why: &str| {
        let title = format!("the {} is not complete", noun(job.kind));
        Problem::new(exit, code, title, why)
            .cure(format!("see what of it was not done: coffer job show {}", job.id))
    };
    Err(match (&job.problem, job.state) {
        (Some(problem), _) => problem.clone(),
        (None, JobState::Done) => return Ok(Exit::Done),
        (None, JobState::Stopped) => problem(Exit::Partly, "stopped", "it was stopped")
            .cure("give the same command again: it goes on from there"),
        (None, JobState::Failed) => problem(Exit::Failed, "job-failed", "it failed before its end"),
        (None, _) => problem(Exit::Partly, "partly-done", "a part of it could not be done"),
    })
}

/// What an ended job did, on a line, after what it found.
pub(super) fn ended_text(job: &Job) -> String {
    let name = job.filesystem.as_deref().unwrap_or("all filesystems");
    let verb = match job.kind {
        JobKind::Import => format!("imported into {name}"),
        JobKind::Export => format!("exported from {name}"),
        JobKind::Verify => format!("verified {name}"),
        JobKind::Rekey => format!("re-encrypted {name} under its new key"),
        JobKind::Rewrap if job.filesystem.is_some() => format!("rewrapped the key of {name}"),
        JobKind::Rewrap => format!("rewrapped the keys of {name}"),
        JobKind::Move => "moved the keys to the new KMS".to_owned(),
        JobKind::Renew => "renewed the copies of the keys".to_owned(),
        JobKind::Downgrade => "put the keys under local wrapping".to_owned(),
    };
    let failed = match job.progress.failed_items {
        0 => String::new(),
        failed => format!("; {failed} failed"),
    };
    let (amount, noun) = (amount(job), noun(job.kind));
    let line = match job.state {
        JobState::Failed => format!("the {noun} of {name} failed; done before: {amount}{failed}"),
        JobState::Stopped => {
            format!("the {noun} of {name} was stopped; done before: {amount}{failed}")
        }
        _ => format!("{verb}: {amount}{failed}"),
    };
    let owners = owners(job).map(|text| format!("owners: {text}\n")).unwrap_or_default();
    let taken_up = taken_up(job).map(|text| format!("taken up: {text}\n")).unwrap_or_default();
    let from_memory =
        from_memory(job).map(|text| format!("from memory: {text}\n")).unwrap_or_default();
    let current = current_already(job).map(|text| format!("current already: {text}\n"));
    let current = current.unwrap_or_default();
    format!("{}{owners}{taken_up}{from_memory}{current}{line}\n", damage_text(job))
}

/// What a rewrap did not wrap anew.
fn current_already(job: &Job) -> Option<String> {
    (job.keys_already > 0 && job.kind == JobKind::Rewrap).then(|| {
        let keys = count(job.keys_already, "key");
        format!("{keys} under the newest version of the master key, not wrapped anew")
    })
}

/// What was not asked of the KMS that had wrapped the keys.
fn from_memory(job: &Job) -> Option<String> {
    (job.keys_from_memory > 0).then(|| {
        let keys = count(job.keys_from_memory, "key");
        format!("{keys} that this node has open, without the KMS that had wrapped them")
    })
}

/// What a copy that came to its end from a checkpoint did not look at.
fn taken_up(job: &Job) -> Option<String> {
    let came_to_its_end = matches!(job.state, JobState::Done | JobState::Partly);
    if !job.resumed || !came_to_its_end {
        return None;
    }
    let unseen = "an earlier run did a part, and what has changed in that part since is not seen";
    match job.kind {
        JobKind::Import => Some(format!("{unseen}; the same command again brings it along")),
        JobKind::Export => Some(format!("{unseen}; an export to a new directory has all of it")),
        _ => None,
    }
}

/// What became of owners that only root can give, and not on every disk.
fn owners(job: &Job) -> Option<String> {
    (job.owners_lost > 0).then(|| {
        let items = count(job.owners_lost, "item");
        format!(
            "not kept for {items}; only a node that runs as root keeps them, where the disk lets it"
        )
    })
}

fn damage_text(job: &Job) -> String {
    let mut text = String::new();
    for damage in &job.damage {
        let path = match damage.path.as_bytes() {
            [] => "-".to_owned(),
            _ => damage.path.to_string(),
        };
        // A file's name in it must not look like a line of ours.
        let what = BytePath::new(damage.what.as_str());
        text.push_str(&format!("{}: {path}: {what}\n", damage.kind));
        if let Some(ciphertext) = &damage.ciphertext {
            text.push_str(&format!("  ciphertext: {ciphertext}\n"));
        }
    }
    if job.names_sealed {
        let name = job.filesystem.as_deref().unwrap_or_default();
        let what = match job.progress.failed_items {
            0 => "what there is to know of single files".to_owned(),
            failed => count(failed, "problem"),
        };
        text.push_str(&format!(
            "{what}, named while {name} is unlocked: coffer job show {}\n",
            job.id
        ));
    }
    text
}

fn amount(job: &Job) -> String {
    let done = &job.progress;
    if is_of_files(job.kind) {
        format!("{}, {}", count(done.items, "item"), bytes(done.bytes))
    } else {
        count(done.items, "key")
    }
}

fn progress(job: &Job) -> String {
    let done = &job.progress;
    let mut text = amount(job);
    match (is_of_files(job.kind), done.total_bytes, done.total_items) {
        (true, Some(total), _) => text.push_str(&format!(" of {}", bytes(total))),
        (false, _, Some(total)) => text.push_str(&format!(" of {total}")),
        _ => {}
    }
    if done.failed_items > 0 {
        text.push_str(&format!(", {} failed", done.failed_items));
    }
    if let Some(pace) = done.pace {
        text.push_str(&match is_of_files(job.kind) {
            true => format!(", {}/s", bytes(pace.bytes_per_second)),
            false => format!(", {}/s", pace.items_per_second),
        });
        let left = pace.seconds_left.map(|left| format!(", {} left", span(left)));
        text.push_str(&left.unwrap_or_default());
    }
    text
}

const fn state(state: JobState) -> &'static str {
    match state {
        JobState::Running => "runs",
        JobState::Waiting => "waits",
        JobState::Stopping => "stops",
        JobState::Stopped => "was stopped",
        JobState::Done => "is done",
        JobState::Partly => "is partly done",
        JobState::Failed => "failed",
    }
}

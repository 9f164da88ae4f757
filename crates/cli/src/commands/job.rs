//! `coffer job list|show|stop`, and how an ended job reads.

use admin_api::{BytePath, Exit, Job, JobState, Jobs, Problem, paths};

use super::Context;
use crate::grammar::JobCommand;
use crate::show::{fields, table, under};

pub(super) async fn run(
    command: JobCommand,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    match command {
        JobCommand::List => {
            let mut all = Jobs { jobs: Vec::new(), next: None };
            loop {
                let page: Jobs =
                    context.client.get(&paths::jobs(all.next.as_deref(), None)).await?;
                all.jobs.extend(page.jobs);
                all.next = page.next;
                if all.next.is_none() {
                    return Ok(context.answer(&all, list_text));
                }
            }
        }
        JobCommand::Show { id } => {
            let mut job: Job = context.client.get(&paths::of_job(paths::JOB, &id)).await?;
            context.complete(&mut job).await?;
            Ok(context.answer(&job, text))
        }
        JobCommand::Stop { id } => {
            let job: Job = context.client.post(&paths::of_job(paths::STOP, &id), &()).await?;
            Ok(context.answer(&job, |job| {
                format!("the {} {}\n", words::job_noun(job.kind), words::job_state(job.state))
            }))
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
                words::job_noun(job.kind).to_owned(),
                job.filesystem.clone().unwrap_or_else(|| "all".to_owned()),
                words::job_state(job.state).to_owned(),
                words::job_progress(job),
                words::moment(job.created_at),
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
    fields(&words::job(job)) + &damage_text(job)
}

/// Whether an ended job did all of it, or why not.
pub(super) fn outcome(job: &Job) -> Result<Exit, Problem> {
    let problem = |exit, code: &str, why: &str| {
        let title = format!("the {} is not complete", words::job_noun(job.kind));
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

/// What an ended job did, after what it found.
pub(super) fn ended_text(job: &Job) -> String {
    damage_text(job) + &words::ended_job(job)
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
            failed => words::count(failed, "problem"),
        };
        text.push_str(&format!(
            "{what}, named while {name} is unlocked: coffer job show {}\n",
            job.id
        ));
    }
    text
}

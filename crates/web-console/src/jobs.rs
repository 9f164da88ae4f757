//! Long work.

use admin_api::{Job, JobState, Jobs, Problem};
use maud::{Markup, html};

use crate::form::act;
use crate::page::Viewer;
use crate::parts::{Row, ago, fields, live, mark, problem, table};

/// What the list is made of.
#[derive(Debug)]
pub struct JobsView<'a> {
    /// A page of jobs.
    pub page: &'a Jobs,
    /// Whether this is not the first one.
    pub is_later: bool,
}

/// The jobs that the node remembers, the newest first.
pub fn jobs(view: &JobsView<'_>, viewer: &Viewer<'_>) -> Markup {
    let JobsView { page, is_later } = view;
    let rows: Vec<Row<'_>> = page.jobs.iter().map(|job| (&*job.id, row(job, viewer))).collect();
    let head = ["Job", "Filesystem", "State", "Progress", "Since", "Act"];
    let body = html! {
        @if rows.is_empty() { p { "No job was asked for yet." } } @else { (table("Jobs", &head, &rows)) }
        div.pages {
            @if *is_later { p { a href="/jobs" { "Newest" } } }
            @if let Some(next) = &page.next { p { a href={ "/jobs?after=" (next) } { "Older" } } }
        }
    };
    live("jobs", &body)
}

/// One job, and what it could not do.
pub fn job(job: &Job, viewer: &Viewer<'_>) -> Markup {
    let damage: Vec<Row<'_>> = job
        .damage
        .iter()
        .map(|damage| {
            let ciphertext =
                damage.ciphertext.as_ref().map(ToString::to_string).unwrap_or_default();
            let cells =
                [damage.kind.clone(), damage.path.to_string(), damage.what.clone(), ciphertext];
            ("", cells.into_iter().map(|cell| html! { (cell) }).collect())
        })
        .collect();
    let body = html! {
        (progress(job, viewer))
        (fields(&words::job(job), viewer))
        @if job.names_sealed {
            p { "What could not be done is named while the filesystem is unlocked." }
        }
        @if !damage.is_empty() {
            h2 { "What could not be done" }
            (table("What could not be done", &["Kind", "Path", "What", "Ciphertext"], &damage))
            @if let Some(after) = job.next_damage {
                p { a href={ "/jobs/" (job.id) "?damage_after=" (after) } { "More" } }
            }
        }
    };
    live("job", &body)
}

/// Jobs that have not ended, with their progress. Why one waits is told among the alerts.
pub(crate) fn unfinished(jobs: &Jobs, viewer: &Viewer<'_>) -> Markup {
    let mut running = jobs.jobs.iter().filter(|job| !job.state.is_ended()).peekable();
    html! {
        @if running.peek().is_none() { p { "none" } }
        @for job in running { (bar(job, None, viewer)) }
    }
}

/// A job's progress, its trouble, and the way to stop it.
pub(crate) fn progress(job: &Job, viewer: &Viewer<'_>) -> Markup {
    bar(job, job.problem.as_ref(), viewer)
}

fn bar(job: &Job, trouble: Option<&Problem>, viewer: &Viewer<'_>) -> Markup {
    let (noun, ended) = (words::job_noun(job.kind), job.state.is_ended());
    let of = job.filesystem.as_ref().map(|name| format!(" of {name}")).unwrap_or_default();
    let done = &job.progress;
    let (now, total) = match words::counts_files(job.kind) {
        true => (done.bytes, done.total_bytes),
        false => (done.items, done.total_items),
    };
    let label = format!("Progress of the {noun}{of}");
    html! {
        div.job data-key=(job.id) {
            p { a href={ "/jobs/" (job.id) } { (noun) (of) } " " span aria-live="polite" { (state(job.state)) } }
            @if !ended {
                @match total {
                    Some(total) if total > 0 => progress aria-label=(label) value=(now.min(total)) max=(total) {},
                    _ => progress aria-label=(label) {},
                }
            }
            p.figures-line { (words::job_progress(job)) }
            @if job.state == JobState::Stopped {
                p.hint { "It is taken up again when the same is asked for once more." }
            }
            @if let Some(why) = trouble { (problem(why)) }
            @if !ended && job.state != JobState::Stopping && viewer.may_change {
                (act(&format!("/jobs/{}/stop", job.id), "Stop", "quiet", viewer))
            }
        }
    }
}

fn row(job: &Job, viewer: &Viewer<'_>) -> Vec<Markup> {
    let stoppable = !job.state.is_ended() && job.state != JobState::Stopping && viewer.may_change;
    vec![
        html! { a href={ "/jobs/" (job.id) } { (words::job_noun(job.kind)) } },
        html! { (job.filesystem.as_deref().unwrap_or("all")) },
        html! {
            (state(job.state))
            @if let Some(why) = &job.problem { p.why { (why.detail) } }
        },
        html! { (words::job_progress(job)) },
        ago(job.created_at, viewer),
        html! {
            @if stoppable { (act(&format!("/jobs/{}/stop", job.id), "Stop", "quiet", viewer)) }
        },
    ]
}

fn state(state: JobState) -> Markup {
    let kind = match state {
        JobState::Done => "good",
        JobState::Running | JobState::Stopping => "plain",
        JobState::Waiting | JobState::Stopped | JobState::Partly => "poor",
        JobState::Failed => "bad",
    };
    mark(kind, words::job_state(state))
}

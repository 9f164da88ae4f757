//! Waits for a job and shows its progress.

use std::time::{Duration, Instant};

use admin_api::{Exit, Job, JobState, Problem, paths};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::client::Client;

/// How long the node may hold the answer while the job runs: a bar moves about four times a second.
const BETWEEN_LOOKS_MS: u64 = 250;

/// Waits until `job` ends, and calls `waits` with the reason when it does not run meanwhile and no bar shows so. Ctrl-C, a refusal that no
/// time mends, and as long as `patience` without progress while the KMS is away end the waiting, as a problem, and leave the job alone.
pub(crate) async fn watch(
    client: &Client,
    job: Job,
    shows_progress: bool,
    patience: Duration,
    waits: impl FnMut(&str),
) -> Result<Job, Problem> {
    let bar = shows_progress.then(|| Bar::new(&job));
    tokio::select! {
        ended = until_ended(client, job.clone(), bar.as_ref(), patience, waits) => ended,
        _ = tokio::signal::ctrl_c() => {
            let title = format!("the {} has not ended yet", words::job_noun(job.kind));
            Err(Problem::new(Exit::Partly, "left", title, "the command was left, and it goes on in the node")
                .cure(see_or_stop(&job.id)))
        }
    }
}

async fn until_ended(
    client: &Client,
    mut job: Job,
    bar: Option<&Bar>,
    patience: Duration,
    mut waits: impl FnMut(&str),
) -> Result<Job, Problem> {
    let longest = if bar.is_some() { BETWEEN_LOOKS_MS } else { paths::WAIT_LIMIT_MS };
    // Often enough to notice in time that it stands still.
    let longest = longest.min(u64::try_from(patience.as_millis() / 4).unwrap_or(u64::MAX).max(1));
    let mut told = String::new();
    let mut stands_since: Option<Instant> = None;
    let mut furthest = job.progress.items;
    while !job.state.is_ended() {
        let id = job.id.clone();
        job = client.get(&paths::job_within(&id, longest)).await.map_err(|problem| {
            if problem.exit != Exit::NoNode {
                return problem;
            }
            let cure = format!(
                "start the node: it takes the {} up again; see it with coffer job show {id}",
                words::job_noun(job.kind)
            );
            problem.cure(cure)
        })?;
        if let Some(refused) = refusal(&job) {
            return Err(refused);
        }
        // A new try begins at the first key: what is done already is no progress.
        if job.progress.items > furthest {
            (furthest, stands_since) = (job.progress.items, None);
        }
        if let Some(why) = job.problem.as_ref().filter(|_| job.state == JobState::Waiting)
            && stands_since.get_or_insert_with(Instant::now).elapsed() >= patience
        {
            return Err(stands_still(&job, why, patience));
        }
        match (bar, &job.problem) {
            (Some(bar), _) => bar.show(&job),
            (None, Some(problem)) if job.state == JobState::Waiting && problem.detail != told => {
                told.clone_from(&problem.detail);
                let cure = problem.cure.iter().map(|cure| format!("\ndo:  {cure}"));
                waits(&format!(
                    "the {} waits: {told}{}",
                    words::job_noun(job.kind),
                    cure.collect::<String>()
                ));
            }
            _ => {}
        }
    }
    Ok(job)
}

/// What keeps a move of keys from going on that no time mends. The job is left as it is.
fn refusal(job: &Job) -> Option<Problem> {
    let waits = job.state == JobState::Waiting && !words::counts_files(job.kind);
    let problem = job.problem.clone().filter(|p| waits && p.exit != Exit::KmsUnreachable)?;
    let seen = see_or_stop(&job.id);
    let cure = problem.cure.clone().map_or(seen.clone(), |cure| format!("{cure}; {seen}"));
    Some(problem.cure(cure))
}

/// What the command says that has waited long enough.
fn stands_still(job: &Job, why: &Problem, patience: Duration) -> Problem {
    let Job { kind, id, .. } = job;
    let title = format!("the {} has not ended yet", words::job_noun(*kind));
    let detail = format!("it has not gone on for {} s: {}", patience.as_secs(), why.detail);
    let cure = why.cure.iter().map(|cure| format!("{cure}; ")).collect::<String>();
    Problem::new(why.exit, &why.code, title, detail)
        .cure(format!("{cure}{}; once that is mended the job goes on", see_or_stop(id)))
}

fn see_or_stop(id: &str) -> String {
    format!("see it with coffer job show {id}, stop it with coffer job stop {id}")
}

/// Counts bytes where there are any, else items. Cleared when it is dropped.
struct Bar {
    bar: ProgressBar,
    counts_bytes: bool,
}

impl Bar {
    fn new(job: &Job) -> Self {
        let counts_bytes = words::counts_files(job.kind);
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        let bar = Self { bar, counts_bytes };
        bar.show(job);
        bar
    }

    fn show(&self, job: &Job) {
        let progress = &job.progress;
        let (done, total) = if self.counts_bytes {
            (progress.bytes, progress.total_bytes)
        } else {
            (progress.items, progress.total_items)
        };
        // What has no rate yet has no time left that could be told.
        let template = match (self.counts_bytes, total.is_some(), done > 0) {
            (true, true, true) => {
                "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left"
            }
            (true, true, false) => "{msg} {wide_bar} {binary_bytes}/{binary_total_bytes}",
            (true, false, _) => "{msg} {spinner} {binary_bytes} {binary_bytes_per_sec}",
            (false, true, true) => "{msg} {wide_bar} {pos}/{len} {per_sec} {eta} left",
            (false, true, false) => "{msg} {wide_bar} {pos}/{len}",
            (false, false, _) => "{msg} {spinner} {pos} {per_sec}",
        };
        // First, since setting the length draws.
        self.bar.set_position(done);
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
        if let Some(total) = total {
            self.bar.set_length(total);
        }
        let name = words::job_noun(job.kind);
        self.bar.set_message(match job.state {
            JobState::Waiting => match &job.problem {
                Some(problem) => format!("{name} waits: {}", problem.detail),
                None => format!("{name} waits"),
            },
            JobState::Stopping => format!("{name} stops"),
            _ if progress.failed_items > 0 => format!("{name}, {} failed", progress.failed_items),
            _ => name.to_owned(),
        });
        self.bar.tick();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

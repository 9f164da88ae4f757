//! Long work.

use admin_api::{Job, JobKind, JobState};

use crate::quantity::{bytes, count, span};
use crate::{Fields, Value};

/// A job. What it could not do is its damage.
pub fn job(job: &Job) -> Fields {
    let mut fields = Fields::default();
    fields.add("job", job.id.clone());
    fields.add("kind", job_noun(job.kind));
    fields.add("filesystem", job.filesystem.clone().unwrap_or_else(|| "all".to_owned()));
    if let Some(path) = &job.path {
        fields.add("directory", path.to_string());
    }
    fields.add("state", job_state(job.state));
    fields.add("progress", job_progress(job));
    fields.add("since", Value::Moment(job.created_at));
    if let Some(ended_at) = job.ended_at {
        fields.add("ended", Value::Moment(ended_at));
    }
    if let Some(taken_up) = taken_up(job) {
        fields.add("taken up", taken_up);
    }
    if let Some(owners) = owners(job) {
        fields.add("owners", owners);
    }
    if let Some(keys) = from_memory(job) {
        fields.add("from memory", keys);
    }
    if let Some(keys) = current_already(job) {
        fields.add("current already", keys);
    }
    if let Some(problem) = &job.problem {
        fields.add("why", problem.detail.clone());
        if let Some(cure) = &problem.cure {
            fields.add("do", cure.clone());
        }
    }
    fields
}

/// What an ended job did: lines.
pub fn ended_job(job: &Job) -> String {
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
    let (amount, noun) = (amount(job), job_noun(job.kind));
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
    format!("{owners}{taken_up}{from_memory}{current}{line}\n")
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

fn amount(job: &Job) -> String {
    let done = &job.progress;
    if counts_files(job.kind) {
        format!("{}, {}", count(done.items, "item"), bytes(done.bytes))
    } else {
        count(done.items, "key")
    }
}

/// How much of it is done.
pub fn job_progress(job: &Job) -> String {
    let done = &job.progress;
    let mut text = amount(job);
    match (counts_files(job.kind), done.total_bytes, done.total_items) {
        (true, Some(total), _) => text.push_str(&format!(" of {}", bytes(total))),
        (false, _, Some(total)) => text.push_str(&format!(" of {total}")),
        _ => {}
    }
    if done.failed_items > 0 {
        text.push_str(&format!(", {} failed", done.failed_items));
    }
    if let Some(pace) = done.pace {
        text.push_str(&match counts_files(job.kind) {
            true => format!(", {}/s", bytes(pace.bytes_per_second)),
            false => format!(", {}/s", pace.items_per_second),
        });
        let left = pace.seconds_left.map(|left| format!(", {} left", span(left)));
        text.push_str(&left.unwrap_or_default());
    }
    text
}

/// How far a job is, said of it.
pub const fn job_state(state: JobState) -> &'static str {
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

/// What a job is called.
pub const fn job_noun(kind: JobKind) -> &'static str {
    match kind {
        JobKind::Import => "import",
        JobKind::Export => "export",
        JobKind::Verify => "verification",
        JobKind::Rekey => "re-encryption",
        JobKind::Rewrap => "rewrap",
        JobKind::Move => "move of the keys",
        JobKind::Renew => "renewal of the copies",
        JobKind::Downgrade => "downgrade",
    }
}

/// Whether it counts files and their bytes, and not keys.
pub const fn counts_files(kind: JobKind) -> bool {
    use JobKind::{Export, Import, Rekey, Verify};
    matches!(kind, Import | Export | Verify | Rekey)
}

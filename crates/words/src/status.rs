//! The node at a glance.

use admin_api::{Kms, Status};

use crate::kms::FALLS_SHORT;
use crate::quantity::count;
use crate::{Fields, Value};

/// The node's state. What is wrong with it is in its findings.
pub fn status(status: &Status) -> Fields {
    let n = &status.filesystems;
    let mut filesystems = match n.total {
        0 => "none".to_owned(),
        total => format!("{total}: {} unlocked, {} locked", n.unlocked, n.locked),
    };
    if n.unlocking > 0 {
        filesystems.push_str(&format!(", {} being unlocked", n.unlocking));
    }
    if n.deleting > 0 {
        filesystems.push_str(&format!(", {} half deleted", n.deleting));
    }
    if n.exposed > 0 {
        filesystems.push_str(&format!(", {} exposed", n.exposed));
    }
    let jobs = match status.jobs_running {
        0 => "none".to_owned(),
        running => format!("{running} (coffer job list)"),
    };
    let mut fields = Fields::default();
    fields.add("node", format!("coffer {}, process {}", status.version, status.pid));
    fields.add("running since", Value::Moment(status.started_at));
    fields.add("state directory", status.state_dir.to_string());
    fields.add("KMS", kms_line(&status.kms));
    fields.add("filesystems", filesystems);
    fields.add("running jobs", jobs);
    fields
}

/// The KMS on a line.
pub fn kms_line(kms: &Kms) -> String {
    match &kms.configured {
        None => "not set".to_owned(),
        Some(details) => {
            let answers = match details.problem.as_ref().map(|problem| problem.code.as_str()) {
                None if details.does_all => "answers",
                None => FALLS_SHORT,
                Some("kms-not-asked") => "has not answered yet",
                Some(_) => "does not answer",
            };
            let keys = count(kms.keys.iter().map(|version| version.keys).sum(), "key");
            let own = match details.own_keys.len() as u64 {
                0 => String::new(),
                n => format!(" and {} of filesystems' own", count(n, "other")),
            };
            format!(
                "{}, master key {}{own}, {keys}, {answers}",
                details.base_url, details.master_key
            )
        }
    }
}

//! `coffer status`

use admin_api::{Exit, Kms, Problem, Status, paths};

use super::{Context, FALLS_SHORT, findings_text};
use crate::show::{count, fields, moment, under};

pub(super) async fn show(context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    let status: Status = context.client.get(paths::STATUS).await?;
    Ok(context.answer(&status, text))
}

fn text(status: &Status) -> String {
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
    let mut text = fields(&[
        ("node", format!("coffer {}, process {}", status.version, status.pid)),
        ("running since", moment(status.started_at)),
        ("state directory", status.state_dir.to_string()),
        ("KMS", kms_line(&status.kms)),
        ("filesystems", filesystems),
        ("running jobs", jobs),
    ]);
    if let Some(problem) = status.kms.configured.as_ref().and_then(|kms| kms.problem.as_ref()) {
        text.push_str(&format!("warning: {}: {}\n", problem.title, under(&problem.detail, 9)));
        if let Some(cure) = &problem.cure {
            text.push_str(&format!("  do:  {}\n", under(cure, 7)));
        }
    }
    text.push_str(&findings_text(&status.kms.findings));
    text.push_str(&findings_text(&status.findings));
    text
}

fn kms_line(kms: &Kms) -> String {
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

//! `coffer status`

use admin_api::{Exit, Problem, Status, paths};

use super::{Context, findings_text};
use crate::show::{fields, under};

pub(super) async fn show(context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    let status: Status = context.client.get(paths::STATUS).await?;
    Ok(context.answer(&status, text))
}

fn text(status: &Status) -> String {
    let mut text = fields(&words::status(status));
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

//! `coffer audit show|verify`

use admin_api::{AuditChain, AuditLine, AuditPage, Exit, Problem, paths};

use super::Context;
use crate::grammar::{AuditCommand, AuditShow};
use crate::show::table;

pub(super) async fn run(
    command: AuditCommand,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    match command {
        AuditCommand::Show(wanted) => {
            let page = newest(&wanted, context).await?;
            Ok(context.answer(&page, lines_text))
        }
        AuditCommand::Verify => {
            let chain: AuditChain = context.client.get(paths::AUDIT_VERIFY).await?;
            context.answer(&chain, words::audit_chain);
            match (chain.trouble, chain.unrecorded) {
                (None, None) => Ok(Exit::Done),
                (Some(why), _) => {
                    let title = "the audit log is not whole";
                    Err(Problem::new(Exit::NotAuthentic, "audit-broken", title, why).cure(
                        "compare it with a copy, and with the KMS's own audit log; find out who can write the state directory",
                    ))
                }
                (None, Some(why)) => {
                    let title = "what is on record is whole, and nothing can be added";
                    Err(Problem::new(Exit::Failed, "audit-failed", title, why).cure(
                        "make room on the disk of the state directory, or mend it: what changes something is refused meanwhile, and what could not be recorded is told by a line then",
                    ))
                }
            }
        }
    }
}

/// As many of the newest lines as are wanted, page by page.
async fn newest(wanted: &AuditShow, context: &Context<'_, '_>) -> Result<AuditPage, Problem> {
    let mut page = AuditPage { lines: Vec::new(), before: None };
    loop {
        let missing = wanted.lines.saturating_sub(page.lines.len() as u64);
        if missing == 0 {
            return Ok(page);
        }
        let AuditShow { action, about, failed, .. } = wanted;
        let [action, about] = [action, about].map(|it| it.as_deref().unwrap_or_default());
        let limit = missing.min(paths::PAGE_LIMIT as u64);
        let path = paths::audit(action, about, *failed, page.before, limit);
        let mut older: AuditPage = context.client.get(&path).await?;
        older.lines.append(&mut page.lines);
        page = older;
        if page.before.is_none() {
            return Ok(page);
        }
    }
}

fn lines_text(page: &AuditPage) -> String {
    if page.lines.is_empty() {
        return "no lines\n".to_owned();
    }
    let rows: Vec<_> = page.lines.iter().map(row).collect();
    table(["LINE", "TIME", "ACTION", "SUBJECT", "OUTCOME", "MORE"], &rows)
}

fn row(line: &AuditLine) -> [String; 6] {
    [
        line.seq.to_string(),
        words::moment(line.at),
        line.action.clone(),
        line.subject.clone(),
        line.outcome.clone(),
        words::audit_more(line).replace('\n', " "),
    ]
}

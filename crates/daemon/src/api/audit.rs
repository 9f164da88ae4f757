//! `/v1/audit`

use std::io;
use std::sync::Arc;

use admin_api::{AuditChain, AuditLine, AuditPage, Exit, Problem, paths};
use axum::Json;
use axum::extract::State;
use kms_core::Outcome;
use serde::Deserialize;
use tokio::task::spawn_blocking;
use utoipa::IntoParams;

use super::Answer;
use super::extract::{Limit, Query};
use crate::audit::{self, AuditLog, HashedLine, Verified};
use crate::{Shared, problem};

/// Lines of a page that nobody gave a limit for.
const LINES: usize = 100;

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// How many lines, at most 1000.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1000)]
    limit: Option<Limit<{ paths::PAGE_LIMIT }>>,
    /// Only older ones than this.
    before: Option<u64>,
    /// Only those of actions that begin so.
    action: Option<String>,
    /// Only those whose subject has this in it as whole words, or of the key, or the request to the KMS, with this id.
    subject: Option<String>,
    /// Only what failed or was refused.
    #[serde(default)]
    failed: bool,
}

/// Shows lines of the audit log: the newest that fit.
#[utoipa::path(
    get,
    path = paths::AUDIT,
    operation_id = "showAudit",
    tag = "audit",
    params(Wanted),
    responses((status = 200, description = "A page of it", body = AuditPage)),
)]
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Query(Wanted { limit, before, action, subject, failed }): Query<Wanted>,
) -> Answer<AuditPage> {
    let limit = limit.map_or(LINES, Limit::get);
    let query = audit::Query { limit, before, action, subject, failed };
    let page = read(&shared, move |log| log.page(&query)).await?;
    let lines = page.lines.into_iter().map(line).collect();
    Ok(Json(AuditPage { lines, before: page.before }))
}

/// Follows the chain of the audit log through all lines that are kept.
#[utoipa::path(
    get,
    path = paths::AUDIT_VERIFY,
    operation_id = "verifyAudit",
    tag = "audit",
    responses((status = 200, description = "How the chain stands", body = AuditChain)),
)]
pub(crate) async fn verify(State(shared): State<Arc<Shared>>) -> Answer<AuditChain> {
    let Verified { first, end, files, trouble, unrecorded } =
        read(&shared, AuditLog::verify).await?;
    let files = files as u64;
    Ok(Json(AuditChain { first, last: end.seq, hash: end.hash, files, trouble, unrecorded }))
}

async fn read<T: Send + 'static>(
    shared: &Shared,
    read: impl FnOnce(&AuditLog) -> io::Result<T> + Send + 'static,
) -> Result<T, Problem> {
    const TITLE: &str = "the audit log can't be read";
    let log = Arc::clone(&shared.audit);
    let answer = spawn_blocking(move || read(&log)).await;
    answer.map_err(|e| problem::internal(TITLE, e))?.map_err(|e| {
        Problem::new(Exit::Failed, "audit-unreadable", TITLE, e.to_string())
            .cure("look at the disk of the state directory")
    })
}

fn line(HashedLine { line, hash }: HashedLine) -> AuditLine {
    let event = line.event;
    let outcome = match event.outcome {
        Outcome::Begun => "begun",
        Outcome::Done => "done",
        Outcome::Refused => "refused",
        Outcome::Failed => "failed",
    };
    AuditLine {
        seq: line.seq,
        at: event.at.0,
        action: event.action,
        subject: event.subject,
        outcome: outcome.to_owned(),
        who: event.who,
        key_id: event.key.map(|key| key.id.to_string()),
        key_version: event.key.map(|key| key.version.0),
        requests: event.requests.into_iter().map(String::from).collect(),
        detail: event.detail,
        hash,
    }
}

//! `/v1/console`

use std::sync::Arc;

use admin_api::{ConsoleLink, ConsoleSession, ConsoleSessions, Exit, OpenConsole, Problem, paths};
use axum::Json;
use axum::extract::{Extension, State};
use kms_core::Outcome;

use super::extract::Path;
use super::{Answer, Body, Caller, Nothing};
use crate::console::{CODE_LIVES, Role, SESSION_IDLES, SESSION_LIVES};
use crate::{Shared, console, problem};

/// How a session ended that somebody ended here.
const ENDED: &str = "ended over the unix socket";

/// Makes a link that opens a session, and serves the console if it is not served yet.
#[utoipa::path(
    post,
    path = paths::CONSOLE_LINKS,
    operation_id = "openConsole",
    tag = "console",
    request_body = Option<OpenConsole>,
    responses((status = 200, description = "The link", body = ConsoleLink)),
)]
pub(crate) async fn link(
    State(shared): State<Arc<Shared>>,
    Extension(Caller(by)): Extension<Caller>,
    Body(request): Body<Option<OpenConsole>>,
) -> Answer<ConsoleLink> {
    let OpenConsole { read_only } = request.unwrap_or_default();
    let origin = console::open(&shared).await?;
    let role = if read_only { Role::Viewer } else { Role::Administrator };
    let code = shared.access.invite(role, &by, shared.clock.now());
    let code = code.map_err(|e| problem::internal("no link can be made", e))?;
    let url = format!("{origin}/login#{code}");
    Ok(Json(ConsoleLink { url, seconds_left: CODE_LIVES.as_secs() }))
}

/// The sessions that are open.
#[utoipa::path(
    get,
    path = paths::CONSOLE_SESSIONS,
    operation_id = "listConsoleSessions",
    tag = "console",
    responses((status = 200, description = "They", body = ConsoleSessions)),
)]
pub(crate) async fn sessions(State(shared): State<Arc<Shared>>) -> Answer<ConsoleSessions> {
    Ok(Json(listed(&shared)))
}

/// Ends all sessions, and the links that could open others.
#[utoipa::path(
    delete,
    path = paths::CONSOLE_SESSIONS,
    operation_id = "endConsoleSessions",
    tag = "console",
    responses((status = 200, description = "Those that are left: none", body = ConsoleSessions)),
)]
pub(crate) async fn end_all(
    State(shared): State<Arc<Shared>>,
    Extension(Caller(by)): Extension<Caller>,
    _: Body<Option<Nothing>>,
) -> Answer<ConsoleSessions> {
    let ended = shared.access.sessions(shared.clock.now());
    shared.access.end_all();
    for session in ended {
        shared.record_session(Outcome::Done, Some((&session, &by)), ENDED);
    }
    Ok(Json(listed(&shared)))
}

/// Ends one.
#[utoipa::path(
    delete,
    path = paths::CONSOLE_SESSION,
    operation_id = "endConsoleSession",
    tag = "console",
    params(("id" = String, Path, description = "The session's id")),
    responses((status = 200, description = "Those that are left", body = ConsoleSessions)),
)]
pub(crate) async fn end(
    State(shared): State<Arc<Shared>>,
    Extension(Caller(by)): Extension<Caller>,
    Path(id): Path<String>,
    _: Body<Option<Nothing>>,
) -> Answer<ConsoleSessions> {
    let session = shared.access.sessions(shared.clock.now()).into_iter().find(|it| it.id == id);
    let Some(session) = session.filter(|_| shared.access.end(&id)) else {
        let (title, why) = ("the session can't be ended", "there is none with this id");
        let problem = Problem::new(Exit::State, "unknown", title, why).with_status(404);
        return Err(problem.cure("see which there are: coffer console sessions").into());
    };
    shared.record_session(Outcome::Done, Some((&session, &by)), ENDED);
    Ok(Json(listed(&shared)))
}

fn listed(shared: &Shared) -> ConsoleSessions {
    let sessions = shared.access.sessions(shared.clock.now()).into_iter();
    let sessions = sessions.map(|session| {
        let after = |since: kms_core::UnixMillis, life: std::time::Duration| {
            since.0 + u64::try_from(life.as_millis()).unwrap_or(u64::MAX)
        };
        let ends = after(session.used, SESSION_IDLES).min(after(session.opened, SESSION_LIVES));
        ConsoleSession {
            id: session.id,
            read_only: session.role == Role::Viewer,
            opened_by: session.by,
            opened_at: session.opened.0,
            used_at: session.used.0,
            ends_at: ends,
        }
    });
    ConsoleSessions { sessions: sessions.collect() }
}

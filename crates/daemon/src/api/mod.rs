//! The admin API: routes, and what every request goes through.

mod audit;
mod console;
mod events;
mod extract;
mod filesystems;
mod impact;
mod jobs;
mod kms;
mod metrics;
mod openapi;
mod policy;
mod rehearsal;
mod status;
mod version;

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, MEDIA_TYPE, Problem};
use axum::body::Bytes;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Extension, FromRequest, Request, State};
use axum::http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use key_manager::FilesystemName;
use kms_core::{AuditEvent, AuditSink as _, Outcome};
use serde::de::DeserializeOwned;
use tokio::time::timeout;
use tracing::Instrument as _;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub(crate) use self::events::digest;
use self::extract::not_understood;
use crate::Shared;
use crate::problem;
use crate::socket::Peer;

/// Largest body of a request: CA certificates are the largest thing that is ever sent.
pub(crate) const BODY_LIMIT: usize = 1 << 20;

/// How long a request may take. A command waits somewhat longer, so that it is this that it hears.
const ANSWER_WITHIN: Duration = Duration::from_secs(150);

/// An answer, or the problem that stands in its place.
type Answer<T> = Result<Json<T>, Refusal>;

/// Who asks, in the words of the audit log. Whoever lets a request in says so.
#[derive(Debug, Clone)]
pub(crate) struct Caller(pub(crate) String);

/// The API for those who come by the unix socket.
pub(crate) fn over_socket(shared: Arc<Shared>) -> Router {
    routes(shared).layer(middleware::from_fn(admit))
}

/// Every route with its description: there is none without.
fn described() -> OpenApiRouter<Arc<Shared>> {
    OpenApiRouter::new()
        .routes(routes!(status::show))
        .routes(routes!(kms::show, kms::set, kms::unset))
        .routes(routes!(kms::rewrap))
        .routes(routes!(kms::check))
        .routes(routes!(impact::show))
        .routes(routes!(policy::show))
        .routes(routes!(rehearsal::rehearse))
        .routes(routes!(filesystems::list, filesystems::create))
        .routes(routes!(filesystems::show, filesystems::delete))
        .routes(routes!(filesystems::lock))
        .routes(routes!(filesystems::unlock))
        .routes(routes!(filesystems::verify))
        .routes(routes!(filesystems::rekey))
        .routes(routes!(filesystems::import))
        .routes(routes!(filesystems::export))
        .routes(routes!(filesystems::ls))
        .routes(routes!(jobs::list))
        .routes(routes!(jobs::show))
        .routes(routes!(jobs::stop))
        .routes(routes!(events::of_job))
        .routes(routes!(events::of_node))
        .routes(routes!(metrics::show))
        .routes(routes!(audit::show))
        .routes(routes!(audit::verify))
        .routes(routes!(console::link))
        .routes(routes!(console::sessions, console::end_all))
        .routes(routes!(console::end))
        .routes(routes!(openapi::show))
}

/// The routes of [`admin_api::paths`], for requests that have been let in.
pub(crate) fn routes(shared: Arc<Shared>) -> Router {
    let (router, _) = described().split_for_parts();
    router
        .fallback(async || Refusal(no_such(404, "there is no such resource")))
        .method_not_allowed_fallback(async || Refusal(no_such(405, "it has no such method")))
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .layer(middleware::from_fn_with_state(Arc::clone(&shared), perform))
        .with_state(shared)
}

fn no_such(status: u16, why: &str) -> Problem {
    Problem::new(Exit::Usage, "no-such-resource", "the request is not understood", why)
        .cure("use the command line of the node's own version")
        .with_status(status)
}

/// Lets in the node's owner and root.
async fn admit(ConnectInfo(peer): ConnectInfo<Peer>, mut request: Request, next: Next) -> Response {
    if peer.is_allowed() {
        request.extensions_mut().insert(Caller(peer.to_string()));
        return next.run(request).await;
    }
    tracing::warn!(%peer, "refused a request from somebody else");
    let (title, why) = ("the request is refused", "it comes from another user");
    let problem = Problem::new(Exit::State, "not-allowed", title, why);
    Refusal(problem.cure("be the user who runs the node, or root").with_status(403)).into_response()
}

/// Does what is asked, in time, and to its end.
async fn perform(
    State(shared): State<Arc<Shared>>,
    Extension(Caller(who)): Extension<Caller>,
    request: Request,
    next: Next,
) -> Response {
    let (method, path) = (request.method().as_str(), request.uri().path());
    let span = tracing::error_span!("request", method, path, peer = who);
    if looks(request.method()) {
        return in_time(answer(&shared, &who, request, next).instrument(span)).await;
    }
    // A client that goes away takes its connection along, and with it would go an act that is half done. So it is with one
    // whose answer is not waited for any longer.
    let act = async move { answer(&shared, &who, request, next).await };
    let act = tokio::spawn(act.instrument(span));
    let broke = |e| Refusal(problem::internal("the request failed", e)).into_response();
    in_time(async { act.await.unwrap_or_else(broke) }).await
}

/// Whether a request by this method changes nothing.
pub(crate) fn looks(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD)
}

/// The answer, or that it takes too long.
async fn in_time(answer: impl Future<Output = Response>) -> Response {
    let too_long = |_| {
        let why = format!(
            "after {} s the node still waits for the KMS or for a disk; what was to be changed goes on by itself",
            ANSWER_WITHIN.as_secs()
        );
        let problem = Problem::new(Exit::Partly, "under-way", "the request has not ended yet", why);
        let cure = "check the KMS and the disks (coffer status), and see later what came of it: coffer audit show";
        Refusal(problem.cure(cure).with_status(504)).into_response()
    };
    timeout(ANSWER_WITHIN, answer).await.unwrap_or_else(too_long)
}

/// What changes something is recorded when it begins, so that nothing is done without a record, and when it has ended.
async fn answer(shared: &Shared, who: &str, request: Request, next: Next) -> Response {
    let what = format!("{} {}", request.method(), request.uri().path());
    if looks(request.method()) {
        let response = next.run(request).await;
        tracing::debug!(status = response.status().as_u16(), "answered");
        return response;
    }
    let event = |outcome, detail| AuditEvent {
        at: shared.clock.now(),
        action: "admin.request".to_owned(),
        subject: what.clone(),
        outcome,
        who: Some(who.to_owned()),
        key: None,
        requests: Vec::new(),
        detail,
    };
    if let Err(why) = shared.audit.try_record(&event(Outcome::Begun, String::new())) {
        return Refusal(unrecorded(why)).into_response();
    }
    let response = next.run(request).await;
    let status = response.status();
    tracing::debug!(status = status.as_u16(), "answered");
    let outcome = match status.as_u16() {
        0..400 => Outcome::Done,
        400..500 => Outcome::Refused,
        _ => Outcome::Failed,
    };
    shared.audit.record(&event(outcome, format!("answered {}", status.as_u16())));
    response
}

/// With what status a problem is answered.
pub(crate) fn status_of(problem: &Problem) -> StatusCode {
    StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
}

/// What is not recorded is not done.
pub(crate) fn unrecorded(why: String) -> Problem {
    Problem::new(Exit::Failed, "audit-failed", "the request is refused", why)
        .cure("make room for the audit log, or mend its disk, or put back what was taken away of it; what is not recorded is not done")
        .with_status(503)
}

/// A problem as an answer.
#[derive(Debug)]
pub(crate) struct Refusal(Problem);

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self(problem)
    }
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = status_of(&self.0);
        let mut response = (status, Json(self.0)).into_response();
        let kind = HeaderValue::from_static(MEDIA_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, kind);
        response
    }
}

/// A request's body; without one it is `null`. What does not fit is told by place and not quoted, for it can hold a token.
pub(crate) struct Body<T>(T);

/// What a request says beside its path and query that says nothing more.
#[derive(serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Refusal;

    async fn from_request(request: Request, state: &S) -> Result<Self, Refusal> {
        let is_json = is_json(request.headers());
        let length = request.headers().get(header::CONTENT_LENGTH);
        let length = length.and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        if length.is_some_and(|length| length > BODY_LIMIT) {
            return Err(too_large());
        }
        let bytes = Bytes::from_request(request, state).await;
        let bytes = bytes.map_err(|e| match e.status() {
            StatusCode::PAYLOAD_TOO_LARGE => too_large(),
            _ => not_understood(e.body_text()),
        })?;
        if !bytes.is_empty() && !is_json {
            return Err(no_json());
        }
        let text = if bytes.is_empty() { b"null" } else { bytes.as_ref() };
        // The fields of an object would be taken from a list too, in their order.
        if text.trim_ascii_start().starts_with(b"[") {
            return Err(not_understood("its body is a list, and an object is wanted"));
        }
        serde_json::from_slice(text).map(Self).map_err(|e| {
            not_understood(format!(
                "its body is not what this resource takes ({:?} error at line {}, column {})",
                e.classify(),
                e.line(),
                e.column()
            ))
        })
    }
}

fn too_large() -> Refusal {
    let why = format!("its body has more than {} KiB", BODY_LIMIT >> 10);
    let problem = Problem::new(Exit::Usage, "too-large", "the request is not understood", why);
    Refusal(
        problem.cure("send less: nothing that this resource takes is so large").with_status(413),
    )
}

/// Whether the body is said to be JSON, with or without parameters.
fn is_json(headers: &HeaderMap) -> bool {
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next());
    kind.is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"))
}

/// A form of another site's page can send no JSON, so that this keeps them out too.
fn no_json() -> Refusal {
    let (title, why) =
        ("the request is not understood", "its body is not said to be application/json");
    let problem = Problem::new(Exit::Usage, "unsupported-media-type", title, why);
    Refusal(problem.cure("send it with the header content-type: application/json").with_status(415))
}

fn name(text: &str, title: &str) -> Result<FilesystemName, Problem> {
    text.parse().map_err(|e| problem::of_request(title, &e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_request_that_takes_too_long_is_answered_so() {
        let answer = in_time(std::future::pending()).await;
        assert_eq!(answer.status(), 504);
        assert_eq!(answer.headers()[header::CONTENT_TYPE], MEDIA_TYPE);
        assert_eq!(in_time(async { StatusCode::OK.into_response() }).await.status(), 200);
    }
}

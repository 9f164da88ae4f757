//! The web console: who may use it, and pages over the admin API.
//!
//! | module | its part |
//! |---|---|
//! | `access` | one-time codes and sessions |
//! | `door` | where it listens, over TLS beyond loopback |
//! | `guard` | hosts, origins, content types, and what browsers are held to |
//! | `ask` | the admin API, asked in the name of a session |
//! | `pages` | what is looked at |
//! | `acts` | what is sent by forms |
//!
//! A request comes through `guard`, then to its session; what it asks for is asked of the admin API, which does and records it as it
//! does what the command line asks for.

mod access;
mod acts;
mod ask;
mod door;
mod guard;
mod pages;

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use admin_api::{AuditChain, Exit, KmsCheck, KmsRehearsal, Problem};
use axum::body::Body;
use axum::extract::{DefaultBodyLimit, Form as Urlencoded, FromRequest, Path, Request, State};
use axum::http::header::{self, HeaderMap, HeaderValue};
use axum::http::uri::PathAndQuery;
use axum::http::{Method, StatusCode, Uri};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Redirect, Response};
use axum::routing::{any, get, post};
use axum::{Extension, Router};
use futures::StreamExt as _;
use kms_core::{AuditEvent, AuditSink as _, Outcome};
use tokio::time::sleep;
use url::form_urlencoded;
use web_console::{At, Page, Viewer};

pub(crate) use access::{Access, CODE_LIVES, Role, SESSION_IDLES, SESSION_LIVES, Session};
pub(crate) use door::Door;
pub use door::{Listen, Tls};

use crate::Shared;
use crate::api::{self, Caller, Refusal, status_of};
use access::NoEntry;
use ask::Api;
use guard::Origins;

/// Largest form: certificates are the largest thing that is typed.
const FORM_MOST: usize = 256 << 10;

/// What a page that renews itself says, so that it does not keep a session alive that nobody uses.
const LIVE: &str = "x-coffer-live";

/// Where a request of a script carries what a form has in a hidden input.
const CSRF: &str = "x-csrf-token";

/// What the handlers of the console share.
#[derive(Clone)]
struct Console {
    shared: Arc<Shared>,
    routes: Router,
    origins: Origins,
}

/// What was found last, to be shown until it is found anew.
#[derive(Default)]
pub(crate) struct Found {
    check: Mutex<Option<OfKms<KmsCheck>>>,
    rehearsal: Mutex<Option<OfKms<KmsRehearsal>>>,
    chain: Mutex<Option<At<AuditChain>>>,
}

/// Serves the console, if it is not served yet. Answers the origin of links to it.
pub(crate) async fn open(shared: &Arc<Shared>) -> Result<String, Problem> {
    let serving = Arc::clone(shared);
    shared.door.open(|origins| router(serving, origins)).await
}

/// Records the sessions that end by themselves.
pub(crate) async fn see_sessions_out(shared: &Shared) -> Infallible {
    loop {
        sleep(access::LOOK_EVERY).await;
        record_gone(shared);
    }
}

/// Records those that end with the node, too.
pub(crate) fn end_sessions(shared: &Shared) {
    record_gone(shared);
    for session in shared.access.sessions(shared.clock.now()) {
        shared.record_session(Outcome::Done, Some((&session, &session.by)), "ended, with the node");
    }
    shared.access.end_all();
}

fn record_gone(shared: &Shared) {
    for (session, why) in shared.access.gone(shared.clock.now()) {
        shared.record_session(Outcome::Done, Some((&session, &session.by)), why);
    }
}

/// What was found of the KMS that had this version; of another one it says nothing.
struct OfKms<T> {
    version: String,
    found: At<T>,
}

impl<T> OfKms<T> {
    fn of<'a>(kept: &'a Option<Self>, version: &str) -> Option<&'a At<T>> {
        kept.as_ref().filter(|kept| kept.version == version).map(|kept| &kept.found)
    }
}

/// The console as it is reached under these origins.
fn router(shared: Arc<Shared>, origins: Origins) -> Router {
    let routes = api::routes(Arc::clone(&shared));
    let console = Console { shared, routes, origins: origins.clone() };
    let known = middleware::from_fn_with_state(console.clone(), known);
    let inside = Router::new()
        .route("/", get(pages::overview))
        .route("/kms", get(pages::kms).post(acts::configure))
        .route("/kms/reset", post(acts::reset).get(to_kms))
        .route("/kms/rewrap", post(acts::rewrap).get(to_kms))
        .route("/kms/check", post(acts::check).get(to_kms))
        .route("/kms/rehearse", post(acts::rehearse).get(to_kms))
        .route("/filesystems", get(pages::filesystems).post(acts::create))
        .route("/filesystems/{name}", get(pages::filesystem))
        .route("/filesystems/{name}/files", get(pages::files))
        .route("/filesystems/{name}/{act}", post(acts::of_filesystem).get(to_filesystem))
        .route("/jobs", get(pages::jobs))
        .route("/jobs/{id}", get(pages::job))
        .route("/jobs/{id}/stop", post(acts::stop).get(to_job))
        .route("/audit", get(pages::audit))
        .route("/audit/verify", post(acts::verify_audit).get(async || Redirect::to("/audit")))
        .route("/logout", post(acts::log_out).get(async || Redirect::to("/")))
        .route("/v1/{*rest}", any(of_script))
        .fallback(pages::nowhere)
        .layer(known);
    Router::new()
        .route("/login", get(pages::login).post(acts::log_in))
        .route("/assets/{name}", get(asset))
        .merge(inside)
        .layer(DefaultBodyLimit::max(FORM_MOST))
        .layer(middleware::from_fn_with_state(origins, guard::guard))
        .with_state(console)
}

impl Shared {
    /// A session was opened or ended, and whose doing that was; or one was not opened.
    pub(crate) fn record_session(
        &self,
        outcome: Outcome,
        session: Option<(&Session, &str)>,
        what: &str,
    ) {
        self.audit.record(&self.of_session(outcome, session, what));
    }

    fn of_session(
        &self,
        outcome: Outcome,
        session: Option<(&Session, &str)>,
        what: &str,
    ) -> AuditEvent {
        let detail = match session.map(|(session, _)| session.role) {
            Some(Role::Administrator) => format!("{what} (administrator)"),
            Some(Role::Viewer) => format!("{what} (viewer)"),
            None => what.to_owned(),
        };
        AuditEvent {
            at: self.clock.now(),
            action: "console.session".to_owned(),
            subject: session.map(|(session, _)| session.id.clone()).unwrap_or_default(),
            outcome,
            who: session.map(|(_, who)| who.to_owned()),
            key: None,
            requests: Vec::new(),
            detail,
        }
    }
}

async fn to_kms() -> Redirect {
    Redirect::to("/kms")
}

async fn to_filesystem(Path((name, _)): Path<(String, String)>) -> Redirect {
    Redirect::to(&admin_api::paths::of_filesystem("/filesystems/{name}", &name))
}

async fn to_job(Path(id): Path<String>) -> Redirect {
    Redirect::to(&admin_api::paths::of_job("/jobs/{id}", &id))
}

/// Finds the session of a request; without one it goes no further.
async fn known(State(console): State<Console>, mut request: Request, next: Next) -> Response {
    let access = &console.shared.access;
    // Streams and renewals go on by themselves.
    let by_itself = request.headers().contains_key(LIVE)
        || request.uri().path().starts_with("/v1/") && api::looks(request.method());
    let acts = !by_itself;
    let now = console.shared.clock.now();
    let session = cookie(request.headers(), console.cookie_name());
    let session = session.and_then(|secret| access.session(secret, acts, now));
    if let Some(session) = session {
        request.extensions_mut().insert(session);
        return next.run(request).await;
    }
    if request.method() == Method::GET && !request.uri().path().starts_with("/v1/") {
        return Redirect::to(&to_login(request.uri())).into_response();
    }
    let (title, why) = ("the request is refused", "no session is open, or it has ended");
    let problem = Problem::new(Exit::State, "no-session", title, why);
    let problem =
        problem.cure("open one with the link that coffer console prints").with_status(401);
    console.refusal(&problem, request.uri().path())
}

/// Where one logs in, to go on to what was wanted.
fn to_login(wanted: &Uri) -> String {
    match wanted.path_and_query().map(PathAndQuery::as_str) {
        None | Some("/") => "/login".to_owned(),
        Some(next) => {
            let next: String = form_urlencoded::byte_serialize(next.as_bytes()).collect();
            format!("/login?next={next}")
        }
    }
}

/// What scripts ask of the API: to look, and with the session's token to change something.
async fn of_script(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    request: Request<Body>,
) -> Response {
    let title = "the request is refused";
    let looks = api::looks(request.method());
    let refused = if !looks && session.role == Role::Viewer {
        Some(may_not_change())
    } else if !looks && request.headers().get(CSRF).is_none_or(|it| it != session.csrf.as_str()) {
        Some(forged())
    } else if request.uri().path().starts_with("/v1/console/") {
        let why = "sessions are opened and ended over the unix socket";
        Some(
            Problem::new(Exit::State, "not-allowed", title, why)
                .cure("give coffer console on the node")
                .with_status(403),
        )
    } else {
        None
    };
    if let Some(problem) = refused {
        return Refusal::from(problem).into_response();
    }
    // Anew: what the routes of the console found in its path would count as found by those of the API.
    let (head, body) = request.into_parts();
    let mut request = Request::new(body);
    (*request.method_mut(), *request.uri_mut()) = (head.method, head.uri);
    *request.headers_mut() = head.headers;
    console
        .api(&session)
        .send(request)
        .await
        .map(|body| with_session(body, console.shared, session.id))
}

/// An answer that goes on, as events do, ends with the session that asked for it.
fn with_session(body: Body, shared: Arc<Shared>, id: String) -> Body {
    let ended = async move { shared.access.ended(&id, || shared.clock.now()).await };
    Body::from_stream(body.into_data_stream().take_until(Box::pin(ended)))
}

fn may_not_change() -> Problem {
    let (title, why) = ("the request is refused", "this session may only look");
    Problem::new(Exit::State, "read-only", title, why)
        .cure("have one opened that may change something: coffer console")
        .with_status(403)
}

fn forged() -> Problem {
    let (title, why) = ("the request is refused", "it does not carry this session's token");
    Problem::new(Exit::State, "csrf", title, why)
        .cure("load the page again, and send it from there")
        .with_status(403)
}

fn caller(session: &Session) -> Caller {
    Caller(format!("console session {}, opened by {}", session.id, session.by))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let all = headers.get_all(header::COOKIE).into_iter().filter_map(|it| it.to_str().ok());
    let mut pairs = all.flat_map(|it| it.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(key, _)| *key == name).map(|(_, value)| value)
}

impl Console {
    /// With TLS the name holds browsers to send it to this host alone, and only encrypted (RFC 6265bis, cookie prefixes).
    fn cookie_name(&self) -> &'static str {
        if self.origins.is_encrypted() { "__Host-coffer-session" } else { "coffer-session" }
    }

    /// Has the browser keep the secret of a session, or forget it.
    fn set_cookie(&self, secret: &str) -> HeaderValue {
        let secure = if self.origins.is_encrypted() { "; Secure" } else { "" };
        let forget = if secret.is_empty() { "; Max-Age=0" } else { "" };
        let name = self.cookie_name();
        let text = format!("{name}={secret}; Path=/; HttpOnly; SameSite=Strict{secure}{forget}");
        let mut value = HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""));
        value.set_sensitive(true);
        value
    }

    fn api(&self, session: &Session) -> Api {
        Api { routes: self.routes.clone(), caller: caller(session) }
    }

    /// A problem for somebody who is not known, in the form of the place that was asked.
    fn refusal(&self, problem: &Problem, path: &str) -> Response {
        if path.starts_with("/v1/") {
            return Refusal::from(problem.clone()).into_response();
        }
        let page =
            Page::outside("Not logged in").render(&web_console::back(problem, "/login", "Log in"));
        (status_of(problem), Html(page)).into_response()
    }

    /// A page for a session.
    fn page(&self, session: &Session, show: impl FnOnce(&Viewer<'_>) -> String) -> Html<String> {
        Html(show(&Viewer {
            csrf: &session.csrf,
            may_change: session.role == Role::Administrator,
            now: self.shared.clock.now().0,
        }))
    }
}

/// A form that a session sent: it carries the session's token, and the session may change something.
struct Submitted {
    session: Session,
    typed: HashMap<String, String>,
}

impl FromRequest<Console> for Submitted {
    type Rejection = Response;

    async fn from_request(request: Request, console: &Console) -> Result<Self, Response> {
        let path = request.uri().path().to_owned();
        let Some(session) = request.extensions().get::<Session>().cloned() else {
            return Err(console.refusal(&forged(), &path));
        };
        let refused = |problem: Problem| {
            let page = console.page(&session, |viewer| {
                Page::aside("Refused", viewer)
                    .at("/")
                    .render(&web_console::back(&problem, "/", "Overview"))
            });
            (status_of(&problem), page).into_response()
        };
        let typed = Urlencoded::<HashMap<String, String>>::from_request(request, console).await;
        let Urlencoded(mut typed) = typed.map_err(|e| {
            let problem = Problem::new(
                Exit::Usage,
                "bad-request",
                "the form is not understood",
                e.body_text(),
            );
            refused(
                problem
                    .cure("load the page again, and send it from there")
                    .with_status(e.status().as_u16()),
            )
        })?;
        if typed.remove("csrf").is_none_or(|token| token != session.csrf) {
            return Err(refused(forged()));
        }
        // Whoever may only look may leave.
        if session.role == Role::Viewer && path != "/logout" {
            return Err(refused(may_not_change()));
        }
        Ok(Self { session, typed })
    }
}

async fn asset(Path(name): Path<String>) -> Response {
    let Some(asset) = web_console::asset(&name) else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let kept = "public, max-age=31536000, immutable";
    ([(header::CONTENT_TYPE, asset.kind), (header::CACHE_CONTROL, kept)], asset.content)
        .into_response()
}

/// Why no session was opened.
fn no_entry(why: &NoEntry) -> Problem {
    let title = "no session is opened";
    match why {
        NoEntry::Wrong => Problem::new(
            Exit::State,
            "code-wrong",
            title,
            "the code is wrong, was used, or is older than a minute",
        )
        .cure("have a new one printed: coffer console")
        .with_status(403),
        NoEntry::TooMany(left) => {
            let why = format!(
                "too many codes were wrong: none is looked at for {} s",
                left.as_secs() + 1
            );
            Problem::new(Exit::State, "too-many-codes", title, why)
                .cure("wait that long, and have a new one printed: coffer console")
                .with_status(429)
        }
    }
}

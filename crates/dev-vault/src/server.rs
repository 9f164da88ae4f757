//! The HTTP side: requests in, answers out, and the faults between them.

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use axum::{
    Router,
    body::Body,
    extract::{ConnectInfo, Query, State, connect_info::Connected},
    http::{HeaderMap, HeaderValue, Method, Response, header},
    middleware::map_response_with_state,
    serve::{IncomingStream, Listener},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
};

use crate::{
    answer::Refusal,
    broken, clock, control,
    core::Core,
    faults::{Fault, Faults, RequestLog, Strike},
    request::{Fields, Operation, Request},
};

/// Vault's `max_request_size`.
const MAX_BODY: usize = 32 << 20;

pub(crate) struct Shared {
    pub(crate) core: Core,
    pub(crate) faults: Faults,
    pub(crate) requests: RequestLog,
}

/// Serves until the future is dropped.
pub(crate) async fn serve(listener: TcpListener, shared: Arc<Shared>) -> io::Result<()> {
    let routes = Router::new().fallback(answer).with_state(shared.clone());
    let routes = routes.layer(map_response_with_state(shared, dated));
    axum::serve(Door(listener), routes.into_make_service_with_connect_info::<Cut>()).await
}

/// Dates an answer by this server's clock, which may be another than the system's.
async fn dated(State(shared): State<Arc<Shared>>, mut response: Response<Body>) -> Response<Body> {
    if let Ok(now) = HeaderValue::try_from(clock::http_date(shared.core.clock().now())) {
        response.headers_mut().entry(header::DATE).or_insert(now);
    }
    response
}

async fn answer(
    State(shared): State<Arc<Shared>>,
    ConnectInfo(cut): ConnectInfo<Cut>,
    request: axum::extract::Request,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let Some(path) = head.uri.path().strip_prefix("/v1/") else {
        return refuse(Refusal::not_found());
    };
    let path = path.trim_matches('/').to_owned();
    let token = token_in(&head.headers);
    let query = Query::<HashMap<String, String>>::try_from_uri(&head.uri);
    let mut query = query.map(|Query(query)| query).unwrap_or_default();
    let is_list = query.remove("list").is_some_and(|list| list == "true" || list == "1");
    let operation = match head.method {
        Method::GET | Method::HEAD if is_list => Operation::List,
        Method::GET | Method::HEAD => Operation::Read,
        Method::POST | Method::PUT => Operation::Update,
        Method::DELETE => Operation::Delete,
        method if method.as_str() == "LIST" => Operation::List,
        _ => return refuse(Refusal::unsupported_operation()),
    };
    let body = axum::body::to_bytes(body, MAX_BODY).await;
    let fields = match (operation, body) {
        (Operation::Update, Ok(body)) => read_fields(&body),
        (Operation::Update, Err(_)) => {
            Err(Refusal::new(500, "failed to parse JSON input: http: request body too large"))
        }
        _ => Ok(Fields(query.into_iter().map(|(name, value)| (name, json!(value))).collect())),
    };

    if let Some(path) = path.strip_prefix("dev/") {
        let done = fields
            .and_then(|fields| control::handle(&shared, operation, path, token.as_deref(), fields));
        return done.map_or_else(refuse, respond);
    }
    let items = fields.as_ref().ok().and_then(|fields| fields.raw("batch_input")?.as_array());
    shared.requests.add(&path, items.map_or(1, Vec::len));
    let Strike { events, fault } = shared.faults.strike(&path);
    for event in events {
        if let Err(refusal) = shared.core.happen(&event) {
            let why = refusal.render().1;
            let error = format!("an event of the fault plan can't happen: {event:?}: {why}");
            return refuse(Refusal::internal(&error));
        }
    }
    let asked = path.clone();
    let answer = || match fields {
        Ok(fields) => shared.core.handle(Request { operation, path, token, fields }),
        Err(refusal) => {
            let (status, body) = refusal.render();
            (status, Some(body))
        }
    };
    match fault {
        None => respond(answer()),
        Some(Fault::Delay { milliseconds }) => {
            tokio::time::sleep(Duration::from_millis(milliseconds)).await;
            respond(answer())
        }
        Some(Fault::Drop) => cut.now(),
        Some(Fault::DropAnswer) => {
            answer();
            cut.now()
        }
        Some(Fault::Status { status, body, headers }) => arranged(status, body, headers),
        Some(Fault::Html) => broken::html(),
        Some(Fault::Truncate) => broken::truncated(respond(answer())).await,
        Some(Fault::Endless) => broken::endless(),
        Some(Fault::Drip { bytes, milliseconds, slower_by }) => {
            let [pause, longer] = [milliseconds, slower_by].map(Duration::from_millis);
            broken::dripped(respond(answer()), bytes, pause, longer).await
        }
        Some(Fault::Oversized { bytes }) => broken::padded(respond(answer()), bytes).await,
        Some(Fault::Redirect { location, status }) => {
            let path = head.uri.path_and_query().map_or("", |path| path.as_str());
            broken::redirect(status, &location, path)
        }
        Some(Fault::PartialBatch { every, error }) => {
            let mut answer = answer();
            broken::fail_items(&asked, every, &error, &mut answer);
            respond(answer)
        }
        Some(Fault::RateLimit { milliseconds, .. }) => {
            broken::rate_limited(&asked, Duration::from_millis(milliseconds))
        }
    }
}

fn token_in(headers: &HeaderMap) -> Option<String> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let bearer = || text("authorization")?.strip_prefix("Bearer ").map(str::trim);
    text("x-vault-token").or_else(bearer).filter(|token| !token.is_empty()).map(str::to_owned)
}

fn read_fields(body: &[u8]) -> Result<Fields, Refusal> {
    if body.is_empty() {
        return Ok(Fields::default());
    }
    match serde_json::from_slice(body) {
        Ok(Value::Object(fields)) => Ok(Fields(fields)),
        Ok(Value::Null) => Ok(Fields::default()),
        Ok(_) => Err(Refusal::invalid(
            "error parsing JSON: failed to parse JSON input: expected an object",
        )),
        Err(e) => Err(Refusal::new(500, format!("failed to parse JSON input: {e}"))),
    }
}

fn refuse(refusal: Refusal) -> Response<Body> {
    let (status, body) = refusal.render();
    respond((status, Some(body)))
}

fn respond((status, body): (u16, Option<Value>)) -> Response<Body> {
    let json = ("content-type".to_owned(), "application/json".to_owned());
    match body {
        None => arranged(status, String::new(), [json]),
        // Vault ends its JSON with a line break.
        Some(body) => arranged(status, format!("{body}\n"), [json]),
    }
}

/// Builds what a fault asks for, or as much of it as HTTP allows.
pub(crate) fn arranged(
    status: u16,
    body: String,
    headers: impl IntoIterator<Item = (String, String)>,
) -> Response<Body> {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() =
        status.try_into().unwrap_or(axum::http::StatusCode::INTERNAL_SERVER_ERROR);
    let sent = response.headers_mut();
    sent.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    sent.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    sent.insert("x-coffer-dev-vault", HeaderValue::from_static("insecure"));
    for (name, value) in headers {
        if let (Ok(name), Ok(value)) =
            (header::HeaderName::try_from(name), HeaderValue::try_from(value))
        {
            sent.insert(name, value);
        }
    }
    response
}

/// A listener whose connections can be cut by who answers on them.
struct Door(TcpListener);

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        // axum's own accept, which retries.
        let (stream, peer) = Listener::accept(&mut self.0).await;
        // An answer is written in one piece; waiting for more only delays it.
        stream.set_nodelay(true).ok();
        (Connection { stream, cut: Cut::default() }, peer)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// Ends a connection from inside a handler.
#[derive(Clone, Default)]
struct Cut(Arc<AtomicBool>);

impl Cut {
    /// The response is never sent: writing it fails, and that closes the connection.
    fn now(&self) -> Response<Body> {
        self.0.store(true, Ordering::Relaxed);
        Response::new(Body::empty())
    }
}

impl Connected<IncomingStream<'_, Door>> for Cut {
    fn connect_info(stream: IncomingStream<'_, Door>) -> Self {
        stream.io().cut.clone()
    }
}

struct Connection {
    stream: TcpStream,
    cut: Cut,
}

impl Connection {
    fn writer(&mut self) -> io::Result<Pin<&mut TcpStream>> {
        if self.cut.0.load(Ordering::Relaxed) {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        Ok(Pin::new(&mut self.stream))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.writer()?.poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.writer()?.poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

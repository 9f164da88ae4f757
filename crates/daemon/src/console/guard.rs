//! What every request that comes over the network goes through, before anybody asks who it is from.
//!
//! A browser sends cookies with whatever any page has it ask for. So a request has to be addressed to a name that is ours (against DNS
//! rebinding), and one that changes something has to come from a page of ours and to be of a kind that a foreign form can't send.

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, Problem};
use axum::body::{Body, to_bytes};
use axum::extract::{Request, State};
use axum::http::HeaderMap;
use axum::http::header::{self, HeaderName, HeaderValue};
use axum::middleware::Next;
use axum::response::{Html, IntoResponse as _, Response};
use tokio::time::timeout;
use web_console::Page;

use crate::api::{BODY_LIMIT, Refusal, looks};

/// How long the body of a request may take: nothing that is sent here is large.
const BODY_WITHIN: Duration = Duration::from_secs(20);

/// What browsers hold pages of the console to.
const HEADERS: [(HeaderName, &str); 8] = [
    (
        header::CONTENT_SECURITY_POLICY,
        "default-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; object-src 'none'",
    ),
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    // With `no-referrer` the origin of a form of ours would be `null` too.
    (header::REFERRER_POLICY, "same-origin"),
    (HeaderName::from_static("cross-origin-opener-policy"), "same-origin"),
    (HeaderName::from_static("cross-origin-resource-policy"), "same-origin"),
    (HeaderName::from_static("permissions-policy"), "camera=(), geolocation=(), microphone=()"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Where the console is, as a browser names it.
#[derive(Debug, Clone)]
pub(crate) struct Origins(Arc<[Origin]>);

/// A scheme, and a host with its port.
#[derive(Debug, Clone)]
struct Origin {
    scheme: &'static str,
    host: String,
}

impl Origins {
    /// The names under which one address is reached, the first of which links are made with.
    pub(crate) fn new(scheme: &'static str, hosts: impl IntoIterator<Item = String>) -> Self {
        Self(hosts.into_iter().map(|host| Origin { scheme, host: host.to_lowercase() }).collect())
    }

    /// That of a link.
    pub(crate) fn first(&self) -> String {
        self.0.first().map(|it| format!("{}://{}", it.scheme, it.host)).unwrap_or_default()
    }

    pub(crate) fn is_encrypted(&self) -> bool {
        self.0.first().is_some_and(|it| it.scheme == "https")
    }

    fn has_host(&self, host: &str) -> bool {
        self.0.iter().any(|it| it.host == host.to_lowercase())
    }

    /// Whether a page under `origin` is ours, when it asks `host`.
    fn is_own(&self, origin: &str, host: &str) -> bool {
        let own = |it: &&Origin| it.host == host.to_lowercase();
        self.0.iter().filter(own).any(|it| origin == format!("{}://{}", it.scheme, it.host))
    }
}

/// Lets in what a page of ours can have sent, and adds what browsers are to hold its answer to.
pub(crate) async fn guard(
    State(origins): State<Origins>,
    request: Request,
    next: Next,
) -> Response {
    let is_asset = request.uri().path().starts_with("/assets/");
    let mut response = match refused(&origins, &request) {
        Some(problem) => {
            tracing::warn!(method = %request.method(), path = request.uri().path(), code = problem.code, "refused a request to the console");
            Refusal::from(problem).into_response()
        }
        None => match in_memory(request).await {
            Ok(request) => in_a_page(next.run(request).await),
            Err(problem) => Refusal::from(problem).into_response(),
        },
    };
    for (name, value) in HEADERS {
        // An asset says for how long it may be kept.
        if !(is_asset && name == header::CACHE_CONTROL) {
            response.headers_mut().insert(name, HeaderValue::from_static(value));
        }
    }
    response
}

/// The request with its whole body, which comes soon: who sends it bit by bit does not hold a connection.
async fn in_memory(request: Request) -> Result<Request, Problem> {
    let title = "the request is refused";
    let (head, body) = request.into_parts();
    let read = timeout(BODY_WITHIN, to_bytes(body, BODY_LIMIT)).await;
    let read = read.map_err(|_| {
        let why = format!("its body did not come within {} s", BODY_WITHIN.as_secs());
        Problem::new(Exit::Usage, "too-slow", title, why).cure("send it at once").with_status(408)
    })?;
    let body = read.map_err(|_| {
        let why = format!("its body was cut off, or has more than {} KiB", BODY_LIMIT >> 10);
        Problem::new(Exit::Usage, "too-large", title, why).cure("send less").with_status(413)
    })?;
    Ok(Request::from_parts(head, Body::from(body)))
}

/// A refusal of the HTTP library, which is a bare text or nothing, as a page with the way on.
fn in_a_page(response: Response) -> Response {
    let kind = response.headers().get(header::CONTENT_TYPE);
    let is_bare = kind.is_none_or(|kind| kind.as_bytes().starts_with(b"text/plain"));
    let status = response.status();
    if !status.is_client_error() || !is_bare {
        return response;
    }
    let (title, why) =
        ("the request is not understood", "something in its address or form can't be so");
    let problem = Problem::new(Exit::Usage, "bad-request", title, why);
    let problem = problem.cure("go on from the overview");
    let page = Page::outside("Not understood");
    (status, Html(page.render(&web_console::back(&problem, "/", "Overview")))).into_response()
}

fn refused(origins: &Origins, request: &Request) -> Option<Problem> {
    let title = "the request is refused";
    let text = |name: HeaderName| request.headers().get(name).and_then(|it| it.to_str().ok());
    let host = text(header::HOST).unwrap_or_default();
    let hosts = request.headers().get_all(header::HOST).iter().count();
    if hosts != 1 || !origins.has_host(host) {
        let why = "it is addressed to a host that is not the console's";
        let cure = "open the link that coffer console prints, or name the host with --console-host when the node starts";
        let problem = Problem::new(Exit::Usage, "foreign-host", title, why).cure(cure);
        return Some(problem.with_status(421));
    }
    if looks(request.method()) {
        return None;
    }
    let origin = text(header::ORIGIN).unwrap_or_default();
    let site = text(HeaderName::from_static("sec-fetch-site"));
    if !origins.is_own(origin, host) || site.is_some_and(|site| site != "same-origin") {
        let why = "it does not come from a page of the console";
        let problem = Problem::new(Exit::State, "foreign-origin", title, why);
        return Some(problem.cure("use the console's own pages").with_status(403));
    }
    let wanted = match request.uri().path().starts_with("/v1/") {
        true => "application/json",
        false => "application/x-www-form-urlencoded",
    };
    if has_body(request.headers()) && !is_of_kind(text(header::CONTENT_TYPE), wanted) {
        let why = format!("its content is not {wanted}");
        let problem = Problem::new(Exit::Usage, "content-type", title, why);
        return Some(problem.cure(format!("send content-type: {wanted}")).with_status(415));
    }
    None
}

fn has_body(headers: &HeaderMap) -> bool {
    let length = headers.get(header::CONTENT_LENGTH);
    headers.contains_key(header::TRANSFER_ENCODING) || length.is_some_and(|length| length != "0")
}

fn is_of_kind(content_type: Option<&str>, wanted: &str) -> bool {
    let kind = content_type.and_then(|kind| kind.split(';').next()).unwrap_or_default();
    kind.trim().eq_ignore_ascii_case(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(method: &str, path: &str, headers: &[(&str, &str)]) -> Option<String> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let origins = Origins::new("http", ["127.0.0.1:80".to_owned(), "localhost:80".to_owned()]);
        refused(&origins, &request.body(Body::empty()).unwrap()).map(|problem| problem.code)
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_comes_soon_and_is_not_large() {
        let sent = |body| in_memory(Request::builder().body(body).unwrap());
        let never =
            Body::from_stream(futures::stream::pending::<Result<Vec<u8>, std::io::Error>>());
        let problem = sent(never).await.unwrap_err();
        assert_eq!((problem.code.as_str(), problem.status), ("too-slow", 408));
        let problem = sent(Body::from(vec![0; BODY_LIMIT + 1])).await.unwrap_err();
        assert_eq!((problem.code.as_str(), problem.status), ("too-large", 413));
        let whole = sent(Body::from("csrf=x")).await.unwrap().into_body();
        assert_eq!(to_bytes(whole, BODY_LIMIT).await.unwrap(), "csrf=x");
    }

    #[test]
    fn only_a_host_of_ours_is_served() {
        assert_eq!(refusal("GET", "/", &[("host", "LocalHost:80")]), None);
        for host in ["evil.example", "127.0.0.1", "127.0.0.1:81", "", "localhost:80.evil.example"] {
            assert_eq!(refusal("GET", "/", &[("host", host)]).as_deref(), Some("foreign-host"));
        }
        let two = [("host", "localhost:80"), ("host", "evil.example")];
        assert_eq!(refusal("GET", "/", &two).as_deref(), Some("foreign-host"));
    }

    #[test]
    fn what_changes_something_comes_from_a_page_of_ours() {
        let (host, own) = (("host", "localhost:80"), ("origin", "http://localhost:80"));
        assert_eq!(refusal("POST", "/kms", &[host, own]), None);
        for headers in [
            &[host][..],
            &[host, ("origin", "null")],
            &[host, ("origin", "http://evil.example")],
            &[host, ("origin", "https://localhost:80")],
            // Another of our names is another site to a browser.
            &[host, ("origin", "http://127.0.0.1:80")],
            &[host, own, ("sec-fetch-site", "cross-site")],
            &[host, own, ("sec-fetch-site", "same-site")],
        ] {
            for method in ["POST", "PUT", "DELETE", "PATCH"] {
                let refused = refusal(method, "/kms", headers);
                assert_eq!(refused.as_deref(), Some("foreign-origin"), "{headers:?}");
            }
        }
    }

    #[test]
    fn a_body_is_of_the_kind_that_its_place_takes() {
        let sent = |path, kind| {
            let headers = [
                ("host", "localhost:80"),
                ("origin", "http://localhost:80"),
                ("content-length", "5"),
                ("content-type", kind),
            ];
            refusal("POST", path, &headers)
        };
        assert_eq!(sent("/kms", "application/x-www-form-urlencoded"), None);
        assert_eq!(sent("/v1/kms/check", "application/json; charset=utf-8"), None);
        for (path, kind) in [
            ("/kms", "text/plain"),
            ("/kms", "multipart/form-data; boundary=x"),
            ("/kms", "application/json"),
            ("/kms", ""),
            ("/v1/kms/check", "text/plain"),
            ("/v1/kms/check", "application/x-www-form-urlencoded"),
        ] {
            assert_eq!(sent(path, kind).as_deref(), Some("content-type"), "{path} {kind}");
        }
    }
}

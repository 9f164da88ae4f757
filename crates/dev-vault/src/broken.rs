//! Answers that no well Vault gives, or that don't come through whole.

use std::{io, time::Duration};

use axum::{
    body::{Body, Bytes},
    http::{HeaderValue, Response, header},
};
use futures::{StreamExt, stream};
use serde_json::{Value, json};

use crate::server::arranged;

/// What a proxy answers that wants a login.
pub(crate) fn html() -> Response<Body> {
    arranged(
        200,
        "<!DOCTYPE html><html><body>Please sign in to the network.</body></html>".to_owned(),
        [("content-type".to_owned(), "text/html".to_owned())],
    )
}

/// Sends `path` (as `/v1/…`, with its query) to another place.
pub(crate) fn redirect(status: u16, location: &str, path: &str) -> Response<Body> {
    let location = location.replace("{path}", path);
    arranged(status, String::new(), [("location".to_owned(), location)])
}

/// What Vault says to a request beyond a quota.
pub(crate) fn rate_limited(path: &str, wait: Duration) -> Response<Body> {
    let error = format!("request path {path:?}: rate limit quota exceeded");
    let seconds = wait.as_millis().div_ceil(1000).to_string();
    let body = format!("{}\n", json!({ "errors": [error] }));
    arranged(429, body, [("retry-after".to_owned(), seconds)])
}

/// Lets each so-manieth item of a batch fail, in the way of the newest Vault. Answers without items stay as they are.
pub(crate) fn fail_items(path: &str, every: u64, error: &str, answer: &mut (u16, Option<Value>)) {
    let (status, Some(body)) = answer else { return };
    let Some(results) = body["data"]["batch_results"].as_array_mut() else { return };
    let act = path.rsplit('/').nth(1).unwrap_or_default();
    for (n, result) in (1_u64..).zip(results.iter_mut()) {
        if n % every.max(1) != 0 {
            continue;
        }
        let mut failed = json!({ "error": error, "reference": result["reference"] });
        if act == "decrypt" {
            failed["plaintext"] = json!("");
        }
        *result = failed;
        if act != "rewrap" && *status == 200 {
            *status = 400;
        }
    }
    if *status != 200 {
        body["mount_type"] = json!("");
    }
}

/// Announces the whole length, sends half of it, and closes.
pub(crate) async fn truncated(whole: Response<Body>) -> Response<Body> {
    let (mut head, body) = read(whole).await;
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let half = body.slice(..body.len() / 2);
    let parts = stream::unfold(Some(half), |half| async {
        match half {
            Some(half) => Some((Ok(half), None)),
            None => {
                // The half goes out before the error closes the connection.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Some((Err(io::Error::from(io::ErrorKind::ConnectionReset)), None))
            }
        }
    });
    Response::from_parts(head, Body::from_stream(parts))
}

/// Announces the whole length, and sends it in pieces with a pause before each, that grows by `longer`.
pub(crate) async fn dripped(
    whole: Response<Body>,
    piece: u64,
    pause: Duration,
    longer: Duration,
) -> Response<Body> {
    let (mut head, body) = read(whole).await;
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    let piece = usize::try_from(piece.max(1)).unwrap_or(usize::MAX);
    let pieces = stream::unfold((body, pause), move |(mut rest, pause)| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(pause).await;
        let next = rest.split_to(piece.min(rest.len()));
        Some((Ok::<_, io::Error>(next), (rest, pause.saturating_add(longer))))
    });
    Response::from_parts(head, Body::from_stream(pieces))
}

/// Adds spaces, which are nothing to JSON, until the answer has `bytes`.
pub(crate) async fn padded(whole: Response<Body>, bytes: u64) -> Response<Body> {
    let (mut head, body) = read(whole).await;
    let missing = bytes.saturating_sub(body.len() as u64);
    head.headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len() as u64 + missing));
    let spaces = stream::unfold(missing, |missing| async move {
        let next = CHUNK.min(missing);
        (next > 0).then(|| (spaces(next), missing - next))
    });
    let chunks = stream::iter([body]).chain(spaces).map(Ok::<_, io::Error>);
    Response::from_parts(head, Body::from_stream(chunks))
}

/// JSON that never ends.
pub(crate) fn endless() -> Response<Body> {
    let start = stream::iter([Bytes::from_static(b"{\"data\":\"")]);
    let rest = stream::repeat(Bytes::from_static(&[b'A'; CHUNK as usize]));
    let mut response = arranged(200, String::new(), []);
    *response.body_mut() = Body::from_stream(start.chain(rest).map(Ok::<_, io::Error>));
    response
}

const CHUNK: u64 = 64 << 10;

fn spaces(count: u64) -> Bytes {
    const SPACES: &[u8; CHUNK as usize] = &[b' '; CHUNK as usize];
    Bytes::from_static(SPACES).slice(..usize::try_from(count).unwrap_or(0))
}

async fn read(response: Response<Body>) -> (axum::http::response::Parts, Bytes) {
    let (head, body) = response.into_parts();
    (head, axum::body::to_bytes(body, usize::MAX).await.unwrap_or_default())
}

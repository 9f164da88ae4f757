//! One request, one answer or one problem.

use std::error::Error as _;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use admin_api::{Exit, MEDIA_TYPE, Problem};
use reqwest::header::CONTENT_TYPE;
use reqwest::{Method, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Longer than any deadline that the node sets itself; a node that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(180);

/// A node, reached over its unix socket.
pub(crate) struct Client {
    http: reqwest::Client,
    socket: PathBuf,
}

impl Client {
    /// Connects with the first request.
    pub(crate) fn new(socket: PathBuf) -> Result<Self, Problem> {
        let http = reqwest::Client::builder()
            .unix_socket(socket.as_path())
            // The socket's permissions are the trust; there is no TLS to load certificates for.
            .tls_certs_only([])
            .timeout(DEADLINE)
            .build()
            .map_err(|e| {
                Problem::new(Exit::Failed, "client", "no request can be made", e.to_string())
                    .cure("name the node's socket with --socket PATH or COFFER_SOCKET")
            })?;
        Ok(Self { http, socket })
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.ask(Method::GET, path, None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::POST, path, Some(body)).await
    }

    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::PUT, path, Some(body)).await
    }

    pub(crate) async fn delete<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.ask(Method::DELETE, path, None::<&()>).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let mut request = self.http.request(method, format!("http://coffer{path}"));
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|e| self.no_answer(&e))?;
        let is_problem = response
            .headers()
            .get(CONTENT_TYPE)
            .is_some_and(|kind| kind.as_bytes().starts_with(MEDIA_TYPE.as_bytes()));
        if is_problem {
            return Err(self.read(response).await?);
        }
        if response.status().is_success() {
            return self.read(response).await;
        }
        Err(not_understood(format!("it answered {} without saying why", response.status())))
    }

    async fn read<T: DeserializeOwned>(&self, response: Response) -> Result<T, Problem> {
        let bytes = response.bytes().await.map_err(|e| self.no_answer(&e))?;
        serde_json::from_slice(&bytes).map_err(|e| not_understood(e.to_string()))
    }

    fn no_answer(&self, error: &reqwest::Error) -> Problem {
        let title = format!("no node answers at {}", self.socket.display());
        if error.is_timeout() {
            let why = format!("nothing came within {} s", DEADLINE.as_secs());
            return Problem::new(Exit::NoNode, "no-node", title, why)
                .cure("see the node's log; if it hangs, start it again");
        }
        let (why, cure) = match io_kind(error) {
            Some(io::ErrorKind::NotFound) => ("there is no such socket", START),
            Some(io::ErrorKind::ConnectionRefused) => {
                ("the socket is there, and nobody listens on it", START)
            }
            Some(io::ErrorKind::PermissionDenied) => {
                ("the socket belongs to another user", "be the user who runs the node, or root")
            }
            Some(io::ErrorKind::InvalidInput) => {
                ("the path is too long for a socket", "give a shorter one with --socket PATH")
            }
            _ => ("the connection broke before the answer was complete", START),
        };
        Problem::new(Exit::NoNode, "no-node", title, why).cure(cure)
    }
}

const START: &str =
    "start it with coffer serve, or name its socket with --socket PATH or COFFER_SOCKET";

fn not_understood(why: String) -> Problem {
    Problem::new(Exit::Failed, "answer-not-understood", "the node's answer is not understood", why)
        .cure("use the command line of the node's own version")
}

fn io_kind(error: &reqwest::Error) -> Option<io::ErrorKind> {
    let mut next = error.source();
    while let Some(error) = next {
        if let Some(error) = error.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = error.source();
    }
    None
}

//! A node that answers from a script, over a real unix socket.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::{HeaderValue, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use cli::{Console, Outcome};
use serde_json::{Value, json};
use tokio::net::UnixListener;

/// Answers by method and path with query; the last of several answers is repeated.
type Script = HashMap<String, Vec<(u16, Value)>>;

/// What the node was asked: method and path, and the body.
type Asked = Arc<Mutex<Vec<(String, Value)>>>;

pub(crate) struct Node {
    directory: tempfile::TempDir,
    asked: Asked,
    _runtime: tokio::runtime::Runtime,
}

/// How a run of the command line ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: u8,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Node {
    pub(crate) fn answering<'a>(answers: impl IntoIterator<Item = (&'a str, u16, Value)>) -> Self {
        let mut script = Script::new();
        for (request, status, answer) in answers {
            script.entry(request.to_owned()).or_default().push((status, answer));
        }
        let directory = tempfile::tempdir().unwrap();
        let asked = Asked::default();
        let state = (Arc::new(Mutex::new(script)), Arc::clone(&asked));
        let router = Router::new().fallback(answer).with_state(state);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let guard = runtime.enter();
        let listener = UnixListener::bind(directory.path().join("socket")).unwrap();
        drop(guard);
        runtime.spawn(async move { axum::serve(listener, router).await });
        Self { directory, asked, _runtime: runtime }
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn asked(&self) -> Vec<(String, Value)> {
        self.asked.lock().unwrap().clone()
    }

    pub(crate) fn run(&self, line: &[&str]) -> Ran {
        self.run_with_stdin(line, "")
    }

    pub(crate) fn run_with_stdin(&self, line: &[&str], stdin: &str) -> Ran {
        let socket = self.socket();
        let node = ["coffer", "--socket", socket.to_str().unwrap()];
        run(node.into_iter().chain(line.iter().copied()), stdin)
    }
}

pub(crate) fn run<'a>(line: impl IntoIterator<Item = &'a str>, stdin: &str) -> Ran {
    let (mut stdin, mut stdout, mut stderr) = (stdin.as_bytes(), Vec::new(), Vec::new());
    let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr);
    let outcome = cli::run(line, &mut console);
    let Outcome::Exit(exit) = outcome else { panic!("{outcome:?} needs no node") };
    Ran {
        code: exit.code(),
        stdout: String::from_utf8(stdout).unwrap(),
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

/// A problem as a node answers it.
pub(crate) fn problem(status: u16, exit: &str, cure: Option<&str>) -> Value {
    let mut problem = json!({
        "type": "urn:coffer:problem:x", "code": "x", "title": "what failed", "detail": "why",
        "status": status, "exit": exit,
    });
    if let Some(cure) = cure {
        problem["cure"] = cure.into();
    }
    problem
}

async fn answer(
    State((script, asked)): State<(Arc<Mutex<Script>>, Asked)>,
    method: Method,
    uri: Uri,
    body: Bytes,
) -> Response {
    let request = format!("{method} {uri}");
    let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
    asked.lock().unwrap().push((request.clone(), body));
    let mut script = script.lock().unwrap();
    let Some(answers) = script.get_mut(&request) else {
        return (StatusCode::NOT_FOUND, format!("{request} is not in the script")).into_response();
    };
    let (status, answer) = if answers.len() > 1 { answers.remove(0) } else { answers[0].clone() };
    let kind = if status < 400 { "application/json" } else { "application/problem+json" };
    let mut response = answer.to_string().into_response();
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

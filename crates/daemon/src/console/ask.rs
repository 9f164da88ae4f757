//! How the console asks the node: through the admin API, as the command line does, so that both do and record the same.

use admin_api::{Exit, Problem};
use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::header::{CONTENT_TYPE, IF_MATCH};
use axum::http::{HeaderName, Method, Request};
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;

use crate::api::Caller;
use crate::problem;

/// More than any answer of the API has.
const ANSWER_MOST: usize = 64 << 20;

/// The API, asked in the name of a session.
#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) routes: Router,
    pub(crate) caller: Caller,
}

impl Api {
    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Problem> {
        self.ask(Method::GET, path, &[], None::<&()>).await
    }

    pub(crate) async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::POST, path, &[], Some(body)).await
    }

    /// Changes what was seen with this version.
    pub(crate) async fn put<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
        body: &impl Serialize,
    ) -> Result<T, Problem> {
        self.ask(Method::PUT, path, &matching(version), Some(body)).await
    }

    /// Removes what was seen with this version, if it has one.
    pub(crate) async fn delete<T: DeserializeOwned>(
        &self,
        path: &str,
        version: &str,
    ) -> Result<T, Problem> {
        self.ask(Method::DELETE, path, &matching(version), None::<&()>).await
    }

    /// The answer as it comes.
    pub(crate) async fn send(&self, mut request: Request<Body>) -> Response {
        request.extensions_mut().insert(self.caller.clone());
        match self.routes.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        headers: &[(HeaderName, String)],
        body: Option<&impl Serialize>,
    ) -> Result<T, Problem> {
        let broken = |why: String| problem::internal("the node can't be asked", why);
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = match body {
            Some(body) => {
                request = request.header(CONTENT_TYPE, "application/json");
                Body::from(serde_json::to_vec(body).map_err(|e| broken(e.to_string()))?)
            }
            None => Body::empty(),
        };
        let request = request.body(body).map_err(|e| broken(e.to_string()))?;
        let response = self.send(request).await;
        let done = response.status().is_success();
        let is_problem =
            response.headers().get(CONTENT_TYPE).is_some_and(|kind| kind == admin_api::MEDIA_TYPE);
        let bytes = to_bytes(response.into_body(), ANSWER_MOST).await;
        let bytes = bytes.map_err(|e| broken(e.to_string()))?;
        if done && !is_problem {
            return serde_json::from_slice(&bytes).map_err(|e| broken(e.to_string()));
        }
        Err(serde_json::from_slice(&bytes).unwrap_or_else(|_| {
            Problem::new(
                Exit::Usage,
                "bad-request",
                "the request is not understood",
                String::from_utf8_lossy(&bytes),
            )
        }))
    }
}

fn matching(version: &str) -> Vec<(HeaderName, String)> {
    if version.is_empty() { Vec::new() } else { vec![(IF_MATCH, format!("\"{version}\""))] }
}

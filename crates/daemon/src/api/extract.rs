//! What requests say in their path and query, or the problem that stands in its place: axum's own refusals are plain text.

use admin_api::{Exit, Problem};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::Refusal;

/// A request that says what this resource does not take.
pub(crate) fn not_understood(why: impl Into<String>) -> Refusal {
    let title = "the request is not understood";
    Problem::new(Exit::Usage, "bad-request", title, why)
        .cure("use the command line of the node's own version, or ask as the description of its API says")
        .into()
}

/// What stands in the path.
pub(crate) struct Path<T>(pub(crate) T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Path<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let path = axum::extract::Path::from_request_parts(parts, state).await;
        path.map(|path| Self(path.0)).map_err(|e| not_understood(e.body_text()))
    }
}

/// The query.
pub(crate) struct Query<T>(pub(crate) T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Query<T> {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Refusal> {
        let query = axum::extract::Query::from_request_parts(parts, state).await;
        query.map(|query| Self(query.0)).map_err(|e| not_understood(e.body_text()))
    }
}

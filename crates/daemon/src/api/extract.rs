//! What requests say in their path and query, or the problem that stands in its place: axum's own refusals are plain text.

use admin_api::{Exit, Problem, paths};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use serde::de::{DeserializeOwned, Error as _};
use serde::{Deserialize, Deserializer};
use utoipa::IntoParams;

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

/// Which page of a list is wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Page {
    /// Only those after this one: the last page's `next`.
    pub(super) after: Option<String>,
    /// How many, at most 1000.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1000)]
    limit: Option<Limit<{ paths::PAGE_LIMIT }>>,
}

impl Page {
    pub(super) fn limit(&self) -> usize {
        self.limit.map_or(paths::PAGE_LIMIT, Limit::get)
    }
}

/// How many items a page has: 1 to `MOST`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limit<const MOST: usize>(usize);

impl<const MOST: usize> Limit<MOST> {
    pub(super) const fn get(self) -> usize {
        self.0
    }
}

impl<'de, const MOST: usize> Deserialize<'de> for Limit<MOST> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let limit = usize::deserialize(deserializer)?;
        let fits = (1..=MOST).contains(&limit);
        fits.then_some(Self(limit))
            .ok_or_else(|| D::Error::custom(format_args!("a limit is 1 to {MOST}, not {limit}")))
    }
}

/// What the sender calls a request that may be repeated (draft-ietf-httpapi-idempotency-key-header).
pub(crate) struct IdempotencyKey(pub(crate) Option<String>);

impl IdempotencyKey {
    const HEADER: &str = "idempotency-key";
    const LONGEST: usize = 255;
}

impl<S: Sync> FromRequestParts<S> for IdempotencyKey {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let mut given = parts.headers.get_all(Self::HEADER).iter();
        let (Some(key), more) = (given.next(), given.next()) else { return Ok(Self(None)) };
        let is_key = (1..=Self::LONGEST).contains(&key.len())
            && key.as_bytes().iter().all(u8::is_ascii_graphic);
        match key.to_str() {
            Ok(key) if is_key && more.is_none() => Ok(Self(Some(key.to_owned()))),
            _ => Err(not_understood(
                "its Idempotency-Key is not one word of 1 to 255 visible ASCII characters",
            )),
        }
    }
}

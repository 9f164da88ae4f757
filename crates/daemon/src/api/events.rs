//! `/v1/events` and `/v1/jobs/{id}/events`: server-sent events.
//!
//! Each stream is a receiver of what one task sees for all. It ends when the node ends, so that it holds up no end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use admin_api::paths;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::sse::{Event, KeepAlive, Sse};
use futures::{Stream, stream};
use kms_core::CredentialStatus;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch::Receiver;

use super::extract::Path;
use super::jobs::id;
use super::{Refusal, status};
use crate::Shared;
use crate::changes::Told;
use crate::jobs::Shown;

/// Between two comments on a stream that has nothing to tell: what lies between client and node keeps it open then.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// That something has changed of what `/v1/status` or `/v1/jobs` shows.
#[utoipa::path(
    get,
    path = paths::EVENTS,
    operation_id = "followNode",
    tag = "node",
    responses((status = 200, description = "Events `changed`, the first at once: the data names the state", body = String, content_type = "text/event-stream")),
)]
pub(crate) async fn of_node(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    answer(changes(shared.changes.follow(), |told| match told {
        Told::Nothing => Some((None, true)),
        Told::State(state) => Some((Some(Event::default().event("changed").data(state)), true)),
        Told::Over => None,
    }))
}

/// A job whenever it has changed, until it has ended.
#[utoipa::path(
    get,
    path = paths::JOB_EVENTS,
    operation_id = "followJob",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "Events `progress`, the first at once, and one `end`: the data of each is a Job in JSON", body = String, content_type = "text/event-stream")),
)]
pub(crate) async fn of_job(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
) -> Result<impl IntoResponse, Refusal> {
    let shown = shared.jobs.follow(id(&job)?).await?;
    Ok(answer(changes(shown, |Shown { job, ended }| {
        let event = Event::default().event(if *ended { "end" } else { "progress" }).data(job);
        Some((Some(event), !ended))
    })))
}

fn answer(
    events: impl Stream<Item = Result<Event, Infallible>> + Send + 'static,
) -> impl IntoResponse {
    Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE))
}

/// What is there, and each change of it, as an event. `told` answers whether there are more after it, or that all is over.
fn changes<T: Send + Sync + 'static>(
    mut receiver: Receiver<T>,
    told: impl Fn(&T) -> Option<(Option<Event>, bool)> + Copy + Send + 'static,
) -> impl Stream<Item = Result<Event, Infallible>> + Send {
    receiver.mark_changed();
    stream::unfold(Some(receiver), move |receiver| async move {
        let mut receiver = receiver?;
        loop {
            receiver.changed().await.ok()?;
            let (event, goes_on) = told(&receiver.borrow_and_update())?;
            if let Some(event) = event {
                return Some((Ok(event), goes_on.then_some(receiver)));
            }
        }
    })
}

/// Names what `/v1/status` and `/v1/jobs` show, but for times that only run down.
pub(crate) async fn digest(shared: &Shared) -> String {
    let shown = match shown(shared).await {
        Ok(shown) => shown,
        Err(Refusal(problem)) => problem.to_string(),
    };
    let digest = Sha256::digest(shown.as_bytes());
    hex::encode(&digest[..8])
}

async fn shown(shared: &Shared) -> Result<String, Refusal> {
    let (mut status, _) = status::status(shared).await?;
    let life = status.kms.configured.as_mut().and_then(|kms| kms.credential.as_mut());
    if let Some(life) = life {
        (life.seconds_left, life.told_seconds_ago) = (None, 0);
    }
    // That it was renewed is a change.
    let seen = shared.health.seen().await;
    let told = seen.ok().and_then(|seen| seen.told().map(|told| told.kms.credential));
    let granted = told.and_then(|CredentialStatus { time_left, .. }| time_left);
    let jobs = shared.jobs.list().await?;
    let shown = serde_json::to_string(&(status, granted, jobs));
    shown.map_err(|e| crate::problem::internal("the node's state can't be shown", e).into())
}

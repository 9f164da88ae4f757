//! `/v1/jobs`

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Job, Jobs, Problem, paths};
use axum::Json;
use axum::extract::State;
use key_manager::JobId;
use serde::Deserialize;

use super::Answer;
use super::extract::{Path, Query};
use crate::{Shared, problem};

pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Answer<Jobs> {
    Ok(Json(Jobs { jobs: shared.jobs.list().await? }))
}

#[derive(Debug, Deserialize)]
pub(crate) struct Look {
    #[serde(default)]
    wait_ms: u64,
    #[serde(default)]
    damage_after: u64,
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
    Query(Look { wait_ms, damage_after }): Query<Look>,
) -> Answer<Job> {
    let job = id(&job)?;
    let longest = Duration::from_millis(wait_ms.min(paths::WAIT_LIMIT_MS));
    shared.jobs.until_ended(job, longest).await?;
    Ok(Json(shared.jobs.get(job, damage_after).await?))
}

pub(crate) async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
) -> Answer<Job> {
    Ok(Json(shared.jobs.stop(id(&job)?).await?))
}

pub(super) fn id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|e| problem::of_keys("there is no such job", &e))
}

//! `/v1/jobs`

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Job, Jobs, Problem, paths};
use axum::Json;
use axum::extract::State;
use key_manager::JobId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Answer;
use super::extract::{Path, Query};
use crate::{Shared, problem};

/// Lists jobs, the newest first.
#[utoipa::path(
    get,
    path = paths::JOBS,
    operation_id = "listJobs",
    tag = "jobs",
    responses((status = 200, description = "All of them", body = Jobs)),
)]
pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Answer<Jobs> {
    Ok(Json(Jobs { jobs: shared.jobs.list().await? }))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct Look {
    /// How long to wait for its end, at most 10000 ms.
    #[serde(default)]
    wait_ms: u64,
    /// From where on its damage is shown: the last page's `next_damage`.
    #[serde(default)]
    damage_after: u64,
}

/// Shows a job, when it has ended or after a while.
#[utoipa::path(
    get,
    path = paths::JOB,
    operation_id = "getJob",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id"), Look),
    responses((status = 200, description = "The job", body = Job)),
)]
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

/// Asks a job to stop at its next checkpoint.
#[utoipa::path(
    post,
    path = paths::STOP,
    operation_id = "stopJob",
    tag = "jobs",
    params(("id" = String, Path, description = "The job's id")),
    responses((status = 200, description = "The job", body = Job)),
)]
pub(crate) async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
) -> Answer<Job> {
    Ok(Json(shared.jobs.stop(id(&job)?).await?))
}

pub(super) fn id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|e| problem::of_keys("there is no such job", &e))
}

//! `/v1/jobs`

use std::sync::Arc;

use admin_api::{Job, Jobs, Problem};
use axum::Json;
use axum::extract::{Path, State};
use key_manager::JobId;

use super::Answer;
use crate::{Shared, problem};

pub(crate) async fn list(State(shared): State<Arc<Shared>>) -> Answer<Jobs> {
    Ok(Json(Jobs { jobs: shared.jobs.list().await? }))
}

pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
) -> Answer<Job> {
    Ok(Json(shared.jobs.get(id(&job)?).await?))
}

pub(crate) async fn stop(
    State(shared): State<Arc<Shared>>,
    Path(job): Path<String>,
) -> Answer<Job> {
    Ok(Json(shared.jobs.stop(id(&job)?).await?))
}

fn id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|e| problem::of_keys("there is no such job", &e))
}

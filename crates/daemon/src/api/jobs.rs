//! `/v1/jobs`

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Job, Jobs, Problem, paths};
use axum::Json;
use axum::extract::State;
use key_manager::JobId;
use serde::Deserialize;
use utoipa::IntoParams;

use super::extract::{Page, Path, Query, not_understood};
use super::{Answer, Body, Nothing, Refusal};
use crate::{Shared, problem};

/// Lists jobs, the newest first.
#[utoipa::path(
    get,
    path = paths::JOBS,
    operation_id = "listJobs",
    tag = "jobs",
    params(Page),
    responses((status = 200, description = "A page of them", body = Jobs)),
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(page): Query<Page>,
) -> Answer<Jobs> {
    let after = page.after.as_deref().map(Place::read).transpose()?;
    let jobs = shared.jobs.list().await?;
    // One that is forgotten meanwhile leaves its place in the order.
    let mut rest = jobs.into_iter().filter(|job| after.as_ref().is_none_or(|it| it.is_before(job)));
    let jobs: Vec<Job> = rest.by_ref().take(page.limit()).collect();
    let more = rest.next().is_some();
    let next = jobs.last().filter(|_| more).map(|job| format!("{}-{}", job.created_at, job.id));
    Ok(Json(Jobs { jobs, next }))
}

/// Where a job stands among all: the newest is the first.
struct Place {
    created_at: u64,
    id: String,
}

impl Place {
    fn read(text: &str) -> Result<Self, Refusal> {
        let read = text.split_once('-').and_then(|(created_at, id)| {
            Some(Self { created_at: created_at.parse().ok()?, id: id.to_owned() })
        });
        read.ok_or_else(|| not_understood("after is not the next of a page of jobs"))
    }

    fn is_before(&self, job: &Job) -> bool {
        (job.created_at, &job.id) < (self.created_at, &self.id)
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
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
    _: Body<Option<Nothing>>,
) -> Answer<Job> {
    Ok(Json(shared.jobs.stop(id(&job)?).await?))
}

pub(super) fn id(text: &str) -> Result<JobId, Problem> {
    text.parse().map_err(|e| problem::of_keys("there is no such job", &e))
}

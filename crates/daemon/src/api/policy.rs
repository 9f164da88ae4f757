//! `/v1/kms/policy`

use std::collections::BTreeMap;
use std::sync::Arc;

use admin_api::{KmsPolicy, paths};
use axum::Json;
use axum::extract::State;
use kms_core::Policy;
use serde::Deserialize;
use utoipa::IntoParams;

use super::Answer;
use super::extract::Query;
use super::kms::VAULT;
use crate::{Shared, problem};

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// The name of the master key, or several with commas between them.
    master_key: String,
    /// Where transit is mounted, if not at `transit`.
    transit_path: Option<String>,
}

/// What a token must be allowed. Asks nobody.
#[utoipa::path(
    get,
    path = paths::POLICY,
    operation_id = "getKmsPolicy",
    tag = "kms",
    params(Wanted),
    responses((status = 200, description = "The policy", body = KmsPolicy)),
)]
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Query(Wanted { master_key, transit_path }): Query<Wanted>,
) -> Answer<KmsPolicy> {
    let master_keys: Vec<String> = master_key.split(',').map(str::to_owned).collect();
    let settings = transit_path.map(|path| ("transit_path".to_owned(), path));
    let settings = BTreeMap::from_iter(settings);
    let policy = shared.manager.policy(VAULT, &master_keys, &settings);
    let policy = policy.map_err(|e| problem::of_keys("no policy can be made", &e))?;
    let Policy { text, commands } = policy;
    Ok(Json(KmsPolicy { policy: text, commands }))
}

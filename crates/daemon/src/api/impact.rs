//! `/v1/kms/impact`

use std::sync::Arc;

use admin_api::{KmsImpact, paths};
use axum::Json;
use axum::extract::State;
use key_manager::{FilesystemName, Loss};
use kms_core::KeyVersion;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::Answer;
use super::extract::Query;
use crate::seen::Seen;
use crate::{Shared, problem};

#[derive(Debug, Deserialize)]
#[serde(tag = "of", rename_all = "kebab-case")]
pub(crate) enum ImpactOf {
    Token,
    Key {
        /// Its name; the one that is set for all if `None`.
        master_key: Option<String>,
    },
    Versions {
        #[serde(deserialize_with = "number")]
        below: u64,
        master_key: Option<String>,
    },
}

/// The values of a query are texts, and those of a tagged one stay so.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
}

/// What would fail, now and at the next start.
#[utoipa::path(
    get,
    path = paths::IMPACT,
    operation_id = "foretellImpact",
    tag = "kms",
    params(("of" = String, Query, description = "What is taken away: `token`, `key` or `versions`"), ("below" = Option<u64>, Query, description = "With `versions`: all below this one"), ("master_key" = Option<String>, Query, description = "Which master key, if not the one that is set for all")),
    responses((status = 200, description = "What would fail", body = KmsImpact)),
)]
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Query(of): Query<ImpactOf>,
) -> Answer<KmsImpact> {
    let of_keys = |e| problem::of_keys("it can't be told what would fail", &e);
    let (loss, master_key) = match of {
        ImpactOf::Token => (Loss::Credential, None),
        ImpactOf::Key { master_key } => (Loss::MasterKey, master_key),
        ImpactOf::Versions { below, master_key } => {
            (Loss::VersionsBelow(KeyVersion(below)), master_key)
        }
    };
    let found = shared.manager.impact(loss, master_key.as_deref()).await.map_err(of_keys)?;
    let key = &found.master_key;
    let (what, cure) = match loss {
        Loss::Credential => (
            "the token (or the login) is revoked or ends".to_owned(),
            "give another one with coffer fs kms set-vault: nothing is lost".to_owned(),
        ),
        Loss::MasterKey if found.left_behind => (
            format!("the master key {key} is deleted, on which a move has left keys"),
            "what it wraps is lost for good, unless Vault is restored from a backup; coffer fs kms rewrap brings its filesystems along, before it is deleted or while they are unlocked".to_owned(),
        ),
        Loss::MasterKey if !found.for_all => (
            format!("the master key {key} is deleted, which some filesystems have of their own"),
            "what it wraps is lost for good, unless Vault is restored from a backup; while its filesystems are unlocked, make a new key of that name and \
             give coffer fs kms set-vault with the values of now: their keys move to it".to_owned(),
        ),
        Loss::MasterKey => (
            format!("the master key {key} is deleted"),
            "what it wraps is lost for good, unless Vault is restored from a backup; while filesystems are unlocked, coffer fs kms set-vault with another key saves theirs".to_owned(),
        ),
        Loss::VersionsBelow(below) => (
            format!("min_decryption_version of {key} is raised to {}", below.0),
            cure_of_versions(
                below,
                newest_seen(&shared, key).await.map_err(of_keys)?,
                [&found.shut_now, &found.shut_at_start, &found.unknown].iter().all(|it| it.is_empty()),
            ),
        ),
    };
    let names = |names: Vec<FilesystemName>| names.iter().map(ToString::to_string).collect();
    Ok(Json(KmsImpact {
        what,
        go_on: names(found.go_on),
        shut_now: names(found.shut_now),
        shut_at_start: names(found.shut_at_start),
        untouched: names(found.untouched),
        unknown: names(found.unknown),
        stops_wrapping: found.for_all && !matches!(loss, Loss::VersionsBelow(_)),
        cure,
    }))
}

/// The newest version that the KMS told of this master key when it was last asked, or that something was wrapped with since.
async fn newest_seen(
    shared: &Shared,
    master_key: &str,
) -> Result<Option<KeyVersion>, key_manager::Error> {
    let Seen { config, live, own, .. } = shared.health.seen().await?;
    let of_all = config.zip(live.and_then(Result::ok));
    let of_all = of_all.map(|(config, answered)| (config, answered.kms.master_key));
    let own = own.into_iter().filter_map(|own| Some((own.config, own.live?.ok()?.master_key)));
    let mut told = own.chain(of_all);
    let Some((config, told)) = told.find(|(config, _)| config.master_key == master_key) else {
        return Ok(None);
    };
    let in_use = shared.manager.in_use().await?;
    let of_this = in_use.versions.iter().filter(|count| count.config.id == config.id);
    Ok(of_this.map(|count| count.version).chain([told.latest_version]).max())
}

fn cure_of_versions(below: KeyVersion, newest: Option<KeyVersion>, harmless: bool) -> String {
    match newest {
        Some(newest) if below > newest => format!(
            "give coffer fs kms rewrap first, but rotate the key before that if it was not done by now: the newest version was {} when the KMS was last asked, \
             and a rewrap brings keys to no newer one than there is",
            newest.0
        ),
        _ if harmless => "nothing hangs on an older version: nothing has to be done".to_owned(),
        _ => "give coffer fs kms rewrap first; afterwards, lower it again".to_owned(),
    }
}

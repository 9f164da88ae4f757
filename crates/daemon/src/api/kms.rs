//! `/v1/kms`

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use admin_api::{
    Change, CheckItem, CheckOutcome, CredentialLife, Exit, Finding, Job, Kms, KmsChange, KmsCheck,
    KmsDetails, OwnKey, Problem, Rewrap, SetVault, Token, VersionCount, paths,
};
use axum::Json;
use axum::extract::State;
use axum::http::HeaderName;
use key_manager::{
    AuthKind, FilesystemName, FilesystemStatus, InUse, JobRecord, LeftBehind, NewCredential,
    NewKms, listed,
};
use kms_core::{
    Auth, ClientIdentity, Credential, CredentialStatus, KmsConfig, KmsErrorKind, Login,
    SecretString,
};
use serde::Deserialize;
use tokio::time::timeout;
use utoipa::IntoParams;

use super::extract::Query;
use super::version::{IfMatch, etag};
use super::{Answer, Body, Nothing, Refusal, name};
use crate::seen::{Answered, OwnSeen, Seen};
use crate::{Shared, problem};

/// How long a new configuration's answer waits for the filesystems that it opens.
const OPEN_WITHIN: Duration = Duration::from_secs(5);

/// The kind that `set-vault` sets.
pub(super) const VAULT: &str = "vault";

/// An answer that names the version of the configuration.
type Tagged<T> = Result<([(HeaderName, String); 1], Json<T>), Refusal>;

/// Asks the KMS, and answers its words of this moment.
#[utoipa::path(
    get,
    path = paths::KMS,
    operation_id = "getKms",
    tag = "kms",
    responses((status = 200, description = "The KMS", body = Kms, headers(("ETag" = String, description = "The version of the configuration, for If-Match")))),
)]
pub(crate) async fn show(State(shared): State<Arc<Shared>>) -> Tagged<Kms> {
    let kms = look(&shared, "the KMS can't be shown").await?;
    Ok((etag(&kms), Json(kms)))
}

/// Adds or updates the KMS.
///
/// Everything is proved by use before anything is stored. Keys that have to move are moved by the job that is answered.
#[utoipa::path(
    put,
    path = paths::KMS,
    operation_id = "setKms",
    tag = "kms",
    params(("If-Match" = Option<String>, Header, description = "The ETag of the configuration that this is meant for; 412 if it is another one by now")),
    request_body = SetVault,
    responses((status = 200, description = "What became of it", body = KmsChange, headers(("ETag" = String, description = "The version of the configuration, for If-Match")))),
)]
pub(crate) async fn set(
    State(shared): State<Arc<Shared>>,
    IfMatch(expected): IfMatch,
    Body(request): Body<SetVault>,
) -> Tagged<KmsChange> {
    let title = "the KMS can't be set";
    let credential = credential(&request)?;
    let settings = [
        ("namespace", request.namespace),
        ("transit_path", request.transit_path),
        ("ca_cert", request.ca_cert),
        ("allow_http", request.allow_http.then(|| "true".to_owned())),
    ];
    let settings =
        settings.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect();
    let new = NewKms {
        kind: VAULT.to_owned(),
        address: request.base_url,
        master_key: request.master_key,
        settings,
        credential,
        expected,
    };
    let configured = shared.manager.set_kms(new).await;
    let configured = configured.map_err(|e| not_set(title, &e))?;
    // Whoever set it goes on with what it opens. What takes longer the keeper opens.
    if let Ok(Err(error)) = timeout(OPEN_WITHIN, shared.manager.unlock_all()).await {
        tracing::warn!(%error, "the filesystems can't be unlocked");
    }
    let begun = match configured.job {
        Some(id) => Some(shared.jobs.run_move(id).await),
        None => None,
    };
    shared.kms_changed();
    let job = begun.transpose()?;
    let change = match (configured.updated, job.as_ref().map(|job| job.kind)) {
        (_, Some(admin_api::JobKind::Move)) => Change::Moving,
        (true, _) => Change::Updated,
        (false, _) => Change::Added,
    };
    let mut kms = look(&shared, title).await?;
    // The proof looks closer than a later look can: at policies, uses, the way there.
    kms.findings = configured.findings.into_iter().map(carry_on).collect();
    Ok((etag(&kms), Json(KmsChange { change, kms, job })))
}

/// Why it was not set, and what of the request is the cause as far as that can be told.
fn not_set(title: &str, error: &key_manager::Error) -> Problem {
    use KmsErrorKind::{
        Denied, KeyMissing, KeyReplaced, KeyUnfit, NoCredential, Sealed, Unreachable,
    };
    let problem = problem::of_request(title, error);
    let key_manager::Error::Kms(e) = error else { return problem };
    match e.kind() {
        _ if e.input().is_some() => problem,
        Unreachable | Sealed => problem.field("base_url"),
        KeyMissing | KeyReplaced | KeyUnfit => problem.field("master_key"),
        Denied | NoCredential => problem.field("token"),
        _ => problem,
    }
}

/// The one way to show who we are that the request has, or none: then the stored one is kept.
fn credential(request: &SetVault) -> Result<NewCredential, Problem> {
    let refused = |field: &str, why: &str, cure: &str| {
        let problem = Problem::new(Exit::Usage, "invalid", "the KMS can't be set", why);
        problem.field(field).cure(cure)
    };
    let secret = |token: &Token| SecretString::from(token.expose());
    let login = match (&request.role_id, &request.secret_id) {
        (Some(id), Some(secret_id)) => Some(Auth::Login(Login {
            path: request.auth_path.clone().unwrap_or_default(),
            id: id.clone(),
            secret: secret(secret_id),
        })),
        (None, None) if request.auth_path.is_none() => None,
        _ => {
            let missing = if request.role_id.is_none() { "role_id" } else { "secret_id" };
            let why = "an AppRole has a role id and a secret id, and one of them is missing";
            return Err(refused(missing, why, "give both, or a token instead"));
        }
    };
    let file = match &request.token_file {
        Some(path) if !path.as_path().is_absolute() => {
            let why = "the token file's path is relative";
            return Err(refused("token_file", why, "give an absolute path"));
        }
        Some(path) => Some(Auth::TokenFile(path.as_path().to_owned())),
        None => None,
    };
    let token = request.token.as_ref().map(|token| Auth::Token(secret(token)));
    let mut given = [token, file, login].into_iter().flatten();
    let auth = given.next();
    if given.next().is_some() {
        let why = "it takes one of a token, a token file and an AppRole, and here are two";
        return Err(refused("token", why, "give one of them, or none to keep the stored one"));
    }
    let identity = match (&request.client_cert, &request.client_key) {
        (Some(certificate), Some(key)) => {
            Some(ClientIdentity { certificate: certificate.clone(), key: secret(key) })
        }
        (None, None) => None,
        _ => {
            let missing = if request.client_key.is_none() { "client_key" } else { "client_cert" };
            let why = "a client certificate and its key belong together, and one is missing";
            return Err(refused(missing, why, "give both"));
        }
    };
    Ok(match auth {
        Some(auth) => NewCredential::Given(Credential { auth, identity }),
        None => NewCredential::Kept { identity },
    })
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Unset {
    /// Even while filesystems exist: a job wraps their keys with local ones that lie beside them on disk.
    #[serde(default)]
    allow_downgrade: bool,
}

/// Removes the KMS.
#[utoipa::path(
    delete,
    path = paths::KMS,
    operation_id = "unsetKms",
    tag = "kms",
    params(Unset, ("If-Match" = Option<String>, Header, description = "The ETag of the configuration that this is meant for; 412 if it is another one by now")),
    responses((status = 200, description = "What became of it", body = KmsChange, headers(("ETag" = String, description = "The version of the configuration, for If-Match")))),
)]
pub(crate) async fn unset(
    State(shared): State<Arc<Shared>>,
    IfMatch(expected): IfMatch,
    Query(Unset { allow_downgrade }): Query<Unset>,
    _: Body<Option<Nothing>>,
) -> Tagged<KmsChange> {
    let title = "the KMS can't be removed";
    let of_keys = |e| problem::of_keys(title, &e);
    let job = match unfinished_move(&shared).await? {
        Some(begun) if allow_downgrade && is_downgrade(&begun) => {
            shared.manager.expect_kms(&expected).await.map_err(of_keys)?;
            Some(begun.id)
        }
        _ => shared.manager.unset_kms(allow_downgrade, &expected).await.map_err(of_keys)?,
    };
    shared.kms_changed();
    let job = match job {
        Some(id) => Some(shared.jobs.run_move(id).await?),
        None => None,
    };
    let change = if job.is_some() { Change::Downgrading } else { Change::Removed };
    let kms = look(&shared, title).await?;
    Ok((etag(&kms), Json(KmsChange { change, kms, job })))
}

/// Rewraps, or goes on with the move of the same keys that is under way, waits or was stopped: it ends at the newest version too.
#[utoipa::path(
    post,
    path = paths::REWRAP,
    operation_id = "rewrapKeys",
    tag = "kms",
    request_body = Option<Rewrap>,
    responses((status = 200, description = "The job that does it", body = Job)),
)]
pub(crate) async fn rewrap(
    State(shared): State<Arc<Shared>>,
    Body(request): Body<Option<Rewrap>>,
) -> Answer<Job> {
    let title = "the keys can't be rewrapped";
    let only = request.and_then(|request| request.filesystem);
    let only =
        only.map(|text| name(&text, title).map_err(|e| e.field("filesystem"))).transpose()?;
    let filesystem = only.as_ref().map_or("", FilesystemName::as_str);
    let goes_on = |begun: &JobRecord| !is_downgrade(begun) && begun.filesystem == filesystem;
    let id = match unfinished_move(&shared).await?.filter(goes_on) {
        Some(begun) => begun.id,
        None => {
            let begun = shared.manager.start_rewrap(only).await;
            begun.map_err(|e| problem::of_keys(title, &e))?
        }
    };
    Ok(Json(shared.jobs.run_move(id).await?))
}

/// Tries all that the KMS has to do.
#[utoipa::path(
    post,
    path = paths::CHECK,
    operation_id = "checkKms",
    tag = "kms",
    responses((status = 200, description = "What was found", body = KmsCheck)),
)]
pub(crate) async fn check(
    State(shared): State<Arc<Shared>>,
    _: Body<Option<Nothing>>,
) -> Answer<KmsCheck> {
    let of_keys = |e| problem::of_keys("the KMS can't be checked", &shared.noted(e));
    let found = shared.manager.check_kms().await.map_err(of_keys)?;
    shared.health.checked(&found);
    // What the KMS did not do before it may do now, and the other way round.
    shared.health.look_soon();
    if !found.iter().any(|item| item.failure.is_some()) {
        shared.keeper.wake();
    }
    // The first failure is the cause of others, as a rule.
    let exit = found.iter().find_map(|item| item.failure).map_or(Exit::Done, problem::exit_of_kms);
    Ok(Json(KmsCheck { items: found.into_iter().map(looked_at).collect(), exit }))
}

fn looked_at(item: kms_core::CheckItem) -> CheckItem {
    let kms_core::CheckItem { code, what, outcome, found, cure, failure: _, request: _ } = item;
    let outcome = match outcome {
        kms_core::CheckOutcome::Passed => CheckOutcome::Passed,
        kms_core::CheckOutcome::Warning => CheckOutcome::Warning,
        kms_core::CheckOutcome::Failed => CheckOutcome::Failed,
        kms_core::CheckOutcome::Unknown => CheckOutcome::Unknown,
    };
    CheckItem { code, what, outcome, found, cure }
}

async fn unfinished_move(shared: &Shared) -> Result<Option<JobRecord>, Problem> {
    let unfinished = shared.manager.unfinished_move().await;
    unfinished.map_err(|e| problem::of_keys("the jobs can't be read", &e))
}

fn is_downgrade(job: &JobRecord) -> bool {
    job.spec.get("purpose").is_some_and(|purpose| purpose == "downgrade")
}

async fn look(shared: &Shared, title: &str) -> Result<Kms, Problem> {
    let of_keys = |e| problem::of_keys(title, &e);
    let seen = shared.health.look().await.map_err(of_keys)?;
    let (statuses, in_use) = shared.manager.survey().await.map_err(of_keys)?;
    Ok(view(shared, &seen, &statuses, &in_use))
}

/// What an administrator sees of the KMS.
pub(crate) fn view(
    shared: &Shared,
    seen: &Seen,
    statuses: &[FilesystemStatus],
    in_use: &InUse,
) -> Kms {
    let answered = seen.answered();
    let mut found = Vec::new();
    found.extend(shared.health.warnings(seen).into_iter().map(carry_on));
    let own: Vec<_> = seen.own.iter().filter(|own| is_in_use(own, in_use)).collect();
    found.extend(own.iter().flat_map(|own| of_own(own)));
    found.extend(in_use.left_behind.iter().map(|left| keys_left_behind(left, seen)));
    found.extend(in_use.copies_behind.iter().map(|(name, why)| copy_out_of_reach(name, why)));
    let auth = seen.credential.as_ref().and_then(|credential| credential.auth.as_ref());
    let (token_file, role) = match auth {
        Some(AuthKind::TokenFile(path)) => (Some(path.as_path().into()), None),
        Some(AuthKind::Login { path, id }) => (None, Some((path, id))),
        _ => (None, None),
    };
    let details = seen.config.as_ref().map(|config| KmsDetails {
        id: config.id.to_string(),
        kind: config.kind.clone(),
        base_url: config.address.clone(),
        master_key: config.master_key.clone(),
        transit_path: transit_path(config),
        namespace: setting(config, "namespace"),
        ca_cert: setting(config, "ca_cert"),
        auth_method: match auth {
            Some(AuthKind::TokenFile(_)) => "token-file",
            Some(AuthKind::Login { .. }) => "approle",
            Some(AuthKind::Token) | None => "token",
        }
        .to_owned(),
        token_file,
        role_id: role.map(|(_, id)| id.clone()),
        auth_path: role.map(|(path, _)| path).filter(|path| !path.is_empty()).cloned(),
        client_cert: seen.credential.as_ref().is_some_and(|kind| kind.client_certificate),
        credential_set: auth.is_some(),
        credential: seen.told().map(life),
        latest_version: answered.map(|answered| answered.kms.master_key.latest_version.0),
        min_decryption_version: answered.map(|a| a.kms.master_key.min_decryption_version.0),
        lowest_needed: in_use.lowest_needed(config.id).map(|version| version.0),
        held_back_by: in_use
            .blockers(config.id, answered.map(|answered| answered.kms.master_key.latest_version)),
        problem: seen.live.as_ref().and_then(|live| live.as_ref().err().cloned()),
        does_all: shared.health.does_all(seen),
        own_keys: own.iter().map(|own| own_key(own, statuses, in_use)).collect(),
    });
    let exposed: BTreeSet<_> =
        statuses.iter().filter(|fs| fs.exposed).map(|fs| fs.filesystem.key_id).collect();
    if !exposed.is_empty() {
        found.push(finding(
            "keys-exposed",
            &format!(
                "{} filesystem key(s) have lain under local wrapping: whoever read the disk then can read their data",
                exposed.len()
            ),
            "with a KMS set, give each of them a new key: coffer fs rekey NAME (coffer fs list shows which are exposed)",
        ));
    }
    Kms {
        version: seen.version.to_string(),
        configured: details,
        keys: counted(&in_use.versions),
        exposed_keys: exposed.len() as u64,
        findings: found,
    }
}

/// What an administrator has to know of what a move has left on a KMS, or a master key, that is set no more.
fn keys_left_behind(left: &LeftBehind, seen: &Seen) -> Finding {
    const NAMED: usize = 20;
    let LeftBehind { config, filesystems } = left;
    let names: Vec<&str> = filesystems.iter().map(String::as_str).collect();
    let named = listed(&names, NAMED);
    let again = match seen.config {
        Some(_) => "coffer fs kms rewrap, or coffer fs kms set-vault again, brings them along",
        None => {
            "coffer fs kms set-vault, or coffer fs kms unset --allow-downgrade again, brings them along"
        }
    };
    finding(
        "keys-left-behind",
        &format!(
            "the keys of {named} still hang on the master key {} at {}, which is set no more: no move has brought them along",
            config.master_key, config.address
        ),
        &format!(
            "see what kept them back (coffer job list), mend that, then {again}; do not delete that master key, nor revoke its token, before"
        ),
    )
}

/// Whether it was not forgotten since it was last seen.
fn is_in_use(own: &OwnSeen, in_use: &InUse) -> bool {
    in_use.versions.iter().any(|count| count.config.id == own.config.id)
}

fn own_key(own: &OwnSeen, statuses: &[FilesystemStatus], in_use: &InUse) -> OwnKey {
    let OwnSeen { config, live, .. } = own;
    let told = live.as_ref().and_then(|live| live.as_ref().ok()).map(|live| &live.master_key);
    let hangs = |by: &Option<Arc<KmsConfig>>| by.as_ref().is_some_and(|by| by.id == config.id);
    let has = |fs: &&FilesystemStatus| {
        hangs(&fs.wrapped_by) || fs.previous.as_ref().is_some_and(|key| hangs(&key.wrapped_by))
    };
    OwnKey {
        master_key: config.master_key.clone(),
        filesystems: statuses.iter().filter(has).count() as u64,
        latest_version: told.map(|told| told.latest_version.0),
        min_decryption_version: told.map(|told| told.min_decryption_version.0),
        lowest_needed: in_use.lowest_needed(config.id).map(|version| version.0),
        held_back_by: in_use.blockers(config.id, told.map(|told| told.latest_version)),
        problem: live.as_ref().and_then(|live| live.as_ref().err().cloned()),
        does_all: own.does_all(),
    }
}

/// What an administrator has to know of a master key that filesystems have of their own.
fn of_own(own: &OwnSeen) -> Vec<Finding> {
    match &own.live {
        None => Vec::new(),
        Some(Ok(live)) => live.findings.iter().cloned().map(carry_on).collect(),
        // Unlocking takes no permission to read it.
        Some(Err(problem)) if problem.code == KmsErrorKind::Denied.code() => {
            let cure = problem.cure.as_deref().unwrap_or_default();
            vec![finding(&problem.code, &problem.to_string(), cure)]
        }
        Some(Err(problem)) => {
            let what = format!(
                "a node that starts can't unlock what has the master key {} of its own: {}",
                own.config.master_key, problem.detail
            );
            vec![finding(&problem.code, &what, problem.cure.as_deref().unwrap_or_default())]
        }
    }
}

/// What an administrator has to know of a filesystem whose backing directory was not found as it should be.
pub(crate) fn copy_out_of_reach(name: &FilesystemName, why: &str) -> Finding {
    finding(
        "copy-out-of-reach",
        &format!(
            "{name} has its backing directory out of reach or changed, so that its data may not be readable, and old versions and old KMSs are still needed: {why}"
        ),
        "make room on its disk, or bring the backing directory back (is it mounted?): the node brings a copy that is older than the store's up to date by itself within a minute; a newer one shows that an older store was put back: coffer recover --from DIR",
    )
}

/// Each version of each master key in each place once: after a recovery, and while keys move, several configurations can have it.
fn counted(counts: &[key_manager::VersionCount]) -> Vec<VersionCount> {
    let mut counted: Vec<VersionCount> = Vec::new();
    for key_manager::VersionCount { config, version, keys, canary } in counts {
        let of_vault = config.kind == VAULT;
        let this = VersionCount {
            kind: config.kind.clone(),
            base_url: config.address.clone(),
            transit_path: if of_vault { transit_path(config) } else { String::new() },
            namespace: setting(config, "namespace"),
            master_key: if of_vault { config.master_key.clone() } else { String::new() },
            version: version.0,
            keys: 0,
            canary: false,
        };
        let same = |c: &VersionCount| this == VersionCount { keys: 0, canary: false, ..c.clone() };
        let at = counted.iter().position(same).unwrap_or_else(|| {
            counted.push(this);
            counted.len() - 1
        });
        counted[at].keys += keys;
        counted[at].canary |= canary;
    }
    counted
}

fn transit_path(config: &KmsConfig) -> String {
    setting(config, "transit_path").unwrap_or_else(|| "transit".to_owned())
}

fn setting(config: &KmsConfig, name: &str) -> Option<String> {
    config.settings.get(name).cloned()
}

fn life(told: &Answered) -> CredentialLife {
    let CredentialStatus { time_left, renewable, periodic } = told.credential();
    CredentialLife {
        seconds_left: time_left.map(|left| left.as_secs()),
        renewable,
        periodic,
        told_seconds_ago: told.age().as_secs(),
    }
}

fn carry_on(finding: kms_core::Finding) -> Finding {
    let what = finding.told();
    let kms_core::Finding { code, cure, .. } = finding;
    Finding { code, what, cure }
}

fn finding(code: &str, what: &str, cure: &str) -> Finding {
    Finding { code: code.to_owned(), what: what.to_owned(), cure: cure.to_owned() }
}

#[cfg(test)]
mod tests {
    use kms_core::{KeyVersion, KmsConfigId};

    use super::*;

    /// What hangs on a configuration of this place and master key.
    fn count(
        place: (&str, &[(&str, &str)]),
        master_key: &str,
        version: u64,
        keys: u64,
        canary: bool,
    ) -> key_manager::VersionCount {
        let settings = place.1.iter().map(|(name, value)| ((*name).into(), (*value).into()));
        key_manager::VersionCount {
            config: KmsConfig {
                id: KmsConfigId::random(),
                kind: VAULT.to_owned(),
                address: place.0.to_owned(),
                master_key: master_key.to_owned(),
                settings: settings.collect(),
            },
            version: KeyVersion(version),
            keys,
            canary,
        }
    }

    #[test]
    fn a_version_of_a_master_key_is_counted_once() {
        let (here, told) =
            (("https://v", &[][..]), ("https://v", &[("transit_path", "transit")][..]));
        let counts = [
            count(here, "k", 1, 2, false),
            count(here, "k", 2, 1, false),
            count(told, "k", 1, 3, true),
        ];
        let counted = counted(&counts);
        let counted: Vec<_> = counted.iter().map(|n| (n.version, n.keys, n.canary)).collect();
        assert_eq!(counted, [(1, 5, true), (2, 1, false)]);
    }

    #[test]
    fn master_keys_of_one_name_in_several_places_are_told_apart() {
        let places = [
            ("https://v", &[][..]),
            ("https://w", &[]),
            ("https://v", &[("transit_path", "t")]),
            ("https://v", &[("namespace", "n")]),
        ];
        let counts: Vec<_> = places
            .iter()
            .zip(1..)
            .map(|(place, keys)| count(*place, "k", 1, keys, false))
            .collect();
        let counted = counted(&counts);
        let shown = |n: &VersionCount| {
            (n.base_url.clone(), n.transit_path.clone(), n.namespace.clone(), n.keys)
        };
        let shown: Vec<_> = counted.iter().map(shown).collect();
        let place = |url: &str, path: &str, namespace: Option<&str>, keys| {
            (url.to_owned(), path.to_owned(), namespace.map(str::to_owned), keys)
        };
        assert_eq!(
            shown,
            [
                place("https://v", "transit", None, 1),
                place("https://w", "transit", None, 2),
                place("https://v", "t", None, 3),
                place("https://v", "transit", Some("n"), 4),
            ]
        );
    }
}

//! `/v1/kms/rehearse`

use std::collections::BTreeSet;
use std::sync::Arc;

use admin_api::{Ending, Exit, KmsRehearsal, Problem, ShutFilesystem, paths};
use axum::Json;
use axum::extract::State;
use key_manager::{AuthKind, FilesystemRecord, Rehearsal};

use super::{Answer, Body, Nothing};
use crate::{Shared, problem};

/// Tries a start in another process.
#[utoipa::path(
    post,
    path = paths::REHEARSE,
    operation_id = "rehearseStart",
    tag = "kms",
    responses((status = 200, description = "What a start would open", body = KmsRehearsal)),
)]
pub(crate) async fn rehearse(
    State(shared): State<Arc<Shared>>,
    _: Body<Option<Nothing>>,
) -> Answer<KmsRehearsal> {
    let of_keys = |e| problem::of_keys("the start can't be rehearsed", &e);
    let seen = shared.health.seen().await.map_err(of_keys)?;
    if seen.told().is_some_and(|told| told.kms.findings.iter().any(|f| f.code == USES_LIMITED)) {
        return Err(takes_uses().into());
    }
    let auth = seen.credential.and_then(|credential| credential.auth);
    let logs_in = matches!(auth, Some(AuthKind::Login { .. }));
    // What is left is not asked for by two before both take one.
    let _alone = shared.rehearsing.lock().await;
    if logs_in && let Some(left @ ..=1) = shared.manager.starts_left().await.map_err(of_keys)? {
        return Err(needs_a_login(left).into());
    }
    let still = shared.manager.hold_still().await;
    let before = shared.manager.filesystems().await.map_err(of_keys)?;
    let found = shared.rehearse.rehearse().await;
    drop(still);
    // What a start would meet may have come about since the last look, and a login that it took is one less.
    if logs_in || found.as_ref().map_or(true, |found| !found.shut.is_empty()) {
        shared.health.look_soon();
    }
    let mut found = found?;
    leave_out_changed(&shared, &before, &mut found).await.map_err(of_keys)?;
    let shut_out = (found.starts_left == Some(0)).then_some(Exit::KmsRefused);
    let exit = found.shut.first().map(|(_, reason)| problem::exit_of_lock(reason)).or(shut_out);
    let shut = found.shut.into_iter().map(|(name, reason)| ShutFilesystem {
        name: name.to_string(),
        why: reason.why,
        cure: reason.cure,
    });
    let unreachable = found.out_of_reach.into_iter().map(|(name, why)| {
        format!("the backing directory of {name} is out of reach or changed: {why}")
    });
    Ok(Json(KmsRehearsal {
        open: found.open,
        shut: shut.collect(),
        held: found.held.iter().map(ToString::to_string).collect(),
        credential_seconds_left: found.credential_left.map(|left| left.as_secs()),
        stopped_seconds_left: found.stopped_left.map(|left| left.as_secs()),
        until: found
            .until
            .map(|until| Ending { what: until.what, seconds_left: until.left.as_secs() }),
        warnings: unreachable.chain(found.warnings).collect(),
        logs_in,
        starts_left: found.starts_left,
        exit: exit.unwrap_or(Exit::Done),
    }))
}

/// What was deleted beside the rehearsal no start will miss. What got its new key beside it, or let the old one go, lies there as its
/// record says now, and not as the copy of the store did.
async fn leave_out_changed(
    shared: &Shared,
    before: &[FilesystemRecord],
    found: &mut Rehearsal,
) -> Result<(), key_manager::Error> {
    use key_manager::Error::{Deleting, Unknown};
    let (mut deleted, mut rekeyed) = (BTreeSet::new(), BTreeSet::new());
    let named = found.shut.iter().map(|(name, _)| name);
    let named = named.chain(&found.held).chain(found.out_of_reach.iter().map(|(name, _)| name));
    for name in named {
        match shared.manager.filesystem(name).await {
            Ok(now) => {
                let keys = |fs: &FilesystemRecord| (fs.key_id, fs.previous_key);
                let then = before.iter().find(|then| then.name == *name);
                if then.is_some_and(|then| keys(then) != keys(&now)) {
                    rekeyed.insert(name.clone());
                }
            }
            Err(Deleting { .. } | Unknown { .. }) => {
                deleted.insert(name.clone());
            }
            Err(error) => return Err(error),
        }
    }
    found.shut.retain(|(name, _)| !deleted.contains(name));
    found.held.retain(|name| !deleted.contains(name));
    found.out_of_reach.retain(|(name, _)| !deleted.contains(name) && !rekeyed.contains(name));
    Ok(())
}

/// The warning of a token that ends with its last use.
const USES_LIMITED: &str = "token-uses-limited";

fn takes_uses() -> Problem {
    Problem::new(
        Exit::State,
        "last-login",
        "the start is not rehearsed",
        "the token is good for a number of uses only, of which the rehearsal would take some, and with the last it ends",
    )
    .cure("make a token without a limit of uses (vault token create -role=<role>), and give it with coffer fs kms set-vault")
}

/// A start is let in no more, or once more, and a rehearsal would be that.
fn needs_a_login(left: u64) -> Problem {
    let problem = match left {
        0 => Problem::new(
            Exit::KmsRefused,
            "start-would-fail",
            "a start now would be refused",
            "Vault knows the secret id no more: it is used up or was destroyed; what is open goes on",
        ),
        _ => Problem::new(
            Exit::State,
            "last-login",
            "the start is not rehearsed",
            "the secret id is good for one more login, which the rehearsal would take, so that the next start would be refused",
        ),
    };
    problem.cure("make a new secret id, without secret_id_num_uses, and give it with coffer fs kms set-vault; coffer fs kms check looks at all else")
}

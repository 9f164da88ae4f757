//! What works today and will hurt later, in words: all of it when a configuration is proved, and of it what a look at
//! the key and the token shows later.

use std::fmt;
use std::path::Path;
use std::time::Duration;

use kms_core::{CredentialStatus, Finding, MasterKey};

use crate::certificate;
use crate::config::VaultConfig;
use crate::kms::VaultKms;
use crate::operation::Operation;
use crate::refusal;
use crate::wire::TokenData;

/// Below this much life an administrator should act today.
const SOON: Duration = Duration::from_secs(24 * 60 * 60);
/// An agent renews or replaces a token when a third of its life is left; when so small a part is, it does not.
const LATE: u32 = 6;
const PERIODIC: &str = "make a periodic token: vault write auth/token/roles/coffer allowed_policies=coffer period=768h \
                        orphan=true, then vault token create -role=coffer, and give it with coffer fs kms set-vault";

/// What the proof sees.
pub(crate) fn at_proof(
    vault: &VaultKms,
    token: &TokenData,
    status: &CredentialStatus,
    key: &MasterKey,
) -> Vec<Finding> {
    let config = vault.target();
    let mut found = Vec::new();
    if token.policies.iter().any(|policy| policy == "root") {
        found.push(token_is_root());
    }
    let unread = unread_file(vault);
    found.extend(unread.map(|unread| Finding { ends_in: status.time_left, ..unread }));
    found.extend(of_credential(vault, status));
    found.extend(of_key(config, key));
    found.extend(plain_http(config));
    found.extend(of_certificates(vault));
    found
}

/// What is to be said of the master key.
pub(crate) fn of_key(config: &VaultConfig, key: &MasterKey) -> Vec<Finding> {
    let mut found = Vec::new();
    found.extend(key.deletion_allowed.then(|| key_deletable(config)));
    found.extend(key.exportable.then(|| key_exportable(config)));
    if key.backup_in_clear {
        found.push(finding(
            "key-backup-in-clear",
            format!("Vault gives the master key {} out in clear to who may back it up", key.name),
            "this can't be undone: use a new key, made without allow_plaintext_backup, to which all keys are moved",
        ));
    }
    found
}

/// What later looks see.
pub(crate) fn later(vault: &VaultKms, key: &MasterKey, status: &CredentialStatus) -> Vec<Finding> {
    let config = vault.target();
    let mut found = Vec::new();
    // Of Vault's tokens only root's never end.
    found.extend(status.time_left.is_none().then(token_is_root));
    found.extend(of_credential(vault, status));
    found.extend(of_key(config, key));
    found.extend(plain_http(config));
    found.extend(of_certificates(vault));
    found
}

/// What ends the credential.
fn of_credential(vault: &VaultKms, status: &CredentialStatus) -> Vec<Finding> {
    if vault.logs_in() {
        return vault.login_findings(status);
    }
    // Nobody writes another: this one has to last.
    let left = status.time_left.filter(|_| vault.token_file().is_none());
    let seen = *vault.seen();
    let mut found = match left.filter(|_| seen.may_not_renew) {
        Some(left) => vec![may_not_renew(vault.target(), left)],
        None => of_life(status, seen.ends, vault.token_file()),
    };
    let Some(left) = left else { return found };
    if !seen.orphan {
        found.push(finding(
            "token-not-orphan",
            "the token is revoked together with the token that made it",
            "make it by a role with orphan=true",
        ));
    }
    if seen.num_uses > 0 {
        found.push(ends_in(
            left,
            "token-uses-limited",
            format!("the token has {} uses left and ends with the last", seen.num_uses),
            "make one without a limit of uses",
        ));
    }
    found
}

fn may_not_renew(config: &VaultConfig, left: Duration) -> Finding {
    let refused = refusal::not_permitted(config, Operation::RenewSelf);
    ends_in(
        left,
        "token-may-not-renew",
        format!("{refused}, so that it can't be renewed, and without it no filesystem opens"),
        refused.how_to_mend().unwrap_or_default(),
    )
}

/// That the file that tokens are read from could not be read last.
pub(crate) fn unread_file(vault: &VaultKms) -> Option<Finding> {
    let ((file, _), (why, has_token)) = vault.token_file().zip(vault.unread_token_file())?;
    let goes_on = match has_token {
        true => "the token of before goes on",
        false => "there is no token to ask Vault with",
    };
    Some(finding(
        "token-file-unreadable",
        format!("{} can't be read ({why}): {goes_on}", file.display()),
        "look at the agent that writes the file, and at who may read it; or give a token with coffer fs kms set-vault",
    ))
}

fn token_is_root() -> Finding {
    finding(
        "token-is-root",
        "the token may do everything in Vault",
        "make one with the policy that coffer fs kms policy shows, give it with coffer fs kms set-vault, and revoke this one",
    )
}

/// `ends`: when it ends for good, since 1970, if that is known. `file`: where it comes from, and how long it was first given for.
pub(crate) fn of_life(
    status: &CredentialStatus,
    ends: Option<Duration>,
    file: Option<(&Path, Duration)>,
) -> Vec<Finding> {
    let Some(left) = status.time_left else { return Vec::new() };
    if let Some((file, whole)) = file {
        let ends = ends_in(
            left,
            "token-not-replaced",
            format!("nobody has renewed the token in {} or written another", file.display()),
            "look at the agent that writes the file; or give a token with coffer fs kms set-vault",
        );
        return if left < whole / LATE { vec![ends] } else { Vec::new() };
    }
    let mut found = Vec::new();
    if !status.renewable {
        found.push(ends_in(
            left,
            "token-not-renewable",
            "the token can't be renewed, and without it no filesystem opens",
            PERIODIC,
        ));
    } else if !status.periodic {
        let until = match ends {
            Some(end) => format!("at {}", certificate::moment(end)),
            None => "at its maximum life, which is Vault's".to_owned(),
        };
        found.push(ends_in(
            ends.map_or(left, certificate::left),
            "token-not-periodic",
            format!(
                "the token is not periodic: renewals end {until}, and without it no filesystem opens"
            ),
            PERIODIC,
        ));
    }
    if left < SOON && !(status.renewable && status.periodic) {
        found.push(ends_in(
            left,
            "token-expires-soon",
            "the token has less than a day left",
            PERIODIC,
        ));
    }
    found
}

fn key_deletable(config: &VaultConfig) -> Finding {
    finding(
        "key-deletable",
        format!(
            "Vault allows the master key {} to be deleted, and all data would be lost with it",
            config.master_key()
        ),
        format!(
            "forbid it: vault write {}/config deletion_allowed=false",
            Operation::ReadKey.path(config)
        ),
    )
}

fn key_exportable(config: &VaultConfig) -> Finding {
    finding(
        "key-exportable",
        format!(
            "Vault gives the master key {} out in clear to who may export it",
            config.master_key()
        ),
        "this can't be undone: use a new key, made without exportable, to which all keys are moved",
    )
}

pub(crate) fn plain_http(config: &VaultConfig) -> Option<Finding> {
    config.is_exposed().then(|| {
        finding(
            "plain-http",
            "Vault is reached by plain http: the token and every key can be read on the way",
            "give Vault a certificate and set its https URL",
        )
    })
}

/// What ends the connection.
fn of_certificates(vault: &VaultKms) -> impl Iterator<Item = Finding> {
    vaults_certificate(vault).into_iter().chain(client_certificate(vault))
}

/// That Vault's certificate, as the last connection showed it, ends soon.
pub(crate) fn vaults_certificate(vault: &VaultKms) -> Option<Finding> {
    let left = vault.certificate_ends().map(certificate::left)?;
    (left < certificate::SOON).then(|| {
        ends_in(
            left,
            "certificate-ends-soon",
            "without a valid certificate of Vault's nothing opens any more",
            "renew it on Vault, and let Vault load it (SIGHUP)",
        )
    })
}

/// That the certificate that Vault is shown ends soon, or is over. Who does not ask for one works on without.
pub(crate) fn client_certificate(vault: &VaultKms) -> Option<Finding> {
    let end = vault.identity_ends()?;
    let left = certificate::left(end);
    (left < certificate::SOON).then(|| {
        ends_in(
            left,
            "client-certificate-expires",
            format!(
                "the client certificate is valid until {}, and without one no filesystem opens",
                certificate::moment(end)
            ),
            "get a new one from its authority, and give it with the other values of now: coffer fs kms set-vault … --client-cert FILE \
             --client-key FILE",
        )
    })
}

pub(crate) fn finding(code: &str, what: impl fmt::Display, cure: impl fmt::Display) -> Finding {
    Finding::new(code, what.to_string(), cure.to_string())
}

/// As [`finding`], of a credential that lives so long.
fn ends_in(
    left: Duration,
    code: &str,
    what: impl fmt::Display,
    cure: impl fmt::Display,
) -> Finding {
    Finding { ends_in: Some(left), ..finding(code, what, cure) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_file_that_nobody_writes_any_more_is_warned_of() {
        let codes = |left: u64| {
            let time_left = Some(Duration::from_secs(left));
            let status = CredentialStatus { time_left, renewable: false, periodic: false };
            let file = Some((Path::new("/run/token"), Duration::from_secs(1200)));
            of_life(&status, None, file).into_iter().map(|finding| finding.code).collect::<Vec<_>>()
        };
        assert_eq!(codes(400), [""; 0]);
        assert_eq!(codes(199), ["token-not-replaced"]);
    }
}

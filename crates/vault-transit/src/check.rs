//! What a check of a Vault looks at.
//!
//! Each permission is proved by use. What the token may do beyond them is what Vault says of it (`sys/capabilities-self`),
//! for nobody tries whether a key can be deleted.
//!
//! Each question may take as long as a request's deadline, so after the first that Vault does not answer no other is asked.

use std::time::Duration;

use tokio::time::Instant;

use kms_core::{
    CheckItem, Ciphertext, FilesystemKey, Finding, Items, KeyRecord, Kms as _, KmsError,
    KmsErrorKind, MasterKey, RequestId,
};

use crate::certificate;
use crate::config::VaultConfig;
use crate::findings::{self, finding};
use crate::kms::{self, VaultKms};
use crate::operation::Operation;
use crate::wire::{KeyData, TokenData};

const IN_TIME: &str = "the token is renewed or replaced in time";

const LOGGED_IN: &str =
    "the node logged in once for this: of a secret id with a limited number of uses that took one";

const LAST_LOGIN: &str =
    "not tried: it would take the last login of the secret id, and the next start needs that";

const HAS_LOGGED_IN: &str = "the node has just logged in";

const EXPORTS: &str = "take the master key out of Vault, if it is exportable";

/// What a token for Coffer should not be allowed: a path, the capabilities that allow it, and what comes of it.
const EXCESS: [(&str, &[&str], &str); 13] = [
    ("{mount}/keys/{key}", &["delete"], "delete the master key, and all data with it"),
    ("sys/mounts/{mount}", &["delete"], "remove the transit engine, and all data with its keys"),
    ("{mount}/keys/{key}", &["create", "update"], "make the master key anew where it is missing"),
    (
        "{mount}/keys/{key}/config",
        &["create", "update"],
        "change the master key's settings: allow its deletion, cut off its versions",
    ),
    ("{mount}/keys/{key}/rotate", &["create", "update"], "rotate the master key"),
    ("{mount}/keys/{key}/trim", &["create", "update"], "throw old versions of the master key away"),
    ("{mount}/keys/{key}/soft-delete", &["create", "update"], "put the master key out of use"),
    ("{mount}/export/encryption-key/{key}", &["read"], EXPORTS),
    ("{mount}/export/encryption-key/{key}/latest", &["read"], EXPORTS),
    ("{mount}/byok-export/{key}/{key}", &["read"], EXPORTS),
    (
        "{mount}/backup/{key}",
        &["read"],
        "take the master key out of Vault as a backup, if it allows that",
    ),
    ("{mount}/restore/{key}", &["create", "update"], "put another key in the master key's place"),
    ("{mount}/encrypt/{key}", &["create"], "have Vault make the master key where it is missing"),
];

/// What is known of the next login.
enum NextLogin {
    /// A token that was given, or is read from a file, needs none.
    Needless,
    /// It was tried, and all is looked at with what it got; or it has been granted just now.
    Granted(&'static str),
    /// It is left to the next start.
    Last,
    Refused(KmsError),
}

/// Everything, in the order in which a failure makes the rest pointless. Who logs in is looked at as the next start would be: with a login of
/// its own, which takes the place of the last one if it may do as much.
pub(crate) async fn run(vault: &VaultKms, sample: Option<&Ciphertext>) -> Vec<CheckItem> {
    vault.session().let_log_in();
    let begun = Instant::now();
    // Where Vault does not answer, one deadline is enough.
    let token = vault.look_up_token().await;
    let away = token.as_ref().is_err_and(|error| error.kind().is_transient());
    if away || !vault.logs_in() {
        return look(vault, sample, token, NextLogin::Needless).await;
    }
    let is_new = vault.session().is_new() || vault.session().has_logged_in_since(begun);
    let next = match vault.starts_left().await {
        Err(error) => NextLogin::Refused(error),
        Ok(Some(1)) => NextLogin::Last,
        Ok(left) if is_new && left != Some(0) => NextLogin::Granted(HAS_LOGGED_IN),
        _ => match vault.log_in_apart().await {
            Ok(None) => NextLogin::Needless,
            Err(error) => NextLogin::Refused(error),
            Ok(Some(apart)) => return look_apart(vault, &apart, sample).await,
        },
    };
    look(vault, sample, token, next).await
}

async fn look_apart(
    vault: &VaultKms,
    apart: &VaultKms,
    sample: Option<&Ciphertext>,
) -> Vec<CheckItem> {
    let token = apart.look_up_token().await;
    let items = look(apart, sample, token, NextLogin::Granted(LOGGED_IN)).await;
    match items.iter().any(|item| item.failure == Some(KmsErrorKind::Denied)) {
        true => apart.leave().await,
        false => vault.adopt(apart).await,
    }
    items
}

async fn look(
    vault: &VaultKms,
    sample: Option<&Ciphertext>,
    token: Result<TokenData, KmsError>,
    next: NextLogin,
) -> Vec<CheckItem> {
    let config = vault.target();
    let reach = format!("Vault answers at {}", config.origin());
    if let Err(error) = &token
        && error.kind() == KmsErrorKind::NoCredential
    {
        return vec![CheckItem::failed("credential", "there is a token to show Vault", error)];
    }
    if let Err(error) = &token
        && (error.kind().is_transient() || error.kind() == KmsErrorKind::Invalid)
    {
        return vec![CheckItem::failed("answers", reach, error)];
    }
    let mut items = vec![CheckItem::passed("answers", reach, "")];
    items.push(vaults_certificate(vault));
    items.extend(client_certificate(vault));
    items.push(CheckItem::of("may-lookup-self", may(config, Operation::LookupSelf), &token));

    let key = of_key(vault, sample, &mut items).await;
    if let Ok(token) = &token {
        let renewal = match untold("may-renew-self", IN_TIME, &items) {
            Some(untold) => untold,
            None => renewal(vault, token, next).await,
        };
        items.push(renewal);
    }
    items.extend(excess(vault, &items).await);
    if let (Ok(token), Ok(key)) = (token, key) {
        let status = vault.status(&token);
        let found = findings::at_proof(vault, &token, &status, &key);
        let is_known = |code: &str| {
            // The same, as what failed.
            let code = if code == "token-may-not-renew" { "may-renew-self" } else { code };
            items.iter().any(|item| item.code == code)
        };
        let found: Vec<_> = found.into_iter().filter(|finding| !is_known(&finding.code)).collect();
        let (of_key, others): (Vec<_>, Vec<_>) =
            found.into_iter().partition(|finding| finding.code.starts_with("key-"));
        let what = "the credential lasts and may do no more than it needs";
        items.extend(others.into_iter().map(|finding| CheckItem::warning(what, finding)));
        items.extend(settings(&key, of_key));
    }
    items
}

/// What of it concerns the master key alone.
pub(crate) async fn key_alone(vault: &VaultKms, sample: Option<&Ciphertext>) -> Vec<CheckItem> {
    let mut items = Vec::new();
    let key = of_key(vault, sample, &mut items).await;
    items.extend(excess(vault, &items).await);
    if let Ok(key) = key {
        items.extend(settings(&key, findings::of_key(vault.target(), &key)));
    }
    items
}

/// The master key's settings, and what is to be said of them.
fn settings(key: &MasterKey, found: Vec<Finding>) -> Vec<CheckItem> {
    const WHAT: &str = "the master key stays in Vault and can't be lost by a slip";
    if found.is_empty() {
        let versions = format!(
            "no deletion, no export; newest version {}, decrypts from version {}",
            key.latest_version.0,
            key.min_decryption_version.0.max(1)
        );
        return vec![CheckItem::passed("key-settings", WHAT, versions)];
    }
    found.into_iter().map(|finding| CheckItem::warning(WHAT, finding)).collect()
}

fn may(config: &VaultConfig, operation: Operation) -> String {
    format!("the token may {} {}", operation.capability(), operation.path(config))
}

/// The answer that can't be had any more: Vault did not answer what was asked before.
fn untold(code: &str, what: impl Into<String>, before: &[CheckItem]) -> Option<CheckItem> {
    let away = before.iter().any(|item| item.failure.is_some_and(KmsErrorKind::is_transient));
    away.then(|| CheckItem::unknown(code, what, "not asked, because Vault did not answer before"))
}

/// Reads the master key and uses it.
async fn of_key(
    vault: &VaultKms,
    sample: Option<&Ciphertext>,
    items: &mut Vec<CheckItem>,
) -> Result<MasterKey, KmsError> {
    let key = vault.read_key().await;
    let may_read = may(vault.target(), Operation::ReadKey);
    items.push(CheckItem::of("may-read-key", may_read, &key));
    by_use(vault, &key, sample, items).await;
    key.map(kms::describe)
}

/// Encrypts a probe, opens it, rewraps it; where the first fails the others are tried with the sample. Without a master key
/// nothing is tried: Vault would refuse as it does where a permission is missing.
async fn by_use(
    vault: &VaultKms,
    key: &Result<KeyData, KmsError>,
    sample: Option<&Ciphertext>,
    items: &mut Vec<CheckItem>,
) {
    let config = vault.target();
    let missing = matches!(key, Err(error) if error.kind() == KmsErrorKind::KeyMissing);
    let mut ciphertext = sample.cloned();
    for (code, operation) in [
        ("may-encrypt", Operation::Encrypt),
        ("may-decrypt", Operation::Decrypt),
        ("may-rewrap", Operation::Rewrap),
    ] {
        let what = may(config, operation);
        let item = if let Some(untold) = untold(code, what.as_str(), items) {
            untold
        } else if missing {
            CheckItem::unknown(code, what, "there is no such master key to try it with")
        } else if operation == Operation::Encrypt {
            let encrypted = probe(vault).await;
            let request = request_of(&encrypted);
            let encrypted = encrypted.and_then(Items::only);
            let item = CheckItem::of(code, what, &encrypted);
            ciphertext = encrypted.ok().or(ciphertext);
            CheckItem { request, ..item }
        } else if let Some(one) = ciphertext.as_ref().map(std::slice::from_ref) {
            // That what is in it does not open is no lack of a permission.
            match operation {
                Operation::Decrypt => used(code, what, &vault.unwrap(one).await),
                _ => used(code, what, &vault.rewrap(one).await),
            }
        } else {
            CheckItem::unknown(code, what, "there is nothing to try it with")
        };
        items.push(item);
    }
}

fn used<T>(code: &str, what: String, answer: &Result<Items<T>, KmsError>) -> CheckItem {
    CheckItem { request: request_of(answer), ..CheckItem::of(code, what, answer) }
}

fn request_of<T>(answer: &Result<Items<T>, KmsError>) -> Option<RequestId> {
    answer.as_ref().ok()?.request_of(0).cloned()
}

async fn probe(vault: &VaultKms) -> Result<Items<Ciphertext>, KmsError> {
    vault.encrypt(&[KeyRecord::of(&FilesystemKey::generate()?)]).await
}

async fn renewal(vault: &VaultKms, token: &TokenData, next: NextLogin) -> CheckItem {
    let config = vault.target();
    let what = may(config, Operation::RenewSelf);
    let code = "may-renew-self";
    // A token that lives still hides that the next login will be refused.
    match next {
        NextLogin::Needless => {}
        NextLogin::Granted(how) => return CheckItem::passed(code, IN_TIME, how),
        NextLogin::Last => return CheckItem::unknown(code, IN_TIME, LAST_LOGIN),
        NextLogin::Refused(error) => return CheckItem::failed(code, IN_TIME, &error),
    }
    if !token.renewable {
        let status = vault.status(token);
        let found = findings::of_life(&status, vault.seen().ends, vault.token_file());
        let worst = found.into_iter().find(|finding| finding.code == "token-not-renewable");
        return match worst {
            Some(finding) => CheckItem::warning(IN_TIME, finding),
            None => CheckItem::passed("may-renew-self", "the token is replaced in time", ""),
        };
    }
    CheckItem::of("may-renew-self", what, &vault.renew_token(token).await)
}

/// What Vault says that the token may do and Coffer does not need.
async fn excess(vault: &VaultKms, before: &[CheckItem]) -> Vec<CheckItem> {
    const WHAT: &str = "the token may do nothing else with the master key";
    if let Some(untold) = untold("excess", WHAT, before) {
        return vec![untold];
    }
    let config = vault.target();
    let path = |form: &str| {
        form.replace("{mount}", config.transit_path()).replace("{key}", config.master_key())
    };
    let paths: Vec<String> = EXCESS.iter().map(|(form, ..)| path(form)).collect();
    let granted = match vault.capabilities(&paths).await {
        Ok(granted) => granted,
        Err(error) if error.kind() == KmsErrorKind::Denied => {
            return vec![CheckItem::unknown(
                "excess",
                WHAT,
                format!("{error}; Vault's default policy lets every token ask that"),
            )];
        }
        Err(error) if error.kind().is_transient() => {
            return vec![CheckItem::failed("excess", WHAT, &error)];
        }
        Err(error) => return vec![CheckItem::unknown("excess", WHAT, error.chain())],
    };
    let is_root = granted.values().flatten().any(|capability| capability == "root");
    if is_root {
        // The findings say so.
        return Vec::new();
    }
    let (mut items, mut told) = (Vec::new(), Vec::new());
    for (form, capabilities, comes_of_it) in EXCESS {
        let path = path(form);
        let has = granted.get(&path).map(Vec::as_slice).unwrap_or_default();
        let too_many: Vec<_> = has.iter().filter(|c| capabilities.contains(&c.as_str())).collect();
        // Of ways to the same thing the first is told: one rule that is too wide allows all of them.
        if let Some(first) = too_many.first()
            && !told.contains(&comes_of_it)
        {
            told.push(comes_of_it);
            items.push(CheckItem::warning(WHAT, finding(
                "excess",
                format!("it may {first} {path}, and so {comes_of_it}"),
                format!(
                    "give it the policy that coffer fs kms policy {} prints (name every other master key behind it that the token is \
                     for), and no other that names this path",
                    config.policy_arguments()
                ),
            )));
        }
    }
    if items.is_empty() {
        items.push(CheckItem::passed("excess", WHAT, "none of what Vault was asked about"));
    }
    items
}

fn vaults_certificate(vault: &VaultKms) -> CheckItem {
    const WHAT: &str = "the connection is secure, and its certificate valid for a while";
    let config = vault.target();
    if let Some(exposed) = findings::plain_http(config) {
        return CheckItem::warning(WHAT, exposed);
    }
    if config.loopback_only() {
        return CheckItem::passed(
            "certificate",
            WHAT,
            "plain http that does not leave this machine",
        );
    }
    match vault.certificate_ends() {
        None => CheckItem::unknown("certificate", WHAT, "the certificate can't be read"),
        Some(end) => lasting("certificate", WHAT, end, findings::vaults_certificate(vault)),
    }
}

fn client_certificate(vault: &VaultKms) -> Option<CheckItem> {
    const WHAT: &str = "the certificate that Vault is shown is valid for a while";
    let end = vault.identity_ends()?;
    Some(lasting("client-certificate", WHAT, end, findings::client_certificate(vault)))
}

/// Of a certificate with this end, and what is to be said of that.
fn lasting(code: &str, what: &str, end: Duration, found: Option<Finding>) -> CheckItem {
    let days = certificate::left(end).as_secs() / (24 * 60 * 60);
    match found {
        Some(finding) => CheckItem::warning(what, finding),
        None => CheckItem::passed(code, what, format!("it ends in {days} days")),
    }
}

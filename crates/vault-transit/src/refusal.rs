//! What Vault's refusals mean. Vault tells most of it in words only; these are the words of 1.1.5,
//! 1.21.4 and OpenBao 2.6.2.

use kms_core::{Ciphertext, KmsError, KmsErrorKind, KmsInput};

use crate::config::VaultConfig;
use crate::operation::Operation;
use crate::wire;

/// The token is alive and its policies do not allow this.
pub(crate) fn not_permitted(config: &VaultConfig, operation: Operation) -> KmsError {
    let refused = KmsError::new(
        KmsErrorKind::Denied,
        format!("the token may not {} {}", operation.capability(), operation.path(config)),
    );
    let cure = format!(
        "add to a policy of the token, and take nothing out of it: {} (coffer fs kms policy {}, with every other master key \
         that the token is for named behind it, prints all that it needs)",
        operation.grant(config),
        config.policy_arguments()
    );
    match operation {
        // A name that was mistyped is refused before it is looked for.
        Operation::ReadKey => refused
            .of_input(KmsInput::MasterKey)
            .cure(format!("{cure}; or give the master key's right name, if this is not it")),
        _ => refused.of_input(KmsInput::Auth).cure(cure),
    }
}

/// Vault does not know the token. 1.1.5 says the same of a token that may do nothing at all.
pub(crate) fn bad_token(config: &VaultConfig, operation: Operation) -> KmsError {
    KmsError::new(
        KmsErrorKind::Denied,
        format!(
            "Vault refuses the token: it is wrong, expired or revoked, or of another Vault or namespace, or bound \
             to other client addresses (asked to {} {})",
            operation.capability(),
            operation.path(config)
        ),
    )
    .cure("make a new token (vault token create -role=<role>) and set it (coffer fs kms set-vault)")
}

/// The token was good for this request, and Vault has ended it with that.
pub(crate) fn used_up() -> KmsError {
    KmsError::new(
        KmsErrorKind::Denied,
        "the token was good for a number of uses only, and they are used up",
    )
    .cure("make a token without a limit of uses (vault token create -role=<role>) and set it (coffer fs kms set-vault)")
}

/// A login that was refused. Vault does not tell a wrong role id from a wrong secret id.
pub(crate) fn login(mount: &str, status: u16, errors: &[String]) -> KmsError {
    let said = errors.join("; ");
    if status == 404 || said.contains("no handler for route") || said.contains("unsupported path") {
        return KmsError::new(
            KmsErrorKind::Denied,
            format!("nobody can log in at auth/{mount}/ in Vault"),
        )
        .of_input(KmsInput::LoginPath)
        .cure(format!(
            "enable it: vault auth enable -path={mount} approle; or name the right one with --auth-path"
        ));
    }
    let said = if said.is_empty() { "no reason" } else { &said };
    let new = format!(
        "make a new secret id (vault write -f auth/{mount}/role/<role>/secret-id) and give it with coffer fs kms set-vault"
    );
    // A newer Vault refuses all logins of a role for a while after some that failed, and says no more than that.
    let (or, cure) = match status {
        403 => (
            ", or Vault has locked the role out after logins that failed",
            format!(
                "{new}; if it is right, wait a quarter of an hour, or let the role log in again: vault read sys/locked-users shows it, \
                 vault write -f sys/locked-users/<accessor of the mount>/unlock/<role id>"
            ),
        ),
        _ => ("", new),
    };
    KmsError::new(
        KmsErrorKind::Denied,
        format!(
            "Vault refuses the login at auth/{mount}/ ({status}: {said}): the role id or the secret id is wrong, or the \
             secret id is expired, used up, or bound to other client addresses, or no AppRole is mounted there{or}"
        ),
    )
    .cure(cure)
}

/// Something else than transit answers where it should be mounted.
pub(crate) fn other_engine(config: &VaultConfig) -> KmsError {
    KmsError::new(
        KmsErrorKind::KeyMissing,
        format!("what is mounted at {}/ in Vault is no transit engine", config.transit_path()),
    )
    .of_input(KmsInput::Setting("transit_path"))
    .cure("name where one is with --transit-path: vault secrets list shows it")
}

/// A refusal that concerns the whole request, other than 403.
pub(crate) fn refused(
    config: &VaultConfig,
    operation: Operation,
    status: u16,
    errors: &[String],
) -> KmsError {
    let path = operation.path(config);
    let said = errors.join("; ");
    let key = config.master_key();
    // Seen first, because a missing namespace is told in both ways.
    if said.contains("namespace not found") {
        return KmsError::new(KmsErrorKind::KeyMissing, "Vault has no such namespace")
            .of_input(KmsInput::Setting("namespace"))
            .cure("check the namespace: vault namespace list");
    }
    if status == 404 && said.contains("no handler for route") {
        return KmsError::new(
            KmsErrorKind::KeyMissing,
            format!("nothing is mounted at {}/ in Vault", config.transit_path()),
        )
        .of_input(KmsInput::Setting("transit_path"))
        .cure(format!(
            "mount it: vault secrets enable -path={} transit; or name the right one with --transit-path",
            config.transit_path()
        ));
    }
    if status == 404 && operation.is_of_transit() && said.contains("unsupported path") {
        return other_engine(config);
    }
    // The last two are what a Vault says that was about to make the key and was kept from it: see `wire::encrypt_body`.
    let key_missing = (status == 404 && errors.is_empty())
        || said.contains("encryption key not found")
        || (operation == Operation::Encrypt
            && (said.contains("key type ecdsa-p256") || said.contains("unknown key type")));
    if key_missing {
        return KmsError::new(
            KmsErrorKind::KeyMissing,
            format!("Vault has no master key {key} in {}/", config.transit_path()),
        )
        .cure(format!(
            "check the name, and --transit-path; to make a new one: vault write -f {}/keys/{key}. If it was deleted, what it wrapped opens \
             only when it is restored from a backup of Vault",
            config.transit_path()
        ));
    }
    // 1.1.5 takes a token that looks like a newer Vault's for one with a namespace.
    if said.contains("failed to look up namespace") || said.contains("missing client token") {
        return bad_token(config, operation);
    }
    KmsError::new(
        KmsErrorKind::Unreachable,
        format!(
            "Vault answers {status} to {path}: {}",
            if said.is_empty() { "no reason" } else { &said }
        ),
    )
    .cure("look at Vault's log")
}

/// The error of one item of a batch.
pub(crate) fn item(config: &VaultConfig, ciphertext: Option<&Ciphertext>, said: &str) -> KmsError {
    let key = config.master_key();
    // Not the version that the caller recorded, but the one that Vault looked at. There is none in texts that are not
    // Vault's, of which it may say anything: to `vault:v-1:…` it says that it is too old.
    let version = ciphertext.and_then(|c| wire::parse_ciphertext(&c.text)).map(|c| c.version);
    if let (true, Some(version)) = (said.contains("too old"), version) {
        return KmsError::new(
            KmsErrorKind::VersionTooOld,
            format!("the master key {key} no longer decrypts what its {version} encrypted: {said}"),
        )
        .cure(format!(
            "allow it again until all is rewrapped: vault write {}/keys/{key}/config min_decryption_version=<version>",
            config.transit_path()
        ));
    }
    if let (true, Some(version)) = (said.contains("version is too new"), version) {
        return KmsError::new(
            KmsErrorKind::NotAuthentic,
            format!("the master key {key} has no {version} yet: it was made anew or restored from an older backup"),
        )
        .cure("restore the newest backup of Vault");
    }
    let not_authentic = [
        "authentication failed",
        "invalid ciphertext",
        "too old",
        "illegal base64",
        "missing ciphertext",
    ];
    if not_authentic.iter().any(|words| said.contains(words)) {
        return KmsError::new(
            KmsErrorKind::NotAuthentic,
            format!("the master key {key} does not open this wrapped key ({said}): it was altered, or another key made it"),
        )
        .cure("restore the wrapped key from one of its copies, or the master key from a backup of Vault");
    }
    if said.contains("not supported for key type") || said.contains("missing 'context'") {
        return KmsError::new(
            KmsErrorKind::KeyUnfit,
            format!("the master key {key} can't do this: {said}"),
        )
        .cure("use a key of type aes256-gcm96");
    }
    KmsError::new(KmsErrorKind::Unreachable, format!("Vault failed on this wrapped key: {said}"))
        .cure("look at Vault's log")
}

//! The KMS configuration, seen and changed.

use serde::{Deserialize, Serialize};

use crate::{BytePath, Exit, Job, Problem, Token};

/// A new configuration: Vault. Proved before anything of it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct SetVault {
    /// Vault's base URL.
    pub base_url: String,
    /// The master key's name there.
    pub master_key: String,
    /// A token. It takes one of this, a token file and a role, or none of them: what is stored is kept then, if a KMS is set and the new
    /// URL has the scheme, host and port of its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<Token>,
    /// A file, absolute, that the node reads the token from whenever it changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<BytePath>,
    /// The id of an AppRole, by which the node logs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// Its secret id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret_id: Option<Token>,
    /// Where AppRole is mounted, if not at `approle`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_path: Option<String>,
    /// A certificate (PEM) to connect with, where Vault asks its clients for one. With a credential that is kept, the one before goes on
    /// without this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_cert: Option<String>,
    /// Its private key (PEM).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub client_key: Option<Token>,
    /// Vault's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Where transit is mounted, if not at `transit`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transit_path: Option<String>,
    /// Certificates (PEM) to trust instead of the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<String>,
    /// Whether plain http may go beyond loopback.
    #[serde(default)]
    pub allow_http: bool,
}

/// Which keys are wrapped anew. A request without a body takes all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct Rewrap {
    /// Only this filesystem's key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
}

/// The KMS as the node knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Kms {
    /// Names what is set, or that nothing is: another one after each change of it, and after nothing else. Opaque. Given back as
    /// `If-Match: "…"` it keeps a change from undoing that of somebody else.
    #[serde(default)]
    pub version: String,
    /// The configuration; `None` while none is set.
    pub configured: Option<KmsDetails>,
    /// What each version of each master key wraps, and what is wrapped locally.
    pub keys: Vec<VersionCount>,
    /// Keys that have lain under local wrapping, and may be compromised.
    pub exposed_keys: u64,
    /// What works today and should be changed.
    pub findings: Vec<Finding>,
}

/// The configuration and what the KMS says of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsDetails {
    /// The configuration's id.
    pub id: String,
    /// `vault`.
    pub kind: String,
    /// Its base URL.
    pub base_url: String,
    /// The master key's name.
    pub master_key: String,
    /// Where transit is mounted.
    pub transit_path: String,
    /// Vault's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The certificates (PEM) that are trusted, and no others, if not the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_cert: Option<String>,
    /// How the node shows who it is: `token`, `token-file`, `approle`.
    pub auth_method: String,
    /// The file that the token is read from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<BytePath>,
    /// The AppRole's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub role_id: Option<String>,
    /// Where AppRole is mounted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth_path: Option<String>,
    /// Whether connections are made with a client certificate.
    #[serde(default)]
    pub client_cert: bool,
    /// Whether a credential is stored. It is never shown.
    pub credential_set: bool,
    /// Its life, as the KMS told it last: while the KMS does not answer, what was told before is counted down. `None` before it told
    /// anything, and where it refuses the credential.
    pub credential: Option<CredentialLife>,
    /// The master key's newest version, when the KMS told it.
    pub latest_version: Option<u64>,
    /// The version below which the KMS refuses to decrypt, when the KMS told it.
    pub min_decryption_version: Option<u64>,
    /// The oldest version that something of ours needs, copies of wrapped keys included: `min_decryption_version` can be raised up to
    /// it. `None` while that can't be told.
    pub lowest_needed: Option<u64>,
    /// What has to be rewrapped, or brought back, before it can be raised further: filesystems by name, the canary; while it can't be told, why not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_back_by: Vec<String>,
    /// Why the KMS does not answer now; `None` if it does.
    pub problem: Option<Problem>,
    /// Whether it did all that is needed of it when it was last looked at or checked; if not, the problem or a warning says why.
    pub does_all: bool,
    /// The master keys that filesystems have of their own there, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub own_keys: Vec<OwnKey>,
}

/// A master key that filesystems have of their own, beside the one that is set for all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct OwnKey {
    /// Its name.
    pub master_key: String,
    /// How many filesystems hang on it now.
    pub filesystems: u64,
    /// Its newest version, when the KMS told it.
    pub latest_version: Option<u64>,
    /// The version below which the KMS refuses to decrypt, when the KMS told it.
    pub min_decryption_version: Option<u64>,
    /// As [`KmsDetails::lowest_needed`], of this master key.
    pub lowest_needed: Option<u64>,
    /// As [`KmsDetails::held_back_by`], of this master key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held_back_by: Vec<String>,
    /// Why the KMS does not answer for it as it should; `None` if it does, or was not asked yet.
    pub problem: Option<Problem>,
    /// As [`KmsDetails::does_all`], of this master key: not while the KMS does not answer at all; `None` before it was asked.
    pub does_all: Option<bool>,
}

/// How long a credential lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CredentialLife {
    /// Seconds left; `None` if it never ends.
    pub seconds_left: Option<u64>,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Whether renewing can go on for ever.
    pub periodic: bool,
    /// How long ago the KMS told it. What is left is counted down since.
    pub told_seconds_ago: u64,
}

/// What one version of one master key wraps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VersionCount {
    /// `vault`, `local`.
    pub kind: String,
    /// The base URL of its KMS; empty for local wrapping, as what follows.
    pub base_url: String,
    /// Where transit is mounted there.
    pub transit_path: String,
    /// Vault's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The master key's name.
    pub master_key: String,
    /// Its version.
    pub version: u64,
    /// Filesystem keys.
    pub keys: u64,
    /// Whether it wraps the canary too: what Coffer keeps to see whether the master key is still the same.
    pub canary: bool,
}

/// A warning with its cure.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Finding {
    /// A stable word.
    pub code: String,
    /// What is so, and why it matters.
    pub what: String,
    /// What to do.
    pub cure: String,
}

/// What a token must be allowed, and nothing beyond it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsPolicy {
    /// The policy, in Vault's language.
    pub policy: String,
    /// The commands that apply it and make a token under it.
    pub commands: Vec<String>,
}

/// What would fail if something were taken away in the KMS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsImpact {
    /// What would be taken away, in words.
    pub what: String,
    /// Filesystems that are unlocked and go on until the node ends.
    pub go_on: Vec<String>,
    /// Filesystems that are locked now and can't be unlocked any more.
    pub shut_now: Vec<String>,
    /// Filesystems that a node that starts can't unlock.
    pub shut_at_start: Vec<String>,
    /// Filesystems that have nothing to do with it.
    pub untouched: Vec<String>,
    /// Filesystems that need nothing of it as far as is known, with a copy of their wrapped key that is out of reach or behind.
    pub unknown: Vec<String>,
    /// Whether new filesystems can't be made, and keys not be wrapped anew.
    pub stops_wrapping: bool,
    /// What undoes it, or saves what can be saved.
    pub cure: String,
}

/// Whether a node that starts now would open everything.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsRehearsal {
    /// Filesystems that open.
    pub open: u64,
    /// Filesystems that would stay locked.
    pub shut: Vec<ShutFilesystem>,
    /// Filesystems that an administrator locked, which would stay so; their keys open.
    pub held: Vec<String>,
    /// Seconds until the credential ends, if it is not renewed or replaced for ever.
    pub credential_seconds_left: Option<u64>,
    /// Seconds for which a node can stay stopped: the life of a token that only a running one renews.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped_seconds_left: Option<u64>,
    /// What ends first of all that a start needs and that ends.
    pub until: Option<Ending>,
    /// What else works today and will hurt later.
    pub warnings: Vec<String>,
    /// Whether the node shows the KMS who it is by a login: then the rehearsal logged in too.
    pub logs_in: bool,
    /// How many starts the KMS still grants a login, after this rehearsal, as far as it tells that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub starts_left: Option<u64>,
    /// How a command line ends that shows this.
    pub exit: Exit,
}

/// What comes to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Ending {
    /// What, such as `the client certificate`.
    pub what: String,
    /// Seconds until then.
    pub seconds_left: u64,
}

/// A filesystem that would stay locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ShutFilesystem {
    /// Its name.
    pub name: String,
    /// Why.
    pub why: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// What a check of the KMS found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsCheck {
    /// One thing after the other.
    pub items: Vec<CheckItem>,
    /// How a command line ends that shows this.
    pub exit: Exit,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CheckItem {
    /// A stable word.
    pub code: String,
    /// What should hold.
    pub what: String,
    /// Whether it does.
    pub outcome: CheckOutcome,
    /// What was found, where there is more to say.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub found: String,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum CheckOutcome {
    /// It does.
    Passed,
    /// It works, and should be changed.
    Warning,
    /// It does not.
    Failed,
    /// It can't be told.
    Unknown,
}

/// What became of a change of the configuration.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct KmsChange {
    /// What was done.
    pub change: Change,
    /// The KMS as it is now.
    pub kms: Kms,
    /// The job that moves the keys, if they have to move.
    pub job: Option<Job>,
}

/// What was done with the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// There was none, and no key had to move.
    Added,
    /// It opens everything as it lies, and took over.
    Updated,
    /// Every key moves to it, by a job.
    Moving,
    /// It was removed.
    Removed,
    /// It is removed once a job has put every key under local wrapping.
    Downgrading,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_with_a_field_that_nobody_knows_is_refused() {
        let text = r#"{"base_url":"u","master_key":"k","token":"t","tokn_file":"x"}"#;
        assert!(serde_json::from_str::<SetVault>(text).is_err());
    }

    #[test]
    fn a_request_shows_no_token_in_debug() {
        let text = r#"{"base_url":"u","master_key":"k","token":"s.secret"}"#;
        let request: SetVault = serde_json::from_str(text).unwrap();
        assert!(!format!("{request:?}").contains("s.secret"));
        assert_eq!(request.token.unwrap().expose(), "s.secret");
    }
}

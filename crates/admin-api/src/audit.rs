//! The audit log.

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditLine {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written.
    pub at: u64,
    /// What was done: `admin.request`, `kms.configure`, `fs.create`, `key.unwrap`, …
    pub action: String,
    /// To what.
    pub subject: String,
    /// `begun`, `done`, `refused` or `failed`.
    pub outcome: String,
    /// Who asked for it, as the kernel says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The filesystem key that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_id: Option<String>,
    /// The version of the master key that wraps it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_version: Option<u64>,
    /// What the KMS calls the requests by which it was done: its own audit log has them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<String>,
    /// More, in words.
    pub detail: String,
    /// The hash of the line, which the next one has too.
    pub hash: String,
}

/// Lines, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditPage {
    /// The lines.
    pub lines: Vec<AuditLine>,
    /// Older ones that fit come before this line (`?before=`); none: there are no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<u64>,
}

/// The whole chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct AuditChain {
    /// The first line that is kept; none while there is no line.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first: Option<u64>,
    /// The last line.
    pub last: u64,
    /// Its hash: noted elsewhere, it shows later that all before it is as it was.
    pub hash: String,
    /// In how many files they lie.
    pub files: u64,
    /// Where the chain is broken, or what else is wrong with what was written; none: it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trouble: Option<String>,
    /// Why the newest events can't be recorded at this moment: a full disk, as a rule. They are counted, and told by a line once it
    /// goes on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unrecorded: Option<String>,
}

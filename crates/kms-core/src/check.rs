//! What a check of a KMS finds, one thing after the other.

use serde::{Deserialize, Serialize};

use crate::{Finding, KmsError, KmsErrorKind, RequestId};

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckItem {
    /// A stable word, such as `may-encrypt`.
    pub code: String,
    /// What should hold.
    pub what: String,
    /// Whether it does.
    pub outcome: CheckOutcome,
    /// What was found, where there is more to say.
    pub found: String,
    /// What to do.
    pub cure: Option<String>,
    /// What kind of failure it is.
    pub failure: Option<KmsErrorKind>,
    /// The request by which a key was used for it, where the KMS named it.
    pub request: Option<RequestId>,
}

/// Whether something holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
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

impl CheckItem {
    /// Something that holds.
    pub fn passed(code: &str, what: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            code: code.to_owned(),
            what: what.into(),
            outcome: CheckOutcome::Passed,
            found: found.into(),
            cure: None,
            failure: None,
            request: None,
        }
    }

    /// Something that does not hold, for this reason.
    pub fn failed(code: &str, what: impl Into<String>, error: &KmsError) -> Self {
        Self {
            outcome: CheckOutcome::Failed,
            cure: error.how_to_mend().map(str::to_owned),
            failure: Some(error.kind()),
            ..Self::passed(code, what, error.chain())
        }
    }

    /// Something that can't be told, and why.
    pub fn unknown(code: &str, what: impl Into<String>, why: impl Into<String>) -> Self {
        Self { outcome: CheckOutcome::Unknown, ..Self::passed(code, what, why) }
    }

    /// Something that works and should be changed.
    pub fn warning(what: impl Into<String>, finding: Finding) -> Self {
        let found = finding.told();
        Self {
            outcome: CheckOutcome::Warning,
            cure: Some(finding.cure),
            ..Self::passed(&finding.code, what, found)
        }
    }

    /// As it turned out.
    pub fn of<T>(code: &str, what: impl Into<String>, result: &Result<T, KmsError>) -> Self {
        match result {
            Ok(_) => Self::passed(code, what, ""),
            Err(error) => Self::failed(code, what, error),
        }
    }
}

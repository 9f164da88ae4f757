//! Errors as they travel: RFC 9457's problem details, with a cure and an exit code.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The content type of a [`Problem`] (RFC 9457, section 3).
pub const MEDIA_TYPE: &str = "application/problem+json";

/// What failed, why, and what to do.
///
/// On the wire there is also the `type` that RFC 9457 asks for: `urn:coffer:problem:` and the code.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Wire")]
pub struct Problem {
    /// A stable word for programs: `filesystem-locked`, `kms-denied`.
    pub code: String,
    /// What failed.
    pub title: String,
    /// Why.
    pub detail: String,
    /// What to do, if that is known.
    pub cure: Option<String>,
    /// What of the request is the cause, by its name there, if it is one thing.
    pub field: Option<Box<str>>,
    /// The HTTP status that it was answered with.
    pub status: u16,
    /// How a command line ends that meets it.
    pub exit: Exit,
}

impl Problem {
    /// A problem whose status follows from `exit`.
    pub fn new(
        exit: Exit,
        code: &str,
        title: impl Into<String>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            code: code.to_owned(),
            title: title.into(),
            detail: detail.into(),
            cure: None,
            field: None,
            status: exit.status(),
            exit,
        }
    }

    /// Adds what to do.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// Says what of the request is the cause: a member of its body, or a part of its path or query.
    #[must_use]
    pub fn field(mut self, name: &str) -> Self {
        self.field = Some(name.into());
        self
    }

    /// Answers it with another HTTP status than its exit code implies.
    #[must_use]
    pub const fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl std::error::Error for Problem {}

/// What failed, why, and what to do (RFC 9457).
#[derive(Serialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub(crate) struct Wire {
    /// `urn:coffer:problem:` and the code.
    #[serde(rename = "type")]
    kind: String,
    /// A stable word for programs.
    code: String,
    /// What failed.
    title: String,
    /// Why.
    detail: String,
    /// What to do, if that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    cure: Option<String>,
    /// What of the request is the cause, by its name there, if it is one thing.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<Box<str>>,
    /// The HTTP status that it was answered with.
    status: u16,
    /// How a command line ends that meets it.
    exit: Exit,
}

impl From<Problem> for Wire {
    fn from(problem: Problem) -> Self {
        let Problem { code, title, detail, cure, field, status, exit } = problem;
        let kind = format!("urn:coffer:problem:{code}");
        Self { kind, code, title, detail, cure, field, status, exit }
    }
}

/// How a command ends. The numbers are the process's exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum Exit {
    /// 0: done.
    Done,
    /// 1: failed, for a reason that no other code names.
    Failed,
    /// 2: wrong usage.
    Usage,
    /// 3: the KMS cannot be reached, or is sealed.
    KmsUnreachable,
    /// 4: the KMS refused.
    KmsRefused,
    /// 5: the state does not allow it.
    State,
    /// 6: data failed authentication.
    NotAuthentic,
    /// 7: no node answers.
    NoNode,
    /// 8: partly done.
    Partly,
}

impl Exit {
    /// The process's exit code.
    pub const fn code(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Usage => 2,
            Self::KmsUnreachable => 3,
            Self::KmsRefused => 4,
            Self::State => 5,
            Self::NotAuthentic => 6,
            Self::NoNode => 7,
            Self::Partly => 8,
        }
    }

    const fn status(self) -> u16 {
        match self {
            Self::Done | Self::Partly => 200,
            Self::Failed | Self::NotAuthentic => 500,
            Self::Usage => 400,
            Self::State => 409,
            Self::KmsRefused => 502,
            Self::KmsUnreachable | Self::NoNode => 503,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wire_form_is_rfc_9457() {
        let problem = Problem::new(Exit::KmsRefused, "kms-denied", "set-vault failed", "no read")
            .cure("grant it")
            .field("token");
        let json = serde_json::to_value(&problem).unwrap();
        assert_eq!(
            json,
            serde_json::json!({
                "type": "urn:coffer:problem:kms-denied", "code": "kms-denied",
                "title": "set-vault failed", "detail": "no read", "cure": "grant it",
                "field": "token", "status": 502, "exit": "kms-refused",
            })
        );
        assert_eq!(serde_json::from_value::<Problem>(json).unwrap(), problem);
    }
}

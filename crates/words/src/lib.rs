//! How the node's answers read for people. The command line and the web console show the same words, and they stand here.
//!
//! What has several properties reads as [`Fields`]: a name and a value each. How those are laid out, as lines of a terminal or as
//! a list of a page, is the business of whoever shows them. Nothing here is escaped for either.
//!
//! ```
//! use admin_api::{JobKind, JobState};
//!
//! assert_eq!(words::span(768 * 3600), "32 days");
//! assert_eq!(words::job_noun(JobKind::Verify), "verification");
//! assert_eq!(words::job_state(JobState::Partly), "is partly done");
//! ```

mod audit;
mod filesystem;
mod job;
mod kms;
mod quantity;
mod status;

pub use audit::{audit_chain, audit_more};
pub use filesystem::{filesystem, filesystem_state, wrapped_by};
pub use job::{counts_files, ended_job, job, job_noun, job_progress, job_state};
pub use kms::{change, check_outcome, check_sum, impact, kms, rehearsal, versions};
pub use quantity::{bytes, count, moment, span};
pub use status::{kms_line, status};

/// Names and values, in the order in which they are shown.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Fields(Vec<(&'static str, Value)>);

impl Fields {
    /// Adds one at the end.
    pub fn add(&mut self, name: &'static str, value: impl Into<Value>) {
        self.0.push((name, value.into()));
    }

    /// They.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &Value)> {
        self.0.iter().map(|(name, value)| (*name, value))
    }
}

/// What a field has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Words.
    Text(String),
    /// A moment, in Unix milliseconds.
    Moment(u64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Text(text) => f.write_str(text),
            Self::Moment(at) => f.write_str(&moment(*at)),
        }
    }
}

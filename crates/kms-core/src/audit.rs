//! The record of every act on a key.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::UnixMillis;

/// Keeps audit events. Called from any thread; it may block for a short write.
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Takes one event. A sink that can't keep it says so in the log and in its own state: an act on a
    /// key is not undone because its record failed.
    fn record(&self, event: &AuditEvent);
}

/// One act. Contains no secret: ids, names and versions only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// When it ended.
    pub at: UnixMillis,
    /// What was done: `kms.configure`, `fs.create`, `key.unwrap`, …
    pub action: String,
    /// To what: a filesystem's name, a configuration's id.
    pub subject: String,
    /// How it ended.
    pub outcome: Outcome,
    /// More, in words.
    pub detail: String,
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Done.
    Done,
    /// Refused by a rule of Coffer's or of the KMS's.
    Refused,
    /// Failed.
    Failed,
}

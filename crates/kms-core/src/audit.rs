//! The record of every act on a key.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{KeyId, KeyVersion, RequestId, UnixMillis};

/// Keeps audit events. Called from any thread; it may block for a short write.
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Takes one event. A sink that can't keep it says so in the log and in its own state: an act on a
    /// key is not undone because its record failed.
    fn record(&self, event: &AuditEvent);

    /// As [`AuditSink::record`], many at once, in their order.
    fn record_all(&self, events: &[AuditEvent]) {
        events.iter().for_each(|event| self.record(event));
    }
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
    /// Who asked for it, as the kernel says, where somebody did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub who: Option<String>,
    /// The filesystem key that was used.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<KeyUse>,
    /// What the KMS calls the requests by which it was done, in their order: its own audit log has them too.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestId>,
    /// More, in words.
    pub detail: String,
}

/// A filesystem key, and the version of the master key that wraps it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyUse {
    /// The key.
    pub id: KeyId,
    /// The version.
    pub version: KeyVersion,
}

/// How an act ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// It begins; how it ended is another event.
    Begun,
    /// Done.
    Done,
    /// Refused by a rule of Coffer's or of the KMS's.
    Refused,
    /// Failed.
    Failed,
}

//! The record of every act on a key.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::{KeyId, KeyVersion, RequestId, UnixMillis};

/// Keeps audit events. Called from any thread; it may block for a short write.
pub trait AuditSink: fmt::Debug + Send + Sync {
    /// Takes one event, its texts no longer than [`AuditEvent::bounded`] makes them. A sink that can't keep it says so in the log and in its own state: an act on a
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

impl AuditEvent {
    /// Longest text of [`AuditEvent::subject`] and of [`AuditEvent::detail`] that is kept as it is, in bytes: both can have in them
    /// what others chose.
    pub const MAX_TEXT: usize = 2048;

    /// The most [`AuditEvent::requests`] that are kept: as many as take [`AuditEvent::MAX_TEXT`].
    pub const MAX_REQUESTS: usize = Self::MAX_TEXT / RequestId::MAX_LEN;

    /// The same event with texts that fit a line of a log: of a longer one its beginning, and how long it was; and with the first
    /// of its requests, and how many more there were at the end of the detail.
    #[must_use]
    pub fn bounded(&self) -> Self {
        let mut detail = bounded(&self.detail);
        let (requests, more) = self.requests.split_at(self.requests.len().min(Self::MAX_REQUESTS));
        if !more.is_empty() {
            let space = if detail.is_empty() { "" } else { " " };
            detail.push_str(&format!("{space}(and {} more requests)", more.len()));
        }
        Self { subject: bounded(&self.subject), detail, requests: requests.into(), ..self.clone() }
    }
}

fn bounded(text: &str) -> String {
    if text.len() <= AuditEvent::MAX_TEXT {
        return text.to_owned();
    }
    let kept = &text[..text.floor_char_boundary(AuditEvent::MAX_TEXT)];
    format!("{kept}… (shortened: {} bytes)", text.len())
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_many_requests_the_first_are_kept_and_the_others_counted() {
        let requests = |count| -> Vec<_> {
            (0..count).map(|n| RequestId::parse(&format!("{n:064}")).unwrap()).collect()
        };
        let event = |count, detail: &str| AuditEvent {
            at: UnixMillis(1),
            action: "key.prove".to_owned(),
            subject: "s".to_owned(),
            outcome: Outcome::Done,
            who: None,
            key: None,
            requests: requests(count),
            detail: detail.to_owned(),
        };
        let all = event(AuditEvent::MAX_REQUESTS, "rehearsal");
        assert_eq!((all.bounded(), AuditEvent::MAX_REQUESTS), (all.clone(), 32));
        let cut = event(1032, "rehearsal").bounded();
        assert_eq!(
            cut,
            AuditEvent { detail: "rehearsal (and 1000 more requests)".to_owned(), ..all }
        );
        assert_eq!(event(33, "").bounded().detail, "(and 1 more requests)");
    }

    #[test]
    fn a_long_text_is_shortened_and_says_so() {
        let fits = "x".repeat(AuditEvent::MAX_TEXT);
        assert_eq!(bounded(&fits), fits);
        let shortened = bounded(&format!("{fits}y"));
        assert_eq!(shortened, format!("{fits}… (shortened: 2049 bytes)"));
        // No character is cut.
        let wide = bounded(&format!("x{}", "ü".repeat(5000)));
        let (kept, mark) = wide.split_once('…').unwrap();
        assert_eq!((kept.len(), mark), (2047, " (shortened: 10001 bytes)"));
    }
}

//! The warnings that last, told when they begin and when they end.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use kms_core::{AuditEvent, AuditSink as _, Clock, Finding, Outcome};

use crate::audit::AuditLog;
use crate::mutex::lock;

/// Each stands in the log and in the audit log twice, however often it is seen in between.
#[derive(Debug)]
pub(crate) struct Warnings {
    /// Those that have begun and not ended: of which configuration, and the code.
    begun: Mutex<BTreeSet<(String, String)>>,
    audit: Arc<AuditLog>,
    clock: Arc<dyn Clock>,
}

impl Warnings {
    pub(crate) fn new(audit: Arc<AuditLog>, clock: Arc<dyn Clock>) -> Self {
        Self { begun: Mutex::default(), audit, clock }
    }

    /// `found` are those of now, each with its configuration. One that is not among them has ended, unless it is `untold` by its code:
    /// nobody can see now whether it goes on.
    pub(crate) fn tell(&self, found: &[(String, Finding)], untold: impl Fn(&str) -> bool) {
        let mut begun = lock(&self.begun);
        for (subject, finding) in found {
            let Finding { code, cure, .. } = finding;
            if begun.insert((subject.clone(), code.clone())) {
                let what = finding.told();
                tracing::warn!(kms = subject, code, cure, "{what}");
                self.record(subject, Outcome::Begun, format!("{code}: {what}"));
            }
        }
        begun.retain(|(subject, code)| {
            let is_found = || found.iter().any(|(of, found)| of == subject && found.code == *code);
            let goes_on = untold(code) || is_found();
            if !goes_on {
                tracing::info!(kms = subject, code, "what was warned of is so no more");
                self.record(subject, Outcome::Done, format!("{code}: it is so no more"));
            }
            goes_on
        });
    }

    fn record(&self, subject: &str, outcome: Outcome, detail: String) {
        self.audit.record(&AuditEvent {
            at: self.clock.now(),
            action: "kms.warning".to_owned(),
            subject: subject.to_owned(),
            outcome,
            who: None,
            key: None,
            requests: Vec::new(),
            detail,
        });
    }
}

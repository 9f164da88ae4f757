//! What every [`AuditSink`] that keeps events promises, as a suite that each implementation runs; and a sink that tests look into.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use kms_core::{AuditEvent, AuditSink, KeyId, KeyUse, KeyVersion, Outcome, RequestId, UnixMillis};

/// What the suite needs of an implementation.
pub trait AuditSinkFixture {
    /// It, empty at first.
    fn sink(&self) -> Arc<dyn AuditSink>;

    /// What it has kept, in order, as somebody else finds it at this moment.
    fn kept(&self) -> Vec<AuditEvent>;
}

/// Holds an implementation to the trait's words: each event is kept by the time it was taken, whole but for what
/// [`AuditEvent::bounded`] shortens, in its order, and from whatever thread. Panics at the first promise that is broken.
pub fn audit_sink_contract(fixture: &dyn AuditSinkFixture) {
    assert_eq!(fixture.kept(), []);
    let sink = fixture.sink();
    let mut expected = Vec::new();
    for event in some_events() {
        sink.record(&event);
        expected.push(event.bounded());
        assert_eq!(fixture.kept(), expected);
    }
    let threads: Vec<_> = (0..8).map(|number| record_some(Arc::clone(&sink), number)).collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    let kept = fixture.kept().split_off(expected.len());
    assert_eq!(kept.len(), 8 * EACH);
    for number in 0..8 {
        let of_this = kept.iter().filter(|event| event.subject == number.to_string());
        let order: Vec<_> = of_this.map(|event| event.at.0).collect();
        assert_eq!(order, (0..EACH as u64).collect::<Vec<_>>(), "of thread {number}");
    }
}

/// Events of each thread.
const EACH: usize = 300;

/// Every other thread brings all of them at once.
fn record_some(sink: Arc<dyn AuditSink>, number: u32) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        let event = |n: usize| event(n as u64, &number.to_string(), "x".repeat(n));
        let events: Vec<_> = (0..EACH).map(event).collect();
        match number % 2 {
            0 => events.iter().for_each(|event| sink.record(event)),
            _ => sink.record_all(&events),
        }
    })
}

fn event(at: u64, subject: &str, detail: impl Into<String>) -> AuditEvent {
    AuditEvent {
        at: UnixMillis(at),
        action: "key.unwrap".to_owned(),
        subject: subject.to_owned(),
        outcome: Outcome::Done,
        who: None,
        key: None,
        requests: Vec::new(),
        detail: detail.into(),
    }
}

/// With all that a line, a quote or an encoding could lose.
fn some_events() -> Vec<AuditEvent> {
    let texts = [
        "",
        "plain",
        "two\nlines\r\n",
        "\"quoted\" \\ {}",
        "ü \u{202e} \0 \x1b[2J",
        "\n{\"seq\":1}\n",
    ];
    let mut events: Vec<_> = texts.into_iter().map(|text| event(1, text, text)).collect();
    events.push(event(2, "long", "x".repeat(100_000)));
    events.push(event(2, &"ü".repeat(7000), ""));
    // The clock may go back, and the same may happen twice.
    events.extend([event(0, "same", ""), event(0, "same", "")]);
    let key = Some(KeyUse { id: KeyId::random(), version: KeyVersion(7) });
    events.push(AuditEvent { key, ..event(2, "used", "") });
    let requests =
        ["b03840fb-a8f8", "9fd151a5-5144"].into_iter().filter_map(RequestId::parse).collect();
    events.push(AuditEvent { requests, ..event(2, "asked of a KMS", "") });
    let who = Some("uid 0, \"root\"".to_owned());
    events.push(AuditEvent { outcome: Outcome::Begun, who, ..event(2, "asked", "") });
    events.push(AuditEvent { outcome: Outcome::Refused, ..event(u64::MAX, "refused", "") });
    events.push(AuditEvent { outcome: Outcome::Failed, ..event(3, "failed", "") });
    events
}

/// Keeps every event in memory, in the order in which it came. Share it by `Arc`.
#[derive(Debug, Default)]
pub struct CollectingAudit(Mutex<Vec<AuditEvent>>);

impl CollectingAudit {
    /// Every event so far.
    pub fn events(&self) -> Vec<AuditEvent> {
        self.lock().clone()
    }

    /// Every event since the last call, and forgets them.
    pub fn take(&self) -> Vec<AuditEvent> {
        std::mem::take(&mut self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, Vec<AuditEvent>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AuditSink for CollectingAudit {
    fn record(&self, event: &AuditEvent) {
        self.lock().push(event.bounded());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl AuditSinkFixture for Arc<CollectingAudit> {
        fn sink(&self) -> Arc<dyn AuditSink> {
            Self::clone(self)
        }

        fn kept(&self) -> Vec<AuditEvent> {
            self.events()
        }
    }

    #[test]
    fn it_keeps_the_promises_of_a_sink() {
        audit_sink_contract(&Arc::new(CollectingAudit::default()));
    }
}

//! Faults on order, and a count of what was asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde::{Deserialize, Serialize};

/// What goes wrong with a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// The request is done and answered, but only after this time.
    Delay {
        /// How long it waits.
        milliseconds: u64,
    },
    /// The connection is closed. The request is not done.
    Drop,
    /// The request is done, and the connection closed without an answer.
    DropAnswer,
    /// The request is not done, and this is the answer.
    Status {
        /// From 200 to 599.
        status: u16,
        /// Sent as it stands.
        #[serde(default)]
        body: String,
        /// `content-type` is `application/json` unless it stands here.
        #[serde(default)]
        headers: BTreeMap<String, String>,
    },
    /// The request is not done; the answer is 200 and a web page, as from a proxy that asks for a login.
    Html,
    /// The request is done, and its answer cut off in the middle.
    Truncate,
    /// The request is not done; the answer is 200 and JSON that never ends.
    Endless,
}

impl Fault {
    /// Only for paths that start like this, such as `transit/decrypt/` (without `/v1/`).
    #[must_use]
    pub fn on(self, path: impl Into<String>) -> FaultRule {
        FaultRule { path: path.into(), ..self.into() }
    }

    /// Only for the next so many requests.
    #[must_use]
    pub fn times(self, times: u64) -> FaultRule {
        FaultRule { times: Some(times), ..self.into() }
    }
}

/// A fault, and which requests it strikes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultRule {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// The start of the paths that it strikes, without `/v1/`. Empty for all.
    #[serde(default)]
    pub path: String,
    /// How many requests it still strikes. `None` until it is cleared.
    #[serde(default)]
    pub times: Option<u64>,
}

impl FaultRule {
    /// Only for the next so many requests.
    #[must_use]
    pub fn times(self, times: u64) -> Self {
        Self { times: Some(times), ..self }
    }
}

impl From<Fault> for FaultRule {
    fn from(fault: Fault) -> Self {
        Self { fault, path: String::new(), times: None }
    }
}

/// The faults of one server. The first rule that fits a request strikes it.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Vec<FaultRule>>);

impl Faults {
    /// Adds a fault behind those that are there.
    pub fn inject(&self, rule: impl Into<FaultRule>) {
        self.rules().push(rule.into());
    }

    /// Ends all faults.
    pub fn clear(&self) {
        self.rules().clear();
    }

    /// What may still strike.
    pub fn list(&self) -> Vec<FaultRule> {
        self.rules().clone()
    }

    /// The fault for a request, counted.
    pub(crate) fn strike(&self, path: &str) -> Option<Fault> {
        let mut rules = self.rules();
        let at =
            rules.iter().position(|rule| path.starts_with(&rule.path) && rule.times != Some(0))?;
        let rule = rules.get_mut(at)?;
        let fault = rule.fault.clone();
        if let Some(times) = &mut rule.times {
            *times -= 1;
        }
        rules.retain(|rule| rule.times != Some(0));
        Some(fault)
    }

    fn rules(&self) -> MutexGuard<'_, Vec<FaultRule>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How much was asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// Requests that came in, those that a fault struck as well.
    pub requests: u64,
    /// Items of their `batch_input`s; a request without one counts as one item.
    pub items: u64,
}

/// Counts of requests by path. Requests below `dev/` are not counted.
#[derive(Debug, Default)]
pub struct RequestLog(Mutex<BTreeMap<String, Count>>);

impl RequestLog {
    /// What came to paths that start like this (without `/v1/`).
    pub fn count(&self, path: &str) -> Count {
        let counts = self.counts();
        let fitting = counts.iter().filter(|(counted, _)| counted.starts_with(path));
        fitting.fold(Count::default(), |sum, (_, count)| Count {
            requests: sum.requests + count.requests,
            items: sum.items + count.items,
        })
    }

    /// The counts of all paths.
    pub fn all(&self) -> BTreeMap<String, Count> {
        self.counts().clone()
    }

    /// Starts again from zero.
    pub fn clear(&self) {
        self.counts().clear();
    }

    pub(crate) fn add(&self, path: &str, items: usize) {
        let mut counts = self.counts();
        let count = counts.entry(path.to_owned()).or_default();
        count.requests += 1;
        count.items += items as u64;
    }

    fn counts(&self) -> MutexGuard<'_, BTreeMap<String, Count>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

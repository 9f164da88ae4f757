//! Faults on order, and a count of what was asked.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{event::Event, plan::FaultPlan};

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
        #[serde(deserialize_with = "final_status")]
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
    /// The request is done, and its answer sent in small pieces.
    Drip {
        /// In each piece.
        bytes: u64,
        /// The pause before each.
        milliseconds: u64,
        /// By how much each pause is longer than the one before. Default: 0.
        #[serde(default)]
        slower_by: u64,
    },
    /// The request is done, and its answer followed by spaces, which are nothing to JSON.
    Oversized {
        /// The size of the whole.
        bytes: u64,
    },
    /// The request is not done; the answer sends it elsewhere.
    Redirect {
        /// Where to: any text. `{path}` in it stands for the path of the request, such as `/v1/transit/keys/k`, so
        /// that `{path}` alone is the same place again and `http://standby:8200{path}` another server.
        location: String,
        /// 307 unless it stands here; from 200 to 599.
        #[serde(default = "temporary", deserialize_with = "final_status")]
        status: u16,
    },
    /// The request is done, and some items of its batch have failed for all that its answer says. What has no items is
    /// left alone.
    PartialBatch {
        /// Each so-manieth item fails: 1 for all.
        every: u64,
        /// Vault's words for it. Default: those for a ciphertext that is not authentic.
        #[serde(default = "Fault::usual_error")]
        error: String,
    },
    /// Requests beyond so many in a window of time are not done; the answer is 429, and says when the window ends. A
    /// plan, whose seed chooses requests, has each of those refused.
    RateLimit {
        /// How many are done in each window.
        requests: u64,
        /// The length of the window.
        milliseconds: u64,
    },
}

impl Fault {
    pub(crate) fn usual_error() -> String {
        "cipher: message authentication failed".to_owned()
    }

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

fn final_status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let status = u16::deserialize(deserializer)?;
    match status {
        200..=599 => Ok(status),
        _ => Err(D::Error::custom(format!("status is {status}; write 200 to 599"))),
    }
}

fn temporary() -> u16 {
    307
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

/// The faults of one server: rules and a plan. The first rule that fits a request strikes it; where none does, the plan
/// has its turn.
#[derive(Debug, Default)]
pub struct Faults(Mutex<Orders>);

#[derive(Debug, Default)]
struct Orders {
    rules: Vec<Standing>,
    /// With the number of requests that it has seen.
    plan: Option<(FaultPlan, u64)>,
}

#[derive(Debug)]
struct Standing {
    rule: FaultRule,
    /// Of a rate limit: when its window began, and how many requests were done in it.
    window: Option<(Instant, u64)>,
}

/// What a request meets.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Strike {
    /// What happens before.
    pub(crate) events: Vec<Event>,
    pub(crate) fault: Option<Fault>,
}

impl Faults {
    /// Adds a fault behind those that are there.
    pub fn inject(&self, rule: impl Into<FaultRule>) {
        self.orders().rules.push(Standing { rule: rule.into(), window: None });
    }

    /// Follows a plan from the next request on, in place of the one of before.
    pub fn follow(&self, plan: FaultPlan) {
        self.orders().plan = Some((plan, 0));
    }

    /// Ends all faults: the rules and the plan.
    pub fn clear(&self) {
        *self.orders() = Orders::default();
    }

    /// The rules that may still strike.
    pub fn list(&self) -> Vec<FaultRule> {
        self.orders().rules.iter().map(|standing| standing.rule.clone()).collect()
    }

    /// The plan that is followed, and how many requests it has seen.
    pub fn plan(&self) -> Option<(FaultPlan, u64)> {
        self.orders().plan.clone()
    }

    /// What a request meets, counted.
    pub(crate) fn strike(&self, path: &str) -> Strike {
        let mut orders = self.orders();
        let mut strike = Strike::default();
        if let Some((plan, seen)) = &mut orders.plan
            && path.starts_with(&plan.path)
        {
            strike.events = plan.events_before(*seen).cloned().collect();
            strike.fault = plan.fault(*seen).cloned();
            *seen += 1;
        }
        let now = Instant::now();
        let ruled = orders.rules.iter_mut().find_map(|standing| standing.strike(path, now));
        orders.rules.retain(|standing| standing.rule.times != Some(0));
        strike.fault = ruled.or(strike.fault);
        strike
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Standing {
    fn strike(&mut self, path: &str, now: Instant) -> Option<Fault> {
        if !path.starts_with(&self.rule.path) || self.rule.times == Some(0) {
            return None;
        }
        let fault = match &self.rule.fault {
            Fault::RateLimit { requests, milliseconds } => {
                let length = Duration::from_millis(*milliseconds);
                let (begun, done) = self.window.get_or_insert((now, 0));
                if now.duration_since(*begun) >= length {
                    (*begun, *done) = (now, 0);
                }
                if *done < *requests {
                    *done += 1;
                    return None;
                }
                let left = length.saturating_sub(now.duration_since(*begun));
                let milliseconds = u64::try_from(left.as_millis()).unwrap_or(u64::MAX);
                Fault::RateLimit { requests: *requests, milliseconds }
            }
            fault => fault.clone(),
        };
        if let Some(times) = &mut self.rule.times {
            *times -= 1;
        }
        Some(fault)
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

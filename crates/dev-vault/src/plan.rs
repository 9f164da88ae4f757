//! A bad day out of a seed: which request meets which fault, and when the server itself changes.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::{event::Event, faults::Fault};

/// What goes wrong, decided by a seed and the number of each request alone: the same plan and the same requests
/// meet the same faults, so a test that failed under a seed can be run again under it.
///
/// As JSON only `seed` must be there:
///
/// ```json
/// {
///   "seed": 7,
///   "path": "transit/",
///   "percent": 30,
///   "faults": [
///     { "fault": "drop", "weight": 3 },
///     { "fault": "drip", "bytes": 16, "milliseconds": 5 }
///   ],
///   "events": [
///     { "after": 40, "within": 20, "event": "seal" },
///     { "after": 80, "event": "unseal" }
///   ]
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FaultPlan {
    /// What all follows from.
    pub seed: u64,
    /// The start of the paths that it is for, without `/v1/`; others are neither counted nor struck. Empty for all.
    #[serde(default)]
    pub path: String,
    /// How many of a hundred requests are struck.
    #[serde(default = "usual_percent", deserialize_with = "of_a_hundred")]
    pub percent: u64,
    /// What strikes them. Default: one of each kind, as [`Self::seeded`].
    #[serde(default = "usual_faults")]
    pub faults: Vec<Weighted>,
    /// What happens to the server between requests.
    #[serde(default)]
    pub events: Vec<Scheduled>,
}

/// A fault, and how often it is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Weighted {
    /// Twice the weight, twice as often. Default: 1.
    #[serde(default = "one")]
    pub weight: u64,
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
}

/// An event, and when it happens.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scheduled {
    /// After this many requests, and before the next one is answered.
    pub after: u64,
    /// Up to this many requests later, as the seed has it.
    #[serde(default)]
    pub within: u64,
    /// What happens.
    #[serde(flatten)]
    pub event: Event,
}

impl FaultPlan {
    /// The usual bad day: of a hundred requests twenty meet something that passes by itself.
    #[must_use]
    pub fn seeded(seed: u64) -> Self {
        Self {
            seed,
            path: String::new(),
            percent: usual_percent(),
            faults: usual_faults(),
            events: Vec::new(),
        }
    }

    /// What strikes a request; requests are numbered from zero.
    #[must_use]
    pub fn fault(&self, request: u64) -> Option<&Fault> {
        let [lot, choice] = [0, 1].map(|n| draw(self.seed, request.wrapping_mul(2) + n));
        if lot % 100 >= self.percent {
            return None;
        }
        let total = self.faults.iter().fold(0_u64, |sum, fault| sum.saturating_add(fault.weight));
        let mut at = choice.checked_rem(total)?;
        let chosen = self.faults.iter().find(|fault| match at.checked_sub(fault.weight) {
            None => true,
            Some(rest) => {
                at = rest;
                false
            }
        });
        chosen.map(|chosen| &chosen.fault)
    }

    /// What happens before a request is answered, in order; requests are numbered from zero.
    pub fn events_before(&self, request: u64) -> impl Iterator<Item = &Event> {
        let due = move |(n, event): (u64, &Scheduled)| {
            let later = match event.within.checked_add(1) {
                Some(choices) => draw(!self.seed, n) % choices,
                None => draw(!self.seed, n),
            };
            event.after.saturating_add(later) == request
        };
        let events = (0..).zip(&self.events).filter(move |event| due(*event));
        events.map(|(_, scheduled)| &scheduled.event)
    }
}

impl Fault {
    /// For a plan: twice the weight, twice as often.
    #[must_use]
    pub fn weighing(self, weight: u64) -> Weighted {
        Weighted { weight, fault: self }
    }
}

impl Event {
    /// For a plan: after so many requests.
    #[must_use]
    pub fn after(self, requests: u64) -> Scheduled {
        Scheduled { after: requests, within: 0, event: self }
    }
}

impl Scheduled {
    /// Up to so many requests later, as the seed has it.
    #[must_use]
    pub fn within(self, requests: u64) -> Self {
        Self { within: requests, ..self }
    }
}

/// A number that follows from a seed and a place: SplitMix64 (Steele, Lea and Flood, OOPSLA 2014).
fn draw(seed: u64, place: u64) -> u64 {
    let mut z = seed.wrapping_add(place.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

fn one() -> u64 {
    1
}

fn usual_percent() -> u64 {
    20
}

fn of_a_hundred<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let percent = u64::deserialize(deserializer)?;
    match percent {
        0..=100 => Ok(percent),
        _ => Err(D::Error::custom(format!("percent is {percent}; write 0 to 100"))),
    }
}

fn usual_faults() -> Vec<Weighted> {
    let status = |status| Fault::Status {
        status,
        body: "{\"errors\":[\"a fault of the plan\"]}".to_owned(),
        headers: Default::default(),
    };
    let redirect = |location: &str| Fault::Redirect { location: location.to_owned(), status: 307 };
    vec![
        Fault::Delay { milliseconds: 20 }.weighing(4),
        Fault::Drop.weighing(4),
        Fault::DropAnswer.weighing(4),
        status(500).weighing(1),
        status(502).weighing(1),
        status(503).weighing(1),
        status(412).weighing(1),
        Fault::RateLimit { requests: 0, milliseconds: 0 }.weighing(2),
        Fault::Html.weighing(1),
        Fault::Truncate.weighing(2),
        Fault::Drip { bytes: 64, milliseconds: 2, slower_by: 0 }.weighing(2),
        Fault::Oversized { bytes: 64 << 20 }.weighing(1),
        Fault::Endless.weighing(1),
        redirect("{path}").weighing(1),
        redirect("https://elsewhere.invalid{path}").weighing(1),
        Fault::PartialBatch { every: 3, error: Fault::usual_error() }.weighing(2),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(plan: &FaultPlan) -> Vec<(Option<&Fault>, Vec<&Event>)> {
        (0..1000).map(|n| (plan.fault(n), plan.events_before(n).collect())).collect()
    }

    fn eventful(seed: u64) -> FaultPlan {
        let events = vec![Event::Seal.after(100).within(100), Event::Unseal.after(300)];
        FaultPlan { events, ..FaultPlan::seeded(seed) }
    }

    #[test]
    fn the_seed_decides() {
        assert_eq!(day(&eventful(7)), day(&eventful(7)));
        assert_ne!(day(&eventful(7)), day(&eventful(8)));
        // A change of this sequence makes the seeds that somebody noted worthless.
        let struck: Vec<u64> = (0..40).filter(|n| eventful(7).fault(*n).is_some()).collect();
        assert_eq!(struck, [11, 13, 17, 19, 22, 23, 32, 37]);
    }

    #[test]
    fn numbers_that_mean_nothing_are_refused() {
        let read = |text: &str| serde_json::from_str::<FaultPlan>(text).map_err(|e| e.to_string());
        read(r#"{ "seed": 1, "percent": 100, "faults": [{ "fault": "status", "status": 599 }] }"#)
            .unwrap();
        for (text, says) in [
            (r#"{ "seed": 1, "percent": 101 }"#, "percent is 101"),
            (r#"{ "seed": 1, "faults": [{ "fault": "status", "status": 600 }] }"#, "status is 600"),
            (
                r#"{ "seed": 1, "faults": [{ "fault": "redirect", "location": "/", "status": 99 }] }"#,
                "status is 99",
            ),
        ] {
            assert!(read(text).unwrap_err().contains(says), "{text}");
        }
    }

    #[test]
    fn as_many_are_struck_as_the_plan_says_and_each_fault_by_its_weight() {
        let mut plan = FaultPlan::seeded(1);
        let struck = (0..10_000).filter(|n| plan.fault(*n).is_some()).count();
        assert!((1_800..2_200).contains(&struck), "{struck}");
        plan.percent = 100;
        plan.faults =
            vec![Fault::Html.weighing(0), Fault::Drop.weighing(3), Fault::Endless.weighing(1)];
        let met = |fault| (0..10_000).filter(|n| plan.fault(*n) == Some(&fault)).count();
        assert_eq!((met(Fault::Html), met(Fault::Drop) + met(Fault::Endless)), (0, 10_000));
        assert!((7_200..7_800).contains(&met(Fault::Drop)), "{}", met(Fault::Drop));
        for nothing in [
            FaultPlan { percent: 0, ..FaultPlan::seeded(1) },
            FaultPlan { faults: Vec::new(), ..plan.clone() },
            FaultPlan { faults: vec![Fault::Drop.weighing(0)], ..plan },
        ] {
            assert!((0..1_000).all(|n| nothing.fault(n).is_none()), "{nothing:?}");
        }
    }

    #[test]
    fn each_event_happens_once_in_its_time() {
        for seed in 0..100 {
            let plan = eventful(seed);
            let when = |event| -> Vec<u64> {
                (0..1000).filter(|n| plan.events_before(*n).any(|e| *e == event)).collect()
            };
            let sealed = when(Event::Seal);
            assert!(sealed.len() == 1 && (100..=200).contains(&sealed[0]), "{seed}: {sealed:?}");
            assert_eq!(when(Event::Unseal), [300]);
        }
        let endless = FaultPlan {
            events: vec![Event::Seal.after(u64::MAX).within(u64::MAX)],
            ..FaultPlan::seeded(0)
        };
        assert_eq!(endless.events_before(0).count(), 0);
    }

    #[test]
    fn a_plan_is_written_as_it_is_read() {
        let short: FaultPlan = serde_json::from_str(r#"{"seed": 7}"#).unwrap();
        assert_eq!(short, FaultPlan::seeded(7));
        let text = serde_json::to_string(&eventful(u64::MAX)).unwrap();
        assert_eq!(serde_json::from_str::<FaultPlan>(&text).unwrap(), eventful(u64::MAX));
        let refused = serde_json::from_str::<FaultPlan>(r#"{"seed": 7, "fault": []}"#);
        assert!(refused.unwrap_err().to_string().contains("unknown field `fault`"));
    }
}

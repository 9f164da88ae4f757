//! Which steps an act takes, whatever else goes on in the node at the same time.
//!
//! What several threads do comes in another order in each run, so a step is not known by its place among all, but by what it is and how many
//! of the same kind came before.

use std::collections::{BTreeMap, BTreeSet};

/// How often each kind of step.
pub(crate) type Counts = BTreeMap<String, usize>;

/// The steps of a run by their kinds. The node's log (not its audit log) is no state.
pub(crate) fn counted(steps: &[String]) -> Counts {
    let mut counts = Counts::new();
    for step in steps.iter().filter(|step| !step.ends_with(" log")) {
        *counts.entry(step.clone()).or_default() += 1;
    }
    counts
}

/// Those that either run takes; of those that [come by time](comes_by_time), what both take.
pub(crate) fn of_both(one: &Counts, other: &Counts) -> Counts {
    let mut all = Counts::new();
    for kind in one.keys().chain(other.keys()) {
        let times = [one, other].map(|run| run.get(kind).copied().unwrap_or(0));
        let expected = if comes_by_time(kind) { times.iter().min() } else { times.iter().max() };
        all.insert(kind.clone(), expected.copied().unwrap_or(0));
    }
    all
}

/// What a node does by itself: it syncs the audit log when its time has come, with all that was written until then, has lines there of what
/// it sees of its KMS, and looks now and then at the locks of what is open. The slower a run, the more often.
pub(crate) fn comes_by_time(kind: &str) -> bool {
    kind.ends_with(" audit.head") || kind.ends_with(" audit.jsonl") || kind == "openat coffer.lock"
}

/// How many steps only one of them takes that come by time.
pub(crate) fn left_out(one: &Counts, other: &Counts) -> usize {
    let all = one.keys().chain(other.keys()).collect::<BTreeSet<_>>();
    let apart = |kind: &&String| {
        let times = |run: &Counts| run.get(*kind).copied().unwrap_or(0);
        times(one).abs_diff(times(other))
    };
    all.iter().filter(|kind| comes_by_time(kind)).map(apart).sum()
}

/// Whether the last step is of this kind, and the so many-th.
pub(crate) fn is_nth(steps: &[String], kind: &str, nth: usize) -> bool {
    steps.last().is_some_and(|step| step == kind)
        && steps.iter().filter(|step| *step == kind).count() == nth
}

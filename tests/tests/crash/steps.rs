//! Which steps an act takes, whatever else goes on in the node at the same time.
//!
//! What several threads do comes in another order in each run, so a step is not known by its place among all, but by what it is and how many
//! of the same kind came before.

use std::collections::BTreeMap;

/// How often each kind of step.
pub(crate) type Counts = BTreeMap<String, usize>;

/// The steps of a run by their kinds.
pub(crate) fn counted(steps: &[String]) -> Counts {
    let mut counts = Counts::new();
    for step in steps.iter().filter(|step| is_the_acts(step)) {
        *counts.entry(step.clone()).or_default() += 1;
    }
    counts
}

/// Those that both runs take.
pub(crate) fn common(one: &Counts, other: &Counts) -> Counts {
    let least = |(step, times): (&String, &usize)| {
        let times = *times.min(other.get(step)?);
        Some((step.clone(), times))
    };
    one.iter().filter_map(least).collect()
}

/// Whether the last step is of this kind, and the so many-th.
pub(crate) fn is_nth(steps: &[String], kind: &str, nth: usize) -> bool {
    steps.last().is_some_and(|step| step == kind)
        && steps.iter().filter(|step| *step == kind).count() == nth
}

/// The audit log is synced when its time has come, whatever else is done (a kill at each of its steps is the first start's test), and the
/// log is no state.
fn is_the_acts(step: &str) -> bool {
    !step.contains("audit") && !step.ends_with(" log")
}

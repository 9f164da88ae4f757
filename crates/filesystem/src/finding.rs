//! What is wrong with a file, gathered over all of its segments, and kept for its other names.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::ops::Range;
use std::sync::Mutex;

use crate::error::Fault;
use crate::report::lock;
use crate::stage::InodeId;
use crate::sys::Stat;

/// Reasons that a file's problem tells one by one.
const REASONS: usize = 8;
/// Ranges of lost bytes that it tells.
const RANGES: usize = 32;

/// How bad it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Grade {
    /// Not as it should be, and all of it can be read.
    #[default]
    Blemished,
    /// Something of it is damaged.
    Damaged,
    /// Something of it can't be read now: the disk, or the system, does not answer. Later it may.
    Unanswered,
}

impl Grade {
    pub(crate) const fn of(fault: &Fault) -> Self {
        match fault {
            Fault::Damaged { .. } => Self::Damaged,
            _ => Self::Unanswered,
        }
    }
}

/// What is wrong with a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Finding {
    reasons: Vec<String>,
    more: usize,
    pub(crate) grade: Grade,
    /// The bytes of the file that can't be read, and whether there are more than these.
    lost: Vec<Range<u64>>,
    more_lost: bool,
}

impl Finding {
    pub(crate) fn add(&mut self, reason: String, grade: Grade) {
        self.grade = self.grade.max(grade);
        if self.reasons.len() < REASONS {
            self.reasons.push(reason);
        } else {
            self.more += 1;
        }
    }

    pub(crate) fn merge(&mut self, other: Self) {
        self.more += other.more;
        for reason in other.reasons {
            self.add(reason, other.grade);
        }
        self.more_lost |= other.more_lost;
        other.lost.into_iter().for_each(|range| self.add_lost(range));
    }

    pub(crate) fn add_lost(&mut self, range: Range<u64>) {
        let room = self.lost.len() < RANGES;
        match self.lost.last_mut() {
            Some(last) if last.end == range.start => last.end = range.end,
            _ if room => self.lost.push(range),
            _ => self.more_lost = true,
        }
    }

    pub(crate) const fn is_empty(&self) -> bool {
        self.reasons.is_empty()
    }

    /// All of it in words; `None` if nothing is wrong.
    pub(crate) fn told(&self) -> Option<String> {
        if self.reasons.is_empty() {
            return None;
        }
        let mut all = self.reasons.join("; ");
        if self.more > 0 {
            all += &format!("; and {} more", self.more);
        }
        if !self.lost.is_empty() {
            all += "; the file's bytes ";
            all += &self.lost_ranges().join(", ");
            all += if self.more_lost { " and others are lost" } else { " are lost" };
        }
        Some(all)
    }

    /// In order, and as people count: the last byte is one that is lost.
    fn lost_ranges(&self) -> Vec<String> {
        let mut ranges = self.lost.clone();
        ranges.sort_unstable_by_key(|range| range.start);
        // Workers found them, each in its own segments of the file.
        ranges.dedup_by(|next, range| {
            let joins = next.start <= range.end;
            range.end = if joins { range.end.max(next.end) } else { range.end };
            joins
        });
        ranges.iter().map(|range| format!("{} to {}", range.start, range.end - 1)).collect()
    }
}

/// What was found of files of which other names are to come.
#[derive(Debug, Default)]
pub(crate) struct Audited {
    files: Mutex<HashMap<InodeId, Known>>,
}

#[derive(Debug)]
struct Known {
    names_left: u64,
    /// What is wrong with it, if anything.
    finding: Option<Box<Finding>>,
}

impl Audited {
    /// What was found of a file under another name; it is forgotten after its last name.
    pub(crate) fn find(&self, stat: &Stat) -> Option<Finding> {
        if stat.st_nlink <= 1 {
            return None;
        }
        let mut files = lock(&self.files);
        let Entry::Occupied(mut known) = files.entry((stat.st_dev, stat.st_ino)) else {
            return None;
        };
        let file = known.get_mut();
        file.names_left -= 1;
        let finding = file.finding.as_deref().cloned().unwrap_or_default();
        if file.names_left == 0 {
            known.remove();
        }
        Some(finding)
    }

    pub(crate) fn keep(&self, stat: &Stat, finding: &Finding) {
        let names_left = stat.st_nlink.saturating_sub(1);
        if names_left > 0 {
            let finding = (!finding.is_empty()).then(|| Box::new(finding.clone()));
            lock(&self.files).insert((stat.st_dev, stat.st_ino), Known { names_left, finding });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_damaged_where_the_disk_does_not_answer_stays_where_it_is() {
        let mut finding = Finding::default();
        for grade in [Grade::Blemished, Grade::Unanswered, Grade::Damaged] {
            finding.add(String::new(), grade);
        }
        assert_eq!(finding.grade, Grade::Unanswered);
    }
}

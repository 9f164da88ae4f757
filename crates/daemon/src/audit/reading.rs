//! Reads the audit log while it is written: the files are opened at one moment, and read beside it.

use std::collections::VecDeque;
use std::fs::File;
use std::io;

use kms_core::{AuditEvent, Outcome};

use super::chain::{HashedLine, Place, scan};
use super::{AuditLog, TROUBLE, broken, cut_off, deleted, says, unwritable};
use crate::mutex::lock;

/// Which lines.
#[derive(Debug, Default, Clone)]
pub(crate) struct Query {
    /// The newest that fit, and no more than this.
    pub(crate) limit: usize,
    /// Before this line.
    pub(crate) before: Option<u64>,
    /// Of actions that begin so.
    pub(crate) action: Option<String>,
    /// Of subjects that have this in them as whole words, of the key that has this id, or done by the request that has this name.
    pub(crate) subject: Option<String>,
    /// Those alone that failed or were refused.
    pub(crate) failed: bool,
}

/// Lines in their order.
#[derive(Debug)]
pub(crate) struct Page {
    pub(crate) lines: Vec<HashedLine>,
    /// Older ones that fit, if there may be any, come before this line.
    pub(crate) before: Option<u64>,
}

/// What the whole chain was found to be.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The first line that is kept, if there is one.
    pub(crate) first: Option<u64>,
    /// Behind the last line.
    pub(crate) end: Place,
    pub(crate) files: usize,
    pub(crate) trouble: Option<String>,
    /// Why the newest events can't be recorded at this moment.
    pub(crate) unrecorded: Option<String>,
}

impl Query {
    fn fits(&self, HashedLine { line, .. }: &HashedLine) -> bool {
        self.before.is_none_or(|before| line.seq < before)
            && self.action.as_ref().is_none_or(|action| line.event.action.starts_with(action))
            && self.subject.as_ref().is_none_or(|part| is_about(&line.event, part))
            && !(self.failed && matches!(line.event.outcome, Outcome::Done | Outcome::Begun))
    }
}

fn is_about(event: &AuditEvent, part: &str) -> bool {
    has_words(&event.subject, part)
        || event.key.is_some_and(|key| key.id.to_string() == part)
        || event.requests.iter().any(|id| id.as_str() == part)
}

/// Whether `part` stands in `text` with no name going on before it or behind it: `home` is in `POST /v1/filesystems/home/rekey`, and not in
/// `home-2`.
fn has_words(text: &str, part: &str) -> bool {
    let is_of_name = |c: char| c.is_alphanumeric() || "._-".contains(c);
    let begins = part.chars().next().is_some_and(is_of_name);
    let ends = part.chars().next_back().is_some_and(is_of_name);
    text.char_indices().any(|(at, _)| {
        let (before, from) = text.split_at(at);
        from.strip_prefix(part).is_some_and(|behind| {
            let goes_on = behind.starts_with(is_of_name);
            !(begins && before.ends_with(is_of_name) || ends && goes_on)
        })
    })
}

impl AuditLog {
    /// The newest lines that fit. Blocks.
    pub(crate) fn page(&self, query: &Query) -> io::Result<Page> {
        let (mut files, current, _) = self.opened()?;
        files.push(current?);
        let mut lines = VecDeque::new();
        for file in files.iter().rev() {
            let mut of_this = VecDeque::new();
            let room = query.limit - lines.len();
            scan(file, None, |line| {
                if !query.fits(line) {
                    return;
                }
                if of_this.len() == room {
                    of_this.pop_front();
                }
                of_this.push_back(line.clone());
            })?;
            of_this.into_iter().rev().for_each(|line| lines.push_front(line));
            if lines.len() == query.limit {
                break;
            }
        }
        let full = lines.len() == query.limit;
        let before = lines.front().map(|line| line.line.seq).filter(|seq| full && *seq > 1);
        Ok(Page { lines: lines.into(), before })
    }

    /// Follows the chain through all files and compares it, and the head, with where the log is. Blocks.
    pub(crate) fn verify(&self) -> io::Result<Verified> {
        let (mut files, current, now) = self.opened()?;
        let ended = files.len();
        // Without it the chain of the others is followed: that it is gone is trouble already.
        files.extend(current);
        let (mut first, mut end, mut trouble) = (None, None, lock(&self.state).broken());
        let mut on_record = None;
        let mut at_now = (now.seq == 0).then(|| now.hash.clone());
        for file in &files {
            let found = scan(file, end, |line| {
                if line.line.seq == now.seq {
                    at_now = Some(line.hash.clone());
                }
                if line.line.event.action == TROUBLE {
                    on_record.get_or_insert_with(|| says(line.line.seq, &line.line.event.detail));
                }
            })?;
            first = first.or(found.first);
            if let Some(line) = found.broken_at {
                trouble.get_or_insert_with(|| broken(line));
            }
            end = Some(found.end);
        }
        if at_now.as_ref() != Some(&now.hash) {
            trouble.get_or_insert_with(|| match &end {
                Some(end) if end.seq < now.seq => cut_off(end, &now),
                _ => {
                    format!("line {} of the audit log is not the one that this node wrote", now.seq)
                }
            });
        }
        let of_head = self.head.trouble()?;
        let trouble =
            trouble.or(of_head).or_else(|| deleted(first, ended, self.limits)).or(on_record);
        let unrecorded = lock(&self.state).unrecorded();
        Ok(Verified { first, end: end.unwrap_or(now), files: files.len(), trouble, unrecorded })
    }

    /// Its ended files, the oldest first; what lies where the one that is written should; and where the log ends at this moment.
    fn opened(&self) -> io::Result<(Vec<File>, io::Result<File>, Place)> {
        let mut state = lock(&self.state);
        if let Err(error) = self.files.check_current(&state.file) {
            state.note(unwritable(&self.path, &error));
        }
        let mut files = Vec::new();
        for (_, path) in self.files.ended()? {
            files.push(File::open(path)?);
        }
        // By its path, not as it is open: what was put in its place is what an auditor would find.
        Ok((files, self.files.read_current(), state.end.clone()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_not_found_in_a_longer_one() {
        for found in ["proj", "POST /v1/filesystems/proj/import", "a, proj", "proj, proj-2"] {
            assert!(has_words(found, "proj"), "{found}");
        }
        for other in ["projects", "my-proj", "proj.old", "/v1/filesystems/proj_2", "", "PROJ"] {
            assert!(!has_words(other, "proj"), "{other}");
        }
        assert!(has_words("DELETE /v1/kms/own", "/v1/kms") && has_words("GET /v1/kms", "/v1/"));
        assert!(!has_words("GET /v1/kms2", "/v1/kms"));
    }
}

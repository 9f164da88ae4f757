//! Does anything of a plain tree show in another place? Names are looked for in paths, and names
//! and lines in contents.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aho_corasick::AhoCorasick;
use anyhow::Result;
use walkdir::WalkDir;

/// Shorter names turn up by chance, or are words that a header has too.
const SHORTEST: usize = 10;

/// What Coffer's own files in a backing directory are called begins so.
const OWN: &[u8] = b"coffer.";

/// Names and lines by which a tree can be known.
pub(super) struct Traces {
    names: AhoCorasick,
    contents: AhoCorasick,
    lines: usize,
}

/// Where traces were found.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    /// Names that contain the name of a file of the tree.
    names: usize,
    /// Files that contain a name or a line of the tree.
    files: usize,
    searched: usize,
}

impl Traces {
    /// Takes every long name of the tree and from each file a telling line.
    pub(super) fn of(tree: &Path) -> Result<Self> {
        let mut names = BTreeSet::new();
        let mut lines = BTreeSet::new();
        for entry in WalkDir::new(tree).min_depth(1) {
            let entry = entry?;
            let name = entry.file_name().as_bytes();
            if name.len() >= SHORTEST && !name.starts_with(OWN) {
                names.insert(name.to_vec());
            }
            if entry.file_type().is_file() {
                lines.extend(telling_line(&fs::read(entry.path())?));
            }
        }
        let contents = names.iter().chain(&lines);
        Ok(Self {
            contents: AhoCorasick::new(contents)?,
            names: AhoCorasick::new(&names)?,
            lines: lines.len(),
        })
    }

    /// Searches every name and every content below `tree`.
    pub(super) fn search(&self, tree: &Path) -> Result<Found> {
        let mut found = Found { names: 0, files: 0, searched: 0 };
        for entry in WalkDir::new(tree).min_depth(1) {
            let entry = entry?;
            found.names += usize::from(self.names.is_match(entry.file_name().as_bytes()));
            if entry.file_type().is_file() {
                found.searched += 1;
                found.files += usize::from(self.contents.is_match(&fs::read(entry.path())?));
            }
        }
        Ok(found)
    }
}

impl Found {
    pub(super) fn is_clean(&self) -> bool {
        self.searched > 0 && self.names == 0 && self.files == 0
    }
}

/// A line by which the content can be known again, at most 64 bytes of it. It is taken from the middle,
/// if there is one, because many files begin alike.
fn telling_line(content: &[u8]) -> Option<Vec<u8>> {
    const LONG_ENOUGH: usize = 16;
    const ENOUGH: usize = 64;
    let telling = |line: &&[u8]| line.len() >= LONG_ENOUGH && line.iter().any(|b| *b != line[0]);
    let lines_from = |start| content[start..].split(|byte| *byte == b'\n').find(telling);
    let line = lines_from(content.len() / 2).or_else(|| lines_from(0))?;
    Some(line[..line.len().min(ENOUGH)].to_vec())
}

impl fmt::Display for Traces {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} file names and {} lines of the tree, in all names and contents",
            self.names.patterns_len(),
            self.lines
        )
    }
}

impl fmt::Display for Found {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} names and {} of {} files show something",
            self.names, self.files, self.searched
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        for (name, content) in files {
            fs::write(folder.path().join(name), content).unwrap();
        }
        folder
    }

    #[test]
    fn a_tree_shows_itself() {
        let plain = tree(&[("quarterly-report", b"x\nThe figures are as follows\n"), ("b", b"")]);
        let found = Traces::of(plain.path()).unwrap().search(plain.path()).unwrap();
        assert_eq!(found, Found { names: 1, files: 1, searched: 2 });
    }

    #[test]
    fn names_and_lines_are_found_anywhere_in_a_content() {
        let plain = tree(&[("quarterly-report", b"The figures are as follows\n")]);
        let traces = Traces::of(plain.path()).unwrap();
        for leak in [&b"\x00\x01The figures are as follows\x00"[..], b"..quarterly-report.."] {
            let found = traces.search(tree(&[("0f", leak)]).path()).unwrap();
            assert!(!found.is_clean(), "{leak:?}");
        }
        let named = traces.search(tree(&[("old.quarterly-report", b"")]).path()).unwrap();
        assert!(!named.is_clean());
        assert!(traces.search(tree(&[("0f", b"\x00\x01\x02")]).path()).unwrap().is_clean());
    }

    #[test]
    fn an_empty_place_proves_nothing() {
        let plain = tree(&[("quarterly-report", b"The figures are as follows\n")]);
        assert!(!Traces::of(plain.path()).unwrap().search(tree(&[]).path()).unwrap().is_clean());
    }
}

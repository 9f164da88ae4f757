//! `docs/faults.md`, read.
//!
//! Each state is a section with a table of what its operations do; what stands in none of its rows is as in the section
//! of all states. A row names operations, the exit code, words of the answer, and what is kept.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// The section whose rows hold in every state that has no row of its own.
const EVERY_STATE: &str = "In every state";

/// The lines that a table begins with.
const HEAD: [&[&str]; 2] =
    [&["operation", "ends with", "says", "kept"], &["---", "---", "---", "---"]];

pub(crate) struct Table {
    sections: BTreeMap<String, Vec<Row>>,
}

/// A row, for each operation that it names a cell.
#[derive(Debug)]
pub(crate) struct Row {
    pub(crate) operations: Vec<String>,
    pub(crate) exit: i32,
    pub(crate) says: Vec<String>,
    pub(crate) kept: Kept,
}

/// What is kept, in the words of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kept {
    /// All is as it was before.
    Nothing,
    /// It is done.
    Done,
    /// It is done by itself as soon as the KMS is well.
    GoesOn,
    /// It is done when it is asked for again once the KMS is well, and else within a minute.
    GoesOnWhenAsked,
}

impl Kept {
    fn read(words: &str) -> Self {
        match words {
            "nothing changes" => Self::Nothing,
            "done" => Self::Done,
            "goes on by itself" => Self::GoesOn,
            "goes on when asked" => Self::GoesOnWhenAsked,
            _ => panic!("docs/faults.md: what is kept by {words:?}?"),
        }
    }
}

impl Table {
    pub(crate) fn read() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
        let text = fs::read_to_string(root.join("docs/faults.md")).unwrap();
        let mut sections: BTreeMap<String, Vec<Row>> = BTreeMap::new();
        let mut section = String::new();
        for line in text.lines() {
            if let Some(heading) = line.strip_prefix("## ") {
                heading.clone_into(&mut section);
            }
            let cells: Vec<&str> = line.trim_matches('|').split('|').map(str::trim).collect();
            if !line.starts_with('|') || HEAD.contains(&&cells[..]) {
                continue;
            }
            let [operations, exit, says, kept] = cells[..] else { panic!("no row: {line}") };
            let Ok(exit) = exit.parse() else { panic!("no exit code: {line}") };
            assert!(says.contains('`'), "nothing is said: {line}");
            sections.entry(section.clone()).or_default().push(Row {
                operations: quoted(operations),
                exit,
                says: quoted(says),
                kept: Kept::read(kept),
            });
        }
        Self { sections }
    }

    /// What is expected of an operation in a state.
    pub(crate) fn cell(&self, state: &str, operation: &str) -> Option<&Row> {
        let in_section = |section: &str| {
            let rows = self.sections.get(section)?;
            rows.iter().find(|row| row.operations.iter().any(|named| named == operation))
        };
        in_section(state).or_else(|| in_section(EVERY_STATE))
    }

    /// Whether an operation does something else in this state than in every other one.
    pub(crate) fn differs(&self, state: &str, operation: &str) -> bool {
        let named = |row: &Row| row.operations.iter().any(|named| named == operation);
        self.sections.get(state).is_some_and(|rows| rows.iter().any(named))
    }

    /// Requires a cell for each pair, and none of what there is not.
    pub(crate) fn assert_whole(&self, states: &[&str], operations: &[&str]) {
        for (section, rows) in &self.sections {
            assert!(section == EVERY_STATE || states.contains(&section.as_str()), "{section}?");
            let mut named: Vec<_> = rows.iter().flat_map(|row| &row.operations).collect();
            for operation in &named {
                assert!(operations.contains(&operation.as_str()), "{section}: {operation}?");
            }
            named.sort();
            let twice = named.windows(2).find(|two| two[0] == two[1]);
            assert_eq!(twice, None, "{section} has two rows for it");
        }
        for state in states {
            assert!(self.sections.contains_key(*state), "{state} has no section with a table");
            for operation in operations {
                assert!(self.cell(state, operation).is_some(), "{state} × {operation} has no cell");
            }
        }
    }
}

/// What stands between backticks.
fn quoted(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

//! What a job could not do, in full: a file for each job, a line of JSON for each thing.
//!
//! The job's record has no room for it, and nothing that is damaged may go unnamed.

use std::collections::HashSet;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;

use admin_api::Damage;
use filesystem::ProblemKind;
use key_manager::JobId;

/// How many of them an answer has.
const SHOWN: usize = 1000;

#[derive(Debug, Clone)]
pub(crate) struct Reports {
    directory: PathBuf,
}

impl Reports {
    pub(crate) fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn path(&self, id: JobId) -> PathBuf {
        self.directory.join(format!("{id}.jsonl"))
    }

    /// Opens the job's report to add to it. A run that was taken up again may write some lines twice.
    pub(crate) fn append(&self, id: JobId) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.path(id))
    }

    /// Empties it, for a run from the start.
    pub(crate) fn clear(&self, id: JobId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// The first thousand things in it, each once. What can't be read is not shown.
    pub(crate) fn read(&self, id: JobId) -> Vec<Damage> {
        let Ok(file) = File::open(self.path(id)) else { return Vec::new() };
        let mut seen = HashSet::new();
        BufReader::new(file)
            .lines()
            .map_while(Result::ok)
            .filter_map(|line| {
                let damage = serde_json::from_str(&line).ok()?;
                seen.insert(line).then_some(damage)
            })
            .take(SHOWN)
            .collect()
    }

    /// Removes the reports of jobs that are remembered no more.
    pub(crate) fn keep_only(&self, jobs: &HashSet<JobId>) -> io::Result<()> {
        for entry in fs::read_dir(&self.directory)? {
            let path = entry?.path();
            let id = path.file_stem().and_then(|stem| stem.to_str()?.parse::<JobId>().ok());
            if id.is_some_and(|id| !jobs.contains(&id)) {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

/// Adds a line. Whoever reads gets whole lines: it is one write.
pub(crate) fn write(mut file: &File, problem: &filesystem::Problem) -> io::Result<()> {
    let damage = Damage {
        path: problem.path.clone().into(),
        ciphertext: problem.ciphertext.clone().map(Into::into),
        kind: word(problem.kind).to_owned(),
        what: problem.reason.clone(),
    };
    let mut line = serde_json::to_vec(&damage)?;
    line.push(b'\n');
    file.write_all(&line)
}

const fn word(kind: ProblemKind) -> &'static str {
    match kind {
        ProblemKind::Damaged => "damaged",
        ProblemKind::Changed => "changed",
        ProblemKind::Io => "io",
        ProblemKind::Conflict => "conflict",
        ProblemKind::Attribute => "attribute",
        ProblemKind::Skipped => "skipped",
        ProblemKind::Leftover => "leftover",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u32) -> JobId {
        format!("00000000-0000-4000-8000-{n:012}").parse().unwrap()
    }

    #[test]
    fn everything_is_kept_and_a_thousand_are_shown() {
        let dir = tempfile::tempdir().unwrap();
        let reports = Reports::new(dir.path().to_owned());
        let file = reports.append(id(1)).unwrap();
        for n in 0..2 * SHOWN {
            let problem = filesystem::Problem {
                path: format!("f{}", n / 2).into(),
                ciphertext: None,
                kind: ProblemKind::Damaged,
                reason: "altered".into(),
            };
            write(&file, &problem).unwrap();
        }
        let shown = reports.read(id(1));
        assert_eq!(shown.len(), SHOWN);
        assert_eq!((shown[1].path.as_bytes(), shown[1].kind.as_str()), (&b"f1"[..], "damaged"));
        assert_eq!(fs::read_to_string(reports.path(id(1))).unwrap().lines().count(), 2 * SHOWN);
        reports.clear(id(1)).unwrap();
        assert!(reports.read(id(1)).is_empty());
    }

    #[test]
    fn what_nobody_remembers_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let reports = Reports::new(dir.path().to_owned());
        reports.append(id(1)).unwrap();
        reports.append(id(2)).unwrap();
        reports.keep_only(&HashSet::from([id(2)])).unwrap();
        assert!(!reports.path(id(1)).exists() && reports.path(id(2)).exists());
    }
}

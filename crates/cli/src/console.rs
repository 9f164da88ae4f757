//! stdin, stdout, stderr, and whether a person is there.

use std::fmt;
use std::io::{self, BufRead, IsTerminal as _, Write};

use admin_api::{BytePath, Exit, Problem};
use serde::Serialize;

use crate::show::under;

/// How answers are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Output {
    /// For people.
    Text,
    /// For programs: one JSON document.
    Json,
}

/// Where a command reads and writes.
///
/// What a closed pipe does not take is dropped: a reader that went away wants nothing more. Another failure ([`Console::end`])
/// is one of the command.
pub struct Console<'a> {
    stdin: &'a mut dyn BufRead,
    stdout: &'a mut dyn Write,
    stderr: &'a mut dyn Write,
    can_ask: bool,
    shows_progress: bool,
    /// What kept an answer from being written.
    unwritten: Option<io::Error>,
}

impl<'a> Console<'a> {
    /// One without a person.
    pub fn new(
        stdin: &'a mut dyn BufRead,
        stdout: &'a mut dyn Write,
        stderr: &'a mut dyn Write,
    ) -> Self {
        Self { stdin, stdout, stderr, can_ask: false, shows_progress: false, unwritten: None }
    }

    /// Asks and shows progress as far as the process's own stdin and stderr are terminals.
    #[must_use]
    pub fn on_terminal(mut self) -> Self {
        let stderr = io::stderr().is_terminal();
        self.can_ask = stderr && io::stdin().is_terminal();
        self.shows_progress = stderr;
        self
    }

    /// Writes an answer: `text` made of it, or the whole of it as JSON.
    pub fn answer<T: Serialize>(
        &mut self,
        answer: &T,
        output: Output,
        text: impl FnOnce(&T) -> String,
    ) {
        match output {
            Output::Text => self.show(&printable(&text(answer))),
            Output::Json => {
                if let Ok(json) = serde_json::to_string_pretty(answer) {
                    self.show(&json);
                    self.show("\n");
                }
            }
        }
    }

    /// Writes an error to stderr.
    pub fn problem(&mut self, problem: &Problem, output: Output) {
        match output {
            Output::Text => self.note(&printable(&problem_text(problem))),
            Output::Json => {
                if let Ok(json) = serde_json::to_string(problem) {
                    self.note(&json);
                    self.note("\n");
                }
            }
        }
    }

    /// Writes to stdout.
    pub fn show(&mut self, text: &str) {
        let shown = self.stdout.write_all(text.as_bytes()).and_then(|()| self.stdout.flush());
        if let Err(error) = shown
            && error.kind() != io::ErrorKind::BrokenPipe
        {
            self.unwritten.get_or_insert(error);
        }
    }

    /// How the command ends, with all of its answer written or not.
    pub fn end(&mut self, exit: Exit) -> Exit {
        let Some(error) = self.unwritten.take() else { return exit };
        self.note(&format!("error: the answer can't be written\n  why: {error}\n"));
        if exit == Exit::Done { Exit::Failed } else { exit }
    }

    /// Writes to stderr.
    pub(crate) fn note(&mut self, text: &str) {
        let _ = self.stderr.write_all(text.as_bytes()).and_then(|()| self.stderr.flush());
    }

    pub(crate) fn stdin(&mut self) -> &mut dyn BufRead {
        self.stdin
    }

    pub(crate) const fn shows_progress(&self) -> bool {
        self.shows_progress
    }

    /// Asks for `word` to be typed before something is destroyed.
    ///
    /// # Errors
    /// A usage problem when nobody can be asked; another when the answer was something else.
    pub(crate) fn confirm(
        &mut self,
        what: &str,
        consequence: &str,
        word: &str,
    ) -> Result<(), Problem> {
        if !self.can_ask {
            return Err(Problem::new(
                Exit::Usage,
                "not-confirmed",
                format!("{what} was not confirmed"),
                format!("{consequence}, and there is no terminal to ask on"),
            )
            .cure("add --yes if this is what you want"));
        }
        self.note(&format!("{what}: {consequence}.\nType {word} to go on: "));
        let mut line = String::new();
        let _ = self.stdin.read_line(&mut line);
        if line.trim() == word {
            return Ok(());
        }
        Err(Problem::new(
            Exit::Failed,
            "not-confirmed",
            format!("{what} was not confirmed"),
            format!("the answer was not {word}; nothing was changed"),
        )
        .cure(format!("give the command again and type {word}, or add --yes")))
    }
}

impl fmt::Debug for Console<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console")
            .field("can_ask", &self.can_ask)
            .field("shows_progress", &self.shows_progress)
            .finish_non_exhaustive()
    }
}

/// Lines without what could upset a terminal: a KMS's own words are in them, and names of files.
pub(crate) fn printable(text: &str) -> String {
    let lines: Vec<_> = text.split('\n').map(|line| BytePath::new(line).to_string()).collect();
    lines.join("\n")
}

fn problem_text(problem: &Problem) -> String {
    let under = |text: &str| under(text, 7);
    let mut text = format!("error: {}\n  why: {}\n", under(&problem.title), under(&problem.detail));
    if let Some(cure) = &problem.cure {
        text.push_str(&format!("  do:  {}\n", under(cure)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn confirm(answer: &str, can_ask: bool) -> (Result<(), Problem>, String) {
        let (mut stdin, mut stdout, mut stderr) = (answer.as_bytes(), Vec::new(), Vec::new());
        let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr);
        console.can_ask = can_ask;
        let result = console.confirm("deleting home", "its data is lost", "home");
        (result, String::from_utf8(stderr).unwrap())
    }

    struct Full(io::ErrorKind);

    impl Write for Full {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(self.0.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_answer_that_is_lost_is_a_failure_unless_nobody_wants_it() {
        for (kind, exit) in
            [(io::ErrorKind::StorageFull, Exit::Failed), (io::ErrorKind::BrokenPipe, Exit::Done)]
        {
            let (mut stdin, mut stdout, mut stderr) = (&b""[..], Full(kind), Vec::new());
            let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr);
            console.show("an answer");
            assert_eq!(console.end(Exit::Done), exit);
            assert_eq!(stderr.is_empty(), exit == Exit::Done);
        }
    }

    #[test]
    fn what_destroys_takes_the_very_word() {
        let (result, asked) = confirm("home\n", true);
        assert_eq!(result, Ok(()));
        assert_eq!(asked, "deleting home: its data is lost.\nType home to go on: ");
        for answer in ["", "y\n", "Home\n"] {
            assert_eq!(confirm(answer, true).0.unwrap_err().exit, Exit::Failed);
        }
    }

    #[test]
    fn without_a_terminal_nothing_is_asked_and_nothing_destroyed() {
        let (result, asked) = confirm("home\n", false);
        assert_eq!(result.unwrap_err().exit, Exit::Usage);
        assert_eq!(asked, "");
    }

    #[test]
    fn a_terminal_is_not_upset_by_what_others_say() {
        let (mut stdin, mut stdout, mut stderr) = (&b""[..], Vec::new(), Vec::new());
        let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr);
        let problem = Problem::new(Exit::KmsRefused, "x", "no", "it said \x1b[2J\u{202e}");
        console.problem(&problem, Output::Text);
        let shown = String::from_utf8(stderr).unwrap();
        assert_eq!(shown, "error: no\n  why: it said \\x1B[2J\\xE2\\x80\\xAE\n");
    }

    #[test]
    fn an_error_says_what_why_and_what_to_do() {
        let problem = Problem::new(Exit::State, "x", "home can't be listed", "it is locked")
            .cure("unlock it");
        assert_eq!(
            problem_text(&problem),
            "error: home can't be listed\n  why: it is locked\n  do:  unlock it\n"
        );
    }
}

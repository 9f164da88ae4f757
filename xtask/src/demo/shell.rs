//! What a person would type, and what it answers.

use std::fs;
use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use crate::process::{self, Background};

/// The exit codes that the demo expects of a refusal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Exit {
    /// The KMS cannot be reached.
    Unreachable = 3,
    /// The state does not allow it.
    State = 5,
}

pub(super) struct Shell {
    coffer: PathBuf,
    socket: PathBuf,
    bold: bool,
}

impl Shell {
    pub(super) fn new(coffer: PathBuf, folder: &Path) -> Self {
        Self { coffer, socket: folder.join("node.sock"), bold: std::io::stdout().is_terminal() }
    }

    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(super) fn step(&self, title: &str) {
        let line = format!("── {title} ");
        println!("\n{}", self.strong(&line));
    }

    pub(super) fn note(&self, text: &str) {
        for line in text.lines() {
            println!("  {line}");
        }
    }

    /// Shows a command line as it would be typed.
    pub(super) fn typed(&self, line: &str) {
        println!("{}", self.strong(&format!("$ {line}")));
    }

    fn strong(&self, text: &str) -> String {
        if self.bold { format!("\x1b[1m{text}\x1b[0m") } else { text.to_owned() }
    }

    /// A command that must succeed.
    pub(super) fn coffer(&self, arguments: &[&str]) -> Result<()> {
        let output = self.show(arguments)?;
        ensure!(output.status.success(), "coffer {}: {}", arguments.join(" "), output.status);
        Ok(())
    }

    /// A command that must be refused, with one of these exit codes.
    pub(super) fn coffer_refuses(&self, arguments: &[&str], with: &[Exit]) -> Result<()> {
        let output = self.show(arguments)?;
        let code = output.status.code();
        println!("  (exit code {})", code.map_or("none".to_owned(), |code| code.to_string()));
        ensure!(
            with.iter().any(|exit| code == Some(*exit as i32)),
            "coffer {}: expected {with:?}, got {}",
            arguments.join(" "),
            output.status
        );
        Ok(())
    }

    /// A command whose answer is also kept in a file.
    pub(super) fn coffer_tee(&self, arguments: &[&str], file: &str) -> Result<String> {
        self.typed(&format!("coffer {} | tee {file}", arguments.join(" ")));
        let answer = process::output(&mut self.command(arguments))?;
        self.note(&answer);
        fs::write(file, &answer)?;
        Ok(answer)
    }

    fn show(&self, arguments: &[&str]) -> Result<Output> {
        self.typed(&format!("coffer {}", arguments.join(" ")));
        let output = self.command(arguments).output()?;
        for stream in [&output.stdout, &output.stderr] {
            self.note(&String::from_utf8_lossy(stream));
        }
        Ok(output)
    }

    /// Asks what the demo itself wants to know; not shown.
    pub(super) fn coffer_json(&self, arguments: &[&str]) -> Result<Value> {
        let output = self.command(arguments).arg("--json").output()?;
        if !output.status.success() {
            bail!(
                "coffer {} --json: {}: {}",
                arguments.join(" "),
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    pub(super) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.coffer);
        command.args(arguments).env("COFFER_SOCKET", &self.socket);
        command
    }
}

/// The node: `coffer serve`. It ends with this value.
pub(super) struct Node {
    serve: Background,
    state_dir: PathBuf,
    log: PathBuf,
}

impl Node {
    /// Starts it and waits until it answers.
    pub(super) fn start(shell: &Shell, folder: &Path) -> Result<Self> {
        Self::start_on(shell, folder.join("state"), folder.join("node.log"))
    }

    fn start_on(shell: &Shell, state_dir: PathBuf, log: PathBuf) -> Result<Self> {
        let (state, socket) = (state_dir.display().to_string(), shell.socket.display().to_string());
        let arguments = ["serve", "--state-dir", &state, "--socket", &socket];
        shell.typed(&format!("coffer {} &", arguments.join(" ")));
        let serve = Background::start(&mut shell.command(&arguments), &log)?;
        let mut node = Self { serve, state_dir, log };
        let answers =
            || shell.command(&["status"]).output().is_ok_and(|output| output.status.success());
        node.serve.wait_until(answers).context("coffer serve")?;
        Ok(node)
    }

    /// Ends it, which wipes the keys from memory, and starts another on the same state.
    pub(super) fn restart(self, shell: &Shell) -> Result<Self> {
        let Self { serve, state_dir, log } = self;
        shell.typed(&format!("kill {}    # the node", serve.id()));
        drop(serve);
        Self::start_on(shell, state_dir, log)
    }
}

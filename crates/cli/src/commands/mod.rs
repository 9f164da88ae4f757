//! What each command asks and how its answer reads.

mod audit;
mod console;
mod fs;
mod job;
mod kms;
mod status;

use std::path::Path;
use std::time::Duration;

use admin_api::{Exit, Finding, Job, Problem, paths};
use clap::CommandFactory as _;

use crate::client::Client;
use crate::console::{Console, Output, printable};
use crate::grammar::{Arguments, Command, DevCommand, FsCommand, KmsCommand};
use crate::show::under;
use crate::watch::watch;
use crate::{LocalCommand, Outcome, defaults};

/// What every command that asks the node has at hand.
struct Context<'a, 'c> {
    client: Client,
    console: &'a mut Console<'c>,
    output: Output,
    yes: bool,
    /// How long to wait for a job that can't go on.
    patience: Duration,
}

/// For commands that have no `--wait`.
const PATIENCE: Duration = Duration::from_secs(60);

/// Does what the arguments ask for.
pub(crate) fn run(arguments: Arguments, console: &mut Console<'_>) -> Result<Outcome, Problem> {
    let Arguments { common, command } = arguments;
    let output = common.output();
    let local = |command| Ok(Outcome::Local(command, output));
    match command {
        Command::Serve(mut serve) => {
            serve.socket = common.socket;
            local(LocalCommand::Serve(serve))
        }
        Command::Recover(recover) => local(LocalCommand::Recover(recover)),
        Command::Dev(DevCommand::Vault(vault)) => local(LocalCommand::DevVault(vault)),
        Command::Fs(FsCommand::Kms { command: Some(KmsCommand::Policy(policy)) }) => {
            local(LocalCommand::Policy(policy))
        }
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "coffer", &mut script);
            console.show(&String::from_utf8_lossy(&script));
            Ok(Outcome::Exit(Exit::Done))
        }
        Command::Man { directory } => man(directory.as_deref(), console),
        command => {
            let socket = common
                .socket
                .unwrap_or_else(|| defaults::socket_in(&defaults::default_state_dir()));
            let (client, yes) = (Client::new(socket)?, common.yes);
            let context = Context { client, console, output, yes, patience: PATIENCE };
            ask_node(command, context).map(Outcome::Exit)
        }
    }
}

fn ask_node(command: Command, mut context: Context<'_, '_>) -> Result<Exit, Problem> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| {
            Problem::new(Exit::Failed, "runtime", "no request can be made", e.to_string())
                .cure("raise the limits on open files and memory")
        })?;
    runtime.block_on(async {
        match command {
            Command::Status => status::show(&mut context).await,
            Command::Job(command) => job::run(command, &mut context).await,
            Command::Audit(command) => audit::run(command, &mut context).await,
            Command::Console { read_only, command } => {
                console::run(read_only, command, &mut context).await
            }
            Command::Fs(FsCommand::Kms { command }) => kms::run(command, &mut context).await,
            Command::Fs(command) => fs::run(command, &mut context).await,
            // `run` has done these.
            Command::Serve(_)
            | Command::Recover(_)
            | Command::Dev(_)
            | Command::Completions { .. }
            | Command::Man { .. } => Ok(Exit::Done),
        }
    })
}

fn man(directory: Option<&Path>, console: &mut Console<'_>) -> Result<Outcome, Problem> {
    let written = match directory {
        Some(directory) => std::fs::create_dir_all(directory)
            .and_then(|()| clap_mangen::generate_to(Arguments::command(), directory)),
        None => {
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(Arguments::command()).render(&mut page);
            console.show(&String::from_utf8_lossy(&page));
            written
        }
    };
    written.map(|()| Outcome::Exit(Exit::Done)).map_err(|e| {
        Problem::new(Exit::Failed, "man", "the manual pages can't be written", e.to_string())
            .cure("name a directory that you may write to")
    })
}

impl Context<'_, '_> {
    fn answer<T: serde::Serialize>(&mut self, answer: &T, text: impl FnOnce(&T) -> String) -> Exit {
        self.console.answer(answer, self.output, text);
        Exit::Done
    }

    fn confirm(&mut self, what: &str, consequence: &str, word: &str) -> Result<(), Problem> {
        if self.yes { Ok(()) } else { self.console.confirm(what, consequence, word) }
    }

    /// Something that a person should know, and a program has no use for.
    fn note(&mut self, text: &str) {
        note(self.console, self.output, text);
    }

    /// Waits for a job and shows what became of it. What kept it from doing all of it is a problem, as it is for a command that
    /// does its work itself.
    async fn finish(&mut self, job: Job) -> Result<Exit, Problem> {
        let ended = self.ended(job).await?;
        self.answer(&ended, job::ended_text);
        job::outcome(&ended)
    }

    /// The job when it has ended.
    async fn ended(&mut self, job: Job) -> Result<Job, Problem> {
        if job.resumed {
            self.note(
                "an earlier run of this was stopped: what it did and still holds is not done again",
            );
        }
        let shows_progress = self.console.shows_progress();
        let (client, output, console) = (&self.client, self.output, &mut *self.console);
        let waits = |why: &str| note(console, output, why);
        let mut ended = watch(client, job, shows_progress, self.patience, waits).await?;
        self.complete(&mut ended).await?;
        Ok(ended)
    }

    /// Adds the further pages of what the job could not do.
    async fn complete(&mut self, job: &mut Job) -> Result<(), Problem> {
        while let Some(after) = job.next_damage {
            let more: Job = self.client.get(&paths::job_damage(&job.id, after)).await?;
            job.damage.extend(more.damage);
            job.next_damage = more.next_damage;
        }
        Ok(())
    }
}

fn note(console: &mut Console<'_>, output: Output, text: &str) {
    if output == Output::Text {
        console.note(&printable(&format!("note: {}\n", under(text, 6))));
    }
}

/// Warnings, each with its cure.
fn findings_text(findings: &[Finding]) -> String {
    let text =
        |f: &Finding| format!("warning: {}\n  do:  {}\n", under(&f.what, 9), under(&f.cure, 7));
    findings.iter().map(text).collect()
}

//! Coffer's command line: arguments in, requests out, answers shown.
//!
//! [`run`] parses the arguments and does what the node has to do by asking it over its unix
//! socket. What needs no node (`serve`, `recover`, `dev vault`) it hands back as a
//! [`LocalCommand`], because only the binary knows the parts. Text goes to stdout as text or JSON, errors
//! to stderr as what failed, why, and what to do; the process ends with an [`admin_api::Exit`] code. With `--json` stdout has one
//! document, the answer if there is one, and stderr the problem as a document whenever that code is not 0.
//!
//! | module | its part |
//! |---|---|
//! | `grammar` | every command, option, help text and example |
//! | `client` | one request, one answer or one problem |
//! | `console` | stdin, stdout, stderr, and whether a person is there |
//! | `commands` | what each command asks and how its answer reads |
//! | `watch` | waits for a job and shows its progress |
//! | `show` | how quantities, moments and tables read |
//! | `secret` | reads a token from an argument, a file or stdin |
//! | `files` | paths and files that somebody names |
//! | `usage` | arguments that are not understood |
//! | `defaults` | where a node is that was told no other place |
//!
//! ```
//! use cli::{Console, Outcome};
//!
//! let (mut stdin, mut stdout, mut stderr) = (&b""[..], Vec::new(), Vec::new());
//! let mut console = Console::new(&mut stdin, &mut stdout, &mut stderr);
//! let outcome = cli::run(["coffer", "fs", "list", "--socket", "/nonexistent/socket"], &mut console);
//! assert!(matches!(outcome, Outcome::Exit(exit) if exit.code() == 7));
//! assert!(String::from_utf8_lossy(&stderr).starts_with("error: no node answers"));
//! ```

mod client;
mod commands;
mod console;
mod defaults;
mod files;
mod grammar;
mod secret;
mod show;
mod usage;
mod watch;

use std::ffi::OsString;

use admin_api::Exit;
use clap::Parser as _;

pub use console::{Console, Output};
pub use defaults::{default_state_dir, socket_in};
pub use files::{absolute, read_text};
pub use grammar::{DevVault, Policy, Recover, RehearseStore, Serve};

/// How a run of the command line ended.
#[derive(Debug)]
pub enum Outcome {
    /// With this exit code; everything has been shown.
    Exit(Exit),
    /// With something that the binary has to do itself.
    Local(LocalCommand, Output),
}

/// What needs no node.
#[derive(Debug)]
pub enum LocalCommand {
    /// Be the node.
    Serve(Serve),
    /// Rebuild a key store.
    Recover(Recover),
    /// Be a development KMS.
    DevVault(DevVault),
    /// Show the policy that a token needs.
    Policy(Policy),
    /// Be the process that rehearses a start.
    RehearseStore(RehearseStore),
}

/// Does what `args` (with the program's name first) ask for.
pub fn run<A>(args: impl IntoIterator<Item = A>, console: &mut Console<'_>) -> Outcome
where
    A: Into<OsString> + Clone,
{
    let args: Vec<OsString> = args.into_iter().map(Into::into).collect();
    let not_understood = |error, console| Outcome::Exit(usage::show(&error, &args, console));
    if args.get(1).is_some_and(|first| first == RehearseStore::NAME) {
        return match RehearseStore::try_parse_from(args.iter().skip(1)) {
            Ok(it) => Outcome::Local(LocalCommand::RehearseStore(it), Output::Text),
            Err(error) => not_understood(error, console),
        };
    }
    let arguments = match grammar::Arguments::try_parse_from(&args) {
        Ok(arguments) => arguments,
        Err(error) => return not_understood(error, console),
    };
    let output = arguments.common.output();
    match commands::run(arguments, console) {
        Ok(outcome) => outcome,
        Err(problem) => {
            console.problem(&problem, output);
            Outcome::Exit(problem.exit)
        }
    }
}

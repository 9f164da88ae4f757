//! Coffer's task runner: `cargo xtask <command>`. One module for each command; it uses no crate of
//! Coffer, so it can judge them all.

mod bench;
mod browser;
mod demo;
mod deny;
mod layers;
mod process;
mod test;
mod vault;
mod workspace;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use workspace::Workspace;

#[derive(Parser)]
#[command(bin_name = "cargo xtask", about = "Coffer's task runner", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show the main job from end to end on DIR, with a KMS and a node of its own
    Demo {
        /// A directory tree to encrypt [default: the sources of a dependency, some thousand files]
        dir: Option<PathBuf>,
    },
    /// Run every check and test, the quick ones first
    Test(test::Arguments),
    /// Measure Coffer beside its peers: ratios, and whether the bars are met
    Bench(bench::Arguments),
    /// Get the browser that the console's tests drive, and axe-core, whose path it prints
    Browser,
    /// Check that each crate uses only what its layer allows
    Layers,
    /// Check dependencies: advisories, bans, licences, sources
    Deny,
    /// Build the real Vaults to test against, and print their paths
    Vault {
        #[arg(value_enum, default_value = "all")]
        version: vault::Which,
    },
}

fn main() -> ExitCode {
    let Arguments { command } = Arguments::parse();
    let workspace = process::catch_interrupts().and_then(|()| Workspace::find());
    let done = workspace.and_then(|workspace| match command {
        Command::Demo { dir } => demo::run(&workspace, dir),
        Command::Test(arguments) => test::run(&workspace, &arguments),
        Command::Bench(arguments) => bench::run(&workspace, &arguments),
        Command::Browser => browser::run(&workspace),
        Command::Layers => layers::run(&workspace),
        Command::Deny => deny::run(&workspace).map(|_| ()),
        Command::Vault { version } => vault::run(&workspace, version),
    });
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

//! `cargo xtask bench`: Coffer beside its peers, in one run on one machine, as ratios with their bars.
//!
//! | bench | what runs beside what |
//! |---|---|
//! | `blocks` | the data path beside bare calls of its cipher libraries |
//! | `import` | `coffer fs import` beside `cp -a`, `rclone` to a crypt remote and `gocryptfs` |
//! | `unlock` | a node that unlocks 10,000 filesystems beside raw batch calls to the same KMS |
//! | `rewrap` | a node that rewraps 10,000 keys and moves them beside raw batch rewraps by the same KMS, and beside as many copies |
//! | `rekey` | `coffer fs rekey` beside the import of the same data |
//! | `outage` | a node with 10,000 filesystems that starts while the KMS is away, when it returns |
//! | `rest` | a node to which nothing happens, for ten minutes |
//! | `start` | a node with one filesystem, until it answers |
//! | `console` | the web console of a node with 10,000 filesystems |
//!
//! Contestants take turns over several rounds, because a machine's speed drifts. The program is built
//! in the release profile. Everything lies in one temporary directory, which goes at the end, as do
//! mounts and processes.

mod blocks;
mod console;
mod fleet;
mod import;
mod kms;
mod measure;
mod moves;
mod node;
mod outage;
mod rekey;
mod report;
mod unlock;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::workspace::Workspace;
use report::{Machine, Report};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these benchmarks
    #[arg(long, value_name = "NAME,…", value_delimiter = ',', value_enum)]
    only: Vec<Name>,
    /// Small and one round: shows that everything works, and judges no bar
    #[arg(long)]
    quick: bool,
    /// Print one JSON object instead of tables
    #[arg(long)]
    json: bool,
    /// Where files are read and written; 10 GiB are needed [default: the build folder]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Name {
    Blocks,
    Import,
    Unlock,
    Rewrap,
    Rekey,
    Outage,
    Rest,
    Start,
    Console,
}

impl Arguments {
    fn wants(&self, name: Name) -> bool {
        self.only.is_empty() || self.only.contains(&name)
    }
}

/// What the benchmarks share.
struct Bench<'a> {
    workspace: &'a Workspace,
    /// The release build of `coffer`.
    program: PathBuf,
    /// On the disk that is measured.
    folder: &'a Path,
    quick: bool,
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let dir = arguments.dir.as_ref().unwrap_or(&workspace.target);
    let folder = tempfile::Builder::new().prefix("bench-").tempdir_in(dir)?;
    let program = build(workspace)?;
    let bench = Bench { workspace, program, folder: folder.path(), quick: arguments.quick };

    let before = Machine::look(folder.path())?;
    let mut sections = Vec::new();
    if arguments.wants(Name::Blocks) {
        sections.push(blocks::run(&bench)?);
    }
    if arguments.wants(Name::Import) {
        sections.extend(import::run(&bench)?);
    }
    if arguments.wants(Name::Unlock) {
        sections.extend(unlock::many(&bench)?);
    }
    if arguments.wants(Name::Rewrap) {
        sections.push(moves::run(&bench)?);
    }
    if arguments.wants(Name::Rekey) {
        sections.extend(rekey::run(&bench)?);
    }
    if arguments.wants(Name::Outage) {
        sections.push(outage::away(&bench)?);
    }
    if arguments.wants(Name::Rest) {
        sections.push(outage::rest(&bench)?);
    }
    if arguments.wants(Name::Start) {
        sections.push(unlock::one(&bench)?);
    }
    if arguments.wants(Name::Console) {
        sections.push(console::run(&bench)?);
    }
    let report =
        Report { machine: before, load_after: report::load()?, sections, quick: bench.quick };
    if arguments.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    let missed = report.missed();
    if !missed.is_empty() && !bench.quick {
        bail!("bars missed: {}", missed.join("; "));
    }
    Ok(())
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    eprintln!("building coffer in the release profile (minutes the first time)");
    process::run(
        Command::new("cargo")
            .args(["build", "--quiet", "--release", "--package", "coffer"])
            .current_dir(&workspace.root),
    )?;
    Ok(workspace.target.join("release/coffer"))
}

/// What goes on, for whoever waits; the report alone goes to stdout.
fn progress(text: &str) {
    eprintln!("{text}");
}

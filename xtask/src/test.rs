//! `cargo xtask test`: every check and test as a list of stages, the quick ones first.
//!
//! The newest Vault takes longest to build, so its build starts with the first stage, at low
//! priority, and is waited for where it is needed.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::builder::PossibleValuesParser;

use crate::vault::{self, Build, Priority, Version};
use crate::workspace::Workspace;
use crate::{browser, demo, deny, layers, process};

/// What a stage did.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    Whole,
    /// All of it, with a remark on its time.
    Remark(String),
    /// Not all of it: what was left out and why. Repeated below the table.
    Partly(String),
}

struct Stage {
    name: &'static str,
    about: &'static str,
    /// Its tests mount, make devices, change owners and read another process's memory.
    as_root: bool,
    run: fn(&mut Run<'_>) -> Result<Outcome>,
}

const STAGES: &[Stage] = &[
    Stage {
        name: "fmt",
        about: "the source is formatted",
        as_root: false,
        run: |run| run.cargo(&["fmt", "--all", "--check"]),
    },
    Stage {
        name: "layers",
        about: "each crate uses only what its layer allows",
        as_root: false,
        run: |run| layers::run(run.workspace).map(|()| Outcome::Whole),
    },
    Stage {
        name: "deny",
        about: "dependencies: advisories, bans, licences, sources",
        as_root: false,
        run: |run| deny::run(run.workspace),
    },
    Stage {
        name: "clippy",
        about: "no lint warns",
        as_root: false,
        run: |run| {
            let scope = ["clippy", "--workspace", "--all-targets", "--all-features"];
            run.cargo(&[&scope[..], &["--", "--deny", "warnings"]].concat())
        },
    },
    Stage {
        name: "docs",
        about: "the documentation builds without a warning",
        as_root: false,
        run: |run| {
            run.cargo_with(
                &["doc", "--workspace", "--no-deps"],
                &[("RUSTDOCFLAGS", "-Dwarnings".into())],
            )
        },
    },
    Stage {
        name: "unit",
        about: "each crate by itself: unit, contract, vector and property tests",
        as_root: true,
        run: |run| {
            // All that fails is told at once.
            let test = ["test", "--workspace", "--no-fail-fast"];
            run.cargo(&[&test[..], &["--exclude", "coffer-tests"]].concat())
        },
    },
    Stage {
        name: "vault-1.1.5",
        about: "the oldest Vault that Coffer supports is there",
        as_root: false,
        run: |run| run.oldest().map(|_| Outcome::Whole),
    },
    Stage {
        name: "vault-1.21.4",
        about: "the newest Vault is there",
        as_root: false,
        run: |run| run.wait_for_newest(),
    },
    Stage {
        name: "contract",
        about: "the KMS contract over both real Vaults, and the embedded one's answers held against theirs",
        as_root: false,
        run: |run| {
            let vaults = run.vaults()?;
            for package in ["dev-vault", "vault-transit"] {
                let test = ["test", "--package", package, "--features", "real-vault"];
                run.cargo_with(&[&test[..], &["--test", "real_vault"]].concat(), &vaults)?;
            }
            Ok(Outcome::Whole)
        },
    },
    Stage {
        name: "e2e",
        about: "the built program, end to end, over embedded and real Vaults",
        as_root: true,
        run: |run| run.over_program("e2e", &[]),
    },
    Stage {
        name: "browser",
        about: "the web console in Chromium: every screen and dialog, what is refused, how it looks",
        as_root: false,
        run: |run| {
            browser::chromium()?;
            let axe = browser::axe(run.workspace)?;
            run.over_program("browser", &[("COFFER_TEST_AXE", axe)])
        },
    },
    Stage {
        name: "demo",
        about: "the demo that newcomers see",
        as_root: false,
        run: |run| demo::run(run.workspace, None).map(|()| Outcome::Whole),
    },
    Stage {
        name: "crash",
        about: "the built program, killed at every system call that changes something",
        as_root: true,
        run: |run| run.over_program("crash", &[]),
    },
];

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only these stages
    #[arg(long, value_name = "STAGE,…", value_delimiter = ',', value_parser = stage_names())]
    only: Vec<String>,
    /// This stage and those after it
    #[arg(long, value_name = "STAGE", value_parser = stage_names(), conflicts_with = "only")]
    from: Option<String>,
    /// Go on after a stage that failed
    #[arg(long)]
    keep_going: bool,
    /// List the stages
    #[arg(long)]
    list: bool,
}

fn stage_names() -> PossibleValuesParser {
    PossibleValuesParser::new(STAGES.iter().map(|stage| stage.name))
}

impl Arguments {
    fn selected(&self) -> Vec<&'static Stage> {
        let first = self.from.as_ref().and_then(|from| STAGES.iter().position(|s| s.name == from));
        STAGES[first.unwrap_or(0)..]
            .iter()
            .filter(|stage| self.only.is_empty() || self.only.iter().any(|only| only == stage.name))
            .collect()
    }
}

pub(crate) fn run(workspace: &Workspace, arguments: &Arguments) -> Result<()> {
    let stages = arguments.selected();
    if arguments.list {
        for stage in stages {
            println!("{:<14}{}", stage.name, stage.about);
        }
        return Ok(());
    }
    refuse_without_root(&stages, rustix::process::geteuid().is_root())?;
    let began = Instant::now();
    let mut run = Run { workspace, began, newest: None };
    if stages.iter().any(|stage| stage.name == "vault-1.21.4") {
        run.start_newest()?;
    }
    let mut results = Vec::new();
    for stage in stages {
        println!("\n== {}: {}", stage.name, stage.about);
        let began = Instant::now();
        let outcome = (stage.run)(&mut run);
        if let Err(error) = &outcome {
            eprintln!("error: {}: {error:#}", stage.name);
        }
        let failed = outcome.is_err();
        results.push((stage.name, outcome, began.elapsed()));
        if failed && (process::interrupted() || !arguments.keep_going) {
            break;
        }
    }
    summary(&results, began.elapsed())
}

/// Before anything is built: these stages would fail in the end, each in words of its own.
fn refuse_without_root(stages: &[&Stage], is_root: bool) -> Result<()> {
    let needing: Vec<&str> =
        stages.iter().filter(|stage| stage.as_root).map(|stage| stage.name).collect();
    if is_root || needing.is_empty() {
        return Ok(());
    }
    let others: Vec<&str> =
        stages.iter().filter(|stage| !stage.as_root).map(|stage| stage.name).collect();
    let without = match others.join(",") {
        none if none.is_empty() => String::new(),
        others => format!(", or leave them out: cargo xtask test --only {others}"),
    };
    bail!("{} need root: run it as root (in a container, say){without}", needing.join(", "))
}

/// Prints what each stage took; fails if one failed.
fn summary(results: &[(&str, Result<Outcome>, Duration)], total: Duration) -> Result<()> {
    println!();
    for (name, outcome, took) in results {
        let word = match outcome {
            Ok(Outcome::Whole) => "passed".to_owned(),
            Ok(Outcome::Remark(remark)) => format!("passed ({remark})"),
            Ok(Outcome::Partly(_)) => "passed IN PART, see below".to_owned(),
            Err(_) => "FAILED".to_owned(),
        };
        println!("{name:<14}{:>10}  {word}", clock(*took));
    }
    println!("{:<14}{:>10}", "total", clock(total));
    for (name, outcome, _) in results {
        if let Ok(Outcome::Partly(left_out)) = outcome {
            println!("\nWARNING: {name}: {left_out}");
        }
    }
    let failed: Vec<&str> =
        results.iter().filter(|(_, outcome, _)| outcome.is_err()).map(|(name, ..)| *name).collect();
    println!("\nstages: {} passed, {} failed", results.len() - failed.len(), failed.len());
    if !failed.is_empty() {
        bail!("{} failed; again: cargo xtask test --only {0}", failed.join(","));
    }
    Ok(())
}

fn clock(time: Duration) -> String {
    if time < Duration::from_secs(60) {
        format!("{:.1} s", time.as_secs_f64())
    } else {
        format!("{} min {:02} s", time.as_secs() / 60, time.as_secs() % 60)
    }
}

/// What the stages share.
struct Run<'a> {
    workspace: &'a Workspace,
    began: Instant,
    newest: Option<Newest>,
}

/// The newest Vault: there, or on its way. A build that could not start fails its own stage.
enum Newest {
    There(PathBuf),
    Building(Result<Build>),
}

impl Run<'_> {
    fn cargo(&self, arguments: &[&str]) -> Result<Outcome> {
        self.cargo_with(arguments, &[])
    }

    fn cargo_with(&self, arguments: &[&str], variables: &[(&str, PathBuf)]) -> Result<Outcome> {
        let mut cargo = Command::new("cargo");
        cargo.args(arguments).current_dir(&self.workspace.root);
        cargo.envs(variables.iter().map(|(name, value)| (name, value)));
        process::run(&mut cargo).map(|()| Outcome::Whole)
    }

    /// Runs one of the end-to-end suites on the program that is built for it.
    fn over_program(&mut self, suite: &str, more: &[(&str, PathBuf)]) -> Result<Outcome> {
        let variables = [&self.vaults()?[..], more].concat();
        self.cargo(&["build", "--package", "coffer"])?;
        self.cargo_with(&["test", "--package", "coffer-tests", "--test", suite], &variables)
    }

    fn start_newest(&mut self) -> Result<()> {
        self.newest = Some(match vault::find(self.workspace, Version::Newest)? {
            Some(path) => Newest::There(path),
            None => Newest::Building(Build::start(self.workspace, Version::Newest, Priority::Low)),
        });
        Ok(())
    }

    fn wait_for_newest(&mut self) -> Result<Outcome> {
        let building = matches!(self.newest, Some(Newest::Building(_)));
        self.newest()?;
        Ok(if building {
            let since = clock(self.began.elapsed());
            Outcome::Remark(format!("built beside the stages above, {since} from the start"))
        } else {
            Outcome::Whole
        })
    }

    fn newest(&mut self) -> Result<PathBuf> {
        let path = match self.newest.take() {
            Some(Newest::There(path)) => path,
            Some(Newest::Building(build)) => build?.finish()?,
            None => vault::provide(self.workspace, Version::Newest)?,
        };
        self.newest = Some(Newest::There(path.clone()));
        Ok(path)
    }

    fn oldest(&self) -> Result<PathBuf> {
        vault::provide(self.workspace, Version::Oldest)
    }

    /// Where the tests find the real Vaults.
    fn vaults(&mut self) -> Result<[(&'static str, PathBuf); 2]> {
        Ok([
            ("COFFER_TEST_VAULT_1_1_5", self.oldest()?),
            ("COFFER_TEST_VAULT_NEWEST", self.newest().context("the newest Vault is missing")?),
        ])
    }
}

#[cfg(test)]
mod tests {
    use anyhow::anyhow;

    use super::*;

    fn selected(only: &[&str], from: Option<&str>) -> Vec<&'static str> {
        let only = only.iter().map(|name| (*name).to_owned()).collect();
        let from = from.map(str::to_owned);
        let arguments = Arguments { only, from, keep_going: false, list: false };
        arguments.selected().iter().map(|stage| stage.name).collect()
    }

    #[test]
    fn all_stages_run_unless_some_are_asked_for() {
        assert_eq!(selected(&[], None).len(), STAGES.len());
        assert_eq!(selected(&["deny", "fmt"], None), ["fmt", "deny"]);
        assert_eq!(
            selected(&[], Some("contract")),
            ["contract", "e2e", "browser", "demo", "crash"]
        );
    }

    #[test]
    fn who_is_not_root_is_told_before_anything_is_built() {
        let stages: Vec<&Stage> = STAGES.iter().collect();
        refuse_without_root(&stages, true).unwrap();
        let said = refuse_without_root(&stages, false).unwrap_err().to_string();
        assert!(said.starts_with("unit, e2e, crash need root"), "{said}");
        assert!(said.contains("--only fmt,layers,deny,clippy,docs,"), "{said}");
        let quick: Vec<&Stage> = STAGES.iter().filter(|stage| stage.name == "fmt").collect();
        refuse_without_root(&quick, false).unwrap();
    }

    #[test]
    fn one_failed_stage_fails_the_run_by_name() {
        let took = Duration::from_secs(1);
        let results = [
            ("fmt", Ok(Outcome::Whole), took),
            ("deny", Ok(Outcome::Partly("x".into())), took),
            ("unit", Err(anyhow!("a test failed")), took),
        ];
        let said = summary(&results, took).unwrap_err().to_string();
        assert!(said.starts_with("unit failed"), "{said}");
        assert!(summary(&results[..2], took).is_ok());
    }

    #[test]
    fn times_read_well() {
        assert_eq!(clock(Duration::from_millis(1234)), "1.2 s");
        assert_eq!(clock(Duration::from_secs(725)), "12 min 05 s");
    }
}

//! `cargo xtask demo [DIR]`: the main job from end to end, as an administrator would type it.
//!
//! It drives the built `coffer` alone; every command line that it shows can be typed. The KMS is the
//! embedded development one, or the Vault that `VAULT_ADDR` and `VAULT_TOKEN` name. Whatever does
//! not come out as it should ends the demo with an error. All of it lies in one temporary directory,
//! which goes at the end, as do the processes.

mod compare;
mod kms;
mod search;
mod shell;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cargo_metadata::MetadataCommand;
use serde_json::Value;
use walkdir::WalkDir;

use crate::process;
use crate::workspace::Workspace;
use kms::Kms;
use search::Traces;
use shell::{Exit, Node, Shell};

/// The two filesystems, each with a tree and a key of its own: the given tree, and Coffer's documents, which are few
/// enough to be taken out again after whatever was done to their key.
const FILESYSTEMS: [&str; 2] = ["projects", "archive"];

pub(crate) fn run(workspace: &Workspace, dir: Option<PathBuf>) -> Result<()> {
    let given = dir.map(|dir| {
        fs::canonicalize(&dir).with_context(|| format!("cannot read {}", dir.display()))
    });
    // Before anything is built, which takes minutes the first time.
    let given = given.transpose()?;
    let coffer = build(workspace)?;
    let source = match given {
        Some(dir) => dir,
        None => default_tree(workspace)?,
    };
    let sources = [source, workspace.root.join("docs")];

    let began = Instant::now();
    let temporary = tempfile::Builder::new().prefix("coffer-demo-").tempdir()?;
    let shell = Shell::new(coffer, temporary.path());
    let demo = Demo { shell, folder: temporary.path(), sources };
    demo.run()?;
    println!("\nAll of it held. It took {:.1} s.", began.elapsed().as_secs_f64());
    Ok(())
}

/// The development profile: its dependencies are optimised, and it builds in half the time.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    println!("building coffer (minutes the first time)");
    process::run(
        Command::new("cargo")
            .args(["build", "--quiet", "--package", "coffer"])
            .current_dir(&workspace.root),
    )?;
    Ok(workspace.target.join("debug/coffer"))
}

/// The sources of AWS-LC, some two thousand files: Coffer is built from them, so they are here.
fn default_tree(workspace: &Workspace) -> Result<PathBuf> {
    const CRATE: &str = "aws-lc-sys";
    let metadata = MetadataCommand::new().current_dir(&workspace.root).exec()?;
    let package = metadata.packages.iter().find(|package| package.name.as_str() == CRATE);
    let folder = package.and_then(|package| package.manifest_path.parent());
    Ok(folder.with_context(|| format!("{CRATE} is no dependency: name a DIR"))?.into())
}

struct Demo<'a> {
    shell: Shell,
    folder: &'a Path,
    /// What goes into each of [`FILESYSTEMS`].
    sources: [PathBuf; 2],
}

impl Demo<'_> {
    fn run(&self) -> Result<()> {
        let shell = &self.shell;
        shell.step("Start a node and a KMS");
        shell.note(&format!("export COFFER_SOCKET={}", shell.socket().display()));
        let mut kms = Kms::start(shell, self.folder)?;
        let done = self.with(&mut kms);
        // On somebody's Vault nothing stays, however it went.
        done.and(kms.tear_down(shell))
    }

    fn with(&self, kms: &mut Kms) -> Result<()> {
        let shell = &self.shell;
        let node = Node::start(shell, self.folder)?;
        shell.coffer(&["status"])?;

        shell.step("Set the KMS up: transit, a master key, the least of policies, a token");
        kms.set_up(shell)?;

        shell.step("Give the node its KMS: everything is proved before anything is stored");
        let token = kms.token_file().display().to_string();
        let options = kms.options();
        let mut set_vault = vec!["fs", "kms", "set-vault", kms.url(), kms.master_key()];
        set_vault.extend(["--token-file", &token]);
        set_vault.extend(options.iter().map(String::as_str));
        shell.coffer(&set_vault)?;
        shell.coffer(&["fs", "kms"])?;

        shell.step("Create two encrypted filesystems");
        for name in FILESYSTEMS {
            let backing = self.backing(name);
            let create = ["fs", "create", name, "--encrypted", "--backing"];
            shell.coffer(&[&create[..], &[&backing.display().to_string()]].concat())?;
        }

        shell.step("Put a real tree into each");
        for (name, source) in self.trees() {
            let size = compare::count(source)?;
            ensure!(size.files > 0, "{} holds no file: name another DIR", source.display());
            shell.note(&format!("{} holds {size}", source.display()));
            shell.coffer(&["fs", "import", name, &source.display().to_string()])?;
        }
        shell.coffer(&["fs", "ls", FILESYSTEMS[0]])?;

        shell.step("Nothing readable lies in the backing directory");
        self.nothing_readable()?;

        shell.step("Restart the node: the KMS unwraps the keys");
        let node = node.restart(shell)?;
        self.wait_until_open()?;
        shell.coffer(&["fs", "list"])?;

        shell.step("Take the trees out and compare them");
        FILESYSTEMS.iter().try_for_each(|name| self.export_and_compare(name))?;

        shell.step("Rotate the master key and rewrap");
        let before = self.versions()?;
        shell.coffer(&["fs", "list"])?;
        kms.rotate(shell)?;
        shell.coffer(&["fs", "kms", "rewrap"])?;
        shell.coffer(&["fs", "list"])?;
        let after = self.versions()?;
        shell.note(&format!("master key versions before: {before:?}, after: {after:?}"));
        ensure!(
            before.iter().zip(&after).all(|(before, after)| after == &(before + 1)),
            "the rewrap left a key at an old version"
        );
        self.export_and_compare(FILESYSTEMS[1])?;

        let node = if kms.can_be_stopped() {
            self.restart_without_kms(node, kms)?
        } else {
            shell.note("(the KMS is yours, so this demo does not stop it)");
            node
        };

        shell.step("Removing the KMS is refused while encrypted filesystems exist");
        shell.coffer_refuses(&["fs", "kms", "unset"], &[Exit::State])?;

        shell.step("Clean up");
        for name in FILESYSTEMS {
            shell.coffer(&["fs", "delete", name, "--yes"])?;
        }
        shell.coffer(&["fs", "kms", "unset", "--yes"])?;
        drop(node);
        Ok(())
    }

    fn backing(&self, name: &str) -> PathBuf {
        self.folder.join("backing").join(name)
    }

    fn trees(&self) -> impl Iterator<Item = (&'static str, &PathBuf)> {
        FILESYSTEMS.into_iter().zip(&self.sources)
    }

    /// Looks for the tree's names and lines in the tree itself, where they are found, and among the
    /// ciphertext, where none may be.
    fn nothing_readable(&self) -> Result<()> {
        const SAMPLE: usize = 6;
        let shell = &self.shell;
        let backing = self.backing(FILESYSTEMS[0]);
        shell.note(&format!("some of what lies in {}:", backing.display()));
        for entry in WalkDir::new(&backing).min_depth(2).max_depth(2).into_iter().take(SAMPLE) {
            shell.note(&format!("  {}", entry?.path().strip_prefix(&backing)?.display()));
        }
        let source = &self.sources[0];
        let traces = Traces::of(source)?;
        shell.note(&format!("looking for {traces}"));
        let plain = traces.search(source)?;
        let hidden = traces.search(&backing)?;
        shell.note(&format!("in {}: {plain}", source.display()));
        shell.note(&format!("in {}: {hidden}", backing.display()));
        ensure!(!plain.is_clean(), "the search finds nothing in the plain tree: it proves nothing");
        ensure!(hidden.is_clean(), "the backing directory shows what it must hide");
        Ok(())
    }

    fn export_and_compare(&self, name: &str) -> Result<()> {
        let shell = &self.shell;
        let (_, source) =
            self.trees().find(|(of, _)| *of == name).context("a filesystem without a tree")?;
        let out = self.folder.join(name);
        shell.coffer(&["fs", "export", name, &out.display().to_string()])?;
        let compared = compare::trees(source, &out)?;
        shell.note(&format!("compared with {}: equal, {compared}", source.display()));
        shell.typed(&format!("rm -r {}", out.display()));
        fs::remove_dir_all(&out)?;
        Ok(())
    }

    fn restart_without_kms(&self, node: Node, kms: &mut Kms) -> Result<Node> {
        let shell = &self.shell;
        shell.step("Restart while the KMS is away: locked, with the reason, until it returns");
        kms.stop(shell);
        let node = node.restart(shell)?;
        self.wait_until("held up", |fs| fs["problem"]["code"] == "kms-unreachable")?;
        shell.coffer(&["fs", "list"])?;
        shell.coffer_refuses(&["fs", "ls", FILESYSTEMS[0]], &[Exit::Unreachable, Exit::State])?;
        kms.come_back(shell)?;
        self.wait_until_open()?;
        shell.coffer(&["fs", "list"])?;
        shell.coffer(&["fs", "ls", FILESYSTEMS[0]])?;
        self.export_and_compare(FILESYSTEMS[1])?;
        Ok(node)
    }

    fn filesystems(&self) -> Result<Vec<Value>> {
        let mut answer = self.shell.coffer_json(&["fs", "list"])?;
        match answer["filesystems"].take() {
            Value::Array(filesystems) => Ok(filesystems),
            _ => bail!("`coffer fs list --json` lists no filesystems: {answer}"),
        }
    }

    fn versions(&self) -> Result<Vec<u64>> {
        let filesystems = self.filesystems()?;
        let versions = filesystems.iter().map(|fs| fs["wrapped_by"]["version"].as_u64());
        versions.collect::<Option<_>>().context("a filesystem without a key version")
    }

    fn wait_until_open(&self) -> Result<()> {
        self.wait_until("open", |fs| fs["state"] == "unlocked")
    }

    fn wait_until(&self, what: &str, holds: impl Fn(&Value) -> bool) -> Result<()> {
        const PATIENCE: Duration = Duration::from_secs(60);
        let began = Instant::now();
        loop {
            let filesystems = self.filesystems()?;
            if filesystems.len() == FILESYSTEMS.len() && filesystems.iter().all(&holds) {
                return Ok(());
            }
            ensure!(began.elapsed() < PATIENCE, "not all are {what}: {filesystems:?}");
            process::pause()?;
        }
    }
}

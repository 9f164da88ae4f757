//! `cargo xtask vault`: the real Vaults that the contract and end-to-end tests run against.
//!
//! No package registry has a prebuilt Vault, so Go builds them from their module: the oldest that
//! Coffer supports and the newest that is served. The sources in `xtask/vault/<version>/` pin every
//! module by hash; the binaries lie in `target/vault/<version>/vault`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use crate::process::{self, Background};
use crate::workspace::Workspace;

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    /// A slim server of Vault's own core, transit, AppRole and token code: a minute to build.
    Oldest,
    /// The whole `vault` command: 8 to 14 minutes from nothing on two cores.
    Newest,
}

/// Which Vaults to provide.
#[derive(Clone, Copy, clap::ValueEnum)]
pub(crate) enum Which {
    #[value(name = "1.1.5")]
    Oldest,
    #[value(name = "1.21.4")]
    Newest,
    All,
}

/// Provides the Vaults and prints their paths, one a line.
pub(crate) fn run(workspace: &Workspace, which: Which) -> Result<()> {
    let versions: &[Version] = match which {
        Which::Oldest => &[Version::Oldest],
        Which::Newest => &[Version::Newest],
        Which::All => &[Version::Oldest, Version::Newest],
    };
    for version in versions {
        println!("{}", provide(workspace, *version)?.display());
    }
    Ok(())
}

/// The path of a Vault that runs; built when there is none.
pub(crate) fn provide(workspace: &Workspace, version: Version) -> Result<PathBuf> {
    match find(workspace, version)? {
        Some(path) => Ok(path),
        None => Build::start(workspace, version, Priority::Normal)?.finish(),
    }
}

/// A Vault that is there already. For the newest, one that is installed comes before a built one.
pub(crate) fn find(workspace: &Workspace, version: Version) -> Result<Option<PathBuf>> {
    if version == Version::Newest {
        if let Some(named) = std::env::var_os("VAULT_BIN").filter(|name| !name.is_empty()) {
            let path = PathBuf::from(named);
            let said = asks_version(&path).context("VAULT_BIN does not name a Vault that runs")?;
            eprintln!("{said} (VAULT_BIN)");
            return Ok(Some(fs::canonicalize(path)?));
        }
        for path in ["vault", "bao"].into_iter().filter_map(process::on_path) {
            if let Ok(said) = asks_version(&path) {
                eprintln!("{said} (installed: {})", path.display());
                return Ok(Some(path));
            }
        }
    }
    let built = version.folder(workspace).join("vault");
    Ok(asks_version(&built).is_ok().then_some(built))
}

/// Runs `vault version`, the one command that each of them answers without a server.
fn asks_version(binary: &Path) -> Result<String> {
    let said = process::output(Command::new(binary).arg("version").stdin(Stdio::null()))?;
    Ok(said.lines().next().unwrap_or_default().to_owned())
}

impl Version {
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::Oldest => "1.1.5",
            Self::Newest => "1.21.4",
        }
    }

    fn takes(self) -> &'static str {
        match self {
            Self::Oldest => "about a minute",
            Self::Newest => "8 to 14 minutes and 5 GB of Go caches the first time",
        }
    }

    fn folder(self, workspace: &Workspace) -> PathBuf {
        workspace.target.join("vault").join(self.number())
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Priority {
    Normal,
    /// Only what other work leaves of the processor.
    Low,
}

/// A build under way. Dropped before it is finished, it is stopped and leaves no binary.
pub(crate) struct Build {
    go: Background,
    fresh: PathBuf,
    binary: PathBuf,
    /// Holds the sources until the compiler has read them.
    _sources: tempfile::TempDir,
}

impl Build {
    pub(crate) fn start(
        workspace: &Workspace,
        version: Version,
        priority: Priority,
    ) -> Result<Self> {
        if process::on_path("go").is_none() {
            bail!(
                "Vault {} is built with Go, and `go` is not on PATH. Install Go 1.25.3 or newer \
                 (https://go.dev/dl/){}",
                version.number(),
                match version {
                    Version::Oldest => ".",
                    Version::Newest => ", or install Vault or OpenBao, or name one in VAULT_BIN.",
                }
            );
        }
        let folder = version.folder(workspace);
        fs::create_dir_all(&folder)?;
        let sources = tempfile::tempdir_in(&folder)?;
        copy_tree(&workspace.root.join("xtask/vault").join(version.number()), sources.path())?;
        if version == Version::Newest {
            mend_sdk(sources.path())?;
        }

        let log = folder.join("build.log");
        eprintln!(
            "building Vault {} ({}; log: {})",
            version.number(),
            version.takes(),
            log.display()
        );
        // The binary gets its name only when it is whole and runs.
        let fresh = sources.path().join("vault.built");
        let mut command = match priority {
            Priority::Normal => go(sources.path()),
            Priority::Low => {
                let mut nice = in_go_environment(Command::new("nice"), sources.path());
                nice.args(["-n", "19", "go"]);
                nice
            }
        };
        command.args(["build", "-mod=readonly", "-buildvcs=false", "-trimpath"]);
        if version == Version::Newest {
            command.args(["-tags", "minimal"]);
        }
        command.args(["-ldflags", "-s -w", "-o"]).arg(&fresh).arg(".");
        let go = Background::start(&mut command, &log)?;
        Ok(Self { go, fresh, binary: folder.join("vault"), _sources: sources })
    }

    /// Waits for the compiler and puts the binary in its place.
    pub(crate) fn finish(self) -> Result<PathBuf> {
        self.go.finish().context("Go could not build Vault")?;
        asks_version(&self.fresh).context("the Vault that Go built does not run")?;
        fs::rename(&self.fresh, &self.binary)?;
        Ok(self.binary)
    }
}

fn go(folder: &Path) -> Command {
    in_go_environment(Command::new("go"), folder)
}

/// The toolchain that is installed and nobody's own flags: what is built depends on go.mod alone.
fn in_go_environment(mut command: Command, folder: &Path) -> Command {
    command.current_dir(folder).env("GOTOOLCHAIN", "local").env("GOFLAGS", "");
    command
}

/// Vault 1.21.4 was built against an sdk between two published ones. This takes the older, by its
/// hash, and gives two functions the signatures that Vault calls.
fn mend_sdk(sources: &Path) -> Result<()> {
    const MODULE: &str = "github.com/hashicorp/vault/sdk@v0.21.0";
    const SUM: &str = "h1:3gDqdKLhHY2ekmCEE9EeesoNpgsReq2bo/SpMqvBYdw=";
    const EDITS: &[(&str, &str, &str)] = &[
        (
            "framework/backend.go",
            "ActivationFunc func(context.Context, *logical.Request, string) error",
            "ActivationFunc func(context.Context, *logical.Request) error",
        ),
        (
            "helper/keysutil/lock_manager.go",
            "func (lm *LockManager) RestorePolicy(",
            "func (lm *LockManager) restorePolicy(",
        ),
    ];

    let answer = process::output(go(sources).args(["mod", "download", "-json", MODULE]))?;
    let module: Value = serde_json::from_str(&answer)?;
    if module["Sum"] != SUM {
        bail!("{MODULE} has the hash {}, not {SUM}: it is not what was published", module["Sum"]);
    }
    let folder = module["Dir"].as_str().context("go names no folder for the module")?;
    let sdk = sources.join("sdk");
    copy_tree(Path::new(folder), &sdk)?;
    for (file, from, to) in EDITS {
        let path = sdk.join(file);
        let text = fs::read_to_string(&path)?;
        if !text.contains(from) {
            bail!("{MODULE}: {file} does not contain `{from}`");
        }
        fs::write(&path, text.replace(from, to))?;
    }
    fs::rename(
        sources.join("restore_policy_named.go.txt"),
        sdk.join("helper/keysutil/restore_policy_named.go"),
    )?;
    Ok(())
}

/// Copies a tree of plain files; the copies are writable, which Go's module cache is not.
fn copy_tree(from: &Path, to: &Path) -> Result<()> {
    for entry in walkdir::WalkDir::new(from) {
        let entry = entry?;
        let target = to.join(entry.path().strip_prefix(from)?);
        if entry.file_type().is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::write(&target, fs::read(entry.path())?)
                .with_context(|| format!("cannot write {}", target.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copied_tree_is_equal_and_writable() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        fs::create_dir(from.path().join("folder")).unwrap();
        let file = from.path().join("folder/file.go");
        fs::write(&file, "package x").unwrap();
        let mut permissions = fs::metadata(&file).unwrap().permissions();
        permissions.set_readonly(true);
        fs::set_permissions(&file, permissions).unwrap();

        copy_tree(from.path(), to.path()).unwrap();
        let copy = to.path().join("folder/file.go");
        assert_eq!(fs::read_to_string(&copy).unwrap(), "package x");
        assert!(!fs::metadata(&copy).unwrap().permissions().readonly());
    }

    #[test]
    fn what_does_not_run_is_no_vault() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("vault");
        fs::write(&file, "not a program").unwrap();
        assert!(asks_version(&file).is_err());
    }
}

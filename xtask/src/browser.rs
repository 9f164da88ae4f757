//! `cargo xtask browser`: what the tests of the web console need beside the program.
//!
//! Chromium and its driver are Debian's; as root they are installed if they are missing. axe-core, which looks for what shuts people out of a
//! page, is npm's: the lock in `xtask/axe/` pins it by hash, and it lies in `target/axe`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::process;
use crate::workspace::Workspace;

const PACKAGES: [&str; 2] = ["chromium", "chromium-driver"];

/// Gets them, and prints the path of axe-core.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    chromium()?;
    println!("{}", axe(workspace)?.display());
    Ok(())
}

/// Sees to it that the browser is there.
pub(crate) fn chromium() -> Result<()> {
    if ["chromium", "chromedriver"].iter().all(|name| process::on_path(name).is_some()) {
        return Ok(());
    }
    let by_hand = format!("apt-get install {}", PACKAGES.join(" "));
    if process::on_path("apt-get").is_none() || !rustix::process::geteuid().is_root() {
        bail!("Chromium and chromedriver are not on PATH (Debian, as root: {by_hand})");
    }
    let apt = |arguments: &[&str]| {
        let mut apt = Command::new("apt-get");
        process::run(
            apt.args(["--yes", "--quiet"]).args(arguments).env("DEBIAN_FRONTEND", "noninteractive"),
        )
    };
    apt(&["update"])?;
    apt(&[&["install"][..], &PACKAGES].concat()).with_context(|| by_hand)
}

/// The path of axe-core's script.
pub(crate) fn axe(workspace: &Workspace) -> Result<PathBuf> {
    const FILES: [&str; 2] = ["package.json", "package-lock.json"];
    let (pinned, folder) = (workspace.root.join("xtask/axe"), workspace.target.join("axe"));
    let script = folder.join("node_modules/axe-core/axe.min.js");
    let is_current = FILES.iter().all(|name| {
        let pinned = fs::read(pinned.join(name)).ok();
        pinned.is_some() && pinned == fs::read(folder.join(name)).ok()
    });
    if is_current && script.is_file() {
        return Ok(script);
    }
    if process::on_path("npm").is_none() {
        bail!("axe-core is got with npm, and `npm` is not on PATH (Debian: apt-get install npm)");
    }
    if folder.exists() {
        fs::remove_dir_all(&folder)?;
    }
    fs::create_dir_all(&folder)?;
    for name in FILES {
        fs::copy(pinned.join(name), folder.join(name))?;
    }
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund"]).current_dir(&folder);
    // What it prints is no path.
    process::output(&mut npm).context("npm could not get axe-core")?;
    Ok(script)
}

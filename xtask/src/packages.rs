//! The Debian packages whose programs the tests use. This is the one list of them.

use std::process::Command;

use anyhow::{Result, bail};
use rustix::process::geteuid;

use crate::process;

/// A program that tests run, and the Debian package that it comes from.
const PROGRAMS: &[(&str, &str)] = &[("setfacl", "acl"), ("setfattr", "attr")];

/// Installs what is missing, as root; anybody else is told what to type.
pub(crate) fn provide() -> Result<()> {
    let missing: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| process::on_path(program).is_none())
        .map(|(_, package)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let packages = missing.join(" ");
    if !geteuid().is_root() || process::on_path("apt-get").is_none() {
        bail!(
            "the tests need programs that are not installed. On Debian or Ubuntu:\n  \
             sudo apt-get update && sudo apt-get install --yes {packages}"
        );
    }
    println!("installing {packages}");
    let apt = |arguments: &[&str]| {
        process::run(
            Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(arguments),
        )
    };
    apt(&["--quiet=2", "update"])?;
    apt(&[&["--quiet=2", "install", "--yes", "--no-install-recommends"], &missing[..]].concat())
}

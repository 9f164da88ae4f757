//! `cargo xtask layers`: dependencies point inward, and this holds `cargo metadata` against the table.
//!
//! [`LAYERS`] gives each crate the Coffer crates that it may use, [`OWNED`] the third-party crates
//! that only some may use, and [`SANS_IO`] the crates that do no I/O at all. `docs/architecture.md`
//! explains why the cuts lie where they do. A new crate needs a row here before it builds in CI.

use anyhow::{Result, bail};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand};

use crate::workspace::Workspace;

/// Each crate, and the Coffer crates that it may use as normal and build dependencies.
const LAYERS: &[(&str, &[&str])] = &[
    ("kms-core", &[]),
    ("vault-transit", &["kms-core"]),
    ("local-kms", &["kms-core"]),
    ("key-store", &["kms-core"]),
    ("data-path", &["kms-core"]),
    ("key-manager", &["kms-core"]),
    ("filesystem", &["kms-core", "data-path"]),
    ("snapshot", &["kms-core", "data-path", "filesystem"]),
    ("admin-api", &[]),
    ("words", &["admin-api"]),
    ("web-console", &["admin-api", "words"]),
    (
        "daemon",
        &["kms-core", "key-manager", "filesystem", "snapshot", "admin-api", "words", "web-console"],
    ),
    ("cli", &["admin-api", "words"]),
    ("dev-vault", &[]),
    (
        "coffer",
        &[
            "kms-core",
            "vault-transit",
            "local-kms",
            "key-store",
            "data-path",
            "key-manager",
            "filesystem",
            "snapshot",
            "admin-api",
            "words",
            "web-console",
            "daemon",
            "cli",
            "dev-vault",
        ],
    ),
    ("testkit", &["kms-core"]),
    ("xtask", &[]),
];

/// The end-to-end tests, which may use anything.
const FREE: &str = "coffer-tests";

/// What every crate may add as a dev-dependency.
const FOR_TESTS: &[&str] = &["testkit", "dev-vault"];

/// Third-party crates that only some of ours may use outside tests.
const OWNED: &[(&str, &[&str])] = &[
    ("sled", &["key-store"]),
    ("reqwest", &["vault-transit", "cli"]),
    ("axum", &["daemon", "dev-vault"]),
    ("axum-server", &["daemon"]),
    ("fuser", &["filesystem"]),
];

/// Crates that do no I/O, and what would bring it in.
const SANS_IO: &[&str] = &["kms-core", "data-path"];
const IO: &[&str] = &["tokio", "async-std", "smol", "hyper", "ureq", "object_store"];

/// Fails with every breach of the table.
pub(crate) fn run(workspace: &Workspace) -> Result<()> {
    let metadata = MetadataCommand::new().current_dir(&workspace.root).no_deps().exec()?;
    let breaches = breaches(&metadata);
    if !breaches.is_empty() {
        bail!(
            "dependencies that the layers do not allow:\n  {}\n\
             Move the code to a crate that may use it, or argue for a change of the table in \
             xtask/src/layers.rs and docs/architecture.md.",
            breaches.join("\n  ")
        );
    }
    println!("layers: {} crates keep to the table", metadata.workspace_members.len());
    Ok(())
}

fn breaches(metadata: &Metadata) -> Vec<String> {
    let packages = metadata.workspace_packages();
    let ours = |name: &str| packages.iter().any(|package| package.name.as_str() == name);
    let mut found = Vec::new();
    for package in &packages {
        let user = package.name.as_str();
        if user == FREE {
            continue;
        }
        let Some((_, allowed)) = LAYERS.iter().find(|(name, _)| *name == user) else {
            found.push(format!("{user} has no row in the table"));
            continue;
        };
        for dependency in &package.dependencies {
            let used = dependency.name.as_str();
            let for_tests = dependency.kind == DependencyKind::Development;
            if ours(used) {
                if allowed.contains(&used) || (for_tests && FOR_TESTS.contains(&used)) {
                    continue;
                }
                found.push(format!(
                    "{user} uses {used} as a {} dependency; its row allows {}",
                    dependency.kind,
                    list(allowed)
                ));
            } else if !for_tests && user != "xtask" {
                found.extend(third_party_breach(user, used));
            }
        }
    }
    found
}

fn third_party_breach(user: &str, used: &str) -> Option<String> {
    if let Some((_, owners)) = OWNED.iter().find(|(name, _)| *name == used)
        && !owners.contains(&user)
    {
        return Some(format!("{user} uses {used}, which belongs to {}", list(owners)));
    }
    (SANS_IO.contains(&user) && IO.contains(&used))
        .then(|| format!("{user} uses {used}, but does no I/O"))
}

fn list(names: &[&str]) -> String {
    if names.is_empty() { "no Coffer crate".to_owned() } else { names.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// The metadata of a workspace whose crates have these dependencies: `(name, kind)`.
    fn workspace(crates: &[(&str, &[(&str, &str)])]) -> Metadata {
        let id = |name: &str| format!("path+file:///w/{name}#0.1.0");
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<Value> = dependencies
                    .iter()
                    .map(|(name, kind)| {
                        json!({
                            "name": name, "req": "*", "optional": false, "features": [],
                            "uses_default_features": true,
                            "kind": if *kind == "normal" { Value::Null } else { json!(kind) },
                        })
                    })
                    .collect();
                json!({
                    "name": name, "version": "0.1.0", "id": id(name), "targets": [],
                    "features": {}, "manifest_path": format!("/w/{name}/Cargo.toml"),
                    "dependencies": dependencies,
                })
            })
            .collect();
        let members: Vec<String> = crates.iter().map(|(name, _)| id(name)).collect();
        serde_json::from_value(json!({
            "packages": packages, "workspace_members": members, "resolve": null, "version": 1,
            "workspace_root": "/w", "target_directory": "/w/target",
        }))
        .unwrap()
    }

    #[test]
    fn what_the_table_allows_is_no_breach() {
        let metadata = workspace(&[
            ("kms-core", &[("zeroize", "normal"), ("testkit", "dev")]),
            ("vault-transit", &[("kms-core", "normal"), ("reqwest", "normal"), ("axum", "dev")]),
            ("testkit", &[("kms-core", "normal")]),
            ("dev-vault", &[("axum", "normal")]),
            ("coffer-tests", &[("dev-vault", "normal"), ("kms-core", "dev"), ("axum", "normal")]),
            ("xtask", &[("ureq", "normal")]),
        ]);
        assert_eq!(breaches(&metadata), Vec::<String>::new());
    }

    #[test]
    fn a_use_of_another_crate_names_both_and_the_row() {
        let metadata = workspace(&[
            ("kms-core", &[]),
            ("filesystem", &[]),
            ("key-manager", &[("kms-core", "normal"), ("filesystem", "normal")]),
        ]);
        assert_eq!(
            breaches(&metadata),
            ["key-manager uses filesystem as a normal dependency; its row allows kms-core"]
        );
    }

    #[test]
    fn build_and_dev_dependencies_are_held_too() {
        let metadata = workspace(&[
            ("kms-core", &[("admin-api", "build"), ("admin-api", "dev")]),
            ("admin-api", &[]),
        ]);
        assert_eq!(
            breaches(&metadata),
            [
                "kms-core uses admin-api as a build dependency; its row allows no Coffer crate",
                "kms-core uses admin-api as a dev dependency; its row allows no Coffer crate",
            ]
        );
    }

    #[test]
    fn testkit_is_for_tests_only() {
        let metadata = workspace(&[("testkit", &[]), ("coffer", &[("testkit", "normal")])]);
        let breaches = breaches(&metadata);
        assert_eq!(breaches.len(), 1, "{breaches:?}");
        assert!(breaches[0].starts_with("coffer uses testkit as a normal dependency"));
    }

    #[test]
    fn a_third_party_crate_stays_with_its_owner() {
        let metadata =
            workspace(&[("daemon", &[("sled", "normal")]), ("key-manager", &[("sled", "dev")])]);
        assert_eq!(breaches(&metadata), ["daemon uses sled, which belongs to key-store"]);
    }

    #[test]
    fn sans_io_crates_take_no_runtime() {
        let metadata = workspace(&[("data-path", &[("tokio", "normal")])]);
        assert_eq!(breaches(&metadata), ["data-path uses tokio, but does no I/O"]);
    }

    #[test]
    fn a_crate_without_a_row_is_a_breach() {
        assert_eq!(breaches(&workspace(&[("extra", &[])])), ["extra has no row in the table"]);
    }
}

//! The commands of docs/vault.md, run as they stand there with the real `vault`, and the main job with the token that
//! comes out.

use std::path::Path;
use std::process::Command;

use coffer_tests::node::Place;
use testkit::tree;
use testkit::vault_server::{NEWEST, VaultServer};

#[test]
fn the_set_up_of_the_guide_leads_to_the_main_job() {
    let program = VaultServer::program(NEWEST);
    let server = VaultServer::start(&program);
    let place = Place::new();
    let guide = include_str!("../../../docs/vault.md");
    let blocks = blocks(guide);
    assert!(blocks.len() >= 5, "docs/vault.md has lost its commands");
    let node = place.start();
    let coffer = coffer_tests::node::program();
    let script = blocks.join("\n");
    // Whatever the program's file is called, the guide calls it `vault`.
    let bin = place.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink(&program, bin.join("vault")).unwrap();
    let ran = Command::new("bash")
        .args(["-euo", "pipefail", "-c", &script])
        .current_dir(place.path(""))
        .env("PATH", path_with(&[&bin, coffer.parent().unwrap()]))
        .env("HOME", place.path(""))
        .env("VAULT_ADDR", server.url())
        .env("VAULT_TOKEN", VaultServer::ROOT_TOKEN)
        .env("COFFER_SOCKET", place.socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&ran.stdout).into_owned();
    let complained = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{script}\n{said}\n{complained}");

    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 50).unwrap();
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["credential"]["periodic"], true, "{shown}");
}

/// The shell blocks of the guide that are meant to be run, in their order.
fn blocks(guide: &str) -> Vec<String> {
    let mut blocks = Vec::new();
    let mut open: Option<String> = None;
    for line in guide.lines() {
        match &mut open {
            None if line == "```sh" => open = Some(String::new()),
            None => {}
            Some(_) if line == "```" => blocks.extend(open.take()),
            Some(block) => {
                block.push_str(line);
                block.push('\n');
            }
        }
    }
    blocks
}

fn path_with(first: &[&Path]) -> std::ffi::OsString {
    let rest = std::env::var_os("PATH").unwrap_or_default();
    let all = first.iter().map(|p| p.to_path_buf()).chain(std::env::split_paths(&rest));
    std::env::join_paths(all).unwrap()
}

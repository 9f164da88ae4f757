//! What is asked of a node in each state of its KMS.

use std::fs;

use coffer_tests::kms::KEY;
use serde_json::Value;
use testkit::tree;

use super::scene::{Scene, eventually};
use super::vault::OWN;

pub(crate) struct Operation {
    /// What the tables of `docs/faults.md` call it.
    pub(crate) name: &'static str,
    /// Whether it leaves nothing that another one would meet, done or not.
    pub(crate) gentle: bool,
    /// Whether the node is started anew in the state, before the command.
    pub(crate) at_a_start: bool,
    /// What is done before, while the KMS is well.
    pub(crate) before: fn(&Scene),
    pub(crate) command: fn(&Scene) -> Vec<String>,
    /// Whether it makes good what is wrong with the KMS, which is not put back then.
    pub(crate) mends: bool,
    /// Whether it is done.
    pub(crate) is_done: fn(&Scene) -> bool,
    /// How it is asked for again, once the KMS is well.
    pub(crate) again: fn(&Scene) -> Vec<String>,
}

const fn act(
    name: &'static str,
    before: fn(&Scene),
    command: fn(&Scene) -> Vec<String>,
    is_done: fn(&Scene) -> bool,
) -> Operation {
    let (gentle, at_a_start, mends) = (false, false, false);
    let again = command;
    Operation { name, gentle, at_a_start, before, command, mends, is_done, again }
}

const fn gentle(name: &'static str, command: fn(&Scene) -> Vec<String>) -> Operation {
    Operation { gentle: true, ..act(name, |_| {}, command, |_| true) }
}

pub(crate) static OPERATIONS: [Operation; 32] = [
    Operation {
        at_a_start: true,
        again: |_| words("fs unlock one"),
        ..act(
            "start",
            |_| {},
            |_| words("fs show one"),
            |scene| scene.state_of("one") == "unlocked" && scene.state_of("two") == "unlocked",
        )
    },
    Operation {
        at_a_start: true,
        again: |_| words("fs kms rewrap"),
        ..act(
            "start with a job",
            Scene::begin_a_rewrap,
            |scene| scene.to_the_job("show"),
            |scene| scene.versions() == [2, 2],
        )
    },
    Operation {
        at_a_start: true,
        again: |_| words("fs unlock own"),
        ..act(
            "start, own key",
            create_own,
            |_| words("fs show own"),
            |scene| scene.state_of("own") == "unlocked",
        )
    },
    Operation {
        at_a_start: true,
        ..act(
            "job stop",
            Scene::begin_a_rewrap,
            |scene| scene.to_the_job("stop"),
            // The request that it waits for has its deadline.
            |scene| eventually(|| scene.job()["state"] == "stopped"),
        )
    },
    act(
        "fs create",
        |_| {},
        |_| words("fs create new"),
        |scene| scene.state_of("new") == "unlocked" && scene.answers("fs verify new"),
    ),
    act(
        "fs create --kms-key",
        |_| {},
        |_| words(&format!("fs create new --kms-key {OWN}")),
        |scene| scene.is_under_own("new") && scene.answers("fs verify new"),
    ),
    act(
        "fs rekey",
        |_| {},
        |_| words("fs rekey one"),
        // The new key is wrapped by the newest version.
        |scene| scene.versions() == [2, 1] && scene.answers("fs verify one"),
    ),
    act(
        "fs unlock",
        lock_two,
        |_| words("fs unlock two"),
        |scene| scene.state_of("two") == "unlocked",
    ),
    act(
        "fs unlock, own key",
        |scene| {
            create_own(scene);
            scene.place.ok(&["fs", "lock", "own"]);
        },
        |_| words("fs unlock own"),
        |scene| scene.is_under_own("own"),
    ),
    act("fs lock", |_| {}, |_| words("fs lock two"), |scene| scene.state_of("two") == "locked"),
    act(
        "fs import",
        |_| {},
        |scene| words(&format!("fs import two {}", scene.source())),
        |scene| {
            let target = scene.place.path("imported");
            let _ = fs::remove_dir_all(&target);
            let target = target.to_str().unwrap();
            scene.answers(&format!("fs export two {target}"))
                && tree::differences(scene.source(), target).unwrap().is_empty()
        },
    ),
    gentle("fs export", |scene| {
        let target = scene.place.path("exported");
        let _ = fs::remove_dir_all(&target);
        words(&format!("fs export one {}", target.to_str().unwrap()))
    }),
    gentle("fs verify", |_| words("fs verify one")),
    gentle("fs list", |_| words("fs list")),
    gentle("fs show", |_| words("fs show one")),
    gentle("status", |_| words("status")),
    gentle("fs kms", |_| words("fs kms")),
    gentle("fs kms check", |_| words("fs kms check")),
    gentle("fs kms rehearse", |_| words("fs kms rehearse")),
    gentle("fs kms impact", |_| words("fs kms impact --delete-key")),
    gentle("impact --revoke-token", |_| words("fs kms impact --revoke-token")),
    gentle("impact --min-version", |_| words("fs kms impact --min-version 2")),
    gentle("fs kms unset", |_| words("fs kms unset")),
    Operation {
        mends: true,
        ..act(
            "first set-vault",
            |scene| {
                scene.place.ok(&downgrade(scene));
            },
            set_vault,
            |scene| scene.kms_url() == scene.vault.url() && scene.versions() == [2, 2],
        )
    },
    Operation {
        mends: true,
        ..act(
            "set-vault, another token",
            |_| {},
            set_vault,
            |scene| scene.kms_url() == scene.vault.url(),
        )
    },
    act("set-vault, another Vault", |_| {}, move_on, has_moved),
    act("set-vault, another Vault, one locked", lock_two, move_on, has_moved),
    act("unset --allow-downgrade", |_| {}, downgrade, is_downgraded),
    act("unset --allow-downgrade, one locked", lock_two, downgrade, is_downgraded),
    act("rewrap", |_| {}, |_| words("fs kms rewrap --wait 1"), |scene| scene.versions() == [2, 2]),
    act(
        "rewrap one",
        |_| {},
        |_| words("fs kms rewrap one --wait 1"),
        |scene| scene.versions() == [2, 1],
    ),
    act(
        "fs delete",
        |_| {},
        |_| words("fs delete two --yes"),
        |scene| {
            scene.filesystems().len() == 1 && !scene.place.state().join("filesystems/two").exists()
        },
    ),
];

pub(crate) fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

fn set_vault(scene: &Scene) -> Vec<String> {
    let (url, token) = (scene.vault.url(), &scene.vault.spare);
    let mut line = format!("fs kms set-vault {url} {KEY} {token} --wait 1");
    if let Some(ca) = scene.ca() {
        line.push_str(&format!(" --ca-cert {ca}"));
    }
    words(&line)
}

fn create_own(scene: &Scene) {
    scene.place.ok(&["fs", "create", "own", "--kms-key", OWN]);
}

fn lock_two(scene: &Scene) {
    scene.place.ok(&["fs", "lock", "two"]);
}

fn move_on(scene: &Scene) -> Vec<String> {
    let (url, token) = (scene.other.url(), scene.other.token());
    words(&format!("fs kms set-vault {url} {KEY} {token} --wait 1"))
}

fn has_moved(scene: &Scene) -> bool {
    scene.kms_url() == scene.other.url() && scene.versions() == [1, 1]
}

fn downgrade(_: &Scene) -> Vec<String> {
    words("fs kms unset --allow-downgrade --yes --wait 1")
}

fn is_downgraded(scene: &Scene) -> bool {
    let is_local = |fs: &Value| fs["wrapped_by"]["kind"] == "local";
    scene.kms_url() == Value::Null && scene.filesystems().iter().all(is_local)
}

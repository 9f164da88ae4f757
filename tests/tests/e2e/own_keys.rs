//! `fs create --kms-key`: master keys that filesystems have of their own, in the same KMS.

use std::fs;

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use serde_json::{Value, json};

const A: &str = "tenant-a";
const B: &str = "tenant-b";

/// A KMS that has these master keys too, and a node whose token may use `may` beside the one for all.
fn start(kind: Kind, keys: &[&str], may: &[&str]) -> (Kms, Place) {
    let (kms, place) = (Kms::start(kind), Place::new());
    for key in keys {
        kms.admin().write(&format!("transit/keys/{key}"), &json!({}));
    }
    fs::write(place.path("token"), kms.token_for(&policies(may))).unwrap();
    (kms, place)
}

fn policies(may: &[&str]) -> String {
    [KEY].iter().chain(may).map(|key| policy(key)).collect()
}

fn set(kms: &Kms, place: &Place) -> Vec<String> {
    let token = place.path("token");
    ["fs", "kms", "set-vault", kms.url(), KEY, "--token-file", token.to_str().unwrap()]
        .map(str::to_owned)
        .into()
}

/// Has the token, that was made before, use these beside the one for all.
fn grant(kms: &Kms, may: &[&str]) {
    kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": policies(may) }));
}

/// By name: what wraps each key, and in which version.
fn wrapped(place: &Place) -> Vec<(String, String, u64)> {
    let listed = place.json(&["fs", "list"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    listed["filesystems"]
        .as_array()
        .unwrap()
        .iter()
        .map(|fs| {
            let by = &fs["wrapped_by"];
            (text(&fs["name"]), text(&by["master_key"]), by["version"].as_u64().unwrap())
        })
        .collect()
}

fn are(expected: [(&str, &str, u64); 3]) -> Vec<(String, String, u64)> {
    expected.map(|(name, key, version)| (name.to_owned(), key.to_owned(), version)).into()
}

#[test]
fn each_filesystem_hangs_on_its_own_master_key_alone() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let (kms, place) = start(kind, &[A, B], &[]);
        let mut node = place.start();
        let create = |name, key| ["fs", "create", name, "--kms-key", key];
        place.fails(5, &create("a", A));
        place.fails(5, &[&create("a", A)[..], &["--allow-no-kms"]].concat());
        place.ok(&set(&kms, &place));
        place.ok(&["fs", "create", "home"]);

        // What is missing is named, and nothing is left.
        let refused = place.fails(4, &create("a", A));
        assert!(refused.contains("transit/keys/tenant-a"), "{kind:?}: {refused}");
        assert!(refused.contains("coffer fs kms policy tenant-a, with every other"), "{refused}");
        grant(&kms, &[A, B, "nobody"]);
        let page =
            "path \"transit/+/nobody\" { capabilities = [\"read\", \"create\", \"update\"] }";
        let page = format!("{}{page}", policies(&[A, B]));
        kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": page }));
        let missing = place.fails(4, &create("x", "nobody"));
        assert!(missing.contains("no master key nobody"), "{kind:?}: {missing}");
        assert_eq!(kms.admin().ask("GET", "transit/keys/nobody", &Value::Null).0, 404);
        place.fails(2, &create("x", "no/name"));
        assert_eq!(wrapped(&place).len(), 1);
        grant(&kms, &[A, B]);
        place.ok(&create("a", A));
        place.ok(&create("b", B));

        let source = place.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("plan"), "attack at dawn").unwrap();
        place.ok(&["fs", "import", "a", source.to_str().unwrap()]);
        kms.admin().write("transit/keys/tenant-a/rotate", &json!({}));
        assert_eq!(place.ok(&["fs", "kms", "rewrap", "a"]), "rewrapped the key of a: 1 key\n");
        assert_eq!(wrapped(&place), are([("a", A, 2), ("b", B, 1), ("home", KEY, 1)]));
        // Nothing needs the old version any more, the canary neither.
        let settings = json!({ "min_decryption_version": 2 });
        kms.admin().write("transit/keys/tenant-a/config", &settings);
        let shown = place.ok(&["fs", "show", "a"]);
        assert!(shown.contains("own master key:  tenant-a\n"), "{shown}");
        let shown = place.ok(&["fs", "kms"]);
        assert!(shown.contains("also in use:      tenant-a, of 1 filesystem"), "{shown}");
        assert!(shown.contains("1 on version 2 of tenant-a"), "{shown}");
        assert!(place.ok(&["status"]).contains(" and 2 others of filesystems' own, 3 keys"));
        place.ok(&["fs", "kms", "check"]);

        node.stop();
        node = place.start();
        for name in ["home", "a", "b"] {
            place.wait_for_state(name, "unlocked");
        }
        let target = place.path("target");
        place.ok(&["fs", "export", "a", target.to_str().unwrap()]);
        assert_eq!(fs::read_to_string(target.join("plan")).unwrap(), "attack at dawn");

        // One is lost: it is told before it is felt, and felt by what hangs on it alone.
        let impact = place.json(&["fs", "kms", "impact", "--delete-key", "--kms-key", B]);
        assert_eq!(impact["shut_at_start"], json!(["b"]), "{impact}");
        assert_eq!(impact["stops_wrapping"], false);
        let impact = place.json(&["fs", "kms", "impact", "--delete-key"]);
        assert_eq!(impact["shut_at_start"], json!(["home"]), "{impact}");
        place.fails(5, &["fs", "kms", "impact", "--delete-key", "--kms-key", "nobody"]);
        let deletable = json!({ "deletion_allowed": true });
        kms.admin().write("transit/keys/tenant-b/config", &deletable);
        kms.admin().delete("transit/keys/tenant-b");
        let check = place.coffer(&["fs", "kms", "check"]).expect(4).stdout;
        assert!(check.contains("FAILED   tenant-b: the master key is the one"), "{check}");
        let rehearsed = place.coffer(&["fs", "kms", "rehearse", "--json"]).expect(4);
        let rehearsed: Value = serde_json::from_str(&rehearsed.stdout).unwrap();
        assert_eq!((&rehearsed["open"], &rehearsed["shut"][0]["name"]), (&json!(2), &json!("b")));
        let told = place.ok(&["fs", "kms"]);
        assert!(
            told.contains(
                "warning: a node that starts can't unlock what has the master key tenant-b"
            ),
            "{told}"
        );
        assert!(place.metrics().contains("coffer_own_master_key_up{master_key=\"tenant-b\"} 0"));
        node.stop();
        node = place.start();
        let shut = place.wait_for_problem("b", "master-key-missing");
        assert!(shut["problem"]["detail"].as_str().unwrap().contains("tenant-b"), "{shut}");
        for name in ["home", "a"] {
            place.wait_for_state(name, "unlocked");
        }
        // All else goes on: keys are rewrapped, a new token is taken.
        kms.rotate();
        place.coffer(&["fs", "kms", "rewrap"]).expect(8);
        assert_eq!(wrapped(&place), are([("a", A, 2), ("b", B, 1), ("home", KEY, 2)]));
        let set_again = place.ok(&set(&kms, &place));
        assert!(set_again.contains("warning: b, with the master key \"tenant-b\""), "{set_again}");
        place.ok(&["fs", "delete", "b", "--yes"]);
        assert!(!place.ok(&["fs", "kms"]).contains(B));
        node.stop();
    }
}

#[test]
fn another_vault_takes_each_to_the_master_key_of_the_same_name() {
    for kind in [Kind::Embedded, Kind::Newest] {
        let (old, place) = start(kind, &[A], &[A]);
        let node = place.start();
        place.ok(&set(&old, &place));
        place.ok(&["fs", "create", "home"]);
        for name in ["a", "b"] {
            place.ok(&["fs", "create", name, "--kms-key", A]);
        }
        let new = Kms::start(kind);
        fs::write(place.path("token"), new.token_for(&policies(&[A]))).unwrap();
        let refused = place.fails(4, &set(&new, &place));
        assert!(refused.contains("a, b must have the master key \"tenant-a\""), "{refused}");
        assert_eq!(place.json(&["fs", "kms"])["configured"]["base_url"], old.url());
        new.admin().write("transit/keys/tenant-a", &json!({}));
        place.ok(&set(&new, &place));
        assert_eq!(wrapped(&place), are([("a", A, 1), ("b", A, 1), ("home", KEY, 1)]));
        drop(old);
        node.stop();
        let node = place.start();
        for name in ["home", "a", "b"] {
            place.wait_for_state(name, "unlocked");
        }
        // Another one for all leaves theirs alone.
        new.admin().write("transit/keys/other", &json!({}));
        grant(&new, &[A, "other"]);
        let mut other = set(&new, &place);
        other[4] = "other".to_owned();
        place.ok(&other);
        assert_eq!(wrapped(&place), are([("a", A, 1), ("b", A, 1), ("home", "other", 1)]));

        // Without a KMS all are wrapped locally, and come back to their own.
        place.ok(&["fs", "kms", "unset", "--allow-downgrade", "--yes"]);
        assert!(place.ok(&["fs", "show", "a"]).contains("own master key:  tenant-a\n"));
        place.ok(&set(&new, &place));
        assert_eq!(wrapped(&place), are([("a", A, 1), ("b", A, 1), ("home", KEY, 1)]));
        node.stop();
    }
}

#[test]
fn what_moves_to_another_mount_is_opened_with_the_token_of_before() {
    let (kms, place) = start(Kind::Embedded, &[A], &[A]);
    let node = place.start();
    place.ok(&set(&kms, &place));
    for (name, key) in [("home", KEY), ("a", A), ("b", A)] {
        place.ok(&["fs", "create", name, "--kms-key", key]);
        place.ok(&["fs", "lock", name]);
    }
    kms.admin().write("sys/mounts/elsewhere", &json!({ "type": "transit" }));
    for key in [KEY, A] {
        kms.admin().write(&format!("elsewhere/keys/{key}"), &json!({}));
    }
    let policy = policies(&[A]).replace("transit/", "elsewhere/");
    let token = kms.admin().token("elsewhere", &policy, &json!({ "period": "1h" }));
    fs::write(place.path("token"), token).unwrap();
    let mut moved = set(&kms, &place);
    moved.extend(["--transit-path", "elsewhere"].map(str::to_owned));
    place.ok(&moved);
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["transit_path"], "elsewhere", "{shown}");
    kms.admin().delete("sys/mounts/transit");
    for name in ["home", "a", "b"] {
        place.ok(&["fs", "unlock", name]);
    }
    node.stop();
}

#[test]
fn a_recovery_brings_it_back() {
    let (kms, place) = start(Kind::Embedded, &[A], &[A]);
    let node = place.start();
    place.ok(&set(&kms, &place));
    place.ok(&["fs", "create", "home"]);
    for name in ["a", "b"] {
        place.ok(&["fs", "create", name, "--kms-key", A]);
    }
    node.stop();
    fs::remove_dir_all(place.state().join("store")).unwrap();
    let state = place.state();
    let from = state.join("filesystems");
    let recover = ["recover", "--from", from.to_str().unwrap(), "--state-dir"];
    let told = place.ok(&[&recover[..], &[state.to_str().unwrap()]].concat());
    assert!(told.contains(&format!("with the master key {KEY}\n")), "{told}");
    assert!(
        told.contains(&format!("some need another too: {} with the master key {A}", kms.url()))
    );
    let node = place.start();
    place.ok(&set(&kms, &place));
    for name in ["home", "a", "b"] {
        place.wait_for_state(name, "unlocked");
    }
    kms.admin().write("transit/keys/tenant-a/rotate", &json!({}));
    place.ok(&["fs", "kms", "rewrap"]);
    assert_eq!(wrapped(&place), are([("a", A, 2), ("b", A, 2), ("home", KEY, 1)]));
    node.stop();
}

#[test]
fn many_filesystems_on_a_few_master_keys_are_opened_by_a_few_requests() {
    let (kms, place) = start(Kind::Embedded, &[A, B], &[A, B]);
    let node = place.start();
    place.ok(&set(&kms, &place));
    let names: Vec<String> = (0..24).map(|n| format!("fs-{n}")).collect();
    for (n, name) in names.iter().enumerate() {
        let key = [KEY, A, B][n % 3];
        place.ok(&["fs", "create", name, "--kms-key", key]);
    }
    node.stop();
    kms.embedded().requests().clear();
    let node = place.start();
    for name in &names {
        place.wait_for_state(name, "unlocked");
    }
    let asked = kms.embedded().requests().count("transit/decrypt").requests;
    // The look at the KMS opens a canary of each.
    assert!((3..=12).contains(&asked), "{asked}");
    node.stop();
}

#[test]
fn what_can_not_be_read_is_unlocked_and_nothing_else_is_said() {
    let (kms, place) = start(Kind::Embedded, &[A], &[A]);
    let node = place.start();
    place.ok(&set(&kms, &place));
    place.ok(&["fs", "create", "a", "--kms-key", A]);
    let read = format!("path \"transit/keys/{A}\" {{ capabilities = [\"read\"] }}\n");
    let lacking = policies(&[A]).replace(&read, "");
    kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": lacking }));
    let told = place.ok(&["fs", "kms"]);
    let why = format!("the master key {A} does not answer as it should: the token may not read");
    assert!(told.contains(&why) && !told.contains("can't unlock"), "{told}");
    node.stop();
    let node = place.start();
    place.wait_for_state("a", "unlocked");
    node.stop();
}

#[test]
fn nothing_is_said_of_the_token_that_its_look_does_not_show() {
    let (kms, place) = start(Kind::Embedded, &[A], &[A]);
    let orphan = json!({ "period": "1h", "policies": ["coffer-test"] });
    let orphan = kms.admin().write("auth/token/create-orphan", &orphan);
    fs::write(place.path("token"), orphan["auth"]["client_token"].as_str().unwrap()).unwrap();
    let node = place.start();
    place.ok(&set(&kms, &place));
    place.ok(&["fs", "create", "a", "--kms-key", A]);
    node.stop();
    // The client of the filesystem's own master key is a new one, and asks for the key alone.
    let node = place.start();
    place.wait_for_state("a", "unlocked");
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["own_keys"][0]["latest_version"], 1, "{shown}");
    assert_eq!(shown["findings"], json!([]));
    node.stop();
}

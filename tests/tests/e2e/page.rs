//! The page's statements, one by one. `docs/requirements.md` sets each sentence beside its test.

use std::fs;

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use serde_json::json;
use testkit::tree;
use testkit::vault_server::VaultAdmin;

#[test]
fn set_vault_takes_url_key_and_token_as_arguments() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    assert!(place.ok(&["fs", "kms"]).contains("not set"));
    let token = kms.token();
    let answer = place.coffer(&["fs", "kms", "set-vault", kms.url(), KEY, &token]).expect(0);
    assert!(answer.stderr.contains("process list"), "an argument shows: {}", answer.stderr);
    let shown = place.ok(&["fs", "kms"]);
    assert!(shown.contains(kms.url()) && shown.contains(KEY), "{shown}");
    assert!(!shown.contains(&token));
}

#[test]
fn set_vault_fails_unless_all_is_right_and_changes_nothing() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let token = kms.token();
    place.fails(4, &["fs", "kms", "set-vault", kms.url(), "no-such-key", &token]);
    place.fails(4, &["fs", "kms", "set-vault", kms.url(), KEY, "hvs.wrong"]);
    place.fails(3, &["fs", "kms", "set-vault", "http://127.0.0.1:1", KEY, &token]);
    assert!(place.json(&["fs", "kms"])["configured"].is_null());
    // The key that was missing was not made, although the root token could have.
    let root = kms.embedded().root_token().to_owned();
    place.fails(4, &["fs", "kms", "set-vault", kms.url(), "no-such-key", &root]);
    assert_eq!(kms.admin().ask("GET", "transit/keys/no-such-key", &json!({})).0, 404);
}

#[test]
fn set_vault_updates_url_key_and_token() {
    const SECOND: &str = "second-key";
    let kms = Kms::start(Kind::Embedded);
    let other = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    let set = |kms: &Kms, key: &str, token: &str| {
        place.ok(&["fs", "kms", "set-vault", kms.url(), key, token])
    };
    let first = kms.token();
    set(&kms, KEY, &first);
    place.ok(&["fs", "create", "home"]);
    // A new token for the same KMS, which is the one that is used from now on.
    set(&kms, KEY, &kms.token());
    kms.admin().write("auth/token/revoke", &json!({ "token": first }));
    place.ok(&["fs", "create", "projects"]);

    // Another master key of it: the keys move.
    kms.admin().write(&format!("transit/keys/{SECOND}"), &json!({}));
    set(&kms, SECOND, &kms.token_for(&policy(SECOND)));
    assert_eq!(place.json(&["fs", "kms"])["configured"]["master_key"], SECOND);
    kms.configure(&json!({ "deletion_allowed": true }));
    kms.admin().delete(&format!("transit/keys/{KEY}"));
    node.stop();
    let node = place.start();
    for fs in ["home", "projects"] {
        let shown = place.wait_for_state(fs, "unlocked");
        assert_eq!(shown["wrapped_by"]["master_key"], SECOND, "{shown}");
    }

    // Another KMS: the keys move, and the old one is not needed any more.
    place.set_vault(&other);
    let shown = place.json(&["fs", "kms"]);
    assert_eq!(shown["configured"]["base_url"], other.url(), "{shown}");
    drop(kms);
    node.stop();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
}

#[test]
fn a_kms_that_cannot_take_the_keys_changes_nothing() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let url = kms.url().to_owned();
    drop(kms);
    node.stop();
    let _node = place.start();
    // Locked and the old KMS gone: its key can't go along to another.
    let other = Kms::start(Kind::Embedded);
    let token = other.token();
    place.fails(5, &["fs", "kms", "set-vault", other.url(), KEY, &token]);
    assert_eq!(place.json(&["fs", "kms"])["configured"]["base_url"], url);
}

#[test]
fn creating_needs_the_kms_and_leaves_nothing_without() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    let refused = place.fails(5, &["fs", "create", "home"]);
    assert!(refused.contains("--allow-no-kms"), "{refused}");
    place.set_vault(&kms);
    kms.admin().ask("PUT", "sys/seal", &json!({}));
    let refused = place.fails(3, &["fs", "create", "home"]);
    assert!(refused.contains("sealed"), "{refused}");
    assert_eq!(place.json(&["fs", "list"])["filesystems"], json!([]));
    assert!(!place.state().join("filesystems/home").exists());
}

#[test]
fn downgrade_works_without_a_kms_and_is_shown_as_exposed() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 20).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    let refused = place.fails(5, &["fs", "kms", "unset", "--yes"]);
    assert!(refused.contains("--allow-downgrade"), "{refused}");
    place.ok(&["fs", "kms", "unset", "--allow-downgrade", "--yes"]);
    drop(kms);
    node.stop();
    let _node = place.start();
    let shown = place.wait_for_state("home", "unlocked");
    assert_eq!((&shown["exposed"], &shown["wrapped_by"]["kind"]), (&json!(true), &json!("local")));
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    assert!(place.ok(&["status"]).contains("exposed"));

    // A KMS set later takes the key over, and it stays marked.
    let again = Kms::start(Kind::Embedded);
    place.set_vault(&again);
    let shown = place.json(&["fs", "show", "home"]);
    assert_eq!((&shown["exposed"], &shown["wrapped_by"]["kind"]), (&json!(true), &json!("vault")));
    let left: Vec<_> = fs::read_dir(place.state())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| name.starts_with("local-"))
        .collect();
    assert_eq!(left, Vec::<String>::new(), "the local key is erased");
}

#[test]
fn without_consent_nothing_is_destroyed() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    // No terminal and no --yes.
    for args in [&["fs", "delete", "home"][..], &["fs", "kms", "unset", "--allow-downgrade"]] {
        let answer = place.coffer(args);
        assert_ne!(answer.code, 0, "{answer:?}");
        assert!(answer.stderr.contains("--yes"), "{answer:?}");
    }
    place.ok(&["fs", "show", "home"]);
}

#[test]
fn the_page_s_own_policy_works_and_creates_no_key() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let node = place.start();
        let page = format!(
            "path \"transit/+/{KEY}\" {{\n capabilities = [\"read\", \"create\", \"update\"]\n}}\npath \"transit/keys/{KEY}\" {{\n capabilities = [\"read\"]\n}}\n"
        );
        let token = kms.token_for(&page);
        place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        let (source, target) = (place.path("source"), place.path("target"));
        tree::small_files(&source, 20).unwrap();
        place.ok(&["fs", "create", "home"]);
        place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
        node.stop();
        let _node = place.start();
        place.wait_for_state("home", "unlocked");
        place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
        assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
        kms.rotate();
        place.ok(&["fs", "kms", "rewrap"]);
        assert_eq!(place.json(&["fs", "show", "home"])["wrapped_by"]["version"], 2, "{kind:?}");

        // It can't destroy the key, even where that is allowed.
        let key = format!("transit/keys/{KEY}");
        kms.configure(&json!({ "deletion_allowed": true }));
        let refused = VaultAdmin::new(kms.url(), &token).ask("DELETE", &key, &json!({}));
        assert_eq!(refused.0, 403, "{kind:?}: {refused:?}");
        // The key is deleted: the policy would let Vault make another. It is noticed, and none is made.
        kms.admin().delete(&key);
        place.fails(4, &["fs", "create", "second"]);
        assert_eq!(kms.admin().ask("GET", &key, &json!({})).0, 404);
        // Made again under its name, it is still not the same. (Vault tells creation times in seconds.)
        std::thread::sleep(std::time::Duration::from_millis(1100));
        kms.admin().write(&key, &json!({}));
        let refused = place.fails(4, &["fs", "create", "second"]);
        assert!(refused.contains("made again"), "{kind:?}: {refused}");
    }
}

#[test]
fn each_missing_permission_is_named() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let _node = place.start();
    for verb in ["keys", "encrypt", "decrypt", "rewrap"] {
        let path = format!("transit/{verb}/{KEY}");
        let without: String = policy(KEY)
            .lines()
            .filter(|line| !line.contains(&path))
            .map(|l| format!("{l}\n"))
            .collect();
        let token = kms.token_for(&without);
        let refused = place.fails(4, &["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        assert!(refused.contains(&path), "{verb}: {refused}");
        let capability = if verb == "keys" { "read" } else { "update" };
        assert!(refused.contains(capability), "{verb}: {refused}");
    }
}

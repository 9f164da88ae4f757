//! `coffer audit`: what is recorded, what shows that the record was changed, and that nothing is done without it.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::{Answer, Place};
use coffer_tests::tmpfs::Tmpfs;
use serde_json::{Value, json};

fn lines(place: &Place, options: &[&str]) -> Vec<Value> {
    let page = place.json(&[&["audit", "show"], options].concat());
    page["lines"].as_array().unwrap().clone()
}

#[test]
fn every_use_of_a_key_and_every_act_is_recorded_with_who_and_which() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    place.fails(5, &["fs", "kms", "unset", "--yes"]);
    node.stop();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");

    let key = place.json(&["fs", "show", "home"])["key_id"].clone();
    let uses: Vec<_> = lines(&place, &["--action", "key."])
        .iter()
        .filter(|line| line["key_id"] == key)
        .map(|line| (line["action"].clone(), line["key_id"].clone(), line["key_version"].clone()))
        .collect();
    let used = |action: &str, version: u64| (action.into(), key.clone(), version.into());
    assert_eq!(
        uses,
        [
            used("key.wrap", 1),
            used("key.prove", 1),
            used("key.rewrap", 2),
            used("key.prove", 2),
            used("key.unwrap", 2)
        ]
    );
    // Who used it is asked by the filesystem's name, and by the key's id.
    let asked = |about: &str| {
        let of_key = lines(&place, &["--action", "key.", "--about", about]);
        of_key.iter().map(|line| line["action"].clone()).collect::<Vec<_>>()
    };
    let all: Vec<_> = uses.iter().map(|(action, ..)| action.clone()).collect();
    assert_eq!(asked("home"), all);
    assert_eq!(asked("hom"), [""; 0]);
    assert_eq!(asked(key.as_str().unwrap()).len(), uses.len());
    let refused = lines(&place, &["--failed", "--about", "/v1/kms"]);
    let [refused] = &refused[..] else { panic!("{refused:?}") };
    assert_eq!(
        (&refused["subject"], &refused["outcome"]),
        (&"DELETE /v1/kms".into(), &"refused".into())
    );
    assert!(refused["who"].as_str().unwrap().starts_with("uid 0"), "{refused}");
    let text = place.ok(&["audit", "show", "--lines", "1"]);
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(place.ok(&["audit", "verify"]).contains("each follows from the one before"));
}

/// And the other way round: what Vault did with the master key, a line of ours explains.
#[test]
fn each_line_is_found_in_the_log_of_vault() {
    for kind in [Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let vault = kms.audit_to(&place.path("vault.log"));
        kms.admin().write("transit/keys/own", &json!({}));
        let set_vault = || {
            let token = kms.token_for(&format!("{}{}", policy(KEY), policy("own")));
            place.ok(&["fs", "kms", "set-vault", kms.url(), KEY, &token]);
        };
        let node = place.start();
        set_vault();
        for (name, key) in [("home", KEY), ("projects", KEY), ("mine", "own")] {
            place.ok(&["fs", "create", name, "--kms-key", key]);
        }
        kms.rotate();
        place.ok(&["fs", "kms", "rewrap"]);
        place.ok(&["fs", "lock", "home"]);
        place.ok(&["fs", "unlock", "home"]);
        place.ok(&["fs", "lock", "home"]);
        let checked = place.json(&["fs", "kms", "check"]);
        place.ok(&["fs", "kms", "rehearse"]);
        set_vault();
        place.ok(&["fs", "unlock", "home"]);
        node.stop();
        let node = place.start();
        for name in ["home", "mine"] {
            place.wait_for_state(name, "unlocked");
        }
        let lines = lines(&place, &["--lines", "1000"]);
        node.stop();

        let done: HashMap<_, _> =
            vault.uses().into_iter().map(|used| (used.id, used.operation)).collect();
        for line in &lines {
            let operation = match line["action"].as_str().unwrap() {
                "key.wrap" => Some("encrypt"),
                "key.rewrap" => Some("rewrap"),
                "key.unwrap" | "key.prove" => Some("decrypt"),
                _ => None,
            };
            let ids: Vec<_> = line["requests"].as_array().into_iter().flatten().collect();
            assert!(operation.is_none() || !ids.is_empty(), "{kind:?}: {line}");
            for id in ids.into_iter().map(|id| id.as_str().unwrap()) {
                let did = done.get(id).unwrap_or_else(|| panic!("{kind:?}: Vault has no {line}"));
                assert!(operation.is_none_or(|operation| operation == did), "{did}: {line}");
            }
        }
        let ours = fs::read_to_string(place.state().join("audit.jsonl")).unwrap();
        for (id, operation) in &done {
            assert!(ours.contains(id), "{kind:?}: nothing tells why Vault did {operation} in {id}");
        }
        let count = checked["items"].as_array().unwrap().len();
        let check = lines.iter().find(|line| line["action"] == "kms.check").unwrap();
        assert_eq!(check["detail"], format!("{count} looked at, 0 failed"), "{kind:?}");
        for action in ["kms.prove", "kms.check", "key.rewrap"] {
            let of_action = lines.iter().find(|line| line["action"] == action).unwrap();
            assert!(of_action["requests"][0].is_string(), "{kind:?}: {of_action}");
        }
    }
}

#[test]
fn a_key_that_vault_does_not_open_is_recorded_with_the_request() {
    for kind in [Kind::Oldest, Kind::Newest] {
        let (kms, place) = (Kms::start(kind), Place::new());
        let log = place.path("vault.log");
        kms.audit_to(&log);
        let node = place.start();
        place.set_vault(&kms);
        place.ok(&["fs", "create", "home"]);
        kms.rotate();
        kms.configure(&json!({ "min_decryption_version": 2 }));
        node.stop();
        let _node = place.start();
        place.wait_for_problem("home", "key-version-too-old");
        let failed = lines(&place, &["--action", "key.unwrap", "--failed", "--about", "home"]);
        let [failed] = &failed[..] else { panic!("{kind:?}: {failed:?}") };
        let id = failed["requests"][0].as_str().unwrap();
        assert!(fs::read_to_string(&log).unwrap().contains(id), "{kind:?}: {failed}");
    }
}

#[test]
fn a_request_of_vault_is_looked_up() {
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let vault = kms.audit_to(&place.path("vault.log"));
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let wrapped = vault.uses().into_iter().rfind(|used| used.operation == "encrypt").unwrap();
    let shown = place.ok(&["audit", "show", "--about", &wrapped.id]);
    assert!(shown.contains("key.wrap  home") && shown.contains(&wrapped.id), "{shown}");
    assert_eq!(shown.lines().count(), 2, "{shown}");
}

#[test]
fn a_record_that_was_changed_or_cut_off_is_noticed() {
    let place = Place::new();
    let log = place.state().join("audit.jsonl");
    let start = || place.start();
    let node = start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "lock", "home"]);
    node.stop();
    let good = fs::read_to_string(&log).unwrap();
    let head = fs::read(place.state().join("audit.head")).unwrap();
    let cut = good.lines().take(4).map(|line| format!("{line}\n")).collect::<String>();
    for (bad, says) in [(good.replacen("home", "work", 1), "breaks at line"), (cut, "cut off")] {
        fs::write(&log, bad).unwrap();
        fs::write(place.state().join("audit.head"), &head).unwrap();
        let node = start();
        assert!(place.wait_for_finding("audit-trouble")["what"].as_str().unwrap().contains(says));
        let broken = place.coffer(&["audit", "verify"]).expect(6);
        assert!(broken.stderr.contains(says) && broken.stderr.contains("do:"), "{broken:?}");
        node.stop();
    }
    // All of it, while the node runs: it takes no act that it can't record, and the next one tells.
    let node = start();
    for file in ["audit.jsonl", "audit.head"] {
        fs::remove_file(place.state().join(file)).unwrap();
    }
    place.fails(1, &["fs", "unlock", "home"]);
    node.stop();
    let _node = start();
    let gone = place.wait_for_finding("audit-trouble")["what"].to_string();
    assert!(gone.contains("the audit log is gone"), "{gone}");
    place.coffer(&["audit", "verify"]).expect(6);
}

#[test]
fn nothing_is_done_that_can_t_be_recorded() {
    let place = Place::new();
    fs::create_dir_all(place.state()).unwrap();
    let state = place.state();
    let disk = Tmpfs::mount(&state, "64m");
    fs::set_permissions(&state, fs::Permissions::from_mode(0o700)).unwrap();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let before = lines(&place, &[]).len();
    let full = fs::write(state.join("full"), vec![1; 64 << 20]).unwrap_err();
    assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
    // The store refuses before; what is left of the log's last page takes some lines still.
    let unrecorded = |answer: &Answer| answer.stderr.contains("what is not recorded is not done");
    let refused = (0..200).map(|_| place.coffer(&["fs", "lock", "home"])).find(unrecorded);
    assert_eq!(refused.expect("the disk is full").code, 1);
    place.wait_for_finding("audit-trouble");
    // Nobody has tampered with it.
    let full = place.coffer(&["audit", "verify"]).expect(1);
    assert!(full.stderr.contains("what is on record is whole"), "{full:?}");
    fs::remove_file(state.join("full")).unwrap();
    place.ok(&["fs", "lock", "home"]);
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "locked");
    assert!(lines(&place, &[]).len() > before);
    place.ok(&["audit", "verify"]);
    drop(disk);
}

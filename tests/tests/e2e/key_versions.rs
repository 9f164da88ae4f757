//! Versions of the master key that come and go: what Coffer shows as needed is all that it needs.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use coffer_tests::fleet::recovered_filesystems;
use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use coffer_tests::tmpfs::Tmpfs;
use serde_json::{Value, json};

#[test]
fn what_is_not_shown_as_needed_can_be_cut_off() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let _node = place.start();
        place.set_vault(&kms);
        kms.rotate();
        until_needed_from(&place, 1);

        // The first key on the new version takes along what shows that the master key is the same.
        place.ok(&["fs", "create", "home"]);
        until_needed_from(&place, 2);
        kms.configure(&json!({ "min_decryption_version": 2 }));
        place.ok(&["fs", "create", "projects"]);
        place.ok(&["fs", "kms", "rewrap"]);
    }
}

#[test]
fn one_filesystem_s_key_is_rewrapped_alone() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    for fs in ["home", "projects"] {
        place.ok(&["fs", "create", fs]);
    }
    kms.rotate();
    assert_eq!(place.ok(&["fs", "kms", "rewrap", "home"]), "rewrapped the key of home: 1 key\n");
    let version = |fs| place.json(&["fs", "show", fs])["wrapped_by"]["version"].clone();
    assert_eq!((version("home"), version("projects")), (json!(2), json!(1)));
    place.fails(5, &["fs", "kms", "rewrap", "nobody"]);
    assert_eq!(
        place.ok(&["fs", "kms", "rewrap"]),
        "current already: 1 key under the newest version of the master key, not wrapped anew\n\
         rewrapped the keys of all filesystems: 2 keys\n"
    );
    assert_eq!(version("projects"), json!(2));
}

#[test]
fn a_master_key_that_nothing_can_prove_is_refused_with_the_cure() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let _node = place.start();
        place.set_vault(&kms);
        kms.rotate();
        kms.configure(&json!({ "min_decryption_version": 2 }));
        let refused = place.fails(4, &["fs", "create", "home"]);
        assert!(refused.contains("set-vault"), "{kind:?}: {refused}");
        place.set_vault(&kms);
        place.ok(&["fs", "create", "home"]);
    }
}

#[test]
fn keys_that_were_cut_off_are_warned_of_and_rewrapped_from_memory() {
    for kind in [Kind::Embedded, Kind::Oldest, Kind::Newest] {
        let kms = Kms::start(kind);
        let place = Place::new();
        let node = place.start();
        place.set_vault(&kms);
        place.ok(&["fs", "create", "old"]);
        kms.rotate();
        place.ok(&["fs", "create", "new"]);
        kms.configure(&json!({ "min_decryption_version": 2 }));
        let shown = place.ok(&["fs", "kms"]);
        assert!(
            shown.contains("warning: a node that starts can't unlock old:"),
            "{kind:?}: {shown}"
        );
        place.ok(&["fs", "kms", "rewrap"]);
        assert!(!place.ok(&["fs", "kms"]).contains("warning: a node that starts"), "{kind:?}");
        drop(node);
        let _node = place.start();
        place.ok(&["fs", "unlock", "old"]);
        place.ok(&["fs", "ls", "old"]);
    }
}

/// As Vault's own audit log shows it.
#[test]
fn a_rewrap_that_was_killed_sends_no_finished_key_again() {
    const KEYS: usize = 3_600;
    let (kms, place) = (Kms::start(Kind::Newest), Place::new());
    let disks = ["state", "backing"].map(|name| place.path(name));
    // As many files as that are made on no slow disk.
    let _mounted = disks.each_ref().map(|disk| {
        fs::create_dir(disk).unwrap();
        let mounted = Tmpfs::mount(disk, "256m");
        fs::set_permissions(disk, fs::Permissions::from_mode(0o700)).unwrap();
        mounted
    });
    let ciphertexts = recovered_filesystems(&place, &kms, KEYS);
    let node = place.start();
    place.set_vault(&kms);
    until_needed_from(&place, 1);
    let vault = kms.audit_to(&place.path("vault.log"));
    kms.rotate();
    std::thread::scope(|scope| {
        let rewrap = scope.spawn(|| place.coffer(&["fs", "kms", "rewrap"]));
        let done = |job: &Value| job["progress"]["items"].as_u64().unwrap_or_default();
        place.until("some keys are rewrapped", || {
            let jobs = place.json(&["job", "list"]);
            jobs["jobs"]
                .as_array()
                .unwrap()
                .iter()
                .any(|job| job["state"] == "running" && done(job) > 0)
        });
        node.kill();
        assert_ne!(rewrap.join().unwrap().code, 0, "the rewrap was over before the kill");
    });
    // What was committed shows while Vault does not let the job go on.
    let all = policy(KEY);
    let lacking: Vec<_> = all.lines().filter(|line| !line.contains("rewrap")).collect();
    let set_policy = |policy: &str| {
        kms.admin().write("sys/policies/acl/coffer-test", &json!({ "policy": policy }));
    };
    set_policy(&lacking.join("\n"));
    let _node = place.start();
    place.wait_for_finding("job-waits");
    let committed: HashSet<_> = versions(&place)
        .into_iter()
        .filter(|(_, version)| *version == 2)
        .map(|(name, _)| vault.hash(&ciphertexts[&name]))
        .collect();
    assert!(!committed.is_empty() && committed.len() < KEYS, "{}", committed.len());
    // What the killed node had sent and did not live to commit is in it too.
    let before = vault.uses().len();
    set_policy(&all);
    place.ok(&["fs", "kms", "rewrap"]);
    let job = &place.json(&["job", "list"])["jobs"][0];
    assert_eq!(job["state"], "done", "{job}");
    assert!(versions(&place).values().all(|version| *version == 2));

    let sent: Vec<_> = vault.uses().split_off(before);
    let sent = sent.into_iter().filter(|used| used.operation == "rewrap");
    let sent: Vec<_> = sent.flat_map(|used| used.items).collect();
    let again: Vec<_> = sent.iter().filter(|item| committed.contains(*item)).collect();
    assert_eq!(again, Vec::<&String>::new());
    let once: HashSet<_> = sent.iter().collect();
    assert_eq!((sent.len(), once.len()), (KEYS - committed.len(), KEYS - committed.len()));
}

/// The version that wraps each filesystem's key.
fn versions(place: &Place) -> BTreeMap<String, u64> {
    let list = place.json(&["fs", "list"]);
    let of_one = |fs: &Value| {
        (fs["name"].as_str().unwrap().to_owned(), fs["wrapped_by"]["version"].as_u64().unwrap())
    };
    list["filesystems"].as_array().unwrap().iter().map(of_one).collect()
}

/// Waits until the node knows, and says, that this is the oldest version that anything needs.
fn until_needed_from(place: &Place, version: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let shown = place.json(&["fs", "kms"]);
        match shown["configured"]["lowest_needed"].as_u64() {
            Some(needed) => return assert_eq!(needed, version, "{shown}"),
            None => assert!(Instant::now() < deadline, "{shown}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

//! The state directory: one node at a time; a store that is damaged, emptied or older is noticed, and rebuilt.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, Kind, Kms, policy};
use coffer_tests::node::Place;
use testkit::tree;

#[test]
fn two_nodes_on_one_state_directory() {
    let place = Place::new();
    let _node = place.start();
    let second = place.serve_refused().expect(5);
    assert!(second.stderr.contains("in use") || second.stderr.contains("another"), "{second:?}");
    place.ok(&["status"]);
}

#[test]
fn a_second_node_cannot_open_the_same_backing() {
    let kms = Kms::start(Kind::Embedded);
    let (place, other) = (Place::new(), Place::new());
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    node.stop();
    let backing = place.state().join("filesystems/home");
    let state = other.state();
    // Unlocked at the start and not used since.
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    let begun = Instant::now();
    let lock = File::open(backing.join("coffer.lock")).unwrap();
    while lock.try_lock_shared().is_ok() {
        lock.unlock().unwrap();
        assert!(begun.elapsed() < Duration::from_secs(10), "nobody holds it");
        thread::sleep(Duration::from_millis(10));
    }
    let recover = ["recover", "--from", text(&backing), "--state-dir", text(&state)];
    let refused = other.fails(5, &recover);
    assert!(refused.contains("a node has it open"), "{refused}");
    node.stop();
    other.ok(&recover);
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    place.ok(&["fs", "ls", "home"]);
    let _other_node = other.start();
    other.set_vault(&kms);
    let refused = other.coffer(&["fs", "ls", "home"]);
    assert_ne!(refused.code, 0, "{refused:?}");
    other.fails(5, &["fs", "delete", "home", "--yes"]);
    place.ok(&["fs", "ls", "home"]);
}

#[test]
fn a_local_key_goes_with_the_last_filesystem_that_needs_it() {
    let place = Place::new();
    let _node = place.start();
    let local_keys = || {
        let names = fs::read_dir(place.state()).unwrap().map(|e| e.unwrap().file_name());
        names.filter(|name| name.to_string_lossy().starts_with("local-")).count()
    };
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "create", "projects", "--allow-no-kms"]);
    place.ok(&["fs", "delete", "home", "--yes"]);
    assert_eq!(local_keys(), 1);
    place.ok(&["fs", "delete", "projects", "--yes"]);
    assert_eq!(local_keys(), 0);
}

#[test]
fn a_store_that_is_emptied_damaged_or_older_is_refused_and_rebuilt() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let source = place.path("source");
    tree::small_files(&source, 30).unwrap();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    let older = place.copy();
    let node = place.start();
    place.ok(&["fs", "create", "second"]);
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    node.stop();

    type Damage<'a> = &'a dyn Fn(&Path);
    let damages: [(&str, Damage<'_>); 5] = [
        ("emptied", &|store| {
            for file in files(store) {
                fs::write(file, b"").unwrap();
            }
        }),
        ("cut", &|store| {
            let file = largest(store);
            let len = fs::metadata(&file).unwrap().len();
            fs::File::options().write(true).open(file).unwrap().set_len(len / 50).unwrap();
        }),
        ("removed", &|store| fs::remove_file(largest(store)).unwrap()),
        ("gone", &|store| fs::remove_dir_all(store).unwrap()),
        // sled's files alone: what was acknowledged since is missing, and the file beside them knows.
        ("older", &|store| put_back(&older.state().join("store/sled"), &store.join("sled"))),
    ];
    for (what, damage) in damages {
        let hurt = place.copy();
        damage(&hurt.state().join("store"));
        let state = hurt.state();
        let refused = hurt.serve_refused();
        assert!([5, 6].contains(&refused.code), "{what}: {refused:?}");
        assert!(refused.stderr.contains("coffer recover"), "{what}: {refused:?}");

        let target = hurt.path("target");
        let from = state.join("filesystems");
        hurt.ok(&[
            "recover",
            "--from",
            from.to_str().unwrap(),
            "--state-dir",
            state.to_str().unwrap(),
        ]);
        let node = hurt.start();
        hurt.set_vault(&kms);
        // Whoever set the KMS goes on at once.
        for name in ["home", "second"] {
            assert_eq!(hurt.json(&["fs", "show", name])["state"], "unlocked", "{what}");
        }
        hurt.ok(&["fs", "export", "home", target.to_str().unwrap()]);
        assert_same_files(&source, &target);
        node.stop();
    }
}

#[test]
fn a_whole_older_state_directory_is_noticed() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let backing = place.path("backing");
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home", "--backing", backing.to_str().unwrap()]);
    node.stop();
    let older = place.copy();
    let node = place.start();
    kms.rotate();
    place.ok(&["fs", "kms", "rewrap"]);
    node.stop();
    fs::remove_dir_all(place.state()).unwrap();
    let copied = Command::new("cp").arg("-a").arg(older.state()).arg(place.state()).status();
    assert!(copied.unwrap().success());
    let _node = place.start();
    let shown = place.wait_for_state("home", "locked");
    assert!(shown["problem"].to_string().contains("older store"), "{shown}");
}

#[test]
fn after_a_kill_an_emptied_or_older_store_is_refused_too() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let older = place.copy();
    place.ok(&["fs", "create", "later", "--allow-no-kms"]);
    place.ok(&["fs", "delete", "home", "--yes"]);
    node.kill();

    type Damage<'a> = &'a dyn Fn(&Path);
    let emptied = |state: &Path| files(&state.join("store")).iter().for_each(|file| remove(file));
    let unknown = |state: &Path| remove(&state.join("generation"));
    let damages: [(&str, Damage<'_>); 6] = [
        ("emptied", &emptied),
        ("emptied, and nothing tells how far it was", &|state| {
            remove(&state.join("store"));
            fs::create_dir(state.join("store")).unwrap();
            unknown(state);
        }),
        ("gone", &|state| remove(&state.join("store"))),
        ("gone, and nothing tells how far it was", &|state| {
            remove(&state.join("store"));
            unknown(state);
        }),
        ("nothing tells how far it was", &unknown),
        ("older", &|state| put_back(&older.state().join("store"), &state.join("store"))),
    ];
    for (what, damage) in damages {
        let hurt = place.copy();
        let state = hurt.state();
        damage(&state);
        for _ in ["the first start", "another one"] {
            let refused = hurt.serve_refused().expect(6);
            assert!(refused.stderr.contains("coffer recover"), "{what}: {refused:?}");
        }
        let from = state.join("filesystems");
        hurt.ok(&["recover", "--from", text(&from), "--state-dir", text(&state)]);
        let _node = hurt.start();
        hurt.wait_for_state("later", "unlocked");
        assert_eq!(names(&hurt), ["later"], "{what}");
    }
    let _node = place.start();
    assert_eq!(names(&place), ["later"]);
}

#[test]
fn a_node_whose_store_failed_half_way_ends_and_the_next_one_reads_back() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    // A directory in its place: the records of a commit get down, and that it happened can't be written.
    let (file, aside) = (place.state().join("store/generation"), place.path("aside"));
    fs::rename(&file, &aside).unwrap();
    fs::create_dir(&file).unwrap();
    let refused = place.fails(1, &["fs", "create", "other", "--allow-no-kms"]);
    assert!(refused.contains("can't be told") && refused.contains("start it again"), "{refused}");
    assert_eq!(node.ended(), 1);
    let log = place.log();
    assert!(log.contains("ERROR") && log.contains("failed half-way"), "{log}");

    fs::remove_dir(&file).unwrap();
    fs::rename(&aside, &file).unwrap();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    if !names(&place).contains(&"other".to_owned()) {
        place.ok(&["fs", "create", "other", "--allow-no-kms"]);
    }
    place.ok(&["fs", "ls", "other"]);
}

#[test]
fn an_emptied_store_does_not_tell_recover_what_was_there() {
    let place = Place::new();
    let node = place.start();
    for name in ["home", "projects"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    node.kill();
    let state = place.state();
    files(&state.join("store")).iter().for_each(|file| remove(file));
    let home = state.join("filesystems/home");
    let recover = ["recover", "--from", text(&home), "--state-dir", text(&state)];
    let partly = place.coffer(&recover).expect(8);
    assert!(partly.stdout.contains("not recovered: projects in"), "{partly:?}");
}

#[test]
fn a_filesystem_that_the_store_does_not_know_is_named() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    node.stop();
    let older = place.copy();
    let node = place.start();
    place.ok(&["fs", "create", "later", "--allow-no-kms"]);
    node.kill();
    // All but the backing directories.
    let state = place.state();
    for name in ["store", "generation"] {
        put_back(&older.state().join(name), &state.join(name));
    }
    let node = place.start();
    let finding = place.wait_for_finding("unknown-filesystem");
    let what = finding["what"].as_str().unwrap();
    assert!(what.contains("later") && what.contains("filesystems/later"), "{finding}");
    assert!(finding["cure"].as_str().unwrap().contains("coffer recover"), "{finding}");
    node.stop();
    let both = state.join("filesystems");
    place.ok(&["recover", "--from", text(&both), "--state-dir", text(&state)]);
    let _node = place.start();
    place.wait_for_state("later", "unlocked");
    let status = place.json(&["status"]);
    assert!(!status["findings"].to_string().contains("unknown-filesystem"), "{status}");
}

fn remove(path: &Path) {
    if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
}

/// Puts a copy in the place of what is there.
fn put_back(copy: &Path, path: &Path) {
    remove(path);
    let copied = Command::new("cp").arg("-a").args([copy, path]).status();
    assert!(copied.unwrap().success());
}

fn names(place: &Place) -> Vec<String> {
    let list = place.json(&["fs", "list"]);
    let all = list["filesystems"].as_array().unwrap().iter();
    all.map(|fs| fs["name"].as_str().unwrap().to_owned()).collect()
}

/// Without access times: the copies that this test makes of backing directories read, and so touch, the originals.
fn assert_same_files(left: &Path, right: &Path) {
    let diff = std::process::Command::new("diff").arg("-r").args([left, right]).output().unwrap();
    assert!(diff.status.success(), "{}", String::from_utf8_lossy(&diff.stdout));
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(files(&path)) } else { found.push(path) }
    }
    found
}

fn largest(dir: &Path) -> PathBuf {
    files(dir).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len()).unwrap()
}

#[test]
fn recover_says_what_it_does_not_find_again() {
    let place = Place::new();
    let node = place.start();
    for name in ["home", "projects"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    node.stop();
    let (state, both) = (place.state(), place.state().join("filesystems"));
    let recover = |place: &Place, from: &Path| {
        place.coffer(&["recover", "--from", text(from), "--state-dir", text(&place.state())])
    };
    let partly = recover(&place, &both.join("home")).expect(8);
    assert!(partly.stdout.contains("recovered home in"), "{partly:?}");
    let not_recovered = format!("not recovered: projects in {}", text(&both.join("projects")));
    assert!(partly.stdout.contains(&not_recovered), "{partly:?}");
    assert!(!partly.stderr.contains("could not be read"), "{partly:?}");
    assert!(partly.stderr.contains("name the others with --from too"), "{partly:?}");
    // What one that was killed left is in nobody's way.
    fs::create_dir(state.join("store.new")).unwrap();
    fs::write(state.join("store.new/generation"), "half").unwrap();
    recover(&place, &both).expect(0);

    // What is recovered from its new place is not missed at the old one.
    let moved = place.path("moved");
    fs::rename(&both, &moved).unwrap();
    recover(&place, &moved).expect(0);
    fs::rename(&moved, &both).unwrap();
    recover(&place, &both).expect(0);

    // A store that does not tell what it had: then what lies in the usual place is told.
    let largest = largest(&state.join("store"));
    fs::write(largest, b"").unwrap();
    let partly = recover(&place, &both.join("home")).expect(8);
    assert!(partly.stdout.contains("that store can't be read"), "{partly:?}");
    assert!(partly.stdout.contains(&not_recovered), "{partly:?}");
}

#[test]
fn after_a_recover_the_kms_refuses_until_it_has_its_token() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    node.stop();
    let (state, from) = (place.state(), place.state().join("filesystems"));
    place.ok(&["recover", "--from", text(&from), "--state-dir", text(&state)]);
    let _node = place.start();
    for args in [&["fs", "create", "new"][..], &["fs", "kms", "rewrap"], &["fs", "kms", "check"]] {
        let refused = place.fails(4, args);
        assert!(refused.contains("no token") && refused.contains("set-vault"), "{refused}");
    }
    let shown = place.wait_for_state("home", "locked");
    assert_eq!(shown["problem"]["code"], "kms-denied", "{shown}");
    place.set_vault(&kms);
    place.ok(&["fs", "create", "new"]);
    let recovered = place.ok(&["audit", "show", "--action", "store.recover"]);
    assert!(recovered.contains("found in backing directories: 1"), "{recovered}");
    place.ok(&["audit", "verify"]);
}

#[test]
fn a_local_key_that_was_there_before_a_recover_stays() {
    let kms = Kms::start(Kind::Embedded);
    let place = Place::new();
    let node = place.start();
    for name in ["home", "projects"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    place.ok(&["fs", "delete", "projects", "--forget", "--yes"]);
    node.stop();
    let (state, both) = (place.state(), place.state().join("filesystems"));
    let home = ["recover", "--from", text(&both.join("home")), "--state-dir", text(&state)]
        .map(str::to_owned);
    let said = place.ok(&home);
    let local_key = fs::read_dir(&state).unwrap().map(|entry| entry.unwrap().path());
    let local_key = local_key.into_iter().find(|path| text(path).ends_with(".key")).unwrap();
    assert!(said.contains(&format!("{} stays", text(&local_key))), "{said}");
    let node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "kms", "rewrap"]);
    assert!(local_key.exists());
    node.stop();
    place.ok(&["recover", "--from", text(&both), "--state-dir", text(&state)]);
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "ls", "projects"]);
    assert!(local_key.exists());
}

#[test]
fn filesystems_of_several_nodes_and_master_keys_of_one_vault_are_opened_together() {
    const OTHER: &str = "other-key";
    for (kind, first) in [(Kind::Oldest, KEY), (Kind::Newest, OTHER)] {
        let kms = Kms::start(kind);
        kms.admin().write(&format!("transit/keys/{OTHER}"), &serde_json::json!({}));
        let new = Place::new();
        let token = new.path("token");
        fs::write(&token, kms.token_for(&format!("{}{}", policy(KEY), policy(OTHER)))).unwrap();
        let set = |place: &Place, key: &str| {
            place.ok(&["fs", "kms", "set-vault", kms.url(), key, "--token-file", text(&token)])
        };
        for (name, key) in [("a", KEY), ("b", KEY), ("c", OTHER)] {
            let place = Place::new();
            let node = place.start();
            set(&place, key);
            let backing = new.path(&format!("backing-{name}"));
            place.ok(&["fs", "create", name, "--backing", text(&backing)]);
            node.stop();
        }
        let mut recover = vec!["recover".to_owned()];
        for name in ["a", "b", "c"] {
            recover.extend([
                "--from".to_owned(),
                text(&new.path(&format!("backing-{name}"))).to_owned(),
            ]);
        }
        recover.extend(["--state-dir".to_owned(), text(&new.state()).to_owned()]);
        let said = new.ok(&recover);
        assert_eq!(said.matches(kms.url()).count(), 2, "each master key once: {said}");
        let _node = new.start();
        set(&new, first);
        for name in ["a", "b", "c"] {
            assert_eq!(new.json(&["fs", "show", name])["state"], "unlocked", "{name}");
        }
        let keys = &new.json(&["fs", "kms"])["keys"];
        assert_eq!(keys.as_array().unwrap().len(), 1, "{keys}");
        assert_eq!((&keys[0]["master_key"], &keys[0]["keys"]), (&first.into(), &3.into()));
    }
}

#[test]
fn the_usual_limit_of_open_files_is_no_limit_of_filesystems() {
    let place = Place::new();
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    node.stop();
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    let pid = node.pid().to_string();
    // Enough for a request, and for no filesystem.
    let few = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + 4;
    let limited =
        Command::new("prlimit").args(["--pid", &pid, &format!("--nofile={few}:")]).status();
    assert!(limited.unwrap().success());
    place.ok(&["fs", "ls", "home"]);
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[test]
fn more_filesystems_than_open_files_are_used_one_after_the_other() {
    let place = Place::new();
    let node = place.start();
    let limit = ["--pid", &node.pid().to_string(), "--nofile=96"];
    assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    // Each has six files while it is open.
    let names: Vec<String> = (0..20).map(|n| format!("fs-{n}")).collect();
    for name in &names {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    for name in &names {
        place.ok(&["fs", "ls", name]);
    }
}

#[test]
fn a_creation_that_runs_out_of_open_files_leaves_nothing() {
    let place = Place::new();
    let node = place.start();
    let pid = node.pid().to_string();
    let limit = |files: usize| {
        let limit = ["--pid", &pid, &format!("--nofile={files}:")];
        assert!(Command::new("prlimit").args(limit).status().unwrap().success());
    };
    let filesystems = place.state().join("filesystems");
    let mut failed = 0;
    for more in 2..12 {
        limit(fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() + more);
        let made = place.coffer(&["fs", "create", "home", "--allow-no-kms"]);
        limit(1024);
        failed += usize::from(made.code != 0);
        let listed = place.json(&["fs", "list"]);
        if listed["filesystems"] != serde_json::json!([]) {
            place.ok(&["fs", "delete", "home", "--yes"]);
        }
        assert_eq!(fs::read_dir(&filesystems).unwrap().count(), 0, "{more}: {made:?}");
    }
    assert!(failed > 2, "{failed}");
}

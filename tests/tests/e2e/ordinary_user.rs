//! A node whose user is not root. (As root, the tests run it as nobody.)

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use testkit::tree;

#[test]
fn does_the_main_job_and_names_what_it_may_not_read() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::of_ordinary_user());
    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 50).unwrap();
    std::os::unix::fs::symlink("no such thing", source.join("link")).unwrap();
    fs::write(source.join("one name"), b"of two").unwrap();
    fs::hard_link(source.join("one name"), source.join("another name")).unwrap();
    fs::create_dir(source.join("read-only")).unwrap();
    fs::write(source.join("read-only/file"), b"that stays").unwrap();
    place.hand_over(&source);
    fs::set_permissions(source.join("read-only"), PermissionsExt::from_mode(0o555)).unwrap();
    let unreadable = source.join("unreadable");
    fs::write(&unreadable, b"of another user").unwrap();
    fs::set_permissions(&unreadable, PermissionsExt::from_mode(0o000)).unwrap();

    let node = place.start();
    let token = kms.token();
    place.ok(&["fs", "kms", "set-vault", kms.url(), coffer_tests::kms::KEY, &token]);
    place.ok(&["fs", "create", "home"]);
    assert_ne!(fs::metadata(place.state()).unwrap().uid(), 0, "the node runs as root");
    let import = ["fs", "import", "home", source.to_str().unwrap()];
    let partly = place.coffer(&import).expect(8);
    let said = format!("{}{}", partly.stdout, partly.stderr);
    assert!(said.contains("unreadable") && said.contains("ermission"), "{said}");
    fs::remove_file(&unreadable).unwrap();
    place.ok(&import);
    node.stop();

    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
    place.ok(&["fs", "export", "home", target.to_str().unwrap()]);
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    place.ok(&["fs", "delete", "home", "--yes"]);
    assert_eq!(fs::read_dir(place.state().join("filesystems")).unwrap().count(), 0);
}

#[test]
fn keeps_the_devices_that_only_root_can_make_and_owns_the_rest() {
    let place = Place::of_ordinary_user();
    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 3).unwrap();
    place.hand_over(&source);
    let (device, other) = (source.join("device"), source.join("of-another"));
    let all_read = Mode::from_bits_truncate(0o644);
    mknod(&device, SFlag::S_IFCHR, all_read, makedev(1, 3))
        .expect("this test makes a device, so it runs as root");
    fs::write(&other, b"of one who lets all read").unwrap();
    chown(&other, Some(1234), Some(1234)).unwrap();
    fs::set_permissions(&other, PermissionsExt::from_mode(0o644)).unwrap();

    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let said = place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    assert!(said.contains("owners: not kept for 2 items; only a node that runs as root"), "{said}");
    let again = place.json(&["fs", "import", "home", source.to_str().unwrap()]);
    assert_eq!((&again["state"], &again["owners_lost"]), (&"done".into(), &2.into()), "{again}");
    assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done");
    let partly = place.coffer(&["fs", "export", "home", target.to_str().unwrap()]).expect(8);
    let said = format!("{}{}", partly.stdout, partly.stderr);
    assert!(said.contains("device: can't be made (a device needs root)"), "{said}");
    let found = tree::differences(&source, &target).unwrap();
    let [missing, owner] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(missing, "device: missing");
    assert!(owner.starts_with("of-another: "), "{owner}");
    let node = fs::metadata(place.state()).unwrap().uid();
    assert_eq!(fs::metadata(target.join("of-another")).unwrap().uid(), node);
}

/// Root reads every file, so the fault matrix puts a directory in its place.
#[test]
fn a_token_file_that_may_not_be_read_keeps_the_filesystems_locked_until_it_may() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::of_ordinary_user());
    let token = place.path("token");
    fs::write(&token, kms.token()).unwrap();
    place.hand_over(&token);
    let mode = |mode| fs::set_permissions(&token, PermissionsExt::from_mode(mode)).unwrap();
    let node = place.start();
    let file = ["--token-file", token.to_str().unwrap(), "--watch-token-file"];
    let set = ["fs", "kms", "set-vault", kms.url(), coffer_tests::kms::KEY];
    place.ok(&[&set[..], &file[..]].concat());
    place.ok(&["fs", "create", "home"]);
    mode(0o000);
    // The last one that was read goes on.
    place.ok(&["fs", "create", "more"]);
    node.stop();
    let _node = place.start();
    let shown = place.wait_for_problem("home", "credential-missing").to_string();
    assert!(shown.contains("no token can be read") && shown.contains("ermission"), "{shown}");
    mode(0o600);
    place.wait_for_state("home", "unlocked");
}

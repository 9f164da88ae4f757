//! The list of filesystems, one of them, and what is done with it.

use std::fs;

use coffer_tests::kms::{Kind, Kms};
use coffer_tests::node::Place;
use testkit::tree;

use crate::console::Console;

#[test]
fn a_filesystem_is_made_and_what_is_wrong_stands_beside_its_field() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    let console = Console::open(&place);
    console.press("Filesystems");
    console.sees("There is no filesystem yet.");
    console.press("Create filesystem");
    assert_eq!(console.dialog().as_deref(), Some("Create filesystem"));
    console.fill("Name", "home");
    console.press("Create");
    console.sees("home is made; its key is wrapped by coffer-key v1");
    console.sees("unlocked");
    assert!(console.url().ends_with("/filesystems/home"));
    console.press("All filesystems");
    console.sees("coffer-key v1");

    console.press("Create filesystem");
    console.fill("Name", "home");
    console.press("More");
    console.fill("Key name", "coffer-key");
    console.press("Create");
    let wrong = console.wrong("Name");
    assert!(wrong.contains("home") && wrong.contains("take another name"), "{wrong}");
    assert_eq!(console.focused(), "Name");
    assert_eq!(console.value("Key name"), "coffer-key", "what was typed is kept");

    for name in ["a/b", "..", "with space", "<b>", &"x".repeat(65)] {
        console.fill("Name", name);
        console.press("Create");
        console.wrong("Name");
        assert_eq!(console.value("Name"), name);
    }
    console.fill("Name", "own");
    console.fill("Key name", "no-such-key");
    console.press("Create");
    assert!(console.wrong("Key name").contains("no-such-key"));
    console.fill("Key name", "");
    console.fill("Backing directory", "relative");
    console.press("Create");
    assert!(console.wrong("Backing directory").contains("absolute"));
    let backing = place.path("backing");
    console.fill("Backing directory", backing.to_str().unwrap());
    console.press("Create");
    console.sees("own is made");
    console.sees(backing.to_str().unwrap());
    assert!(backing.join("coffer.key").is_file());
}

#[test]
fn without_a_kms_a_filesystem_is_made_only_knowingly() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.page("/filesystems");
    console.press("Create filesystem");
    console.sees("No KMS is set");
    console.fill("Name", "home");
    console.press("Create");
    let wrong = console.wrong("Make it without a KMS all the same");
    assert!(wrong.contains("no KMS is configured"), "{wrong}");
    assert_eq!(console.value("Name"), "home");
    console.tick("Make it without a KMS all the same");
    console.press("Create");
    console.sees("home is made; its key is wrapped by a local key");
    console.sees("exposed");
}

/// A page that says itself that there is no such thing is an answer.
#[test]
fn what_is_not_there_is_told_and_the_node_is_not_said_to_be_away() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    console.page("/filesystems/nobody");
    console.sees("there is no filesystem nobody");
    // It renews itself, as each page does.
    place.ok(&["fs", "create", "other", "--allow-no-kms"]);
    std::thread::sleep(std::time::Duration::from_secs(3));
    assert!(!console.text().contains("No connection"), "{}", console.text());
}

#[test]
fn a_refused_creation_leaves_the_search_as_it_was() {
    let place = Place::new();
    let _node = place.start();
    for name in ["home", "work"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    let console = Console::open(&place);
    console.page("/filesystems?search=wor");
    console.press("Create filesystem");
    console.fill("Name", "a/b");
    console.press("Create");
    console.wrong("Name");
    assert!(console.url().ends_with("/filesystems?search=wor"), "{}", console.url());
    console.press("Cancel");
    assert_eq!(console.value("Name contains"), "wor");
    assert_eq!(console.count("tbody tr"), 1);
}

#[test]
fn a_filesystem_is_locked_and_unlocked() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Lock");
    assert_eq!(console.dialog().as_deref(), Some("Lock home"));
    console.press("Cancel");
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "unlocked");
    console.press("Lock");
    console.press("Lock");
    console.sees("home is locked");
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "locked");
    assert!(!console.offers("Verify") && !console.offers("Import"));
    // On the overview, too, with the way there.
    console.press("Overview");
    console.sees("1 filesystem locked");
    console.press("see which, and why");
    console.press("home");
    console.press("Unlock");
    console.sees("home is unlocked");
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "unlocked");
}

#[test]
fn files_go_in_and_out_and_are_verified_and_re_encrypted() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let (source, target) = (place.path("source"), place.path("target"));
    tree::small_files(&source, 100).unwrap();
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let key = place.json(&["fs", "show", "home"])["key_id"].clone();
    let console = Console::open(&place);
    console.page("/filesystems/home");

    console.press("Import");
    console.fill("Directory", "relative");
    console.press("Import");
    assert!(console.wrong("Directory").contains("absolute"));
    console.fill("Directory", source.to_str().unwrap());
    console.press("Import");
    console.sees("the import has begun");
    console.sees("import of home is done");

    console.press("Verify");
    console.press("Verify");
    console.sees("the verification has begun");
    console.sees("verification of home is done");

    kms.rotate();
    console.press("Rewrap key");
    console.sees("rewrap of home is done");
    console.sees("coffer-key v2");

    console.press("Re-encrypt");
    console.press("Re-encrypt");
    console.sees("has begun");
    console.sees("re-encryption of home is done");
    assert_ne!(place.json(&["fs", "show", "home"])["key_id"], key);

    console.press("Export");
    console.sees("readable by whoever can read that directory");
    console.fill("Directory", target.to_str().unwrap());
    console.press("Export");
    console.sees("the export has begun");
    console.sees("export of home is done");
    assert_eq!(tree::differences(&source, &target).unwrap(), Vec::<String>::new());
    // Into a directory that is full nothing is exported.
    fs::write(place.path("full"), "").unwrap();
    console.press("Export");
    console.fill("Directory", place.path("full").to_str().unwrap());
    console.press("Export");
    console.sees("Do:");
}

#[test]
fn what_verify_finds_damaged_is_named() {
    let place = Place::new();
    let source = place.path("source");
    tree::small_files(&source, 3).unwrap();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    let root = place.state().join("filesystems/home/root");
    let damaged = walk(&root).into_iter().max_by_key(|path| fs::metadata(path).unwrap().len());
    let damaged = damaged.unwrap();
    let bytes = fs::read(&damaged).unwrap();
    fs::write(&damaged, &bytes[..bytes.len() - 1]).unwrap();
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Verify");
    console.press("Verify");
    console.sees("verification of home is partly done");
    console.press("verification of home");
    console.sees("What could not be done");
    console.sees(damaged.file_name().unwrap().to_str().unwrap());

    // What is set aside shuts nothing out any more.
    console.page("/filesystems/home");
    console.press("Verify");
    console.tick("Set aside what can't be read, so that the rest can be used");
    console.press("Verify");
    console.sees("the verification has begun");
    place.until("it has ended", || place.json(&["job", "list"])["jobs"][0]["ended_at"].is_u64());
    console.press("Verify");
    console.press("Verify");
    console.sees("verification of home is done");
}

#[test]
fn what_lies_in_a_filesystem_is_looked_through() {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir_all(source.join("a directory/below")).unwrap();
    fs::write(source.join("a directory/below/deep & <b>bold.txt"), "1234567").unwrap();
    std::os::unix::fs::symlink("elsewhere", source.join("link")).unwrap();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Files");
    console.sees("It is empty.");
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    console.reload();
    console.sees("link → elsewhere");
    console.press("a directory");
    console.press("below");
    console.sees("deep & <b>bold.txt");
    console.sees("7 B");
    console.press("Up");
    console.press("Up");
    console.sees("link → elsewhere");
    place.ok(&["fs", "lock", "home"]);
    console.reload();
    console.sees("Do:");
}

fn walk(dir: &std::path::Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    entries.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

#[test]
fn a_filesystem_is_deleted_by_typing_its_name() {
    let (kms, place) = (Kms::start(Kind::Embedded), Place::new());
    let _node = place.start();
    place.set_vault(&kms);
    place.ok(&["fs", "create", "home"]);
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Delete");
    assert_eq!(console.dialog().as_deref(), Some("Delete home"));
    console.fill("Type home to delete it", "hom");
    console.press("Delete");
    let wrong = console.wrong("Type home to delete it");
    assert!(wrong.contains("another name was typed") && wrong.contains("type home"), "{wrong}");
    assert_eq!(console.value("Type home to delete it"), "hom");
    assert_eq!(place.json(&["fs", "show", "home"])["state"], "unlocked");
    console.fill("Type home to delete it", "home");
    console.press("Delete");
    console.sees("home is deleted");
    console.sees("There is no filesystem yet.");
    place.coffer(&["fs", "show", "home"]).expect(5);
}

#[test]
fn a_filesystem_that_is_only_forgotten_leaves_what_lies_there() {
    let place = Place::new();
    let backing = place.path("backing");
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms", "--backing", backing.to_str().unwrap()]);
    let console = Console::open(&place);
    console.page("/filesystems/home");
    console.press("Delete");
    console.fill("Type home to delete it", "home");
    console.tick("Only forget it: its record goes, and what lies in the backing directory stays");
    console.press("Delete");
    console.sees("home is forgotten");
    console.sees("There is no filesystem yet.");
    assert!(backing.join("coffer.key").is_file());
}

#[test]
fn the_list_is_searched_and_renews_itself() {
    let place = Place::new();
    let _node = place.start();
    for name in ["home", "homework", "projects"] {
        place.ok(&["fs", "create", name, "--allow-no-kms"]);
    }
    place.ok(&["fs", "lock", "homework"]);
    let console = Console::open(&place);
    console.page("/filesystems");
    assert_eq!(console.count("tbody tr"), 3);
    console.fill("Name contains", "home");
    console.press("Search");
    console.until("two", || (console.count("tbody tr") == 2).then_some(()));
    assert_eq!(console.value("Name contains"), "home");
    console.choose("State", "locked");
    console.press("Search");
    console.until("one", || (console.count("tbody tr") == 1).then_some(()));
    assert!(console.text().contains("homework"));
    console.fill("Name contains", "x");
    console.press("Search");
    console.sees("None fits.");

    // What somebody else does is seen without a reload, and what is being typed stays.
    console.page("/filesystems");
    console.fill("Name contains", "half typ");
    console.marks();
    place.ok(&["fs", "create", "new", "--allow-no-kms"]);
    console.until("four", || (console.count("tbody tr") == 4).then_some(()));
    place.ok(&["fs", "unlock", "homework"]);
    console.until("none is locked", || (console.count("tbody .mark.bad") == 4).then_some(()));
    assert!(console.is_marked());
    assert_eq!(console.value("Name contains"), "half typ");
    assert_eq!(console.focused(), "Name contains");
}

#[test]
fn a_filesystem_that_is_not_there_is_told_with_the_way_on() {
    let place = Place::new();
    let _node = place.start();
    let console = Console::open(&place);
    for path in ["/filesystems/none", "/jobs/none", "/nowhere", "/filesystems/a%2Fb"] {
        console.page(path);
        console.sees("Do:");
        assert!(console.offers("Filesystems"), "the sidebar is there");
    }
}

/// What has the focus is what was shown, also if the list has grown meanwhile.
#[test]
fn a_row_that_has_the_focus_keeps_it_when_another_comes_before_it() {
    let place = Place::new();
    let _node = place.start();
    place.ok(&["fs", "create", "b", "--allow-no-kms"]);
    let console = Console::open(&place);
    console.page("/filesystems");
    console.script("document.querySelector('tbody a').focus()");
    assert_eq!(console.focused(), "b");
    place.ok(&["fs", "create", "a", "--allow-no-kms"]);
    place.ok(&["fs", "create", "c", "--allow-no-kms"]);
    console.until("all three", || (console.count("tbody tr") == 3).then_some(()));
    assert_eq!(console.focused(), "b");
    place.ok(&["fs", "delete", "b", "--yes"]);
    console.until("two", || (console.count("tbody tr") == 2).then_some(()));
    assert_ne!(console.focused(), "c", "nothing takes the place of what is gone");
    assert_ne!(console.focused(), "a");
}

//! Damage on disk: found, named with its ciphertext path, gone past, set aside.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use coffer_tests::node::Place;
use rustix::fs::{XattrFlags, lgetxattr, llistxattr, lsetxattr};
use serde_json::Value;
use testkit::tree;

/// Damages its first file; the second is another one of the same filesystem.
type Hurt<'a> = &'a dyn Fn(&Path, &Path);

/// A filesystem with a few files, the node stopped.
fn prepared() -> Place {
    let place = Place::new();
    let source = place.path("source");
    fs::create_dir(&source).unwrap();
    for (name, seed) in [("one", 1), ("two", 2), ("three", 3)] {
        fs::write(source.join(name), tree::noise(seed, 700_000 + seed as usize)).unwrap();
    }
    let node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    node.stop();
    place
}

fn ciphertexts(place: &Place) -> Vec<PathBuf> {
    let root = place.state().join("filesystems/home/root");
    let mut files: Vec<_> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.is_file() && fs::metadata(p).unwrap().len() > 100_000)
        .collect();
    files.sort();
    assert_eq!(files.len(), 3);
    files
}

#[test]
fn each_kind_of_damage_is_named_and_gone_past() {
    let place = prepared();
    let whole = place.copy();
    let kinds: [(&str, Hurt<'_>); 8] = [
        ("a flipped byte", &|file, _| flip(file, 300_001)),
        ("a flipped byte in the header", &|file, _| flip(file, 20)),
        ("two blocks swapped", &|file, _| {
            let (a, b) = (read(file, 20 * 4096), read(file, 21 * 4096));
            write(file, 20 * 4096, &b);
            write(file, 21 * 4096, &a);
        }),
        ("cut short", &|file, _| resize(file, |len| len - 4097)),
        ("extended", &|file, _| resize(file, |len| len + 4096)),
        ("a block zeroed", &|file, _| write(file, 30 * 4096, &[0; 4096])),
        ("a group zeroed", &|file, _| write(file, 70 * 4096, &[0; 66 * 4096])),
        ("a block of another file", &|file, other| {
            let block = read(other, 30 * 4096);
            write(file, 30 * 4096, &block);
        }),
    ];
    for (what, hurt) in kinds {
        place.restore(&whole);
        let files = ciphertexts(&place);
        hurt(&files[0], &files[1]);

        let node = place.start();
        place.wait_for_state("home", "unlocked");
        let found = place.coffer(&["fs", "verify", "home", "--json"]);
        assert_eq!(found.code, 6, "{what}: {found:?}");
        let job: Value = serde_json::from_str(&found.stdout).unwrap();
        let damage = job["damage"].as_array().unwrap();
        assert!(!damage.is_empty(), "{what}: {job}");
        let named = files[0].file_name().unwrap().to_str().unwrap();
        assert!(
            damage.iter().all(|d| d["ciphertext"].to_string().contains(named)),
            "{what}: {job}"
        );

        // The other files come out, the damaged one is reported and not made up.
        let target = place.path("target");
        let exported = place.coffer(&["fs", "export", "home", target.to_str().unwrap()]);
        assert_eq!(exported.code, 6, "{what}: {exported:?}");
        let came: Vec<_> =
            ["one", "two", "three"].into_iter().filter(|name| target.join(name).exists()).collect();
        assert_eq!(came.len(), 2, "{what}: {came:?}");
        for name in came {
            let source = whole.path("source").join(name);
            assert!(fs::read(source).unwrap() == fs::read(target.join(name)).unwrap(), "{what}");
        }

        // Repaired, it is set aside with all its bytes, and the rest verifies.
        let hurt_bytes = fs::read(&files[0]).unwrap();
        let repaired = place.coffer(&["fs", "verify", "home", "--repair", "--json"]);
        // It tells what it found.
        assert_eq!(repaired.code, 6, "{what}: {repaired:?}");
        assert!(!files[0].exists(), "{what}");
        let lost = all_files(&place.state().join("filesystems/home/coffer.lost"));
        assert!(lost.iter().any(|f| fs::read(f).unwrap() == hurt_bytes), "{what}: {lost:?}");
        assert_eq!(place.json(&["fs", "verify", "home"])["state"], "done", "{what}");
        node.stop();
    }
}

#[test]
fn a_file_of_another_filesystem_is_refused() {
    let place = prepared();
    let node = place.start();
    place.wait_for_state("home", "unlocked");
    place.ok(&["fs", "create", "other", "--allow-no-kms"]);
    place.ok(&["fs", "import", "other", place.path("source").to_str().unwrap()]);
    node.stop();
    let stranger = fs::read_dir(place.state().join("filesystems/other/root"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.is_file() && fs::metadata(p).unwrap().len() > 100_000)
        .unwrap();
    let victim = &ciphertexts(&place)[0];
    fs::copy(stranger, victim).unwrap();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    let found = place.coffer(&["fs", "verify", "home", "--json"]);
    assert_eq!(found.code, 6, "{found:?}");
    assert!(found.stdout.contains(victim.file_name().unwrap().to_str().unwrap()), "{found:?}");
}

#[test]
fn a_damaged_attribute_is_damage_and_costs_nothing_else() {
    let place = Place::new();
    let (source, target) = (place.path("source"), place.path("target"));
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    let flags = XattrFlags::empty();
    lsetxattr(source.join("file"), "user.note", b"sealed", flags).unwrap();
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms"]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    let files = all_files(&place.state().join("filesystems/home/root"));
    let sealed = files.iter().find(|file| !file.ends_with("coffer.dir")).unwrap();
    let (mut names, mut value) = ([0; 100], [0; 100]);
    let names_len = llistxattr(sealed, &mut names[..]).unwrap();
    let name = std::str::from_utf8(&names[..names_len]).unwrap().trim_end_matches('\0').to_owned();
    let len = lgetxattr(sealed, &name, &mut value[..]).unwrap();
    value[len - 1] ^= 0x40;
    lsetxattr(sealed, &name, &value[..len], flags).unwrap();

    place.fails(6, &["fs", "verify", "home"]);
    let exported = place.coffer(&["fs", "export", "home", target.to_str().unwrap()]).expect(6);
    assert!(exported.stdout.contains(&name), "{exported:?}");
    assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "content");
    place.fails(6, &["fs", "verify", "home", "--repair"]);
    place.ok(&["fs", "verify", "home"]);
}

#[test]
fn what_is_written_again_has_not_to_be_brought_back() {
    let place = prepared();
    // In one of the two copies of what the header seals.
    flip(&ciphertexts(&place)[0], 190);
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    for command in [&["fs", "verify", "home"][..], &["fs", "verify", "home", "--repair"]] {
        let said = place.fails(6, command);
        assert!(said.contains("nothing is lost") && !said.contains("from a copy"), "{said}");
    }
    place.ok(&["fs", "verify", "home"]);
}

#[test]
fn what_something_else_put_there_is_named_and_no_reason_to_fail() {
    let place = prepared();
    fs::write(place.state().join("filesystems/home/root/.nfs0001"), "of another program").unwrap();
    let _node = place.start();
    place.wait_for_state("home", "unlocked");
    let target = place.path("target");
    for command in [
        &["fs", "verify", "home"][..],
        &["fs", "export", "home", target.to_str().unwrap()],
        &["fs", "ls", "home"],
    ] {
        let ran = place.coffer(command).expect(0);
        assert!((ran.stdout.clone() + &ran.stderr).contains(".nfs0001"), "{ran:?}");
    }
}

fn flip(file: &Path, at: u64) {
    let mut byte = [0];
    let handle = fs::File::options().read(true).write(true).open(file).unwrap();
    handle.read_exact_at(&mut byte, at).unwrap();
    handle.write_all_at(&[byte[0] ^ 0x40], at).unwrap();
}

fn read(file: &Path, at: u64) -> Vec<u8> {
    let mut block = vec![0; 4096];
    fs::File::open(file).unwrap().read_exact_at(&mut block, at).unwrap();
    block
}

fn write(file: &Path, at: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(file).unwrap().write_all_at(bytes, at).unwrap();
}

fn resize(file: &Path, to: impl Fn(u64) -> u64) {
    let file = fs::File::options().write(true).open(file).unwrap();
    file.set_len(to(file.metadata().unwrap().len())).unwrap();
}

fn all_files(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { found.extend(all_files(&path)) } else { found.push(path) }
    }
    found
}

#[test]
fn what_is_mounted_in_a_backing_directory_is_not_emptied_with_it() {
    let place = Place::new();
    let (source, elsewhere) = (place.path("source"), place.path("elsewhere"));
    for directory in [&source.join("inside"), &elsewhere] {
        fs::create_dir_all(directory).unwrap();
        fs::write(directory.join("file"), "content").unwrap();
    }
    let backing = place.path("backing");
    let _node = place.start();
    place.ok(&["fs", "create", "home", "--allow-no-kms", "--backing", backing.to_str().unwrap()]);
    place.ok(&["fs", "import", "home", source.to_str().unwrap()]);
    let entries = fs::read_dir(backing.join("root")).unwrap().map(|entry| entry.unwrap().path());
    let sealed = entries.into_iter().find(|path| path.is_dir()).unwrap();
    // Of the same filesystem, so that the device's number does not tell.
    let mounted = Bind::mount(&elsewhere, &sealed);
    let refused = place.fails(1, &["fs", "delete", "home", "--yes"]);
    assert!(refused.contains("unmount what is mounted below it"), "{refused}");
    assert_eq!(fs::read_to_string(elsewhere.join("file")).unwrap(), "content");
    drop(mounted);
}

/// A directory that is mounted in another place too; no longer when this is dropped.
struct Bind(PathBuf);

impl Bind {
    fn mount(directory: &Path, at: &Path) -> Self {
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(Some(directory), at, None::<&str>, flags, None::<&str>)
            .expect("this test mounts a directory, so it runs as root");
        Self(at.to_owned())
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

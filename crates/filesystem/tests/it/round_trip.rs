//! What goes in comes out, and lies in the backing unreadable.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use filesystem::{Backend, EntryKind, ErrorKind, Filesystem, Outcome, ProblemKind};
use testkit::tree;

use crate::support::{
    ACCESS_ACL, DEFAULT_ACL, Home, Watch, acl, assert_equal_trees, done, export, files_below,
    import, needs_root, set_xattr,
};

#[test]
fn one_of_everything_comes_back_equal() {
    needs_root();
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    tree::everything(&source).unwrap();
    let filesystem = home.create();
    let report = import(&filesystem, &source);
    assert_eq!(report.progress.files_done, report.progress.files_total);
    assert_eq!(report.progress.bytes_done, report.progress.bytes_total);
    drop(filesystem);

    let filesystem = home.open();
    for (name, kind) in [
        ("fifo", EntryKind::Fifo),
        ("null device", EntryKind::CharacterDevice),
        ("block device", EntryKind::BlockDevice),
    ] {
        let path = Path::new("privileged").join(name);
        assert_eq!(filesystem.list(&path).unwrap().entries[0].kind, kind);
    }
    let report = export(&filesystem, &target);
    assert_eq!(report.progress.bytes_done, report.progress.bytes_total);
    assert_equal_trees(&source, &target);
    done(filesystem.verify(false, &Watch::default()).unwrap());
}

#[test]
fn the_other_backend_reads_it() {
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    tree::small_files(&source, 20).unwrap();
    import(&home.create(), &source);
    let key = home.key.clone();
    let filesystem = Filesystem::open(&home.backing(), key, Backend::RustCrypto).unwrap();
    export(&filesystem, &target);
    assert_equal_trees(&source, &target);
}

#[test]
fn nothing_readable_lies_in_the_backing() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir_all(source.join("secret-directory")).unwrap();
    let text = "the secret content ".repeat(500);
    fs::write(source.join("secret-directory/secret-name"), &text).unwrap();
    fs::write(source.join("secret-".repeat(30)), "secret").unwrap();
    std::os::unix::fs::symlink("secret-target", source.join("link")).unwrap();
    std::os::unix::fs::symlink("secret-target".repeat(200), source.join("long link")).unwrap();
    let file = fs::File::open(source.join("secret-directory/secret-name")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&file, "user.secret", b"secret value", flags).unwrap();
    import(&home.create(), &source);

    let mut looked_at = 0;
    let mut stack = vec![home.backing()];
    while let Some(path) = stack.pop() {
        assert!(!contains(path.file_name().unwrap().as_bytes(), b"secret"), "{path:?}");
        let kind = fs::symlink_metadata(&path).unwrap().file_type();
        if kind.is_dir() {
            stack.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if kind.is_symlink() {
            assert!(!contains(fs::read_link(&path).unwrap().as_os_str().as_bytes(), b"secret"));
        } else {
            looked_at += 1;
            assert!(!contains(&fs::read(&path).unwrap(), b"secret"), "{path:?}");
            let mut list = vec![0; 4096];
            let len = rustix::fs::llistxattr(&path, list.as_mut_slice()).unwrap();
            assert!(!contains(&list[..len], b"secret"));
        }
    }
    assert!(
        looked_at >= 7,
        "records, side file, link record, two files, header, lock: {looked_at}"
    );
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

#[test]
fn an_import_merges_and_replaces_as_cp_does() {
    let home = Home::new();
    let (first, second, target) = (home.path("first"), home.path("second"), home.path("target"));
    for (dir, files) in [(&first, ["kept", "replaced"]), (&second, ["added", "replaced"])] {
        fs::create_dir_all(dir.join("d")).unwrap();
        for file in files {
            fs::write(dir.join("d").join(file), format!("{file} from {dir:?}")).unwrap();
        }
    }
    // Hard links in both: the second time each name is there already.
    for dir in [&first, &second] {
        fs::write(dir.join("a"), "linked").unwrap();
        fs::hard_link(dir.join("a"), dir.join("b")).unwrap();
    }
    let filesystem = home.create();
    import(&filesystem, &first);
    import(&filesystem, &second);
    import(&filesystem, &second);
    export(&filesystem, &target);
    let read = |name: &str| fs::read_to_string(target.join("d").join(name)).unwrap();
    assert_eq!(read("kept"), format!("kept from {first:?}"));
    assert_eq!(read("added"), format!("added from {second:?}"));
    assert_eq!(read("replaced"), format!("replaced from {second:?}"));
    let [a, b] = ["a", "b"].map(|name| fs::metadata(target.join(name)).unwrap());
    assert_eq!((a.ino(), a.nlink()), (b.ino(), 2));
    done(filesystem.verify(false, &Watch::default()).unwrap());
}

/// The kernel's own files, of which `stat` says that they have no bytes, or 4096.
#[test]
fn a_file_is_read_to_its_end_whatever_length_it_is_said_to_have() {
    for dir in
        ["/proc/sys/net/ipv4/route", "/proc/sys/net/core", "/sys/devices/system/cpu/cpu0/topology"]
    {
        let home = Home::new();
        let (source, target) = (Path::new(dir), home.path("target"));
        let filesystem = home.create();
        let watch = Watch::default();
        let imported = filesystem.import(source, None, &watch).unwrap();
        export(&filesystem, &target);
        let (mut equal, mut refused) = (0, Vec::new());
        for path in files_below(source) {
            let name = path.strip_prefix(source).unwrap();
            match fs::read(&path) {
                Ok(content) => {
                    assert_eq!(fs::read(target.join(name)).unwrap(), content, "{path:?}");
                    let told = fs::metadata(&path).unwrap().len();
                    equal += usize::from(told != content.len() as u64);
                }
                Err(_) => refused.push(name.to_owned()),
            }
        }
        assert!(equal >= 3, "{dir} has {equal} files of another length than is said");
        let mut named: Vec<_> = imported.problems.iter().map(|p| p.path.clone()).collect();
        named.sort();
        assert_eq!(named, refused, "{:?}", imported.problems);
        assert_eq!(!refused.is_empty(), dir.ends_with("/route"), "one there is only for writing");
    }
}

#[test]
fn what_cannot_be_taken_is_named_and_the_rest_goes_on() {
    let home = Home::new();
    let (first, second) = (home.path("first"), home.path("second"));
    fs::create_dir_all(first.join("clash")).unwrap();
    fs::write(first.join("other clash"), "file").unwrap();
    fs::create_dir_all(second.join("other clash")).unwrap();
    fs::write(second.join("clash"), "file").unwrap();
    fs::write(second.join("fine"), "file").unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(second.join("socket")).unwrap();
    fs::hard_link(second.join("socket"), second.join("socket's other name")).unwrap();
    let filesystem = home.create();
    import(&filesystem, &first);
    let report = filesystem.import(&second, None, &Watch::default()).unwrap();
    assert_eq!(report.outcome, Outcome::PartlyDone);
    let mut found: Vec<_> =
        report.problems.iter().map(|p| (p.path.to_str().unwrap(), p.kind)).collect();
    found.sort_by_key(|(path, _)| *path);
    assert_eq!(
        found,
        [
            ("clash", ProblemKind::Conflict),
            ("other clash", ProblemKind::Conflict),
            ("socket", ProblemKind::Skipped),
            ("socket's other name", ProblemKind::Skipped),
        ]
    );
    let listing = filesystem.list(Path::new("/")).unwrap();
    let kinds: Vec<_> =
        listing.entries.iter().map(|e| (e.name.to_str().unwrap(), e.kind)).collect();
    assert_eq!(
        kinds,
        [
            ("clash", EntryKind::Directory),
            ("fine", EntryKind::File),
            ("other clash", EntryKind::File),
        ]
    );
}

#[test]
fn a_file_that_changes_while_it_is_read_is_reported_and_not_taken() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("log"), vec![1; 9 << 20]).unwrap();
    fs::write(source.join("still"), "file").unwrap();
    // Appends whenever the job asks whether to stop: between two segments of the file.
    struct Writer<'a>(&'a Path, Watch);
    impl filesystem::Control for Writer<'_> {
        fn stop_requested(&self) -> bool {
            use std::io::Write;
            let mut log = fs::OpenOptions::new().append(true).open(self.0.join("log")).unwrap();
            log.write_all(b"one more line").unwrap();
            false
        }
        fn progress(&self, progress: &filesystem::Progress) {
            self.1.progress(progress);
        }
        fn checkpoint(&self, checkpoint: &filesystem::Checkpoint) {
            self.1.checkpoint(checkpoint);
        }
        fn problem(&self, problem: &filesystem::Problem) {
            self.1.problem(problem);
        }
    }
    let filesystem = home.create();
    let report = filesystem.import(&source, None, &Writer(&source, Watch::default())).unwrap();
    assert_eq!(report.problems.len(), 1, "{:?}", report.problems);
    assert_eq!(report.problems[0].kind, ProblemKind::Changed);
    assert_eq!(report.problems[0].path, Path::new("log"));
    let names: Vec<_> =
        filesystem.list(Path::new("")).unwrap().entries.into_iter().map(|e| e.name).collect();
    assert_eq!(names, ["still"]);
}

#[test]
fn a_listing_tells_sizes_targets_and_times() {
    let home = Home::new();
    let source = home.path("source");
    let long = "n".repeat(255);
    fs::create_dir_all(source.join(&long)).unwrap();
    fs::write(source.join(&long).join("file"), vec![0; 300_000]).unwrap();
    fs::set_permissions(source.join(&long).join("file"), fs::Permissions::from_mode(0o640))
        .unwrap();
    std::os::unix::fs::symlink("there", source.join(&long).join("link")).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    let listing = filesystem.list(&Path::new("/").join(&long)).unwrap();
    assert_eq!(listing.unreadable, []);
    let [file, link] = &listing.entries[..] else { panic!("{listing:?}") };
    assert_eq!((file.name.to_str(), file.size, file.mode), (Some("file"), 300_000, 0o640));
    let modified = fs::metadata(source.join(&long).join("file")).unwrap().mtime();
    assert_eq!(file.modified_ms / 1000, modified);
    assert_eq!(link.target.as_deref(), Some(Path::new("there")));
    let one = filesystem.list(&Path::new(&long).join("file")).unwrap();
    assert_eq!(one.entries, std::slice::from_ref(file));
    for path in [Path::new("/no/such"), &Path::new(&long).join("file/such")] {
        let missing = filesystem.list(path).unwrap_err();
        assert_eq!(missing.kind(), ErrorKind::NotFound);
        assert!(missing.to_string().contains(path.to_str().unwrap()), "{missing}");
    }

    let usage = filesystem.usage().unwrap();
    assert_eq!((usage.files, usage.directories, usage.others), (1, 1, 1));
    assert_eq!(usage.bytes, 300_000);
}

#[test]
fn a_source_above_the_backing_leaves_the_backing_out() {
    let home = Home::new();
    let filesystem = home.create();
    fs::write(home.path("beside"), "file").unwrap();
    let report = filesystem.import(home.dir.path(), None, &Watch::default()).unwrap();
    let paths: Vec<_> = report.problems.iter().map(|p| p.path.clone()).collect();
    assert_eq!(paths, [Path::new("backing")]);
    let refused = filesystem.import(&home.backing().join("root"), None, &Watch::default());
    assert!(refused.unwrap_err().to_string().contains("lies in the backing directory"));
    let refused = filesystem.export(&home.backing().join("out"), None, &Watch::default());
    assert!(refused.unwrap_err().to_string().contains("lies in the backing directory"));
}

#[test]
fn an_export_needs_an_empty_target_and_leaves_nothing_of_its_own() {
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    tree::small_files(&source, 3).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    fs::create_dir(&target).unwrap();
    fs::write(target.join("something"), "").unwrap();
    let refused = filesystem.export(&target, None, &Watch::default()).unwrap_err();
    assert_eq!(refused.kind(), filesystem::ErrorKind::Invalid);
    fs::remove_file(target.join("something")).unwrap();
    export(&filesystem, &target);
    assert_eq!(files_below(&target).len(), 3);
    assert!(!target.join(".coffer-export").exists());
}

#[test]
fn acls_and_attributes_of_the_target_are_neither_inherited_nor_kept() {
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    tree::everything(&source).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    fs::create_dir(&target).unwrap();
    set_xattr(&target, DEFAULT_ACL, &acl(7));
    set_xattr(&target, ACCESS_ACL, &acl(7));
    set_xattr(&target, "user.old", b"value");
    export(&filesystem, &target);
    assert_equal_trees(&source, &target);
}

#[test]
fn a_directory_named_as_the_stage_of_an_export_comes_back() {
    let home = Home::new();
    let filesystem = home.create();
    let source = home.path("source");
    for name in [".coffer-export", ".coffer-export~"] {
        fs::create_dir_all(source.join(name).join("tmp")).unwrap();
        fs::write(source.join(name).join("tmp/file"), name).unwrap();
    }
    import(&filesystem, &source);
    let target = home.path("target");
    export(&filesystem, &target);
    assert_equal_trees(&source, &target);
}

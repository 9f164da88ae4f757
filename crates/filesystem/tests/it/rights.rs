//! A process that may not do all that root may.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use filesystem::{BackingLocks, Checkpoint, Filesystem, Outcome, Report};
use rustix::thread::CapabilitySet;
use testkit::tree;

use crate::support::{
    ACCESS_ACL, Home, Watch, acl, as_ordinary_user, assert_equal_trees, done, export, import,
    needs_root, set_xattr, without,
};

fn set_mode(path: impl AsRef<Path>, mode: u32) {
    fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
}

#[test]
fn an_owner_that_can_not_be_given_costs_no_content_and_gives_no_rights() {
    needs_root();
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    fs::create_dir_all(source.join("directory")).unwrap();
    let (small, large) = (source.join("small"), source.join("directory/large"));
    fs::write(&small, "content").unwrap();
    fs::write(&large, tree::noise(1, 9_000_000)).unwrap();
    symlink("small", source.join("link")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        source.join("fifo"),
        rustix::fs::FileType::Fifo,
        0o640.into(),
        0,
    )
    .unwrap();
    fs::write(source.join("of root"), "").unwrap();
    for path in ["small", "directory", "directory/large", "link", "fifo"] {
        lchown(source.join(path), Some(1234), Some(5678)).unwrap();
    }
    set_mode(&small, 0o6755);
    set_mode(&large, 0o4711);
    let filesystem = home.create();
    let watch = || Watch::default();
    without(CapabilitySet::CHOWN, || {
        let report = done(filesystem.import(&source, None, &watch()).unwrap());
        assert_eq!(report.progress.owners_lost, 5);
    });
    export(&filesystem, &target);
    for (path, mode) in [("small", 0o755), ("directory/large", 0o711)] {
        let there = fs::metadata(target.join(path)).unwrap();
        // Root's with a set-id bit, it would be a program of another one that runs as root.
        assert_eq!((there.uid(), there.mode() & 0o7777), (0, mode), "{path}");
        assert!(fs::read(target.join(path)).unwrap() == fs::read(source.join(path)).unwrap());
    }
    assert_eq!(fs::read_link(target.join("link")).unwrap(), Path::new("small"));

    import(&filesystem, &source);
    without(CapabilitySet::CHOWN, || {
        let other = home.path("other target");
        let report = done(filesystem.export(&other, None, &watch()).unwrap());
        assert_eq!(report.progress.owners_lost, 5);
        let report = done(filesystem.import(&source, None, &watch()).unwrap());
        assert_eq!(report.progress.owners_lost, 4, "the directory there is its owner's already");
    });
}

fn set_attribute(path: &Path) {
    set_xattr(path, "user.kept", b"value");
}

#[test]
fn an_ordinary_user_s_read_only_files_are_gone_on_with_and_keep_their_attributes() {
    let home = Home::new();
    let source = home.path("source");
    as_ordinary_user(&home, || {
        fs::create_dir(&source).unwrap();
        fs::write(source.join("large"), tree::noise(1, 30_000_000)).unwrap();
        fs::write(source.join("small"), "").unwrap();
        for name in ["large", "small"] {
            set_attribute(&source.join(name));
            set_xattr(&source.join(name), ACCESS_ACL, &acl(4));
        }
        let filesystem = home.create();
        let watch = Watch { stop_at: Some(6), ..Watch::default() };
        let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
        let watch = Watch::default();
        done(filesystem.import(&source, checkpoint, &watch).unwrap());
        assert!(watch.asked.into_inner() <= 5, "not from its start");
        export(&filesystem, &home.path("target"));
        assert_equal_trees(&source, &home.path("target"));
    });
}

/// Directories that not even their owner may change, with files that he may not write.
fn make_read_only_tree(root: &Path) {
    for n in 0..8 {
        let dir = root.join(format!("{n}/below"));
        fs::create_dir_all(&dir).unwrap();
        for file in ["a", "b"] {
            let file = dir.join(file);
            fs::write(&file, format!("of {n}")).unwrap();
            set_attribute(&file);
            set_mode(&file, 0o444);
        }
        set_attribute(&dir);
        set_mode(&dir, 0o555);
        set_mode(dir.parent().unwrap(), 0o500);
    }
    fs::write(root.join("9 large"), tree::noise(9, 20_000_000)).unwrap();
    set_mode(root.join("9 large"), 0o400);
    set_mode(root, 0o555);
}

/// Runs a job that dies some time after its first checkpoint, and one that goes on from there.
fn die_and_go_on(job: impl Fn(Option<Checkpoint>, &Watch) -> Report) {
    let run = |resume, stop_at| {
        let stopped = job(resume, &Watch { stop_at: Some(stop_at), ..Watch::default() });
        assert_eq!((stopped.outcome, stopped.problems), (Outcome::Stopped, vec![]));
        stopped.checkpoint
    };
    let checkpoint = run(None, 7);
    run(checkpoint.clone(), 30);
    assert!(done(job(checkpoint, &Watch::default())).resumed);
}

#[test]
fn an_ordinary_user_s_read_only_directories_are_filled_again_and_emptied() {
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    as_ordinary_user(&home, || {
        make_read_only_tree(&source);
        let filesystem = home.create();
        die_and_go_on(|resume, watch| filesystem.import(&source, resume, watch).unwrap());
        import(&filesystem, &source);
        done(filesystem.verify(false, &Watch::default()).unwrap());
        die_and_go_on(|resume, watch| filesystem.export(&target, resume, watch).unwrap());
        assert_equal_trees(&source, &target);
        let other = home.path("other target");
        fs::create_dir(&other).unwrap();
        set_mode(&other, 0o500);
        export(&filesystem, &other);
        assert_equal_trees(&source, &other);
        drop(filesystem);
        let locks = BackingLocks::default();
        assert!(Filesystem::remove(&locks, &home.backing(), home.key.id(), None).unwrap());
        assert!(!home.backing().exists());
    });
}

#[test]
fn a_directory_whose_owner_may_not_even_read_it_is_removed() {
    let home = Home::new();
    let source = home.path("source");
    as_ordinary_user(&home, || {
        fs::create_dir_all(source.join("directory/below")).unwrap();
        let filesystem = home.create();
        import(&filesystem, &source);
        drop(filesystem);
        let root = home.backing().join("root");
        let directories = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
        let directory = directories.into_iter().find(|path| path.is_dir()).unwrap();
        for (path, mode) in [(&directory, 0o000), (&root, 0o200)] {
            set_mode(path, mode);
        }
        let locks = BackingLocks::default();
        assert!(Filesystem::remove(&locks, &home.backing(), home.key.id(), None).unwrap());
        assert!(!home.backing().exists());
    });
}

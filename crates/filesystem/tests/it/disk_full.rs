//! A disk that is full: a clear error, nothing half done, and a way on.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use filesystem::ErrorKind;
use testkit::tree;

use crate::support::{Home, Watch, assert_equal_trees, done, export, files_below, needs_root};

/// A small disk of its own, unmounted when dropped.
pub(crate) struct SmallDisk<'a>(&'a Path);

impl<'a> SmallDisk<'a> {
    pub(crate) fn mount(at: &'a Path, mebibytes: u32) -> Self {
        needs_root();
        fs::create_dir(at).unwrap();
        let size = format!("size={mebibytes}m");
        let mut mount = Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", &size, "coffer-test"]).arg(at);
        assert!(mount.status().unwrap().success(), "a tmpfs can't be mounted on {at:?}");
        Self(at)
    }

    pub(crate) fn read_only(&self, yes: bool) {
        let how = if yes { "remount,ro" } else { "remount,rw" };
        let mount = Command::new("mount").args(["-o", how]).arg(self.0).status();
        assert!(mount.unwrap().success());
    }

    fn resize(&self, mebibytes: u32) {
        let size = format!("remount,size={mebibytes}m");
        let mount = Command::new("mount").args(["-o", &size]).arg(self.0).status();
        assert!(mount.unwrap().success());
    }
}

impl Drop for SmallDisk<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0).status();
    }
}

#[test]
fn an_import_that_fills_the_disk_says_so_and_goes_on_when_there_is_room() {
    let home = Home::new();
    let source = home.path("source");
    // tmpfs has no `user.*` attributes in older kernels: none here.
    tree::small_files(&source, 50).unwrap();
    fs::write(source.join("large"), tree::noise(9, 30_000_000)).unwrap();
    let backing = home.backing();
    let disk = SmallDisk::mount(&backing, 16);
    let filesystem = home.create();
    let watch = Watch::default();
    let error = filesystem.import(&source, None, &watch).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(error.how_to_mend().contains("make room"), "{error}");
    assert!(error.to_string().starts_with("large"), "it says at what: {error}");
    // Nothing half done, nothing left that takes the room.
    assert_eq!(files_below(&backing.join("coffer.tmp/resume")), <[PathBuf; 0]>::default());
    assert!(filesystem.list(Path::new("large")).is_err());
    done(filesystem.verify(false, &Watch::default()).unwrap());
    drop(filesystem);

    disk.resize(64);
    let resume = watch.checkpoint.lock().unwrap().take();
    let filesystem = home.open();
    done(filesystem.import(&source, resume, &Watch::default()).unwrap());
    export(&filesystem, &home.path("target"));
    assert_equal_trees(&source, &home.path("target"));
    drop((filesystem, disk));
}

#[test]
fn a_create_that_fills_the_disk_leaves_nothing() {
    let home = Home::new();
    let backing = home.backing();
    let disk = SmallDisk::mount(&backing, 1);
    let filler = backing.join("lost+found");
    fs::write(&filler, "").unwrap();
    let fill = fs::write(&filler, vec![0; 2 << 20]);
    assert!(fill.is_err(), "the disk is full");
    let envelope = crate::support::envelope(home.key.id());
    let key = home.key.clone();
    let made = filesystem::Filesystem::create(&backing, key, &envelope, Default::default());
    assert_eq!(made.unwrap_err().kind(), ErrorKind::Full);
    let left: Vec<_> =
        fs::read_dir(&backing).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lost+found"]);
    drop(disk);
}

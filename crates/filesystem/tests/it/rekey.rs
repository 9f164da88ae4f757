//! A filesystem gets another key: in place, with everything kept, wherever it is stopped.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};

use filesystem::{
    Backend, BackingLocks, ErrorKind, Filesystem, Outcome, Report, begin_rekey, end_rekey,
    prepare_rekey, read_envelope, read_previous_envelope,
};
use kms_core::{FilesystemKey, KeyEnvelope};
use testkit::tree;

use crate::disk_full::SmallDisk;
use crate::support::{
    Home, Watch, assert_equal_trees, done, envelope, export, import, needs_root, set_xattr,
};

/// A filesystem that is to get another key.
struct Rekeyed {
    home: Home,
    new: Arc<FilesystemKey>,
    locks: BackingLocks,
    from: KeyEnvelope,
    to: KeyEnvelope,
}

impl Rekeyed {
    fn new(home: Home) -> Self {
        let new = Arc::new(FilesystemKey::generate().unwrap());
        let (from, to) = (envelope(home.key.id()), envelope(new.id()));
        Self { home, new, locks: BackingLocks::default(), from, to }
    }

    fn begin(&self) {
        begin_rekey(&self.locks, &self.home.backing(), &self.from, &self.to).unwrap();
    }

    fn open(&self) -> Filesystem {
        let (new, old) = (Arc::clone(&self.new), Some(Arc::clone(&self.home.key)));
        let backing = self.home.backing();
        Filesystem::open_sharing(&self.locks, &backing, new, old, Backend::default()).unwrap()
    }

    fn open_with(&self, key: &Arc<FilesystemKey>) -> Result<Filesystem, filesystem::Error> {
        let (key, backing) = (Arc::clone(key), self.home.backing());
        Filesystem::open_sharing(&self.locks, &backing, key, None, Backend::default())
    }

    fn end(&self) {
        end_rekey(&self.locks, &self.home.backing(), self.new.id()).unwrap();
    }

    /// All of it is under the new key, and is what `source` is.
    fn assert_has_only_the_new_key(&self, source: &Path) {
        assert_eq!(self.open_with(&self.home.key).unwrap_err().kind(), ErrorKind::Invalid);
        let filesystem = self.open_with(&self.new).unwrap();
        done(filesystem.verify(false, &Watch::default()).unwrap());
        self.assert_exports(&filesystem, source);
        // Last, for it changes access times.
        let text = self.home.key.id().to_string();
        let bytes = hex::decode(text.replace('-', "")).unwrap();
        assert_nothing_has(&File::open(self.home.backing()).unwrap(), &[&bytes, text.as_bytes()]);
    }

    fn assert_exports(&self, filesystem: &Filesystem, source: &Path) {
        let target = self.home.path("target");
        let _ = fs::remove_dir_all(&target);
        export(filesystem, &target);
        assert_equal_trees(source, &target);
    }
}

/// Of all files below, however deep.
fn assert_nothing_has(dir: &File, parts: &[&[u8]]) {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    for entry in fs::read_dir(path).unwrap() {
        let entry = entry.unwrap();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            assert_nothing_has(&File::open(entry.path()).unwrap(), parts);
        } else if kind.is_file() {
            // Key ids lie in headers and records.
            let mut content = Vec::new();
            File::open(entry.path()).unwrap().take(4096).read_to_end(&mut content).unwrap();
            for part in parts {
                let has = content.windows(part.len()).any(|window| window == *part);
                assert!(!has, "{:?} names the old key", entry.file_name());
            }
        }
    }
}

/// A node has it open with both as long as anything uses it.
#[test]
fn what_was_opened_with_both_keys_is_sound_after_the_end() {
    let home = Home::new();
    let source = home.path("source");
    make(&source);
    import(&home.create(), &source);
    let rekeyed = Rekeyed::new(home);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    done(rekey(&filesystem));
    rekeyed.end();
    done(filesystem.verify(false, &Watch::default()).unwrap());
    rekeyed.assert_exports(&filesystem, &source);
}

fn rekey(filesystem: &Filesystem) -> Report {
    filesystem.rekey(&Watch::default()).unwrap()
}

/// One of everything, and what lies otherwise on disk than that.
fn make(source: &Path) {
    tree::everything(source).unwrap();
    let more = source.join("more");
    fs::create_dir(&more).unwrap();
    for len in [0, 1, 4096, 253_952, 253_953, 600_000, 9_000_001] {
        fs::write(more.join(format!("{len} bytes")), tree::noise(len as u64, len)).unwrap();
    }
    for len in [1, 174, 175, 255] {
        fs::write(more.join("n".repeat(len)), "named").unwrap();
    }
    for len in [1, 734, 735, 4095] {
        std::os::unix::fs::symlink("t".repeat(len), more.join(format!("link of {len}"))).unwrap();
    }
    for name in ["600000 bytes", "9000001 bytes", "link of 1", "link of 4095"] {
        link(source, name);
    }
}

/// How many entries there are, however deep, `dir` among them.
fn entries(dir: &File) -> u64 {
    let path = format!("/proc/self/fd/{}", dir.as_raw_fd());
    let each = fs::read_dir(path).unwrap().map(Result::unwrap);
    let below = each.map(|entry| match entry.file_type().unwrap().is_dir() {
        true => entries(&File::open(entry.path()).unwrap()),
        false => 1,
    });
    1 + below.sum::<u64>()
}

/// Gives something in `more` other names.
fn link(source: &Path, name: &str) {
    let linked = source.join("linked");
    fs::create_dir_all(&linked).unwrap();
    for other in [name.to_owned(), format!("{name} again")] {
        fs::hard_link(source.join("more").join(name), linked.join(other)).unwrap();
    }
}

#[test]
fn everything_is_sealed_again_and_stays_as_it_was() {
    let rekeyed = Rekeyed::new(Home::new());
    let source = rekeyed.home.path("source");
    make(&source);
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    rekeyed.assert_exports(&filesystem, &source);
    done(filesystem.verify(false, &Watch::default()).unwrap());
    let report = done(rekey(&filesystem));
    let progress = report.progress;
    let all = entries(&File::open(&source).unwrap());
    assert_eq!(progress.files_done, all, "hard-linked symlinks too: {progress:?}");
    assert_eq!(
        (progress.files_done, progress.bytes_done),
        (progress.files_total, progress.bytes_total)
    );
    rekeyed.assert_exports(&filesystem, &source);
    done(filesystem.verify(false, &Watch::default()).unwrap());
    // It costs looking alone.
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
}

#[test]
fn a_stop_at_any_moment_leaves_all_readable_and_the_next_run_goes_on() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    make(&source);
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    for stop_at in [1, 3, 10, 20, 30, 40, 60, 80, 100] {
        let watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
        let report = filesystem.rekey(&watch).unwrap();
        assert_eq!((report.outcome, &report.problems[..]), (Outcome::Stopped, &[][..]));
        rekeyed.assert_exports(&filesystem, &source);
        done(filesystem.verify(false, &Watch::default()).unwrap());
    }
    drop(filesystem);
    let filesystem = rekeyed.open();
    rekeyed.assert_exports(&filesystem, &source);
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
}

#[test]
fn it_begins_and_ends_wherever_a_crash_leaves_it() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let backing = rekeyed.home.backing();
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 5).unwrap();
    import(&rekeyed.home.create(), &source);
    let lock = backing.join("coffer.lock");
    let (header, previous) = (backing.join("coffer.key"), backing.join("coffer.previous-key"));
    let old = (fs::read(&header).unwrap(), fs::read(&lock).unwrap());
    rekeyed.begin();
    let new = (fs::read(&header).unwrap(), fs::read(&lock).unwrap(), fs::read(&previous).unwrap());
    // Each state on the way, with a copy in the making.
    for (key, owner, has_previous) in [
        (&old.0, &old.1, false),
        (&old.0, &old.1, true),
        (&new.0, &old.1, true),
        (&new.0, &Vec::new(), true),
        (&new.0, &new.1, true),
    ] {
        fs::write(&header, key).unwrap();
        fs::write(&lock, owner).unwrap();
        let _ = fs::remove_file(&previous);
        if has_previous {
            fs::write(&previous, &new.2).unwrap();
        }
        let staged = backing.join("coffer.previous-key.1234");
        fs::write(&staged, "{").unwrap();
        let locks = &rekeyed.locks;
        drop(locks.take(&backing, rekeyed.new.id(), Some(rekeyed.home.key.id())).unwrap());
        rekeyed.assert_exports(&rekeyed.open(), &source);
        assert!(!staged.exists());
        read_envelope(&backing).unwrap();
        rekeyed.begin();
        assert_eq!(read_envelope(&backing).unwrap(), rekeyed.to);
        assert_eq!(read_previous_envelope(&backing).unwrap().as_ref(), Some(&rekeyed.from));
        assert_eq!(fs::read(&lock).unwrap(), new.1);
    }
    // A copy that was rewrapped meanwhile stays.
    let newer = KeyEnvelope { revision: 2, ..rekeyed.to.clone() };
    fs::write(&header, serde_json::to_vec(&newer).unwrap()).unwrap();
    rekeyed.begin();
    assert_eq!(read_envelope(&backing).unwrap(), newer);

    let stranger = envelope(FilesystemKey::generate().unwrap().id());
    for (from, to) in [(&stranger, &rekeyed.to), (&rekeyed.to, &stranger), (&stranger, &stranger)] {
        let refused = begin_rekey(&rekeyed.locks, &backing, from, to).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    let refused = end_rekey(&rekeyed.locks, &backing, rekeyed.home.key.id()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    done(rekey(&rekeyed.open()));
    rekeyed.end();
    rekeyed.end();
    assert_eq!(read_previous_envelope(&backing).unwrap(), None);
    rekeyed.assert_has_only_the_new_key(&source);
}

/// On a full disk nothing begins, and what was prepared needs no room.
#[test]
fn a_full_disk_keeps_it_from_beginning_and_not_from_being_opened() {
    let home = Home::new();
    let backing = home.backing();
    let disk = SmallDisk::mount(&backing, 1);
    let rekeyed = Rekeyed::new(home);
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 2).unwrap();
    import(&rekeyed.home.create(), &source);
    let prepare = || prepare_rekey(&rekeyed.locks, &backing, &rekeyed.from, &rekeyed.to);
    let filler = backing.join("lost+found");
    let fill = || assert!(fs::write(&filler, vec![0; 2 << 20]).is_err(), "the disk is full");
    let names = || {
        let entries = fs::read_dir(&backing).unwrap();
        entries.map(|entry| entry.unwrap().file_name()).collect::<BTreeSet<_>>()
    };
    fill();
    let before = names();
    // Room for neither, and for one of the two.
    for pages in [0, 1] {
        let size = fs::metadata(&filler).unwrap().len();
        File::options().write(true).open(&filler).unwrap().set_len(size - pages * 4096).unwrap();
        assert_eq!(prepare().unwrap_err().kind(), ErrorKind::Full);
        assert_eq!(names(), before);
        rekeyed.assert_exports(&rekeyed.open_with(&rekeyed.home.key).unwrap(), &source);
    }

    fs::remove_file(&filler).unwrap();
    prepare().unwrap();
    prepare().unwrap();
    assert_eq!(read_previous_envelope(&backing).unwrap().as_ref(), Some(&rekeyed.from));
    // Nor has it to be prepared again where the filesystem is locked and unlocked before it begins.
    rekeyed.assert_exports(&rekeyed.open_with(&rekeyed.home.key).unwrap(), &source);
    fill();
    rekeyed.begin();
    assert_eq!(read_envelope(&backing).unwrap(), rekeyed.to);
    rekeyed.assert_exports(&rekeyed.open(), &source);
    fs::remove_file(&filler).unwrap();
    done(rekey(&rekeyed.open()));
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
    drop(disk);
}

#[test]
fn what_was_prepared_and_never_begun_does_no_harm() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let backing = rekeyed.home.backing();
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 5).unwrap();
    import(&rekeyed.home.create(), &source);
    let another = envelope(FilesystemKey::generate().unwrap().id());
    prepare_rekey(&rekeyed.locks, &backing, &rekeyed.from, &another).unwrap();
    let open = rekeyed.open_with(&rekeyed.home.key).unwrap();
    rekeyed.assert_exports(&open, &source);
    done(open.verify(false, &Watch::default()).unwrap());
    drop(open);
    // It takes the place of no other key's copy.
    prepare_rekey(&rekeyed.locks, &backing, &rekeyed.from, &another).unwrap();
    rekeyed.begin();
    assert_eq!(read_envelope(&backing).unwrap(), rekeyed.to);
    let refused = prepare_rekey(&rekeyed.locks, &backing, &rekeyed.from, &another).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "it has another key by now: {refused}");
    done(rekey(&rekeyed.open()));
    rekeyed.end();
    assert!(!backing.join("coffer.key.next").exists());
    rekeyed.assert_has_only_the_new_key(&source);
}

/// A node that starts opens it, and compares its copies, at the same moment.
#[test]
fn it_can_be_begun_by_several_at_once() {
    const THREADS: usize = 4;
    for _ in 0..50 {
        let rekeyed = Rekeyed::new(Home::in_memory());
        let backing = rekeyed.home.backing();
        drop(rekeyed.home.create());
        prepare_rekey(&rekeyed.locks, &backing, &rekeyed.from, &rekeyed.to).unwrap();
        let _held = rekeyed.locks.take(&backing, rekeyed.home.key.id(), None).unwrap();
        let together = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    together.wait();
                    rekeyed.begin();
                });
            }
        });
        assert_eq!(read_envelope(&backing).unwrap(), rekeyed.to);
    }
}

#[test]
fn a_filesystem_between_two_keys_is_removed_with_both() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    drop(rekeyed.home.create());
    rekeyed.begin();
    let (backing, new, old) = (rekeyed.home.backing(), rekeyed.new.id(), rekeyed.home.key.id());
    assert!(Filesystem::remove(&rekeyed.locks, &backing, new, Some(old)).unwrap());
    assert!(!backing.exists());
}

#[test]
fn without_a_previous_key_there_is_nothing_to_do() {
    let home = Home::in_memory();
    let report = done(rekey(&home.create()));
    assert_eq!(report.progress.files_total, 0);
}

#[test]
fn what_is_imported_meanwhile_takes_the_place_of_what_has_its_name() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    make(&source);
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    let watch = Watch { stop_at: Some(40), ..Watch::default() };
    filesystem.rekey(&watch).unwrap();
    // All of it again, some of it changed; half of it lies under the old key.
    fs::write(source.join("more/1 bytes"), "two").unwrap();
    fs::write(source.join("more/9000001 bytes"), tree::noise(7, 5_000_000)).unwrap();
    fs::write(source.join("more/new"), "new").unwrap();
    import(&filesystem, &source);
    rekeyed.assert_exports(&filesystem, &source);
    let listed = filesystem.list(Path::new("more")).unwrap();
    assert_eq!(listed.entries.len(), fs::read_dir(source.join("more")).unwrap().count());
    assert_eq!(listed.unreadable, []);
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
}

#[test]
fn all_can_be_used_while_it_runs() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let (source, added) = (rekeyed.home.path("source"), rekeyed.home.path("added"));
    tree::small_files(&source.join("small"), 1500).unwrap();
    make(&source.join("rich"));
    import(&rekeyed.home.create(), &source);
    fs::create_dir(&added).unwrap();
    rekeyed.begin();
    let filesystem = rekeyed.open();
    std::thread::scope(|scope| {
        let running = scope.spawn(|| done(rekey(&filesystem)));
        for round in 0..6_u32 {
            fs::write(added.join(round.to_string()), tree::noise(round.into(), 100_000)).unwrap();
            import(&filesystem, &added);
            let listed = filesystem.list(Path::new("small")).unwrap();
            assert_eq!((listed.entries.len(), &listed.unreadable[..]), (15, &[][..]));
            if round.is_multiple_of(2) {
                done(filesystem.verify(false, &Watch::default()).unwrap());
                let target = rekeyed.home.path(&format!("target {round}"));
                export(&filesystem, &target);
                assert_equal_trees(&source.join("rich"), &target.join("rich"));
            }
        }
        running.join().unwrap();
    });
    drop(filesystem);
    rekeyed.end();
    for entry in fs::read_dir(&added).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), source.join(entry.file_name())).unwrap();
    }
    let filesystem = rekeyed.open_with(&rekeyed.new).unwrap();
    import(&filesystem, &source);
    rekeyed.assert_exports(&filesystem, &source);
}

#[test]
fn what_is_damaged_stays_under_the_old_key_and_is_named() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 30).unwrap();
    fs::write(source.join("block"), tree::noise(1, 300_000)).unwrap();
    fs::write(source.join("header"), tree::noise(2, 5001)).unwrap();
    fs::write(source.join("large"), tree::noise(3, 20_000_000)).unwrap();
    import(&rekeyed.home.create(), &source);
    let spoil = |len: u64, at: usize| {
        let path = rekeyed.home.backing_file(len);
        let mut bytes = fs::read(&path).unwrap();
        bytes[at] ^= 1;
        fs::write(path, bytes).unwrap();
    };
    let damage = || {
        spoil(300_000, 5 * 4096 + 7);
        spoil(5001, 30);
        spoil(20_000_000, 12_000_000);
    };
    damage();
    rekeyed.begin();
    let filesystem = rekeyed.open();
    for _ in 0..3 {
        let report = rekey(&filesystem);
        assert_eq!(report.outcome, Outcome::PartlyDone);
        assert!(report.lost);
        let mut named: Vec<_> = report.problems.iter().map(|it| it.path.clone()).collect();
        named.sort();
        assert_eq!(named, ["block", "header", "large"].map(PathBuf::from), "{:?}", report.problems);
    }
    // Each that can be mended by turning the bit back is what it was, and done then.
    damage();
    done(filesystem.verify(false, &Watch::default()).unwrap());
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    let filesystem = rekeyed.open_with(&rekeyed.new).unwrap();
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(&filesystem, &rekeyed.home.path("target"));
    for name in ["block", "header", "large"] {
        let read = |dir: &str| fs::read(rekeyed.home.path(dir).join(name)).unwrap();
        assert!(read("source") == read("target"), "{name}");
    }
}

#[test]
fn what_was_set_aside_and_what_a_stopped_import_left_are_not_overlooked() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 3).unwrap();
    fs::write(source.join("damaged"), tree::noise(1, 300_000)).unwrap();
    fs::write(source.join("large"), tree::noise(3, 30_000_000)).unwrap();
    let filesystem = rekeyed.home.create();
    let watch = Watch { stop_at: Some(8), ..Watch::default() };
    let stopped = filesystem.import(&source, None, &watch).unwrap();
    assert_eq!(stopped.outcome, Outcome::Stopped);
    let damaged = rekeyed.home.backing_file(300_000);
    let mut bytes = fs::read(&damaged).unwrap();
    bytes[9000] ^= 1;
    fs::write(&damaged, bytes).unwrap();
    filesystem.verify(true, &Watch::default()).unwrap();
    drop(filesystem);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    let report = rekey(&filesystem);
    assert_eq!((report.outcome, report.problems.len()), (Outcome::PartlyDone, 1));
    let problem = &report.problems[0];
    assert!(problem.reason.contains("set aside"), "{problem:?}");
    let aside = rekeyed.home.backing().join(problem.ciphertext.as_ref().unwrap());
    fs::remove_file(aside).unwrap();
    done(rekey(&filesystem));
    // It begins anew, under the new key alone.
    let resumed = filesystem.import(&source, stopped.checkpoint, &Watch::default()).unwrap();
    assert!(!done(resumed).resumed);
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
}

#[test]
fn an_ordinary_user_s_read_only_things_keep_their_modes() {
    let home = Home::in_memory();
    crate::support::as_ordinary_user(&home, || {
        let source = home.path("source");
        tree::small_files(&source, 5).unwrap();
        let set_mode = |path: &Path, mode: u32| {
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        };
        let dir = source.join("directory-0000");
        for entry in fs::read_dir(&dir).unwrap() {
            set_mode(&entry.unwrap().path(), 0o444);
        }
        set_mode(&dir, 0o555);
        let inner =
            Home { dir: tempfile::tempdir_in(home.dir.path()).unwrap(), key: home.key.clone() };
        import(&inner.create(), &source);
        let rekeyed = Rekeyed::new(inner);
        rekeyed.begin();
        let filesystem = rekeyed.open();
        done(rekey(&filesystem));
        drop(filesystem);
        rekeyed.end();
        rekeyed.assert_has_only_the_new_key(&source);
    });
}

#[test]
fn a_backing_that_cannot_be_written_is_read_with_both_keys_and_the_rekey_says_why_it_fails() {
    needs_root();
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 20).unwrap();
    let backing = rekeyed.home.backing();
    let disk = SmallDisk::mount(&backing, 16);
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    rekey(&rekeyed.open());
    disk.read_only(true);
    let filesystem = rekeyed.open();
    rekeyed.assert_exports(&filesystem, &source);
    let error = filesystem.rekey(&Watch::default()).unwrap_err();
    assert!(error.to_string().contains("Read-only"), "{error}");
    drop((filesystem, disk));
}

#[test]
fn a_full_disk_stops_it_and_it_goes_on_when_there_is_room() {
    needs_root();
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    tree::small_files(&source, 40).unwrap();
    // Only its side file takes room.
    fs::write(source.join("n".repeat(255)), "named").unwrap();
    let backing = rekeyed.home.backing();
    let disk = SmallDisk::mount(&backing, 8);
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    let filler = backing.join("lost+found");
    assert!(fs::write(&filler, vec![0; 16 << 20]).is_err(), "the disk is full");
    let error = filesystem.rekey(&Watch::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Full, "{error}");
    rekeyed.assert_exports(&filesystem, &source);
    fs::remove_file(&filler).unwrap();
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
    drop(disk);
}

#[test]
fn an_export_that_was_stopped_before_misses_nothing_after() {
    let rekeyed = Rekeyed::new(Home::in_memory());
    let source = rekeyed.home.path("source");
    make(&source);
    import(&rekeyed.home.create(), &source);
    let target = rekeyed.home.path("target");
    let stop = |filesystem: &Filesystem, resume, stop_at| {
        let watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
        let report = filesystem.export(&target, resume, &watch).unwrap();
        assert_eq!(report.outcome, Outcome::Stopped);
        report.checkpoint
    };
    let checkpoint = stop(&rekeyed.open_with(&rekeyed.home.key).unwrap(), None, 30);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    let checkpoint = stop(&filesystem, checkpoint, 40);
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    let filesystem = rekeyed.open_with(&rekeyed.new).unwrap();
    assert!(!done(filesystem.export(&target, checkpoint, &Watch::default()).unwrap()).resumed);
    assert_equal_trees(&source, &target);
}

/// ext4 has room for one of this length in an inode, not for two.
#[test]
fn an_attribute_that_has_no_room_for_a_second_one_is_sealed_again() {
    let rekeyed = Rekeyed::new(Home::new());
    let source = rekeyed.home.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    for name in ["file", "dir"] {
        set_xattr(&source.join(name), "user.long", &tree::noise(1, 2500));
    }
    import(&rekeyed.home.create(), &source);
    rekeyed.begin();
    let filesystem = rekeyed.open();
    done(rekey(&filesystem));
    drop(filesystem);
    rekeyed.end();
    rekeyed.assert_has_only_the_new_key(&source);
}

//! Jobs that are stopped anywhere and taken up again give the same tree.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use filesystem::{
    Backend, Checkpoint, Control, Filesystem, Outcome, Problem, ProblemKind, Progress, Report,
};
use testkit::tree;

use crate::support::{Home, Watch, assert_equal_trees, done, export, files_below, import};

/// Files small and of several segments, sparse, hard-linked over directories, long names, links.
fn make_source(root: &Path) {
    tree::small_files(root, 130).unwrap();
    for dir in ["directory-0000", "zz/deep/er"] {
        fs::create_dir_all(root.join(dir)).unwrap();
        fs::write(root.join(dir).join("large"), tree::noise(1, 9_500_000)).unwrap();
        fs::write(root.join(dir).join("n".repeat(250)), "long name").unwrap();
    }
    fs::write(root.join("directory-0001/linked large"), tree::noise(2, 9_000_000)).unwrap();
    for (old, new) in [
        ("directory-0001/linked large", "zz/deep/linked"),
        ("directory-0000/file-000001.txt", "zz/linked small"),
        ("directory-0000/file-000001.txt", "directory-0001/again"),
    ] {
        fs::hard_link(root.join(old), root.join(new)).unwrap();
    }
    let sparse = fs::File::create(root.join("zz/sparse")).unwrap();
    sparse.set_len(40 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 20 << 20).unwrap();
    std::os::unix::fs::symlink("x".repeat(2000), root.join("zz/link")).unwrap();
}

/// Runs `job` again and again, each time stopped after `step` more questions, through the JSON
/// that a job record would hold; answers how often it was stopped.
fn run_in_steps(step: u64, mut job: impl FnMut(Option<Checkpoint>, &Watch) -> Report) -> usize {
    let mut resume = None;
    for stops in 0.. {
        let watch = Watch { stop_at: Some(step), ..Watch::default() };
        let report = job(resume, &watch);
        assert_eq!(report.problems, []);
        if report.outcome == Outcome::Done {
            assert_eq!(report.progress.files_done, report.progress.files_total);
            assert_eq!(report.progress.bytes_done, report.progress.bytes_total);
            return stops;
        }
        assert_eq!(report.outcome, Outcome::Stopped);
        assert_eq!(*watch.checkpoint.lock().unwrap(), report.checkpoint);
        let text = serde_json::to_string(&report.checkpoint).unwrap();
        resume = serde_json::from_str(&text).unwrap();
    }
    unreachable!()
}

#[test]
fn an_import_stopped_at_many_points_and_reopened_each_time() {
    let home = Home::in_memory();
    let source = home.path("source");
    make_source(&source);
    for (n, step) in [2, 3, 7, 40, 111].into_iter().enumerate() {
        let home = Home::in_memory();
        drop(home.create());
        let stops =
            run_in_steps(step, |resume, watch| home.open().import(&source, resume, watch).unwrap());
        assert!(stops >= [80, 40, 15, 3, 1][n], "step {step}: {stops} stops");
        let filesystem = home.open();
        done(filesystem.verify(false, &Watch::default()).unwrap());
        export(&filesystem, &home.path("target"));
        assert_equal_trees(&source, &home.path("target"));
        let kept = home.backing().join("coffer.tmp/resume");
        assert_eq!(fs::read_dir(kept).unwrap().count(), 0, "nothing is kept after the end");
    }
}

#[test]
fn an_export_stopped_at_many_points() {
    let home = Home::in_memory();
    let source = home.path("source");
    make_source(&source);
    let filesystem = home.create();
    import(&filesystem, &source);
    for step in [2, 5, 50] {
        let target = home.path(&format!("target-{step}"));
        run_in_steps(step, |resume, watch| filesystem.export(&target, resume, watch).unwrap());
        assert_equal_trees(&source, &target);
    }
}

/// What came after the last checkpoint is done again: here the process "dies" with all of it on disk.
#[test]
fn an_import_goes_on_from_an_older_checkpoint() {
    let home = Home::new();
    let (source, target) = (home.path("source"), home.path("target"));
    make_source(&source);
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(60), ..Watch::default() };
    let older = filesystem.import(&source, None, &watch).unwrap().checkpoint.unwrap();
    let watch = Watch { stop_at: Some(50), ..Watch::default() };
    filesystem.import(&source, Some(older.clone()), &watch).unwrap().checkpoint.unwrap();
    drop(filesystem);
    let filesystem = home.open();
    done(filesystem.import(&source, Some(older), &Watch::default()).unwrap());
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(&filesystem, &target);
    assert_equal_trees(&source, &target);
}

#[test]
fn a_large_file_is_taken_up_in_its_middle_only_while_its_source_is_the_same() {
    for change in [false, true] {
        let home = Home::new();
        let source = home.path("source");
        fs::create_dir(&source).unwrap();
        let large = source.join("large");
        fs::write(&large, tree::noise(3, 40_000_000)).unwrap();
        let filesystem = home.create();
        let watch = Watch { stop_at: Some(7), ..Watch::default() };
        let stopped = filesystem.import(&source, None, &watch).unwrap();
        let done_before = stopped.progress.bytes_done;
        assert!(done_before > 15_000_000, "{done_before}");
        let text = serde_json::to_string(&stopped.checkpoint).unwrap();
        assert!(text.contains("\"segment\":6"), "{text}");
        if change {
            fs::write(&large, tree::noise(4, 30_000_000)).unwrap();
        }
        let watch = Watch::default();
        let report = filesystem.import(&source, stopped.checkpoint, &watch).unwrap();
        let segments = watch.asked.load(Ordering::Relaxed);
        assert!(if change { segments >= 8 } else { segments <= 6 }, "{segments}");
        done(report);
        export(&filesystem, &home.path("target"));
        assert_equal_trees(&source, &home.path("target"));
    }
}

/// Where it lies no page of a file in the making shows what is a hole: somebody who zeroes a part of it makes none.
#[test]
fn a_part_of_a_large_file_that_is_lost_while_its_import_is_stopped_does_not_pass_for_a_hole() {
    for (group, len) in [(5, 256 << 10), (16, 4096), (0, 0)] {
        let home = Home::new();
        let source = home.path("source");
        fs::create_dir(&source).unwrap();
        let file = fs::File::create(source.join("large")).unwrap();
        // Of 40 MB all but the groups from 2 to 4 MiB, which are a hole.
        file.write_all_at(&tree::noise(5, 2 << 20), 0).unwrap();
        file.write_all_at(&tree::noise(6, 36_000_000), 4 << 20).unwrap();
        let filesystem = home.create();
        let watch = Watch { stop_at: Some(5), ..Watch::default() };
        let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
        let staged = files_below(&home.backing().join("coffer.tmp/resume"));
        let [staged] = &staged[..] else { panic!("{staged:?}") };
        let backing = fs::File::options().write(true).open(staged).unwrap();
        backing.write_all_at(&vec![0; len], group * (256 << 10)).unwrap();
        let text = serde_json::to_string(&checkpoint).unwrap();
        let watch = Watch::default();
        done(filesystem.import(&source, serde_json::from_str(&text).unwrap(), &watch).unwrap());
        let from_the_start = watch.asked.load(Ordering::Relaxed) >= 10;
        assert_eq!(from_the_start, len > 0, "{:?}", watch.asked);
        done(filesystem.verify(false, &Watch::default()).unwrap());
        export(&filesystem, &home.path("target"));
        assert_equal_trees(&source, &home.path("target"));
    }
}

/// All of it is authentic, and it is not the file that was begun.
#[test]
fn a_half_imported_file_is_not_gone_on_with_in_another_one() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    for (name, seed) in [("0 other", 1), ("1 large", 2)] {
        fs::write(source.join(name), tree::noise(seed, 20_000_000)).unwrap();
    }
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(9), ..Watch::default() };
    let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
    let staged = files_below(&home.backing().join("coffer.tmp/resume")).remove(0);
    fs::copy(home.backing_file(20_000_000), staged).unwrap();
    done(filesystem.import(&source, checkpoint, &Watch::default()).unwrap());
    export(&filesystem, &home.path("target"));
    for name in ["0 other", "1 large"] {
        let [is, was] = [home.path("target"), source.clone()].map(|dir| fs::read(dir.join(name)));
        assert!(is.unwrap() == was.unwrap(), "{name}");
    }
}

/// The group with the hole map is sealed again at the end: what it has must be authentic until then, and is not when the
/// process died while it did that.
#[test]
fn a_block_that_is_altered_while_its_import_is_stopped_is_not_sealed_as_zeros() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("large")).unwrap();
    file.write_all_at(&tree::noise(5, 1 << 20), 0).unwrap();
    file.write_all_at(&tree::noise(6, 36_000_000), 4 << 20).unwrap();
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(5), ..Watch::default() };
    let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
    let staged = files_below(&home.backing().join("coffer.tmp/resume")).remove(0);
    let backing = fs::File::options().write(true).open(staged).unwrap();
    backing.write_all_at(b"altered", 5 * 4096).unwrap();
    let watch = Watch::default();
    done(filesystem.import(&source, checkpoint, &watch).unwrap());
    assert!(watch.asked.into_inner() >= 10, "from its start");
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(&filesystem, &home.path("target"));
    assert_equal_trees(&source, &home.path("target"));
}

#[test]
fn a_fresh_import_forgets_what_a_stopped_one_kept() {
    let home = Home::new();
    let source = home.path("source");
    make_source(&source);
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(20), ..Watch::default() };
    filesystem.import(&source, None, &watch).unwrap();
    import(&filesystem, &source);
    let kept = home.backing().join("coffer.tmp/resume");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 0);
    export(&filesystem, &home.path("target"));
    assert_equal_trees(&source, &home.path("target"));
    let linked = fs::metadata(home.path("target/zz/linked small")).unwrap();
    assert_eq!(linked.nlink(), 3);
}

/// What has several names, the first of them done and the others not when an import was stopped.
fn stopped_among_links(home: &Home, filesystem: &Filesystem) -> (PathBuf, Checkpoint) {
    let source = home.path("source");
    tree::small_files(&source, 40).unwrap();
    fs::write(source.join("0 first"), "what they shared").unwrap();
    for name in ["y second", "z third"] {
        fs::hard_link(source.join("0 first"), source.join(name)).unwrap();
    }
    let watch = Watch { stop_at: Some(20), ..Watch::default() };
    let stopped = filesystem.import(&source, None, &watch).unwrap();
    assert_eq!(stopped.outcome, Outcome::Stopped);
    let there = filesystem.list(Path::new("/")).unwrap().entries;
    assert!(there.iter().any(|entry| entry.name == "0 first"));
    assert!(!there.iter().any(|entry| entry.name == "y second"));
    (source, stopped.checkpoint.unwrap())
}

#[test]
fn an_inode_that_was_used_again_while_an_import_was_stopped_has_its_own_content() {
    let home = Home::new();
    let filesystem = home.create();
    let (source, checkpoint) = stopped_among_links(&home, &filesystem);
    let (first, second) = (source.join("0 first"), source.join("y second"));
    let before = fs::metadata(&second).unwrap();
    fs::remove_file(first).unwrap();
    // Inode, length and time of change are what they were, and it still has two names.
    fs::write(&second, "another content.").unwrap();
    fs::File::open(&second).unwrap().set_modified(before.modified().unwrap()).unwrap();
    let after = fs::metadata(&second).unwrap();
    let identity = |stat: &fs::Metadata| (stat.ino(), stat.len(), stat.mtime(), stat.mtime_nsec());
    assert_eq!(identity(&before), identity(&after));
    done(filesystem.import(&source, Some(checkpoint), &Watch::default()).unwrap());
    let target = home.path("target");
    export(&filesystem, &target);
    for name in ["y second", "z third"] {
        assert_eq!(fs::read(target.join(name)).unwrap(), b"another content.");
        assert_eq!(fs::metadata(target.join(name)).unwrap().nlink(), 2);
    }
    assert_eq!(fs::read(target.join("0 first")).unwrap(), b"what they shared");
}

#[test]
fn links_stay_links_when_another_import_ran_while_theirs_was_stopped() {
    let home = Home::new();
    let filesystem = home.create();
    let (source, checkpoint) = stopped_among_links(&home, &filesystem);
    let other = home.path("other");
    fs::create_dir(&other).unwrap();
    fs::write(other.join("x one"), "of the other").unwrap();
    fs::hard_link(other.join("x one"), other.join("x two")).unwrap();
    import(&filesystem, &other);
    done(filesystem.import(&source, Some(checkpoint), &Watch::default()).unwrap());
    let target = home.path("target");
    export(&filesystem, &target);
    for name in ["0 first", "y second", "z third"] {
        assert_eq!(fs::metadata(target.join(name)).unwrap().nlink(), 3, "{name}");
    }
    assert_eq!(fs::metadata(target.join("x one")).unwrap().nlink(), 2);
    let kept = home.backing().join("coffer.tmp/resume");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 0, "nothing is kept after the end");
}

/// Checkpoints that are taken while the job goes on, each good to go on from.
#[test]
fn any_checkpoint_of_a_running_import_is_good() {
    #[derive(Default)]
    struct Collect(Watch, Mutex<Vec<Checkpoint>>);
    impl Control for Collect {
        fn stop_requested(&self) -> bool {
            self.0.stop_requested()
        }
        fn progress(&self, progress: &Progress) {
            self.0.progress(progress);
        }
        fn checkpoint(&self, checkpoint: &Checkpoint) {
            self.1.lock().unwrap().push(checkpoint.clone());
        }
        fn problem(&self, problem: &Problem) {
            self.0.problem(problem);
        }
    }
    let home = Home::in_memory();
    let source = home.path("source");
    make_source(&source);
    let run = || {
        let home = Home::in_memory();
        let mut filesystem = home.create();
        filesystem.set_checkpoint_interval(Duration::ZERO);
        (home, filesystem)
    };
    for (stop_at, nth) in [(30, 0), (60, 1), (100, 1), (150, 2), (u64::MAX, 0)] {
        let (home, filesystem) = run();
        // It dies after some more work than the checkpoint tells.
        let watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
        let collect = Collect(watch, Mutex::default());
        filesystem.import(&source, None, &collect).unwrap();
        let seen = collect.1.into_inner().unwrap();
        // How many there are is a matter of speed; the last of a run is its end's own. Once a run has
        // come to its end only that one counts: the caller has it before anything is tidied up.
        let finished = stop_at == u64::MAX;
        let nth = if finished { seen.len() - 1 } else { nth.min(seen.len() - 1) };
        let checkpoint = seen[nth].clone();
        drop(filesystem);
        let filesystem = home.open();
        done(filesystem.import(&source, Some(checkpoint), &Watch::default()).unwrap());
        export(&filesystem, &home.path("target"));
        assert_equal_trees(&source, &home.path("target"));
    }
}

/// Killed for real, again and again, at moments that nobody chose.
#[test]
fn a_killed_import_leaves_whole_files_and_goes_on() {
    let home = Home::new();
    let source = home.path("source");
    make_source(&source);
    drop(home.create());
    let checkpoint = home.path("checkpoint");
    let mut killed = 0;
    for delay in [3, 10, 20, 30, 45, 60, 80, 100] {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "--ignored", "resume::the_child_that_is_killed"])
            .env("COFFER_TEST_HOME", home.dir.path())
            .env("COFFER_TEST_KEY", home.key.expose(|bytes| hex::encode(bytes)))
            .env("COFFER_TEST_KEY_ID", home.key.id().to_string())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        // The delay counts from its first sign of life.
        while !home.path("started").exists() {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(delay));
        child.kill().unwrap();
        killed += usize::from(!child.wait().unwrap().success());
        fs::remove_file(home.path("started")).unwrap();
        let report = home.open().verify(false, &Watch::default()).unwrap();
        let damaged: Vec<_> =
            report.problems.iter().filter(|p| p.kind != ProblemKind::Leftover).collect();
        assert!(damaged.is_empty(), "{damaged:?}");
    }
    assert!(killed >= 1, "none of 8 was killed while it worked");
    let filesystem = home.open();
    let resume = fs::read(&checkpoint).ok().map(|text| serde_json::from_slice(&text).unwrap());
    done(filesystem.import(&source, resume, &Watch::default()).unwrap());
    export(&filesystem, &home.path("target"));
    assert_equal_trees(&source, &home.path("target"));
}

#[test]
#[ignore = "started, and killed, by the test above"]
fn the_child_that_is_killed() {
    struct ToFile(PathBuf);
    impl Control for ToFile {
        fn stop_requested(&self) -> bool {
            false
        }
        fn progress(&self, _: &Progress) {}
        fn checkpoint(&self, checkpoint: &Checkpoint) {
            let next = self.0.with_extension("next");
            fs::write(&next, serde_json::to_string(checkpoint).unwrap()).unwrap();
            fs::rename(next, &self.0).unwrap();
        }
        fn problem(&self, problem: &Problem) {
            panic!("{problem:?}");
        }
    }
    let home = PathBuf::from(std::env::var_os("COFFER_TEST_HOME").unwrap());
    let mut bytes = [0; 32];
    hex::decode_to_slice(std::env::var("COFFER_TEST_KEY").unwrap(), &mut bytes).unwrap();
    let id = std::env::var("COFFER_TEST_KEY_ID").unwrap().parse().unwrap();
    let key = Arc::new(kms_core::FilesystemKey::from_bytes(id, &bytes).unwrap());
    let mut filesystem = Filesystem::open(&home.join("backing"), key, Backend::default()).unwrap();
    filesystem.set_checkpoint_interval(Duration::from_millis(10));
    let checkpoint = home.join("checkpoint");
    let resume = fs::read(&checkpoint).ok().map(|text| serde_json::from_slice(&text).unwrap());
    fs::write(home.join("started"), "").unwrap();
    filesystem.import(&home.join("source"), resume, &ToFile(checkpoint)).unwrap();
}

#[test]
fn an_export_whose_target_was_removed_begins_anew_and_fills_no_other() {
    let home = Home::in_memory();
    let (source, target) = (home.path("source"), home.path("target"));
    make_source(&source);
    let filesystem = home.create();
    import(&filesystem, &source);
    let stopped = || {
        let watch = Watch { stop_at: Some(90), ..Watch::default() };
        filesystem.export(&target, None, &watch).unwrap().checkpoint
    };
    let checkpoint = stopped();
    fs::remove_dir_all(&target).unwrap();
    let report = done(filesystem.export(&target, checkpoint, &Watch::default()).unwrap());
    assert_eq!((report.resumed, report.progress.files_done), (false, report.progress.files_total));
    assert_equal_trees(&source, &target);

    fs::remove_dir_all(&target).unwrap();
    let checkpoint = stopped();
    fs::remove_dir_all(&target).unwrap();
    fs::create_dir(&target).unwrap();
    fs::write(target.join("not ours"), "").unwrap();
    let refused = filesystem.export(&target, checkpoint, &Watch::default()).unwrap_err();
    assert!(refused.to_string().contains("not empty"), "{refused}");

    fs::remove_dir_all(&target).unwrap();
    let checkpoint = stopped();
    assert!(done(filesystem.export(&target, checkpoint, &Watch::default()).unwrap()).resumed);
    assert_equal_trees(&source, &target);
}

/// Keeps every checkpoint.
#[derive(Default)]
struct Told(Mutex<Vec<Checkpoint>>);

impl Control for Told {
    fn stop_requested(&self) -> bool {
        false
    }

    fn progress(&self, _: &Progress) {}

    fn checkpoint(&self, checkpoint: &Checkpoint) {
        self.0.lock().unwrap().push(checkpoint.clone());
    }

    fn problem(&self, _: &Problem) {}
}

#[test]
fn an_import_whose_source_is_another_directory_begins_anew() {
    let home = Home::in_memory();
    let (source, target) = (home.path("source"), home.path("target"));
    make_source(&source);
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(60), ..Watch::default() };
    let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
    fs::rename(&source, home.path("moved away")).unwrap();
    make_source(&source);
    fs::write(source.join("directory-0000/a-new-one"), "of the other tree").unwrap();
    let told = Told::default();
    let report = done(filesystem.import(&source, checkpoint, &told).unwrap());
    assert_eq!(told.0.lock().unwrap()[0], Checkpoint::default(), "a crash must not find the old");
    assert_eq!((report.resumed, report.progress.files_done), (false, report.progress.files_total));
    export(&filesystem, &target);
    assert_equal_trees(&source, &target);
}

#[test]
fn a_checkpoint_of_something_else_is_refused() {
    let home = Home::new();
    let source = home.path("source");
    tree::small_files(&source, 1).unwrap();
    let filesystem: Filesystem = home.create();
    let watch = Watch { stop_at: Some(1), ..Watch::default() };
    let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint;
    let text = serde_json::to_string(&checkpoint).unwrap();
    let next = serde_json::from_str::<serde_json::Value>(&text).unwrap()["next"][0].clone();
    let forged = text.replace(next.as_str().unwrap(), "zz");
    let forged = serde_json::from_str(&forged).unwrap();
    let refused = filesystem.import(&source, forged, &Watch::default()).unwrap_err();
    assert!(refused.how_to_mend().contains("start the job anew"), "{refused}");
}

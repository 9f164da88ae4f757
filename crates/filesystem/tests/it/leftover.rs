//! What nothing needs is told from what is needed by something that can't be read.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use filesystem::{Outcome, Problem, ProblemKind, Report};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

use crate::support::{Home, Watch, done, export, files_below, import};

/// A tree with a long link in its root and another one in `dir`.
fn with_long_links() -> Home {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    for (name, letter) in [("link", "a"), ("dir/link", "b")] {
        symlink(letter.repeat(3000), source.join(name)).unwrap();
    }
    fs::write(source.join("file"), "data").unwrap();
    import(&home.create(), &source);
    assert_eq!(records(&home).len(), 2);
    home
}

fn records(home: &Home) -> Vec<PathBuf> {
    files_below(&home.backing().join("coffer.links"))
}

/// What lies directly in the ciphertext root and is such a thing.
fn in_root(home: &Home, is: fn(&Path) -> bool) -> PathBuf {
    let entries = fs::read_dir(home.backing().join("root")).unwrap();
    entries.map(|entry| entry.unwrap().path()).find(|path| is(path)).unwrap()
}

fn verify(home: &Home, repair: bool) -> Report {
    home.open().verify(repair, &Watch::default()).unwrap()
}

fn not_looked_for(problem: &Problem) -> bool {
    problem.kind == ProblemKind::Skipped && problem.reason.contains("not looked for")
}

/// All is there again; only times have changed where something was taken out and put back.
fn assert_sound(home: &Home) {
    done(verify(home, true));
    export(&home.open(), &home.path("target"));
    let content = |tree: &str| -> Vec<_> {
        let entries = testkit::tree::survey(home.path(tree)).unwrap();
        entries.into_iter().map(|(path, entry)| (path, entry.content)).collect()
    };
    assert_eq!(content("source"), content("target"));
}

/// Runs it where permissions count, as they do not for root.
fn without_power<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let run = || {
            let mut mine = capabilities(None).unwrap();
            mine.effective.remove(CapabilitySet::DAC_OVERRIDE | CapabilitySet::DAC_READ_SEARCH);
            set_capabilities(None, mine).unwrap();
            run()
        };
        scope.spawn(run).join().unwrap()
    })
}

#[test]
fn what_a_directory_needs_that_can_t_be_read_now_stays() {
    let home = with_long_links();
    let dir = in_root(&home, Path::is_dir);
    let mode = fs::metadata(&dir).unwrap().permissions();
    fs::set_permissions(&dir, Permissions::from_mode(0o000)).unwrap();
    for repair in [false, true] {
        let report = without_power(|| verify(&home, repair));
        let [unread, leftovers] = &report.problems[..] else { panic!("{:?}", report.problems) };
        assert_eq!((unread.path.as_path(), unread.kind), (Path::new("dir"), ProblemKind::Io));
        assert!(not_looked_for(leftovers), "{leftovers:?}");
        assert_eq!(leftovers.ciphertext.as_deref(), Some(Path::new("coffer.links")));
        assert_eq!(report.progress.failed, 1);
    }
    fs::set_permissions(&dir, mode).unwrap();
    assert_sound(&home);
}

#[test]
fn a_copy_of_the_key_that_can_t_be_read_now_is_no_damage() {
    let home = with_long_links();
    let header = home.backing().join("coffer.key");
    fs::set_permissions(&header, Permissions::from_mode(0o000)).unwrap();
    let report = without_power(|| verify(&home, false));
    let [unread] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!((unread.kind, report.lost), (ProblemKind::Io, false), "{unread:?}");
    fs::remove_file(header).unwrap();
    assert_eq!(verify(&home, false).problems[0].kind, ProblemKind::Damaged);
}

#[test]
fn what_a_damaged_directory_needs_stays_until_it_is_brought_back() {
    let home = with_long_links();
    let dir = in_root(&home, Path::is_dir);
    let record = fs::read(dir.join("coffer.dir")).unwrap();
    fs::remove_file(dir.join("coffer.dir")).unwrap();
    let report = verify(&home, true);
    let [damaged] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(damaged.kind, ProblemKind::Damaged);
    let place = damaged.reason.split("set aside as ").nth(1).expect(&damaged.reason);
    // What is set aside is no part of the tree any more, and needs its targets as before.
    done(verify(&home, true));
    assert_eq!(records(&home).len(), 2);
    fs::rename(home.backing().join(place), &dir).unwrap();
    fs::write(dir.join("coffer.dir"), record).unwrap();
    assert_sound(&home);
}

#[test]
fn what_a_link_needs_whose_text_is_damaged_stays() {
    let home = with_long_links();
    let link = in_root(&home, Path::is_symlink);
    let text = fs::read_link(&link).unwrap();
    fs::remove_file(&link).unwrap();
    symlink("l", &link).unwrap();
    let report = verify(&home, true);
    let [damaged, leftovers] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(damaged.kind, ProblemKind::Damaged);
    assert!(not_looked_for(leftovers), "{leftovers:?}");
    symlink(text, &link).unwrap();
    assert_sound(&home);
}

#[test]
fn what_is_kept_for_a_stopped_job_stays() {
    let home = with_long_links();
    let link = in_root(&home, Path::is_symlink);
    let kept = home.backing().join("coffer.tmp/resume/1-1");
    fs::create_dir(&kept).unwrap();
    fs::rename(&link, kept.join("anchor")).unwrap();
    done(verify(&home, true));
    fs::rename(kept.join("anchor"), link).unwrap();
    assert_sound(&home);
}

#[test]
fn what_lies_in_something_that_coffer_did_not_put_there_stays() {
    let home = with_long_links();
    let dir = in_root(&home, Path::is_dir);
    let renamed = dir.with_extension("bak");
    fs::rename(&dir, &renamed).unwrap();
    let report = verify(&home, false);
    let [stranger, leftovers] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(stranger.kind, ProblemKind::Leftover);
    assert!(not_looked_for(leftovers), "{leftovers:?}");
    fs::rename(renamed, dir).unwrap();
    assert_sound(&home);
}

/// NFS, for one, keeps a file under such a name as long as somebody has it open.
#[test]
fn what_coffer_did_not_put_there_is_named_and_no_damage_to_anyone() {
    let home = with_long_links();
    let (root, dir) = (home.backing().join("root"), in_root(&home, Path::is_dir));
    fs::write(root.join(".nfs0001"), "of another program").unwrap();
    // So much that it would be read in segments, and one that is none of Coffer's directories.
    fs::File::create(dir.join("core.1")).unwrap().set_len(10 << 20).unwrap();
    fs::create_dir(root.join("lost+found")).unwrap();
    let filesystem = home.open();
    let target = home.path("target");
    for report in [
        filesystem.verify(false, &Watch::default()).unwrap(),
        filesystem.export(&target, None, &Watch::default()).unwrap(),
    ] {
        assert_eq!((report.outcome, report.progress.failed), (Outcome::Done, 0), "{report:?}");
        assert_eq!(report.progress.files_done, report.progress.files_total);
        let mut found: Vec<_> = report.problems.iter().map(stranger).collect();
        found.sort_unstable();
        assert_eq!(found, [("", ".nfs0001"), ("", "lost+found"), ("dir", "core.1")]);
    }
    assert_eq!(fs::read_dir(target).unwrap().count(), 3);
    let listing = filesystem.list(Path::new("/")).unwrap();
    assert_eq!(listing.entries.len(), 3);
    let found: Vec<_> = listing.unreadable.iter().map(stranger).collect();
    assert_eq!(found, [("", ".nfs0001"), ("", "lost+found")]);
    assert_eq!(filesystem.usage().unwrap().files, 1);
}

/// Path and backing name of a leftover.
fn stranger(problem: &Problem) -> (&str, &str) {
    assert_eq!(problem.kind, ProblemKind::Leftover, "{problem:?}");
    let name = problem.ciphertext.as_ref().unwrap().file_name().unwrap();
    (problem.path.to_str().unwrap(), name.to_str().unwrap())
}

#[test]
fn a_record_that_nothing_needs_is_set_aside() {
    let home = with_long_links();
    fs::remove_file(in_root(&home, Path::is_symlink)).unwrap();
    for repair in [false, true] {
        let report = verify(&home, repair);
        let [leftover] = &report.problems[..] else { panic!("{:?}", report.problems) };
        assert_eq!(leftover.kind, ProblemKind::Leftover);
        assert_eq!(leftover.reason.contains("set aside as"), repair);
    }
    assert_eq!(records(&home).len(), 1);
    done(verify(&home, false));
}

#[test]
fn the_side_file_of_a_name_that_can_t_be_read_stays() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("n".repeat(255)), "long").unwrap();
    import(&home.create(), &source);
    let side = in_root(&home, |path| path.extension().is_some_and(|it| it == "name"));
    let entry = side.with_extension("");
    let altered = entry.with_file_name(format!("l{}", "a".repeat(43)));
    fs::rename(&entry, &altered).unwrap();
    let report = verify(&home, true);
    let [damaged, leftovers] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(damaged.kind, ProblemKind::Damaged);
    assert!(not_looked_for(leftovers), "{leftovers:?}");
    let place = damaged.reason.split("set aside as ").nth(1).expect(&damaged.reason);
    fs::rename(home.backing().join(place), entry).unwrap();
    assert_sound(&home);
}

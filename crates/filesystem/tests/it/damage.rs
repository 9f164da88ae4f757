//! Every sort of damage is found, named, and spoils nothing else.

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_path::layout::{GROUP, PAGE, backing_len};
use filesystem::{
    Backend, EntryKind, ErrorKind, Filesystem, Outcome, Problem, ProblemKind, Report,
};
use kms_core::FilesystemKey;
use testkit::tree;

use crate::support::{Home, Watch, assert_equal_trees, done, files_below, import, needs_root};

/// Three groups, and sizes that tell the files apart.
const LARGE: u64 = 600_001;
const SMALL: u64 = 5_000;
const SEGMENTS: u64 = 9_000_003;

struct Case {
    home: Home,
    source: PathBuf,
}

impl Case {
    fn new() -> Self {
        let home = Home::new();
        let source = home.path("source");
        fs::create_dir_all(source.join("dir")).unwrap();
        for (name, len) in
            [("dir/large", LARGE), ("dir/small", SMALL), ("dir/segments", SEGMENTS), ("sound", 77)]
        {
            fs::write(source.join(name), tree::noise(len, len as usize)).unwrap();
        }
        import(&home.create(), &source);
        Self { home, source }
    }

    fn backing(&self, len: u64) -> PathBuf {
        self.home.backing_file(len)
    }

    /// Both `verify` and `export` must name exactly these plain paths with this ciphertext path,
    /// and the rest must come out whole.
    fn finds(&self, damaged: &str, ciphertext: &Path) -> Problem {
        let filesystem = self.home.open();
        let verified = filesystem.verify(false, &Watch::default()).unwrap();
        let problem = the_problem(&verified, damaged, ciphertext, &self.home);
        self.exports_all_but(&filesystem, damaged, ciphertext);
        problem
    }

    fn exports_all_but(&self, filesystem: &Filesystem, damaged: &str, ciphertext: &Path) {
        let target = self.home.path("target");
        let report = filesystem.export(&target, None, &Watch::default()).unwrap();
        the_problem(&report, damaged, ciphertext, &self.home);
        assert!(!target.join(damaged).exists(), "nothing may appear under a damaged file's name");
        let mut expected: Vec<_> = files_below(&self.source);
        expected.retain(|path| !path.starts_with(self.source.join(damaged)));
        for path in &expected {
            let copy = target.join(path.strip_prefix(&self.source).unwrap());
            assert!(fs::read(path).unwrap() == fs::read(&copy).unwrap(), "{copy:?}");
        }
        assert_eq!(files_below(&target).len(), expected.len());
        fs::remove_dir_all(target).unwrap();
    }
}

fn the_problem(report: &Report, damaged: &str, ciphertext: &Path, home: &Home) -> Problem {
    assert_eq!(report.outcome, Outcome::PartlyDone);
    let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
    assert_eq!(problem.path, Path::new(damaged), "{problem:?}");
    assert_eq!(problem.kind, ProblemKind::Damaged);
    let relative = ciphertext.strip_prefix(home.backing()).unwrap();
    assert_eq!(problem.ciphertext.as_deref(), Some(relative));
    problem.clone()
}

fn flip(path: &Path, at: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 1], at).unwrap();
}

fn zero(path: &Path, at: u64, len: usize) {
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.write_all_at(&vec![0; len], at).unwrap();
}

#[test]
fn a_flipped_byte_anywhere() {
    let case = Case::new();
    let path = case.backing(LARGE);
    let whole = fs::read(&path).unwrap();
    let len = backing_len(LARGE);
    // The header's open part and salt, tag pages, blocks of each group, the last byte.
    for at in [0, 9, 50, 300, 400, 4095, 4096, 70_000, 262_144, 262_145, 300_000, 530_000, len - 1]
    {
        flip(&path, at);
        let problem = case.finds("dir/large", &path);
        assert!(!problem.reason.is_empty());
        fs::write(&path, &whole).unwrap();
    }
    done(case.home.open().verify(false, &Watch::default()).unwrap());
}

#[test]
fn a_damaged_copy_of_the_header_is_named_and_written_again_from_the_other() {
    let case = Case::new();
    for (name, size) in [("dir/small", SMALL), ("dir/segments", SEGMENTS)] {
        let path = case.backing(size);
        // Bytes of the first and of the second sealed copy (docs/formats.md).
        for (copy, at) in [(184..228, 190), (228..272, 240)] {
            let whole = fs::read(&path).unwrap();
            flip(&path, at);
            let (damaged, before) = (fs::read(&path).unwrap(), fs::metadata(&path).unwrap());
            let filesystem = case.home.open();
            let report = filesystem.verify(false, &Watch::default()).unwrap();
            let problem = the_problem(&report, name, &path, &case.home);
            assert!(problem.reason.ends_with("the other copy is good"), "{problem:?}");
            assert!(fs::read(&path).unwrap() == damaged, "only repair writes");
            done(filesystem.export(&case.home.path("target"), None, &Watch::default()).unwrap());
            fs::remove_dir_all(case.home.path("target")).unwrap();

            let report = filesystem.verify(true, &Watch::default()).unwrap();
            assert!(!report.lost);
            let problem = the_problem(&report, name, &path, &case.home);
            assert!(problem.reason.ends_with("; written again"), "{problem:?}");
            let mended = fs::read(&path).unwrap();
            assert!(mended[copy.clone()] != damaged[copy.clone()]);
            let outside = |bytes: &[u8]| [&bytes[..copy.start], &bytes[copy.end..]].concat();
            assert!(outside(&mended) == outside(&whole), "no other byte is touched");
            assert_eq!(
                fs::metadata(&path).unwrap().modified().unwrap(),
                before.modified().unwrap()
            );
            done(filesystem.verify(false, &Watch::default()).unwrap());
        }
    }
    // A file that is set aside is set aside as it is.
    let path = case.backing(SMALL);
    flip(&path, 190);
    flip(&path, 5000);
    let damaged = fs::read(&path).unwrap();
    let report = case.home.open().verify(true, &Watch::default()).unwrap();
    assert!(report.lost);
    let place = report.problems[0].reason.split("set aside as ").nth(1).unwrap();
    assert!(fs::read(case.home.backing().join(place)).unwrap() == damaged);
}

#[test]
fn a_damaged_attribute_is_set_aside_and_the_rest_stays() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    fs::write(source.join("file"), "data").unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    for place in ["file", "dir"] {
        for name in ["user.good", "user.bad"] {
            rustix::fs::lsetxattr(source.join(place), name, name.as_bytes(), flags).unwrap();
        }
    }
    import(&home.create(), &source);
    let file = home.backing_file(4);
    let dir = fs::read_dir(home.backing().join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_dir())
        .unwrap();
    let mut forged = Vec::new();
    for path in [&file, &dir] {
        let mut value = vec![0; 1000];
        let name = attributes(path).remove(0);
        let len = rustix::fs::lgetxattr(path, &name, value.as_mut_slice()).unwrap();
        value.truncate(len);
        value[len - 1] ^= 1;
        rustix::fs::lsetxattr(path, &name, &value, flags).unwrap();
        forged.push((path.clone(), name, value));
    }
    // One that is not Coffer's at all.
    rustix::fs::lsetxattr(&file, "user.stranger", b"here", flags).unwrap();
    forged.push((file.clone(), "user.stranger".to_owned(), b"here".to_vec()));

    let filesystem = home.open();
    let report = filesystem.export(&home.path("before"), None, &Watch::default()).unwrap();
    let mut kinds: Vec<_> = report.problems.iter().map(|problem| problem.kind).collect();
    kinds.sort_by_key(|kind| *kind == ProblemKind::Leftover);
    assert_eq!(kinds, [ProblemKind::Damaged, ProblemKind::Damaged, ProblemKind::Leftover]);
    let report = filesystem.verify(true, &Watch::default()).unwrap();
    assert_eq!(report.problems.len(), 3, "{:?}", report.problems);
    for (path, name, value) in &forged {
        let named = |problem: &&Problem| problem.reason.contains(&format!(" {name} "));
        let problem = report.problems.iter().find(named).unwrap();
        let stranger = name == "user.stranger";
        let kind = if stranger { ProblemKind::Leftover } else { ProblemKind::Damaged };
        assert_eq!(problem.kind, kind);
        let place = problem.reason.split("set aside as ").nth(1).expect(&problem.reason);
        assert_eq!(fs::read(home.backing().join(place)).unwrap(), *value);
        let note = fs::read_to_string(home.backing().join(format!("{place}.note"))).unwrap();
        let relative = path.strip_prefix(home.backing()).unwrap();
        assert!(note.contains(relative.to_str().unwrap()) && note.contains(name), "{note}");
        assert!(!attributes(path).contains(name));
    }
    assert_eq!([attributes(&file).len(), attributes(&dir).len()], [1, 1]);
    done(filesystem.verify(false, &Watch::default()).unwrap());
    done(filesystem.export(&home.path("target"), None, &Watch::default()).unwrap());
    assert_eq!(fs::read(home.path("target/file")).unwrap(), b"data");
}

fn attributes(path: &Path) -> Vec<String> {
    let mut list = vec![0; 1000];
    let len = rustix::fs::llistxattr(path, list.as_mut_slice()).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8(name.to_vec()).unwrap());
    names.filter(|name| name.starts_with("user.")).collect()
}

#[test]
fn the_report_tells_which_bytes_of_a_file_are_lost() {
    let case = Case::new();
    for (size, name, damage, lost) in [
        (LARGE, "dir/large", &[5000][..], "0 to 4095"),
        (LARGE, "dir/large", &[GROUP], "253952 to 511999"),
        (
            LARGE,
            "dir/large",
            &[2 * GROUP + 400, 2 * PAGE, 3 * PAGE],
            "4096 to 12287, 512000 to 600000",
        ),
        // In several segments, whichever worker reads them.
        (
            SEGMENTS,
            "dir/segments",
            &[16 * GROUP, 17 * GROUP, 32 * GROUP],
            "4124672 to 4640767, 8253440 to 8511487",
        ),
    ] {
        let path = case.backing(size);
        let whole = fs::read(&path).unwrap();
        damage.iter().for_each(|at| flip(&path, *at as u64));
        let report = case.home.open().verify(false, &Watch::default()).unwrap();
        let problem = the_problem(&report, name, &path, &case.home);
        assert!(
            problem.reason.ends_with(&format!("the file's bytes {lost} are lost")),
            "{problem:?}"
        );
        fs::write(&path, whole).unwrap();
    }
    let path = case.backing(SEGMENTS);
    (1..64).step_by(2).chain(66..130).for_each(|page| flip(&path, (page * PAGE) as u64));
    (512..1024).step_by(2).for_each(|page| flip(&path, (page * PAGE) as u64));
    let report = case.home.open().verify(false, &Watch::default()).unwrap();
    assert!(report.problems[0].reason.ends_with(" and others are lost"), "{:?}", report.problems);
}

#[test]
fn a_verification_that_is_stopped_anywhere_does_not_say_that_all_was_done() {
    let case = Case::new();
    let filesystem = case.home.open();
    let total = done(filesystem.verify(false, &Watch::default()).unwrap()).progress.bytes_done;
    for stop_at in 1.. {
        let watch = Watch { stop_at: Some(stop_at), ..Watch::default() };
        let report = filesystem.verify(false, &watch).unwrap();
        if report.outcome == Outcome::Done {
            assert_eq!(report.progress.bytes_done, total, "stopped at {stop_at}");
            break;
        }
        assert_eq!(report.outcome, Outcome::Stopped);
    }
}

#[test]
fn swapped_blocks_zeroed_blocks_and_groups() {
    let case = Case::new();
    let path = case.backing(LARGE);
    let whole = fs::read(&path).unwrap();

    let mut swapped = whole.clone();
    let (first, second) = (PAGE, 3 * PAGE);
    for i in 0..PAGE {
        swapped.swap(first + i, second + i);
    }
    fs::write(&path, &swapped).unwrap();
    let problem = case.finds("dir/large", &path);
    assert!(
        problem.reason.contains("block 0") && problem.reason.contains("block 2"),
        "{problem:?}"
    );

    for (at, len) in [
        (PAGE as u64, PAGE),
        (0, PAGE),
        (GROUP as u64, GROUP),
        (GROUP as u64, PAGE),
        (2 * GROUP as u64, whole.len() - 2 * GROUP),
        (0, whole.len()),
    ] {
        fs::write(&path, &whole).unwrap();
        zero(&path, at, len);
        case.finds("dir/large", &path);
    }
}

#[test]
fn cut_extended_and_emptied() {
    let case = Case::new();
    for (name, size) in [("dir/large", LARGE), ("dir/small", SMALL), ("dir/segments", SEGMENTS)] {
        let path = case.backing(size);
        let whole = fs::read(&path).unwrap();
        let len = whole.len() as u64;
        for wrong in [len - 1, len + 1, len - 4096, len + 4096, 4096, 1, 0] {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            file.set_len(wrong).unwrap();
            case.finds(name, &path);
            fs::write(&path, &whole).unwrap();
        }
    }
}

#[test]
fn a_large_file_is_damaged_in_many_segments() {
    let case = Case::new();
    let path = case.backing(SEGMENTS);
    for at in (5000..backing_len(SEGMENTS)).step_by(300_000) {
        flip(&path, at);
    }
    let problem = case.finds("dir/segments", &path);
    assert!(problem.reason.contains("more"), "{problem:?}");
}

#[test]
fn a_file_of_another_filesystem() {
    let case = Case::new();
    let other = Case::new();
    fs::copy(other.backing(LARGE), case.backing(LARGE)).unwrap();
    let problem = case.finds("dir/large", &case.backing(LARGE));
    assert!(problem.reason.contains("another filesystem"), "{problem:?}");
}

#[test]
fn a_missing_directory_record() {
    let case = Case::new();
    let dir = case.backing(LARGE).parent().unwrap().to_owned();
    fs::remove_file(dir.join("coffer.dir")).unwrap();
    let problem = case.finds("dir", &dir);
    assert!(problem.reason.contains("coffer.dir"), "{problem:?}");

    let report = case.home.open().verify(true, &Watch::default()).unwrap();
    the_problem(&report, "dir", &dir, &case.home);
    assert!(!dir.exists());
    assert_set_aside(&case.home, &report, &["dir"]);
}

/// An export as root would make what somebody put in the place of a file: a way to every disk of the machine.
#[test]
fn a_fifo_or_device_that_coffer_did_not_make_is_damage_and_no_export_makes_it() {
    needs_root();
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let case = Case::new();
    let path = case.backing(SMALL);
    let whole = fs::read(&path).unwrap();
    for (kind, device) in [
        (FileType::Fifo, 0),
        (FileType::Socket, 0),
        (FileType::CharacterDevice, makedev(1, 1)),
        (FileType::BlockDevice, makedev(8, 0)),
    ] {
        fs::remove_file(&path).unwrap();
        mknodat(CWD, &path, kind, Mode::from_raw_mode(0o666), device).unwrap();
        let problem = case.finds("dir/small", &path);
        assert!(problem.reason.contains("Coffer puts none there"), "{problem:?}");
        let listing = case.home.open().list(Path::new("dir")).unwrap();
        assert_eq!((listing.entries.len(), listing.unreadable.len()), (2, 1));
    }
    let report = case.home.open().verify(true, &Watch::default()).unwrap();
    assert!(report.problems[0].reason.contains("set aside as"), "{:?}", report.problems);
    done(case.home.open().verify(false, &Watch::default()).unwrap());
    // As long as a record, and none.
    fs::write(&path, &whole[..data_path::Node::RECORD_LEN]).unwrap();
    case.finds("dir/small", &path);
}

#[test]
fn the_record_of_a_node_that_was_altered() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let mode = rustix::fs::Mode::from_raw_mode(0o640);
    let fifo = rustix::fs::FileType::Fifo;
    rustix::fs::mknodat(rustix::fs::CWD, source.join("fifo"), fifo, mode, 0).unwrap();
    import(&home.create(), &source);
    let root = home.backing().join("root");
    let mut records = files_below(&root);
    records.retain(|path| path.file_name().unwrap() != "coffer.dir");
    let [record] = &records[..] else { panic!("{records:?}") };
    let filesystem = home.open();
    assert_eq!(filesystem.usage().unwrap().others, 1);
    assert_eq!(filesystem.list(Path::new("/")).unwrap().entries[0].kind, EntryKind::Fifo);
    // It would be a device instead of a FIFO, with this number.
    for at in [24, 32, 71] {
        flip(record, at);
        let report = filesystem.verify(false, &Watch::default()).unwrap();
        the_problem(&report, "fifo", record, &home);
        let target = home.path(&format!("target-{at}"));
        let report = filesystem.export(&target, None, &Watch::default()).unwrap();
        the_problem(&report, "fifo", record, &home);
        assert_eq!(fs::read_dir(target).unwrap().count(), 0);
        flip(record, at);
    }
    done(filesystem.verify(false, &Watch::default()).unwrap());
}

#[test]
fn a_directory_record_of_another_directory() {
    let case = Case::new();
    let dir = case.backing(LARGE).parent().unwrap().to_owned();
    fs::copy(case.home.backing().join("root/coffer.dir"), dir.join("coffer.dir")).unwrap();
    let report = case.home.open().verify(false, &Watch::default()).unwrap();
    assert_eq!(report.problems.len(), 3, "its names belong to another id: {:?}", report.problems);
}

/// Opening a device can do something by itself.
#[test]
fn what_is_no_file_in_the_place_of_a_record_is_not_opened() {
    needs_root();
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    let case = Case::new();
    let dir = case.backing(LARGE).parent().unwrap().to_owned();
    let record = dir.join("coffer.dir");
    let kept = fs::read(&record).unwrap();
    let put: [&dyn Fn(); 3] = [
        &|| std::os::unix::fs::symlink("/dev/null", &record).unwrap(),
        &|| fs::create_dir(&record).unwrap(),
        // /dev/zero: one that could be opened would have as many bytes as asked for.
        &|| {
            let mode = Mode::from_raw_mode(0o600);
            mknodat(CWD, &record, FileType::CharacterDevice, mode, makedev(1, 5)).unwrap();
        },
    ];
    for put in put {
        let _ = fs::remove_file(&record).or_else(|_| fs::remove_dir(&record));
        put();
        let report = case.home.open().verify(false, &Watch::default()).unwrap();
        let problem = the_problem(&report, "dir", &dir, &case.home);
        assert!(problem.reason.contains("coffer.dir is no regular file"), "{problem:?}");
        let target = case.home.path("target");
        let report = case.home.open().export(&target, None, &Watch::default()).unwrap();
        the_problem(&report, "dir", &dir, &case.home);
        fs::remove_dir_all(target).unwrap();
    }
    fs::remove_file(&record).unwrap();
    fs::write(&record, kept).unwrap();
    done(case.home.open().verify(false, &Watch::default()).unwrap());
}

#[test]
fn the_root_s_record_is_lost_and_written_again() {
    let case = Case::new();
    let record = case.home.backing().join("root/coffer.dir");
    let inner = case.backing(LARGE).parent().unwrap().join("coffer.dir");
    let whole = fs::read(&record).unwrap();
    let flipped = (0..whole.len()).map(|at| {
        let mut bytes = whole.clone();
        bytes[at] ^= 2;
        Some(bytes)
    });
    let others =
        [None, Some(Vec::new()), Some(whole[..71].to_vec()), Some(fs::read(inner).unwrap())];
    for content in flipped.chain(others) {
        match &content {
            Some(bytes) => fs::write(&record, bytes).unwrap(),
            None => fs::remove_file(&record).unwrap(),
        }
        let filesystem = case.home.open();
        let report = filesystem.verify(false, &Watch::default()).unwrap();
        the_problem(&report, "", &record, &case.home);
        assert_eq!(fs::read(&record).ok(), content, "only repair writes");

        let report = filesystem.verify(true, &Watch::default()).unwrap();
        assert!(!report.lost);
        let problem = the_problem(&report, "", &record, &case.home);
        assert!(problem.reason.ends_with("; written again"), "{problem:?}");
        assert_eq!(problem.reason.contains("set aside as"), content.is_some(), "{problem:?}");
        assert_eq!(fs::read(&record).unwrap(), whole);
        done(filesystem.verify(false, &Watch::default()).unwrap());
    }
    let filesystem = case.home.open();
    fs::remove_file(&record).unwrap();
    import(&filesystem, &case.source);
    done(filesystem.export(&case.home.path("target"), None, &Watch::default()).unwrap());
    assert_equal_trees(&case.source, &case.home.path("target"));
}

#[test]
fn without_the_root_s_record_something_else_shows_that_the_key_is_right() {
    let case = Case::new();
    let [record, header, lock] =
        ["root/coffer.dir", "coffer.key", "coffer.lock"].map(|name| case.home.backing().join(name));
    for lost in [&record, &header, &lock] {
        fs::remove_file(lost).unwrap();
    }
    // A name does.
    let with = |key: &Arc<FilesystemKey>| {
        Filesystem::open(&case.home.backing(), Arc::clone(key), Backend::default())
    };
    let other = Arc::new(FilesystemKey::generate().unwrap());
    assert_eq!(with(&other).unwrap_err().kind(), ErrorKind::Damaged);
    drop(with(&case.home.key).unwrap());

    // In an empty root, the key id in the lock file, which that opening wrote.
    for entry in fs::read_dir(case.home.backing().join("root")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            fs::remove_dir_all(path).unwrap()
        } else {
            fs::remove_file(path).unwrap()
        }
    }
    assert_eq!(with(&other).unwrap_err().kind(), ErrorKind::Damaged);
    drop(with(&case.home.key).unwrap());
    fs::write(&lock, "").unwrap();
    assert_eq!(with(&case.home.key).unwrap_err().kind(), ErrorKind::Damaged);
}

#[test]
fn a_missing_or_altered_side_file_of_a_long_name() {
    for remove in [true, false] {
        let home = Home::new();
        let source = home.path("source");
        fs::create_dir(&source).unwrap();
        fs::write(source.join("n".repeat(255)), "long").unwrap();
        fs::write(source.join("short"), "short").unwrap();
        import(&home.create(), &source);
        let side = files_below(&home.backing().join("root"))
            .into_iter()
            .find(|path| path.extension().is_some_and(|e| e == "name"))
            .unwrap();
        if remove {
            fs::remove_file(&side).unwrap();
        } else {
            flip(&side, 3);
        }
        let filesystem = home.open();
        for repair in [false, true] {
            let report = filesystem.verify(repair, &Watch::default()).unwrap();
            let [problem] = &report.problems[..] else { panic!("{:?}", report.problems) };
            assert!(problem.reason.contains("side file"), "{problem:?}");
            let entry = side.with_extension("");
            let entry = entry.strip_prefix(home.backing()).unwrap();
            assert_eq!(problem.ciphertext.as_deref(), Some(entry));
        }
        done(filesystem.verify(false, &Watch::default()).unwrap());
        done(filesystem.export(&home.path("target"), None, &Watch::default()).unwrap());
        assert_eq!(fs::read(home.path("target/short")).unwrap(), b"short");
    }
}

#[test]
fn a_damaged_link_and_a_damaged_attribute() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    std::os::unix::fs::symlink("x".repeat(3000), source.join("long")).unwrap();
    std::os::unix::fs::symlink("short", source.join("short")).unwrap();
    fs::write(source.join("file"), "data").unwrap();
    let file = fs::File::open(source.join("file")).unwrap();
    let flags = rustix::fs::XattrFlags::empty();
    rustix::fs::fsetxattr(&file, "user.name", b"value", flags).unwrap();
    import(&home.create(), &source);

    let record = files_below(&home.backing().join("coffer.links")).remove(0);
    flip(&record, 20);
    let link = fs::read_dir(home.backing().join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| fs::read_link(path).is_ok_and(|text| text.as_os_str().len() < 40))
        .unwrap();
    let short = fs::read_dir(home.backing().join("root"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| path.is_symlink() && *path != link)
        .unwrap();
    let text = fs::read_link(&short).unwrap().into_os_string().into_string().unwrap();
    fs::remove_file(&short).unwrap();
    let last = if text.ends_with('A') { "E" } else { "A" };
    std::os::unix::fs::symlink(format!("{}{last}", &text[..text.len() - 1]), &short).unwrap();
    let sealed = home.backing_file(4);
    let mut list = vec![0; 1000];
    let len = rustix::fs::llistxattr(&sealed, list.as_mut_slice()).unwrap();
    let name = std::str::from_utf8(&list[..len]).unwrap().trim_end_matches('\0').to_owned();
    rustix::fs::lsetxattr(&sealed, &name, b"forged", flags).unwrap();

    let filesystem = home.open();
    let report = filesystem.verify(false, &Watch::default()).unwrap();
    let mut found: Vec<_> =
        report.problems.iter().map(|p| (p.path.to_str().unwrap(), p.kind)).collect();
    found.sort_by_key(|(path, kind)| (path.to_owned(), format!("{kind:?}")));
    assert_eq!(
        found,
        [
            ("file", ProblemKind::Damaged),
            ("long", ProblemKind::Damaged),
            ("short", ProblemKind::Damaged),
        ]
    );
    let report = filesystem.export(&home.path("target"), None, &Watch::default()).unwrap();
    let kinds: Vec<_> = report.problems.iter().map(|problem| problem.kind).collect();
    assert_eq!(kinds, [ProblemKind::Damaged; 3], "{:?}", report.problems);
    assert_eq!(fs::read(home.path("target/file")).unwrap(), b"data");
    assert!(!home.path("target/long").is_symlink() && !home.path("target/short").is_symlink());
}

#[test]
fn repair_sets_aside_with_a_note_and_leaves_a_sound_filesystem() {
    let case = Case::new();
    let path = case.backing(LARGE);
    flip(&path, 5000);
    let dir = path.parent().unwrap();
    fs::write(dir.join("stranger"), "not ours").unwrap();
    fs::write(dir.join(format!("l{}.name", "a".repeat(43))), "orphan").unwrap();
    let filesystem = case.home.open();
    let before = filesystem.verify(false, &Watch::default()).unwrap();
    assert_eq!(before.problems.len(), 3, "{:?}", before.problems);
    assert!(path.exists());

    let report = filesystem.verify(true, &Watch::default()).unwrap();
    assert_eq!(report.problems.len(), 3);
    assert_set_aside(&case.home, &report, &["dir/large", "dir", "dir"]);
    assert!(!path.exists());
    done(filesystem.verify(false, &Watch::default()).unwrap());
    fs::remove_file(case.source.join("dir/large")).unwrap();
    done(filesystem.export(&case.home.path("target"), None, &Watch::default()).unwrap());
    for name in ["dir/small", "dir/segments", "sound"] {
        let [was, is] = [&case.source, &case.home.path("target")].map(|d| fs::read(d.join(name)));
        assert!(was.unwrap() == is.unwrap());
    }
}

fn assert_set_aside(home: &Home, report: &Report, paths: &[&str]) {
    let mut found: Vec<_> = report.problems.iter().map(|p| p.path.to_str().unwrap()).collect();
    let mut paths = paths.to_vec();
    found.sort_unstable();
    paths.sort_unstable();
    assert_eq!(found, paths);
    for problem in &report.problems {
        let place = problem.reason.split("set aside as ").nth(1).expect(&problem.reason);
        assert!(home.backing().join(place).exists(), "{place}");
        let note = fs::read_to_string(home.backing().join(format!("{place}.note"))).unwrap();
        assert!(note.contains(problem.ciphertext.as_ref().unwrap().to_str().unwrap()), "{note}");
    }
}

#[test]
fn a_sparse_file_s_holes_are_authentic() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("sparse")).unwrap();
    let len = 9 << 20;
    file.set_len(len).unwrap();
    file.write_all_at(b"data", 5 << 20).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    done(filesystem.export(&home.path("sound"), None, &Watch::default()).unwrap());
    assert_equal_trees(&source, &home.path("sound"));
    let path = home.backing_file(len);
    let whole = fs::read(&path).unwrap();
    assert!(std::os::unix::fs::MetadataExt::blocks(&fs::metadata(&path).unwrap()) < 2000);
    // A byte in a hole of a group that has a tag page, one in a group that has none, and a group
    // with data that is made to look like a hole.
    let group_of_data = (5 << 20) / (63 * 4096) * GROUP as u64;
    for (at, len, byte) in [
        (8192, 1, 1),
        (40 * GROUP as u64 / 2, 1, 1),
        (group_of_data, GROUP, 0),
        (63 * 4096, 4096, 0),
    ] {
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.write_all_at(&vec![byte; len], at).unwrap();
        let report = filesystem.verify(false, &Watch::default()).unwrap();
        assert_eq!(report.problems.len(), 1, "at {at}: {:?}", report.problems);
        assert_eq!(report.problems[0].kind, ProblemKind::Damaged);
        let report = filesystem.export(&home.path("target"), None, &Watch::default()).unwrap();
        assert_eq!(report.problems.len(), 1, "at {at}: {:?}", report.problems);
        fs::remove_dir_all(home.path("target")).unwrap();
        fs::write(&path, &whole).unwrap();
    }
}

#[test]
fn a_hole_is_passed_over_and_only_where_it_is_authentic() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("sparse")).unwrap();
    let len = 200 << 30;
    file.set_len(len).unwrap();
    // All of four groups, a group before the last, and the end.
    file.write_all_at(&tree::noise(1, 4 * 63 * PAGE), 0).unwrap();
    file.write_all_at(b"data", len - 600_000).unwrap();
    file.write_all_at(b"end", len - 3).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    let began = std::time::Instant::now();
    done(filesystem.verify(false, &Watch::default()).unwrap());
    done(filesystem.export(&home.path("sound"), None, &Watch::default()).unwrap());
    let took = began.elapsed();
    assert!(took.as_secs() < 30, "reading 400 GiB of zeros takes minutes; this took {took:?}");
    assert_eq!(fs::metadata(home.path("sound/sparse")).unwrap().len(), len);

    let path = home.backing_file(len);
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    let flags = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    // Groups that are holes for the backing only: one among others, then the end with whole segments.
    let groups = backing_len(len).div_ceil(GROUP as u64);
    for (group, count, named) in [(2, 1, 2), (groups - 32, 32, groups - 1)] {
        rustix::fs::fallocate(&file, flags, group * GROUP as u64, count * GROUP as u64).unwrap();
        let report = filesystem.verify(false, &Watch::default()).unwrap();
        let problem = the_problem(&report, "sparse", &path, &home);
        assert!(problem.reason.contains(&format!("tag page of group {named} ")), "{problem:?}");
        let report = filesystem.export(&home.path("target"), None, &Watch::default()).unwrap();
        the_problem(&report, "sparse", &path, &home);
        assert!(!home.path("target/sparse").exists());
        fs::remove_dir_all(home.path("target")).unwrap();
    }
}

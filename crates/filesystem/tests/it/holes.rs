//! A source whose holes are not what they were when its import was stopped, though nothing was written to it: on ext4
//! a preallocated range is data while its pages are cached, and a hole before and after.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use filesystem::{Checkpoint, Filesystem};
use rustix::fs::FallocateFlags;
use testkit::tree;

use crate::support::{Home, Watch, assert_equal_trees, done, export, files_below};

const LEN: u64 = 40 << 20;
/// Far past the first checkpoint, which is at 4 MiB.
const ZEROS: std::ops::Range<u64> = 20 << 20..30 << 20;

/// A source of one large file, of which `ZEROS` are zeros.
fn make_source(home: &Home) -> (PathBuf, fs::File) {
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    let file = fs::File::create(source.join("large")).unwrap();
    file.write_all_at(&tree::noise(7, LEN as usize), 0).unwrap();
    make_zeros_data(&file);
    (source, file)
}

fn make_zeros_data(file: &fs::File) {
    let zeros = vec![0; (ZEROS.end - ZEROS.start) as usize];
    file.write_all_at(&zeros, ZEROS.start).unwrap();
}

fn make_zeros_a_hole(file: &fs::File) {
    let punch = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(file, punch, ZEROS.start, ZEROS.end - ZEROS.start).unwrap();
}

fn stop_at_first_checkpoint(filesystem: &Filesystem, source: &Path) -> Checkpoint {
    let watch = Watch { stop_at: Some(3), ..Watch::default() };
    filesystem.import(source, None, &watch).unwrap().checkpoint.unwrap()
}

/// The checkpoint with the source's file as it is now: a change of its holes alone leaves no trace, while a test has to
/// write to make one.
fn with_file_as_it_is(checkpoint: &Checkpoint, file: &fs::File) -> Checkpoint {
    let stat = file.metadata().unwrap();
    let mut json = serde_json::to_value(checkpoint).unwrap();
    json["partial"]["source"] = serde_json::json!({
        "inode": [stat.dev(), stat.ino()],
        "len": stat.len(),
        "modified": [stat.mtime(), stat.mtime_nsec()],
        "changed": [stat.ctime(), stat.ctime_nsec()],
    });
    serde_json::from_value(json).unwrap()
}

fn staged(home: &Home) -> PathBuf {
    let staged = files_below(&home.backing().join("coffer.tmp/resume"));
    let [staged] = &staged[..] else { panic!("{staged:?}") };
    staged.clone()
}

/// Goes on from the checkpoint, in the middle of the file, and all of it can be read.
fn assert_goes_on(home: &Home, filesystem: &Filesystem, source: &Path, checkpoint: Checkpoint) {
    let watch = Watch::default();
    done(filesystem.import(source, Some(checkpoint), &watch).unwrap());
    let asked = watch.asked.into_inner();
    assert!(asked < 10, "it went on in the middle of the file, not from its start: {asked}");
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(filesystem, &home.path("target"));
    assert_equal_trees(source, &home.path("target"));
}

#[test]
fn what_was_data_before_a_stop_and_is_a_hole_afterwards() {
    let home = Home::new();
    let (source, file) = make_source(&home);
    let filesystem = home.create();
    let checkpoint = stop_at_first_checkpoint(&filesystem, &source);
    // It goes on past the checkpoint, into the zeros, and dies there.
    let watch = Watch { stop_at: Some(7), ..Watch::default() };
    let before_its_death = filesystem.import(&source, Some(checkpoint.clone()), &watch).unwrap();
    assert!(before_its_death.progress.bytes_done > ZEROS.start + (4 << 20));
    make_zeros_a_hole(&file);
    assert_goes_on(&home, &filesystem, &source, with_file_as_it_is(&checkpoint, &file));
}

#[test]
fn what_was_a_hole_before_a_stop_and_is_data_afterwards() {
    let home = Home::new();
    let (source, file) = make_source(&home);
    make_zeros_a_hole(&file);
    let filesystem = home.create();
    let checkpoint = stop_at_first_checkpoint(&filesystem, &source);
    let staged = staged(&home);
    // It dies when the file is whole, with its hole map, and has not got its name yet.
    done(filesystem.import(&source, Some(checkpoint.clone()), &Watch::default()).unwrap());
    fs::create_dir(staged.parent().unwrap()).unwrap();
    fs::copy(home.backing_file(LEN), &staged).unwrap();
    make_zeros_data(&file);
    assert_goes_on(&home, &filesystem, &source, with_file_as_it_is(&checkpoint, &file));
}

/// It dies between the two steps that remove what was written after the checkpoint.
#[test]
fn a_file_in_the_making_that_was_cut_to_its_checkpoint_is_gone_on_with() {
    let home = Home::new();
    let (source, _) = make_source(&home);
    let filesystem = home.create();
    let watch = Watch { stop_at: Some(5), ..Watch::default() };
    let checkpoint = filesystem.import(&source, None, &watch).unwrap().checkpoint.unwrap();
    let staged = fs::File::options().write(true).open(staged(&home)).unwrap();
    staged.set_len(4 * 16 * (256 << 10)).unwrap();
    assert!(filesystem.list(Path::new("/")).unwrap().entries.is_empty());
    assert_goes_on(&home, &filesystem, &source, checkpoint);
}

//! A power cut at any point of a re-encryption, simulated.
//!
//! The seam to the operating system tells each write, rename, removal and sync before it is done ([`about_to`]); what lies in the
//! backing directory at that moment is kept. A cut then leaves, of each file, what it was when it was last synced and, page by page,
//! any of what it has been since; and of names, links, modes and attributes what they were at some moment since they were last
//! synced (a directory, or all of it): filesystems keep these in their order. A page of 4 KiB arrives whole or not at all.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsFd, AsRawFd as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use kms_core::FilesystemKey;
use testkit::key_holder::envelope;
use testkit::tree;

use crate::report::lock;
use crate::sys::{self, FileType, Inode, Xattr};
use crate::{
    Backend, BackingLocks, Filesystem, Outcome, Unattended, begin_rekey, end_rekey, prepare_rekey,
};

const PAGE: usize = 4096;

/// What is about to be done.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Change,
    SyncFile,
    SyncAll,
}

static TAPE: Mutex<Option<Tape>> = Mutex::new(None);

/// Takes note of a step in the directory that is watched, before it is done. No other one is taken while the answer lives.
pub(crate) fn about_to(step: Step, on: impl AsFd) -> Option<MutexGuard<'static, Option<Tape>>> {
    let mut alone = lock(&TAPE);
    let tape = alone.as_mut()?;
    let path = fs::read_link(format!("/proc/self/fd/{}", on.as_fd().as_raw_fd())).ok()?;
    if !path.starts_with(&tape.backing) {
        return None;
    }
    tape.take(step, sys::stat_open(on).unwrap().st_ino);
    Some(alone)
}

/// What was seen of a backing directory.
pub(crate) struct Tape {
    backing: PathBuf,
    moments: Vec<Moment>,
}

/// Before a step.
#[derive(Default)]
struct Moment {
    names: BTreeMap<PathBuf, Name>,
    /// By inode.
    contents: HashMap<u64, Arc<Vec<u8>>>,
    step: Option<(Step, u64)>,
}

#[derive(Clone)]
struct Name {
    inode: u64,
    mode: u32,
    target: Option<PathBuf>,
    xattrs: Vec<Xattr>,
}

impl Name {
    fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }
}

impl Tape {
    fn take(&mut self, step: Step, inode: u64) {
        let mut moment = Moment { step: Some((step, inode)), ..Moment::default() };
        self.look(Path::new(""), &mut moment);
        self.moments.push(moment);
    }

    fn look(&self, below: &Path, moment: &mut Moment) {
        let dir = fs::File::open(self.backing.join(below)).unwrap();
        for entry in fs::read_dir(self.backing.join(below)).unwrap() {
            let entry = entry.unwrap();
            // What another thread has removed by now is gone.
            let Ok(stat) = sys::stat(&dir, entry.file_name().as_encoded_bytes()) else { continue };
            let at = below.join(entry.file_name());
            let file_name = entry.file_name();
            let of = Inode::Named(dir.as_fd(), file_name.as_encoded_bytes());
            let name = Name {
                inode: stat.st_ino,
                mode: stat.st_mode,
                target: fs::read_link(entry.path()).ok(),
                xattrs: sys::xattrs(of).unwrap_or_default(),
            };
            match name.kind() {
                FileType::Directory => self.look(&at, moment),
                FileType::RegularFile => {
                    let Ok(bytes) = fs::read(entry.path()) else { continue };
                    let before = self.moments.last();
                    let before = before.and_then(|it| it.contents.get(&name.inode));
                    let content = before.filter(|before| ***before == bytes).cloned();
                    let content = content.unwrap_or_else(|| Arc::new(bytes));
                    moment.contents.insert(name.inode, content);
                }
                _ => {}
            }
            moment.names.insert(at, name);
        }
    }

    /// What a cut before step `at` leaves, laid out in `image`.
    fn cut(&self, at: usize, random: &mut Random, image: &Path) {
        let is_synced = |step: &Option<(Step, u64)>, inode: u64| match step {
            Some((Step::SyncAll, _)) => true,
            Some((Step::SyncFile, of)) => *of == inode,
            _ => false,
        };
        let is_dir = |moment: &Moment, inode| {
            // The backing directory itself has no name here.
            !moment.contents.contains_key(&inode)
        };
        let settled = self.moments[..at].iter().rposition(|moment| match moment.step {
            Some((Step::SyncAll, _)) => true,
            Some((Step::SyncFile, inode)) => is_dir(moment, inode),
            _ => false,
        });
        let settled = settled.unwrap_or(0);
        let names = &self.moments[settled + random.below(at - settled + 1)].names;
        fs::create_dir(image).unwrap();
        let mut made: HashMap<u64, PathBuf> = HashMap::new();
        for (path, name) in names {
            let to = image.join(path);
            match name.kind() {
                FileType::Directory => fs::create_dir(&to).unwrap(),
                FileType::Symlink => match made.get(&name.inode) {
                    Some(first) => fs::hard_link(first, &to).unwrap(),
                    None => symlink(name.target.as_ref().unwrap(), &to).unwrap(),
                },
                _ => match made.get(&name.inode) {
                    Some(first) => fs::hard_link(first, &to).unwrap(),
                    None => {
                        let synced = self.moments[..at].iter().rposition(|moment| {
                            moment.contents.contains_key(&name.inode)
                                && is_synced(&moment.step, name.inode)
                        });
                        let old = self.moments[0].contents.contains_key(&name.inode);
                        let mut versions: Vec<_> = self.moments[synced.unwrap_or(0)..=at]
                            .iter()
                            .filter_map(|moment| moment.contents.get(&name.inode).cloned())
                            .collect();
                        if synced.is_none() && !old {
                            versions.insert(0, Arc::default());
                        }
                        versions.dedup();
                        fs::write(&to, mixed(&versions, random)).unwrap();
                    }
                },
            }
            if made.insert(name.inode, to.clone()).is_none() {
                let dir = fs::File::open(to.parent().unwrap()).unwrap();
                let of = to.file_name().unwrap().as_encoded_bytes();
                for (attribute, value) in &name.xattrs {
                    sys::set_xattr(Inode::Named(dir.as_fd(), of), attribute, value).unwrap();
                }
            }
        }
        for (path, name) in names.iter().filter(|(_, name)| name.kind() != FileType::Symlink) {
            let mode = fs::Permissions::from_mode(name.mode & 0o7777);
            fs::set_permissions(image.join(path), mode).unwrap();
        }
    }
}

/// A file that has any of these lengths, and in each page what any of these had there.
fn mixed(versions: &[Arc<Vec<u8>>], random: &mut Random) -> Vec<u8> {
    let mut mixed = vec![0; versions[random.below(versions.len())].len()];
    for (at, page) in mixed.chunks_mut(PAGE).enumerate() {
        let from = &versions[random.below(versions.len())];
        let from = from.get(at * PAGE..).unwrap_or_default();
        let len = page.len().min(from.len());
        page[..len].copy_from_slice(&from[..len]);
    }
    mixed
}

/// Xorshift: the same cuts in each run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// One of each that a re-encryption deals with in a way of its own.
fn make(source: &Path) {
    let more = source.join("more");
    fs::create_dir_all(&more).unwrap();
    for len in [0, 1, 9000, 300_000, 4_300_000] {
        fs::write(more.join(format!("{len} bytes")), tree::noise(len as u64, len)).unwrap();
    }
    fs::write(more.join("n".repeat(255)), "its name takes a side file").unwrap();
    symlink("near", more.join("short link")).unwrap();
    symlink("t".repeat(2000), source.join("long link")).unwrap();
    fs::hard_link(source.join("long link"), more.join("long link, linked")).unwrap();
    fs::hard_link(more.join("300000 bytes"), source.join("linked")).unwrap();
    let sparse = fs::File::create(source.join("sparse")).unwrap();
    sparse.set_len(2 << 20).unwrap();
    let deep = source.join("n".repeat(200)).join("deep");
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "below a long name").unwrap();
    for of in [&more, &more.join("9000 bytes")] {
        let dir = fs::File::open(of.parent().unwrap()).unwrap();
        let name = of.file_name().unwrap().as_encoded_bytes();
        sys::set_xattr(Inode::Named(dir.as_fd(), name), b"user.colour", b"green").unwrap();
    }
}

/// What a tree has, but for times: those that a cut turn was to give back are lost.
fn told(root: &Path) -> BTreeMap<Vec<u8>, tree::Entry> {
    let mut entries = tree::survey(root).unwrap();
    for entry in entries.values_mut() {
        (entry.mtime, entry.atime) = ((0, 0), None);
        if matches!(entry.content, tree::Content::Symlink(_)) {
            // Two links in the place of one, until it is gone on with.
            entry.same_as = None;
        }
    }
    entries
}

fn assert_sound(filesystem: &Filesystem, at: &str) {
    let verified = filesystem.verify(false, &Unattended).unwrap();
    assert_eq!(verified.outcome, Outcome::Done, "{at}: {:?}", verified.problems);
}

fn assert_exports(
    filesystem: &Filesystem,
    was: &BTreeMap<Vec<u8>, tree::Entry>,
    target: &Path,
    at: &str,
) {
    let exported = filesystem.export(target, None, &Unattended).unwrap();
    assert_eq!(exported.outcome, Outcome::Done, "{at}: {:?}", exported.problems);
    let is = told(target);
    let differ = was.iter().filter(|(path, entry)| is.get(*path) != Some(entry));
    let differ: Vec<_> = differ.map(|(path, _)| path.escape_ascii().to_string()).collect();
    assert_eq!((differ, was.len()), (Vec::new(), is.len()), "{at}");
    fs::remove_dir_all(target).unwrap();
}

#[test]
fn leaves_all_readable_and_the_re_encryption_goes_on() {
    // Where a sync costs nothing, and no number of an inode comes twice.
    let home = tempfile::tempdir_in("/dev/shm").unwrap();
    let (source, backing) = (home.path().join("source"), home.path().join("backing"));
    let (image, target) = (home.path().join("image"), home.path().join("target"));
    let key = || Arc::new(FilesystemKey::generate().unwrap());
    let (old, new) = (key(), key());
    let (from, to) = (envelope(old.id()), envelope(new.id()));
    let open = |at: &Path, previous: Option<&Arc<FilesystemKey>>| {
        let (locks, previous) = (BackingLocks::default(), previous.cloned());
        Filesystem::open_sharing(&locks, at, Arc::clone(&new), previous, Backend::default())
            .unwrap()
    };
    make(&source);
    let made = Filesystem::create(&backing, Arc::clone(&old), &from, Backend::default()).unwrap();
    let imported = made.import(&source, None, &Unattended).unwrap();
    assert_eq!(imported.outcome, Outcome::Done, "{:?}", imported.problems);
    drop(made);

    *lock(&TAPE) = Some(Tape { backing: backing.clone(), moments: Vec::new() });
    let locks = BackingLocks::default();
    prepare_rekey(&locks, &backing, &from, &to).unwrap();
    begin_rekey(&locks, &backing, &from, &to).unwrap();
    let rekeyed = open(&backing, Some(&old)).rekey(&Unattended).unwrap();
    assert_eq!(rekeyed.outcome, Outcome::Done, "{:?}", rekeyed.problems);
    end_rekey(&locks, &backing, new.id()).unwrap();
    let mut tape = lock(&TAPE).take().unwrap();
    tape.take(Step::Change, 0);

    let syncs =
        tape.moments.iter().filter(|it| it.step.is_some_and(|(step, _)| step != Step::Change));
    assert!(tape.moments.len() > 100 && syncs.count() > 10, "{}", tape.moments.len());
    let was = told(&source);
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for cut in 0..tape.moments.len() {
        let at = format!("before step {cut} of {}", tape.moments.len());
        tape.cut(cut, &mut random, &image);
        let locks = BackingLocks::default();
        begin_rekey(&locks, &image, &from, &to).unwrap();
        let between = open(&image, Some(&old));
        assert_sound(&between, &at);
        assert_exports(&between, &was, &target, &at);
        let report = between.rekey(&Unattended).unwrap();
        assert_eq!((report.outcome, &report.problems[..]), (Outcome::Done, &[][..]), "{at}");
        drop(between);
        end_rekey(&locks, &image, new.id()).unwrap();
        let renewed = open(&image, None);
        assert_sound(&renewed, &at);
        // What came of it is the same wherever it was cut.
        if cut % 10 == 0 {
            assert_exports(&renewed, &was, &target, &at);
        }
        drop(renewed);
        fs::remove_dir_all(&image).unwrap();
    }
}

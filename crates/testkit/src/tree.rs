//! Directory trees for tests: makers, and a comparer that overlooks nothing.
//!
//! The comparer works relative to directory handles, so trees deeper than `PATH_MAX` can be
//! compared. It reads files without touching their access times.
//!
//! ```no_run
//! use std::path::Path;
//! use testkit::tree;
//!
//! tree::everything(Path::new("/tmp/source"))?;
//! // … import it, export it …
//! assert_eq!(tree::differences("/tmp/source", "/tmp/exported")?, Vec::<String>::new());
//! # Ok::<(), std::io::Error>(())
//! ```

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hasher};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, XattrFlags,
};

/// Holes are compared in units of this many bytes, the block of common filesystems.
const BLOCK: u64 = 4096;

/// Where two trees differ, one line each; empty when they are equal in every name, type, mode,
/// owner, modification time (files: access time too), extended attribute (ACLs among them), link
/// target, device number, hard link, hole and byte.
///
/// # Errors
/// When a tree can't be read.
pub fn differences(left: impl AsRef<Path>, right: impl AsRef<Path>) -> io::Result<Vec<String>> {
    let (left, right) = (survey(left)?, survey(right)?);
    let mut found = Vec::new();
    for (path, was) in &left {
        match right.get(path) {
            None => found.push(format!("{}: missing", path.escape_ascii())),
            Some(is) if is != was => {
                found.push(format!("{}: {was:?} became {is:?}", path.escape_ascii()));
            }
            Some(_) => {}
        }
    }
    for path in right.keys().filter(|path| !left.contains_key(*path)) {
        found.push(format!("{}: not there before", path.escape_ascii()));
    }
    Ok(found)
}

/// All that [`differences`] compares of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Permission bits with file type, as in `st_mode`.
    pub mode: u32,
    /// Owner and group.
    pub owner: (u32, u32),
    /// Modification time in seconds and nanoseconds.
    pub mtime: (i64, i64),
    /// Access time, of regular files only: looking at others changes it.
    pub atime: Option<(i64, i64)>,
    /// Extended attributes, sorted by name.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// The first path of the same inode, when there are several.
    pub same_as: Option<Vec<u8>>,
    /// What is inside.
    pub content: Content,
}

/// What is inside an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A regular file: its length, its data ranges in whole blocks, and a hash over the data in them.
    File {
        /// Length in bytes.
        len: u64,
        /// First and last-plus-one block of each range that is not a hole.
        data: Vec<(u64, u64)>,
        /// Over all data bytes.
        hash: u64,
    },
    /// A directory.
    Directory,
    /// A symbolic link and its target.
    Symlink(Vec<u8>),
    /// A device with its number; a FIFO or socket with 0.
    Node(u64),
}

/// Everything below `root`, by path relative to it; `root` itself is `.`.
///
/// # Errors
/// When something can't be read.
pub fn survey(root: impl AsRef<Path>) -> io::Result<BTreeMap<Vec<u8>, Entry>> {
    let mut survey = Survey::default();
    survey.visit(CWD.as_fd(), root.as_ref().as_os_str().as_encoded_bytes(), b".")?;
    Ok(survey.entries)
}

#[derive(Default)]
struct Survey {
    entries: BTreeMap<Vec<u8>, Entry>,
    inodes: HashMap<(u64, u64), Vec<u8>>,
}

impl Survey {
    fn visit(&mut self, dir: impl AsFd, name: &[u8], path: &[u8]) -> io::Result<()> {
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut below = None;
        let content = match kind {
            FileType::RegularFile => file_content(&open(&dir, name, OFlags::empty())?, &stat)?,
            FileType::Directory => {
                below = Some(open(&dir, name, OFlags::DIRECTORY)?);
                Content::Directory
            }
            FileType::Symlink => {
                Content::Symlink(rustix::fs::readlinkat(&dir, name, Vec::new())?.into_bytes())
            }
            _ => Content::Node(stat.st_rdev),
        };
        let entry = Entry {
            mode: stat.st_mode,
            owner: (stat.st_uid, stat.st_gid),
            mtime: (stat.st_mtime, stat.st_mtime_nsec as i64),
            atime: (kind == FileType::RegularFile)
                .then_some((stat.st_atime, stat.st_atime_nsec as i64)),
            xattrs: xattrs(&dir, name)?,
            same_as: self.same_as(&stat, kind, path),
            content,
        };
        self.entries.insert(path.to_vec(), entry);
        let Some(below) = below else { return Ok(()) };
        for name in names(&below)? {
            let path = if path == b"." { name.clone() } else { [path, b"/", &name].concat() };
            self.visit(&below, &name, &path)?;
        }
        Ok(())
    }

    fn same_as(&mut self, stat: &Stat, kind: FileType, path: &[u8]) -> Option<Vec<u8>> {
        if kind == FileType::Directory || stat.st_nlink < 2 {
            return None;
        }
        Some(self.inodes.entry((stat.st_dev, stat.st_ino)).or_insert_with(|| path.to_vec()).clone())
    }
}

fn open(dir: impl AsFd, name: &[u8], extra: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | extra;
    let quiet = rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty());
    Ok(quiet.or_else(|_| rustix::fs::openat(&dir, name, flags, Mode::empty()))?)
}

fn names(dir: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

fn file_content(file: &OwnedFd, stat: &Stat) -> io::Result<Content> {
    let len = u64::try_from(stat.st_size).unwrap_or(0);
    let (mut data, mut hasher, mut at) = (Vec::new(), DefaultHasher::new(), 0);
    let mut buffer = vec![0; 1 << 20];
    while at < len {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => break,
            Err(e) => return Err(e.into()),
        };
        let end = rustix::fs::seek(file, SeekFrom::Hole(start))?;
        let range = (start / BLOCK, end.div_ceil(BLOCK));
        match data.last_mut() {
            Some((_, last)) if *last == range.0 => *last = range.1,
            _ => data.push(range),
        }
        at = start;
        while at < end {
            let want = buffer.len().min((end - at) as usize);
            let got = rustix::io::pread(file, &mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            hasher.write(&buffer[..got]);
            at += got as u64;
        }
    }
    Ok(Content::File { len, data, hash: hasher.finish() })
}

fn xattrs(dir: impl AsFd, name: &[u8]) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let path = by_handle(&dir, name);
    let mut list = vec![0; 64 * 1024];
    let len = match rustix::fs::llistxattr(&path, list.as_mut_slice()) {
        Err(rustix::io::Errno::OPNOTSUPP) => 0,
        other => other?,
    };
    let mut found = BTreeMap::new();
    for name in list[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 * 1024];
        let len = rustix::fs::lgetxattr(&path, name, value.as_mut_slice())?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}

/// A short path to `name` in `dir`, for the calls that know no directory handles.
fn by_handle(dir: impl AsFd, name: &[u8]) -> Vec<u8> {
    if dir.as_fd().as_raw_fd() == CWD.as_raw_fd() {
        return name.to_vec();
    }
    [format!("/proc/self/fd/{}/", dir.as_fd().as_raw_fd()).as_bytes(), name].concat()
}

/// `len` bytes that look random and are the same for the same `seed`.
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        // xorshift64*, Vigna 2016.
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend_from_slice(&state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// `count` small files (0 to 16 KiB) in directories of a hundred, below `root`, which is made.
///
/// # Errors
/// When they can't be written.
pub fn small_files(root: &Path, count: usize) -> io::Result<()> {
    for n in 0..count {
        let dir = root.join(format!("directory-{:04}", n / 100));
        std::fs::create_dir_all(&dir)?;
        let len = (n * 7919) % (16 * 1024);
        std::fs::write(dir.join(format!("file-{n:06}.txt")), noise(n as u64, len))?;
    }
    Ok(())
}

/// A tree with one of everything that a backup must bring back, below `root`, which is made:
/// deep and long and odd names, links of both kinds, every sort of mode and time, extended
/// attributes and an ACL, sparse files, and as root foreign owners, devices and `security.*`.
///
/// # Errors
/// When the filesystem or the caller's rights do not allow one of them.
pub fn everything(root: &Path) -> io::Result<()> {
    std::fs::create_dir_all(root)?;
    let root = rustix::fs::open(root, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    contents(&root)?;
    names_of_all_kinds(&root)?;
    links(&root)?;
    attributes(&root)?;
    sparse(&root)?;
    if rustix::process::geteuid().is_root() {
        privileged(&root)?;
    }
    deep(&root, 600)?;
    // Last, for making entries changes it.
    times_and_modes(&root)
}

fn contents(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"contents")?;
    for len in [0, 1, 15, 4095, 4096, 4097, 65_536, 262_143, 262_144, 262_145, 5_000_001] {
        make_file(&dir, format!("{len}-bytes").as_bytes(), &noise(len as u64, len))?;
    }
    make_file(&dir, b"zeros", &[0; 300_000])?;
    make_dir(root, b"empty directory").map(drop)
}

fn names_of_all_kinds(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"names")?;
    let every_byte: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let names: [&[u8]; 14] = [
        &[b'n'; 255],
        &[b'm'; 175],
        &[b'm'; 176],
        &every_byte[..128],
        &every_byte[128..],
        b"new\nline",
        b" leading and trailing ",
        b"-rf",
        b"...",
        "déjà vu \u{1f5c4}".as_bytes(),
        b"\xff\xfe not UTF-8",
        b"back\\slash and \"quotes\"",
        b"coffer.dir",
        b"x.name",
    ];
    for name in names {
        make_file(&dir, name, name)?;
    }
    let long = make_dir(&dir, &[b'd'; 255])?;
    make_file(&long, &[b'f'; 255], b"in a directory with a long name")?;
    rustix::fs::symlinkat(b"somewhere".as_slice(), &long, [b's'; 255].as_slice())?;
    Ok(())
}

fn links(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"links")?;
    for (name, target) in [
        ("short", b"../contents/1-bytes".to_vec()),
        ("dangling", b"no such thing".to_vec()),
        ("absolute", b"/etc/passwd".to_vec()),
        ("to itself", b"to itself".to_vec()),
        ("odd bytes", b"\xff\n\x01".to_vec()),
        ("long", vec![b'l'; 2000]),
        ("longest", vec![b't'; 4095]),
    ] {
        rustix::fs::symlinkat(target.as_slice(), &dir, name)?;
        let times = Timestamps {
            last_access: timespec(1_000, 1),
            last_modification: timespec(1_234_567, 89),
        };
        rustix::fs::utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    }
    make_file(&dir, b"hard one", &noise(1, 10_000))?;
    let elsewhere = make_dir(&dir, b"another directory")?;
    for (to, name) in [(&dir, "hard two"), (&elsewhere, "a third"), (&elsewhere, "hard \x01")] {
        rustix::fs::linkat(&dir, "hard one", to, name, AtFlags::empty())?;
    }
    rustix::fs::linkat(&dir, "short", &elsewhere, "hard link of a symlink", AtFlags::empty())?;
    Ok(())
}

fn attributes(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"attributes")?;
    let file = make_file(&dir, b"user attributes", b"data")?;
    for (name, value) in [
        ("user.one", b"value".to_vec()),
        ("user.empty", Vec::new()),
        ("user.binary \u{e9}", noise(7, 500)),
    ] {
        rustix::fs::fsetxattr(&file, name, &value, XattrFlags::empty())?;
    }
    rustix::fs::fsetxattr(&dir, "user.on.a.directory", b"yes", XattrFlags::empty())?;
    let file = make_file(&dir, b"acl", b"guarded")?;
    rustix::fs::fsetxattr(&file, "system.posix_acl_access", &acl(), XattrFlags::empty())?;
    let guarded = make_dir(&dir, b"default acl")?;
    rustix::fs::fsetxattr(&guarded, "system.posix_acl_default", &acl(), XattrFlags::empty())?;
    make_file(&guarded, b"heir", b"inherits the directory's ACL").map(drop)
}

/// `u::rwx,u:1234:r-x,g::r-x,m::r-x,o::---` in the kernel's form (`linux/posix_acl_xattr.h`).
fn acl() -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in [
        (0x01_u16, 7_u16, NONE),
        (0x02, 5, 1234),
        (0x04, 5, NONE),
        (0x10, 5, NONE),
        (0x20, 0, NONE),
    ] {
        bytes.extend_from_slice(&tag.to_le_bytes());
        bytes.extend_from_slice(&permissions.to_le_bytes());
        bytes.extend_from_slice(&id.to_le_bytes());
    }
    bytes
}

fn sparse(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"sparse")?;
    const MIB: u64 = 1 << 20;
    type Islands<'a> = &'a [(u64, usize)];
    let cases: [(&str, u64, Islands<'_>); 7] = [
        ("hole only", 3 * MIB, &[]),
        ("leading hole", 2 * MIB, &[(MIB, MIB as usize)]),
        ("trailing hole", 2 * MIB + 17, &[(0, 8192)]),
        ("hole in a group", 256 * 1024, &[(0, 4096), (65_536, 4096)]),
        ("holes of groups", 9 * MIB, &[(0, 4096), (5 * MIB, 300_000)]),
        ("a short hole", 100, &[]),
        ("over 4 GiB", 5 << 30, &[(MIB, 4096), ((4 << 30) + MIB, 70_000)]),
    ];
    for (name, len, data) in cases {
        let file = make_file(&dir, name.as_bytes(), b"")?;
        rustix::fs::ftruncate(&file, len)?;
        for &(at, len) in data {
            write_all(&file, &noise(at, len), at)?;
        }
    }
    Ok(())
}

fn privileged(root: &OwnedFd) -> io::Result<()> {
    use rustix::fs::{Gid, Uid, makedev, mknodat};
    let dir = make_dir(root, b"privileged")?;
    for (name, uid, gid) in
        [("owned", 1234, 5678), ("group only", 0, 42), ("nobody", 65_534, 65_534)]
    {
        let file = make_file(&dir, name.as_bytes(), b"mine")?;
        rustix::fs::fchown(&file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))?;
    }
    rustix::fs::symlinkat("nowhere", &dir, "owned link")?;
    rustix::fs::chownat(
        &dir,
        "owned link",
        Some(Uid::from_raw(1234)),
        Some(Gid::from_raw(5678)),
        AtFlags::SYMLINK_NOFOLLOW,
    )?;
    let mode = Mode::from_raw_mode(0o640);
    mknodat(&dir, "fifo", FileType::Fifo, mode, 0)?;
    mknodat(&dir, "null device", FileType::CharacterDevice, mode, makedev(1, 3))?;
    mknodat(&dir, "block device", FileType::BlockDevice, mode, makedev(7, 200))?;
    let file = make_file(&dir, b"capability", b"program")?;
    // cap_net_bind_service=ep: revision 2, effective, one permitted bit (linux/capability.h).
    let mut capability = 0x0200_0001_u32.to_le_bytes().to_vec();
    capability.extend_from_slice(&0x400_u32.to_le_bytes());
    capability.extend_from_slice(&[0; 12]);
    rustix::fs::fsetxattr(&file, "security.capability", &capability, XattrFlags::empty())?;
    rustix::fs::fsetxattr(&file, "security.coffer-test", b"label", XattrFlags::empty())?;
    rustix::fs::fsetxattr(&file, "trusted.coffer-test", b"root only", XattrFlags::empty())?;
    Ok(())
}

fn deep(root: &OwnedFd, levels: usize) -> io::Result<()> {
    let mut dir = make_dir(root, b"deep")?;
    for level in 0..levels {
        dir = make_dir(&dir, format!("level {level} of the tree").as_bytes())?;
    }
    make_file(&dir, b"at the bottom", b"a path longer than PATH_MAX leads here").map(drop)
}

fn times_and_modes(root: &OwnedFd) -> io::Result<()> {
    let dir = make_dir(root, b"modes and times")?;
    for mode in [0o000, 0o200, 0o444, 0o600, 0o755, 0o777, 0o4755, 0o2755, 0o6711, 0o1644] {
        let file = make_file(&dir, format!("{mode:04o}").as_bytes(), b"mode")?;
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode))?;
    }
    for (name, mode) in
        [("sticky", 0o1777), ("setgid", 0o2775), ("closed", 0o000), ("fixed", 0o555)]
    {
        let inner = make_dir(&dir, name.as_bytes())?;
        make_file(&inner, b"inside", b"a directory's mode is set after its contents")?;
        rustix::fs::fchmod(&inner, Mode::from_raw_mode(mode))?;
    }
    for (name, seconds, nanoseconds) in [
        ("epoch", 0, 0),
        ("before 1970", -1_000_000_000, 999_999_999),
        ("one nanosecond", 1_700_000_000, 1),
        ("after 2038", 4_000_000_000, 123_456_789),
    ] {
        let times = Timestamps {
            last_access: timespec(seconds + 60, nanoseconds),
            last_modification: timespec(seconds, nanoseconds),
        };
        rustix::fs::futimens(&make_file(&dir, name.as_bytes(), b"time")?, &times)?;
        let name = format!("directory {name}");
        rustix::fs::futimens(&make_dir(&dir, name.as_bytes())?, &times)?;
    }
    Ok(())
}

const fn timespec(seconds: i64, nanoseconds: i64) -> Timespec {
    Timespec { tv_sec: seconds, tv_nsec: nanoseconds }
}

fn make_dir(parent: &OwnedFd, name: &[u8]) -> io::Result<OwnedFd> {
    rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
    open(parent, name, OFlags::DIRECTORY)
}

fn make_file(parent: &OwnedFd, name: &[u8], content: &[u8]) -> io::Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?;
    write_all(&file, content, 0)?;
    Ok(file)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8], mut at: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::pwrite(file, bytes, at)?;
        bytes = &bytes[written..];
        at += written as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_comparer_sees_each_kind_of_change() {
        let dir = tempfile::tempdir().unwrap();
        let (left, right) = (dir.path().join("left"), dir.path().join("right"));
        for root in [&left, &right] {
            std::fs::create_dir(root).unwrap();
            std::fs::write(root.join("file"), noise(1, 10_000)).unwrap();
        }
        let same_times = || {
            let times =
                Timestamps { last_access: timespec(1, 0), last_modification: timespec(2, 0) };
            for path in [left.join("file"), right.join("file"), left.clone(), right.clone()] {
                rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).unwrap();
            }
        };
        same_times();
        assert_eq!(differences(&left, &right).unwrap(), Vec::<String>::new());

        let mut changed = noise(1, 10_000);
        changed[9_999] ^= 1;
        std::fs::write(right.join("file"), changed).unwrap();
        same_times();
        assert_eq!(differences(&left, &right).unwrap().len(), 1);

        std::fs::remove_file(right.join("file")).unwrap();
        std::fs::hard_link(left.join("file"), right.join("other")).unwrap();
        let found = differences(&left, &right).unwrap();
        assert!(found.iter().any(|line| line.starts_with("file: missing")), "{found:?}");
        assert!(found.iter().any(|line| line.starts_with("other: not there")), "{found:?}");
    }
}

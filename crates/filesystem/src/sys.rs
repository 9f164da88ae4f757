//! The seam to the operating system: every call on a source, a backing or a target directory is
//! made here, relative to a directory handle and never through a symbolic link.
//!
//! Handles instead of paths let trees be deeper than `PATH_MAX`, and leave nothing to a process
//! that swaps a directory for a link while a job runs.

use std::fs::File;
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::num::NonZeroU64;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use data_path::{Node, NodeKind};
use rustix::fs::{
    Advice, AtFlags, CWD, FlockOperation, Gid, Mode, OFlags, RawDir, ResolveFlags, SeekFrom,
    Timespec, Timestamps, Uid, XattrFlags,
};
pub(crate) use rustix::fs::{FileType, Stat};
pub(crate) use rustix::io::Errno;
use serde::{Deserialize, Serialize};

#[cfg(test)]
use crate::power_cut;

pub(crate) type Result<T> = rustix::io::Result<T>;

/// Longest list of attribute names, and longest value, that Linux has (`XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const XATTR_MAX: usize = 64 * 1024;

/// Opens the directory that an administrator named. This once links are followed: the path is theirs.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(CWD, path, flags, Mode::empty())
}

pub(crate) fn open_dir(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_quietly(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)
}

/// Opens a directory to change what is in it, as its owner may, whatever its mode.
pub(crate) fn open_to_change(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    with_owner_s_rights(&dir, name, || open_dir(&dir, name))
}

/// Opens a directory to remove what is in it, as its owner may, whatever its mode: never one that is mounted there, be it
/// of the same filesystem; `XDEV` then.
pub(crate) fn open_to_empty(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    with_owner_s_rights(&dir, name, || open_beneath(&dir, name))
}

fn open_beneath(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    match rustix::fs::openat2(&dir, name, flags, Mode::empty(), resolve) {
        // Linux before 5.6, and old sandboxes, which answer EPERM: what is of another filesystem is told apart at least.
        Err(Errno::NOSYS | Errno::PERM) => {
            let opened = open_dir(&dir, name)?;
            match stat_open(&opened)?.st_dev == stat_open(&dir)?.st_dev {
                true => Ok(opened),
                false => Err(Errno::XDEV),
            }
        }
        other => other,
    }
}

/// Opens a directory, and gives its owner the rights that he needs in it, if necessary before.
fn with_owner_s_rights(
    dir: impl AsFd,
    name: &[u8],
    open: impl Fn() -> Result<OwnedFd>,
) -> Result<OwnedFd> {
    let opened = match open() {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = rustix::fs::openat(dir, name, flags, Mode::empty())?;
            // Such a handle allows no fchmod.
            let path = Inode::Open(handle.as_fd()).path();
            let mode = permissions(&stat_open(&handle)?) | OWNER_S_RIGHTS;
            rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
            open()?
        }
        other => other?,
    };
    give_owner_s_rights(&opened)?;
    Ok(opened)
}

/// To read a directory, to change what is in it, to reach it.
const OWNER_S_RIGHTS: u32 = 0o700;

/// Gives the owner of a directory his rights in it, and answers whether he had them not. What is another's stays as it
/// is: he may let us write in other ways.
pub(crate) fn give_owner_s_rights(dir: impl AsFd) -> Result<bool> {
    let mode = permissions(&stat_open(&dir)?);
    if mode & OWNER_S_RIGHTS == OWNER_S_RIGHTS {
        return Ok(false);
    }
    match set_mode(dir, mode | OWNER_S_RIGHTS) {
        Err(Errno::PERM) => Ok(false),
        other => other.map(|()| true),
    }
}

/// Opens a file to read it; a FIFO in its place does not block.
pub(crate) fn open_file(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    open_quietly(dir, name, OFlags::RDONLY | OFlags::NONBLOCK)
}

/// Opens for reading without changing the access time, where the caller has the right to.
fn open_quietly(dir: impl AsFd, name: &[u8], flags: OFlags) -> Result<OwnedFd> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&dir, name, flags | OFlags::NOATIME, Mode::empty()) {
        Err(Errno::PERM) => rustix::fs::openat(&dir, name, flags, Mode::empty()),
        other => other,
    }
}

pub(crate) fn open_to_write(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}

/// Opens a file to change it in place, as its owner may, whatever its mode, which may be another one then. Its access time
/// stays, where the caller has the right to that.
pub(crate) fn open_to_rewrite(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    const OWNER_S: u32 = 0o600;
    match open_quietly(&dir, name, OFlags::RDWR) {
        Err(Errno::ACCESS) => {
            let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let handle = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
            // Such a handle allows no fchmod.
            let path = Inode::Open(handle.as_fd()).path();
            let mode = permissions(&stat_open(&handle)?) | OWNER_S;
            rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(mode), AtFlags::empty())?;
            open_quietly(&dir, name, OFlags::RDWR)
        }
        other => other,
    }
}

/// Makes a file that must not exist yet.
pub(crate) fn create(dir: impl AsFd, name: &[u8], mode: u32) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode))
}

/// Opens the lock file, made if missing. Where nothing can be written it is locked as it is.
pub(crate) fn open_lock(dir: impl AsFd, name: &[u8]) -> Result<OwnedFd> {
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o600)) {
        Err(Errno::ROFS) => open_file(dir, name),
        other => other,
    }
}

/// Takes the lock of an open file; `WOULDBLOCK` when another has it.
pub(crate) fn try_lock(file: impl AsFd) -> Result<()> {
    rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive)
}

/// Whether somebody has this lock now. Takes it for a moment, shared with others who look.
pub(crate) fn is_locked(dir: impl AsFd, name: &[u8]) -> bool {
    let file = open_file(dir, name);
    let taken = file.and_then(|f| rustix::fs::flock(&f, FlockOperation::NonBlockingLockShared));
    taken == Err(Errno::WOULDBLOCK)
}

pub(crate) fn make_dir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::mkdirat(dir, name, Mode::from_raw_mode(0o700))
}

pub(crate) fn make_link(dir: impl AsFd, name: &[u8], target: &[u8]) -> Result<()> {
    rustix::fs::symlinkat(target, dir, name)
}

pub(crate) fn make_node(dir: impl AsFd, name: &[u8], node: Node) -> Result<()> {
    let kind = match node.kind {
        NodeKind::Fifo => FileType::Fifo,
        NodeKind::CharacterDevice => FileType::CharacterDevice,
        NodeKind::BlockDevice => FileType::BlockDevice,
    };
    let device = rustix::fs::makedev(node.major, node.minor);
    rustix::fs::mknodat(dir, name, kind, Mode::from_raw_mode(0o600), device)
}

/// The FIFO or device with this `stat`; `None` for anything else.
pub(crate) fn node(stat: &Stat) -> Option<Node> {
    let kind = match FileType::from_raw_mode(stat.st_mode) {
        FileType::Fifo => return Some(Node { kind: NodeKind::Fifo, major: 0, minor: 0 }),
        FileType::CharacterDevice => NodeKind::CharacterDevice,
        FileType::BlockDevice => NodeKind::BlockDevice,
        _ => return None,
    };
    let (major, minor) = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
    Some(Node { kind, major, minor })
}

pub(crate) fn hard_link(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    rustix::fs::linkat(from, old, to, new, AtFlags::empty())
}

pub(crate) fn rename(from: impl AsFd, old: &[u8], to: impl AsFd, new: &[u8]) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::Change, &to);
    rustix::fs::renameat(from, old, to, new)
}

pub(crate) fn unlink(dir: impl AsFd, name: &[u8]) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::Change, &dir);
    rustix::fs::unlinkat(dir, name, AtFlags::empty())
}

pub(crate) fn remove_dir(dir: impl AsFd, name: &[u8]) -> Result<()> {
    rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR)
}

pub(crate) fn read_link(dir: impl AsFd, name: &[u8]) -> Result<Vec<u8>> {
    Ok(rustix::fs::readlinkat(dir, name, Vec::new())?.into_bytes())
}

pub(crate) fn stat(dir: impl AsFd, name: &[u8]) -> Result<Stat> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

pub(crate) fn stat_open(file: impl AsFd) -> Result<Stat> {
    rustix::fs::fstat(file)
}

/// The names in a directory but for `.` and `..`, in no order, each given to `each`. One call at a time on a handle.
pub(crate) fn names(dir: impl AsFd, mut each: impl FnMut(&[u8])) -> Result<()> {
    rustix::fs::seek(&dir, SeekFrom::Start(0))?;
    let mut buffer = Box::new([MaybeUninit::<u8>::uninit(); 32 * 1024]);
    let mut entries = RawDir::new(dir, buffer.as_mut_slice());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            each(name);
        }
    }
    Ok(())
}

/// Fills `buffer` from `at`; the count is smaller only where the file ends.
pub(crate) fn read_at(file: impl AsFd, buffer: &mut [u8], at: u64) -> Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::pread(&file, &mut buffer[done..], at + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(done)
}

/// Appends what is in the file from where it stands, up to `most` bytes.
pub(crate) fn read_all(file: OwnedFd, most: u64, content: &mut Vec<u8>) -> Result<()> {
    let read = File::from(file).take(most).read_to_end(content);
    read.map(drop).map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))
}

/// The most that one call writes, as `cp` does it. The page cache takes memory in pieces as large as the
/// write, and large pieces are scarce on a machine that has run for a while: after another program's
/// work, 2 GiB took 1.4 s in writes of 128 KiB, 3.7 to 5 s in writes of 256 KiB, and 8.5 s in writes of 1 MiB.
const WRITE_MAX: usize = 128 * 1024;

pub(crate) fn write_at(file: impl AsFd, mut bytes: &[u8], mut at: u64) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::Change, &file);
    while !bytes.is_empty() {
        match rustix::io::pwrite(&file, &bytes[..bytes.len().min(WRITE_MAX)], at) {
            // A device that takes nothing and gives no reason is full.
            Ok(0) => return Err(Errno::NOSPC),
            Ok(count) => {
                bytes = &bytes[count..];
                at += count as u64;
            }
            Err(Errno::INTR) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Has the kernel start writing this range to disk, so that the sync at the end finds little to do.
/// It is advice: a filesystem that ignores it loses nothing.
pub(crate) fn start_writing(file: impl AsFd, at: u64, len: usize) {
    let _ = rustix::fs::fadvise(file, at, NonZeroU64::new(len as u64), Advice::DontNeed);
}

pub(crate) fn set_len(file: impl AsFd, len: u64) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::Change, &file);
    rustix::fs::ftruncate(file, len)
}

/// The next data in the file at or after `at`, as start and end; `None` when only a hole follows.
pub(crate) fn next_data(file: impl AsFd, at: u64) -> Result<Option<(u64, u64)>> {
    match rustix::fs::seek(&file, SeekFrom::Data(at)) {
        Ok(start) => Ok(Some((start, rustix::fs::seek(&file, SeekFrom::Hole(start))?))),
        Err(Errno::NXIO) => Ok(None),
        Err(e) => Err(e),
    }
}

pub(crate) fn sync_file(file: impl AsFd) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::SyncFile, &file);
    rustix::fs::fsync(file)
}

/// Makes everything that was written to the filesystem of `dir` durable.
pub(crate) fn sync_all(dir: impl AsFd) -> Result<()> {
    #[cfg(test)]
    let _alone = power_cut::about_to(power_cut::Step::SyncAll, &dir);
    rustix::fs::syncfs(dir)
}

/// Permission bits of `st_mode`, set-id and sticky among them.
pub(crate) const fn permissions(stat: &Stat) -> u32 {
    stat.st_mode & 0o7777
}

pub(crate) fn set_mode(file: impl AsFd, mode: u32) -> Result<()> {
    rustix::fs::fchmod(file, Mode::from_raw_mode(mode))
}

/// For a name that can't be opened, such as a device; not for symbolic links, which have no mode.
pub(crate) fn set_mode_at(dir: impl AsFd, name: &[u8], mode: u32) -> Result<()> {
    rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())
}

pub(crate) const fn same_owner(one: &Stat, other: &Stat) -> bool {
    one.st_uid == other.st_uid && one.st_gid == other.st_gid
}

/// Answers whether it has its owner now: see [`is_given`].
pub(crate) fn set_owner(file: impl AsFd, like: &Stat) -> Result<bool> {
    let (uid, gid) = owner(like);
    is_given(rustix::fs::fchown(file, Some(uid), Some(gid)))
}

pub(crate) fn set_owner_at(dir: impl AsFd, name: &[u8], like: &Stat) -> Result<bool> {
    let (uid, gid) = owner(like);
    is_given(rustix::fs::chownat(dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW))
}

fn owner(like: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(like.st_uid), Gid::from_raw(like.st_gid))
}

/// Root may be refused an owner too: without `CAP_CHOWN`, by a server that takes it for nobody, for an id that the user
/// namespace does not have, on a filesystem without owners.
fn is_given(chown: Result<()>) -> Result<bool> {
    match chown {
        Err(Errno::PERM | Errno::INVAL | Errno::OPNOTSUPP) => Ok(false),
        other => other.map(|()| true),
    }
}

/// When a file was last read and written, each in seconds and nanoseconds.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Times {
    accessed: (i64, u64),
    modified: (i64, u64),
}

impl Times {
    pub(crate) const fn of(stat: &Stat) -> Self {
        Self {
            accessed: (stat.st_atime, stat.st_atime_nsec),
            modified: (stat.st_mtime, stat.st_mtime_nsec),
        }
    }

    fn stamps(&self) -> Timestamps {
        let time = |(seconds, nanoseconds): (i64, u64)| Timespec {
            tv_sec: seconds,
            tv_nsec: i64::try_from(nanoseconds).unwrap_or_default(),
        };
        Timestamps { last_access: time(self.accessed), last_modification: time(self.modified) }
    }
}

pub(crate) fn set_times(file: impl AsFd, like: &Stat) -> Result<()> {
    set_times_to(file, &Times::of(like))
}

pub(crate) fn set_times_to(file: impl AsFd, times: &Times) -> Result<()> {
    rustix::fs::futimens(file, &times.stamps())
}

pub(crate) fn set_times_at(dir: impl AsFd, name: &[u8], like: &Stat) -> Result<()> {
    rustix::fs::utimensat(dir, name, &Times::of(like).stamps(), AtFlags::SYMLINK_NOFOLLOW)
}

/// One extended attribute.
pub(crate) type Xattr = (Vec<u8>, Vec<u8>);

/// What an attribute belongs to: an open file or directory, or a name that is not opened.
#[derive(Clone, Copy)]
pub(crate) enum Inode<'a> {
    Open(BorrowedFd<'a>),
    Named(BorrowedFd<'a>, &'a [u8]),
}

impl Inode<'_> {
    /// The attribute calls that do not follow links take a path; this one is short and has no link in it.
    fn path(self) -> Vec<u8> {
        match self {
            Self::Open(fd) => format!("/proc/self/fd/{}", fd.as_raw_fd()).into_bytes(),
            Self::Named(dir, name) => {
                [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat()
            }
        }
    }
}

/// All attributes of a file's own ([`is_carried`]) that the caller may see; none where the filesystem has no attributes.
pub(crate) fn xattrs(of: Inode<'_>) -> Result<Vec<Xattr>> {
    let mut found = Vec::new();
    for name in xattr_names(of)? {
        let mut value = vec![0; XATTR_MAX];
        let len = match of {
            Inode::Open(fd) => rustix::fs::fgetxattr(fd, &name, value.as_mut_slice()),
            Inode::Named(..) => rustix::fs::lgetxattr(of.path(), &name, value.as_mut_slice()),
        };
        match len {
            Ok(len) => {
                value.truncate(len);
                found.push((name, value));
            }
            // Removed since it was listed.
            Err(Errno::NODATA) => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

/// One attribute's value; `None` where there is none.
pub(crate) fn xattr(of: Inode<'_>, name: &[u8]) -> Result<Option<Vec<u8>>> {
    let mut value = vec![0; XATTR_MAX];
    let len = match of {
        Inode::Open(fd) => rustix::fs::fgetxattr(fd, name, value.as_mut_slice()),
        Inode::Named(..) => rustix::fs::lgetxattr(of.path(), name, value.as_mut_slice()),
    };
    match len {
        Ok(len) => {
            value.truncate(len);
            Ok(Some(value))
        }
        // Or the filesystem has no attributes.
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(e) => Err(e),
    }
}

/// The names of those attributes.
pub(crate) fn xattr_names(of: Inode<'_>) -> Result<Vec<Vec<u8>>> {
    // Nearly every file has none or little: a small buffer first.
    let mut small = [0; 1024];
    let large;
    let list = |buffer: &mut [u8]| match of {
        Inode::Open(fd) => rustix::fs::flistxattr(fd, buffer),
        Inode::Named(..) => rustix::fs::llistxattr(of.path(), buffer),
    };
    let names = match list(&mut small) {
        Ok(len) => &small[..len],
        Err(Errno::RANGE) => {
            let mut buffer = vec![0; XATTR_MAX];
            let len = list(&mut buffer)?;
            buffer.truncate(len);
            large = buffer;
            &large[..]
        }
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    Ok(names.split(|byte| *byte == 0).filter(|name| is_carried(name)).map(<[u8]>::to_vec).collect())
}

/// Whether an attribute goes with a file to another filesystem. What a filesystem shows beside these (`system.nfs4_acl`,
/// `lustre.lov`, `btrfs.compression`) tells how it keeps the file itself, and others refuse it.
fn is_carried(name: &[u8]) -> bool {
    let everywhere: [&[u8]; 3] = [b"user.", b"trusted.", b"security."];
    is_acl(name) || everywhere.iter().any(|prefix| name.starts_with(prefix))
}

/// Whether it is the name of an ACL.
pub(crate) fn is_acl(name: &[u8]) -> bool {
    name.starts_with(b"system.posix_acl_")
}

pub(crate) fn set_xattr(of: Inode<'_>, name: &[u8], value: &[u8]) -> Result<()> {
    match of {
        Inode::Open(fd) => rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()),
        Inode::Named(..) => rustix::fs::lsetxattr(of.path(), name, value, XattrFlags::empty()),
    }
}

/// Removes an attribute, if it is there.
pub(crate) fn remove_xattr(of: Inode<'_>, name: &[u8]) -> Result<()> {
    let removed = match of {
        Inode::Open(fd) => rustix::fs::fremovexattr(fd, name),
        Inode::Named(..) => rustix::fs::lremovexattr(of.path(), name),
    };
    match removed {
        Err(Errno::NODATA) => Ok(()),
        other => other,
    }
}

/// Sees to it that what is made in `dir` inherits no ACL.
pub(crate) fn remove_default_acl(dir: impl AsFd) -> Result<()> {
    match rustix::fs::fremovexattr(dir, "system.posix_acl_default") {
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(()),
        other => other,
    }
}

pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Raises the limit on open files to what this process may have: a walk holds two for each level of a tree and an open
/// filesystem six, and the usual limit of 1,024 is a tree of 500 levels, or 168 filesystems.
pub(crate) fn raise_file_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    if limit.current != limit.maximum {
        limit.current = limit.maximum;
        // Where it is not allowed, only very deep trees fail, each with its own error.
        let _ = setrlimit(Resource::Nofile, limit);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    /// The kernel shows `system.sockprotoname` of each socket, as NFS shows `system.nfs4_acl` of each file.
    #[test]
    fn what_a_filesystem_shows_of_its_own_is_no_attribute_of_a_file() {
        let (socket, _other) = UnixStream::pair().unwrap();
        let mut list = [0; 100];
        let len = rustix::fs::flistxattr(&socket, &mut list).unwrap();
        assert!(list[..len].ends_with(b"system.sockprotoname\0"));
        let names = xattr_names(Inode::Open(socket.as_fd())).unwrap();
        assert!(!names.contains(&b"system.sockprotoname".to_vec()), "{names:?}");
        let all = "system.posix_acl_access system.posix_acl_default user.x trusted.x security.x \
            system.nfs4_acl system.cifs_acl system.richacl lustre.lov ceph.dir.layout btrfs.compression";
        let carried: Vec<_> = all.split(' ').filter(|name| is_carried(name.as_bytes())).collect();
        assert_eq!(carried.join(" "), &all[..all.find(" system.nfs4").unwrap()]);
    }
}

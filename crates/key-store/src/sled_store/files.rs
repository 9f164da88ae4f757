//! The files of a store: who may read them, and whether they have reached the disk.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Makes the directory of a store, or takes the one that is there from everybody else.
pub(super) fn make_private_dir(dir: &Path) -> io::Result<()> {
    if !dir.is_dir() {
        DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
        if let Some(parent) = dir.canonicalize()?.parent() {
            sync_dir(parent)?;
        }
    }
    fs::set_permissions(dir, Permissions::from_mode(0o700))
}

/// Makes a directory for something unfinished, and removes what an earlier attempt left there.
pub(super) fn make_new_private_dir(dir: &Path) -> io::Result<()> {
    if dir.exists() {
        fs::remove_dir_all(dir)?;
    }
    DirBuilder::new().mode(0o700).create(dir)
}

/// Copies a tree of files into a new directory for its owner alone.
pub(super) fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    DirBuilder::new().mode(0o700).create(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (from, to) = (entry.path(), to.join(entry.file_name()));
        if entry.file_type()?.is_dir() {
            copy_private(&from, &to)?;
            continue;
        }
        let mut options = OpenOptions::new();
        let mut copy = options.write(true).create_new(true).mode(0o600).open(to)?;
        io::copy(&mut File::open(from)?, &mut copy)?;
    }
    Ok(())
}

/// Makes names that were made or removed in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

/// sled 0.34 takes a snapshot that it was killed over for the newest one, and refuses to open because
/// it is not whole. It removes the one before only after this one has its name.
pub(super) fn remove_unfinished_snapshots(sled_dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(sled_dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Keeps every other process, and every other store in this one, out of `dir` until it is dropped.
/// `None` when somebody is in already.
pub(super) fn lock(dir: &Path) -> io::Result<Option<File>> {
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).mode(0o600);
    let file = file.open(dir.join("lock"))?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(e)) => Err(e),
    }
}

/// What sled keeps: `db` (the log), `conf`, `snap.*` (made when it opens, replaceable), `blobs/` (unused, see
/// [`super::entries`]). After it has opened, only `db` changes.
pub(super) struct SledFiles {
    db: File,
}

impl SledFiles {
    /// Makes everything private and durable that sled wrote while it opened.
    pub(super) fn settle(sled_dir: &Path) -> io::Result<Self> {
        settle_tree(sled_dir)?;
        // Held from now on: the kernel tells each write error to the files that were open when it happened.
        Ok(Self { db: File::open(sled_dir.join("db"))? })
    }

    /// Makes what sled flushed durable. Its own flush is a `sync_file_range(2)`, which neither writes the
    /// file's length nor empties the disk's cache.
    pub(super) fn sync(&self) -> io::Result<()> {
        self.db.sync_all()
    }
}

fn settle_tree(dir: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path: PathBuf = entry?.path();
        if path.is_dir() {
            fs::set_permissions(&path, Permissions::from_mode(0o700))?;
            settle_tree(&path)?;
        } else {
            fs::set_permissions(&path, Permissions::from_mode(0o600))?;
            File::open(&path)?.sync_all()?;
        }
    }
    sync_dir(dir)
}

/// Bytes that may still be written on the disk below `dir`; `None` where the filesystem does not tell.
pub(super) fn free_space(dir: &Path) -> io::Result<Option<u64>> {
    let stat = rustix::fs::statvfs(dir)?;
    Ok((stat.f_blocks > 0).then(|| stat.f_bavail.saturating_mul(stat.f_frsize)))
}

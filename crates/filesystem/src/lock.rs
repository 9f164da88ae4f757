//! `coffer.lock`: one node for each filesystem, and whose it is.

use std::os::fd::OwnedFd;
use std::path::Path;

use kms_core::KeyId;

use crate::error::{Doing, Error, Fault};
use crate::filesystem::{of_another_key, open_tree};
use crate::header;
use crate::sys::{self, Errno};

/// Whoever has the filesystem open has this locked. It has the key id as text, so that what is half made or half
/// removed, and has no header, is known to be whose it is.
pub(crate) const LOCK: &[u8] = b"coffer.lock";

/// The lock of a filesystem, which no second process or node gets ([`ErrorKind::InUse`](crate::ErrorKind::InUse)) until
/// this and the [`Filesystem`](crate::Filesystem) that was opened with it are dropped. A node holds it from unlocking on, also
/// while nothing is read or written. It takes one open file.
#[derive(Debug)]
pub struct BackingLock {
    lock: OwnedFd,
}

impl BackingLock {
    /// Takes the lock of the filesystem in `backing`, which has the key `key`.
    ///
    /// # Errors
    /// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when it is open elsewhere,
    /// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when there is none, or one of another key.
    pub fn take(backing: &Path, key: KeyId) -> Result<Self, Error> {
        let take = || -> Result<Self, Fault> {
            sys::raise_file_limit();
            let backing = sys::open_root(backing).doing("opened")?;
            open_tree(&backing)?;
            let lock = lock(&backing)?;
            let named = match header::read(&backing) {
                Ok(envelope) => Some(envelope.wrapped.key_id),
                Err(_) => owner(&lock).doing("read")?,
            };
            match named {
                Some(other) if other != key => Err(of_another_key(other)),
                _ => Ok(Self { lock }),
            }
        };
        take().map_err(|fault| fault.at_path(backing))
    }

    /// Another handle on the lock, if it is this directory's. Another one can be at its path by now.
    pub(crate) fn of(&self, backing: &OwnedFd) -> sys::Result<Option<OwnedFd>> {
        let identity = |stat: sys::Stat| (stat.st_dev, stat.st_ino);
        let ours = identity(sys::stat_open(&self.lock)?);
        match sys::stat(backing, LOCK) {
            Ok(there) if identity(there) == ours => sys::duplicate(&self.lock).map(Some),
            _ => Ok(None),
        }
    }
}

/// Whether a process has the filesystem in `backing` open at this moment.
pub fn is_open(backing: &Path) -> bool {
    sys::open_root(backing).is_ok_and(|dir| sys::is_locked(&dir, LOCK))
}

/// Locks it, unless somebody has.
pub(crate) fn lock(backing: &OwnedFd) -> Result<OwnedFd, Fault> {
    match sys::lock(backing, LOCK) {
        Err(Errno::WOULDBLOCK) => Err(Fault::InUse("another process or node has it open")),
        other => other.doing("locked"),
    }
}

/// The key id that the lock file names; `None` when its writer died before that.
pub(crate) fn owner(lock: &OwnedFd) -> sys::Result<Option<KeyId>> {
    let mut text = [0; 64];
    let len = sys::read_at(lock, &mut text, 0)?;
    let text = std::str::from_utf8(&text[..len]).ok();
    Ok(text.and_then(|text| text.strip_suffix('\n')?.parse().ok()))
}

/// Writes it down whose it is.
pub(crate) fn put_owner(lock: &OwnedFd, key: KeyId) -> sys::Result<()> {
    sys::set_len(lock, 0)?;
    sys::write_at(lock, format!("{key}\n").as_bytes(), 0)
}

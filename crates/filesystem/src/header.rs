//! The copy of the wrapped key in a backing directory: `coffer.key`, a [`KeyEnvelope`] in JSON. While the filesystem is
//! being re-encrypted the copy of the key that it comes from lies beside it: `coffer.previous-key`.
//!
//! They contain no secret. With them `coffer recover` can rebuild a lost key store, and they tell which
//! KMS opens the filesystem.

use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use async_trait::async_trait;
use kms_core::{FilesystemSite, HolderError, KeyCopy, KeyEnvelope, KeyHolder, KeyId};

use crate::error::{Doing, Error, Fault};
use crate::filesystem::{HEADER, PREVIOUS, ROOT, of_another_key, open_tree, refused};
use crate::keys::is_of;
use crate::lock::{self, BackingLock, BackingLocks, LOCK, put_owner};
use crate::names::Names;
use crate::sealed::SealedTree;
use crate::sys::{self, Errno};

/// Reads the copy of the wrapped key in a backing directory. Needs no key and no lock.
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when there is none or it is of a newer format,
/// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) when it can't be understood, or the data beside it has another key.
pub fn read_envelope(backing: &Path) -> Result<KeyEnvelope, Error> {
    let dir = sys::open_root(backing).doing("opened").map_err(|fault| fault.at_path(backing))?;
    read_owned(&dir, None).map_err(|fault| fault.at_path(&copy_path(backing, HEADER)))
}

/// Reads `coffer.key`, which has to be of the key of the data beside it. `lock` is that of `backing`, if this node holds it.
fn read_owned(backing: &OwnedFd, lock: Option<&BackingLock>) -> Result<KeyEnvelope, Fault> {
    let envelope = read(backing, HEADER)?;
    let key = envelope.wrapped.key_id;
    let owner = match lock {
        Some(lock) => lock::owner(lock.file()).doing("read"),
        None => owner(backing),
    };
    match owner? {
        // A re-encryption that is just beginning or ending.
        Some(owner) if owner != key && key_of(backing, PREVIOUS)? != Some(owner) => {
            let why =
                format!("it is the wrapped key {key}, and the data beside it has the key {owner}");
            Err(Fault::damaged("read", why))
        }
        _ => Ok(envelope),
    }
}

/// As [`read_envelope`], the copy of the key that the filesystem is being re-encrypted from; `None` when it is not.
///
/// # Errors
/// As [`read_envelope`].
pub fn read_previous_envelope(backing: &Path) -> Result<Option<KeyEnvelope>, Error> {
    let dir = sys::open_root(backing).doing("opened").map_err(|fault| fault.at_path(backing))?;
    read_if_there(&dir, PREVIOUS).map_err(|fault| fault.at_path(&copy_path(backing, PREVIOUS)))
}

/// The new key's copy of a filesystem that is about to get it ([`prepare_rekey`]). It waits there however often the filesystem is
/// opened meanwhile, and one of which nothing came until the next one takes its place.
const NEXT: &[u8] = b"coffer.key.next";

/// Makes room for what [`begin_rekey`] writes with the same copies, before anything is decided: `from` lies there a second time
/// then, which means nothing yet, and `to` beside them, to take its place. Nothing of it needs to be taken back.
///
/// Durable and idempotent.
///
/// # Errors
/// As [`begin_rekey`]; what was written is removed again.
pub fn prepare_rekey(
    locks: &BackingLocks,
    backing: &Path,
    from: &KeyEnvelope,
    to: &KeyEnvelope,
) -> Result<(), Error> {
    let old = from.wrapped.key_id;
    let prepare = || -> Result<(), Fault> {
        let dir = sys::open_root(backing).doing("opened")?;
        open_tree(&dir)?;
        let _lock = locks.lock(&dir)?;
        require_key(&dir, old)?;
        let had = has_previous(&dir, old)?;
        if !had {
            write(&dir, PREVIOUS, from)?;
        }
        write(&dir, NEXT, to).inspect_err(|_| {
            if !had {
                let _ = sys::unlink(&dir, PREVIOUS);
            }
        })
    };
    prepare().map_err(|fault| fault.at_path(backing))
}

/// Requires that `coffer.key` is of this key.
fn require_key(backing: &OwnedFd, key: KeyId) -> Result<(), Fault> {
    match read(backing, HEADER)?.wrapped.key_id {
        there if there == key => Ok(()),
        other => Err(of_another_key(other)),
    }
}

/// Whether the copy of `old` is there a second time; one that can't be read counts for none.
fn has_previous(backing: &OwnedFd, old: KeyId) -> Result<bool, Fault> {
    match readable_key(backing, PREVIOUS)? {
        Some(there) if there == old => Ok(true),
        Some(other) => Err(of_another_key(other)),
        None => Ok(false),
    }
}

/// Begins to give the filesystem in `backing` another key: makes it one *between two keys*, which opens with both
/// ([`Filesystem::open_sharing`]), and whose copies of both are there ([`BackingHeaders`]). Nothing of its data is
/// changed yet: that does [`Filesystem::rekey`], and [`end_rekey`] ends it.
///
/// Durable and idempotent, also for several that begin it at once; a copy that is there stays as it is. First `from` goes to `coffer.previous-key`, then `to` to
/// `coffer.key`, then the new key's id to `coffer.lock`: whatever a crash leaves of it opens with both keys. Nothing but
/// this node's lock may be held on it: no [`Filesystem`] that was opened with the old key alone.
///
/// # Errors
/// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when another node has it;
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when it is a filesystem of neither key, or between other keys.
///
/// [`Filesystem`]: crate::Filesystem
/// [`Filesystem::open_sharing`]: crate::Filesystem::open_sharing
/// [`Filesystem::rekey`]: crate::Filesystem::rekey
pub fn begin_rekey(
    locks: &BackingLocks,
    backing: &Path,
    from: &KeyEnvelope,
    to: &KeyEnvelope,
) -> Result<(), Error> {
    let (old, new) = (from.wrapped.key_id, to.wrapped.key_id);
    let begin = || -> Result<(), Fault> {
        if old == new {
            return Err(refused("rekeyed", "the new key is the old one", "make a new key"));
        }
        let dir = sys::open_root(backing).doing("opened")?;
        open_tree(&dir)?;
        let lock = locks.lock(&dir)?;
        // Whoever opens the filesystem and whoever compares its copies begin it alike, maybe at the same moment.
        let _alone = lock.copies();
        let owner = lock::owner(lock.file()).doing("read")?;
        // A lost copy is written again where it is shown otherwise whose the data is.
        let current = readable_key(&dir, HEADER)?;
        if let Some(other) = current.or(owner).filter(|key| ![old, new].contains(key)) {
            return Err(of_another_key(other));
        }
        if current.is_none() && owner.is_none() {
            return Err(read(&dir, HEADER).err().unwrap_or(Fault::NotFound));
        }
        if !has_previous(&dir, old)? {
            write(&dir, PREVIOUS, from)?;
        }
        // One that was prepared needs no room.
        if current != Some(new) && readable_key(&dir, NEXT)? == Some(new) {
            sys::rename(&dir, NEXT, &dir, HEADER)
                .and_then(|()| sys::sync_file(&dir))
                .doing("written")?;
        } else if current != Some(new) {
            write(&dir, HEADER, to)?;
        }
        if owner != Some(new) {
            put_owner(lock.file(), new)
                .and_then(|()| sys::sync_file(lock.file()))
                .doing("locked")?;
        }
        Ok(())
    };
    begin().map_err(|fault| fault.at_path(backing))
}

/// Ends what [`begin_rekey`] began, when nothing lies under the former key any more
/// ([`Outcome::Done`](crate::Outcome::Done) of [`Filesystem::rekey`](crate::Filesystem::rekey)): removes the copy of it.
/// Durable and idempotent.
///
/// # Errors
/// [`ErrorKind::InUse`](crate::ErrorKind::InUse) when another node has it;
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when `coffer.key` is not of `key`: the copy stays then.
pub fn end_rekey(locks: &BackingLocks, backing: &Path, key: KeyId) -> Result<(), Error> {
    let end = || -> Result<(), Fault> {
        let dir = sys::open_root(backing).doing("opened")?;
        open_tree(&dir)?;
        let _lock = locks.lock(&dir)?;
        require_key(&dir, key)?;
        for name in [NEXT, PREVIOUS] {
            match sys::unlink(&dir, name) {
                Ok(()) | Err(Errno::NOENT) => {}
                Err(errno) => return Err(errno).doing("removed"),
            }
        }
        sys::sync_file(&dir).doing("made durable")
    };
    end().map_err(|fault| fault.at_path(backing))
}

fn if_there(backing: &OwnedFd, name: &[u8]) -> Result<bool, Fault> {
    match sys::stat(backing, name) {
        Err(Errno::NOENT) => Ok(false),
        other => other.map(|_| true).doing("read"),
    }
}

/// The copy with this name; `None` when there is none.
fn read_if_there(backing: &OwnedFd, name: &[u8]) -> Result<Option<KeyEnvelope>, Fault> {
    match if_there(backing, name)? {
        true => read(backing, name).map(Some),
        false => Ok(None),
    }
}

/// Whose copy lies under this name; `None` when there is none.
fn key_of(backing: &OwnedFd, name: &[u8]) -> Result<Option<KeyId>, Fault> {
    Ok(read_if_there(backing, name)?.map(|envelope| envelope.wrapped.key_id))
}

/// As [`key_of`]; `None` too when what lies there is rubbish.
fn readable_key(backing: &OwnedFd, name: &[u8]) -> Result<Option<KeyId>, Fault> {
    match key_of(backing, name) {
        Err(Fault::Damaged { .. }) => Ok(None),
        other => other,
    }
}

/// The key that the lock file names; `None` when it can't be told.
fn owner(backing: &OwnedFd) -> Result<Option<KeyId>, Fault> {
    match sys::open_file(backing, LOCK) {
        Err(Errno::NOENT) => Ok(None),
        file => lock::owner(&file.doing("opened")?).doing("read"),
    }
}

/// Reads the copy with this name.
pub(crate) fn read(backing: &OwnedFd, name: &[u8]) -> Result<KeyEnvelope, Fault> {
    let text = SealedTree::small_file(backing, name)?.ok_or_else(|| Fault::Refused {
        doing: "read",
        why: "there is no such file, so this is no encrypted filesystem".to_owned(),
        cure: "check the path of the backing directory",
    })?;
    // The format is looked at first: a newer one may have other fields.
    let FormatOnly { format } = parse(&text)?;
    match format {
        Some(format) if format == u64::from(kms_core::ENVELOPE_FORMAT) => {}
        Some(format) => {
            let why = format!("it is in format {format}, which this program does not know");
            return Err(Fault::Refused { doing: "read", why, cure: "update Coffer" });
        }
        None => return Err(Fault::damaged("read", "it names no format")),
    }
    let envelope: KeyEnvelope = parse(&text)?;
    envelope.check().map_err(|error| Fault::damaged("read", error.to_string()))?;
    Ok(envelope)
}

#[derive(serde::Deserialize)]
struct FormatOnly {
    format: Option<u64>,
}

fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(text)
        .map_err(|error| Fault::damaged("read", format!("it is no wrapped key: {error}")))
}

/// Puts `envelope` in place under this name, durably; at any moment the old one or the new one is there.
pub(crate) fn write(backing: &OwnedFd, name: &[u8], envelope: &KeyEnvelope) -> Result<(), Fault> {
    let mut text = serde_json::to_vec_pretty(envelope)
        .map_err(|error| Fault::damaged("written", error.to_string()))?;
    text.push(b'\n');
    // Two writers at once must not share a name. What a crash leaves is removed at the next opening.
    let unique = kms_core::KeyId::random().to_string();
    let staged = [name, b".", unique.as_bytes()].concat();
    let put = || -> sys::Result<()> {
        let file = sys::create(backing, &staged, 0o600)?;
        sys::write_at(&file, &text, 0)?;
        sys::sync_file(&file)?;
        sys::rename(backing, &staged, backing, name)?;
        sys::sync_file(backing)
    };
    put().doing("written").inspect_err(|_| {
        let _ = sys::unlink(backing, &staged);
    })
}

/// Requires that the ciphertext tree is there.
fn find_data(backing: &OwnedFd, doing: &'static str) -> Result<(), Fault> {
    match sys::stat(backing, ROOT) {
        Ok(_) => Ok(()),
        Err(_) => Err(Fault::Refused {
            doing,
            why: "there is no data of an encrypted filesystem beside it".to_owned(),
            cure: "check the filesystem's backing directory",
        }),
    }
}

/// The copies in the making that nobody waits for, where the filesystem is opened with this key, and perhaps a previous one.
pub(crate) fn left_over(
    backing: &OwnedFd,
    key: KeyId,
    previous: Option<KeyId>,
) -> Result<Vec<Vec<u8>>, Fault> {
    let mut left = Vec::new();
    for name in Names::read(backing, is_half_written).doing("opened")?.iter() {
        // A rekey that has prepared it may begin at any moment, when the disk may have no room for another one.
        let waits = name == NEXT
            && previous.is_none()
            && readable_key(backing, NEXT)?.is_some_and(|next| next != key);
        if !waits {
            left.push(name.to_vec());
        }
    }
    Ok(left)
}

/// Whether it is a copy in the making: what an interrupted [`write`] left, or one that is prepared.
pub(crate) fn is_half_written(name: &[u8]) -> bool {
    [HEADER, PREVIOUS].iter().any(|copy| name.starts_with(copy) && name.len() > copy.len())
}

fn copy_path(backing: &Path, name: &[u8]) -> PathBuf {
    backing.join(OsStr::from_bytes(name))
}

/// The [`KeyHolder`] of the copies in backing directories. Each site has exactly one, and one that is between two keys
/// one of each; they can be read at any time. They are
/// replaced by the node that has the filesystem's lock, or gets it for the moment: another node's are left alone.
#[derive(Debug, Clone, Default)]
pub struct BackingHeaders {
    locks: BackingLocks,
}

impl BackingHeaders {
    /// Those that the node with these locks may replace.
    pub const fn new(locks: BackingLocks) -> Self {
        Self { locks }
    }

    fn error(location: &Path, doing: &'static str, fault: Fault) -> HolderError {
        let source = fault.at_path(location).into();
        HolderError { location: location.display().to_string(), doing, source }
    }

    /// The copies in the backing directory that was opened as `dir`, and under which names they lie. `lock` is its lock, if this node
    /// holds it.
    fn copies(
        site: &FilesystemSite,
        dir: &OwnedFd,
        lock: Option<&BackingLock>,
    ) -> Vec<(&'static [u8], KeyCopy)> {
        let copy = |name, envelope: Result<KeyEnvelope, Fault>| {
            let path = copy_path(&site.backing, name);
            let envelope = envelope.map_err(|fault| Self::error(&path, "read", fault));
            (name, KeyCopy { location: path.display().to_string(), envelope, uploaded: false })
        };
        let header = read_owned(dir, lock).and_then(|read| find_data(dir, "read").map(|()| read));
        let previous = read_if_there(dir, PREVIOUS).transpose();
        let copies = std::iter::once(copy(HEADER, header));
        copies.chain(previous.map(|previous| copy(PREVIOUS, previous))).collect()
    }

    /// Replaces the copy with this name in the backing directory that was opened as `dir`.
    fn put(
        &self,
        site: &FilesystemSite,
        dir: &OwnedFd,
        name: &[u8],
        envelope: &KeyEnvelope,
    ) -> Result<(), Fault> {
        let key = envelope.wrapped.key_id;
        let usual = if name == HEADER { Some(site.key_id) } else { site.previous };
        if !is_of(key, site.key_id, site.previous) {
            let why = "the new copy is of another key";
            return Err(refused("replaced", why, "check the key store"));
        }
        // Without its tree this is no backing directory, such as the place where one is mounted: nothing may lie there
        // that looks like one. A header that can't be read is mended; one of another key is somebody else's.
        find_data(dir, "replaced")?;
        let _lock = self.locks.lock(dir)?;
        let there = match read(dir, name) {
            Ok(there) => Some(there.wrapped.key_id),
            Err(refused @ Fault::Refused { .. }) if if_there(dir, name)? => {
                return Err(refused);
            }
            // What is gone was ended meanwhile.
            Err(_) if name == PREVIOUS && !if_there(dir, name)? => None,
            Err(_) => usual,
        };
        if there != Some(key) {
            let there = there.map_or("nothing".to_owned(), |there| format!("the key {there}"));
            let why = format!("{there} lies there");
            let cure = "check the filesystem's backing directory";
            return Err(Fault::Refused { doing: "replaced", why, cure });
        }
        write(dir, name, envelope)
    }
}

#[async_trait]
impl KeyHolder for BackingHeaders {
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
        match sys::open_root(&site.backing).doing("opened") {
            Ok(dir) => {
                Ok(Self::copies(site, &dir, None).into_iter().map(|(_, copy)| copy).collect())
            }
            Err(fault) => {
                let path = copy_path(&site.backing, HEADER);
                let source = fault.at_path(&site.backing).into();
                let location = path.display().to_string();
                let error = HolderError { location: location.clone(), doing: "read", source };
                Ok(vec![KeyCopy { location, envelope: Err(error), uploaded: false }])
            }
        }
    }

    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError> {
        let path = Path::new(location);
        let replace = || {
            let at = |name: &&[u8]| path == copy_path(&site.backing, name);
            let Some(name) = [HEADER, PREVIOUS].into_iter().find(at) else {
                let header = copy_path(&site.backing, HEADER);
                let why = format!("this filesystem's copy lies at {}", header.display());
                let cure = "list the copies again";
                return Err(Fault::Refused { doing: "replaced", why, cure });
            };
            let dir = sys::open_root(&site.backing).doing("opened")?;
            self.put(site, &dir, name, envelope)
        };
        replace().map_err(|fault| Self::error(path, "replaced", fault))
    }

    /// As for any holder; the directory is opened once, and of a filesystem that this node has open each copy is read once.
    async fn renew(&self, site: &FilesystemSite, wanted: &KeyEnvelope) -> Result<u64, HolderError> {
        let error = |name, fault| Self::error(&copy_path(&site.backing, name), "replaced", fault);
        let dir = sys::open_root(&site.backing).doing("opened");
        let dir = dir.map_err(|fault| error(HEADER, fault))?;
        let lock = self.locks.held(&dir);
        let key = wanted.wrapped.key_id;
        let may_lie_here = lock.is_some() && is_of(key, site.key_id, site.previous);
        let renew = |(name, copy): (_, KeyCopy)| {
            // What was read under the lock lies there still.
            let lies_here =
                may_lie_here && copy.envelope.as_ref().is_ok_and(|it| it.wrapped.key_id == key);
            let put = match copy.is_behind(site, wanted) {
                Ok(true) if lies_here => write(&dir, name, wanted),
                Ok(true) => self.put(site, &dir, name, wanted),
                is_behind => return is_behind.map(u64::from),
            };
            put.map(|()| 1).map_err(|fault| error(name, fault))
        };
        kms_core::replaced(Self::copies(site, &dir, lock.as_deref()).into_iter().map(renew))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_json::Value;

    use super::*;

    /// Names all fields; one in an object as `object.field`. `kms.settings` is the provider's.
    fn fields(value: &Value, above: &str, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(object) if above != "kms.settings." => {
                let each = |(name, value)| fields(value, &format!("{above}{name}."), found);
                object.iter().for_each(each);
            }
            _ => drop(found.insert(above.trim_end_matches('.').to_owned())),
        }
    }

    #[test]
    fn the_specification_has_each_field_and_no_other() {
        let mut envelope = testkit::key_holder::envelope(KeyId::random());
        // Not there otherwise.
        envelope.own_master_key = Some("tenant".to_owned());
        let mut written = BTreeSet::new();
        fields(&serde_json::to_value(&envelope).unwrap(), "", &mut written);
        let text = include_str!("../../../docs/formats.md");
        let table = text.split("`coffer.key` is a JSON object").nth(1).unwrap();
        let rows = table.lines().skip_while(|line| !line.starts_with('|'));
        let specified: BTreeSet<String> = rows
            .take_while(|line| line.starts_with('|'))
            .filter_map(|row| row.strip_prefix("| `")?.split('`').next().map(str::to_owned))
            .collect();
        assert_eq!(written, specified);
    }
}

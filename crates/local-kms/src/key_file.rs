//! The file of a local key: `local-<configuration id>.key`, mode 0600, of fixed length.
//!
//! | offset | length | content |
//! |---|---|---|
//! | 0 | 4 | magic `CFLK` |
//! | 4 | 1 | format version, 1 |
//! | 5 | 3 | zero |
//! | 8 | 16 | configuration id (UUID, big-endian) |
//! | 24 | 8 | when it was made, milliseconds since 1970 (big-endian) |
//! | 32 | 32 | the key, random bytes from the operating system |
//! | 64 | 32 | SHA-256 of all above, so that damage is told apart from a wrong key |

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use kms_core::{KEY_LEN, KmsConfigId, KmsError, KmsErrorKind, UnixMillis};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

const MAGIC: &[u8; 4] = b"CFLK";
const FORMAT: u8 = 1;
const ID_AT: usize = 8;
const CREATED_AT: usize = 24;
const KEY_AT: usize = 32;
const CHECK_AT: usize = KEY_AT + KEY_LEN;
const LEN: usize = CHECK_AT + 32;

type Bytes = Zeroizing<[u8; LEN]>;

/// A local key, read from its file. Wiped on drop.
pub(crate) struct LocalKey {
    pub(crate) created: UnixMillis,
    pub(crate) bytes: Zeroizing<[u8; KEY_LEN]>,
}

/// Where the key of a configuration lies.
pub(crate) fn path(dir: &Path, id: KmsConfigId) -> PathBuf {
    dir.join(format!("local-{id}.key"))
}

/// Every configuration that has a key file in `dir`, or the beginning of one, in the order of their ids.
pub(crate) fn list(dir: &Path) -> io::Result<Vec<KmsConfigId>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir)? {
        let name = entry?.file_name();
        let id = name.to_str().and_then(|name| {
            name.strip_suffix(".new").unwrap_or(name).strip_prefix("local-")?.strip_suffix(".key")
        });
        ids.extend(id.and_then(|id| id.parse::<KmsConfigId>().ok()));
    }
    ids.sort();
    ids.dedup();
    Ok(ids)
}

/// Makes a new key. On return it survives a power cut; until then there is no file of that name.
pub(crate) fn create(dir: &Path, id: KmsConfigId, now: UnixMillis) -> Result<(), KmsError> {
    let path = path(dir, id);
    let failed = |e: io::Error| {
        internal(format!("the local key {} can't be made", path.display())).because(e)
    };
    let mut bytes = Bytes::new([0; LEN]);
    bytes[..4].copy_from_slice(MAGIC);
    bytes[4] = FORMAT;
    bytes[ID_AT..CREATED_AT].copy_from_slice(id.as_bytes());
    bytes[CREATED_AT..KEY_AT].copy_from_slice(&now.0.to_be_bytes());
    getrandom::fill(&mut bytes[KEY_AT..CHECK_AT])
        .map_err(|e| internal("the system gives no random bytes").because(e))?;
    let check = Sha256::digest(&bytes[..CHECK_AT]);
    bytes[CHECK_AT..].copy_from_slice(&check);

    // Nobody else makes a key for this random id; the check is for a caller that repeats itself.
    if path.exists() {
        return Err(internal(format!("the local key {} exists already", path.display())));
    }
    write_new(dir, &path, &bytes).map_err(failed)
}

/// Under another name first: a key file is whole or not there.
fn write_new(dir: &Path, path: &Path, bytes: &Bytes) -> io::Result<()> {
    let unfinished = unfinished(path);
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
    file.write_all(bytes.as_slice())?;
    file.sync_all()?;
    fs::rename(&unfinished, path)?;
    sync_dir(dir)
}

fn unfinished(path: &Path) -> PathBuf {
    path.with_extension("key.new")
}

/// Reads the key of a configuration. One that others may read is refused, as ssh does, so that it does not stay so.
pub(crate) fn read(dir: &Path, id: KmsConfigId) -> Result<LocalKey, KmsError> {
    let path = path(dir, id);
    let damaged = || {
        internal(format!("the local key {} is damaged", path.display()))
            .cure("put it back from a backup of the state directory; without it, what it wraps can't be opened")
    };
    let unreadable = |e: io::Error| {
        internal(format!("the local key {} can't be read", path.display())).because(e)
    };
    let mut bytes = Bytes::new([0; LEN]);
    let mut file = File::open(&path).map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            KmsError::new(KmsErrorKind::KeyMissing, format!("there is no local key {}", path.display()))
                .cure("put the file back from a backup of the state directory; without it, what it wraps can't be opened")
        }
        _ => unreadable(e),
    })?;
    let mode = file.metadata().map_err(unreadable)?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(internal(format!(
            "the local key {} may be read by others than its owner (mode {mode:04o})",
            path.display()
        ))
        .cure(format!(
            "chmod 600 {}; whoever read it meanwhile can read what it wraps, until that is copied to new filesystems",
            path.display()
        )));
    }
    match file.read_exact(bytes.as_mut_slice()) {
        Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Err(damaged()),
        other => other.map_err(unreadable)?,
    }
    let longer = file.read(&mut [0]).map_or(true, |more| more > 0);
    if longer || bytes[CHECK_AT..] != Sha256::digest(&bytes[..CHECK_AT])[..] || &bytes[..4] != MAGIC
    {
        return Err(damaged());
    }
    match bytes[4..ID_AT] {
        [FORMAT, 0, 0, 0] => {}
        [newer, ..] if newer > FORMAT => {
            return Err(internal(format!(
                "the local key {} is in format {newer}, newer than this program knows; use a newer one",
                path.display()
            )));
        }
        _ => return Err(damaged()),
    }
    if bytes[ID_AT..CREATED_AT] != id.as_bytes()[..] {
        return Err(internal(format!(
            "the local key {} is that of another configuration",
            path.display()
        ))
        .cure("give the file back its own name"));
    }
    let (mut created, mut key) = ([0; 8], Zeroizing::new([0; KEY_LEN]));
    created.copy_from_slice(&bytes[CREATED_AT..KEY_AT]);
    key.copy_from_slice(&bytes[KEY_AT..CHECK_AT]);
    Ok(LocalKey { created: UnixMillis(u64::from_be_bytes(created)), bytes: key })
}

/// Erases the key of a configuration, or the beginning of one; one that is gone already is no error.
pub(crate) fn erase(dir: &Path, id: KmsConfigId) -> Result<(), KmsError> {
    let path = path(dir, id);
    erase_file(&path)
        .and_then(|()| erase_file(&unfinished(&path)))
        .and_then(|()| sync_dir(dir))
        .map_err(|e| {
            internal(format!("the local key {} can't be erased", path.display())).because(e)
        })
}

/// Overwrites, then unlinks: where the filesystem writes in place, the old bytes are gone from the disk, too.
fn erase_file(path: &Path) -> io::Result<()> {
    let mut file = match OpenOptions::new().write(true).open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        file => file?,
    };
    file.write_all(&[0; LEN])?;
    file.sync_all()?;
    fs::remove_file(path)
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn internal(what: impl Into<String>) -> KmsError {
    KmsError::new(KmsErrorKind::Internal, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: UnixMillis = UnixMillis(1_767_225_600_123);

    fn made() -> (tempfile::TempDir, KmsConfigId) {
        let (dir, id) = (tempfile::tempdir().unwrap(), KmsConfigId::random());
        create(dir.path(), id, NOW).unwrap();
        (dir, id)
    }

    #[test]
    fn a_made_key_is_read_and_only_its_owner_may() {
        let (dir, id) = made();
        let key = read(dir.path(), id).unwrap();
        assert_eq!(key.created, NOW);
        assert_eq!(read(dir.path(), id).unwrap().bytes, key.bytes);
        assert_ne!(*key.bytes, [0; KEY_LEN]);
        let mode = fs::metadata(path(dir.path(), id)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_key_that_others_may_read_is_refused_until_they_may_not() {
        let (dir, id) = made();
        let path = path(dir.path(), id);
        for mode in [0o640, 0o604, 0o622] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let error = read(dir.path(), id).map(|_| ()).unwrap_err();
            assert!(error.to_string().contains(&format!("{mode:04o}")), "{error}");
            assert!(error.how_to_mend().unwrap().contains("chmod 600"), "{error}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o400)).unwrap();
        read(dir.path(), id).unwrap();
    }

    #[test]
    fn no_two_keys_are_equal() {
        let (dir, id) = made();
        let other = KmsConfigId::random();
        create(dir.path(), other, NOW).unwrap();
        assert_ne!(read(dir.path(), id).unwrap().bytes, read(dir.path(), other).unwrap().bytes);
    }

    #[test]
    fn a_key_is_never_replaced() {
        let (dir, id) = made();
        let before = read(dir.path(), id).unwrap().bytes;
        assert_eq!(create(dir.path(), id, NOW).unwrap_err().kind(), KmsErrorKind::Internal);
        assert_eq!(read(dir.path(), id).unwrap().bytes, before);
    }

    #[test]
    fn an_erased_key_is_missing_and_its_bytes_are_gone() {
        let (dir, id) = made();
        let path = path(dir.path(), id);
        // A second name shows what becomes of the bytes.
        let other_name = dir.path().join("other name");
        fs::hard_link(&path, &other_name).unwrap();
        erase(dir.path(), id).unwrap();
        assert!(!path.exists());
        assert_eq!(fs::read(&other_name).unwrap(), [0; LEN]);
        let missing = read(dir.path(), id).map(|_| ()).unwrap_err();
        assert_eq!(missing.kind(), KmsErrorKind::KeyMissing);
        assert!(missing.how_to_mend().unwrap().contains("backup"));
        erase(dir.path(), id).unwrap();
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let (dir, id) = made();
        let path = path(dir.path(), id);
        let whole = fs::read(&path).unwrap();
        assert_eq!(whole.len(), LEN);
        let notices = |bytes: &[u8], what: &str| {
            fs::write(&path, bytes).unwrap();
            let error = read(dir.path(), id).map(|_| ()).unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Internal, "{what}");
            assert!(error.to_string().contains("damaged"), "{what}: {error}");
        };
        for at in 0..LEN {
            for bit in 0..8 {
                let mut flipped = whole.clone();
                flipped[at] ^= 1 << bit;
                notices(&flipped, &format!("bit {bit} of byte {at}"));
            }
            notices(&whole[..at], &format!("cut at {at}"));
        }
        notices(&[&whole[..], b"x"].concat(), "longer");
    }

    #[test]
    fn a_newer_format_and_another_id_are_told_apart() {
        let (dir, id) = made();
        let path_of = |id| path(dir.path(), id);
        let other = KmsConfigId::random();
        fs::copy(path_of(id), path_of(other)).unwrap();
        let error = read(dir.path(), other).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("another configuration"), "{error}");

        let mut newer = fs::read(path_of(id)).unwrap();
        newer[4] = 2;
        let check = Sha256::digest(&newer[..CHECK_AT]);
        newer[CHECK_AT..].copy_from_slice(&check);
        fs::write(path_of(id), newer).unwrap();
        let error = read(dir.path(), id).map(|_| ()).unwrap_err();
        assert!(error.to_string().contains("format 2"), "{error}");
    }

    #[test]
    fn orphans_are_listed() {
        let (dir, id) = made();
        let (other, begun) = (KmsConfigId::random(), KmsConfigId::random());
        create(dir.path(), other, NOW).unwrap();
        fs::write(unfinished(&path(dir.path(), begun)), b"CFLK").unwrap();
        fs::write(dir.path().join("local-no-id.key"), b"").unwrap();
        let mut expected = vec![id, other, begun];
        expected.sort();
        assert_eq!(list(dir.path()).unwrap(), expected);
        erase(dir.path(), begun).unwrap();
        assert_eq!(list(dir.path()).unwrap().len(), 2);
    }
}

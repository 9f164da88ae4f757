//! The copy of the wrapped key in a backing directory: `coffer.key`, a [`KeyEnvelope`] in JSON.
//!
//! It contains no secret. With it `coffer recover` can rebuild a lost key store, and it tells which
//! KMS opens the filesystem.

use std::os::fd::OwnedFd;
use std::path::Path;

use async_trait::async_trait;
use kms_core::{FilesystemSite, HolderError, KeyCopy, KeyEnvelope, KeyHolder, KeyId};

use crate::error::{Doing, Error, Fault};
use crate::filesystem::{HEADER, ROOT};
use crate::lock::{self, BackingLocks, LOCK};
use crate::sealed::SealedTree;
use crate::sys::{self, Errno};

/// Reads the copy of the wrapped key in a backing directory. Needs no key and no lock.
///
/// # Errors
/// [`ErrorKind::Invalid`](crate::ErrorKind::Invalid) when there is none or it is of a newer format,
/// [`ErrorKind::Damaged`](crate::ErrorKind::Damaged) when it can't be understood, or the data beside it has another key.
pub fn read_envelope(backing: &Path) -> Result<KeyEnvelope, Error> {
    let dir = sys::open_root(backing).doing("opened").map_err(|fault| fault.at_path(backing))?;
    let checked = || {
        let envelope = read(&dir)?;
        match owner(&dir)? {
            Some(owner) if owner != envelope.wrapped.key_id => {
                let key = envelope.wrapped.key_id;
                let why = format!(
                    "it is the wrapped key {key}, and the data beside it has the key {owner}"
                );
                Err(Fault::damaged("read", why))
            }
            _ => Ok(envelope),
        }
    };
    checked().map_err(|fault| fault.at_path(&header_path(backing)))
}

/// The key that the lock file names; `None` when it can't be told.
fn owner(backing: &OwnedFd) -> Result<Option<KeyId>, Fault> {
    match sys::open_file(backing, LOCK) {
        Err(Errno::NOENT) => Ok(None),
        file => lock::owner(&file.doing("opened")?).doing("read"),
    }
}

pub(crate) fn read(backing: &OwnedFd) -> Result<KeyEnvelope, Fault> {
    let text = SealedTree::small_file(backing, HEADER)?.ok_or_else(|| Fault::Refused {
        doing: "read",
        why: "there is no such file, so this is no encrypted filesystem".to_owned(),
        cure: "check the path of the backing directory",
    })?;
    // The format is looked at first: a newer one may have other fields.
    let value: serde_json::Value = parse(&text)?;
    match value.get("format").and_then(serde_json::Value::as_u64) {
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

fn parse<T: serde::de::DeserializeOwned>(text: &[u8]) -> Result<T, Fault> {
    serde_json::from_slice(text)
        .map_err(|error| Fault::damaged("read", format!("it is no wrapped key: {error}")))
}

/// Puts `envelope` in place durably; at any moment the old one or the new one is there.
pub(crate) fn write(backing: &OwnedFd, envelope: &KeyEnvelope) -> Result<(), Fault> {
    let mut text = serde_json::to_vec_pretty(envelope)
        .map_err(|error| Fault::damaged("written", error.to_string()))?;
    text.push(b'\n');
    // Two writers at once must not share a name. What a crash leaves is removed at the next opening.
    let unique = kms_core::KeyId::random().to_string();
    let staged = [HEADER, b".", unique.as_bytes()].concat();
    let put = || -> sys::Result<()> {
        let file = sys::create(backing, &staged, 0o600)?;
        sys::write_at(&file, &text, 0)?;
        sys::sync_file(&file)?;
        sys::rename(backing, &staged, backing, HEADER)?;
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

fn header_path(backing: &Path) -> std::path::PathBuf {
    use std::os::unix::ffi::OsStrExt;
    backing.join(std::ffi::OsStr::from_bytes(HEADER))
}

/// The [`KeyHolder`] of the copies in backing directories. Each site has exactly one, which can be read at any time. It is
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

    fn error(site: &FilesystemSite, doing: &'static str, source: Error) -> HolderError {
        let location = header_path(&site.backing).display().to_string();
        HolderError { location, doing, source: source.into() }
    }
}

#[async_trait]
impl KeyHolder for BackingHeaders {
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
        let with_data = || {
            let envelope = read_envelope(&site.backing)?;
            let dir = sys::open_root(&site.backing).doing("opened");
            let data = dir.and_then(|dir| find_data(&dir, "read"));
            data.map(|()| envelope).map_err(|fault| fault.at_path(&header_path(&site.backing)))
        };
        let envelope = with_data().map_err(|e| Self::error(site, "read", e));
        let location = header_path(&site.backing).display().to_string();
        Ok(vec![KeyCopy { location, envelope, uploaded: false }])
    }

    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError> {
        let path = header_path(&site.backing);
        let replace = || {
            if Path::new(location) != path {
                let why = format!("this filesystem's copy lies at {}", path.display());
                return Err(Fault::Refused {
                    doing: "replaced",
                    why,
                    cure: "list the copies again",
                });
            }
            if envelope.wrapped.key_id != site.key_id {
                let why = "the new copy is of another key".to_owned();
                return Err(Fault::Refused { doing: "replaced", why, cure: "check the key store" });
            }
            let dir = sys::open_root(&site.backing).doing("opened")?;
            // Without its tree this is no backing directory, such as the place where one is mounted: nothing may lie there
            // that looks like one. A header that can't be read is mended; one of another key is somebody else's.
            find_data(&dir, "replaced")?;
            let _lock = self.locks.lock(&dir)?;
            match read(&dir) {
                Ok(there) if there.wrapped.key_id != site.key_id => {
                    let why = format!("the key {} lies there", there.wrapped.key_id);
                    let cure = "check the filesystem's backing directory";
                    Err(Fault::Refused { doing: "replaced", why, cure })
                }
                Err(refused @ Fault::Refused { .. }) if sys::stat(&dir, HEADER).is_ok() => {
                    Err(refused)
                }
                _ => write(&dir, envelope),
            }
        };
        replace().map_err(|fault| Self::error(site, "replaced", fault.at_path(&path)))
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
        let envelope = testkit::key_holder::envelope(KeyId::random());
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

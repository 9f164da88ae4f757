//! Copies of wrapped keys that lie outside the key store.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{KeyEnvelope, KeyId};

const NEWER: &str = "it is newer than what the store has: another node wrapped the key anew, or an older store was put back";

/// Lists and replaces the copies of a filesystem's wrapped key that lie in one kind of place: the
/// backing directory's header, snapshots.
#[async_trait]
pub trait KeyHolder: fmt::Debug + Send + Sync {
    /// Every copy of this filesystem's key here. A copy that can't be read is listed with its error.
    ///
    /// # Errors
    /// [`HolderError`] when not even a list can be had.
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError>;

    /// Puts `envelope` where the copy at `location` lies. Afterwards the copy is the old or the new one, whatever happened;
    /// on `Ok` the new one survives a power cut. Doing it twice does no harm.
    ///
    /// # Errors
    /// [`HolderError`]; also when the place holds another key than `envelope` has, or `envelope` is of neither of the
    /// filesystem's keys.
    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError>;

    /// Brings every copy of its key here to `wanted`, uploaded ones aside, and answers how many were replaced. A copy that is newer is left.
    ///
    /// # Errors
    /// [`HolderError`]: one of the copies is not what is wanted now. The others are.
    async fn renew(&self, site: &FilesystemSite, wanted: &KeyEnvelope) -> Result<u64, HolderError> {
        let mut each = Vec::new();
        for copy in self.list(site).await? {
            let location = copy.location.clone();
            each.push(match copy.is_behind(site, wanted) {
                Ok(true) => self.replace(site, &location, wanted).await.map(|()| 1),
                is_behind => is_behind.map(u64::from),
            });
        }
        replaced(each)
    }
}

/// How many copies were replaced in all, of those in several places or one. All of them are gone through.
///
/// # Errors
/// The last failure, if there is one.
pub fn replaced(
    each: impl IntoIterator<Item = Result<u64, HolderError>>,
) -> Result<u64, HolderError> {
    let (mut sum, mut failed) = (0, None);
    for replaced in each {
        match replaced {
            Ok(replaced) => sum += replaced,
            Err(error) => failed = Some(error),
        }
    }
    failed.map_or(Ok(sum), Err)
}

/// Which filesystem, and where its ciphertext lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemSite {
    /// Its name.
    pub name: String,
    /// Its key.
    pub key_id: KeyId,
    /// The key that it is being re-encrypted from: copies of both are there, and each is replaced by one of its own key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<KeyId>,
    /// Its backing directory, absolute.
    pub backing: PathBuf,
}

/// One copy.
#[derive(Debug)]
pub struct KeyCopy {
    /// Where it lies, in words that an administrator can follow: a path, a URL.
    pub location: String,
    /// What lies there.
    pub envelope: Result<KeyEnvelope, HolderError>,
    /// Whether it is an uploaded snapshot's, which only `fs snapshot rewrap` renews.
    pub uploaded: bool,
}

impl KeyCopy {
    /// Whether `wanted` has to take its place.
    ///
    /// # Errors
    /// It is newer; or it can't be read, and may be the copy of the other key of a filesystem that has two.
    pub fn is_behind(
        self,
        site: &FilesystemSite,
        wanted: &KeyEnvelope,
    ) -> Result<bool, HolderError> {
        let key = wanted.wrapped.key_id;
        let of_the_other = |id| id != key && (id == site.key_id || Some(id) == site.previous);
        match self.envelope {
            _ if self.uploaded => Ok(false),
            Ok(lies) if lies == *wanted || of_the_other(lies.wrapped.key_id) => Ok(false),
            Ok(lies) if lies.wrapped.key_id == key && lies.revision > wanted.revision => {
                let location = self.location;
                Err(HolderError { location, doing: "replaced", source: NEWER.into() })
            }
            Err(error) if site.previous.is_some() => Err(error),
            _ => Ok(true),
        }
    }
}

/// A copy that can't be read or replaced.
#[derive(Debug, thiserror::Error)]
#[error("the copy of the wrapped key at {location} can't be {doing}: {source}")]
pub struct HolderError {
    /// Where it lies.
    pub location: String,
    /// "read", "replaced" or "used".
    pub doing: &'static str,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

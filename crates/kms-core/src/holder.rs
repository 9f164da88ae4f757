//! Copies of wrapped keys that lie outside the key store.

use std::error::Error;
use std::fmt;
use std::path::PathBuf;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};

use crate::{KeyEnvelope, KeyId};

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

/// A copy that can't be read or replaced.
#[derive(Debug, thiserror::Error)]
#[error("the copy of the wrapped key at {location} can't be {doing}: {source}")]
pub struct HolderError {
    /// Where it lies.
    pub location: String,
    /// "read" or "replaced".
    pub doing: &'static str,
    /// Why.
    pub source: Box<dyn Error + Send + Sync>,
}

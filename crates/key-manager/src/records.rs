//! What is recorded in the key store, and under which keys.
//!
//! | key | record | holds |
//! |---|---|---|
//! | `kms/current` | [`CurrentKms`] | which configuration wraps new keys; absent: no KMS is set |
//! | `kms/own/<master key>` | [`CurrentKms`] | the same for filesystems that have this master key of their own |
//! | `kms/config/<id>` | [`ConfigRecord`] | a configuration, its canary, its master key's creation times |
//! | `kms/credential/<id>` | [`CredentialRecord`] | what shows it who we are |
//! | `fs/<name>` | [`FilesystemRecord`] | a filesystem, its key's id, its backing directory, its state |
//! | `fs-epoch` | a number | raised by each create and delete, so that an unset can require that none raced it |
//! | `key/<key id>` | [`KeyEntry`] | a wrapped key |
//! | `job/<id>` | [`crate::JobRecord`] | a job |
//!
//! Values are JSON objects `{"format": N, …}`. A format newer than [`FORMAT`] is refused and never rewritten.

use std::collections::BTreeMap;
use std::path::PathBuf;

use kms_core::{
    Auth, ClientIdentity, Credential, ExposeSecret, FilesystemSite, KeyEnvelope, KeyId, KeyStore,
    KeyVersion, KmsConfig, KmsConfigId, Login, Record, UnixMillis, WrappedKey,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::new_kms::Change;
use crate::repeat::CreateRequest;
use crate::{Error, FilesystemName};

/// The newest record format that this program writes and reads. Each record is written in the oldest one that tells all of it
/// ([`Stored::format`]): 2 is for what a program that knows only 1 must not touch.
pub(crate) const FORMAT: u32 = 2;

pub(crate) const CURRENT: &str = "kms/current";
pub(crate) const OWN: &str = "kms/own/";
pub(crate) const CONFIGS: &str = "kms/config/";
pub(crate) const FILESYSTEMS: &str = "fs/";
pub(crate) const FS_EPOCH: &str = "fs-epoch";
pub(crate) const KEYS: &str = "key/";

pub(crate) fn own_key(master_key: &str) -> String {
    format!("{OWN}{master_key}")
}

pub(crate) fn config_key(id: KmsConfigId) -> String {
    format!("{CONFIGS}{id}")
}

pub(crate) fn credential_key(id: KmsConfigId) -> String {
    format!("kms/credential/{id}")
}

pub(crate) fn fs_key(name: &FilesystemName) -> String {
    format!("{FILESYSTEMS}{name}")
}

pub(crate) fn wrapped_key(id: KeyId) -> String {
    format!("{KEYS}{id}")
}

/// A type that is kept in the store.
pub(crate) trait Stored: Serialize + DeserializeOwned {
    /// What it is, in an error.
    const WHAT: &'static str;

    /// The format in which it is written.
    fn format(&self) -> u32 {
        1
    }
}

/// Which configuration wraps new keys.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(crate) struct CurrentKms {
    pub(crate) config_id: KmsConfigId,
    /// The change by which an administrator set it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) change: Option<Change>,
}

impl Stored for CurrentKms {
    const WHAT: &'static str = "current KMS";
}

/// A KMS configuration that some key names, or that wraps new ones.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ConfigRecord {
    pub(crate) config: KmsConfig,
    /// A key record of ours with a random key that is used for nothing: if it opens, the master key is the one we know.
    pub(crate) canary: Option<WrappedKey>,
    /// When each version of the master key was made, as last seen.
    pub(crate) versions: BTreeMap<KeyVersion, UnixMillis>,
    /// When the configuration was given.
    pub(crate) set_at: UnixMillis,
    /// A filesystem that was forgotten opens under it: what it has on this machine is not erased.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) kept: bool,
}

impl Stored for ConfigRecord {
    const WHAT: &'static str = "KMS configuration";
}

/// A credential at rest. The store's files are readable by their owner alone.
#[derive(Default, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub(crate) struct CredentialRecord {
    #[serde(skip_serializing_if = "Option::is_none")]
    token: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[zeroize(skip)]
    token_file: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    login: Option<LoginRecord>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_certificate: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    client_key: Option<String>,
}

#[derive(PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
struct LoginRecord {
    path: String,
    id: String,
    secret: String,
}

/// What a credential is, without its secrets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CredentialKind {
    /// What requests are sent with; `None`: nothing is stored.
    pub auth: Option<AuthKind>,
    /// Whether connections are made with a client certificate.
    pub client_certificate: bool,
}

/// What requests are sent with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthKind {
    /// A token.
    Token,
    /// The token in this file.
    TokenFile(PathBuf),
    /// What a login gets.
    Login {
        /// Which way to log in; empty for the usual one.
        path: String,
        /// Who we are.
        id: String,
    },
}

impl CredentialRecord {
    pub(crate) fn of(credential: &Credential) -> Self {
        let mut record = Self::default();
        match &credential.auth {
            Auth::Token(token) => record.token = Some(token.expose_secret().to_owned()),
            Auth::TokenFile(path) => record.token_file = Some(path.clone()),
            Auth::Login(Login { path, id, secret }) => {
                let secret = secret.expose_secret().to_owned();
                record.login = Some(LoginRecord { path: path.clone(), id: id.clone(), secret });
            }
            _ => {}
        }
        if let Some(identity) = &credential.identity {
            record.client_certificate = Some(identity.certificate.clone());
            record.client_key = Some(identity.key.expose_secret().to_owned());
        }
        record
    }

    pub(crate) fn credential(&self) -> Credential {
        let auth = match (&self.token, &self.token_file, &self.login) {
            (Some(token), _, _) => Auth::Token(token.clone().into()),
            (_, Some(path), _) => Auth::TokenFile(path.clone()),
            (_, _, Some(login)) => Auth::Login(Login {
                path: login.path.clone(),
                id: login.id.clone(),
                secret: login.secret.clone().into(),
            }),
            (None, None, None) => Auth::None,
        };
        let identity = match (&self.client_certificate, &self.client_key) {
            (Some(certificate), Some(key)) => {
                Some(ClientIdentity { certificate: certificate.clone(), key: key.clone().into() })
            }
            _ => None,
        };
        Credential { auth, identity }
    }

    pub(crate) fn kind(&self) -> CredentialKind {
        let auth = match (&self.token, &self.token_file, &self.login) {
            (Some(_), _, _) => Some(AuthKind::Token),
            (_, Some(path), _) => Some(AuthKind::TokenFile(path.clone())),
            (_, _, Some(LoginRecord { path, id, .. })) => {
                Some(AuthKind::Login { path: path.clone(), id: id.clone() })
            }
            (None, None, None) => None,
        };
        CredentialKind { auth, client_certificate: self.client_certificate.is_some() }
    }
}

impl Stored for CredentialRecord {
    const WHAT: &'static str = "KMS credential";
}

/// A filesystem as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FilesystemRecord {
    /// Its name.
    pub name: FilesystemName,
    /// Its key.
    pub key_id: KeyId,
    /// The key that it is being re-encrypted from. What lies under it can be read until all of it lies under `key_id`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous_key: Option<KeyId>,
    /// Where its ciphertext lies, absolute.
    pub backing: PathBuf,
    /// When it was made.
    pub created: UnixMillis,
    /// How it stands.
    pub state: FilesystemState,
    /// Whether an administrator locked it: then it stays locked over restarts.
    pub held: bool,
    /// The request that made it, where that may be repeated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<CreateRequest>,
}

impl FilesystemRecord {
    /// Whether its key may be in memory.
    pub(crate) fn may_open(&self) -> bool {
        self.state == FilesystemState::Ready && !self.held
    }

    /// Its key, and the one that it is being re-encrypted from.
    pub(crate) fn keys(&self) -> impl Iterator<Item = KeyId> + use<> {
        [Some(self.key_id), self.previous_key].into_iter().flatten()
    }

    /// Whether this is one of them.
    pub(crate) fn has_key(&self, id: KeyId) -> bool {
        self.keys().any(|key| key == id)
    }

    /// What a [`kms_core::KeyHolder`] needs to know of it.
    pub fn site(&self) -> FilesystemSite {
        FilesystemSite {
            name: self.name.to_string(),
            key_id: self.key_id,
            previous: self.previous_key,
            backing: self.backing.clone(),
        }
    }
}

impl Stored for FilesystemRecord {
    const WHAT: &'static str = "filesystem";

    /// A program that knows one key alone would take what lies under the other for damage.
    fn format(&self) -> u32 {
        if self.previous_key.is_some() { 2 } else { 1 }
    }
}

/// Where a filesystem is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FilesystemState {
    /// Its backing directory is being made. Found at start: it is undone.
    Creating,
    /// It is there.
    Ready,
    /// It is being removed. Found at start: that is finished.
    Deleting,
    /// Removing it failed. It is tried again until nothing is left, or it is forgotten on request.
    HalfDeleted,
}

impl FilesystemState {
    /// Whether nobody gets at it any more.
    pub(crate) const fn is_going(self) -> bool {
        matches!(self, Self::Deleting | Self::HalfDeleted)
    }
}

/// A wrapped key as it is recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct KeyEntry {
    pub(crate) wrapped: WrappedKey,
    /// Whether the key has ever lain under local wrapping.
    pub(crate) exposed: bool,
    /// Raised with each change; a copy that is ahead shows that an older store was put back.
    pub(crate) revision: u64,
    /// The name of the master key that it is to have of its own, in whatever KMS is set; `None`: the one that is set for all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) own_master_key: Option<String>,
}

impl KeyEntry {
    /// This entry with the key wrapped anew.
    ///
    /// # Errors
    /// [`Error::Record`]: its revision can't be raised, so that its copies could not be told from older ones.
    pub(crate) fn rewrapped(&self, wrapped: WrappedKey, locally: bool) -> Result<Self, Error> {
        let revision = self.revision.checked_add(1).filter(|r| *r <= KeyEnvelope::MAX_REVISION);
        let revision = revision.ok_or_else(|| Error::Record {
            key: wrapped_key(wrapped.key_id),
            why: format!(
                "its revision {} is the last one: a copy that somebody forged was recovered. Set \"revision\" to 1 in the file coffer.key in its backing directory first",
                self.revision
            ),
        })?;
        Ok(Self { wrapped, exposed: self.exposed || locally, revision, ..self.clone() })
    }
}

impl Stored for KeyEntry {
    const WHAT: &'static str = "wrapped key";
}

#[derive(Serialize)]
struct Write<'a, T> {
    format: u32,
    #[serde(flatten)]
    body: &'a T,
}

#[derive(Deserialize)]
struct FormatOnly {
    format: u32,
}

/// The value of a record.
pub(crate) fn encode<T: Stored>(body: &T) -> Vec<u8> {
    // These types are plain structs with string keys: serialising them to memory can't fail.
    serde_json::to_vec(&Write { format: body.format(), body }).unwrap_or_default()
}

/// Reads a record.
pub(crate) fn decode<T: Stored>(record: &Record) -> Result<T, Error> {
    let bad = |why: String| Error::Record { key: record.key.clone(), why };
    let FormatOnly { format } = serde_json::from_slice(&record.value)
        .map_err(|e| bad(format!("it is no {} record ({:?})", T::WHAT, e.classify())))?;
    if format > FORMAT {
        return Err(bad(format!(
            "format {format} is newer than this program knows; use a newer one"
        )));
    }
    // The classification alone: serde's message could quote a part of a credential.
    serde_json::from_slice(&record.value)
        .map_err(|e| bad(format!("it is no {} record ({:?})", T::WHAT, e.classify())))
}

/// Every record under a prefix, page by page.
pub(crate) async fn all(store: &dyn KeyStore, prefix: &str) -> Result<Vec<Record>, Error> {
    let mut records: Vec<Record> = Vec::new();
    each(store, prefix, |record| {
        records.push(record);
        Ok(())
    })
    .await?;
    Ok(records)
}

/// Gives every record under a prefix to `take`. No more than a page of them is in memory at once.
pub(crate) async fn each(
    store: &dyn KeyStore,
    prefix: &str,
    mut take: impl FnMut(Record) -> Result<(), Error> + Send,
) -> Result<(), Error> {
    let mut after: Option<String> = None;
    loop {
        let page = store.list(prefix, after.as_deref(), 1000).await?;
        after = page.records.last().map(|record| record.key.clone());
        page.records.into_iter().try_for_each(&mut take)?;
        if !page.more {
            return Ok(());
        }
    }
}

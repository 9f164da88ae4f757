//! What an administrator gives with a change of the KMS: the configuration, what shows it who we are, and which configuration
//! the change is meant for.

use std::collections::BTreeMap;
use std::fmt;

use kms_core::{Auth, ClientIdentity, Credential, KmsConfig, KmsInput, Policy, StoreError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::own_key::Targets;
use crate::records::CurrentKms;
use crate::unlock::changed;
use crate::{Error, Input, KeyManager};

/// A KMS configuration that an administrator gives.
#[derive(Debug, Clone)]
pub struct NewKms {
    /// Which provider serves it, such as `vault`.
    pub kind: String,
    /// Its base URL.
    pub address: String,
    /// The master key's name.
    pub master_key: String,
    /// What only the provider understands.
    pub settings: BTreeMap<String, String>,
    /// What shows the KMS who we are.
    pub credential: NewCredential,
    /// What it takes the place of.
    pub expected: Expected,
}

/// What shows a KMS that is given who we are.
#[derive(Debug, Clone)]
pub enum NewCredential {
    /// This.
    Given(Credential),
    /// What is stored for the KMS that is set, if the new one has the same origin. It does not leave the manager.
    Kept {
        /// The certificate to connect with from now on; `None`: the stored one, if there is one.
        identity: Option<ClientIdentity>,
    },
}

/// Names a configuration of the KMS as an administrator set it, or that none is set. Another one after each change, and after nothing
/// else. Opaque.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KmsVersion(String);

impl KmsVersion {
    /// That no KMS is set.
    pub(crate) fn of_none() -> Self {
        Self("none".to_owned())
    }

    /// That of the configuration that this record names.
    pub(crate) fn of(current: &CurrentKms) -> Self {
        // A record of before there were versions, or of a recovery.
        Self(
            current
                .change
                .map_or_else(|| current.config_id.to_string(), |change| change.0.to_string()),
        )
    }
}

impl From<String> for KmsVersion {
    fn from(text: String) -> Self {
        Self(text)
    }
}

impl fmt::Display for KmsVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One change of the configuration.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Change(Uuid);

impl Change {
    /// Another one than all before.
    pub(crate) fn new() -> Self {
        Self(Uuid::new_v4())
    }
}

/// What a change of the configuration takes the place of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Expected {
    /// Whatever there is.
    #[default]
    Whatever,
    /// One of these, or nothing is done: an administrator saw it, and decided by that.
    OneOf(Vec<KmsVersion>),
}

impl KeyManager {
    /// Requires that what is set is what somebody decided by.
    ///
    /// # Errors
    /// [`Error::KmsChanged`].
    pub async fn expect_kms(&self, expected: &Expected) -> Result<(), Error> {
        expected.is_met_by(self.targets().await?.as_ref())
    }

    /// What a credential must be allowed in a KMS of this kind: [`kms_core::KmsProvider::policy`].
    ///
    /// # Errors
    /// [`Error::Kms`].
    pub fn policy(
        &self,
        kind: &str,
        master_keys: &[String],
        settings: &BTreeMap<String, String>,
    ) -> Result<Policy, Error> {
        Ok(self.provider(kind)?.policy(master_keys, settings)?)
    }

    /// Why a change of the configuration was not committed.
    pub(crate) async fn lost_commit(&self, error: StoreError, expected: &Expected) -> Error {
        let error = changed(error, "the KMS or a filesystem");
        match error {
            Error::Changed { .. } => self.expect_kms(expected).await.err().unwrap_or(error),
            error => error,
        }
    }

    /// What shows a new KMS who we are. `old` is what is set.
    ///
    /// # Errors
    /// [`Error::Invalid`]: there is nothing that could be kept, or it was given for another origin.
    pub(crate) async fn resolved(
        &self,
        credential: NewCredential,
        new: &KmsConfig,
        old: Option<&Targets>,
    ) -> Result<Credential, Error> {
        let identity = match credential {
            NewCredential::Given(credential) => return Ok(credential),
            NewCredential::Kept { identity } => identity,
        };
        let refused = |why: String| Error::Invalid {
            input: Some(Input::Kms(KmsInput::Auth)),
            what: "a KMS without a token".to_owned(),
            why,
            cure: "give a token (--token-file FILE or --token-stdin), or a login (--role-id ID --secret-id-file FILE)",
        };
        let Some(old) = old.map(|old| &old.current.config) else {
            return Err(refused(
                "no KMS is set, so no token is stored that could be kept".to_owned(),
            ));
        };
        let kind = self.provider(&new.kind)?;
        if old.kind != new.kind || !kind.has_same_origin(old, new) {
            return Err(refused(format!(
                "a stored token is sent only to the origin (scheme, host and port) that it was given for, which is that of {}",
                old.address
            )));
        }
        let stored = self.credential(old.id).await?.credential();
        if matches!(stored.auth, Auth::None) {
            return Err(refused("none is stored for the KMS that is set".to_owned()));
        }
        Ok(Credential { auth: stored.auth, identity: identity.or(stored.identity) })
    }
}

impl Expected {
    /// # Errors
    /// [`Error::KmsChanged`].
    pub(crate) fn is_met_by(&self, targets: Option<&Targets>) -> Result<(), Error> {
        let now = targets.map_or_else(KmsVersion::of_none, |targets| targets.version.clone());
        match self {
            Self::OneOf(versions) if !versions.contains(&now) => Err(Error::KmsChanged),
            _ => Ok(()),
        }
    }
}

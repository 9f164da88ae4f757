//! [`Kms`] over a key file.

use std::collections::BTreeMap;
use std::path::PathBuf;

use async_trait::async_trait;
use kms_core::{
    Ciphertext, CredentialStatus, Items, KeyRecord, Kms, KmsConfig, KmsError, MasterKey,
};

use crate::key_file::{self, LocalKey};
use crate::wrap::{self, VERSION};

/// Wraps keys under the key file of its configuration.
///
/// The file is read, a hundred bytes, at each call and kept nowhere: a key that was erased is
/// missing at once ([`KmsErrorKind::KeyMissing`](kms_core::KmsErrorKind::KeyMissing)). A damaged file is
/// [`KmsErrorKind::Internal`](kms_core::KmsErrorKind::Internal), a ciphertext that does not open
/// [`KmsErrorKind::NotAuthentic`](kms_core::KmsErrorKind::NotAuthentic).
#[derive(Debug)]
pub struct LocalKms {
    dir: PathBuf,
    config: KmsConfig,
}

impl LocalKms {
    pub(crate) fn new(dir: PathBuf, config: KmsConfig) -> Self {
        Self { dir, config }
    }

    fn key(&self) -> Result<LocalKey, KmsError> {
        key_file::read(&self.dir, self.config.id)
    }
}

#[async_trait]
impl Kms for LocalKms {
    fn config(&self) -> &KmsConfig {
        &self.config
    }

    async fn master_key(&self) -> Result<MasterKey, KmsError> {
        Ok(MasterKey {
            name: self.config.master_key.clone(),
            latest_version: VERSION,
            min_decryption_version: VERSION,
            created: BTreeMap::from([(VERSION, self.key()?.created)]),
            deletion_allowed: true,
            exportable: true,
            backup_in_clear: true,
        })
    }

    async fn credential(&self) -> Result<CredentialStatus, KmsError> {
        Ok(CredentialStatus { time_left: None, renewable: false, periodic: false })
    }

    async fn renew(&self) -> Result<CredentialStatus, KmsError> {
        self.credential().await
    }

    async fn wrap(&self, records: &[KeyRecord]) -> Result<Items<Ciphertext>, KmsError> {
        if records.is_empty() {
            return Ok(Items::default());
        }
        let key = self.key()?;
        Ok(records.iter().map(|record| wrap::seal(&key.bytes, self.config.id, record)).collect())
    }

    async fn unwrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<KeyRecord>, KmsError> {
        if ciphertexts.is_empty() {
            return Ok(Items::default());
        }
        let key = self.key()?;
        Ok(ciphertexts.iter().map(|text| wrap::open(&key.bytes, self.config.id, text)).collect())
    }

    async fn rewrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<Ciphertext>, KmsError> {
        if ciphertexts.is_empty() {
            return Ok(Items::default());
        }
        let (key, id) = (self.key()?, self.config.id);
        let rewrap = |text| wrap::seal(&key.bytes, id, &wrap::open(&key.bytes, id, text)?);
        Ok(ciphertexts.iter().map(rewrap).collect())
    }
}

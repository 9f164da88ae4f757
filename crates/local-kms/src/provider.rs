//! Local keys, made, found and erased.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{
    Clock, Credential, FilesystemKey, Finding, KeyRecord, Kms, KmsConfig, KmsConfigId, KmsError,
    KmsErrorKind, KmsProvider, Proof, SystemClock,
};

use crate::key_file;
use crate::kms::LocalKms;

const KIND: &str = "local";

/// Serves configurations of kind `local`, whose keys are the files `local-<configuration id>.key` in one directory.
///
/// Making and erasing block for the few milliseconds of a sync.
#[derive(Debug, Clone)]
pub struct LocalProvider {
    dir: PathBuf,
}

impl LocalProvider {
    /// Keys lie in `dir`, which exists and is its owner's alone.
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The configuration of this id. There is nothing else to choose.
    pub fn config(id: KmsConfigId) -> KmsConfig {
        KmsConfig {
            id,
            kind: KIND.to_owned(),
            address: String::new(),
            master_key: "local".to_owned(),
            settings: BTreeMap::new(),
        }
    }

    /// Where the key of a configuration lies.
    pub fn key_file(&self, id: KmsConfigId) -> PathBuf {
        key_file::path(&self.dir, id)
    }

    /// Makes the key of a configuration. On return it survives a power cut, so that whatever is
    /// wrapped under it can be opened again; after an error or a crash there is a whole key or none.
    ///
    /// # Errors
    /// [`KmsErrorKind::Internal`]; also when there is such a key: it is never replaced.
    pub fn create_key(&self, id: KmsConfigId) -> Result<(), KmsError> {
        key_file::create(&self.dir, id, SystemClock.now())
    }

    /// Erases the key of a configuration for good: overwrites it, syncs, removes the file, syncs
    /// the directory. Doing it twice does no harm.
    ///
    /// The overwriting reaches the old bytes only where the disk and the filesystem write in place. A
    /// solid-state disk, a filesystem that copies on write (btrfs, ZFS), a snapshot of the disk and a backup keep
    /// them, which is one more reason why keys that lay under it stay marked as exposed.
    ///
    /// # Errors
    /// [`KmsErrorKind::Internal`].
    pub fn erase_key(&self, id: KmsConfigId) -> Result<(), KmsError> {
        key_file::erase(&self.dir, id)
    }

    /// Every configuration that has a key file, whole or begun. One that nothing refers to was left by a crash: erase it.
    ///
    /// # Errors
    /// [`KmsErrorKind::Internal`].
    pub fn keys(&self) -> Result<Vec<KmsConfigId>, KmsError> {
        key_file::list(&self.dir).map_err(|e| {
            let what = format!("the directory of local keys {} can't be read", self.dir.display());
            KmsError::new(KmsErrorKind::Internal, what).because(e)
        })
    }
}

#[async_trait]
impl KmsProvider for LocalProvider {
    fn kind(&self) -> &'static str {
        KIND
    }

    fn open(&self, config: &KmsConfig, _: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        if config.kind != KIND {
            let what = format!("a configuration of kind {} is not local wrapping's", config.kind);
            return Err(KmsError::new(KmsErrorKind::Invalid, what).cure("use the kind local"));
        }
        Ok(Arc::new(LocalKms::new(self.dir.clone(), config.clone())))
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        let kms = self.open(config, credential)?;
        let master_key = kms.master_key().await?;
        let probe = KeyRecord::of(&FilesystemKey::generate()?);
        let wrapped = kms.wrap(std::slice::from_ref(&probe)).await?.only()?;
        let rewrapped = kms.rewrap(&[wrapped]).await?.only()?;
        let opened = kms.unwrap(&[rewrapped]).await?.only()?;
        if opened.expose() != probe.expose() {
            return Err(KmsError::new(
                KmsErrorKind::Internal,
                "the local key does not open what it wrapped",
            ));
        }
        let credential = kms.credential().await?;
        let (findings, requests) = (vec![exposed()], Vec::new());
        Ok(Proof { kms, master_key, credential, findings, requests })
    }

    async fn provision(&self, config: &KmsConfig) -> Result<(), KmsError> {
        match key_file::read(&self.dir, config.id) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == KmsErrorKind::KeyMissing => self.create_key(config.id),
            Err(error) => Err(error.cure(
                "move it out of the state directory, or remove it: no key in the store is wrapped under it, and another one is made",
            )),
        }
    }

    async fn retire(&self, config: &KmsConfig) -> Result<(), KmsError> {
        self.erase_key(config.id)
    }
}

fn exposed() -> Finding {
    Finding::new(
        "local-wrapping",
        "the keys lie beside the key that opens them: who can read the state directory, or a backup of it, can read the data",
        "set a KMS (coffer fs kms set-vault), then give each filesystem a new key: coffer fs rekey NAME",
    )
}

//! What would fail if something were taken away in the KMS: told before anybody does it. Asks no KMS.

use std::collections::HashSet;

use kms_core::{KeyVersion, KmsConfigId};

use crate::filesystems::LOCAL;
use crate::records::ConfigRecord;
use crate::status::FilesystemStatus;
use crate::unlock::KeyState;
use crate::{Error, FilesystemName, KeyManager};

/// What could be taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The credential is revoked, or ends.
    Credential,
    /// The master key is deleted.
    MasterKey,
    /// The KMS decrypts no version below this one any more.
    VersionsBelow(KeyVersion),
}

/// What comes of it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Impact {
    /// The master key that is meant.
    pub master_key: String,
    /// Whether it is the one that is set for all filesystems that have none of their own.
    pub for_all: bool,
    /// Whether it is to wrap nothing any more: a move has left keys on it.
    pub left_behind: bool,
    /// Filesystems that are unlocked and go on until the node ends.
    pub go_on: Vec<FilesystemName>,
    /// Filesystems that are locked now and can't be unlocked any more.
    pub shut_now: Vec<FilesystemName>,
    /// Filesystems that a node that starts can't unlock.
    pub shut_at_start: Vec<FilesystemName>,
    /// Filesystems that have nothing to do with it.
    pub untouched: Vec<FilesystemName>,
    /// Filesystems that need nothing of it as far as is known, with a copy of their wrapped key that is out of reach or behind.
    pub unknown: Vec<FilesystemName>,
}

impl KeyManager {
    /// What would fail, now and at the next start, if this were taken away from the KMS that is set; of master keys, from all of this name
    /// that something hangs on, or from the one that is set for all. What a move has left behind is counted.
    ///
    /// # Errors
    /// [`Error::NotConfigured`]; [`Error::Unknown`]: no filesystem has such a master key; [`Error::Store`].
    pub async fn impact(&self, loss: Loss, master_key: Option<&str>) -> Result<Impact, Error> {
        let Some(targets) = self.targets().await? else { return Err(Error::NotConfigured) };
        let statuses = self.filesystem_statuses().await?;
        let current = &targets.current.config;
        let wrap: HashSet<KmsConfigId> =
            statuses.iter().flat_map(FilesystemStatus::wrapped).map(|(by, _)| by.id).collect();
        let name = master_key.unwrap_or(&current.master_key);
        let mut lost: HashSet<KmsConfigId> = HashSet::new();
        for ConfigRecord { config, .. } in self.configs().await? {
            let counts = match (loss, master_key) {
                _ if config.kind == LOCAL => false,
                (Loss::Credential, _) => {
                    targets.has(config.id)
                        || self.have_one_credential(config.id, current.id).await?
                }
                (_, Some(name)) => {
                    let of_this = targets.has(config.id) || wrap.contains(&config.id);
                    of_this && config.master_key == name
                }
                // After a recovery several configurations are the same.
                (_, None) => config.is_alike(current),
            };
            lost.extend(counts.then_some(config.id));
        }
        if lost.is_empty() {
            return Err(Error::Unknown {
                what: format!("filesystem with the master key {name:?} of its own"),
            });
        }
        let mut impact = Impact {
            master_key: name.to_owned(),
            for_all: lost.contains(&current.id),
            left_behind: lost.iter().all(|id| !targets.has(*id)),
            ..Impact::default()
        };
        for status in statuses {
            let name = status.filesystem.name.clone();
            if matches!(status.key, KeyState::Deleting(_)) {
                continue;
            }
            let mut here = status.wrapped().filter(|(by, _)| lost.contains(&by.id));
            let needs = here.any(|(_, version)| match loss {
                Loss::Credential | Loss::MasterKey => true,
                Loss::VersionsBelow(lowest) => version < lowest,
            });
            if !needs {
                match status.copies_behind {
                    Some(_) => impact.unknown.push(name),
                    None => impact.untouched.push(name),
                }
                continue;
            }
            match status.key {
                KeyState::Unlocked => impact.go_on.push(name.clone()),
                _ => impact.shut_now.push(name.clone()),
            }
            // One that an administrator locked does not open at a start whatever happens.
            if !status.filesystem.held {
                impact.shut_at_start.push(name);
            }
        }
        Ok(impact)
    }

    async fn have_one_credential(&self, a: KmsConfigId, b: KmsConfigId) -> Result<bool, Error> {
        Ok(self.credential(a).await? == self.credential(b).await?)
    }
}

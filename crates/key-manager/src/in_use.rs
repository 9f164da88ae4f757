//! What hangs on which version of which master key.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use kms_core::{KeyId, KeyVersion, KmsConfig, KmsConfigId, WrappedKey};

use crate::filesystems::LOCAL;
use crate::jobs::{JobRecord, JobState};
use crate::manager::read;
use crate::records::{ConfigRecord, FilesystemRecord, FilesystemState, KeyEntry};
use crate::status::RecordedKeys;
use crate::{Error, FilesystemName, KeyManager};

/// What hangs on one version of one master key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionCount {
    /// The configuration.
    pub config: KmsConfig,
    /// The version.
    pub version: KeyVersion,
    /// How many filesystem keys it wraps.
    pub keys: u64,
    /// Whether it wraps the canary, which shows that the master key is still the same.
    pub canary: bool,
}

/// A KMS, or a master key in it, that was to be left, and on which keys hang still: the move that was to bring them along ended without them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeftBehind {
    /// Its configuration.
    pub config: KmsConfig,
    /// The filesystems whose keys hang on it, by name.
    pub filesystems: Vec<String>,
}

/// What hangs on master keys.
#[derive(Debug, Clone, Default)]
pub struct InUse {
    /// Each version of each master key that something hangs on.
    pub versions: Vec<VersionCount>,
    /// Filesystems that have a copy of their wrapped key that is behind the store or out of reach, and why. It may hang on
    /// any version of any KMS that was ever set, so none of them is forgotten meanwhile.
    pub copies_behind: Vec<(FilesystemName, String)>,
    /// What keys hang on though they are to hang on another one, and no job is on its way to bring them along.
    pub left_behind: Vec<LeftBehind>,
    /// Why it can't be told what the copies hang on.
    unknown: Vec<String>,
    /// The filesystems whose keys hang on each version of each configuration.
    names: BTreeMap<(KmsConfigId, KeyVersion), Vec<String>>,
}

impl InUse {
    /// The oldest version that something needs of this configuration's master key, the copies included; `None` if that can't be told: a
    /// copy is behind or has not been looked at yet, a record can't be read, keys are being moved.
    pub fn lowest_needed(&self, config: KmsConfigId) -> Option<KeyVersion> {
        self.oldest(config).filter(|_| self.unknown.is_empty())
    }

    /// What keeps a version above [`Self::lowest_needed`] from being the lowest one: the filesystems, and the canary, that hang on that; where it can't be told, why
    /// not. What hangs on the newest version keeps nothing: a rewrap would change nothing.
    pub fn blockers(&self, config: KmsConfigId, newest: Option<KeyVersion>) -> Vec<String> {
        if !self.unknown.is_empty() {
            return self.unknown.clone();
        }
        let Some(oldest) = self.oldest(config).filter(|oldest| Some(*oldest) != newest) else {
            return Vec::new();
        };
        let hang = || self.of(config).filter(|count| count.version == oldest);
        let named = hang().filter_map(|count| self.names.get(&(count.config.id, oldest)));
        let mut names: Vec<_> = named.flatten().cloned().collect();
        names.sort();
        names.dedup();
        names.extend(hang().any(|count| count.canary).then(|| "the canary".to_owned()));
        names
    }

    fn oldest(&self, config: KmsConfigId) -> Option<KeyVersion> {
        self.of(config).map(|count| count.version).min()
    }

    /// What hangs on the master key of this configuration, under whatever id.
    fn of(&self, config: KmsConfigId) -> impl Iterator<Item = &VersionCount> {
        let this = self.versions.iter().map(|count| &count.config).find(|known| known.id == config);
        let alike = move |count: &&VersionCount| this.is_some_and(|c| count.config.is_alike(c));
        self.versions.iter().filter(alike)
    }
}

/// The filesystems that have each key, by name.
type Names = HashMap<KeyId, Vec<String>>;

/// Whether a move runs or will by itself; one that was stopped does not.
fn is_on_its_way(job: &JobRecord) -> bool {
    job.state != JobState::Stopped
}

impl KeyManager {
    /// What hangs on which version of which master key. Asks no KMS.
    pub async fn in_use(&self) -> Result<InUse, Error> {
        let moved_before = self.is_move_under_way().await?;
        self.in_use_of(&self.recorded_keys().await?, moved_before).await
    }

    /// Asked before the keys are read too: one that ends meanwhile has left nothing behind yet.
    pub(crate) async fn is_move_under_way(&self) -> Result<bool, Error> {
        Ok(self.unfinished_move().await?.is_some_and(|job| is_on_its_way(&job)))
    }

    pub(crate) async fn in_use_of(
        &self,
        all: &RecordedKeys,
        moved_before: bool,
    ) -> Result<InUse, Error> {
        let RecordedKeys { configs, entries, unreadable, filesystems } = all;
        let mut counts: BTreeMap<(KmsConfigId, KeyVersion), (u64, bool)> = BTreeMap::new();
        for WrappedKey { config_id, ciphertext, .. } in entries.values().map(|e| &e.wrapped) {
            counts.entry((*config_id, ciphertext.version)).or_default().0 += 1;
        }
        for ConfigRecord { config, canary, .. } in configs {
            if let Some(canary) = canary {
                counts.entry((config.id, canary.ciphertext.version)).or_default().1 = true;
            }
        }
        let configs: BTreeMap<KmsConfigId, &KmsConfig> =
            configs.iter().map(|record| (record.config.id, &record.config)).collect();
        let known = |((id, version), (keys, canary))| {
            let config = (*configs.get(&id)?).clone();
            Some(VersionCount { config, version, keys, canary })
        };
        let versions = counts.into_iter().filter_map(known).collect();
        let mut names = Names::new();
        for fs in filesystems.iter().filter(|fs| fs.state == FilesystemState::Ready) {
            fs.keys().for_each(|key| names.entry(key).or_default().push(fs.name.to_string()));
        }
        let behind =
            |fs: &FilesystemRecord| self.copies_behind(fs).map(|why| (fs.name.clone(), why));
        let copies_behind: Vec<_> = filesystems.iter().filter_map(behind).collect();
        let mut unknown: Vec<String> = unreadable.iter().map(Error::to_string).collect();
        unknown
            .extend(copies_behind.iter().map(|(name, _)| format!("a copy of the key of {name}")));
        let unfinished = self.unfinished_move().await?;
        let moves = moved_before || unfinished.as_ref().is_some_and(is_on_its_way);
        if let Some(job) = unfinished {
            unknown.push(format!("the job {}, which has not brought all keys along yet", job.id));
        }
        if !read(&self.copies).compared {
            unknown.push("copies that have not been looked at yet".to_owned());
        }
        let mut in_use = InUse { versions, copies_behind, unknown, ..InUse::default() };
        if !moves {
            in_use.left_behind = self.left_behind(&configs, entries, &names).await?;
        }
        for WrappedKey { key_id, config_id, ciphertext } in entries.values().map(|e| &e.wrapped) {
            let of_key = names.get(key_id).into_iter().flatten().cloned();
            in_use.names.entry((*config_id, ciphertext.version)).or_default().extend(of_key);
        }
        Ok(in_use)
    }

    /// The configurations that are nobody's target and that keys of filesystems hang on, local wrapping aside.
    async fn left_behind(
        &self,
        configs: &BTreeMap<KmsConfigId, &KmsConfig>,
        entries: &BTreeMap<KeyId, KeyEntry>,
        names: &Names,
    ) -> Result<Vec<LeftBehind>, Error> {
        let targets = self.targets().await?;
        let mut left: BTreeMap<KmsConfigId, BTreeSet<String>> = BTreeMap::new();
        for WrappedKey { key_id, config_id, .. } in entries.values().map(|entry| &entry.wrapped) {
            if targets.as_ref().is_some_and(|targets| targets.has(*config_id)) {
                continue;
            }
            for name in names.get(key_id).into_iter().flatten() {
                left.entry(*config_id).or_default().insert(name.clone());
            }
        }
        let known = left.into_iter().filter_map(|(id, filesystems)| {
            let config = (*configs.get(&id).filter(|config| config.kind != LOCAL)?).clone();
            Some(LeftBehind { config, filesystems: filesystems.into_iter().collect() })
        });
        Ok(known.collect())
    }
}

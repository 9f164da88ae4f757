//! Rebuilding a key store that was lost, from the copies in the backing directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use kms_core::{Clock, Commit, KeyEnvelope, KeyId, KeyStore, KmsConfig, Record, WrappedKey};

use crate::filesystems::LOCAL;
use crate::records::{self, ConfigRecord, CurrentKms, FilesystemRecord, FilesystemState, KeyEntry};
use crate::{Error, FilesystemName};

/// What was rebuilt.
#[derive(Debug, Clone, Default)]
pub struct Recovered {
    /// The filesystems, with the names that they have now.
    pub filesystems: Vec<FilesystemRecord>,
    /// Filesystems whose name was taken or not valid, and what they are called now.
    pub renamed: Vec<(String, FilesystemName)>,
    /// The KMS that is set; its token has to be given anew (`coffer fs kms set-vault`).
    pub kms: Option<KmsConfig>,
    /// Other KMS configurations that some key needs.
    pub others: Vec<KmsConfig>,
    /// Directories that were left out, and why.
    pub left_out: Vec<(PathBuf, String)>,
}

/// A backing directory with what lies in it.
#[derive(Debug, Clone)]
pub struct FoundCopy {
    /// Where it is.
    pub backing: PathBuf,
    /// The copy of its filesystem's wrapped key.
    pub envelope: KeyEnvelope,
    /// The copy of the one that the filesystem is being re-encrypted from, if there is one.
    pub previous: Option<KeyEnvelope>,
}

/// Writes the records of these filesystems into an empty store.
///
/// Tokens are in no envelope: the KMS that most keys name becomes
/// the current one, without a token. What was being re-encrypted has its two keys, and waits to be gone on with. Two directories
/// with one key are both taken: one was made from the other. Configurations of other nodes, or of other times, that say the same
/// are one. Master keys of filesystems' own are so again.
///
/// No local key is ever erased that any of them names: what was forgotten or is not among these directories may open under it
/// too, and this store does not know of it.
///
/// # Errors
/// [`Error::Exists`] when the store is not empty; [`Error::Store`].
pub async fn rebuild(
    store: &dyn KeyStore,
    clock: &dyn Clock,
    found: Vec<FoundCopy>,
) -> Result<Recovered, Error> {
    if !store.list("", None, 1).await?.records.is_empty() {
        return Err(Error::Exists { what: "a key store with records in it".into() });
    }
    let mut recovered = Recovered::default();
    let mut filesystems: BTreeMap<FilesystemName, FilesystemRecord> = BTreeMap::new();
    let mut seen = BTreeSet::new();
    let mut keys = Keys { found_in_all: found.len() + 1, ..Keys::default() };
    for FoundCopy { backing, envelope, previous } in found {
        let checked = [Some(&envelope), previous.as_ref()].into_iter().flatten();
        if let Some(error) = checked.map(KeyEnvelope::check).find_map(Result::err) {
            recovered.left_out.push((backing, error.to_string()));
            continue;
        }
        if !seen.insert(backing.clone()) {
            continue;
        }
        let wanted = envelope.filesystem.clone();
        let key_id = keys.add(envelope);
        // Of one that had hardly begun, both are of the old key.
        let previous_key = previous.map(|previous| keys.add(previous)).filter(|id| *id != key_id);
        let name = free_name(&wanted, key_id, &filesystems)?;
        if name.as_str() != wanted {
            recovered.renamed.push((wanted, name.clone()));
        }
        let record = FilesystemRecord {
            name: name.clone(),
            key_id,
            previous_key,
            backing,
            created: clock.now(),
            state: FilesystemState::Ready,
            held: false,
            request: None,
        };
        recovered.filesystems.push(record.clone());
        filesystems.insert(name, record);
    }

    let Keys { configs, entries, .. } = keys;
    let mut commit = Commit::new();
    for (config, _) in &configs {
        let record = ConfigRecord {
            config: config.clone(),
            canary: None,
            versions: BTreeMap::new(),
            set_at: clock.now(),
            kept: config.kind == LOCAL,
        };
        commit = commit.put(records::config_key(config.id), records::encode(&record));
    }
    let mut own: BTreeMap<String, CurrentKms> = BTreeMap::new();
    let kms = configs.iter().filter(|(config, _)| config.kind != LOCAL);
    if let Some((current, _)) = kms.clone().max_by_key(|(_, keys)| *keys) {
        let pointer = CurrentKms { config_id: current.id, change: None };
        commit = commit.put(records::CURRENT, records::encode(&pointer));
        recovered.kms = Some(current.clone());
        let beside = |config: &KmsConfig| {
            let (id, master_key) = (current.id, current.master_key.clone());
            config.master_key != master_key
                && *current == KmsConfig { id, master_key, ..config.clone() }
        };
        for name in entries.values().filter_map(|entry| entry.own_master_key.as_ref()) {
            let of_own = kms.clone().find(|(c, _)| c.master_key == *name && beside(c));
            let key = records::own_key(name);
            // What can't be a record is no master key either: setting the KMS says so.
            let fits = key.len() <= Record::MAX_KEY && !key.contains('\0');
            if let Some((config, _)) = of_own.filter(|_| fits) {
                own.insert(key, CurrentKms { config_id: config.id, change: None });
            }
        }
    }
    for (key, pointer) in &own {
        commit = commit.put(key.clone(), records::encode(pointer));
    }
    let others = kms.filter(|(c, _)| recovered.kms.as_ref().is_none_or(|k| k.id != c.id));
    recovered.others = others.map(|(config, _)| config.clone()).collect();
    for (id, entry) in &entries {
        commit = commit.put(records::wrapped_key(*id), records::encode(entry));
    }
    for (name, record) in &filesystems {
        commit = commit.put(records::fs_key(name), records::encode(record));
    }
    commit = commit.put(records::FS_EPOCH, b"0".to_vec());
    store.commit(commit).await?;
    Ok(recovered)
}

/// The filesystems that a store has. Records that can't be read are passed over.
///
/// # Errors
/// [`Error::Store`].
pub async fn recorded_filesystems(store: &dyn KeyStore) -> Result<Vec<FilesystemRecord>, Error> {
    let records = records::all(store, records::FILESYSTEMS).await?;
    Ok(records.iter().filter_map(|record| records::decode(record).ok()).collect())
}

/// The wrapped keys that were found.
#[derive(Default)]
struct Keys {
    /// More than all together weigh that have a master key of their own.
    found_in_all: usize,
    /// What wrapped them, and the weight of each.
    configs: Vec<(KmsConfig, usize)>,
    entries: BTreeMap<KeyId, KeyEntry>,
}

impl Keys {
    /// Takes one, or of several copies of it the newest; whose it is.
    fn add(&mut self, envelope: KeyEnvelope) -> KeyId {
        let key_id = envelope.wrapped.key_id;
        let config = KmsConfig { id: envelope.wrapped.config_id, ..envelope.kms };
        let known = self.configs.iter().position(|(known, _)| are_one(known, &config));
        let known = known.unwrap_or_else(|| {
            self.configs.push((config, 0));
            self.configs.len() - 1
        });
        let (config, keys) = &mut self.configs[known];
        // What is somebody's own master key is not the one for all, unless there is no other.
        *keys += if envelope.own_master_key.is_none() { self.found_in_all } else { 1 };
        // The mark is all that tells of the past; that a key lies under local wrapping now shows without it.
        let entry = KeyEntry {
            wrapped: WrappedKey { config_id: config.id, ..envelope.wrapped },
            exposed: envelope.exposed || config.kind == LOCAL,
            revision: envelope.revision,
            own_master_key: envelope.own_master_key,
        };
        let newest = self.entries.entry(key_id).or_insert_with(|| entry.clone());
        newest.exposed |= entry.exposed;
        if entry.revision > newest.revision {
            *newest = KeyEntry { exposed: newest.exposed, ..entry };
        }
        key_id
    }
}

/// Whether what one wrapped the other opens. The local ones have nothing but their ids, which name their keys.
fn are_one(one: &KmsConfig, other: &KmsConfig) -> bool {
    one.id == other.id || one.kind != LOCAL && *one == KmsConfig { id: one.id, ..other.clone() }
}

/// The name itself, or with the key's id behind it when it is taken or not valid.
fn free_name(
    wanted: &str,
    key_id: KeyId,
    taken: &BTreeMap<FilesystemName, FilesystemRecord>,
) -> Result<FilesystemName, Error> {
    if let Ok(name) = wanted.parse::<FilesystemName>()
        && !taken.contains_key(&name)
    {
        return Ok(name);
    }
    let mut n = 1;
    loop {
        let name: FilesystemName = format!("recovered-{key_id}-{n}").parse()?;
        if !taken.contains_key(&name) {
            return Ok(name);
        }
        n += 1;
    }
}

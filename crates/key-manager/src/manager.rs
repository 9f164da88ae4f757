//! The manager itself: its parts, its memory, and the look-ups that every act needs.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::time::Duration;

use kms_core::{
    AuditEvent, AuditSink, Clock, Commit, FilesystemKey, FilesystemSite, HolderError, KeyHolder,
    KeyId, KeyStore, Kms, KmsConfigId, KmsError, KmsErrorKind, KmsProvider, Outcome, Record,
};

use crate::filesystems::Volumes;
use crate::records::{
    self, ConfigRecord, CredentialRecord, CurrentKms, FilesystemRecord, FilesystemState, KeyEntry,
};
use crate::unlock::{LockReason, as_read};
use crate::{Error, FilesystemName};

/// How long an act waits for another one on the same backing directory.
pub(crate) const WORK_WITHIN: Duration = Duration::from_secs(5);

/// What a [`KeyManager`] is made of.
#[derive(Debug)]
pub struct Parts {
    /// Where records are kept.
    pub store: Arc<dyn KeyStore>,
    /// One for each kind of KMS; `local` must be among them.
    pub providers: Vec<Arc<dyn KmsProvider>>,
    /// Where copies of wrapped keys lie.
    pub holders: Vec<Arc<dyn KeyHolder>>,
    /// Makes and removes backing directories.
    pub volumes: Arc<dyn Volumes>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Keeps a record of every act.
    pub audit: Arc<dyn AuditSink>,
}

/// Manages the keys of one node. See the crate's documentation.
#[derive(Debug)]
pub struct KeyManager {
    parts: Parts,
    /// Serialises the acts that change records.
    acts: tokio::sync::Mutex<()>,
    /// Serialises what takes keys into memory and out of it. Never held while a KMS is asked, so that a lock waits for none.
    memory: tokio::sync::Mutex<()>,
    /// Lets one move run at a time; other acts go on beside it.
    pub(crate) moves: tokio::sync::Mutex<()>,
    /// Keeps keys that are wrapped anew from being recorded: a move waits to write it, rehearsals read it.
    pub(crate) still: tokio::sync::RwLock<()>,
    /// Filesystems whose backing directories are being made or removed. That is done beside other acts: a disk may hang.
    at_work: std::sync::Mutex<HashSet<FilesystemName>>,
    work_done: tokio::sync::Notify,
    /// Opened KMS clients, by configuration.
    clients: RwLock<HashMap<KmsConfigId, Arc<dyn Kms>>>,
    /// The unwrapped keys.
    ring: RwLock<HashMap<KeyId, Arc<FilesystemKey>>>,
    /// Why a filesystem whose key is not in the ring is locked.
    locks: RwLock<HashMap<FilesystemName, LockReason>>,
    /// How the copies of wrapped keys stand to the store.
    pub(crate) copies: RwLock<Copies>,
}

/// The keys of an unlocked filesystem.
#[derive(Debug)]
pub struct OpenKeys {
    /// Its key.
    pub key: Arc<FilesystemKey>,
    /// The key that it is being re-encrypted from.
    pub previous: Option<Arc<FilesystemKey>>,
}

/// What is known of the copies of wrapped keys.
#[derive(Debug, Default)]
pub(crate) struct Copies {
    /// Whether they have been compared with the store since the start.
    pub(crate) compared: bool,
    /// Filesystems that have a copy of this key that is behind the store or out of reach, and why.
    pub(crate) behind: BTreeMap<(String, KeyId), String>,
}

impl KeyManager {
    /// A manager over these parts. Call [`KeyManager::settle`] before anything else.
    pub fn new(parts: Parts) -> Self {
        Self {
            parts,
            acts: tokio::sync::Mutex::default(),
            memory: tokio::sync::Mutex::default(),
            moves: tokio::sync::Mutex::default(),
            still: tokio::sync::RwLock::default(),
            at_work: std::sync::Mutex::default(),
            work_done: tokio::sync::Notify::new(),
            clients: RwLock::default(),
            ring: RwLock::default(),
            locks: RwLock::default(),
            copies: RwLock::default(),
        }
    }

    /// Finishes or undoes what was under way when the last manager on this store ended: filesystems half made or half
    /// removed, configurations that nothing names. Asks no KMS. Moves are left to [`KeyManager::run_move`].
    pub async fn settle(&self) -> Result<(), Error> {
        self.finish_removals().await?;
        let _act = self.begin_act().await;
        self.retire_unused().await
    }

    /// Every filesystem, by name, in whatever state.
    pub async fn filesystems(&self) -> Result<Vec<FilesystemRecord>, Error> {
        let mut filesystems = Vec::new();
        records::each(self.store(), records::FILESYSTEMS, |record| {
            filesystems.push(records::decode(&record)?);
            Ok(())
        })
        .await?;
        Ok(filesystems)
    }

    /// The filesystem with this name, if it is ready for use.
    pub async fn filesystem(&self, name: &FilesystemName) -> Result<FilesystemRecord, Error> {
        Ok(self.filesystem_record(name).await?.1)
    }

    pub(crate) async fn filesystem_record(
        &self,
        name: &FilesystemName,
    ) -> Result<(Record, FilesystemRecord), Error> {
        let (record, fs) = self.recorded_filesystem(name).await?;
        match fs.state {
            FilesystemState::Ready => Ok((record, fs)),
            FilesystemState::Creating if !self.is_stuck(&fs) => Err(unknown(name)),
            _ => {
                let LockReason { why, cure, .. } = self.reason(&fs);
                Err(Error::Deleting { name: name.to_string(), why, cure })
            }
        }
    }

    /// The record of a filesystem in any state.
    pub(crate) async fn recorded_filesystem(
        &self,
        name: &FilesystemName,
    ) -> Result<(Record, FilesystemRecord), Error> {
        let record = self.store().get(&records::fs_key(name)).await?;
        let record = record.ok_or_else(|| unknown(name))?;
        let fs = records::decode(&record)?;
        Ok((record, fs))
    }

    pub(crate) fn store(&self) -> &dyn KeyStore {
        self.parts.store.as_ref()
    }

    pub(crate) fn parts(&self) -> &Parts {
        &self.parts
    }

    pub(crate) async fn begin_act(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.acts.lock().await
    }

    /// The right to make or remove the backing directory of this filesystem, once who is at it has done. It is taken before the
    /// acts' lock.
    ///
    /// # Errors
    /// [`Error::AtWork`]: somebody is at it for long.
    pub(crate) async fn begin_work(&self, name: &FilesystemName) -> Result<Work<'_>, Error> {
        let begun = async {
            loop {
                let done = self.work_done.notified();
                // Asked after the wait has begun, so that an end in between is not missed.
                if let Some(work) = self.try_begin_work(name) {
                    return work;
                }
                done.await;
            }
        };
        let begun = tokio::time::timeout(WORK_WITHIN, begun).await;
        begun.map_err(|_| Error::AtWork { name: name.to_string() })
    }

    /// As [`Self::begin_work`], if nobody is at it.
    pub(crate) fn try_begin_work(&self, name: &FilesystemName) -> Option<Work<'_>> {
        let mut at_work = self.at_work.lock().unwrap_or_else(PoisonError::into_inner);
        at_work.insert(name.clone()).then(|| Work { manager: self, name: name.clone() })
    }

    /// Whoever holds the acts' lock too has taken that one first.
    pub(crate) async fn change_memory(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.memory.lock().await
    }

    pub(crate) fn provider(&self, kind: &str) -> Result<&Arc<dyn KmsProvider>, Error> {
        self.parts.providers.iter().find(|p| p.kind() == kind).ok_or_else(|| {
            Error::Kms(KmsError::new(
                KmsErrorKind::Invalid,
                format!("this program knows no KMS of the kind {kind:?}"),
            ))
        })
    }

    /// The configuration that wraps new keys, with the record that names it.
    pub(crate) async fn current(&self) -> Result<Option<(Record, ConfigRecord)>, Error> {
        loop {
            let Some(pointer) = self.store().get(records::CURRENT).await? else { return Ok(None) };
            let CurrentKms { config_id, .. } = records::decode(&pointer)?;
            // Another one has been set meanwhile, if it is gone.
            if let Some(config) = self.config_if_kept(config_id).await? {
                return Ok(Some((pointer, config)));
            }
        }
    }

    /// # Errors
    /// [`Error::Changed`]: it was forgotten since its id was read.
    pub(crate) async fn config(&self, id: KmsConfigId) -> Result<ConfigRecord, Error> {
        let config = self.config_if_kept(id).await?;
        config.ok_or_else(|| Error::Changed { what: "the KMS configuration".to_owned() })
    }

    /// `None`: it was forgotten since its id was read, and nothing names it any more.
    pub(crate) async fn config_if_kept(
        &self,
        id: KmsConfigId,
    ) -> Result<Option<ConfigRecord>, Error> {
        let key = records::config_key(id);
        match self.store().get(&key).await? {
            Some(record) => Ok(Some(records::decode(&record)?)),
            None if self.is_config_named(id).await? => {
                Err(Error::Record { key, why: "it is missing, and a wrapped key names it".into() })
            }
            None => Ok(None),
        }
    }

    async fn is_config_named(&self, id: KmsConfigId) -> Result<bool, Error> {
        let mut pointers = records::all(self.store(), records::OWN).await?;
        pointers.extend(self.store().get(records::CURRENT).await?);
        for pointer in &pointers {
            if records::decode::<CurrentKms>(pointer)?.config_id == id {
                return Ok(true);
            }
        }
        let (keys, unreadable) = self.key_entries().await?;
        Ok(!unreadable.is_empty() || keys.iter().any(|key| key.wrapped.config_id == id))
    }

    pub(crate) async fn configs(&self) -> Result<Vec<ConfigRecord>, Error> {
        let records = records::all(self.store(), records::CONFIGS).await?;
        records.iter().map(records::decode).collect()
    }

    /// Gives the record of every wrapped key that something needs to `take`: those of filesystems that are being deleted are
    /// left out.
    pub(crate) async fn each_key_record(
        &self,
        mut take: impl FnMut(Record) + Send,
    ) -> Result<(), Error> {
        let filesystems = self.filesystems().await?;
        let (going, staying): (Vec<_>, Vec<_>) =
            filesystems.iter().partition(|fs| fs.state.is_going());
        let mut going: HashSet<KeyId> =
            going.into_iter().flat_map(FilesystemRecord::keys).collect();
        for key in staying.into_iter().flat_map(FilesystemRecord::keys) {
            going.remove(&key);
        }
        let going: HashSet<String> = going.into_iter().map(records::wrapped_key).collect();
        drop(filesystems);
        records::each(self.store(), records::KEYS, |record| {
            if !going.contains(&record.key) {
                take(record);
            }
            Ok(())
        })
        .await
    }

    /// # Errors
    /// [`Error::Changed`]: the filesystem that had it is gone since, or has another key.
    pub(crate) async fn key_entry(&self, id: KeyId) -> Result<(Record, KeyEntry), Error> {
        let key = records::wrapped_key(id);
        match self.store().get(&key).await? {
            Some(record) => {
                let entry = key_entry_of(&record)?;
                Ok((record, entry))
            }
            None if !self.filesystems().await?.iter().any(|fs| fs.has_key(id)) => {
                Err(Error::Changed { what: "the filesystem".to_owned() })
            }
            None => {
                Err(Error::Record { key, why: "it is missing, and a filesystem names it".into() })
            }
        }
    }

    /// The client for a configuration, opened once. Asks nobody.
    pub(crate) async fn kms(&self, id: KmsConfigId) -> Result<Arc<dyn Kms>, Error> {
        if let Some(kms) = read(&self.clients).get(&id) {
            return Ok(Arc::clone(kms));
        }
        let config = self.config(id).await?.config;
        let credential = self.credential(id).await?.credential();
        let kms = self.provider(&config.kind)?.open(&config, &credential)?;
        // One that was kept meanwhile may have a newer credential.
        Ok(Arc::clone(write(&self.clients).entry(id).or_insert(kms)))
    }

    /// What is stored to show a KMS who we are; nothing, after a recovery and for local wrapping.
    pub(crate) async fn credential(&self, id: KmsConfigId) -> Result<CredentialRecord, Error> {
        match self.store().get(&records::credential_key(id)).await? {
            Some(record) => records::decode(&record),
            None => Ok(CredentialRecord::default()),
        }
    }

    /// Answers the one that was used before, to be left.
    pub(crate) fn keep_client(&self, kms: &Arc<dyn Kms>) -> Option<Arc<dyn Kms>> {
        write(&self.clients).insert(kms.config().id, Arc::clone(kms))
    }

    /// Ends what the KMSs gave to this manager, such as the tokens of logins. For the end of a node; what asks them later gets it anew.
    pub async fn leave(&self) {
        let clients: Vec<_> = write(&self.clients).drain().map(|(_, kms)| kms).collect();
        // Also one that a look was using which has been broken off just now.
        for kms in clients {
            kms.leave().await;
        }
    }

    /// Forgets the configurations that wrap nothing any more, after erasing what they left on this machine. One that
    /// any wrapped key in the store or any copy of one still names stays; while a copy can't be read, all stay, for it
    /// may name any. The caller holds the acts' lock.
    pub(crate) async fn retire_unused(&self) -> Result<(), Error> {
        if self.unfinished_move().await?.is_some() {
            return Ok(());
        }
        let epoch = self.store().get(records::FS_EPOCH).await?;
        let targets = self.targets().await?;
        let current = targets.as_ref().map(|targets| targets.current.config.id);
        let own_of = |id| targets.as_ref().and_then(|targets| targets.named_as_own(id));
        let (keys, unreadable) = self.key_entries().await?;
        let unused = |record: &ConfigRecord, named: &HashSet<KmsConfigId>| {
            let id = record.config.id;
            let awaited = own_of(id).is_some_and(|(own, _)| keys.iter().any(|k| k.has_own(own)));
            Some(id) != current && !record.kept && !named.contains(&id) && !awaited
        };
        if !unreadable.is_empty() {
            // What can't be read may name any of them.
            return Ok(());
        }
        let mut named: HashSet<KmsConfigId> =
            keys.iter().map(|entry| entry.wrapped.config_id).collect();
        let configs = self.configs().await?;
        if !configs.iter().any(|record| unused(record, &named)) {
            return Ok(());
        }
        for site in self.sites_by_key().await?.values().flatten() {
            match self.configs_in_copies(site).await {
                Ok(configs) => named.extend(configs),
                Err(error) => {
                    self.note_copies(site, site.key_id, Err(&error));
                    return Ok(());
                }
            }
        }
        for ConfigRecord { config, .. } in configs.into_iter().filter(|c| unused(c, &named)) {
            // The record goes last: while it is there, a stop in between is made good at the next start.
            self.provider(&config.kind)?.retire(&config).await?;
            let mut forget = Commit::new()
                .delete(records::config_key(config.id))
                .delete(records::credential_key(config.id));
            if let Some((_, pointer)) = own_of(config.id) {
                // No filesystem was made meanwhile that is to have it.
                forget = as_read(forget.unchanged(pointer), records::FS_EPOCH, epoch.as_ref())
                    .delete(pointer.key.clone());
            }
            self.store().commit(forget).await?;
            let client = write(&self.clients).remove(&config.id);
            leave(client).await;
            self.audit("kms.forget", &config.id.to_string(), Outcome::Done, &config.address);
        }
        Ok(())
    }

    /// As [`KeyManager::retire_unused`], after an act that is done: what fails here is done at the next settling.
    pub(crate) async fn retire_or_warn(&self) {
        if let Err(error) = self.retire_unused().await {
            tracing::warn!(%error, "a KMS configuration that nothing needs can't be forgotten now");
        }
    }

    pub(crate) async fn configs_in_copies(
        &self,
        site: &FilesystemSite,
    ) -> Result<Vec<KmsConfigId>, HolderError> {
        let mut configs = Vec::new();
        for holder in &self.parts.holders {
            for copy in holder.list(site).await? {
                configs.push(copy.envelope?.wrapped.config_id);
            }
        }
        Ok(configs)
    }

    /// Notes how the copies of this key of a filesystem were found.
    pub(crate) fn note_copies(
        &self,
        site: &FilesystemSite,
        key: KeyId,
        found: Result<(), &HolderError>,
    ) {
        let behind = &mut write(&self.copies).behind;
        let of_this = (site.name.clone(), key);
        match found {
            Ok(()) => drop(behind.remove(&of_this)),
            Err(error) => {
                let why = error.to_string();
                if behind.get(&of_this) != Some(&why) {
                    tracing::warn!(
                        filesystem = site.name,
                        why,
                        "a copy of its wrapped key is behind the store"
                    );
                    behind.insert(of_this, why);
                }
            }
        }
    }

    pub(crate) fn unlocked(&self, id: KeyId) -> Option<Arc<FilesystemKey>> {
        read(&self.ring).get(&id).cloned()
    }

    /// Its keys, if all of them are in memory.
    pub(crate) fn unlocked_keys(&self, fs: &FilesystemRecord) -> Option<OpenKeys> {
        let previous = match fs.previous_key {
            Some(id) => Some(self.unlocked(id)?),
            None => None,
        };
        Some(OpenKeys { key: self.unlocked(fs.key_id)?, previous })
    }

    pub(crate) fn ring(&self) -> RwLockWriteGuard<'_, HashMap<KeyId, Arc<FilesystemKey>>> {
        write(&self.ring)
    }

    pub(crate) fn lock_reasons(&self) -> RwLockWriteGuard<'_, HashMap<FilesystemName, LockReason>> {
        write(&self.locks)
    }

    pub(crate) async fn sites_by_key(&self) -> Result<HashMap<KeyId, Vec<FilesystemSite>>, Error> {
        let mut sites: HashMap<KeyId, Vec<FilesystemSite>> = HashMap::new();
        for fs in self.filesystems().await? {
            if fs.state == FilesystemState::Ready {
                for key in fs.keys() {
                    sites.entry(key).or_default().push(fs.site());
                }
            }
        }
        Ok(sites)
    }

    pub(crate) fn audit(&self, action: &str, subject: &str, outcome: Outcome, detail: &str) {
        self.record(&self.event(action, subject, outcome, detail));
    }

    /// What has just ended. Whoever knows a key and requests adds them.
    pub(crate) fn event(
        &self,
        action: &str,
        subject: &str,
        outcome: Outcome,
        detail: &str,
    ) -> AuditEvent {
        AuditEvent {
            at: self.parts.clock.now(),
            action: action.to_owned(),
            subject: subject.to_owned(),
            outcome,
            who: None,
            key: None,
            requests: Vec::new(),
            detail: detail.to_owned(),
        }
    }

    pub(crate) fn record(&self, event: &AuditEvent) {
        self.parts.audit.record(event);
    }
}

/// Work on a backing directory.
pub(crate) struct Work<'a> {
    manager: &'a KeyManager,
    name: FilesystemName,
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        let at_work = &self.manager.at_work;
        at_work.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.name);
        self.manager.work_done.notify_waiters();
    }
}

/// Has these clients end what they got, but for those that somebody uses still. One that shares it with another is dropped before that one is
/// asked.
pub(crate) async fn leave(clients: impl IntoIterator<Item = Arc<dyn Kms>>) {
    for kms in clients {
        if Arc::strong_count(&kms) == 1 {
            kms.leave().await;
        }
    }
}

pub(crate) fn unknown(name: &FilesystemName) -> Error {
    Error::Unknown { what: format!("filesystem {name}") }
}

/// Reads a wrapped key's record, and refuses one that lies under another key's name.
pub(crate) fn key_entry_of(record: &Record) -> Result<KeyEntry, Error> {
    let entry: KeyEntry = records::decode(record)?;
    if records::wrapped_key(entry.wrapped.key_id) == record.key {
        Ok(entry)
    } else {
        Err(Error::Record {
            key: record.key.clone(),
            why: format!("it holds the wrapped key of {}", entry.wrapped.key_id),
        })
    }
}

/// Nothing that holds these locks can panic half way through a change, so a poisoned one is still whole.
pub(crate) fn read<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn write<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

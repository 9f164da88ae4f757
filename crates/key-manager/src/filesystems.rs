//! Creating and deleting filesystems.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{
    Commit, ENVELOPE_FORMAT, FilesystemKey, FilesystemSite, KeyEnvelope, KeyId, KmsConfig,
    KmsConfigId, Outcome,
};

use crate::own_key::Sibling;
use crate::records::{self, ConfigRecord, CurrentKms, FilesystemRecord, FilesystemState, KeyEntry};
use crate::unlock::{LockReason, as_read, changed};
use crate::{CreateRequest, Error, FilesystemName, Input, KeyManager};

/// Makes and removes backing directories. What it fails at says why in words for an administrator.
#[async_trait]
pub trait Volumes: fmt::Debug + Send + Sync {
    /// Makes an empty filesystem with this key in `site.backing`, which does not exist or is empty,
    /// with `envelope` as the copy of its wrapped key. Durable on `Ok`.
    async fn create(
        &self,
        site: &FilesystemSite,
        key: Arc<FilesystemKey>,
        envelope: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Removes all that [`Volumes::create`] made and all that came into it. It touches nothing that is not a Coffer
    /// filesystem with this key, or an unfinished one. Doing it twice does no harm.
    async fn remove(
        &self,
        site: &FilesystemSite,
    ) -> Result<Removal, Box<dyn std::error::Error + Send + Sync>>;

    /// Makes room in the directory of a filesystem that is to get a new key for what [`Volumes::begin_rekey`] will write. What it
    /// leaves there, such as `from` a second time, means nothing where no new key comes of it. Durable on `Ok`. Doing it twice does no harm.
    async fn prepare_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Brings the directory of a filesystem that has got a new key along: first `from`, the wrapped key that its data lies under, is
    /// there a second time, then `to` takes its place. A copy that is there stays as it is, older or not. Durable on `Ok`; a stop
    /// in between leaves a filesystem that opens. Doing it twice does no harm, also when some of the data lies under the new
    /// key already.
    async fn begin_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;

    /// Removes the second copy that [`Volumes::begin_rekey`] made, once no data lies under that key. Durable on `Ok`.
    /// Doing it twice does no harm.
    async fn end_rekey(
        &self,
        site: &FilesystemSite,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>>;
}

/// What [`Volumes::remove`] found.
#[derive(Debug)]
pub enum Removal {
    /// The filesystem, or a part of it. It is gone.
    Removed,
    /// Nothing of it.
    NothingThere,
    /// Something that is not known to be this filesystem's. It was left.
    NotOurs {
        /// What it is.
        why: String,
    },
    /// Somebody else has it in use. It was left as it is.
    InUse(Box<dyn std::error::Error + Send + Sync>),
}

/// What is to wrap a new filesystem's key.
enum Wrapping {
    /// The KMS that is set.
    Kms,
    /// Without one, a local key.
    OrLocal,
    /// This master key, in the KMS that is set.
    Own(String),
}

/// A filesystem whose backing directory is still to be made.
struct Begun {
    fs: FilesystemRecord,
    key: Arc<FilesystemKey>,
    entry: KeyEntry,
    config: ConfigRecord,
}

/// A filesystem that has just been made.
#[derive(Debug, Clone)]
pub struct Created {
    /// Its record.
    pub filesystem: FilesystemRecord,
    /// Whether its key is wrapped locally only, and so exposed.
    pub exposed: bool,
}

/// What became of a deleted filesystem's wrapped key.
#[derive(Debug, Clone)]
pub struct Deleted {
    /// The key.
    pub key_id: KeyId,
    /// Where copies of it lay that are removed.
    pub removed: Vec<String>,
    /// Where copies remain that still open: uploaded snapshots, filesystems that adopted the key, a backing directory that was left.
    pub remaining: Vec<String>,
}

impl KeyManager {
    /// Makes an encrypted filesystem with a new key in `backing`.
    ///
    /// The key is wrapped by the configured KMS; with none set it takes `allow_no_kms`, and then the key is wrapped
    /// locally and marked as exposed. Nothing is left behind on an error.
    ///
    /// # Errors
    /// [`Error::Exists`], [`Error::Invalid`], [`Error::NoKms`], [`Error::Kms`] while the KMS does not wrap.
    pub async fn create_filesystem(
        &self,
        name: FilesystemName,
        backing: PathBuf,
        allow_no_kms: bool,
    ) -> Result<Created, Error> {
        let wrapping = if allow_no_kms { Wrapping::OrLocal } else { Wrapping::Kms };
        self.create(name, backing, wrapping, None).await
    }

    /// As [`KeyManager::create_filesystem`], with a master key of the filesystem's own in the KMS that is set: it hangs on that also
    /// when another one is set for the others. With its first filesystem the master key is proved as [`KeyManager::set_kms`] does.
    ///
    /// # Errors
    /// Also [`Error::NotConfigured`]: no KMS is set.
    pub async fn create_filesystem_under(
        &self,
        name: FilesystemName,
        backing: PathBuf,
        master_key: String,
    ) -> Result<Created, Error> {
        self.create(name, backing, Wrapping::Own(master_key), None).await
    }

    /// As [`KeyManager::create_filesystem_under`] with a master key, or else as [`KeyManager::create_filesystem`], unless this very
    /// request has made the filesystem before: then that one is answered, also by another manager.
    ///
    /// # Errors
    /// Also [`Error::RequestReused`]: another request has the key of this one.
    pub async fn create_filesystem_once(
        &self,
        request: CreateRequest,
        name: FilesystemName,
        backing: PathBuf,
        master_key: Option<String>,
        allow_no_kms: bool,
    ) -> Result<Created, Error> {
        let wrapping = match master_key {
            Some(master_key) => Wrapping::Own(master_key),
            None if allow_no_kms => Wrapping::OrLocal,
            None => Wrapping::Kms,
        };
        self.create(name, backing, wrapping, Some(request)).await
    }

    async fn create(
        &self,
        name: FilesystemName,
        backing: PathBuf,
        wrapping: Wrapping,
        request: Option<CreateRequest>,
    ) -> Result<Created, Error> {
        let _work = self.begin_work(&name).await?;
        if let Some(request) = &request
            && let Some(made) = self.made_by(request).await?
        {
            return Ok(made);
        }
        let request = request.as_ref();
        let begun = match self.begin(&name, &backing, &wrapping, request).await {
            // Another filesystem was the first one with this master key, at the same moment.
            Err(Error::Changed { .. }) if matches!(wrapping, Wrapping::Own(_)) => {
                self.begin(&name, &backing, &wrapping, request).await?
            }
            begun => begun?,
        };
        // A disk takes its time, or hangs: other acts go on meanwhile.
        let Begun { mut fs, key, entry, config } = begun;
        let fs_key = records::fs_key(&name);
        let exposed = entry.exposed;
        let envelope = envelope(&fs.site(), &entry, &config);
        let made = self.parts().volumes.create(&fs.site(), Arc::clone(&key), &envelope).await;
        if let Err(source) = made {
            self.remove_filesystem(fs, false).await?;
            self.audit("fs.create", name.as_str(), Outcome::Failed, &source.to_string());
            let _act = self.begin_act().await;
            self.retire_or_warn().await;
            return Err(Error::Volume { name: name.to_string(), source });
        }
        let _act = self.begin_act().await;
        fs.state = FilesystemState::Ready;
        let _memory = self.change_memory().await;
        self.store().commit(Commit::new().put(&fs_key, records::encode(&fs))).await?;
        self.ring().insert(key.id(), key);
        self.lock_reasons().remove(&name);
        self.audit("fs.create", name.as_str(), Outcome::Done, &fs.key_id.to_string());
        Ok(Created { filesystem: fs, exposed })
    }

    /// Wraps a new key and records it, with the intent to make the filesystem.
    async fn begin(
        &self,
        name: &FilesystemName,
        backing: &Path,
        wrapping: &Wrapping,
        request: Option<&CreateRequest>,
    ) -> Result<Begun, Error> {
        let act = self.begin_act().await;
        self.check_new(name, backing).await?;
        let targets = self.targets().await?;
        let own = match wrapping {
            Wrapping::Own(master_key) => Some(master_key.as_str()),
            _ => None,
        };
        let config_id = targets.as_ref().and_then(|targets| targets.of(own));
        let local = match (&targets, wrapping) {
            (Some(_), _) => None,
            (None, Wrapping::OrLocal) => Some(self.local_config().await?),
            (None, Wrapping::Kms) => return Err(Error::NoKms),
            (None, Wrapping::Own(_)) => return Err(Error::NotConfigured),
        };
        let exposed = local.is_some();
        // A KMS takes its time, or hangs: other acts go on meanwhile. A local key does not, and must not be erased in between.
        let act = exposed.then_some(act);
        let mut sibling = None;
        let config = match (local, config_id, &targets, own) {
            (Some(local), ..) => local,
            (None, Some(id), ..) => self.config(id).await?,
            (None, None, Some(targets), Some(master_key)) => {
                let made = self.sibling(&targets.current.config, master_key).await?;
                sibling.insert(made).record.clone()
            }
            (None, None, ..) => return Err(Error::NotConfigured),
        };
        let kms = match &sibling {
            Some(sibling) => Arc::clone(&sibling.kms),
            None => self.kms(config.config.id).await?,
        };
        let key = Arc::new(FilesystemKey::generate()?);
        let (wrapped, renewed) = self.wrap_new(&config, kms.as_ref(), &key, name).await?;

        let _act = match act {
            Some(act) => act,
            None => self.begin_act().await,
        };
        self.check_new(name, backing).await?;
        if let Some(request) = request {
            // Another one of this key, for another name, at the same moment.
            self.made_by(request).await?;
        }
        let fs_key = records::fs_key(name);
        let fs = FilesystemRecord {
            name: name.clone(),
            key_id: key.id(),
            previous_key: None,
            backing: backing.to_owned(),
            created: self.parts().clock.now(),
            state: FilesystemState::Creating,
            held: false,
            request: request.cloned(),
        };
        let own_master_key = own.map(str::to_owned);
        let entry = KeyEntry { wrapped, exposed, revision: 1, own_master_key };
        let mut intent = Commit::new()
            .absent(&fs_key)
            .put(&fs_key, records::encode(&fs))
            .put(records::wrapped_key(key.id()), records::encode(&entry));
        // Other filesystems may have come and gone meanwhile, and their master keys with them.
        let now = self.targets().await?;
        if targets.as_ref().map(|then| then.current.config.id)
            != now.as_ref().map(|now| now.current.config.id)
            || now.as_ref().and_then(|now| now.of(own)) != config_id
        {
            return Err(Error::Changed { what: "the KMS configuration".to_owned() });
        }
        if let (Some(sibling), Some(then), Some(now)) = (&sibling, &targets, &now) {
            self.check_lies_beside(sibling, &then.current.config, &now.current.config).await?;
        }
        let pointer = now.as_ref().map(|now| &now.pointer);
        intent = as_read(intent, records::CURRENT, pointer);
        match (&sibling, own, pointer) {
            (Some(sibling), Some(master_key), Some(pointer)) => {
                let config_id = config.config.id;
                let own_key = records::own_key(master_key);
                intent = intent
                    .absent(&own_key)
                    .put(own_key, records::encode(&CurrentKms { config_id, change: None }))
                    .put(records::config_key(config_id), records::encode(&sibling.record))
                    .put(records::credential_key(config_id), records::encode(&sibling.credential))
                    .put(pointer.key.clone(), pointer.value.clone());
            }
            (None, Some(master_key), _) => {
                let named = now.as_ref().and_then(|now| now.own_record(master_key));
                intent = named.into_iter().fold(intent, Commit::unchanged);
            }
            _ => {}
        }
        let intent = self.put_renewed(intent, &config, renewed).await;
        let intent = self.raise_epoch(intent).await?;
        self.store().commit(intent).await.map_err(|e| changed(e, "the KMS configuration"))?;
        if let Some(Sibling { record, kms, .. }) = &sibling {
            drop(self.keep_client(kms));
            let KmsConfig { id, address, master_key, .. } = &record.config;
            let detail = format!("{address} {master_key} (for {name})");
            self.audit("kms.configure", &id.to_string(), Outcome::Done, &detail);
        }
        Ok(Begun { fs, key, entry, config })
    }

    /// Removes a filesystem: its data, its record, and the copies of its wrapped key here. Whoever has it open closes it first. One
    /// whose deletion failed is gone on with.
    ///
    /// # Errors
    /// [`Error::BackingAway`]: with its backing directory out of reach the store's is the last wrapped key within reach; nothing is
    /// changed then, unless it had begun before. [`Error::Volume`] with what somebody else has in use: likewise. Another one: it has
    /// begun, and goes on at the next call or [`KeyManager::finish_removals`].
    pub async fn delete_filesystem(&self, name: &FilesystemName) -> Result<Deleted, Error> {
        let _work = self.begin_work(name).await?;
        let (_, fs) = self.recorded_filesystem(name).await?;
        let (removed, away) = self.copies_here(&fs).await?;
        let remaining = self.copies_elsewhere(&fs).await?;
        let act = self.begin_act().await;
        let (record, mut fs) = self.recorded_filesystem(name).await?;
        let begun = fs.state != FilesystemState::Ready;
        // What was begun has lost its copy first of all.
        if let Some(why) = away.filter(|_| !begun) {
            return Err(Error::BackingAway { name: name.to_string(), why });
        }
        if !begun {
            fs.state = FilesystemState::Deleting;
            let intent =
                Commit::new().unchanged(&record).put(record.key.clone(), records::encode(&fs));
            self.store().commit(intent).await.map_err(|e| changed(e, "the filesystem"))?;
            self.lock_reasons().remove(&fs.name);
            self.drop_unshared_keys(&fs).await?;
        }
        drop(act);
        let key_id = fs.key_id;
        self.remove_filesystem(fs, !begun).await?;
        let _act = self.begin_act().await;
        let what = match remaining.is_empty() {
            true => key_id.to_string(),
            false => format!("{key_id}, left: {}", remaining.join(", ")),
        };
        self.audit("fs.delete", name.as_str(), Outcome::Done, &what);
        self.retire_or_warn().await;
        Ok(Deleted { key_id, removed, remaining })
    }

    /// Removes the record of a filesystem, and nothing else: what lies in its backing directory stays as it is, in reach or not, and with
    /// it the local key if that is what opens it.
    pub async fn forget_filesystem(&self, name: &FilesystemName) -> Result<Deleted, Error> {
        let _work = self.begin_work(name).await?;
        let _act = self.begin_act().await;
        let (_, fs) = self.recorded_filesystem(name).await?;
        let mut remaining = self.copies_elsewhere(&fs).await?;
        let mut left = format!("{}, as it is", fs.backing.display());
        // What is half deleted has lost the copy of its key.
        if fs.state == FilesystemState::Ready && self.keep_local_key(&fs).await? {
            left.push_str("; the local key of this node stays for it");
        }
        remaining.push(left);
        self.remove_records(&fs).await?;
        let what = format!("{}, left: {}", fs.key_id, remaining.join(", "));
        self.audit("fs.forget", name.as_str(), Outcome::Done, &what);
        self.retire_or_warn().await;
        Ok(Deleted { key_id: fs.key_id, removed: Vec::new(), remaining })
    }

    /// Where copies of its wrapped key lie that are removed with it, and why one can't be.
    async fn copies_here(
        &self,
        fs: &FilesystemRecord,
    ) -> Result<(Vec<String>, Option<String>), Error> {
        let (mut here, mut away) = (Vec::new(), None);
        for holder in &self.parts().holders {
            for copy in holder.list(&fs.site()).await?.into_iter().filter(|copy| !copy.uploaded) {
                match copy.envelope {
                    Ok(lies) if fs.has_key(lies.wrapped.key_id) => here.push(copy.location),
                    Ok(_) => away = Some(format!("{} is of another key", copy.location)),
                    Err(error) => away = Some(error.to_string()),
                }
            }
        }
        Ok((here, away))
    }

    /// Where copies of its key are that have nothing to do with its backing directory.
    async fn copies_elsewhere(&self, fs: &FilesystemRecord) -> Result<Vec<String>, Error> {
        let mut elsewhere = Vec::new();
        for holder in &self.parts().holders {
            let copies = holder.list(&fs.site()).await?.into_iter().filter(|copy| copy.uploaded);
            elsewhere.extend(copies.map(|copy| copy.location));
        }
        for other in self.filesystems().await? {
            if other.name != fs.name && fs.keys().any(|id| other.has_key(id)) {
                elsewhere.push(format!("the filesystem {}", other.name));
            }
        }
        Ok(elsewhere)
    }

    /// Sees to it that no local key is erased that may be what opens what lies in the backing directory; whether there is one.
    async fn keep_local_key(&self, fs: &FilesystemRecord) -> Result<bool, Error> {
        // What can't be read may name any of them.
        let named = self.configs_in_copies(&fs.site()).await.ok();
        let needed = |record: &ConfigRecord| {
            let id = record.config.id;
            record.config.kind == LOCAL && named.as_ref().is_none_or(|named| named.contains(&id))
        };
        let mut commit = Commit::new();
        for record in self.configs().await?.into_iter().filter(needed) {
            let key = records::config_key(record.config.id);
            commit = commit.put(key, records::encode(&ConfigRecord { kept: true, ..record }));
        }
        let any = !commit.puts.is_empty();
        if any {
            self.store().commit(commit).await?;
        }
        Ok(any)
    }

    /// Removes what is half made or half deleted and nobody is at, as far as it can be; whether that was all.
    pub async fn finish_removals(&self) -> Result<bool, Error> {
        let (mut found, mut left) = (false, false);
        for fs in self.filesystems().await? {
            let Some(_work) = self.try_begin_work(&fs.name) else { continue };
            // It may have come to its end since it was listed.
            let Ok((_, fs)) = self.recorded_filesystem(&fs.name).await else { continue };
            if fs.state == FilesystemState::Ready {
                continue;
            }
            found = true;
            let (name, key_id) = (fs.name.clone(), fs.key_id.to_string());
            match self.remove_filesystem(fs, false).await {
                Ok(()) => self.audit("fs.delete", name.as_str(), Outcome::Done, &key_id),
                Err(_) => left = true,
            }
        }
        if found {
            let _act = self.begin_act().await;
            self.retire_or_warn().await;
        }
        Ok(!left)
    }

    /// Removes the backing directory, then the records: found half done, it is done again. That it failed is recorded, and from then
    /// on a directory with nothing of it counts as one that is away; before, it may be what a removal left that came to its end. One that
    /// somebody else has in use is not deleted after all, if its deletion `begins` here and nothing of it can be gone: what they
    /// have must not vanish later. The caller works on it, and holds no acts' lock.
    async fn remove_filesystem(&self, mut fs: FilesystemRecord, begins: bool) -> Result<(), Error> {
        use FilesystemState::{Creating, Deleting, HalfDeleted, Ready};
        let away = |why| Error::BackingAway { name: fs.name.to_string(), why };
        let volume = |source| Error::Volume { name: fs.name.to_string(), source };
        let mut kept = false;
        let removed = match self.parts().volumes.remove(&fs.site()).await {
            Err(source) => Err(volume(source)),
            Ok(Removal::InUse(source)) => {
                kept = begins;
                Err(volume(source))
            }
            Ok(Removal::NotOurs { why }) if fs.state != Creating => Err(away(why)),
            Ok(Removal::NothingThere) if fs.state == HalfDeleted => {
                Err(away(format!("nothing of it is in {}", fs.backing.display())))
            }
            Ok(_) => Ok(()),
        };
        let _act = self.begin_act().await;
        let Err(error) = removed else { return self.remove_records(&fs).await };
        if fs.state == Deleting {
            fs.state = if kept { Ready } else { HalfDeleted };
            let put = Commit::new().put(records::fs_key(&fs.name), records::encode(&fs));
            if let Err(error) = self.store().commit(put).await {
                tracing::warn!(filesystem = %fs.name, %error, "how far its deletion came can't be recorded");
            }
        }
        if !kept {
            self.note_half_deleted(&fs.name, &error);
        }
        Err(error)
    }

    fn note_half_deleted(&self, name: &FilesystemName, error: &Error) {
        let reason = LockReason {
            code: "half-deleted".into(),
            why: error.to_string(),
            cure: Some(format!(
                "mend that: the node goes on with it within a minute, and coffer fs delete {name} at once; with --forget that removes the record alone"
            )),
            transient: false,
        };
        let before = self.lock_reasons().insert(name.clone(), reason.clone());
        if before.as_ref() != Some(&reason) {
            tracing::warn!(filesystem = %name, why = %reason.why, "the filesystem is half deleted");
        }
    }

    async fn remove_records(&self, fs: &FilesystemRecord) -> Result<(), Error> {
        let mut commit = Commit::new().delete(records::fs_key(&fs.name));
        for id in self.drop_unshared_keys(fs).await? {
            commit = commit.delete(records::wrapped_key(id));
        }
        self.store().commit(self.raise_epoch(commit).await?).await?;
        self.lock_reasons().remove(&fs.name);
        fs.keys().for_each(|id| self.note_copies(&fs.site(), id, Ok(())));
        Ok(())
    }

    /// Puts its keys out of memory, but for one that another filesystem has too; those that it did.
    async fn drop_unshared_keys(&self, fs: &FilesystemRecord) -> Result<Vec<KeyId>, Error> {
        let _memory = self.change_memory().await;
        let mut unshared = Vec::new();
        for id in fs.keys() {
            if !self.is_shared(fs, id).await? {
                self.ring().remove(&id);
                unshared.push(id);
            }
        }
        Ok(unshared)
    }

    /// Whether another filesystem has this key of its too.
    async fn is_shared(&self, fs: &FilesystemRecord, id: KeyId) -> Result<bool, Error> {
        let shares = |other: &FilesystemRecord| other.has_key(id) && other.name != fs.name;
        Ok(self.filesystems().await?.iter().any(shares))
    }

    /// Adds to a commit that the set of filesystems changes, so that an unset at the same moment conflicts.
    pub(crate) async fn raise_epoch(&self, commit: Commit) -> Result<Commit, Error> {
        let read = self.store().get(records::FS_EPOCH).await?;
        let next = read.as_ref().map_or(0, |record| record.version.0);
        let commit = as_read(commit, records::FS_EPOCH, read.as_ref());
        Ok(commit.put(records::FS_EPOCH, next.to_string().into_bytes()))
    }

    /// Refuses a new filesystem whose name or place another one has.
    async fn check_new(&self, name: &FilesystemName, backing: &Path) -> Result<(), Error> {
        if self.store().get(&records::fs_key(name)).await?.is_some() {
            if let Err(deleting @ Error::Deleting { .. }) = self.filesystem(name).await {
                return Err(deleting);
            }
            return Err(Error::Exists { what: format!("the filesystem {name}") });
        }
        self.check_backing(backing).await
    }

    async fn check_backing(&self, backing: &Path) -> Result<(), Error> {
        let bad = |why: String| Error::Invalid {
            input: Some(Input::Backing),
            what: format!("the backing directory {}", backing.display()),
            why,
            cure: "name another one with --backing, by an absolute path and apart from those that coffer fs list shows",
        };
        if !backing.is_absolute() {
            return Err(bad("it must be an absolute path".into()));
        }
        for other in self.filesystems().await? {
            if backing.starts_with(&other.backing) || other.backing.starts_with(backing) {
                return Err(bad(format!("the filesystem {} has its data there", other.name)));
            }
        }
        Ok(())
    }
}

/// The kind of the provider that wraps under a key beside the store.
pub(crate) const LOCAL: &str = "local";

/// The copy of a wrapped key that travels with the data.
pub(crate) fn envelope(
    site: &FilesystemSite,
    entry: &KeyEntry,
    config: &ConfigRecord,
) -> KeyEnvelope {
    KeyEnvelope {
        format: ENVELOPE_FORMAT,
        filesystem: site.name.clone(),
        revision: entry.revision,
        wrapped: entry.wrapped.clone(),
        kms: config.config.clone(),
        exposed: entry.exposed,
        own_master_key: entry.own_master_key.clone(),
    }
}

pub(crate) fn no_answer() -> kms_core::KmsError {
    kms_core::KmsError::new(kms_core::KmsErrorKind::Unreachable, "the KMS answered no item")
}

pub(crate) fn new_local_config() -> kms_core::KmsConfig {
    kms_core::KmsConfig {
        id: KmsConfigId::random(),
        kind: LOCAL.to_owned(),
        address: String::new(),
        master_key: LOCAL.to_owned(),
        settings: Default::default(),
    }
}

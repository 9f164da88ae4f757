//! A new key for a filesystem: its data is re-encrypted in place while it stays readable and writable.
//!
//! | step | the store | the backing directory | the data |
//! |---|---|---|---|
//! | 0. what step 2 writes is prepared | | room for it: the old wrapped key a second time, the new one aside | under the old key |
//! | 1. one commit | both wrapped keys; the filesystem names both; the job | the old wrapped key | under the old key |
//! | 2. before it is opened with both | | the new one in the old one's place, which is there a second time | |
//! | 3. re-encryption | | | more and more of it under the new key |
//! | 4. nothing lies under the old key | | the new one alone | under the new key |
//! | 5. one commit | the new one alone; the job is done | | |
//!
//! The KMS wrapped the new key, and opened it again, before step 1. Each step may be the last one before a crash: step 2 is
//! done again whenever the filesystem is opened or its copies are compared, step 3 looks at what is left, and a second copy of the old key that
//! step 4 removed is put back by step 2 and removed again. Both keys are wrapped anew and moved like any other meanwhile.

use std::sync::Arc;

use kms_core::{Commit, FilesystemKey, FilesystemSite, KeyEnvelope, KeyId, Outcome, Record};
use tokio::time::timeout;

use crate::filesystems::envelope;
use crate::jobs::{JobState, put_job};
use crate::manager::WORK_WITHIN;
use crate::records::{self, ConfigRecord, FilesystemRecord, KeyEntry};
use crate::unlock::changed;
use crate::{Error, FilesystemName, JobRecord, KeyManager};

/// A key that the KMS has wrapped for a filesystem and that is not recorded yet.
#[derive(Debug)]
pub struct NewKey {
    key: Arc<FilesystemKey>,
    entry: KeyEntry,
    /// The filesystem as it was then.
    of: (Record, FilesystemRecord),
    /// The records that name the configuration that wrapped it, and that configuration.
    by: (Vec<Record>, ConfigRecord),
    renewed: Option<ConfigRecord>,
}

impl KeyManager {
    /// Has the KMS wrap a new key for this filesystem, for [`KeyManager::begin_rekey`]; `None` if it is being re-encrypted
    /// already. Changes nothing.
    ///
    /// # Errors
    /// [`Error::Locked`]; [`Error::NotConfigured`], since a key under local wrapping would be exposed again; [`Error::Kms`] while the
    /// KMS does not wrap; [`Error::Holder`] while the backing directory is out of reach.
    pub async fn new_key(&self, name: &FilesystemName) -> Result<Option<NewKey>, Error> {
        let of = self.filesystem_record(name).await?;
        let read = of.0.clone();
        match self.new_key_of(name, of).await {
            // What is being removed can fail at anything.
            Err(error) => Err(self.refuse_changed(name, &read).await.err().unwrap_or(error)),
            new => new,
        }
    }

    async fn new_key_of(
        &self,
        name: &FilesystemName,
        of: (Record, FilesystemRecord),
    ) -> Result<Option<NewKey>, Error> {
        self.keys(name).await?;
        let own_master_key = self.key_entry(of.1.key_id).await?.1.own_master_key;
        let by = self.target_of(own_master_key.as_deref()).await?;
        if of.1.previous_key.is_some() {
            return Ok(None);
        }
        for holder in &self.parts().holders {
            for copy in holder.list(&of.1.site()).await? {
                copy.envelope?;
            }
        }
        let kms = self.kms(by.1.config.id).await?;
        let key = Arc::new(FilesystemKey::generate()?);
        let (wrapped, renewed) = self.wrap_new(&by.1, kms.as_ref(), &key, name).await?;
        let entry = KeyEntry { wrapped, exposed: false, revision: 1, own_master_key };
        Ok(Some(NewKey { key, entry, of, by, renewed }))
    }

    /// Refuses a filesystem that is another than it was when its record was `read`.
    async fn refuse_changed(&self, name: &FilesystemName, read: &Record) -> Result<(), Error> {
        let (now, _) = self.filesystem_record(name).await?;
        match now.version == read.version {
            true => Ok(()),
            false => Err(Error::Changed { what: format!("the filesystem {name}") }),
        }
    }

    /// What wraps the keys that have this master key of their own, or none, with the records that say so.
    async fn target_of(&self, own: Option<&str>) -> Result<(Vec<Record>, ConfigRecord), Error> {
        let Some(targets) = self.targets().await? else { return Err(Error::NotConfigured) };
        let config_id = targets.of(own).ok_or(Error::NotConfigured)?;
        let named = own.and_then(|own| targets.own_record(own)).cloned();
        let named = named.into_iter().chain([targets.pointer]).collect();
        Ok((named, self.config(config_id).await?))
    }

    /// Gives a filesystem its new key, and records the job that re-encrypts it; `new` is what [`KeyManager::new_key`] answered.
    ///
    /// # Errors
    /// [`Error::Busy`] while keys are being moved; [`Error::Changed`] when the filesystem or the KMS is another since, or
    /// [`Error::Unknown`], [`Error::Deleting`] when it is gone or about to be;
    /// [`Error::Volume`] when the backing directory can't take the copy of the new key. Nothing is changed then.
    pub async fn begin_rekey(
        &self,
        name: &FilesystemName,
        new: Option<NewKey>,
        job: &JobRecord,
    ) -> Result<(), Error> {
        // A move that runs takes the copies of the filesystem's key for all that there are.
        let moves = timeout(WORK_WITHIN, self.moves.lock()).await;
        let busy =
            |_| Error::Busy { what: "a move of keys, or a comparison of their copies,".into() };
        let _moves = moves.map_err(busy)?;
        let _work = self.begin_work(name).await?;
        if let Some(new) = &new {
            self.refuse_changed(name, &new.of.0).await?;
            self.prepare_rekey(new).await?;
        }
        let _act = self.begin_act().await;
        let Some(NewKey { key, entry, of: (record, mut fs), by: (named, config), renewed }) = new
        else {
            let (record, fs) = self.filesystem_record(name).await?;
            if fs.previous_key.is_none() {
                return Err(Error::Changed { what: format!("the key of {name}") });
            }
            return self.commit_rekey(put_job(Commit::new().unchanged(&record), job)?, name).await;
        };
        let old = fs.key_id;
        (fs.previous_key, fs.key_id) = (Some(old), key.id());
        let commit = named
            .iter()
            .fold(Commit::new().unchanged(&record), Commit::unchanged)
            .put(record.key.clone(), records::encode(&fs))
            .put(records::wrapped_key(key.id()), records::encode(&entry));
        let commit = self.put_renewed(put_job(commit, job)?, &config, renewed).await;
        // Whoever sets or removes a KMS at this moment has not counted the new key.
        let commit = self.raise_epoch(commit).await?;
        let _memory = self.change_memory().await;
        self.commit_rekey(commit, name).await?;
        self.ring().insert(key.id(), key);
        let what = format!("from {old} to {}", fs.key_id);
        self.audit("fs.rekey", name.as_str(), Outcome::Begun, &what);
        Ok(())
    }

    /// Once the new key is recorded the filesystem is not opened before the directory has both copies: on a full disk that would be
    /// never.
    async fn prepare_rekey(&self, new: &NewKey) -> Result<(), Error> {
        let (fs, (_, config)) = (&new.of.1, &new.by);
        let (key_id, previous) = (new.key.id(), Some(fs.key_id));
        let site = FilesystemSite { key_id, previous, ..fs.site() };
        let from = self.envelope_of(&site, fs.key_id).await?;
        let to = envelope(&site, &new.entry, config);
        let prepared = self.parts().volumes.prepare_rekey(&site, &from, &to).await;
        prepared.map_err(|source| Error::Volume { name: site.name, source })
    }

    /// Sees to it that the backing directory of a filesystem that is being re-encrypted has both wrapped keys. To be called
    /// before it is opened with both: nothing may lie under a key of which no copy is there. Nothing is to do for another one.
    ///
    /// # Errors
    /// [`Error::Volume`].
    pub async fn settle_rekey(&self, name: &FilesystemName) -> Result<(), Error> {
        let _work = self.begin_work(name).await?;
        let fs = self.filesystem(name).await?;
        self.bring_along(&fs.site()).await
    }

    /// As [`Self::settle_rekey`].
    pub(crate) async fn bring_along(&self, site: &FilesystemSite) -> Result<(), Error> {
        let Some(previous) = site.previous else { return Ok(()) };
        let from = self.envelope_of(site, previous).await?;
        let to = self.envelope_of(site, site.key_id).await?;
        let brought = self.parts().volumes.begin_rekey(site, &from, &to).await;
        brought.map_err(|source| Error::Volume { name: site.name.clone(), source })
    }

    /// Whether the current key of a filesystem has lain under local wrapping.
    ///
    /// # Errors
    /// [`Error::Unknown`]; [`Error::Record`]; [`Error::Store`].
    pub async fn has_exposed_key(&self, name: &FilesystemName) -> Result<bool, Error> {
        let (_, fs) = self.filesystem_record(name).await?;
        Ok(self.key_entry(fs.key_id).await?.1.exposed)
    }

    async fn envelope_of(&self, site: &FilesystemSite, key: KeyId) -> Result<KeyEnvelope, Error> {
        let (_, entry) = self.key_entry(key).await?;
        let config = self.config(entry.wrapped.config_id).await?;
        Ok(envelope(site, &entry, &config))
    }

    /// Lets the previous key of a filesystem go, under which nothing lies any more, and records the job that saw to that. A key that
    /// another filesystem has too stays for that one. Whoever still holds the key's `Arc` must let it go. Doing it twice does no harm.
    ///
    /// # Errors
    /// [`Error::Volume`]: the backing directory has the old wrapped key still.
    pub async fn end_rekey(&self, name: &FilesystemName, job: &JobRecord) -> Result<(), Error> {
        // A move that runs would put back what is removed here.
        let _moves = self.moves.lock().await;
        let _work = self.begin_work(name).await?;
        let fs = self.filesystem(name).await?;
        if fs.previous_key.is_some() {
            // While nothing can be recorded nothing is removed, which would have to be put back if the filesystem is opened meanwhile.
            let running = JobRecord { state: JobState::Running, ended: None, ..job.clone() };
            self.save_job(&running).await?;
            let ended = self.parts().volumes.end_rekey(&fs.site()).await;
            ended.map_err(|source| Error::Volume { name: name.to_string(), source })?;
            // What was noted of the new key's copy, such as that its disk was full, may hold no more.
            let entry = self.key_entry(fs.key_id).await?.1;
            let config = Arc::new(self.config(entry.wrapped.config_id).await?);
            let site = FilesystemSite { previous: None, ..fs.site() };
            let (_, _noted) = self.renew_copies(site, entry, config).await;
        }
        let _act = self.begin_act().await;
        let (record, mut fs) = self.filesystem_record(name).await?;
        let commit = put_job(Commit::new().unchanged(&record), job)?;
        let Some(old) = fs.previous_key.take() else {
            return self.commit_rekey(commit, name).await;
        };
        let memory = self.change_memory().await;
        let others = self.filesystems().await?;
        let others: Vec<_> =
            others.iter().filter(|other| other.has_key(old) && other.name != fs.name).collect();
        let mut commit = commit.put(record.key.clone(), records::encode(&fs));
        if others.is_empty() {
            commit = commit.delete(records::wrapped_key(old));
        }
        self.commit_rekey(commit, name).await?;
        if !others.iter().any(|other| other.may_open()) {
            self.ring().remove(&old);
        }
        drop(memory);
        self.note_copies(&fs.site(), old, Ok(()));
        let what = format!("from {old} to {}", fs.key_id);
        self.audit("fs.rekey", name.as_str(), Outcome::Done, &what);
        self.retire_or_warn().await;
        Ok(())
    }

    async fn commit_rekey(&self, commit: Commit, name: &FilesystemName) -> Result<(), Error> {
        let what = format!("the filesystem {name}, or the KMS,");
        self.store().commit(commit).await.map_err(|e| changed(e, &what))?;
        Ok(())
    }
}

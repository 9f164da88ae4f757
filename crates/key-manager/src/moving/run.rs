//! One run of a move: each key to its target, batch by batch, and then its copies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use futures::{StreamExt as _, stream};
use kms_core::{
    Commit, FilesystemKey, KeyId, KeyVersion, Kms, KmsConfigId, KmsError, Record, StoreError,
    WrappedKey,
};

use super::{MoveReport, MoveSpec, Purpose, unknown};
use crate::filesystems::LOCAL;
use crate::jobs::{JobControl, Progress};
use crate::manager::key_entry_of;
use crate::records::{self, ConfigRecord, KeyEntry};
use crate::unlock::{DISKS_AT_ONCE, changed};
use crate::{Error, KeyManager};

/// Keys in one batch. Small enough that a stop or a crash costs little, large enough that round trips do not count.
const BATCH: usize = 2500;

/// Keys that were wrapped, or why one was not.
type Wrapped = Vec<(KeyId, Result<WrappedKey, KmsError>)>;

/// Keys that go to one configuration.
struct Part {
    target: KmsConfigId,
    keys: Vec<String>,
    with_canary: bool,
}

/// One run of a move.
pub(super) struct Run<'a> {
    manager: &'a KeyManager,
    config: Arc<ConfigRecord>,
    target: Arc<dyn Kms>,
    newest: KeyVersion,
    /// Keys in all. Progress tells of them once the first of them can be brought along, or not.
    total: u64,
    /// The job as it was when this run began. Once another has taken its place nothing more is committed.
    job: Record,
    control: &'a dyn JobControl,
    pub(super) progress: Progress,
    pub(super) report: MoveReport,
}

impl<'a> Run<'a> {
    pub(super) async fn begin(
        manager: &'a KeyManager,
        spec: &MoveSpec,
        job: Record,
        control: &'a dyn JobControl,
    ) -> Result<Self, Error> {
        Ok(Self {
            manager,
            config: Arc::new(manager.config(spec.target).await?),
            target: manager.kms(spec.target).await?,
            newest: KeyVersion(0),
            total: 0,
            job,
            control,
            progress: Progress::default(),
            report: MoveReport::default(),
        })
    }

    pub(super) async fn all(&mut self, spec: &MoveSpec) -> Result<(), Error> {
        for part in self.parts(spec).await? {
            let target = part.target;
            match self.bring(&part).await {
                // Its filesystems can't be brought along, and hold the others up no longer.
                Err(Error::Kms(error)) if target != spec.target && !error.kind().is_transient() => {
                    self.fail_all(&part.keys, &error).await?;
                }
                brought => brought?,
            }
            if self.report.stopped {
                break;
            }
        }
        Ok(())
    }

    /// The keys, by where they go. What most of them hang on comes last: where that can't be asked the job waits, and the others have
    /// been brought along.
    async fn parts(&mut self, spec: &MoveSpec) -> Result<Vec<Part>, Error> {
        let only = match &spec.only {
            Some(name) => match self.manager.filesystem(name).await {
                Ok(filesystem) => {
                    Some(filesystem.keys().map(records::wrapped_key).collect::<Vec<_>>())
                }
                // Deleted since it began, and its key with it.
                Err(Error::Unknown { .. } | Error::Deleting { .. }) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            },
            None => None,
        };
        let records = self.manager.key_records().await?;
        // Read after the keys, so that no key is seen without its target.
        let targets = match spec.purpose {
            Purpose::Downgrade => None,
            _ => Some(self.manager.targets().await?.ok_or(Error::NotConfigured)?),
        };
        let mut keys: BTreeMap<KmsConfigId, Vec<String>> = BTreeMap::from([(spec.target, vec![])]);
        let mut of_others: HashSet<KmsConfigId> = HashSet::new();
        for record in records {
            let own = key_entry_of(&record).ok().and_then(|entry| entry.own_master_key);
            let target = match &targets {
                None => Some(spec.target),
                Some(targets) => targets.of(own.as_deref()),
            };
            if only.as_ref().is_some_and(|only| !only.contains(&record.key)) {
                of_others.extend(target);
                continue;
            }
            self.total += 1;
            match target {
                Some(target) => keys.entry(target).or_default().push(record.key),
                None => self.fail(&record.key, &unknown(own.as_deref()).chain()),
            }
        }
        // A canary stays with the keys that are left: of one filesystem's key it goes along only if nothing else has its master key.
        let for_all = targets.map(|targets| targets.current.config.id);
        let with_canary = |target: KmsConfigId| {
            only.is_none() || (for_all != Some(target) && !of_others.contains(&target))
        };
        let mut parts: Vec<Part> = keys
            .into_iter()
            .map(|(target, keys)| Part { target, keys, with_canary: with_canary(target) })
            .collect();
        parts.sort_by_key(|part| part.target == spec.target);
        Ok(parts)
    }

    async fn bring(&mut self, part: &Part) -> Result<(), Error> {
        self.config = Arc::new(self.manager.config(part.target).await?);
        // Nothing is current before the newest version is known.
        self.newest = KeyVersion(u64::MAX);
        self.target = self.manager.kms(part.target).await?;
        // A job that is taken up again can meet another master key than the one that it began with.
        self.manager.prove_identity(&self.config, self.target.as_ref()).await?;
        self.newest = self.target.master_key().await?.latest_version;
        self.progress.items_total = self.total;
        for batch in part.keys.chunks(BATCH) {
            if self.control.stop_requested() {
                self.report.stopped = true;
                return Ok(());
            }
            self.batch(batch).await?;
            self.control.progress(self.progress);
        }
        if part.with_canary {
            self.renew_canary().await?;
        }
        Ok(())
    }

    /// Those of these keys that are not where they should be can't be brought there.
    async fn fail_all(&mut self, keys: &[String], error: &KmsError) -> Result<(), Error> {
        self.progress.items_total = self.total;
        let sites = self.manager.sites_by_key().await?;
        for key in keys {
            let Some(record) = self.manager.store().get(key).await? else { continue };
            let Ok(entry) = key_entry_of(&record) else { continue };
            if self.is_current(&entry) {
                continue;
            }
            let id = entry.wrapped.key_id;
            let what = match sites.get(&id).and_then(|sites| sites.first()) {
                Some(site) => site.name.clone(),
                None => id.to_string(),
            };
            self.fail(&what, &error.chain());
        }
        Ok(())
    }

    /// Brings these keys and their copies to the target. What is deleted meanwhile is passed over.
    async fn batch(&mut self, keys: &[String]) -> Result<(), Error> {
        let store = self.manager.store();
        let mut pending: Vec<(Record, KeyEntry)> = Vec::new();
        let mut current: Vec<KeyEntry> = Vec::new();
        for key in keys {
            let Some(record) = store.get(key).await? else { continue };
            match key_entry_of(&record) {
                Ok(entry) if self.is_current(&entry) => {
                    self.report.already += 1;
                    current.push(entry);
                }
                Ok(entry) => pending.push((record, entry)),
                Err(error) => self.fail(key, &error.to_string()),
            }
        }
        if !pending.is_empty() {
            current.extend(self.wrap_anew(pending).await?);
        }
        self.renew_copies(current).await
    }

    /// Brings the copies of these keys to what the store says. With that a key is done.
    async fn renew_copies(&mut self, current: Vec<KeyEntry>) -> Result<(), Error> {
        let began = Instant::now();
        let sites = self.manager.sites_by_key().await?;
        let (manager, config) = (self.manager, Arc::clone(&self.config));
        let each = current.into_iter().map(|entry| {
            let of_this = sites.get(&entry.wrapped.key_id).into_iter().flatten().cloned();
            join_all(
                of_this.map(|site| manager.renew_copies(site, entry.clone(), Arc::clone(&config))),
            )
        });
        let mut renewed = stream::iter(each).buffer_unordered(DISKS_AT_ONCE);
        let mut failed = Vec::new();
        while let Some(of_key) = renewed.next().await {
            for (site, renewed) in of_key {
                match renewed {
                    Ok(replaced) => self.report.copies += replaced,
                    Err(error) => failed.push((site.name, error.to_string())),
                }
            }
            self.progress.items_done += 1;
            self.control.progress(self.progress);
        }
        drop(renewed);
        self.report.copies_took += began.elapsed();
        if failed.is_empty() {
            return Ok(());
        }
        // A copy that went with its filesystem is no failure.
        let there = self.manager.sites_by_key().await?;
        let there: HashSet<&str> =
            there.values().flatten().map(|site| site.name.as_str()).collect();
        failed.retain(|(name, _)| there.contains(name.as_str()));
        // Not in the order in which the disks answered.
        failed.sort();
        failed.iter().for_each(|(name, why)| self.fail(name, why));
        Ok(())
    }

    fn is_current(&self, entry: &KeyEntry) -> bool {
        entry.wrapped.config_id == self.config.config.id
            && entry.wrapped.ciphertext.version >= self.newest
    }

    /// Wraps, proves and commits. Answers the entries that are now recorded.
    async fn wrap_anew(
        &mut self,
        pending: Vec<(Record, KeyEntry)>,
    ) -> Result<Vec<KeyEntry>, Error> {
        let old: Vec<WrappedKey> = pending.iter().map(|(_, e)| e.wrapped.clone()).collect();
        let mut wrapped: HashMap<KeyId, Result<WrappedKey, KmsError>> = HashMap::new();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|w| w.config_id == self.config.config.id);
        let target = self.target.as_ref();
        let answers = self.manager.rewrap_keys(target, &here, &subjects(&here)).await?;
        let mut refused = Vec::new();
        for (old, answer) in here.iter().zip(answers) {
            // What is too old for the KMS, or damaged, has its key in memory still while the filesystem is open.
            if answer.is_err()
                && let Some(key) = self.manager.unlocked(old.key_id)
            {
                refused.push(key);
            } else {
                wrapped.insert(old.key_id, answer);
            }
        }
        wrapped.extend(self.wrap(&refused).await?);
        wrapped.extend(self.carry_over(elsewhere).await?);

        let candidates: Vec<WrappedKey> =
            wrapped.values().filter_map(|answer| answer.as_ref().ok().cloned()).collect();
        let mut proved = HashSet::new();
        let opened = self.manager.prove_keys(target, &candidates, "newly wrapped").await?;
        for (candidate, opened) in candidates.iter().zip(opened) {
            match opened {
                Ok(key) if self.is_the_same(&key) => {
                    proved.insert(candidate.key_id);
                }
                Ok(_) => self.fail(
                    &candidate.key_id.to_string(),
                    "the newly wrapped key opens to another key than the one in use",
                ),
                Err(error) => self.fail(&candidate.key_id.to_string(), &error.chain()),
            }
        }

        // Another master key takes keys from memory as well as this one does, and opens what it wrapped.
        self.manager.prove_identity(&self.config, self.target.as_ref()).await?;
        let mut changes: Vec<(Record, KeyEntry)> = Vec::new();
        for (record, entry) in pending {
            match wrapped.remove(&entry.wrapped.key_id) {
                Some(Ok(new)) if proved.contains(&new.key_id) => {
                    match entry.rewrapped(new, self.config.config.kind == LOCAL) {
                        Ok(entry) => changes.push((record, entry)),
                        Err(error) => {
                            self.fail(&entry.wrapped.key_id.to_string(), &with_cure(&error))
                        }
                    }
                }
                Some(Err(error)) => self.fail(&entry.wrapped.key_id.to_string(), &error.chain()),
                _ => {}
            }
        }
        self.commit(changes).await
    }

    /// Wraps keys of other configurations under the target, from memory where they are open.
    async fn carry_over(&self, elsewhere: Vec<WrappedKey>) -> Result<Wrapped, Error> {
        let mut answers = Vec::new();
        let mut keys: Vec<Arc<FilesystemKey>> = Vec::new();
        let mut closed: HashMap<KmsConfigId, Vec<WrappedKey>> = HashMap::new();
        for wrapped in elsewhere {
            match self.manager.unlocked(wrapped.key_id) {
                Some(key) => keys.push(key),
                None => closed.entry(wrapped.config_id).or_default().push(wrapped),
            }
        }
        for (config_id, wrapped) in closed {
            let kms = self.manager.kms(config_id).await?;
            let opened =
                self.manager.unwrap_keys(kms.as_ref(), &wrapped, &subjects(&wrapped)).await?;
            for (wrapped, key) in wrapped.iter().zip(opened) {
                match key {
                    Ok(key) => keys.push(Arc::new(key)),
                    Err(error) => answers.push((wrapped.key_id, Err(error))),
                }
            }
        }
        answers.extend(self.wrap(&keys).await?);
        Ok(answers)
    }

    async fn wrap(&self, keys: &[Arc<FilesystemKey>]) -> Result<Wrapped, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let subjects: Vec<_> = keys.iter().map(|key| key.id().to_string()).collect();
        let wrapped = self.manager.wrap_keys(self.target.as_ref(), keys, &subjects).await?;
        Ok(keys.iter().map(|key| key.id()).zip(wrapped).collect())
    }

    /// Compares with the key in use, where it is in memory; its id has been compared already.
    fn is_the_same(&self, opened: &FilesystemKey) -> bool {
        match self.manager.unlocked(opened.id()) {
            Some(used) => used.expose(|a| opened.expose(|b| a == b)),
            None => true,
        }
    }

    /// Commits the batch at once. A record that changed meanwhile (its filesystem was deleted) drops out.
    async fn commit(
        &mut self,
        mut changes: Vec<(Record, KeyEntry)>,
    ) -> Result<Vec<KeyEntry>, Error> {
        loop {
            let commit = Commit::new().unchanged(&self.job);
            let commit = changes.iter().fold(commit, |commit, (record, entry)| {
                commit.unchanged(record).put(record.key.clone(), records::encode(entry))
            });
            match self.manager.store().commit(commit).await {
                Ok(_) => break,
                Err(StoreError::Conflict { key }) if changes.iter().any(|(r, _)| r.key == key) => {
                    changes.retain(|(record, _)| record.key != key);
                }
                Err(error) => return Err(changed(error, "the job that moves the keys")),
            }
        }
        self.report.moved += changes.len() as u64;
        Ok(changes.into_iter().map(|(_, entry)| entry).collect())
    }

    async fn renew_canary(&self) -> Result<(), Error> {
        let key = records::config_key(self.config.config.id);
        let Some(record) = self.manager.store().get(&key).await? else { return Ok(()) };
        let config: ConfigRecord = records::decode(&record)?;
        if config.canary.is_none() {
            return Ok(());
        }
        let renewed = self.manager.with_new_canary(&config, self.target.as_ref()).await?;
        // After the new one is made: the old one still opens, so it is the same master key that made it.
        self.manager.prove_identity(&config, self.target.as_ref()).await?;
        let _act = self.manager.begin_act().await;
        let put = Commit::new()
            .unchanged(&self.job)
            .unchanged(&record)
            .put(key, records::encode(&renewed));
        self.manager.store().commit(put).await.map_err(|e| changed(e, "the KMS configuration"))?;
        Ok(())
    }

    fn fail(&mut self, what: &str, why: &str) {
        tracing::warn!(what, why, "a key or a copy of it was not brought along");
        self.progress.items_failed += 1;
        self.report.failed.push(format!("{what}: {why}"));
    }
}

fn with_cure(error: &Error) -> String {
    error.cure().map_or_else(|| error.to_string(), |cure| format!("{error}; then {cure}"))
}

/// What the audit log calls these keys.
fn subjects(wrapped: &[WrappedKey]) -> Vec<String> {
    wrapped.iter().map(|wrapped| wrapped.key_id.to_string()).collect()
}

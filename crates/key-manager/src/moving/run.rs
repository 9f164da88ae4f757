//! One run of a move: each key to its target, batch by batch, and then its copies.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::future::join;
use futures::{StreamExt as _, stream};
use kms_core::{
    Commit, FilesystemKey, KeyId, KeyVersion, Kms, KmsConfigId, KmsError, Record, StoreError,
    WrappedKey,
};

use super::{BATCH, MoveReport, MoveSpec, Purpose, unknown};
use crate::filesystems::LOCAL;
use crate::jobs::{JobControl, Progress};
use crate::manager::key_entry_of;
use crate::records::{self, ConfigRecord, KeyEntry};
use crate::unlock::{DISKS_AT_ONCE, changed};
use crate::{Error, FilesystemName, KeyManager};

/// Keys that were wrapped, or why one was not.
type Wrapped = Vec<(KeyId, Result<WrappedKey, KmsError>)>;

/// Under which record a key that can't be brought along lies, and why it can't.
type Failure = (String, String);

/// Keys of one batch that were read, and wrapped anew where that was needed.
#[derive(Default)]
struct Batch {
    /// They are where they should be already.
    current: Vec<KeyEntry>,
    /// What is to be recorded, and where it lies now.
    changes: Vec<(Record, KeyEntry)>,
    /// Keys that were taken from memory.
    from_memory: HashSet<KeyId>,
    failed: Vec<Failure>,
}

/// Copies that were brought along.
#[derive(Default)]
struct Copied {
    replaced: u64,
    took: Duration,
    /// Of which filesystems they could not be, and why.
    failed: Vec<(String, String)>,
}

/// Keys that go to one configuration.
struct Part {
    target: KmsConfigId,
    keys: Vec<String>,
    /// How many of them, from the first, were brought along or counted as failed, but for their copies.
    recorded: usize,
    with_canary: bool,
}

/// One run of a move.
pub(super) struct Run<'a> {
    manager: &'a KeyManager,
    config: Arc<ConfigRecord>,
    target: Arc<dyn Kms>,
    newest: KeyVersion,
    /// The filesystems of each key.
    names: HashMap<KeyId, Vec<FilesystemName>>,
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
            names: HashMap::new(),
            total: 0,
            job,
            control,
            progress: Progress::default(),
            report: MoveReport::default(),
        })
    }

    pub(super) async fn all(&mut self, spec: &MoveSpec) -> Result<(), Error> {
        for mut part in self.parts(spec).await? {
            let target = part.target;
            match self.bring(&mut part).await {
                // Its filesystems can't be brought along, and hold the others up no longer.
                Err(Error::Kms(error)) if target != spec.target && !error.kind().is_transient() => {
                    let rest = part.keys.get(part.recorded..).unwrap_or_default();
                    self.fail_rest(rest, &error).await?;
                }
                brought => brought?,
            }
            if self.report.stopped {
                return Ok(());
            }
        }
        // What was deleted meanwhile is neither.
        self.progress.items_total = self.progress.items_done + self.progress.items_failed;
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
        let mut all: Vec<(String, Option<String>)> = Vec::new();
        self.manager
            .each_key_record(|record| {
                let own = key_entry_of(&record).ok().and_then(|entry| entry.own_master_key);
                all.push((record.key, own));
            })
            .await?;
        // Read after the keys, so that no key is seen without its filesystem, or its target.
        for filesystem in self.manager.filesystems().await? {
            for key in filesystem.keys() {
                self.names.entry(key).or_default().push(filesystem.name.clone());
            }
        }
        let targets = match spec.purpose {
            Purpose::Downgrade => None,
            _ => Some(self.manager.targets().await?.ok_or(Error::NotConfigured)?),
        };
        let mut keys: BTreeMap<KmsConfigId, Vec<String>> = BTreeMap::from([(spec.target, vec![])]);
        let mut of_others: HashSet<KmsConfigId> = HashSet::new();
        let mut failed = Vec::new();
        for (key, own) in all {
            let target = match &targets {
                None => Some(spec.target),
                Some(targets) => targets.of(own.as_deref()),
            };
            if only.as_ref().is_some_and(|only| !only.contains(&key)) {
                of_others.extend(target);
                continue;
            }
            self.total += 1;
            match target {
                Some(target) => keys.entry(target).or_default().push(key),
                None => failed.push((key, unknown(own.as_deref()).chain())),
            }
        }
        self.fail_keys(failed).await?;
        // A canary stays with the keys that are left: of one filesystem's key it goes along only if nothing else has its master key.
        let for_all = targets.map(|targets| targets.current.config.id);
        let with_canary = |target: KmsConfigId| {
            only.is_none() || (for_all != Some(target) && !of_others.contains(&target))
        };
        let mut parts: Vec<Part> = keys
            .into_iter()
            .map(|(target, keys)| Part {
                target,
                keys,
                recorded: 0,
                with_canary: with_canary(target),
            })
            .collect();
        parts.sort_by_key(|part| part.target == spec.target);
        Ok(parts)
    }

    async fn bring(&mut self, part: &mut Part) -> Result<(), Error> {
        self.config = Arc::new(self.manager.config(part.target).await?);
        // Nothing is current before the newest version is known.
        self.newest = KeyVersion(u64::MAX);
        self.target = self.manager.kms(part.target).await?;
        // A job that is taken up again can meet another master key than the one that it began with.
        self.manager.prove_identity(&self.config, self.target.as_ref()).await?;
        self.newest = self.target.master_key().await?.latest_version;
        self.progress.items_total = self.total;
        let mut batches = part.keys.chunks(BATCH);
        let mut recorded = Vec::new();
        loop {
            let stop = self.control.stop_requested();
            let batch = if stop { None } else { batches.next() };
            // The KMS and the disks work at the same time: on this batch, and on the copies of the one before.
            let mut progress = self.progress;
            let (wrapped, copied) = join(
                self.wrap_batch(batch.unwrap_or_default()),
                self.renew_copies(std::mem::take(&mut recorded), &mut progress),
            )
            .await;
            self.progress = progress;
            let copied = copied.map(|copied| self.count(copied));
            recorded = self.record(wrapped?).await?;
            part.recorded += batch.map_or(0, <[String]>::len);
            copied?;
            self.control.progress(self.progress);
            if batch.is_none() {
                self.report.stopped = stop && batches.len() > 0;
                break;
            }
        }
        if self.report.stopped {
            return Ok(());
        }
        if part.with_canary {
            self.renew_canary().await?;
        }
        Ok(())
    }

    /// Those of these keys that are not where they should be can't be brought there. The copies of the others can.
    async fn fail_rest(&mut self, keys: &[String], error: &KmsError) -> Result<(), Error> {
        self.progress.items_total = self.total;
        let mut batch = Batch::default();
        for key in keys {
            let Some(record) = self.manager.store().get(key).await? else { continue };
            match key_entry_of(&record) {
                Ok(entry) if self.is_current(&entry) => batch.current.push(entry),
                Ok(_) => batch.failed.push((record.key, error.chain())),
                Err(damaged) => batch.failed.push((record.key, damaged.to_string())),
            }
        }
        let current = self.record(batch).await?;
        let mut progress = self.progress;
        let copied = self.renew_copies(current, &mut progress).await;
        self.progress = progress;
        self.count(copied?);
        Ok(())
    }

    /// Wraps these keys anew, as far as they are not where they should be. What is deleted meanwhile is passed over.
    async fn wrap_batch(&self, keys: &[String]) -> Result<Batch, Error> {
        let mut batch = Batch::default();
        let mut pending: Vec<(Record, KeyEntry)> = Vec::new();
        for key in keys {
            let Some(record) = self.manager.store().get(key).await? else { continue };
            match key_entry_of(&record) {
                Ok(entry) if self.is_current(&entry) => batch.current.push(entry),
                Ok(entry) => pending.push((record, entry)),
                Err(error) => batch.failed.push((record.key, error.to_string())),
            }
        }
        if !pending.is_empty() {
            self.wrap_anew(pending, &mut batch).await?;
        }
        Ok(batch)
    }

    /// Records what was wrapped anew. Answers all keys that are where they should be now.
    async fn record(&mut self, batch: Batch) -> Result<Vec<KeyEntry>, Error> {
        let Batch { mut current, changes, from_memory, failed } = batch;
        self.report.already += current.len() as u64;
        let moved = self.commit(changes).await?;
        let from_memory = moved.iter().filter(|key| from_memory.contains(&key.wrapped.key_id));
        self.report.from_memory += from_memory.count() as u64;
        current.extend(moved);
        self.fail_keys(failed).await?;
        Ok(current)
    }

    /// Brings the copies of these keys to what the store says. With that a key is done.
    async fn renew_copies(
        &self,
        current: Vec<KeyEntry>,
        progress: &mut Progress,
    ) -> Result<Copied, Error> {
        let began = Instant::now();
        let mut copied = Copied::default();
        if current.is_empty() {
            return Ok(copied);
        }
        let each = current.into_iter().map(|entry| self.renew_copies_of(entry));
        let mut renewed = stream::iter(each).buffer_unordered(DISKS_AT_ONCE);
        while let Some(of_key) = renewed.next().await {
            let (replaced, failed) = of_key?;
            copied.replaced += replaced;
            match failed.is_empty() {
                true => progress.items_done += 1,
                false => progress.items_failed += 1,
            }
            copied.failed.extend(failed);
            self.control.progress(*progress);
        }
        drop(renewed);
        // Not in the order in which the disks answered.
        copied.failed.sort();
        copied.took = began.elapsed();
        Ok(copied)
    }

    /// Answers how many copies of this key were replaced, and of which filesystems they could not be, and why.
    async fn renew_copies_of(
        &self,
        entry: KeyEntry,
    ) -> Result<(u64, Vec<(String, String)>), Error> {
        let (mut replaced, mut failed) = (0, Vec::new());
        for name in self.names.get(&entry.wrapped.key_id).into_iter().flatten() {
            let Some(filesystem) = self.manager.ready_filesystem(name).await? else { continue };
            let (site, config) = (filesystem.site(), Arc::clone(&self.config));
            match self.manager.renew_copies(site, entry.clone(), config).await {
                (_, Ok(copies)) => replaced += copies,
                // A copy that went with its filesystem is no failure.
                (site, Err(error)) if self.manager.ready_filesystem(name).await?.is_some() => {
                    failed.push((site.name, error.to_string()));
                }
                _ => {}
            }
        }
        Ok((replaced, failed))
    }

    fn count(&mut self, copied: Copied) {
        self.report.copies += copied.replaced;
        self.report.copies_took += copied.took;
        copied.failed.iter().for_each(|(name, why)| self.tell_failed(name, why));
    }

    fn is_current(&self, entry: &KeyEntry) -> bool {
        entry.wrapped.config_id == self.config.config.id
            && entry.wrapped.ciphertext.version >= self.newest
    }

    /// Wraps and proves.
    async fn wrap_anew(
        &self,
        pending: Vec<(Record, KeyEntry)>,
        batch: &mut Batch,
    ) -> Result<(), Error> {
        let old: Vec<WrappedKey> = pending.iter().map(|(_, e)| e.wrapped.clone()).collect();
        let mut wrapped: HashMap<KeyId, Result<WrappedKey, KmsError>> = HashMap::new();
        let (here, elsewhere): (Vec<_>, Vec<_>) =
            old.into_iter().partition(|w| w.config_id == self.config.config.id);
        let target = self.target.as_ref();
        let answers = self.manager.rewrap_keys(target, &here, &self.subjects(ids(&here))).await?;
        let mut from_memory = Vec::new();
        for (old, answer) in here.iter().zip(answers) {
            // What is too old for the KMS, or damaged, has its key in memory still while the filesystem is open.
            if answer.is_err()
                && let Some(key) = self.manager.unlocked(old.key_id)
            {
                from_memory.push(key);
            } else {
                wrapped.insert(old.key_id, answer);
            }
        }
        let mut closed: HashMap<KmsConfigId, Vec<WrappedKey>> = HashMap::new();
        for wrapped in elsewhere {
            match self.manager.unlocked(wrapped.key_id) {
                Some(key) => from_memory.push(key),
                None => closed.entry(wrapped.config_id).or_default().push(wrapped),
            }
        }
        wrapped.extend(self.wrap(&from_memory, "from memory").await?);
        batch.from_memory.extend(from_memory.iter().map(|key| key.id()));
        wrapped.extend(self.carry_over(closed).await?);

        let candidates: Vec<WrappedKey> =
            wrapped.values().filter_map(|answer| answer.as_ref().ok().cloned()).collect();
        let opened = self.manager.prove_keys(target, &candidates, "newly wrapped").await?;
        let mut unproved: HashMap<KeyId, String> = HashMap::new();
        for (candidate, opened) in candidates.iter().zip(opened) {
            let why = match opened {
                Ok(key) if self.is_the_same(&key) => continue,
                Ok(_) => {
                    "the newly wrapped key opens to another key than the one in use".to_owned()
                }
                Err(error) => error.chain(),
            };
            unproved.insert(candidate.key_id, why);
        }

        // Another master key takes keys from memory as well as this one does, and opens what it wrapped.
        self.manager.prove_identity(&self.config, target).await?;
        for (record, entry) in pending {
            let id = entry.wrapped.key_id;
            let changed = match (wrapped.remove(&id), unproved.remove(&id)) {
                (_, Some(why)) => Err(why),
                (Some(Ok(new)), None) => entry
                    .rewrapped(new, self.config.config.kind == LOCAL)
                    .map_err(|error| with_cure(&error)),
                (Some(Err(error)), None) => Err(error.chain()),
                (None, None) => Err("the KMS did not answer for it".to_owned()),
            };
            match changed {
                Ok(entry) => batch.changes.push((record, entry)),
                Err(why) => batch.failed.push((record.key, why)),
            }
        }
        Ok(())
    }

    /// Has keys opened where they were wrapped, and wraps them under the target.
    async fn carry_over(
        &self,
        closed: HashMap<KmsConfigId, Vec<WrappedKey>>,
    ) -> Result<Wrapped, Error> {
        let mut answers = Vec::new();
        let mut keys: Vec<Arc<FilesystemKey>> = Vec::new();
        for (config_id, wrapped) in closed {
            let kms = self.manager.kms(config_id).await?;
            let subjects = self.subjects(ids(&wrapped));
            let opened = self.manager.unwrap_keys(kms.as_ref(), &wrapped, &subjects).await?;
            for (wrapped, key) in wrapped.iter().zip(opened) {
                match key {
                    Ok(key) => keys.push(Arc::new(key)),
                    Err(error) => answers.push((wrapped.key_id, Err(error))),
                }
            }
        }
        answers.extend(self.wrap(&keys, "").await?);
        Ok(answers)
    }

    async fn wrap(&self, keys: &[Arc<FilesystemKey>], detail: &str) -> Result<Wrapped, Error> {
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let subjects = self.subjects(keys.iter().map(|key| key.id()));
        let wrapped = self.manager.wrap_keys(self.target.as_ref(), keys, &subjects, detail).await?;
        Ok(keys.iter().map(|key| key.id()).zip(wrapped).collect())
    }

    /// What each key is called in the audit log: the filesystem that has it; one without keeps its id.
    fn subjects(&self, keys: impl Iterator<Item = KeyId>) -> Vec<String> {
        let subject = |id| {
            let names = self.names.get(&id).into_iter().flatten().map(FilesystemName::as_str);
            let names = names.collect::<Vec<_>>().join(", ");
            if names.is_empty() { id.to_string() } else { names }
        };
        keys.map(subject).collect()
    }

    /// Compares with the key in use, where it is in memory; its id has been compared already.
    fn is_the_same(&self, opened: &FilesystemKey) -> bool {
        match self.manager.unlocked(opened.id()) {
            Some(used) => used.expose(|a| opened.expose(|b| a == b)),
            None => true,
        }
    }

    /// Commits the batch at once, when no start is being rehearsed. A record that changed meanwhile (its filesystem was deleted)
    /// drops out.
    async fn commit(
        &mut self,
        mut changes: Vec<(Record, KeyEntry)>,
    ) -> Result<Vec<KeyEntry>, Error> {
        let _recorded = self.manager.still.write().await;
        while !changes.is_empty() {
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

    /// A filesystem that is created at the same moment can renew it too: then once more.
    async fn renew_canary(&self) -> Result<(), Error> {
        let key = records::config_key(self.config.config.id);
        loop {
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
                .put(key.clone(), records::encode(&renewed));
            match self.manager.store().commit(put).await {
                Err(StoreError::Conflict { key: lost }) if lost == key => {}
                put => {
                    put.map_err(|e| changed(e, "the KMS configuration"))?;
                    return Ok(());
                }
            }
        }
    }

    /// These keys are told by the names of their filesystems. One that was deleted meanwhile is passed over.
    async fn fail_keys(&mut self, failed: Vec<Failure>) -> Result<(), Error> {
        if failed.is_empty() {
            return Ok(());
        }
        let names: HashMap<String, String> = self
            .names
            .iter()
            .filter_map(|(id, names)| Some((records::wrapped_key(*id), names.first()?.to_string())))
            .collect();
        for (key, why) in failed {
            if self.manager.store().get(&key).await?.is_some() {
                self.progress.items_failed += 1;
                self.tell_failed(names.get(&key).unwrap_or(&key), &why);
            }
        }
        Ok(())
    }

    fn tell_failed(&mut self, what: &str, why: &str) {
        tracing::warn!(what, why, "a key or a copy of it was not brought along");
        self.report.failed.push(format!("{what}: {why}"));
    }
}

fn with_cure(error: &Error) -> String {
    error.cure().map_or_else(|| error.to_string(), |cure| format!("{error}; then {cure}"))
}

/// What the audit log calls these keys.
fn ids(wrapped: &[WrappedKey]) -> impl Iterator<Item = KeyId> {
    wrapped.iter().map(|wrapped| wrapped.key_id)
}

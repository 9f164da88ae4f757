//! Setting, changing and removing the KMS.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use kms_core::{
    Commit, Credential, CredentialStatus, Finding, Kms, KmsConfig, KmsConfigId, KmsErrorKind,
    KmsProvider, MasterKey, Outcome, Record, WrappedKey,
};

use crate::error::listed;
use crate::filesystems::{LOCAL, new_local_config};
use crate::jobs::put_job;
use crate::manager::{key_entry_of, leave};
use crate::moving::{BATCH, Purpose};
use crate::new_kms::Change;
use crate::own_key::{Own, Targets, record_own};
use crate::records::{self, ConfigRecord, CredentialRecord, CurrentKms, KeyEntry};
use crate::unlock::as_read;
use crate::{Error, Expected, JobId, JobRecord, KeyManager, NewKms};

/// What came of it.
#[derive(Debug)]
pub struct Configured {
    /// The configuration that wraps new keys from now on.
    pub config: KmsConfig,
    /// Its master key.
    pub master_key: MasterKey,
    /// Its credential.
    pub credential: CredentialStatus,
    /// What works today and will hurt later.
    pub findings: Vec<Finding>,
    /// Whether a KMS was set before.
    pub updated: bool,
    /// The job that moves the keys or renews their copies, to be run with [`KeyManager::run_move`]; none if there is nothing to do.
    pub job: Option<JobId>,
}

impl KeyManager {
    /// Sets the KMS, or changes it.
    ///
    /// Everything is proved before anything is stored: that the KMS works, and that every filesystem key can go along.
    /// If the new configuration opens the canary and the keys as they lie (the same KMS at a new URL, a new
    /// token), it takes the place of the old one. Otherwise the keys move, as a job, and so do keys that yet another configuration
    /// wraps. A move that has not come to its end, because its target went away, ends with it.
    ///
    /// After a recovery, or while keys move, several configurations are recorded. Where the new one opens what they wrapped it is
    /// they, at a new place or with a new credential, and needs to open no more; its credential serves also those that are reached
    /// in the same way and have none of their own. What it does not open is moved to it once its own KMS has been given a credential.
    ///
    /// Keys with a master key of their own hang on the one of that name where the others go: it takes over, or they move, like the
    /// others.
    ///
    /// # Errors
    /// [`Error::KmsChanged`]: another one is set than was expected, by then or meanwhile.     /// [`Error::Invalid`]: no stored credential
    /// can be kept. [`Error::Kms`] with what is missing; [`Error::OwnKey`] when it is so of a master key that filesystems have of their
    /// own; [`Error::NotAll`] when a key can't go along. Nothing is changed then.
    pub async fn set_kms(&self, new: NewKms) -> Result<Configured, Error> {
        let act = self.begin_act().await;
        let old = self.targets().await?;
        new.expected.is_met_by(old.as_ref())?;
        let old_id = old.as_ref().map(|old| old.current.config.id);
        let epoch = self.store().get(records::FS_EPOCH).await?;
        let (keys, unreadable) = self.key_entries().await?;
        // The KMSs take their time, or hang: other acts go on meanwhile. What they change is noticed when this one is committed.
        drop(act);
        let mut config = KmsConfig {
            id: old_id.unwrap_or_else(KmsConfigId::random),
            kind: new.kind,
            address: new.address,
            master_key: new.master_key,
            settings: new.settings,
        };
        let credential = self.resolved(new.credential, &config, old.as_ref()).await?;
        let provider = Arc::clone(self.provider(&config.kind)?);
        let mut proof = self.prove_master_key(provider.as_ref(), &config, &credential).await?;

        let mut known =
            self.known_configs(&config, proof.kms.as_ref(), &keys, old.as_ref()).await?;
        // If it is several of them, then above all the current one.
        let same = known.iter().filter(|known| known.same.is_some());
        let same = same.map(|known| known.record.config.id);
        let same = same.min_by_key(|id| Some(*id) != old_id);
        let takes_over = same.is_some() && same == old_id;
        let id = match same {
            Some(id) => id,
            None if old.is_some() => KmsConfigId::random(),
            None => config.id,
        };
        if id != config.id {
            config.id = id;
            proof.kms = provider.open(&config, &credential)?;
        }
        let given = Given { provider: provider.as_ref(), config: &config, credential: &credential };
        let own = self.all_own_under(&given, &mut known, &keys, old.as_ref()).await?;
        let goes_to = |key: &KeyEntry| {
            let own = key.own_master_key.as_deref().and_then(|name| own.get(name));
            own.map_or((config.id, same.is_none()), |own| (own.config_id, own.fresh))
        };
        // Keys of yet other configurations go along, such as one under local wrapping.
        let others = keys.iter().any(|key| key.wrapped.config_id != goes_to(key).0);
        let purpose = if takes_over && !others { Purpose::Renew } else { Purpose::Move };
        let relocated = old.as_ref().is_none_or(|old| old.current.config != config);
        let job = ((relocated || others) && !keys.is_empty())
            .then(|| self.new_move(config.id, purpose, None));
        let (commit, mut clients) = self.serve_others(known, &given, old_id, &own).await?;
        clients.push(Arc::clone(&proof.kms));
        clients.extend(own.values().filter_map(|own| Some(Arc::clone(&own.renewed.as_ref()?.1))));
        // One that is recorded brings no key further from being opened.
        let moving: Vec<&KeyEntry> = keys.iter().filter(|key| goes_to(key).1).collect();
        let unreadable = if same.is_none() { unreadable } else { Vec::new() };
        self.check_all_open(&moving, &unreadable, &clients, "the KMS can't be changed").await?;

        let record = self.proved(config.clone(), proof.kms.as_ref(), &proof.master_key).await?;
        let act = self.begin_act().await;
        let credential = CredentialRecord::of(&credential);
        let current = CurrentKms { config_id: config.id, change: Some(Change::new()) };
        let mut commit = record_own(commit, &own, &credential, old.as_ref())
            .put(records::CURRENT, records::encode(&current))
            .put(records::config_key(config.id), records::encode(&record))
            .put(records::credential_key(config.id), records::encode(&credential));
        commit = as_read(commit, records::CURRENT, old.as_ref().map(|old| &old.pointer));
        if !takes_over {
            commit = as_read(commit, records::FS_EPOCH, epoch.as_ref());
        }
        let mut superseded = None;
        if let Some(job) = &job {
            (commit, superseded) = self.supersede_move(commit, &format!("job {}", job.id)).await?;
            commit = put_job(commit, job)?;
        }
        if let Err(error) = self.store().commit(commit).await {
            return Err(self.lost_commit(error, &new.expected).await);
        }
        self.audit_superseded(superseded.as_ref());
        let before: Vec<_> = clients.iter().filter_map(|kms| self.keep_client(kms)).collect();
        let what = format!("{} {} ({purpose:?})", config.address, config.master_key);
        self.audit("kms.configure", &config.id.to_string(), Outcome::Done, &what);
        for (own, _) in own.values().filter_map(|own| own.renewed.as_ref()) {
            let KmsConfig { id, address, master_key, .. } = &own.config;
            let detail = format!("{address} {master_key} (of filesystems' own)");
            self.audit("kms.configure", &id.to_string(), Outcome::Done, &detail);
        }
        if job.is_none() {
            self.retire_or_warn().await;
        }
        drop(act);
        leave(before).await;
        let of_own = own.into_values().flat_map(|own| own.findings);
        let findings = each_once(proof.findings.into_iter().chain(of_own));
        Ok(Configured {
            config,
            master_key: proof.master_key,
            credential: proof.credential,
            findings,
            updated: old.is_some(),
            job: job.map(|job| job.id),
        })
    }

    /// Removes the KMS. With filesystems it takes `allow_downgrade`: their keys are then wrapped locally, as a
    /// job whose id is answered, and are exposed from then on.
    ///
    /// # Errors
    /// [`Error::KmsChanged`] as in [`Self::set_kms`]; [`Error::Encrypted`] while filesystems exist and `allow_downgrade` is not given; [`Error::NotAll`] when a key
    /// can't be opened, so that it would be lost. Nothing is changed then.
    pub async fn unset_kms(
        &self,
        allow_downgrade: bool,
        expected: &Expected,
    ) -> Result<Option<JobId>, Error> {
        let act = self.begin_act().await;
        let epoch = self.store().get(records::FS_EPOCH).await?;
        let old = self.targets().await?;
        expected.is_met_by(old.as_ref())?;
        let Some(old) = old else { return Err(Error::NotConfigured) };
        let filesystems = self.filesystems().await?;
        if !filesystems.is_empty() && !allow_downgrade {
            let names: Vec<_> = filesystems.iter().map(|fs| fs.name.as_str()).take(5).collect();
            return Err(Error::Encrypted { count: filesystems.len(), names: names.join(", ") });
        }
        // As in `set_kms`.
        drop(act);
        if !filesystems.is_empty() {
            let (keys, unreadable) = self.key_entries().await?;
            let keys: Vec<&KeyEntry> = keys.iter().collect();
            self.check_all_open(&keys, &unreadable, &[], "the KMS can't be removed").await?;
        }
        let _act = self.begin_act().await;
        let commit = Commit::new().unchanged(&old.pointer).delete(records::CURRENT);
        let commit =
            old.own().fold(commit, |commit, (name, _)| commit.delete(records::own_key(name)));
        let mut commit = as_read(commit, records::FS_EPOCH, epoch.as_ref());
        let mut job = None;
        if !filesystems.is_empty() {
            let local = self.local_config().await?;
            let record = self.new_move(local.config.id, Purpose::Downgrade, None);
            commit = put_job(commit, &record)?;
            job = Some(record.id);
        }
        let by = job.map_or("the removal of the KMS".to_owned(), |id| format!("job {id}"));
        let (commit, superseded) = self.supersede_move(commit, &by).await?;
        if let Err(error) = self.store().commit(commit).await {
            return Err(self.lost_commit(error, expected).await);
        }
        self.audit_superseded(superseded.as_ref());
        let how =
            if job.is_some() { "downgrade to local wrapping" } else { "no filesystem exists" };
        self.audit("kms.unset", &old.current.config.id.to_string(), Outcome::Done, how);
        if job.is_none() {
            self.retire_or_warn().await;
        }
        Ok(job)
    }

    pub(crate) fn audit_superseded(&self, job: Option<&JobRecord>) {
        if let Some(JobRecord { id, message, .. }) = job {
            self.audit("kms.superseded", &id.to_string(), Outcome::Failed, message);
        }
    }

    /// Asks the KMS to lengthen the credential's life.
    pub async fn renew_credential(&self) -> Result<CredentialStatus, Error> {
        match self.current().await? {
            Some((_, config)) => Ok(self.kms(config.config.id).await?.renew().await?),
            None => Err(Error::NotConfigured),
        }
    }

    /// As [`Self::renew_credential`], for each KMS that is not set any more and on which keys hang still, because a move did not come
    /// to its end: their way back ends with its credential. One that has that of the KMS that is set lives with it.
    pub async fn renew_others(
        &self,
    ) -> Result<Vec<(KmsConfig, Result<CredentialStatus, Error>)>, Error> {
        let targets = self.targets().await?;
        let is_set = |id| targets.as_ref().is_some_and(|targets| targets.has(id));
        let (entries, _) = self.key_entries().await?;
        let named: HashSet<_> = entries.iter().map(|entry| entry.wrapped.config_id).collect();
        let current = targets.as_ref().map(|targets| targets.current.config.id);
        let mut renewed = Vec::new();
        for ConfigRecord { config, .. } in self.configs().await? {
            let id = config.id;
            let other = config.kind != LOCAL && named.contains(&id) && !is_set(id);
            if other && self.has_own_credential(id, current).await? {
                let answer = match self.kms(id).await {
                    Ok(kms) => kms.renew().await.map_err(Error::from),
                    Err(error) => Err(error),
                };
                renewed.push((config, answer));
            }
        }
        Ok(renewed)
    }

    /// The configuration for local wrapping, made if there is none, with its key in place. One whose key is kept wraps nothing more:
    /// that key is never erased.
    pub(crate) async fn local_config(&self) -> Result<ConfigRecord, Error> {
        let existing =
            self.configs().await?.into_iter().find(|c| c.config.kind == LOCAL && !c.kept);
        let record = match existing {
            Some(record) => record,
            None => {
                let record = ConfigRecord {
                    config: new_local_config(),
                    canary: None,
                    versions: BTreeMap::new(),
                    set_at: self.parts().clock.now(),
                    kept: false,
                };
                // The record first: a key file that nothing names would never be erased.
                let put = Commit::new()
                    .put(records::config_key(record.config.id), records::encode(&record));
                self.store().commit(put).await?;
                record
            }
        };
        // A key that some record needs is never made anew: if its file is gone, opening says so.
        let named = |entry: &KeyEntry| entry.wrapped.config_id == record.config.id;
        if !self.key_entries().await?.0.iter().any(named) {
            self.provider(LOCAL)?.provision(&record.config).await?;
        }
        Ok(record)
    }

    /// Every wrapped key, and what can't be read of them.
    pub(crate) async fn key_entries(&self) -> Result<(Vec<KeyEntry>, Vec<Error>), Error> {
        let (mut entries, mut unreadable) = (Vec::new(), Vec::new());
        self.each_key_record(|record| match key_entry_of(&record) {
            Ok(entry) => entries.push(entry),
            Err(error) => unreadable.push(error),
        })
        .await?;
        Ok((entries, unreadable))
    }

    /// The recorded configurations of this kind, as far as they can be read.
    async fn known_configs(
        &self,
        new: &KmsConfig,
        kms: &dyn Kms,
        keys: &[KeyEntry],
        now: Option<&Targets>,
    ) -> Result<Vec<Known>, Error> {
        let mut known = Vec::new();
        for stored in records::all(self.store(), records::CONFIGS).await? {
            let Ok(record) = records::decode::<ConfigRecord>(&stored) else { continue };
            if record.config.kind != new.kind {
                continue;
            }
            // Some filesystems' own master key is another one, by its name.
            let own = now.and_then(|now| now.named_as_own(record.config.id));
            let asked = own.is_none_or(|(name, _)| name == new.master_key);
            let same = asked && self.opens_as_it_lies(&record, new, kms, keys).await?;
            let (own, same) = (own.is_some(), same.then(|| new.clone()));
            known.push(Known { stored, record, own, same });
        }
        Ok(known)
    }

    /// Gives those of the other recorded configurations that what is given serves too its credential, and the place of those that
    /// are the same. Answers that as a commit, with a client for each.
    async fn serve_others(
        &self,
        known: Vec<Known>,
        given: &Given<'_>,
        current: Option<KmsConfigId>,
        own: &BTreeMap<String, Own>,
    ) -> Result<(Commit, Vec<Arc<dyn Kms>>), Error> {
        let (mut commit, mut clients) = (Commit::new(), Vec::new());
        let renewed = |id| own.values().any(|own| own.config_id == id && own.renewed.is_some());
        for Known { stored, mut record, own: was_own, same } in known {
            let id = record.config.id;
            if id == given.config.id || renewed(id) {
                continue;
            }
            // What moves away needs the credential that it was reached with.
            let stays = !was_own || own.values().any(|own| own.config_id == id);
            let current = current.filter(|_| stays);
            if let Some(same) = same {
                record.config = KmsConfig { id, ..same };
            } else if !given.provider.reached_alike(&record.config, given.config)
                || self.has_own_credential(id, current).await?
            {
                continue;
            }
            clients.push(given.provider.open(&record.config, given.credential)?);
            let credential = CredentialRecord::of(given.credential);
            commit = commit
                .unchanged(&stored)
                .put(stored.key, records::encode(&record))
                .put(records::credential_key(id), records::encode(&credential));
        }
        Ok((commit, clients))
    }

    /// Whether a configuration has a credential, and one that it did not get with the current one.
    async fn has_own_credential(
        &self,
        id: KmsConfigId,
        current: Option<KmsConfigId>,
    ) -> Result<bool, Error> {
        let Some(own) = self.store().get(&records::credential_key(id)).await? else {
            return Ok(false);
        };
        let Some(current) = current.filter(|current| *current != id) else { return Ok(true) };
        let of_current = self.store().get(&records::credential_key(current)).await?;
        Ok(of_current.is_none_or(|of_current| of_current.value != own.value))
    }

    /// Whether `kms` opens what the old configuration wrapped: the canary, and every key that opens at all. What nothing opens,
    /// damaged as it is, keeps no KMS and no new token out. With the same address and master key the identity alone decides.
    pub(crate) async fn opens_as_it_lies(
        &self,
        old: &ConfigRecord,
        new: &KmsConfig,
        kms: &dyn Kms,
        keys: &[KeyEntry],
    ) -> Result<bool, Error> {
        use KmsErrorKind::{KeyReplaced, VersionTooOld};
        let same_place =
            old.config.address == new.address && old.config.master_key == new.master_key;
        if same_place && old.canary.is_some() {
            return match self.prove_identity(old, kms).await {
                Ok(()) => Ok(true),
                Err(Error::Kms(e)) if matches!(e.kind(), KeyReplaced | VersionTooOld) => Ok(false),
                Err(error) => Err(error),
            };
        }
        let of_old = keys.iter().map(|entry| &entry.wrapped);
        let of_old = of_old.filter(|wrapped| wrapped.config_id == old.config.id);
        let of_old: Vec<&WrappedKey> = of_old.chain(&old.canary).collect();
        let (mut opened, mut closed) = (0, Vec::new());
        // Another KMS has a reason for each that it does not open.
        for batch in of_old.chunks(BATCH) {
            let batch: Vec<WrappedKey> = batch.iter().copied().cloned().collect();
            let why = "whether a given KMS opens what another one wrapped";
            let answers = self.prove_keys(kms, &batch, why).await?;
            opened += answers.done();
            let answered = batch.into_iter().zip(&answers);
            closed.extend(answered.filter(|(_, answer)| answer.is_err()).map(|(key, _)| key));
        }
        if opened == 0 {
            // With nothing to open, another place is another KMS.
            return Ok(same_place && of_old.is_empty());
        }
        if same_place {
            return Ok(true);
        }
        let is_canary = |w: &WrappedKey| old.canary.as_ref().is_some_and(|c| c.key_id == w.key_id);
        if closed.iter().any(|w| is_canary(w) || self.unlocked(w.key_id).is_some()) {
            return Ok(false);
        }
        // After a recovery there is no token with which the old place could be asked.
        let known = self.store().get(&records::credential_key(old.config.id)).await?.is_some();
        if closed.is_empty() || !known {
            return Ok(true);
        }
        let kms = self.kms(old.config.id).await?;
        match self.prove_keys(kms.as_ref(), &closed, "whether their own KMS opens them").await {
            Ok(answers) => Ok(answers.iter().all(Result::is_err)),
            Err(_) => Ok(false),
        }
    }

    /// Requires that every key is in memory or opens under its own configuration, asked by the one of `clients` that is made for it or
    /// else as it was set.
    pub(crate) async fn check_all_open(
        &self,
        keys: &[&KeyEntry],
        unreadable: &[Error],
        clients: &[Arc<dyn Kms>],
        act: &'static str,
    ) -> Result<(), Error> {
        let closed: Vec<&WrappedKey> = keys
            .iter()
            .map(|entry| &entry.wrapped)
            .filter(|wrapped| self.unlocked(wrapped.key_id).is_none())
            .collect();
        let mut why: Vec<String> = unreadable.iter().map(ToString::to_string).collect();
        let mut failed = unreadable.len();
        let sites = self.sites_by_key().await?;
        for ConfigRecord { config, .. } in self.configs().await? {
            let of_this = closed.iter().filter(|wrapped| wrapped.config_id == config.id);
            let wrapped: Vec<WrappedKey> = of_this.map(|wrapped| (*wrapped).clone()).collect();
            if wrapped.is_empty() {
                continue;
            }
            // One that is being re-encrypted has two keys.
            let mut shut: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
            let given = clients.iter().find(|kms| kms.config().id == config.id);
            let kms = match given {
                Some(kms) => Ok(Arc::clone(kms)),
                None => self.kms(config.id).await,
            };
            let answers = match kms {
                Ok(kms) => {
                    let why = "whether they can go along with another KMS";
                    match self.prove_keys(kms.as_ref(), &wrapped, why).await {
                        Ok(answers) => self.explained(answers, config.id, kms.as_ref()).await,
                        Err(error) => Err(error.into()),
                    }
                }
                Err(error) => Err(error),
            };
            let errors: Vec<Option<String>> = match answers {
                Ok(answers) => answers.iter().map(|a| Some(a.as_ref().err()?.chain())).collect(),
                Err(Error::Kms(error)) => vec![Some(error.chain()); wrapped.len()],
                Err(error) => return Err(error),
            };
            for (wrapped, error) in wrapped.iter().zip(errors) {
                let Some(error) = error else { continue };
                failed += 1;
                let names = sites.get(&wrapped.key_id).into_iter().flatten();
                shut.entry(error).or_default().extend(names.map(|site| site.name.as_str()));
            }
            why.extend(shut.into_iter().map(|(error, names)| {
                let names: Vec<_> = names.into_iter().collect();
                format!(
                    "{}, wrapped by {}: {error}",
                    listed(&names, 20),
                    described(&config, given.is_some())
                )
            }));
        }
        if failed == 0 {
            return Ok(());
        }
        let total = keys.len() + unreadable.len();
        Err(Error::NotAll { act, failed, total, why: why.join("; ") })
    }
}

/// Proofs of several master keys find the same of one credential, each with the time that is left at its moment.
fn each_once(found: impl Iterator<Item = Finding>) -> Vec<Finding> {
    let mut all: Vec<Finding> = Vec::new();
    for finding in found {
        let is_same = |known: &Finding| known.code == finding.code && known.what == finding.what;
        if !all.iter().any(is_same) {
            all.push(finding);
        }
    }
    all
}

/// A configuration that is given.
pub(crate) struct Given<'a> {
    pub(crate) provider: &'a dyn KmsProvider,
    pub(crate) config: &'a KmsConfig,
    pub(crate) credential: &'a Credential,
}

/// A configuration that is recorded already.
pub(crate) struct Known {
    stored: Record,
    pub(crate) record: ConfigRecord,
    /// Whether it is of a master key that filesystems have of their own.
    own: bool,
    /// What opens what it wrapped, of what is given.
    pub(crate) same: Option<KmsConfig>,
}

/// What wraps a key now, and how it was asked: a new token for the same address is for its own keys, unless there was none.
fn described(config: &KmsConfig, with_given: bool) -> String {
    let how = match with_given {
        true => "asked with the token that is given now",
        false => "which was asked as it was set before, with the token of then",
    };
    match config.address.as_str() {
        "" => "the local key".to_owned(),
        address => format!("{:?} at {address}, {how}", config.master_key),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_several_proofs_find_of_one_credential_is_told_once() {
        let ends = |seconds| Finding {
            ends_in: Some(Duration::from_secs(seconds)),
            ..Finding::new("token-not-periodic", "the token ends", "give another")
        };
        let of_key = |name: &str| {
            Finding::new("key-deletable", format!("{name} can be deleted"), "forbid it")
        };
        let found = [ends(100), of_key("a"), ends(99), of_key("b"), of_key("b"), ends(98)];
        assert_eq!(each_once(found.into_iter()), [ends(100), of_key("a"), of_key("b")]);
    }
}

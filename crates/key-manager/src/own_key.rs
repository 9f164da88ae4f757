//! Master keys that filesystems have of their own, beside the one that is set for all.
//!
//! Each is a configuration more: the place, the settings and the credential of the KMS that is set, and another master key.
//! `kms/own/<master key>` names it. It is made with the first filesystem that asks for it, goes along when the KMS is set anew, and
//! is forgotten with the last key that has to hang on it. What a key has to hang on is recorded with the key, and outlives the
//! configuration: also a key that is wrapped locally meanwhile comes back under its own master key, and under no other.
//!
//! Whoever adds one writes `kms/current` too, so that a change of the KMS at the same moment conflicts.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use kms_core::{
    Commit, Finding, Kms, KmsConfig, KmsConfigId, KmsError, KmsErrorKind, MasterKey, Record,
};

use crate::configure::{Given, Known};
use crate::error::listed;
use crate::new_kms::KmsVersion;
use crate::records::{self, ConfigRecord, CredentialRecord, CurrentKms, KeyEntry};
use crate::{Error, KeyManager};

/// What wraps which keys while a KMS is set.
#[derive(Debug)]
pub(crate) struct Targets {
    /// The record that names the KMS that is set, as it was read.
    pub(crate) pointer: Record,
    /// What wraps the keys that have no master key of their own.
    pub(crate) current: ConfigRecord,
    /// Which change set it.
    pub(crate) version: KmsVersion,
    own: BTreeMap<String, (Record, KmsConfigId)>,
}

impl Targets {
    /// The configuration that wraps a key with this master key of its own, or none; `None`: it is not known.
    pub(crate) fn of(&self, own: Option<&str>) -> Option<KmsConfigId> {
        match own {
            Some(name) if name != self.current.config.master_key => {
                self.own.get(name).map(|(_, id)| *id)
            }
            _ => Some(self.current.config.id),
        }
    }

    /// The master keys that are some filesystems' own, and the configuration of each.
    pub(crate) fn own(&self) -> impl Iterator<Item = (&str, KmsConfigId)> {
        self.own.iter().map(|(name, (_, id))| (name.as_str(), *id))
    }

    /// Whether this configuration is to wrap some keys.
    pub(crate) fn has(&self, id: KmsConfigId) -> bool {
        id == self.current.config.id || self.named_as_own(id).is_some()
    }

    /// The record that names this configuration as that of somebody's own master key, with that.
    pub(crate) fn named_as_own(&self, id: KmsConfigId) -> Option<(&str, &Record)> {
        let mut own = self.own.iter();
        own.find(|(_, (_, of))| *of == id).map(|(name, (record, _))| (name.as_str(), record))
    }

    /// The record that names the configuration of this master key.
    pub(crate) fn own_record(&self, name: &str) -> Option<&Record> {
        self.own.get(name).map(|(record, _)| record)
    }
}

/// A configuration for a master key beside the one that is set; proved, and not recorded yet.
pub(crate) struct Sibling {
    pub(crate) record: ConfigRecord,
    pub(crate) credential: CredentialRecord,
    pub(crate) kms: Arc<dyn Kms>,
}

/// What a master key that some filesystems have of their own is when a KMS is set.
pub(crate) struct Own {
    pub(crate) config_id: KmsConfigId,
    /// What is recorded of it; `None`: it stays as it is.
    pub(crate) renewed: Option<(ConfigRecord, Arc<dyn Kms>)>,
    /// Whether nothing hangs on it yet.
    pub(crate) fresh: bool,
    pub(crate) findings: Vec<Finding>,
}

impl KeyManager {
    /// What wraps which keys; `None`: no KMS is set.
    pub(crate) async fn targets(&self) -> Result<Option<Targets>, Error> {
        let Some((pointer, current)) = self.current().await? else { return Ok(None) };
        let mut own = BTreeMap::new();
        for record in records::all(self.store(), records::OWN).await? {
            let CurrentKms { config_id, .. } = records::decode(&record)?;
            let name = record.key.strip_prefix(records::OWN).unwrap_or_default().to_owned();
            own.insert(name, (record, config_id));
        }
        let version = KmsVersion::of(&records::decode(&pointer)?);
        Ok(Some(Targets { pointer, current, version, own }))
    }

    /// Proves a master key that lies where the one that is set does, as setting it would. One that is recorded is not made twice.
    pub(crate) async fn sibling(
        &self,
        current: &KmsConfig,
        master_key: &str,
    ) -> Result<Sibling, Error> {
        let credential = self.credential(current.id).await?;
        let given = credential.credential();
        let provider = self.provider(&current.kind)?;
        let mut config = KmsConfig {
            id: KmsConfigId::random(),
            master_key: master_key.to_owned(),
            ..current.clone()
        };
        let proof = self.prove_master_key(provider.as_ref(), &config, &given).await?;
        let mut kms = proof.kms;
        for known in self.configs().await? {
            if known.config.is_alike(&config)
                && known.canary.is_some()
                && self.prove_identity(&known, kms.as_ref()).await.is_ok()
            {
                kms = provider.open(&known.config, &given)?;
                config = known.config;
                break;
            }
        }
        let record = self.proved(config, kms.as_ref(), &proof.master_key).await?;
        Ok(Sibling { record, credential, kms })
    }

    /// Refuses what was made beside `then`, when what is set now is reached in another way: at a new place, or with a new credential,
    /// that configuration keeps its id.
    pub(crate) async fn check_lies_beside(
        &self,
        sibling: &Sibling,
        then: &KmsConfig,
        now: &KmsConfig,
    ) -> Result<(), Error> {
        match now == then && self.credential(now.id).await? == sibling.credential {
            true => Ok(()),
            false => Err(Error::Changed { what: "the KMS configuration".to_owned() }),
        }
    }

    /// The record of a configuration that has just been proved.
    pub(crate) async fn proved(
        &self,
        config: KmsConfig,
        kms: &dyn Kms,
        master_key: &MasterKey,
    ) -> Result<ConfigRecord, Error> {
        Ok(ConfigRecord {
            config,
            canary: Some(self.make_canary(kms).await?),
            versions: master_key.created.clone(),
            set_at: self.parts().clock.now(),
            kept: false,
        })
    }

    /// What each master key that some filesystems have of their own is under what is given, by its name. `before` is what was set.
    ///
    /// # Errors
    /// [`Error::OwnKey`].
    pub(crate) async fn all_own_under(
        &self,
        given: &Given<'_>,
        known: &mut [Known],
        keys: &[KeyEntry],
        before: Option<&Targets>,
    ) -> Result<BTreeMap<String, Own>, Error> {
        let names = keys.iter().filter_map(|key| key.own_master_key.as_deref());
        let names: BTreeSet<&str> = names.filter(|name| *name != given.config.master_key).collect();
        let mut all = BTreeMap::new();
        for name in names {
            let now = before.and_then(|before| before.of(Some(name)));
            all.insert(name.to_owned(), self.own_under(name, given, known, keys, now).await?);
        }
        Ok(all)
    }

    /// What a master key that some filesystems have of their own is under what is given: what is recorded of it, if that opens as
    /// it lies, or a new configuration for the key of the same name. `now` is the recorded one.
    ///
    /// # Errors
    /// [`Error::OwnKey`]: it is not there, or may not be used. Where the place stays the same a master key that is gone, or is another
    /// one to which not every key can move, keeps no new credential out: it stays as it is, with a finding.
    async fn own_under(
        &self,
        name: &str,
        given: &Given<'_>,
        known: &mut [Known],
        keys: &[KeyEntry],
        now: Option<KmsConfigId>,
    ) -> Result<Own, Error> {
        let mut config = KmsConfig {
            id: KmsConfigId::random(),
            master_key: name.to_owned(),
            ..given.config.clone()
        };
        let of_own: Vec<&KeyEntry> = keys.iter().filter(|key| key.has_own(name)).collect();
        let names = self.names_of(&of_own).await?;
        let in_place = |known: &Known| {
            let id = known.record.config.id;
            Some(id) == now && known.record.config == KmsConfig { id, ..config.clone() }
        };
        let stays = known.iter().any(in_place).then_some(now).flatten();
        let stay = |config_id, code: KmsErrorKind, why: String, cure: &str| Own {
            config_id,
            renewed: None,
            fresh: false,
            findings: vec![Finding::new(
                code.code(),
                format!(
                    "{names}, with the master key {name:?}, can't be unlocked by a node that starts: {why}"
                ),
                cure,
            )],
        };
        let proved = self.prove_master_key(given.provider, &config, given.credential).await;
        let proof = match (proved, stays) {
            (Ok(proof), _) => proof,
            (Err(e), Some(id)) if is_gone(&e) => {
                return Ok(stay(id, e.kind(), e.chain(), e.how_to_mend().unwrap_or_default()));
            }
            (Err(source), _) => {
                let (master_key, source) = (name.to_owned(), Box::new(source));
                return Err(Error::OwnKey { names, master_key, source });
            }
        };
        let mut same = None;
        for known in known.iter_mut().filter(|k| k.same.is_none()) {
            let id = known.record.config.id;
            if known.record.config.master_key == name
                && self.opens_as_it_lies(&known.record, &config, proof.kms.as_ref(), keys).await?
            {
                known.same = Some(config.clone());
                same = same.filter(|same| Some(*same) == now).or(Some(id));
            }
        }
        if let (None, Some(id)) = (same, stays) {
            match self.check_all_open(&of_own, &[], &[], "the master key is another one").await {
                Ok(()) => {}
                Err(Error::NotAll { why, .. }) => {
                    let cure = "restore the KMS from a backup that has the old key. Without one, what is locked holds up what is unlocked still: take the locked ones out with coffer fs delete --forget, which leaves their data for the day when the old key is back, and give coffer fs kms set-vault again, which moves the keys of the others";
                    return Ok(stay(id, KmsErrorKind::KeyReplaced, why, cure));
                }
                Err(error) => return Err(error),
            }
        }
        let mut kms = proof.kms;
        if let Some(id) = same {
            config.id = id;
            kms = given.provider.open(&config, given.credential)?;
        }
        let record = self.proved(config, kms.as_ref(), &proof.master_key).await?;
        Ok(Own {
            config_id: record.config.id,
            renewed: Some((record, kms)),
            fresh: same.is_none(),
            findings: proof.findings,
        })
    }

    /// The filesystems that have these keys, for an error.
    async fn names_of(&self, keys: &[&KeyEntry]) -> Result<String, Error> {
        let sites = self.sites_by_key().await?;
        let ids = keys.iter().map(|key| key.wrapped.key_id);
        let names: BTreeSet<&str> =
            ids.filter_map(|id| sites.get(&id)).flatten().map(|site| site.name.as_str()).collect();
        Ok(listed(&names.into_iter().collect::<Vec<_>>(), 20))
    }
}

/// Adds to a commit what is recorded of master keys of filesystems' own from now on.
pub(crate) fn record_own(
    mut commit: Commit,
    own: &BTreeMap<String, Own>,
    credential: &CredentialRecord,
    before: Option<&Targets>,
) -> Commit {
    for (name, Own { config_id, renewed, .. }) in own {
        let pointer = records::encode(&CurrentKms { config_id: *config_id, change: None });
        commit = commit.put(records::own_key(name), pointer);
        if let Some((record, _)) = renewed {
            commit = commit
                .put(records::config_key(*config_id), records::encode(record))
                .put(records::credential_key(*config_id), records::encode(credential));
        }
    }
    let before = before.into_iter().flat_map(Targets::own).map(|(name, _)| name);
    before
        .filter(|name| !own.contains_key(*name))
        .fold(commit, |commit, name| commit.delete(records::own_key(name)))
}

/// Whether it is the master key that is not there, and not the way to it that is barred.
fn is_gone(error: &KmsError) -> bool {
    matches!(error.kind(), KmsErrorKind::KeyMissing | KmsErrorKind::KeyUnfit)
}

impl KeyEntry {
    /// Whether it is to hang on this master key, whichever is set for the others.
    pub(crate) fn has_own(&self, name: &str) -> bool {
        self.own_master_key.as_deref() == Some(name)
    }
}

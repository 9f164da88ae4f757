//! What an administrator sees of keys and KMS.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use kms_core::{
    AuditEvent, CheckItem, CheckOutcome, CredentialHere, CredentialStatus, Finding, KeyId,
    KeyVersion, Kms, KmsConfig, KmsConfigId, KmsErrorKind, MasterKey, Outcome, Record, UnixMillis,
};
use tracing::instrument;

use crate::error::listed;
use crate::in_use::{InUse, LeftBehind};
use crate::manager::{key_entry_of, read, unknown};
use crate::new_kms::KmsVersion;
use crate::own_key::Targets;
use crate::records::{
    self, ConfigRecord, CredentialKind, FilesystemRecord, FilesystemState, KeyEntry,
};
use crate::unlock::{KEYS_AT_ONCE, KeyState};
use crate::{Error, FilesystemName, KeyManager};

/// A filesystem and its key.
#[derive(Debug, Clone)]
pub struct FilesystemStatus {
    /// Its record.
    pub filesystem: FilesystemRecord,
    /// Whether its key is in memory.
    pub key: KeyState,
    /// The configuration that wraps its key, if that is known.
    pub wrapped_by: Option<Arc<KmsConfig>>,
    /// The master key version that wrapped it.
    pub version: KeyVersion,
    /// The key that it is being re-encrypted from.
    pub previous: Option<PreviousKey>,
    /// The master key that it has of its own, whichever one is set for the others.
    pub own_master_key: Option<String>,
    /// Whether its key, or the one that some of its data lies under still, has ever lain under local wrapping.
    pub exposed: bool,
    /// Why a copy of its wrapped key, and with it perhaps its data, is out of reach or not what it should be, as it was last
    /// found by [`KeyManager::settle_copies`].
    pub copies_behind: Option<String>,
}

impl FilesystemStatus {
    /// What wraps its keys, as far as that is known, and in which version.
    pub(crate) fn wrapped(&self) -> impl Iterator<Item = (&KmsConfig, KeyVersion)> {
        let previous = self.previous.as_ref().map(|key| (&key.wrapped_by, key.version));
        let all = [Some((&self.wrapped_by, self.version)), previous];
        all.into_iter()
            .flatten()
            .filter_map(|(config, version)| Some((config.as_deref()?, version)))
    }
}

/// A key that a filesystem is being re-encrypted from.
#[derive(Debug, Clone)]
pub struct PreviousKey {
    /// It.
    pub id: KeyId,
    /// The configuration that wraps it, if that is known.
    pub wrapped_by: Option<Arc<KmsConfig>>,
    /// The master key version that wrapped it.
    pub version: KeyVersion,
}

/// What a KMS answered.
#[derive(Debug, Clone)]
pub struct LiveKms {
    /// Its master key.
    pub master_key: MasterKey,
    /// Our credential.
    pub credential: CredentialStatus,
    /// Whether it opens what hangs on its master key; if not, a finding says why.
    pub opens: bool,
    /// What of it works today and will hurt later.
    pub findings: Vec<Finding>,
}

/// The KMS as it is recorded, and as it answers.
#[derive(Debug)]
pub struct KmsOverview {
    /// Names what is set, or that nothing is.
    pub version: KmsVersion,
    /// What is set, and since when; `None`: no KMS is set.
    pub config: Option<(KmsConfig, UnixMillis)>,
    /// What shows it who we are.
    pub credential: Option<CredentialKind>,
    /// What the KMS says now, or why it does not answer; `None` also where it was not asked.
    pub live: Option<Result<LiveKms, Error>>,
    /// The master keys beside that one which filesystems have of their own, by name.
    pub own: Vec<OwnMasterKey>,
}

/// A master key that filesystems have of their own.
#[derive(Debug)]
pub struct OwnMasterKey {
    /// Its configuration: where the KMS that is set is, with another master key.
    pub config: KmsConfig,
    /// What the KMS says of it now, or why it does not; `None` where it was not asked: also while the KMS does not answer at all.
    pub live: Option<Result<LiveKey, Error>>,
}

/// What a KMS answered of one master key.
#[derive(Debug, Clone)]
pub struct LiveKey {
    /// It.
    pub master_key: MasterKey,
    /// As [`LiveKms::opens`].
    pub opens: bool,
    /// What of it works today and will hurt later.
    pub findings: Vec<Finding>,
}

impl KeyManager {
    /// Every filesystem with the state of its key, by name. Asks no KMS.
    pub async fn filesystem_statuses(&self) -> Result<Vec<FilesystemStatus>, Error> {
        Ok(self.statuses_of(self.recorded_keys().await?))
    }

    /// As [`KeyManager::filesystem_statuses`] and [`KeyManager::in_use`], of one moment and at the cost of one of them.
    pub async fn survey(&self) -> Result<(Vec<FilesystemStatus>, InUse), Error> {
        let moved_before = self.is_move_under_way().await?;
        let all = self.recorded_keys().await?;
        let in_use = self.in_use_of(&all, moved_before).await?;
        Ok((self.statuses_of(all), in_use))
    }

    /// The first `limit` of those that come after this name, have `text` in theirs and are `wanted`, and whether there are more. Looks at
    /// no more records than that takes.
    pub async fn filesystem_page(
        &self,
        after: &str,
        limit: usize,
        text: &str,
        wanted: impl Fn(&FilesystemStatus) -> bool + Send,
    ) -> Result<(Vec<FilesystemStatus>, bool), Error> {
        const RECORDS: usize = 256;
        let configs = by_id(&self.configs().await?);
        let (mut found, mut at) = (Vec::new(), format!("{}{after}", records::FILESYSTEMS));
        loop {
            let page = self.store().list(records::FILESYSTEMS, Some(&at), RECORDS).await?;
            let name = |record: &Record| record.key[records::FILESYSTEMS.len()..].contains(text);
            for record in page.records.iter().filter(|record| name(record)) {
                let fs = records::decode(record)?;
                let entries = self.entries_of(&fs).await?;
                let Some(status) = self.status(fs, &configs, &entries).filter(&wanted) else {
                    continue;
                };
                if found.len() == limit {
                    return Ok((found, true));
                }
                found.push(status);
            }
            match page.records.last() {
                Some(last) if page.more => at.clone_from(&last.key),
                _ => return Ok((found, false)),
            }
        }
    }

    /// The filesystem with this name, with the state of its key. Asks no KMS.
    ///
    /// # Errors
    /// [`Error::Unknown`].
    pub async fn filesystem_status(
        &self,
        name: &FilesystemName,
    ) -> Result<FilesystemStatus, Error> {
        let (_, fs) = self.recorded_filesystem(name).await?;
        let (configs, entries) = (by_id(&self.configs().await?), self.entries_of(&fs).await?);
        self.status(fs, &configs, &entries).ok_or_else(|| unknown(name))
    }

    fn statuses_of(&self, all: RecordedKeys) -> Vec<FilesystemStatus> {
        let RecordedKeys { configs, entries, filesystems, .. } = all;
        let configs = by_id(&configs);
        filesystems.into_iter().filter_map(|fs| self.status(fs, &configs, &entries)).collect()
    }

    /// One with the state of its key; `None` while it is being made.
    fn status(
        &self,
        filesystem: FilesystemRecord,
        configs: &BTreeMap<KmsConfigId, Arc<KmsConfig>>,
        entries: &BTreeMap<KeyId, KeyEntry>,
    ) -> Option<FilesystemStatus> {
        if filesystem.state == FilesystemState::Creating && !self.is_stuck(&filesystem) {
            return None;
        }
        let wrapped = |id: KeyId| {
            let wrapped = entries.get(&id).map(|entry| &entry.wrapped);
            let config = wrapped.and_then(|w| configs.get(&w.config_id)).cloned();
            (config, wrapped.map(|w| w.ciphertext.version).unwrap_or_default())
        };
        let (wrapped_by, version) = wrapped(filesystem.key_id);
        let previous = filesystem.previous_key.map(|id| {
            let (wrapped_by, version) = wrapped(id);
            PreviousKey { id, wrapped_by, version }
        });
        let exposed = |id| entries.get(&id).is_some_and(|entry: &KeyEntry| entry.exposed);
        Some(FilesystemStatus {
            key: self.state_of(&filesystem),
            wrapped_by,
            version,
            previous,
            own_master_key: entries
                .get(&filesystem.key_id)
                .and_then(|entry| entry.own_master_key.clone()),
            exposed: filesystem.keys().any(exposed),
            copies_behind: self.copies_behind(&filesystem),
            filesystem,
        })
    }

    /// The KMS configuration, and what it answers now.
    pub async fn kms_overview(&self) -> Result<KmsOverview, Error> {
        self.overview(None).await
    }

    /// As [`KeyManager::kms_overview`], with few requests however many master keys there are: of those that filesystems have of their
    /// own one is asked for, with the next number the next one.
    pub async fn kms_glance(&self, turn: usize) -> Result<KmsOverview, Error> {
        self.overview(Some(turn)).await
    }

    async fn overview(&self, turn: Option<usize>) -> Result<KmsOverview, Error> {
        let Some(targets) = self.targets().await? else { return self.recorded(None).await };
        let live = self.ask(&targets.current).await;
        let mut overview = self.recorded(Some(&targets)).await?;
        let away = live.as_ref().is_err_and(Error::is_transient);
        if !away {
            let count = overview.own.len().max(1);
            let wanted = |at: usize| turn.is_none_or(|turn| turn % count == at);
            let asked: Vec<_> = overview
                .own
                .into_iter()
                .enumerate()
                .map(|(at, own)| async move {
                    match wanted(at) {
                        true => self.ask_own(own.config).await,
                        false => Ok(own),
                    }
                })
                .collect();
            let answers = stream::iter(asked).buffered(KEYS_AT_ONCE);
            overview.own = answers.try_collect().await?;
        }
        Ok(KmsOverview { live: Some(live), ..overview })
    }

    /// Looks at where the credential for this KMS lies on this machine. Asks no KMS.
    ///
    /// # Errors
    /// It has no such configuration, or none that can be used.
    pub async fn credential_here(&self, id: KmsConfigId) -> Result<CredentialHere, Error> {
        Ok(self.kms(id).await?.credential_here().await)
    }

    /// How often yet a node that starts is let in by the KMS that is set, which is asked: see [`kms_core::Kms::starts_left`].
    pub async fn starts_left(&self) -> Result<Option<u64>, Error> {
        let Some((_, record)) = self.current().await? else { return Ok(None) };
        match self.kms(record.config.id).await {
            Ok(kms) => Ok(kms.starts_left().await?),
            // As after a recovery: there is no credential.
            Err(Error::Kms(_)) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The KMS configuration as it is recorded. Asks no KMS.
    pub async fn kms_recorded(&self) -> Result<KmsOverview, Error> {
        self.recorded(self.targets().await?.as_ref()).await
    }

    async fn recorded(&self, targets: Option<&Targets>) -> Result<KmsOverview, Error> {
        let Some(targets) = targets else {
            let version = KmsVersion::of_none();
            let (config, credential, live, own) = (None, None, None, Vec::new());
            return Ok(KmsOverview { version, config, credential, live, own });
        };
        let current = &targets.current;
        let credential = Some(self.credential(current.config.id).await?.kind());
        let mut own = Vec::new();
        for (_, id) in targets.own() {
            let known = self.config_if_kept(id).await?;
            own.extend(known.map(|known| OwnMasterKey { config: known.config, live: None }));
        }
        let config = Some((current.config.clone(), current.set_at));
        let version = targets.version.clone();
        Ok(KmsOverview { version, config, credential, live: None, own })
    }

    /// Looks at all that the KMS has to do for us, and at what it should not let us do.
    ///
    /// # Errors
    /// [`Error::NotConfigured`], [`Error::Store`].
    pub async fn check_kms(&self) -> Result<Vec<CheckItem>, Error> {
        let Some(targets) = self.targets().await? else { return Err(Error::NotConfigured) };
        let mut items = Vec::new();
        let looked = self.check_each(&targets, &mut items).await;
        self.audit_check(&targets.current, &items);
        looked.map(|()| items)
    }

    /// Adds each thing as it is found.
    async fn check_each(&self, targets: &Targets, items: &mut Vec<CheckItem>) -> Result<(), Error> {
        let record = &targets.current;
        let kms = self.kms(record.config.id).await?;
        let sample = record.canary.as_ref().map(|canary| &canary.ciphertext);
        items.extend(kms.check(sample).await);
        if items.iter().any(|item| item.code == "answers" && item.failure.is_some()) {
            return Ok(());
        }
        // Each further question would take as long as the deadline of a request.
        let away = |items: &[CheckItem]| {
            items.iter().any(|item| item.failure.is_some_and(KmsErrorKind::is_transient))
        };
        if away(items) {
            return Ok(());
        }
        items.extend(self.check_use(record, kms.as_ref()).await?);
        let own = targets.own().map(|(name, id)| (name.to_owned(), id));
        let left_behind = self.in_use().await?.left_behind.into_iter();
        let left_behind = left_behind.map(|LeftBehind { config, .. }| {
            (format!("{} at {}", config.master_key, config.address), config.id)
        });
        for (name, id) in own.chain(left_behind) {
            if away(items) {
                break;
            }
            let Some(record) = self.config_if_kept(id).await? else { continue };
            let of_own =
                |item: CheckItem| CheckItem { what: format!("{name}: {}", item.what), ..item };
            let kms = match self.kms(id).await {
                Ok(kms) => kms,
                // As after a recovery: no credential is known for it.
                Err(Error::Kms(error)) => {
                    let what = "the KMS can be asked";
                    items.push(of_own(CheckItem::failed("answers", what, &error)));
                    continue;
                }
                Err(Error::Changed { .. }) => continue,
                Err(error) => return Err(error),
            };
            let sample = record.canary.as_ref().map(|canary| &canary.ciphertext);
            items.extend(kms.check_key(sample).await.into_iter().map(of_own));
            if away(items) {
                break;
            }
            items.extend(self.check_use(&record, kms.as_ref()).await?.into_iter().map(of_own));
        }
        Ok(())
    }

    /// Whether the master key is the right one, and opens what hangs on it.
    async fn check_use(
        &self,
        record: &ConfigRecord,
        kms: &dyn Kms,
    ) -> Result<Vec<CheckItem>, Error> {
        const SAME: &str = "the master key is the one that was configured";
        const NEEDED: &str = "the master key decrypts every version that something hangs on";
        let mut items = Vec::new();
        let proved = self.prove_identity(record, kms).await;
        let can_rewrap = proved.is_ok();
        items.push(match proved {
            Ok(()) => CheckItem::passed("same-key", SAME, ""),
            Err(Error::Kms(error)) => CheckItem::failed("same-key", SAME, &error),
            Err(error) => return Err(error),
        });
        if let Ok(master_key) = kms.master_key().await {
            items.push(match self.cut_off(record, &master_key, can_rewrap).await? {
                None => CheckItem::passed("versions", NEEDED, ""),
                Some(Finding { code, what, cure, .. }) => CheckItem {
                    code,
                    outcome: CheckOutcome::Failed,
                    failure: Some(KmsErrorKind::VersionTooOld),
                    cure: Some(cure),
                    ..CheckItem::passed("", NEEDED, what)
                },
            });
        }
        Ok(items)
    }

    fn audit_check(&self, record: &ConfigRecord, items: &[CheckItem]) {
        let failed = items.iter().filter(|item| item.failure.is_some()).count();
        let outcome = if failed == 0 { Outcome::Done } else { Outcome::Failed };
        let detail = format!("{} looked at, {failed} failed", items.len());
        let event = self.event("kms.check", &record.config.id.to_string(), outcome, &detail);
        let requests = items.iter().filter_map(|item| item.request.clone()).collect();
        self.record(&AuditEvent { requests, ..event });
    }

    pub(crate) fn copies_behind(&self, fs: &FilesystemRecord) -> Option<String> {
        if fs.state != FilesystemState::Ready {
            return None;
        }
        let behind = &read(&self.copies).behind;
        fs.keys().find_map(|id| behind.get(&(fs.name.to_string(), id)).cloned())
    }

    /// What keeps the KMS from opening our keys is a finding and no error: the key, the token and its life answered,
    /// and the filesystems that are open work on. That the key is another one has to be known while their keys are in memory.
    #[instrument(name = "kms", level = "error", skip_all, fields(kms = %record.config.id))]
    async fn ask(&self, record: &ConfigRecord) -> Result<LiveKms, Error> {
        let kms = self.kms(record.config.id).await?;
        let (master_key, credential) = (kms.master_key().await?, kms.credential().await?);
        let shut = self.ask_use(record, kms.as_ref(), &master_key).await?;
        let (opens, mut findings) = (shut.is_empty(), kms.findings(&master_key, &credential));
        findings.extend(shut);
        Ok(LiveKms { master_key, credential, opens, findings })
    }

    /// As [`Self::ask`], for a master key beside the one that is set, which has shown the credential.
    async fn ask_own(&self, config: KmsConfig) -> Result<OwnMasterKey, Error> {
        let Some(record) = self.config_if_kept(config.id).await? else {
            return Ok(OwnMasterKey { config, live: None });
        };
        let asked = async {
            let kms = self.kms(config.id).await?;
            let master_key = kms.master_key().await?;
            let shut = self.ask_use(&record, kms.as_ref(), &master_key).await?;
            let (opens, mut findings) = (shut.is_empty(), kms.key_findings(&master_key));
            findings.extend(shut);
            Ok(LiveKey { master_key, opens, findings })
        };
        let live = Some(asked.await);
        Ok(OwnMasterKey { config, live })
    }

    /// What keeps the KMS from opening what hangs on this master key.
    async fn ask_use(
        &self,
        record: &ConfigRecord,
        kms: &dyn Kms,
        master_key: &MasterKey,
    ) -> Result<Vec<Finding>, Error> {
        let mut findings = Vec::new();
        let proved = self.prove_identity(record, kms).await;
        let can_rewrap = proved.is_ok();
        match proved {
            Ok(()) => {}
            Err(Error::Kms(error)) if !error.kind().is_transient() => findings.push(Finding::new(
                error.kind().code(),
                format!("what the KMS wrapped with {} can't be opened now, and a node that starts unlocks nothing of it: {}", record.config.master_key, error.chain()),
                error.how_to_mend().unwrap_or_default(),
            )),
            Err(error) => return Err(error),
        }
        findings.extend(self.cut_off(record, master_key, can_rewrap).await?);
        Ok(findings)
    }

    /// The filesystems that are open now and that a node that starts could not unlock, because the KMS no longer decrypts
    /// the version that wrapped their keys. Where nothing is left that could prove the master key, a rewrap would be refused.
    async fn cut_off(
        &self,
        record: &ConfigRecord,
        master_key: &MasterKey,
        can_rewrap: bool,
    ) -> Result<Option<Finding>, Error> {
        const NAMED: usize = 5;
        let saves = match can_rewrap {
            true => "coffer fs kms rewrap",
            false => {
                "coffer fs kms set-vault, with the same URL and key if you know that it is the right key,"
            }
        };
        let minimum = master_key.min_decryption_version;
        let statuses = self.filesystem_statuses().await?;
        let names: Vec<_> = statuses
            .iter()
            .filter(|s| !matches!(s.key, KeyState::Deleting(_)))
            .filter(|s| s.wrapped().any(|(by, v)| by.id == record.config.id && v < minimum))
            .map(|s| s.filesystem.name.as_str())
            .collect();
        let named = listed(&names, NAMED);
        Ok((!names.is_empty()).then(|| Finding::new(
            "keys-cut-off",
            format!(
                "a node that starts can't unlock {named}: min_decryption_version of {} is {}, and older versions wrapped their keys",
                master_key.name, minimum.0
            ),
            format!("give {saves} while they are unlocked; for those that are locked, lower min_decryption_version first"),
        )))
    }

    /// Those of one filesystem, as far as they can be read.
    async fn entries_of(&self, fs: &FilesystemRecord) -> Result<BTreeMap<KeyId, KeyEntry>, Error> {
        let mut entries = BTreeMap::new();
        for id in fs.keys() {
            let record = self.store().get(&records::wrapped_key(id)).await?;
            let entry = record.and_then(|record| key_entry_of(&record).ok());
            entries.extend(entry.map(|entry| (id, entry)));
        }
        Ok(entries)
    }

    pub(crate) async fn recorded_keys(&self) -> Result<RecordedKeys, Error> {
        let (entries, unreadable) = self.key_entries().await?;
        let entries = entries.into_iter().map(|entry| (entry.wrapped.key_id, entry)).collect();
        let (configs, filesystems) = (self.configs().await?, self.filesystems().await?);
        Ok(RecordedKeys { configs, entries, unreadable, filesystems })
    }
}

/// What is recorded of keys, read once.
pub(crate) struct RecordedKeys {
    pub(crate) configs: Vec<ConfigRecord>,
    pub(crate) entries: BTreeMap<KeyId, KeyEntry>,
    /// Why others can't be read. Their filesystems show why they are locked.
    pub(crate) unreadable: Vec<Error>,
    pub(crate) filesystems: Vec<FilesystemRecord>,
}

fn by_id(configs: &[ConfigRecord]) -> BTreeMap<KmsConfigId, Arc<KmsConfig>> {
    configs.iter().map(|record| (record.config.id, Arc::new(record.config.clone()))).collect()
}

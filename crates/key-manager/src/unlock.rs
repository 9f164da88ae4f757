//! Unlocking: wrapped keys become keys in memory, in a few requests for any number.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use kms_core::{
    AuditEvent, Commit, FilesystemKey, HolderError, Items, KeyCopy, Kms, KmsConfigId, KmsError,
    KmsErrorKind, Outcome, Record, RequestId, StoreError,
};
use serde::{Deserialize, Serialize};
use tokio::time::timeout;
use tracing::instrument;

use crate::records::{self, FilesystemRecord, FilesystemState, KeyEntry};
use crate::{Error, FilesystemName, KeyManager, OpenKeys};

/// How many backing directories are looked into at once. A few that don't answer hold the others up no longer.
pub(crate) const DISKS_AT_ONCE: usize = 64;

/// How many master keys of one KMS are asked at once.
pub(crate) const KEYS_AT_ONCE: usize = 8;

/// A disk that answers takes less.
const DISKS_PAUSE: Duration = Duration::from_millis(500);

/// Whether a filesystem's key is in memory.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "kebab-case")]
pub enum KeyState {
    /// It is.
    Unlocked,
    /// It is not.
    Locked(LockReason),
    /// It is not, and never will be: the filesystem is being deleted.
    Deleting(LockReason),
}

/// Why a filesystem is locked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockReason {
    /// A stable word.
    pub code: String,
    /// What failed and why.
    pub why: String,
    /// What to do, if that is known.
    pub cure: Option<String>,
    /// Whether trying again later, with nothing changed here, can succeed.
    pub transient: bool,
}

impl LockReason {
    fn not_tried() -> Self {
        Self {
            code: "not-tried".into(),
            why: "its key has not been asked for yet".into(),
            cure: Some("wait a moment: the node asks for it by itself".into()),
            transient: true,
        }
    }

    fn deleting() -> Self {
        Self {
            code: "deleting".into(),
            why: "what lies in its backing directory is being removed".into(),
            cure: None,
            transient: true,
        }
    }

    fn held(name: &FilesystemName) -> Self {
        Self {
            code: "locked-by-admin".into(),
            why: "an administrator locked it".into(),
            cure: Some(format!("coffer fs unlock {name}")),
            transient: false,
        }
    }
}

impl From<&Error> for LockReason {
    fn from(error: &Error) -> Self {
        let why = match error {
            Error::Kms(e) => e.chain(),
            other => other.to_string(),
        };
        let transient = error.is_transient();
        Self { code: error.code().into(), why, cure: error.cure(), transient }
    }
}

impl KeyManager {
    /// Opens the key of every filesystem that is not open and that nobody locked on purpose. Answers those
    /// that stay locked, each with its reason; the others open regardless.
    pub async fn unlock_all(&self) -> Result<Vec<(FilesystemName, LockReason)>, Error> {
        let wanted: Vec<_> = self
            .filesystems()
            .await?
            .into_iter()
            .filter(FilesystemRecord::may_open)
            .filter(|fs| self.unlocked_keys(fs).is_none())
            .collect();
        self.unlock_these(wanted).await
    }

    /// The key of a filesystem.
    ///
    /// # Errors
    /// [`Error::Locked`] with the reason.
    pub async fn key(&self, name: &FilesystemName) -> Result<Arc<FilesystemKey>, Error> {
        Ok(self.keys(name).await?.key)
    }

    /// The key of a filesystem, with the one that it is being re-encrypted from.
    ///
    /// # Errors
    /// [`Error::Locked`] with the reason.
    pub async fn keys(&self, name: &FilesystemName) -> Result<OpenKeys, Error> {
        let fs = self.filesystem(name).await?;
        match self.unlocked_keys(&fs) {
            Some(keys) if !fs.held => Ok(keys),
            _ => Err(locked(name, self.reason(&fs))),
        }
    }

    /// Whether a filesystem is unlocked, and if not, why.
    pub fn state_of(&self, fs: &FilesystemRecord) -> KeyState {
        match self.unlocked_keys(fs) {
            _ if fs.state != FilesystemState::Ready => KeyState::Deleting(self.reason(fs)),
            Some(_) if !fs.held => KeyState::Unlocked,
            _ => KeyState::Locked(self.reason(fs)),
        }
    }

    /// Unlocks one filesystem, also one that an administrator locked; if that fails it stays so.
    ///
    /// # Errors
    /// What kept the key from opening. [`Error::Changed`]: it was locked or unlocked at the same moment.
    pub async fn unlock(&self, name: &FilesystemName) -> Result<(), Error> {
        let (record, mut fs) = self.filesystem_record(name).await?;
        if let Err(error) = self.try_to_open(&fs).await {
            let shut = Shut::new(name.clone(), &error);
            self.audit_shut(&shut);
            self.lock_reasons().insert(shut.name, shut.reason);
            return Err(error);
        }
        let memory = self.change_memory().await;
        if fs.held {
            self.put_held(&record, &mut fs, false).await?;
        }
        drop(memory);
        if self.unlocked_keys(&fs).is_some() {
            return Ok(());
        }
        match self.unlock_these(vec![fs]).await?.pop() {
            None => Ok(()),
            Some((name, reason)) => Err(locked(&name, reason)),
        }
    }

    /// Asks for its keys by themselves, so that the failure is its own and not a summary of many.
    async fn try_to_open(&self, fs: &FilesystemRecord) -> Result<(), Error> {
        if self.unlocked_keys(fs).is_some() {
            return Ok(());
        }
        for entry in self.entries_for(fs).await? {
            let config_id = entry.wrapped.config_id;
            let kms = self.kms(config_id).await?;
            let why = format!("{} is being unlocked", fs.name);
            let name = fs.name.as_str();
            let answers = self.prove_key(kms.as_ref(), &entry.wrapped, name, &why).await?;
            self.explained(answers, config_id, kms.as_ref()).await?.only()?;
        }
        Ok(())
    }

    fn audit_shut(&self, Shut { name, reason, request }: &Shut) {
        let event = self.event("key.unwrap", name.as_str(), Outcome::Failed, &reason.why);
        let requests = request.clone().into_iter().collect();
        self.record(&AuditEvent { requests, ..event });
    }

    /// Locks a filesystem: its key, or its two keys while it is being re-encrypted, leaves memory and stays out, over restarts, until [`KeyManager::unlock`]; also if it
    /// is being unwrapped at this moment. A key that another filesystem has too stays for that one.
    /// Whoever still holds the key's `Arc` must let it go.
    pub async fn lock(&self, name: &FilesystemName) -> Result<(), Error> {
        let _memory = self.change_memory().await;
        let fs = self.set_held(name, true).await?;
        let filesystems = self.filesystems().await?;
        let open = |id| filesystems.iter().any(|other| other.has_key(id) && other.may_open());
        for id in fs.keys().filter(|id| !open(*id)) {
            self.ring().remove(&id);
        }
        self.audit("fs.lock", name.as_str(), Outcome::Done, &fs.key_id.to_string());
        Ok(())
    }

    /// Puts every key out of memory. For the end of a node.
    pub fn forget_keys(&self) {
        self.ring().clear();
    }

    /// Forgets that an administrator locked it.
    pub(crate) async fn release(&self, name: &FilesystemName) -> Result<(), Error> {
        let _memory = self.change_memory().await;
        self.set_held(name, false).await.map(drop)
    }

    /// The caller changes the memory.
    async fn set_held(&self, name: &FilesystemName, held: bool) -> Result<FilesystemRecord, Error> {
        let (record, mut fs) = self.filesystem_record(name).await?;
        if fs.held != held {
            self.put_held(&record, &mut fs, held).await?;
        }
        Ok(fs)
    }

    async fn put_held(
        &self,
        record: &Record,
        fs: &mut FilesystemRecord,
        held: bool,
    ) -> Result<(), Error> {
        fs.held = held;
        let commit = Commit::new().unchanged(record).put(record.key.clone(), records::encode(fs));
        self.store().commit(commit).await.map_err(|e| changed(e, "the filesystem"))?;
        Ok(())
    }

    /// Whether it could not be removed at the last try.
    pub(crate) fn is_stuck(&self, fs: &FilesystemRecord) -> bool {
        fs.state != FilesystemState::Ready && self.lock_reasons().contains_key(&fs.name)
    }

    pub(crate) fn reason(&self, fs: &FilesystemRecord) -> LockReason {
        let going = fs.state != FilesystemState::Ready;
        if fs.held && !going {
            return LockReason::held(&fs.name);
        }
        let unknown = if going { LockReason::deleting } else { LockReason::not_tried };
        self.lock_reasons().get(&fs.name).cloned().unwrap_or_else(unknown)
    }

    async fn unlock_these(
        &self,
        wanted: Vec<FilesystemRecord>,
    ) -> Result<Vec<(FilesystemName, LockReason)>, Error> {
        let compared = wanted.into_iter().map(|fs| self.compared(fs));
        let mut compared = stream::iter(compared).buffer_unordered(DISKS_AT_ONCE);
        let mut locked = Vec::new();
        // What has been compared is opened while a disk that takes its time is waited for.
        while let Some(first) = compared.next().await {
            let mut ready = vec![first];
            while let Ok(Some(next)) = timeout(DISKS_PAUSE, compared.next()).await {
                ready.push(next);
            }
            locked.extend(self.unlock_compared(ready).await?);
        }
        // Not in the order in which the disks answered.
        locked.sort_by(|one: &Shut, other| one.name.cmp(&other.name));
        let mut reasons = self.lock_reasons();
        for shut in &locked {
            let Shut { name, reason, .. } = shut;
            if reasons.insert(name.clone(), reason.clone()).as_ref() != Some(reason) {
                tracing::warn!(filesystem = %name, why = %reason.why, "the filesystem stays locked");
                self.audit_shut(shut);
            }
        }
        Ok(locked.into_iter().map(|shut| (shut.name, shut.reason)).collect())
    }

    async fn compared(
        &self,
        mut fs: FilesystemRecord,
    ) -> (FilesystemRecord, Result<Vec<KeyEntry>, Error>) {
        loop {
            let error = match self.entries_for(&fs).await {
                Err(error) => error,
                entries => return (fs, entries),
            };
            match (error, self.filesystem(&fs.name).await) {
                (_, Err(gone)) => return (fs, Err(gone)),
                // Its re-encryption has come to its end since it was listed.
                (Error::Changed { .. }, Ok(now)) => fs = now,
                (error, Ok(_)) => return (fs, Err(error)),
            }
        }
    }

    async fn unlock_compared(
        &self,
        compared: Vec<(FilesystemRecord, Result<Vec<KeyEntry>, Error>)>,
    ) -> Result<Vec<Shut>, Error> {
        // By name: one that has two keys may have two reasons, of which the first is told.
        let mut locked = BTreeMap::new();
        let mut by_config: HashMap<KmsConfigId, Vec<Member>> = HashMap::new();
        for (fs, entries) in compared {
            match entries {
                Ok(entries) => {
                    for entry in entries {
                        let config = by_config.entry(entry.wrapped.config_id).or_default();
                        config.push((fs.name.clone(), entry));
                    }
                }
                Err(Error::Unknown { .. } | Error::Deleting { .. }) => {}
                Err(error) => drop(locked.insert(fs.name.clone(), Shut::new(fs.name, &error))),
            }
        }
        // In no order, and in another one each time: a master key that alone is not answered for does not hold the same others up.
        let mut by_place: HashMap<String, Vec<(KmsConfigId, Vec<Member>)>> = HashMap::new();
        for (config_id, members) in by_config {
            let place = match self.kms(config_id).await {
                Ok(kms) => kms.config().address.clone(),
                Err(_) => config_id.to_string(),
            };
            by_place.entry(place).or_default().push((config_id, members));
        }
        // A KMS that does not answer holds the others up no longer.
        let mut asked = stream::select_all(by_place.into_values().map(|keys| self.ask_at(keys)));
        while let Some((members, answers)) = asked.next().await {
            match answers {
                Ok(answers) => {
                    let answers = members.into_iter().map(|(name, _)| name).zip(answers);
                    for shut in self.keep_unwrapped(answers.collect()).await? {
                        locked.entry(shut.name.clone()).or_insert(shut);
                    }
                }
                Err(error) => {
                    for (name, _) in members {
                        locked.entry(name.clone()).or_insert_with(|| Shut::new(name, &error));
                    }
                }
            }
        }
        Ok(locked.into_values().collect())
    }

    /// Asks one KMS for what hangs on its master keys. Once it does not answer, the others are not asked for, and fail like the one
    /// that was; one that did not answer the last time is asked for one of them first.
    fn ask_at(&self, keys: Vec<(KmsConfigId, Vec<Member>)>) -> BoxStream<'_, Asked> {
        let was_away = keys.iter().any(|(_, members)| self.was_away(members));
        let away: Arc<OnceLock<Arc<Error>>> = Arc::default();
        let asked = keys.into_iter().map(|(config_id, members)| {
            let away = Arc::clone(&away);
            async move {
                if let Some(error) = away.get() {
                    return (members, Err(Arc::clone(error)));
                }
                let answers = self.unwrap_members(config_id, &members).await.map_err(Arc::new);
                if let Err(error) = &answers
                    && error.is_transient()
                {
                    away.get_or_init(|| Arc::clone(error));
                }
                (members, answers)
            }
        });
        let mut first: Vec<_> = asked.collect();
        let others = first.split_off(usize::from(was_away));
        let first = stream::iter(first).buffer_unordered(1);
        first.chain(stream::iter(others).buffer_unordered(KEYS_AT_ONCE)).boxed()
    }

    /// Takes unwrapped keys into memory, but for those of filesystems that were locked or deleted while the KMS
    /// was asked: such an act comes before this one and is seen, or after it and takes the key out again.
    async fn keep_unwrapped(
        &self,
        answers: Vec<(FilesystemName, Result<FilesystemKey, KmsError>)>,
    ) -> Result<Vec<Shut>, Error> {
        let _memory = self.change_memory().await;
        let filesystems = self.filesystems().await?.into_iter().map(|fs| (fs.name.clone(), fs));
        let filesystems: HashMap<_, _> = filesystems.collect();
        let mut locked = Vec::new();
        for (name, answer) in answers {
            match (filesystems.get(&name), answer) {
                (None, _) => {}
                (Some(fs), Ok(key)) if fs.may_open() && fs.has_key(key.id()) => {
                    // One that is in use stays: what is open has it.
                    self.ring().entry(key.id()).or_insert_with(|| Arc::new(key));
                    if self.unlocked_keys(fs).is_some() {
                        self.lock_reasons().remove(&name);
                    }
                }
                (Some(_), Ok(_)) => {
                    locked.push(Shut { reason: LockReason::held(&name), name, request: None });
                }
                (Some(_), Err(error)) => locked.push(Shut::new(name, &Error::Kms(error))),
            }
        }
        Ok(locked)
    }

    /// Whether the KMS did not answer when it was last asked for these.
    fn was_away(&self, members: &[Member]) -> bool {
        let reasons = self.lock_reasons();
        members.iter().any(|(name, _)| reasons.get(name).is_some_and(|reason| reason.transient))
    }

    /// Opens the members' keys. What fails authentication is explained once for all of them.
    #[instrument(name = "unlock", level = "error", skip_all, fields(kms = %config_id))]
    async fn unwrap_members(
        &self,
        config_id: KmsConfigId,
        members: &[Member],
    ) -> Result<Items<FilesystemKey>, Error> {
        let kms = self.kms(config_id).await?;
        let wrapped: Vec<_> = members.iter().map(|(_, entry)| entry.wrapped.clone()).collect();
        if self.was_away(members)
            && let (Some((name, _)), Some(first)) = (members.first(), wrapped.first())
        {
            // One that comes back is not met by all of them at once, and again and again until it can answer.
            let why = "whether the KMS is back";
            self.prove_key(kms.as_ref(), first, name.as_str(), why).await?;
        }
        let subjects: Vec<_> = members.iter().map(|(name, _)| name.to_string()).collect();
        let answers = self.unwrap_keys(kms.as_ref(), &wrapped, &subjects).await?;
        self.explained(answers, config_id, kms.as_ref()).await
    }

    /// What fails authentication because the master key is another one by now is told so.
    pub(crate) async fn explained(
        &self,
        mut answers: Items<FilesystemKey>,
        config_id: KmsConfigId,
        kms: &dyn Kms,
    ) -> Result<Items<FilesystemKey>, Error> {
        let unsure = |e: &KmsError| e.kind() == KmsErrorKind::NotAuthentic;
        if answers.iter().any(|a| a.as_ref().is_err_and(unsure)) {
            // One that is forgotten by now has no key left to explain.
            let Some(config) = self.config_if_kept(config_id).await? else { return Ok(answers) };
            if let Err(Error::Kms(replaced)) = self.prove_identity(&config, kms).await {
                let why = replaced.chain();
                let cure = replaced.how_to_mend().unwrap_or_default().to_owned();
                for answer in answers.iter_mut() {
                    if let Err(error) = answer
                        && unsure(error)
                    {
                        let request = error.request().cloned();
                        let replaced = KmsError::new(replaced.kind(), why.clone());
                        *error = replaced.cure(cure.clone()).of_request(request);
                    }
                }
            }
        }
        Ok(answers)
    }

    /// The wrapped keys of a filesystem, compared with their copies: a copy that is ahead of the store shows that an
    /// older store was put back, and then the store's key is not trusted. One that can't be read, or is another key's, is noted.
    async fn entries_for(&self, fs: &FilesystemRecord) -> Result<Vec<KeyEntry>, Error> {
        let mut entries = Vec::new();
        for id in fs.keys() {
            entries.push(self.key_entry(id).await?.1);
        }
        for holder in &self.parts().holders {
            for KeyCopy { location, envelope, uploaded } in holder.list(&fs.site()).await? {
                let copy = match envelope {
                    Ok(copy) => copy,
                    Err(error) => {
                        self.note_copies(&fs.site(), fs.key_id, Err(&error));
                        continue;
                    }
                };
                let entry = entries.iter().find(|e| e.wrapped.key_id == copy.wrapped.key_id);
                if entry.is_none() && !uploaded {
                    let source = "it is that of another filesystem's key".into();
                    let error = HolderError { location, doing: "used", source };
                    self.note_copies(&fs.site(), fs.key_id, Err(&error));
                    continue;
                }
                let Some(entry) = entry.filter(|entry| !uploaded && copy.revision > entry.revision)
                else {
                    continue;
                };
                return Err(Error::Store(StoreError::Damaged {
                    place: records::wrapped_key(entry.wrapped.key_id),
                    why: format!(
                        "the copy of this key at {location} is newer (revision {}) than the store's ({}): an older store was put back",
                        copy.revision, entry.revision
                    ),
                }));
            }
        }
        Ok(entries)
    }
}

/// A filesystem and a wrapped key of its.
type Member = (FilesystemName, KeyEntry);

/// What a KMS answered for the members that hang on one master key.
type Asked = (Vec<Member>, Result<Items<FilesystemKey>, Arc<Error>>);

/// A filesystem that stays locked.
struct Shut {
    name: FilesystemName,
    reason: LockReason,
    /// The request by which the KMS said so.
    request: Option<RequestId>,
}

impl Shut {
    fn new(name: FilesystemName, error: &Error) -> Self {
        let request = match error {
            Error::Kms(error) => error.request().cloned(),
            _ => None,
        };
        Self { name, reason: LockReason::from(error), request }
    }
}

fn locked(name: &FilesystemName, reason: LockReason) -> Error {
    Error::Locked { name: name.to_string(), why: reason.why, cure: reason.cure }
}

/// The condition that what was read there, or nothing, still is.
pub(crate) fn as_read(commit: Commit, key: &str, read: Option<&Record>) -> Commit {
    match read {
        Some(record) => commit.unchanged(record),
        None => commit.absent(key),
    }
}

pub(crate) fn changed(error: StoreError, what: &str) -> Error {
    match error {
        StoreError::Conflict { .. } => Error::Changed { what: what.to_owned() },
        other => Error::Store(other),
    }
}

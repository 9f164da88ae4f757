//! A node's surroundings that outlive its crashes: store, KMS, backing headers, local keys.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use key_manager::{
    Configured, Error, Expected, FilesystemName, FoundCopy, JobControl, JobId, JobKind, JobRecord,
    JobState, KeyManager, KeyState, MoveReport, NewCredential, NewKms, Parts, Progress, Recovered,
    Removal, Volumes,
};
use kms_core::{
    Credential, FilesystemKey, FilesystemSite, HolderError, KeyCopy, KeyEnvelope, KeyHolder, KeyId,
    KmsExt as _, KmsProvider as _, UnixMillis,
};
use testkit::audit::CollectingAudit;
use testkit::clock::ManualClock;
use testkit::fake_kms::{FakeLocal, FakeProvider};
use testkit::fake_store::FakeStore;
use testkit::key_holder::{KeyHolderFixture, key_holder_contract};
use testkit::late::{Gate, Late};

pub(crate) struct World {
    pub(crate) store: FakeStore,
    pub(crate) kms: FakeProvider,
    pub(crate) headers: Arc<Headers>,
    pub(crate) audit: Arc<CollectingAudit>,
    pub(crate) local: FakeLocal,
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            store: FakeStore::default(),
            kms: FakeProvider::default(),
            headers: Arc::default(),
            audit: Arc::default(),
            local: FakeLocal::default(),
        }
    }

    /// A node that has just started.
    pub(crate) async fn node(&self) -> KeyManager {
        let manager = self.manager(u64::MAX, u64::MAX);
        manager.settle().await.unwrap();
        manager
    }

    /// As many filesystems more, whose keys the master key of this one wrapped, and a new store that has all that lie here. To make them
    /// one by one takes long.
    #[expect(clippy::disallowed_methods, reason = "no node wraps these")]
    pub(crate) async fn multiply(&mut self, one: &KeyEnvelope, count: usize) {
        let kms = self.kms.open(&one.kms, &Credential::token("t")).unwrap();
        let keys = (0..count).map(|_| FilesystemKey::generate().map(Arc::new));
        let keys = keys.collect::<Result<Vec<_>, _>>().unwrap();
        for (n, wrapped) in kms.wrap_keys(&keys).await.unwrap().into_iter().enumerate() {
            let (filesystem, wrapped) = (format!("fs-{n}"), wrapped.unwrap());
            let backing = PathBuf::from("/backing").join(&filesystem);
            let envelope = KeyEnvelope { filesystem, wrapped, ..one.clone() };
            self.headers.files.lock().unwrap().insert(backing, envelope);
        }
        self.store = FakeStore::default();
        let found = self.headers.files.lock().unwrap().clone().into_iter().collect();
        rebuild(&self.store, &ManualClock::default(), found).await.unwrap();
    }

    /// A manager whose store stops after `commits` and whose headers stop after `writes`.
    pub(crate) fn manager(&self, commits: u64, writes: u64) -> KeyManager {
        self.manager_over(Arc::new(self.store.stopping_after(commits)), writes)
    }

    /// A manager over this handle on the store, whose headers stop after `writes`.
    pub(crate) fn manager_over(&self, store: Arc<FakeStore>, writes: u64) -> KeyManager {
        self.headers.allow_writes(writes);
        KeyManager::new(Parts {
            store,
            providers: vec![Arc::new(self.kms.clone()), Arc::new(self.local.clone())],
            holders: vec![Arc::clone(&self.headers) as Arc<dyn KeyHolder>],
            volumes: Arc::clone(&self.headers) as Arc<dyn Volumes>,
            clock: Arc::new(ManualClock::default()),
            audit: Arc::clone(&self.audit) as _,
        })
    }
}

/// Backing directories that consist of their header alone.
#[derive(Debug)]
pub(crate) struct Headers {
    pub(crate) files: Mutex<HashMap<PathBuf, KeyEnvelope>>,
    /// What lies beside them of keys that data is being re-encrypted from.
    pub(crate) previous: Mutex<HashMap<PathBuf, KeyEnvelope>>,
    /// What can't be reached for now.
    away: Mutex<HashSet<PathBuf>>,
    /// What another node has in use.
    in_use: Mutex<HashSet<PathBuf>>,
    /// What does not answer when it is read.
    silent: Mutex<HashSet<PathBuf>>,
    /// Where the next creation or removal is held back.
    late: Mutex<Option<Gate>>,
    writes_left: AtomicU64,
}

impl Default for Headers {
    fn default() -> Self {
        Self {
            files: Mutex::default(),
            previous: Mutex::default(),
            away: Mutex::default(),
            in_use: Mutex::default(),
            silent: Mutex::default(),
            late: Mutex::default(),
            writes_left: AtomicU64::new(u64::MAX),
        }
    }
}

impl Headers {
    pub(crate) fn at(&self, backing: &str) -> KeyEnvelope {
        self.files.lock().unwrap()[Path::new(backing)].clone()
    }

    /// Takes a backing directory away, or brings it back.
    pub(crate) fn set_away(&self, backing: &str, away: bool) {
        let mut all = self.away.lock().unwrap();
        if away {
            all.insert(backing.into())
        } else {
            all.remove(Path::new(backing))
        };
    }

    /// Has whoever reads it wait for ever, as for a network disk whose server is gone.
    pub(crate) fn set_silent(&self, backing: &str) {
        self.silent.lock().unwrap().insert(backing.into());
    }

    /// Has another node use what lies there, or not any more.
    pub(crate) fn set_in_use(&self, backing: &str, in_use: bool) {
        let mut all = self.in_use.lock().unwrap();
        if in_use {
            all.insert(backing.into())
        } else {
            all.remove(Path::new(backing))
        };
    }

    /// Holds the next creation or removal back, as a disk does that hangs.
    pub(crate) fn hang(&self) -> Late {
        let (gate, late) = Late::new();
        *self.late.lock().unwrap() = Some(gate);
        late
    }

    async fn answer_late(&self) {
        let late = self.late.lock().unwrap().take();
        if let Some(gate) = late {
            gate.pass().await;
        }
    }

    /// What tells the location of a copy of a previous key from the other one.
    const PREVIOUS: &str = "#previous";

    fn read(&self, backing: &Path) -> Result<KeyEnvelope, &'static str> {
        if self.away.lock().unwrap().contains(backing) {
            return Err("it is away");
        }
        self.files.lock().unwrap().get(backing).cloned().ok_or("there is no such file")
    }

    /// Lets so many more writes through.
    pub(crate) fn allow_writes(&self, writes: u64) {
        self.writes_left.store(writes, Ordering::SeqCst);
    }

    /// How many more writes are let through.
    pub(crate) fn writes_left(&self) -> u64 {
        self.writes_left.load(Ordering::SeqCst)
    }

    fn write(&self) -> Result<(), &'static str> {
        let take = |left: u64| left.checked_sub(1);
        match self.writes_left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, take) {
            Ok(_) => Ok(()),
            Err(_) => Err("it stopped here"),
        }
    }
}

#[async_trait]
impl KeyHolder for Headers {
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
        if self.silent.lock().unwrap().contains(&site.backing) {
            std::future::pending::<()>().await;
        }
        let location = site.backing.display().to_string();
        let envelope = self.read(&site.backing).map_err(|why| failed(&location, "read", why));
        let previous = self.previous.lock().unwrap().get(&site.backing).cloned();
        let previous = previous.filter(|_| envelope.is_ok()).map(|previous| KeyCopy {
            location: format!("{location}{}", Self::PREVIOUS),
            envelope: Ok(previous),
            uploaded: false,
        });
        Ok([KeyCopy { location, envelope, uploaded: false }].into_iter().chain(previous).collect())
    }

    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError> {
        if self.in_use.lock().unwrap().contains(&site.backing) {
            return Err(failed(location, "replaced", "another node has it"));
        }
        let replaced = |why| failed(location, "replaced", why);
        let there = self.read(&site.backing).map_err(replaced)?;
        let (place, files) = match location.strip_suffix(Self::PREVIOUS) {
            Some(place) => (place, &self.previous),
            None => (location, &self.files),
        };
        let there = match place == location {
            true => Some(there),
            false => self.previous.lock().unwrap().get(&site.backing).cloned(),
        };
        let there = there.ok_or_else(|| replaced("nothing lies there"))?;
        let key = envelope.wrapped.key_id;
        let ours = key == site.key_id || Some(key) == site.previous;
        if Path::new(place) != site.backing || there.wrapped.key_id != key || !ours {
            return Err(replaced("it is of another filesystem"));
        }
        self.write().map_err(replaced)?;
        files.lock().unwrap().insert(site.backing.clone(), envelope.clone());
        Ok(())
    }
}

fn failed(location: &str, doing: &'static str, why: &'static str) -> HolderError {
    HolderError { location: location.to_owned(), doing, source: why.into() }
}

#[async_trait]
impl Volumes for Headers {
    async fn create(
        &self,
        site: &FilesystemSite,
        _: Arc<FilesystemKey>,
        envelope: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        self.answer_late().await;
        if self.files.lock().unwrap().contains_key(&site.backing) {
            return Err("it is not empty".into());
        }
        self.write()?;
        self.files.lock().unwrap().insert(site.backing.clone(), envelope.clone());
        Ok(())
    }

    async fn remove(
        &self,
        site: &FilesystemSite,
    ) -> Result<Removal, Box<dyn std::error::Error + Send + Sync>> {
        if self.away.lock().unwrap().contains(&site.backing) {
            return Ok(Removal::NothingThere);
        }
        self.answer_late().await;
        if self.in_use.lock().unwrap().contains(&site.backing) {
            return Ok(Removal::InUse("another node has it".into()));
        }
        self.write()?;
        let mut files = self.files.lock().unwrap();
        Ok(match files.get(&site.backing).map(|there| there.wrapped.key_id) {
            None => Removal::NothingThere,
            Some(key) if key != site.key_id && Some(key) != site.previous => {
                Removal::NotOurs { why: format!("{key} is there") }
            }
            Some(_) => {
                self.previous.lock().unwrap().remove(&site.backing);
                files.remove(&site.backing);
                Removal::Removed
            }
        })
    }

    async fn prepare_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!((to.wrapped.key_id, Some(from.wrapped.key_id)), (site.key_id, site.previous));
        assert_eq!(Some(self.read(&site.backing)?.wrapped.key_id), site.previous);
        self.write()?;
        self.previous.lock().unwrap().insert(site.backing.clone(), from.clone());
        Ok(())
    }

    async fn begin_rekey(
        &self,
        site: &FilesystemSite,
        from: &KeyEnvelope,
        to: &KeyEnvelope,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!((to.wrapped.key_id, Some(from.wrapped.key_id)), (site.key_id, site.previous));
        let there = self.read(&site.backing)?.wrapped.key_id;
        assert!(there == site.key_id || Some(there) == site.previous, "{there} lies there");
        for (files, envelope) in [(&self.previous, from), (&self.files, to)] {
            let there = files.lock().unwrap().get(&site.backing).map(|copy| copy.wrapped.key_id);
            if there != Some(envelope.wrapped.key_id) {
                self.write()?;
                files.lock().unwrap().insert(site.backing.clone(), envelope.clone());
            }
        }
        Ok(())
    }

    async fn end_rekey(
        &self,
        site: &FilesystemSite,
    ) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
        assert_eq!(self.read(&site.backing)?.wrapped.key_id, site.key_id);
        self.write()?;
        self.previous.lock().unwrap().remove(&site.backing);
        Ok(())
    }
}

pub(crate) struct NoControl;

impl JobControl for NoControl {
    fn progress(&self, _: Progress) {}

    fn stop_requested(&self) -> bool {
        false
    }

    fn goes_on_later(&self) -> bool {
        false
    }
}

pub(crate) fn name(text: &str) -> FilesystemName {
    text.parse().unwrap()
}

pub(crate) fn vault(address: &str) -> NewKms {
    NewKms {
        kind: FakeProvider::KIND.to_owned(),
        address: address.to_owned(),
        master_key: "key".to_owned(),
        settings: Default::default(),
        credential: NewCredential::Given(Credential::token("the-token")),
        expected: Expected::Whatever,
    }
}

/// What a test does with a manager, for short.
#[async_trait]
pub(crate) trait Acts {
    async fn create(&self, fs: &str) -> Result<KeyId, Error>;
    async fn create_under(&self, fs: &str, master_key: &str) -> Result<KeyId, Error>;
    async fn set(&self, address: &str) -> Result<Configured, Error>;
    async fn rewrap(&self) -> Result<MoveReport, Error>;
    async fn run(&self, job: JobId) -> Result<MoveReport, Error>;
    async fn downgrade(&self) -> Result<MoveReport, Error>;
    /// Gives a filesystem its new key, as far as the store: the job that is to re-encrypt it.
    async fn begin_rekey_of(&self, fs: &str) -> Result<JobRecord, Error>;
    /// All that comes after that; there is no data.
    async fn end_rekey_of(&self, fs: &str, job: JobRecord) -> Result<(), Error>;
    async fn state(&self, fs: &str) -> KeyState;
    async fn bytes(&self, fs: &str) -> [u8; 32];
}

#[async_trait]
impl Acts for KeyManager {
    async fn create(&self, fs: &str) -> Result<KeyId, Error> {
        let backing = PathBuf::from(format!("/backing/{fs}"));
        Ok(self.create_filesystem(name(fs), backing, true).await?.filesystem.key_id)
    }

    async fn create_under(&self, fs: &str, master_key: &str) -> Result<KeyId, Error> {
        let backing = PathBuf::from(format!("/backing/{fs}"));
        let created = self.create_filesystem_under(name(fs), backing, master_key.to_owned());
        Ok(created.await?.filesystem.key_id)
    }

    /// Sets the KMS and runs the move, if there is one.
    async fn set(&self, address: &str) -> Result<Configured, Error> {
        let configured = self.set_kms(vault(address)).await?;
        if let Some(job) = configured.job {
            self.run(job).await?;
        }
        Ok(configured)
    }

    async fn rewrap(&self) -> Result<MoveReport, Error> {
        let job = self.start_rewrap(None).await?;
        self.run(job).await
    }

    async fn run(&self, job: JobId) -> Result<MoveReport, Error> {
        let report = self.run_move(job, &NoControl).await?;
        if report.failed.is_empty() {
            assert_eq!(self.job(job).await?.state, JobState::Done);
        }
        Ok(report)
    }

    async fn downgrade(&self) -> Result<MoveReport, Error> {
        match self.unset_kms(true, &Expected::Whatever).await? {
            Some(job) => self.run(job).await,
            None => Ok(MoveReport::default()),
        }
    }

    async fn begin_rekey_of(&self, fs: &str) -> Result<JobRecord, Error> {
        let job = JobRecord::new(JobKind::Rekey, fs, serde_json::Value::Null, UnixMillis(1));
        let new = self.new_key(&name(fs)).await?;
        self.begin_rekey(&name(fs), new, &job).await?;
        Ok(job)
    }

    async fn end_rekey_of(&self, fs: &str, job: JobRecord) -> Result<(), Error> {
        self.settle_rekey(&name(fs)).await?;
        let done = JobRecord { state: JobState::Done, ended: Some(UnixMillis(2)), ..job };
        self.end_rekey(&name(fs), &done).await
    }

    async fn state(&self, fs: &str) -> KeyState {
        self.state_of(&self.filesystem(&name(fs)).await.unwrap())
    }

    async fn bytes(&self, fs: &str) -> [u8; 32] {
        self.key(&name(fs)).await.unwrap().expose(|bytes| *bytes)
    }
}

/// Rebuilds a store from backing directories none of which is being re-encrypted.
pub(crate) async fn rebuild(
    store: &FakeStore,
    clock: &ManualClock,
    found: Vec<(PathBuf, KeyEnvelope)>,
) -> Result<Recovered, Error> {
    let found = found.into_iter();
    let found = found.map(|(backing, envelope)| FoundCopy { backing, envelope, previous: None });
    key_manager::rebuild(store, clock, found.collect()).await
}

/// The stand-in for backing directories is held to what a real one promises.
#[async_trait]
impl KeyHolderFixture for World {
    async fn make(&self, envelope: &KeyEnvelope) -> FilesystemSite {
        let key_id = envelope.wrapped.key_id;
        let backing = PathBuf::from(format!("/backing/{key_id}"));
        self.headers.files.lock().unwrap().insert(backing.clone(), envelope.clone());
        FilesystemSite { name: "home".to_owned(), key_id, previous: None, backing }
    }

    fn holder(&self) -> Arc<dyn KeyHolder> {
        Arc::clone(&self.headers) as _
    }

    async fn spoil(&self, _: &FilesystemSite, location: &str) {
        self.headers.set_away(location, true);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn backing_directories_keep_the_promises_of_a_holder() {
    key_holder_contract(&World::new()).await;
}

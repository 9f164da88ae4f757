//! A KMS in memory whose every answer a test controls: away, sealed, rotated, made again, items that fail.
//!
//! It encrypts nothing: its ciphertext is the record in hex, with the version and a mark of the master key in front.
//! What must hold over real encryption is tested over the embedded and the real Vaults.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::late::{Gate, Late};
use async_trait::async_trait;
use kms_core::{
    Auth, Ciphertext, Credential, CredentialStatus, Items, KeyRecord, KeyVersion, Kms, KmsConfig,
    KmsConfigId, KmsError, KmsErrorKind, KmsProvider, MasterKey, Proof, UnixMillis,
};

/// A provider of fake KMSs: one for each address.
#[derive(Debug, Default, Clone)]
pub struct FakeProvider {
    servers: Arc<Mutex<HashMap<String, FakeServer>>>,
}

/// A provider of fake local wrapping: a key for each configuration, made and erased on demand.
#[derive(Debug, Default, Clone)]
pub struct FakeLocal {
    keys: Arc<Mutex<HashMap<KmsConfigId, FakeServer>>>,
}

/// One fake KMS with one master key.
#[derive(Debug, Clone)]
pub struct FakeServer(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Another number is another key under the same name.
    mark: u64,
    latest: u64,
    minimum: u64,
    created: BTreeMap<KeyVersion, UnixMillis>,
    down: Option<KmsErrorKind>,
    /// Items asked for, by operation.
    asked: BTreeMap<&'static str, u64>,
    /// The operation whose next answer is late.
    late: Option<(&'static str, Gate)>,
}

impl FakeProvider {
    /// The kind that it serves.
    pub const KIND: &'static str = "fake";

    /// The server at this address, made at its first mention.
    pub fn server(&self, address: &str) -> FakeServer {
        let mut servers = self.servers.lock().unwrap();
        let mark = (servers.len() as u64 + 1) * 1000;
        servers.entry(address.to_owned()).or_insert_with(|| FakeServer::new(mark)).clone()
    }

    /// The one that has this master key; `<address>/<master key>`, where a test made it, is another one than the address's own.
    fn server_of(&self, config: &KmsConfig) -> FakeServer {
        let own = format!("{}/{}", config.address, config.master_key);
        let known = self.servers.lock().unwrap().get(&own).cloned();
        known.unwrap_or_else(|| self.server(&config.address))
    }

    /// Lets another address lead to the same server.
    pub fn alias(&self, address: &str, server: &FakeServer) {
        self.servers.lock().unwrap().insert(address.to_owned(), server.clone());
    }
}

impl FakeLocal {
    /// How many keys lie here.
    pub fn keys(&self) -> usize {
        self.keys.lock().unwrap().len()
    }
}

#[async_trait]
impl KmsProvider for FakeLocal {
    fn kind(&self) -> &'static str {
        "local"
    }

    fn open(&self, config: &KmsConfig, _: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        let missing = || KmsError::new(KmsErrorKind::KeyMissing, "there is no local key");
        let server = self.keys.lock().unwrap().get(&config.id).cloned().ok_or_else(missing)?;
        Ok(Arc::new(FakeKms { config: config.clone(), server }))
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        prove(self.open(config, credential)?).await
    }

    async fn provision(&self, config: &KmsConfig) -> Result<(), KmsError> {
        let mut keys = self.keys.lock().unwrap();
        let mark = u64::MAX / 2 + keys.len() as u64;
        keys.entry(config.id).or_insert_with(|| FakeServer::new(mark));
        Ok(())
    }

    async fn retire(&self, config: &KmsConfig) -> Result<(), KmsError> {
        self.keys.lock().unwrap().remove(&config.id);
        Ok(())
    }
}

async fn prove(kms: Arc<dyn Kms>) -> Result<Proof, KmsError> {
    Ok(Proof {
        master_key: kms.master_key().await?,
        credential: kms.credential().await?,
        kms,
        findings: Vec::new(),
    })
}

impl FakeServer {
    fn new(mark: u64) -> Self {
        let created = BTreeMap::from([(KeyVersion(1), UnixMillis(mark))]);
        let asked = BTreeMap::new();
        Self(Arc::new(Mutex::new(State {
            mark,
            latest: 1,
            minimum: 1,
            created,
            down: None,
            asked,
            late: None,
        })))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }

    /// Every call fails with this kind from now on; `None` ends it.
    pub fn set_down(&self, kind: Option<KmsErrorKind>) {
        self.state().down = kind;
    }

    /// A new version of the master key.
    pub fn rotate(&self) {
        let mut state = self.state();
        state.latest += 1;
        let (version, at) = (KeyVersion(state.latest), UnixMillis(state.mark + state.latest));
        state.created.insert(version, at);
    }

    /// Refuses ciphertexts of versions below this one.
    pub fn set_minimum(&self, version: u64) {
        self.state().minimum = version;
    }

    /// Deletes the master key and makes another one of the same name.
    pub fn recreate(&self) {
        let mut state = self.state();
        state.mark += 1_000_000;
        state.latest = 1;
        state.created = BTreeMap::from([(KeyVersion(1), UnixMillis(state.mark))]);
    }

    /// Holds the next answer to this operation (`wrap`, `unwrap`, `rewrap`) back.
    pub fn hold(&self, operation: &'static str) -> Late {
        let (gate, late) = Late::new();
        self.state().late = Some((operation, gate));
        late
    }

    async fn answer_late(&self, operation: &str) {
        let late = self.state().late.take_if(|(of, _)| *of == operation);
        if let Some((_, gate)) = late {
            gate.pass().await;
        }
    }

    /// Items that this operation (`wrap`, `unwrap`, `rewrap`) was asked for since the server was made.
    pub fn asked(&self, operation: &str) -> u64 {
        self.state().asked.get(operation).copied().unwrap_or_default()
    }
}

#[async_trait]
impl KmsProvider for FakeProvider {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn open(&self, config: &KmsConfig, credential: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        if matches!(credential.auth, Auth::None) {
            return Err(KmsError::new(KmsErrorKind::Denied, "no token is known"));
        }
        Ok(Arc::new(FakeKms { config: config.clone(), server: self.server_of(config) }))
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        prove(self.open(config, credential)?).await
    }
}

#[derive(Debug)]
struct FakeKms {
    config: KmsConfig,
    server: FakeServer,
}

impl FakeKms {
    fn answer(&self, operation: &'static str, items: usize) -> Result<(), KmsError> {
        let mut state = self.server.state();
        *state.asked.entry(operation).or_default() += items as u64;
        match state.down {
            Some(kind) => Err(KmsError::new(kind, "the fake KMS is away").cure("bring it back")),
            None => Ok(()),
        }
    }

    fn seal(&self, record: &[u8]) -> Ciphertext {
        let state = self.server.state();
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        let version = KeyVersion(state.latest);
        Ciphertext { text: format!("{}:{}:{hex}", state.mark, version.0), version }
    }

    fn open(&self, ciphertext: &Ciphertext) -> Result<Vec<u8>, KmsError> {
        let broken = || KmsError::new(KmsErrorKind::NotAuthentic, "the wrapped key does not open");
        let state = self.server.state();
        let mut parts = ciphertext.text.split(':');
        let mut number = || parts.next().and_then(|n| n.parse::<u64>().ok()).ok_or_else(broken);
        let (mark, version) = (number()?, number()?);
        // As Vault does: the version is looked at before anything is decrypted.
        if version < state.minimum {
            return Err(KmsError::new(KmsErrorKind::VersionTooOld, "the version is too old"));
        }
        if mark != state.mark || version > state.latest {
            return Err(broken());
        }
        let hex = parts.next().ok_or_else(broken)?;
        (0..hex.len() / 2)
            .map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).map_err(|_| broken()))
            .collect()
    }
}

#[async_trait]
impl Kms for FakeKms {
    fn config(&self) -> &KmsConfig {
        &self.config
    }

    async fn master_key(&self) -> Result<MasterKey, KmsError> {
        self.answer("read", 1)?;
        let state = self.server.state();
        Ok(MasterKey {
            name: self.config.master_key.clone(),
            latest_version: KeyVersion(state.latest),
            min_decryption_version: KeyVersion(state.minimum),
            created: state.created.clone(),
            deletion_allowed: false,
            exportable: false,
        })
    }

    async fn credential(&self) -> Result<CredentialStatus, KmsError> {
        self.answer("lookup", 1)?;
        let time_left = Some(Duration::from_secs(3600));
        Ok(CredentialStatus { time_left, renewable: true, periodic: true })
    }

    async fn renew(&self) -> Result<CredentialStatus, KmsError> {
        self.credential().await
    }

    async fn wrap(&self, records: &[KeyRecord]) -> Result<Items<Ciphertext>, KmsError> {
        self.answer("wrap", records.len())?;
        let answers = records.iter().map(|record| Ok(self.seal(record.expose()))).collect();
        self.server.answer_late("wrap").await;
        Ok(answers)
    }

    async fn unwrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<KeyRecord>, KmsError> {
        self.answer("unwrap", ciphertexts.len())?;
        let record = |ciphertext| {
            KeyRecord::parse(&self.open(ciphertext)?)
                .map_err(|e| KmsError::new(KmsErrorKind::NotAuthentic, e.to_string()))
        };
        let answers = ciphertexts.iter().map(record).collect();
        self.server.answer_late("unwrap").await;
        Ok(answers)
    }

    async fn rewrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<Ciphertext>, KmsError> {
        self.answer("rewrap", ciphertexts.len())?;
        let answers = ciphertexts.iter().map(|c| Ok(self.seal(&self.open(c)?))).collect();
        self.server.answer_late("rewrap").await;
        Ok(answers)
    }
}

//! A KMS in memory whose every answer a test controls: away, sealed, rotated, made again, items that fail.
//!
//! It encrypts nothing: its ciphertext is the record in hex, with the version and a mark of the master key in front, a
//! salt, and a check sum that tells whether anything of it was changed.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeMap, HashMap};
use std::hash::{Hash as _, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use crate::late::{Gate, Late};
use async_trait::async_trait;
use kms_core::{
    Auth, CheckItem, Ciphertext, Clock as _, Credential, CredentialHere, CredentialStatus, Finding,
    Items, KeyRecord, KeyVersion, Kms, KmsConfig, KmsConfigId, KmsError, KmsErrorKind, KmsProvider,
    MasterKey, Policy, Proof, SystemClock, UnixMillis,
};
use tokio::time::Instant;

/// A provider of fake KMSs: one for each address.
#[derive(Debug, Default, Clone)]
pub struct FakeProvider {
    servers: Arc<Mutex<HashMap<String, FakeServer>>>,
}

/// A provider of fake local wrapping: a key for each configuration, made and erased on demand.
#[derive(Debug, Default, Clone)]
pub struct FakeLocal {
    keys: Arc<Mutex<HashMap<KmsConfigId, FakeServer>>>,
    made: Arc<AtomicU64>,
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
    /// No two ciphertexts are alike.
    salt: u64,
    created: BTreeMap<KeyVersion, UnixMillis>,
    down: Option<KmsErrorKind>,
    token_life: Duration,
    renewable: bool,
    /// Why the credential can't be read where it lies.
    unread: Option<String>,
    /// How many credentials lay where it is read, one after the other.
    credentials: u64,
    /// By the clock of the runtime, which a test may stop.
    renewed: Instant,
    /// Items asked for, by operation.
    asked: BTreeMap<&'static str, u64>,
    /// What a check finds.
    found: Vec<CheckItem>,
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
        let place = Place::Here(Arc::clone(&self.keys));
        Ok(Arc::new(FakeKms { config: config.clone(), place }))
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        prove(self.open(config, credential)?).await
    }

    async fn provision(&self, config: &KmsConfig) -> Result<(), KmsError> {
        let mut keys = self.keys.lock().unwrap();
        let mark = u64::MAX / 2 + self.made.fetch_add(1, Ordering::Relaxed);
        keys.entry(config.id).or_insert_with(|| FakeServer::new(mark));
        Ok(())
    }

    async fn retire(&self, config: &KmsConfig) -> Result<(), KmsError> {
        self.keys.lock().unwrap().remove(&config.id);
        Ok(())
    }
}

/// Wraps nothing: tests count what is wrapped.
async fn prove(kms: Arc<dyn Kms>) -> Result<Proof, KmsError> {
    Ok(Proof {
        master_key: kms.master_key().await?,
        credential: kms.credential().await?,
        kms,
        findings: Vec::new(),
        requests: Vec::new(),
    })
}

impl FakeServer {
    fn new(mark: u64) -> Self {
        Self(Arc::new(Mutex::new(State {
            mark,
            latest: 1,
            minimum: 1,
            salt: 0,
            created: BTreeMap::from([(KeyVersion(1), made_at(mark))]),
            down: None,
            token_life: Duration::from_secs(3600),
            renewable: true,
            unread: None,
            credentials: 1,
            renewed: Instant::now(),
            asked: BTreeMap::new(),
            found: Vec::new(),
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
        let (version, at) = (KeyVersion(state.latest), made_at(state.mark + state.latest));
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
        state.created = BTreeMap::from([(KeyVersion(1), made_at(state.mark))]);
        state.minimum = 1;
        state.down.take_if(|down| *down == KmsErrorKind::KeyMissing);
    }

    /// Deletes the master key; every call says that it is missing.
    pub fn delete(&self) {
        self.set_down(Some(KmsErrorKind::KeyMissing));
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

    /// How long the token lives after a renewal; an hour if it is not said.
    pub fn set_token_life(&self, life: Duration) {
        self.state().token_life = life;
    }

    /// The token is another one, that nothing renews and that ends after this time. It is warned of as `token-not-renewable`.
    pub fn let_token_end(&self, life: Duration) {
        let mut state = self.state();
        (state.token_life, state.renewable, state.renewed) = (life, false, Instant::now());
    }

    /// The credential can't be read for this reason from now on; `None` ends it. It is warned of as `token-file-unreadable`.
    pub fn set_unread(&self, why: Option<&str>) {
        self.state().unread = why.map(str::to_owned);
    }

    /// Another credential lies where it is read, and every call is answered again.
    pub fn replace_credential(&self) {
        let mut state = self.state();
        (state.credentials, state.down) = (state.credentials + 1, None);
    }

    /// What a check finds from now on, while the KMS answers.
    pub fn checks_find(&self, found: Vec<CheckItem>) {
        self.state().found = found;
    }

    /// Items that this operation (`wrap`, `unwrap`, `rewrap`) was asked for since the server was made; how often it was asked for
    /// the master key (`read`), the token (`lookup`), or a renewal (`renew`).
    pub fn asked(&self, operation: &str) -> u64 {
        self.state().asked.get(operation).copied().unwrap_or_default()
    }
}

/// A little later for each mark, so that no two keys were made at the same time.
fn made_at(mark: u64) -> UnixMillis {
    SystemClock.now().plus(Duration::from_millis(mark % 1_000_000_000))
}

#[async_trait]
impl KmsProvider for FakeProvider {
    fn kind(&self) -> &'static str {
        Self::KIND
    }

    fn open(&self, config: &KmsConfig, credential: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        if matches!(credential.auth, Auth::None) {
            return Err(KmsError::new(KmsErrorKind::Denied, "no token is known").cure("give one"));
        }
        let place = Place::Server(self.server_of(config));
        Ok(Arc::new(FakeKms { config: config.clone(), place }))
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        prove(self.open(config, credential)?).await
    }

    fn policy(
        &self,
        master_keys: &[String],
        settings: &BTreeMap<String, String>,
    ) -> Result<Policy, KmsError> {
        if master_keys.iter().any(String::is_empty) {
            return Err(KmsError::new(KmsErrorKind::Invalid, "a key has a name").cure("give it"));
        }
        let text = master_keys.iter().map(|key| format!("{key} {settings:?}\n")).collect();
        Ok(Policy { text, commands: vec!["apply it".to_owned()] })
    }

    fn has_same_origin(&self, one: &KmsConfig, other: &KmsConfig) -> bool {
        let origin = |config: &KmsConfig| config.address.splitn(4, '/').take(3).collect::<String>();
        origin(one) == origin(other)
    }
}

#[derive(Debug)]
struct FakeKms {
    config: KmsConfig,
    place: Place,
}

/// Where the master key is.
#[derive(Debug)]
enum Place {
    Server(FakeServer),
    Here(Arc<Mutex<HashMap<KmsConfigId, FakeServer>>>),
}

impl FakeKms {
    fn server(&self) -> Result<FakeServer, KmsError> {
        let missing = || KmsError::new(KmsErrorKind::KeyMissing, "there is no local key");
        match &self.place {
            Place::Server(server) => Ok(server.clone()),
            Place::Here(keys) => {
                let key = keys.lock().unwrap().get(&self.config.id).cloned();
                key.ok_or_else(|| missing().cure("put it back"))
            }
        }
    }

    /// The server, if it answers.
    fn ask(&self, operation: &'static str, items: usize) -> Result<FakeServer, KmsError> {
        let server = self.server()?;
        let mut state = server.state();
        *state.asked.entry(operation).or_default() += items as u64;
        if let Some(kind) = state.down {
            return Err(KmsError::new(kind, "the fake KMS is away").cure("bring it back"));
        }
        drop(state);
        Ok(server)
    }
}

impl FakeServer {
    fn token(&self) -> CredentialStatus {
        let state = self.state();
        let left = state.token_life.saturating_sub(state.renewed.elapsed());
        // As Vault tells it, and not a moment after it was renewed one second less.
        let time_left = Some(Duration::from_secs(left.as_millis().div_ceil(1000) as u64));
        CredentialStatus { time_left, renewable: state.renewable, periodic: state.renewable }
    }

    fn seal(&self, record: &[u8]) -> Ciphertext {
        let mut state = self.state();
        state.salt += 1;
        let hex: String = record.iter().map(|byte| format!("{byte:02x}")).collect();
        let version = KeyVersion(state.latest);
        let text = format!("{}:{}:{:016x}{hex}", state.mark, version.0, state.salt);
        Ciphertext { text: format!("{text}{}", sum(&text)), version }
    }

    fn open(&self, ciphertext: &Ciphertext) -> Result<Vec<u8>, KmsError> {
        let broken = || {
            KmsError::new(KmsErrorKind::NotAuthentic, "the wrapped key does not open")
                .cure("put it back")
        };
        let state = self.state();
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
        let whole = &ciphertext.text;
        let summed = whole.len().checked_sub(SUM_LEN).and_then(|at| whole.split_at_checked(at));
        let (text, _) = summed.filter(|(text, said)| *said == sum(text)).ok_or_else(broken)?;
        let hex = text.splitn(3, ':').nth(2).and_then(|payload| payload.get(SALT_LEN..));
        let hex = hex.ok_or_else(broken)?;
        (0..hex.len() / 2)
            .map(|n| u8::from_str_radix(&hex[2 * n..2 * n + 2], 16).map_err(|_| broken()))
            .collect()
    }
}

/// Digits of a salt, and of a check sum.
const SALT_LEN: usize = 16;
const SUM_LEN: usize = 16;

fn sum(text: &str) -> String {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    format!("{:016x}", hasher.finish())
}

#[async_trait]
impl Kms for FakeKms {
    fn config(&self) -> &KmsConfig {
        &self.config
    }

    async fn master_key(&self) -> Result<MasterKey, KmsError> {
        let server = self.ask("read", 1)?;
        let state = server.state();
        Ok(MasterKey {
            name: self.config.master_key.clone(),
            latest_version: KeyVersion(state.latest),
            min_decryption_version: KeyVersion(state.minimum),
            created: state.created.clone(),
            deletion_allowed: false,
            exportable: false,
            backup_in_clear: false,
        })
    }

    async fn credential(&self) -> Result<CredentialStatus, KmsError> {
        Ok(self.ask("lookup", 1)?.token())
    }

    /// As over Vault: a look, and then the renewal.
    async fn renew(&self) -> Result<CredentialStatus, KmsError> {
        self.ask("lookup", 1)?;
        let server = self.ask("renew", 1)?;
        server.state().renewed = Instant::now();
        Ok(server.token())
    }

    fn findings(&self, _: &MasterKey, credential: &CredentialStatus) -> Vec<Finding> {
        let ends = || Finding {
            ends_in: credential.time_left,
            ..Finding::new("token-not-renewable", "the token can't be renewed", "give another")
        };
        (!credential.renewable).then(ends).into_iter().collect()
    }

    async fn credential_here(&self) -> CredentialHere {
        let Ok(server) = self.server() else { return CredentialHere::default() };
        let unread = |why: &String| Finding::new("token-file-unreadable", why, "bring it back");
        let state = server.state();
        let findings = state.unread.iter().map(unread).collect();
        CredentialHere { findings, number: state.credentials }
    }

    async fn check(&self, _: Option<&Ciphertext>) -> Vec<CheckItem> {
        match self.ask("check", 1) {
            Err(away) if away.kind().is_transient() => {
                vec![CheckItem::failed("answers", "the KMS answers", &away)]
            }
            Err(_) => Vec::new(),
            Ok(server) => server.state().found.clone(),
        }
    }

    async fn wrap(&self, records: &[KeyRecord]) -> Result<Items<Ciphertext>, KmsError> {
        if records.is_empty() {
            return Ok(Items::default());
        }
        let server = self.ask("wrap", records.len())?;
        let answers = records.iter().map(|record| Ok(server.seal(record.expose()))).collect();
        server.answer_late("wrap").await;
        Ok(answers)
    }

    async fn unwrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<KeyRecord>, KmsError> {
        if ciphertexts.is_empty() {
            return Ok(Items::default());
        }
        let server = self.ask("unwrap", ciphertexts.len())?;
        let record = |ciphertext| {
            KeyRecord::parse(&server.open(ciphertext)?)
                .map_err(|e| KmsError::new(KmsErrorKind::NotAuthentic, e.to_string()))
        };
        let answers = ciphertexts.iter().map(record).collect();
        server.answer_late("unwrap").await;
        Ok(answers)
    }

    async fn rewrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<Ciphertext>, KmsError> {
        if ciphertexts.is_empty() {
            return Ok(Items::default());
        }
        let server = self.ask("rewrap", ciphertexts.len())?;
        let answers = ciphertexts.iter().map(|c| Ok(server.seal(&server.open(c)?))).collect();
        server.answer_late("rewrap").await;
        Ok(answers)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;

    use super::*;
    use crate::kms::{KmsFixture, MasterKeyAdmin, kms_contract};
    use crate::provider::{Fault, KmsProviderFixture, kms_provider_contract};

    #[derive(Default)]
    struct Fakes {
        provider: FakeProvider,
        made: AtomicU32,
    }

    impl Fakes {
        fn config(&self) -> KmsConfig {
            let number = self.made.fetch_add(1, Ordering::Relaxed);
            config(FakeProvider::KIND, &format!("https://{number}.example"))
        }
    }

    fn config(kind: &str, address: &str) -> KmsConfig {
        KmsConfig {
            id: KmsConfigId::random(),
            kind: kind.to_owned(),
            address: address.to_owned(),
            master_key: "k".to_owned(),
            settings: BTreeMap::new(),
        }
    }

    const TOKEN: &str = "canary-of-the-token";

    #[async_trait]
    impl KmsFixture for Fakes {
        async fn make(&self) -> Arc<dyn Kms> {
            self.provider.open(&self.config(), &Credential::token(TOKEN)).unwrap()
        }

        fn admin(&self) -> Option<&dyn MasterKeyAdmin> {
            Some(self)
        }

        fn secrets(&self) -> Vec<String> {
            vec![TOKEN.to_owned()]
        }
    }

    #[async_trait]
    impl MasterKeyAdmin for Fakes {
        async fn rotate(&self, config: &KmsConfig) {
            self.provider.server(&config.address).rotate();
        }

        async fn set_min_decryption_version(&self, config: &KmsConfig, version: KeyVersion) {
            self.provider.server(&config.address).set_minimum(version.0);
        }

        async fn delete(&self, config: &KmsConfig) {
            self.provider.server(&config.address).delete();
        }

        async fn create(&self, config: &KmsConfig) {
            self.provider.server(&config.address).recreate();
        }
    }

    #[async_trait]
    impl KmsProviderFixture for Fakes {
        fn provider(&self) -> &dyn KmsProvider {
            &self.provider
        }

        async fn make(&self) -> (KmsConfig, Credential) {
            (self.config(), Credential::token(TOKEN))
        }

        async fn faults(&self) -> Vec<Fault> {
            let away = |kind| {
                let config = self.config();
                self.provider.server(&config.address).set_down(Some(kind));
                Fault::new(config, Credential::token(TOKEN), kind, "away")
            };
            let none = Credential::default();
            vec![
                away(KmsErrorKind::Unreachable),
                away(KmsErrorKind::Sealed),
                away(KmsErrorKind::KeyMissing),
                Fault::new(self.config(), none, KmsErrorKind::Denied, "token").seen_at_once(),
            ]
        }

        fn keeps_keys_here(&self) -> bool {
            false
        }

        fn secrets(&self) -> Vec<String> {
            vec![TOKEN.to_owned()]
        }
    }

    #[async_trait]
    impl KmsProviderFixture for FakeLocal {
        fn provider(&self) -> &dyn KmsProvider {
            self
        }

        async fn make(&self) -> (KmsConfig, Credential) {
            (config("local", ""), Credential::default())
        }

        async fn faults(&self) -> Vec<Fault> {
            let none = Credential::default();
            vec![Fault::new(config("local", ""), none, KmsErrorKind::KeyMissing, "local key")]
        }

        fn keeps_keys_here(&self) -> bool {
            true
        }

        fn secrets(&self) -> Vec<String> {
            Vec::new()
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn it_keeps_the_promises_of_a_kms() {
        kms_contract(&Fakes::default()).await;
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn they_keep_the_promises_of_a_provider() {
        kms_provider_contract(&Fakes::default()).await;
        kms_provider_contract(&FakeLocal::default()).await;
    }
}

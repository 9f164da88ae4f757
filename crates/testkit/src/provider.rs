//! What every [`KmsProvider`] promises, as a suite that each implementation runs.

use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{
    Credential, FilesystemKey, Finding, Kms, KmsConfig, KmsConfigId, KmsError, KmsErrorKind,
    KmsExt as _, KmsProvider, Proof, WrappedKey,
};

/// What the suite needs of an implementation.
#[async_trait]
pub trait KmsProviderFixture: Sync {
    /// It.
    fn provider(&self) -> &dyn KmsProvider;

    /// A configuration with a master key of its own, and the least that shows its KMS who we are. Nothing was provisioned for it.
    async fn make(&self) -> (KmsConfig, Credential);

    /// Configurations and credentials each of which has one fault.
    async fn faults(&self) -> Vec<Fault>;

    /// Whether [`KmsProvider::provision`] makes the master key itself.
    fn keeps_keys_here(&self) -> bool;

    /// Texts that must show nowhere, such as the token.
    fn secrets(&self) -> Vec<String>;
}

/// Something that does not work.
#[derive(Debug)]
pub struct Fault {
    config: KmsConfig,
    credential: Credential,
    kind: KmsErrorKind,
    /// What the failure names.
    named: String,
    at_once: bool,
}

impl Fault {
    /// A proof of this fails in that way, and names `named`.
    pub fn new(
        config: KmsConfig,
        credential: Credential,
        kind: KmsErrorKind,
        named: impl Into<String>,
    ) -> Self {
        Self { config, credential, kind, named: named.into(), at_once: false }
    }

    /// One that shows without asking anybody: it is not opened either.
    #[must_use]
    pub fn seen_at_once(self) -> Self {
        Self { at_once: true, ..self }
    }
}

/// Holds an implementation to the trait's words. Panics at the first promise that is broken. Run it on a
/// multi-threaded runtime.
pub async fn kms_provider_contract(fixture: &dyn KmsProviderFixture) {
    what_is_proved_works(fixture).await;
    what_is_opened_is_what_was_proved(fixture).await;
    what_fails_is_named_and_stays_as_it_is(fixture).await;
    the_same_place_is_reached_alike(fixture).await;
    provisioning_twice_does_no_harm(fixture).await;
    retiring_twice_does_no_harm(fixture).await;
}

/// A configuration that can be used.
async fn ready(fixture: &dyn KmsProviderFixture) -> (KmsConfig, Credential) {
    let (config, credential) = fixture.make().await;
    assert_eq!(config.kind, fixture.provider().kind());
    fixture.provider().provision(&config).await.unwrap();
    (config, credential)
}

fn open(
    fixture: &dyn KmsProviderFixture,
    config: &KmsConfig,
    credential: &Credential,
) -> Arc<dyn Kms> {
    let kms = fixture.provider().open(config, credential).unwrap();
    assert_eq!(kms.config(), config);
    kms
}

async fn prove(
    fixture: &dyn KmsProviderFixture,
    config: &KmsConfig,
    credential: &Credential,
) -> Result<Proof, KmsError> {
    let proof = fixture.provider().prove(config, credential).await;
    assert_no_secret(fixture, &format!("{proof:?}"));
    if let Err(error) = &proof {
        let shown = format!("{error} {} {:?}", error.chain(), error.how_to_mend());
        assert_no_secret(fixture, &shown);
    }
    proof
}

fn assert_no_secret(fixture: &dyn KmsProviderFixture, shown: &str) {
    for secret in fixture.secrets() {
        assert!(!shown.contains(&secret), "a secret shows in {shown}");
    }
}

async fn wrap(kms: &dyn Kms) -> (FilesystemKey, WrappedKey) {
    let key = Arc::new(FilesystemKey::generate().unwrap());
    let wrapped = kms.wrap_keys(&[Arc::clone(&key)]).await.unwrap().only().unwrap();
    (Arc::into_inner(key).unwrap(), wrapped)
}

async fn assert_opens(kms: &dyn Kms, wrapped: &WrappedKey, key: &FilesystemKey) {
    let opened = kms.unwrap_keys(std::slice::from_ref(wrapped)).await.unwrap().only().unwrap();
    opened.expose(|opened| key.expose(|key| assert!(opened == key, "another key came back")));
}

/// Of one item, whether for the item or for the batch.
async fn unwrap_error(kms: &dyn Kms, wrapped: &WrappedKey) -> KmsErrorKind {
    match kms.unwrap_keys(std::slice::from_ref(wrapped)).await {
        Ok(items) => items.only().map(drop).unwrap_err().kind(),
        Err(error) => error.kind(),
    }
}

async fn what_is_proved_works(fixture: &dyn KmsProviderFixture) {
    let (config, credential) = ready(fixture).await;
    let proof = prove(fixture, &config, &credential).await.unwrap();
    assert_eq!(proof.kms.config(), &config);
    assert_eq!(proof.master_key, proof.kms.master_key().await.unwrap());
    assert_eq!(proof.master_key.name, config.master_key);
    let (key, wrapped) = wrap(&*proof.kms).await;
    assert_eq!(wrapped.config_id, config.id);
    assert_opens(&*proof.kms, &wrapped, &key).await;
    for finding in &proof.findings {
        let parts = [&finding.code, &finding.what, &finding.cure];
        assert!(parts.iter().all(|part| !part.is_empty()), "{finding:?}");
    }
    // A proof changes nothing that another one would see, but for the time that is left.
    let again = prove(fixture, &config, &credential).await.unwrap();
    let found = |proof: &Proof| {
        let timeless = |found: &Finding| Finding { ends_in: None, ..found.clone() };
        proof.findings.iter().map(timeless).collect::<Vec<_>>()
    };
    assert_eq!((&again.master_key, found(&again)), (&proof.master_key, found(&proof)));
}

async fn what_is_opened_is_what_was_proved(fixture: &dyn KmsProviderFixture) {
    let (config, credential) = ready(fixture).await;
    let proved = prove(fixture, &config, &credential).await.unwrap().kms;
    let (key, wrapped) = wrap(&*proved).await;
    assert_opens(&*open(fixture, &config, &credential), &wrapped, &key).await;
}

/// A fault keeps nobody from opening, unless it can be seen without asking; a proof names it each time, and mends nothing by itself.
async fn what_fails_is_named_and_stays_as_it_is(fixture: &dyn KmsProviderFixture) {
    let faults = fixture.faults().await;
    assert!(!faults.is_empty());
    for Fault { config, credential, kind, named, at_once } in faults {
        let opened = fixture.provider().open(&config, &credential);
        assert_eq!(opened.map(drop).err().map(|e| e.kind()), at_once.then_some(kind), "{named}");
        for _ in 0..2 {
            let error = prove(fixture, &config, &credential).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), kind, "{named}: {error:?}");
            assert!(error.chain().contains(&named), "{named}: {error:?}");
            assert!(error.how_to_mend().is_some(), "{named}: {error:?}");
        }
    }
}

async fn the_same_place_is_reached_alike(fixture: &dyn KmsProviderFixture) {
    let (config, _) = fixture.make().await;
    let provider = fixture.provider();
    let other = KmsConfig { id: KmsConfigId::random(), ..config.clone() };
    assert!(provider.reached_alike(&config, &other) && provider.reached_alike(&other, &config));
    let key = KmsConfig { master_key: "another".to_owned(), ..config.clone() };
    assert!(provider.reached_alike(&config, &key));
    let elsewhere = KmsConfig { address: "https://elsewhere.example".to_owned(), ..config.clone() };
    assert!(!provider.reached_alike(&config, &elsewhere));
    assert!(!provider.reached_alike(&elsewhere, &config));
    assert!(
        provider.has_same_origin(&config, &key) && !provider.has_same_origin(&config, &elsewhere)
    );
}

async fn provisioning_twice_does_no_harm(fixture: &dyn KmsProviderFixture) {
    let (config, credential) = ready(fixture).await;
    let kms = open(fixture, &config, &credential);
    let (key, wrapped) = wrap(&*kms).await;
    fixture.provider().provision(&config).await.unwrap();
    assert_opens(&*kms, &wrapped, &key).await;
}

/// What was made here is gone and is not made again by being used; a master key elsewhere stays.
async fn retiring_twice_does_no_harm(fixture: &dyn KmsProviderFixture) {
    let provider = fixture.provider();
    let (never, _) = fixture.make().await;
    provider.retire(&never).await.unwrap();

    let (other, other_credential) = ready(fixture).await;
    let (other_key, other_wrapped) = wrap(&*open(fixture, &other, &other_credential)).await;
    let (config, credential) = ready(fixture).await;
    let kms = open(fixture, &config, &credential);
    let (key, wrapped) = wrap(&*kms).await;
    for _ in 0..2 {
        provider.retire(&config).await.unwrap();
        if fixture.keeps_keys_here() {
            assert_eq!(unwrap_error(&*kms, &wrapped).await, KmsErrorKind::KeyMissing);
            let error = prove(fixture, &config, &credential).await.map(drop).unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::KeyMissing, "{error:?}");
        } else {
            assert_opens(&*kms, &wrapped, &key).await;
        }
    }
    if fixture.keeps_keys_here() {
        provider.provision(&config).await.unwrap();
        assert_eq!(unwrap_error(&*kms, &wrapped).await, KmsErrorKind::NotAuthentic);
    }
    assert_opens(&*open(fixture, &other, &other_credential), &other_wrapped, &other_key).await;
}

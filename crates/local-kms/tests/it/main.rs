//! Local wrapping against the contract of a KMS, and what is its own.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{
    Credential, FilesystemKey, Kms, KmsConfig, KmsConfigId, KmsErrorKind, KmsExt, KmsProvider,
    WrappedKey,
};
use local_kms::LocalProvider;
use tempfile::TempDir;
use testkit::kms::{KmsFixture, MasterKeyAdmin, kms_contract};
use testkit::provider::{Fault, KmsProviderFixture, kms_provider_contract};

struct Local {
    dir: TempDir,
    provider: LocalProvider,
}

impl Local {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let provider = LocalProvider::new(dir.path());
        Self { dir, provider }
    }

    fn kms(&self) -> Arc<dyn Kms> {
        let config = LocalProvider::config(KmsConfigId::random());
        self.provider.create_key(config.id).unwrap();
        self.provider.open(&config, &Credential::default()).unwrap()
    }
}

#[async_trait]
impl KmsFixture for Local {
    async fn make(&self) -> Arc<dyn Kms> {
        self.kms()
    }

    /// A local key has one version, and making it anew is a new configuration.
    fn admin(&self) -> Option<&dyn MasterKeyAdmin> {
        None
    }

    fn secrets(&self) -> Vec<String> {
        let files = fs::read_dir(self.dir.path()).unwrap();
        files.map(|file| hex::encode(&fs::read(file.unwrap().path()).unwrap()[32..64])).collect()
    }
}

#[async_trait]
impl KmsProviderFixture for Local {
    fn provider(&self) -> &dyn KmsProvider {
        &self.provider
    }

    async fn make(&self) -> (KmsConfig, Credential) {
        (LocalProvider::config(KmsConfigId::random()), Credential::default())
    }

    async fn faults(&self) -> Vec<Fault> {
        let fault = |config: KmsConfig, kind, named: &str| {
            Fault::new(config, Credential::default(), kind, named)
        };
        let config = || LocalProvider::config(KmsConfigId::random());
        let made = || {
            let config = config();
            self.provider.create_key(config.id).unwrap();
            let file = self.provider.key_file(config.id);
            (config, file)
        };
        let ((damaged, file), (open, open_file)) = (made(), made());
        fs::write(&file, "CFLK").unwrap();
        fs::set_permissions(&open_file, fs::Permissions::from_mode(0o640)).unwrap();
        let never = config();
        let never_file = self.provider.key_file(never.id);
        let another = KmsConfig { kind: "another".to_owned(), ..config() };
        vec![
            fault(never, KmsErrorKind::KeyMissing, never_file.to_str().unwrap()),
            fault(damaged, KmsErrorKind::Internal, file.to_str().unwrap()),
            fault(open, KmsErrorKind::Internal, "0640"),
            fault(another, KmsErrorKind::Invalid, "another").seen_at_once(),
        ]
    }

    fn keeps_keys_here(&self) -> bool {
        true
    }

    fn secrets(&self) -> Vec<String> {
        Vec::new()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn contract() {
    kms_contract(&Local::new()).await;
    kms_provider_contract(&Local::new()).await;
}

async fn wrap_one(kms: &dyn Kms) -> WrappedKey {
    let key = Arc::new(FilesystemKey::generate().unwrap());
    kms.wrap_keys(&[key]).await.unwrap().only().unwrap()
}

#[tokio::test]
async fn an_erased_key_opens_nothing_and_is_not_made_again() {
    let local = Local::new();
    let (kms, other) = (local.kms(), local.kms());
    let wrapped = wrap_one(&*kms).await;
    local.provider.erase_key(kms.config().id).unwrap();

    let errors = [
        kms.unwrap_keys(std::slice::from_ref(&wrapped)).await.map(|_| ()).unwrap_err(),
        kms.rewrap_keys(&[wrapped]).await.map(|_| ()).unwrap_err(),
        kms.wrap_keys(&[Arc::new(FilesystemKey::generate().unwrap())])
            .await
            .map(|_| ())
            .unwrap_err(),
        kms.master_key().await.unwrap_err(),
        local.provider.prove(kms.config(), &Credential::default()).await.map(|_| ()).unwrap_err(),
    ];
    for error in errors {
        assert_eq!(error.kind(), KmsErrorKind::KeyMissing);
        assert!(error.how_to_mend().is_some());
    }
    assert_eq!(local.provider.keys().unwrap(), [other.config().id]);
    wrap_one(&*other).await;
}

#[tokio::test]
async fn a_key_outlives_its_provider() {
    let local = Local::new();
    let kms = local.kms();
    let wrapped = wrap_one(&*kms).await;
    let again =
        LocalProvider::new(local.dir.path()).open(kms.config(), &Credential::default()).unwrap();
    let opened = again.unwrap_keys(std::slice::from_ref(&wrapped)).await.unwrap().only().unwrap();
    assert_eq!(opened.id(), wrapped.key_id);
}

#[tokio::test]
async fn a_damaged_key_file_says_so() {
    let local = Local::new();
    let kms = local.kms();
    let wrapped = wrap_one(&*kms).await;
    let file = local.dir.path().join(format!("local-{}.key", kms.config().id));
    let mut bytes = fs::read(&file).unwrap();
    bytes[40] ^= 1;
    fs::write(&file, bytes).unwrap();
    let error = kms.unwrap_keys(&[wrapped]).await.map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Internal);
    assert_eq!(error.to_string(), format!("the local key {} is damaged", file.display()));
    assert!(error.how_to_mend().unwrap().contains("backup"));
}

#[tokio::test]
async fn a_key_file_that_is_in_the_way_says_what_is_wrong_with_it() {
    let local = Local::new();
    let config = LocalProvider::config(KmsConfigId::random());
    local.provider.provision(&config).await.unwrap();
    let file = local.provider.key_file(config.id);
    let whole = fs::read(&file).unwrap();
    let set_mode = |mode| fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
    type Harm<'a> = (&'a str, &'a dyn Fn());
    let harms: [Harm<'_>; 2] = [
        ("is damaged", &|| fs::write(&file, &whole[..40]).unwrap()),
        ("may be read by others", &|| set_mode(0o644)),
    ];
    for (what, harm) in harms {
        harm();
        let error = local.provider.provision(&config).await.unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Internal, "{error:?}");
        assert!(error.to_string().contains(what), "{what}: {error:?}");
        assert!(error.how_to_mend().unwrap().contains("remove it"), "{what}: {error:?}");
        fs::remove_file(&file).unwrap();
        local.provider.provision(&config).await.unwrap();
    }
}

#[tokio::test]
async fn what_is_proved_is_shown_as_exposed() {
    let local = Local::new();
    let kms = local.kms();
    let proof = local.provider.prove(kms.config(), &Credential::default()).await.unwrap();
    assert_eq!(
        proof.findings.iter().map(|f| f.code.as_str()).collect::<Vec<_>>(),
        ["local-wrapping"]
    );
    let cure = &proof.findings[0].cure;
    assert!(cure.contains("set-vault") && cure.contains("fs rekey"), "{cure}");
    assert!(proof.master_key.exportable && proof.master_key.deletion_allowed);
    assert_eq!(proof.credential.time_left, None);
}

#[test]
fn a_configuration_of_another_kind_is_refused() {
    let local = Local::new();
    let mut config = LocalProvider::config(KmsConfigId::random());
    config.kind = "vault".to_owned();
    let error = local.provider.open(&config, &Credential::default()).map(|_| ()).unwrap_err();
    assert_eq!(error.kind(), KmsErrorKind::Invalid);
}

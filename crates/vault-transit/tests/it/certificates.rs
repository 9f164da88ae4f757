//! Vault's certificate and the one that it is shown: both end, and that is told before, and named when it has happened.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use dev_vault::DevVault;
use kms_core::{
    CheckOutcome, ClientIdentity, Credential, KmsConfig, KmsErrorKind, KmsProvider as _,
};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use time::{Duration, OffsetDateTime};
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;
use tokio_rustls::rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use tokio_rustls::rustls::sign::CertifiedKey;
use tokio_rustls::rustls::{RootCertStore, ServerConfig, version};

use crate::shared::{config, provider};
use crate::tls::tls_before;

const EXPIRES: &str = "client-certificate-expires";
const ENDS_SOON: &str = "certificate-ends-soon";

/// A certificate as no tool of today makes one, of version 1.
const VERSION_1: &str = "-----BEGIN CERTIFICATE-----\n\
     MIIBFzCBvQIUOVw4aYgXAypNPLVzKxUUs4DJuKswCgYIKoZIzj0EAwIwDTELMAkG\n\
     A1UEAwwCdjEwIBcNMjYxMTI5MDE0NDU2WhgPMjEyNjExMDUwMTQ0NTZaMA0xCzAJ\n\
     BgNVBAMMAnYxMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEnySTsKaODB+ZSs7K\n\
     G1NCR9g3hd5JZ2r/bb9wgkHs+E27z7SkpgTQ7ePz+fJUVIMXqDxt9udnpJAbXPBu\n\
     CLKptzAKBggqhkjOPQQDAgNJADBGAiEAhZYeTJ9nnxUTl0EcSLvp3SPPiiER1JQv\n\
     S8srOAvyV2MCIQDpY9WXslFdkZJQdLpeH2L/TmanCbF29obDSgq+EkmRCw==\n\
     -----END CERTIFICATE-----\n";

/// Who signs the certificates of clients.
struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    /// One that ends so long from now.
    fn client(&self, ends_in: Duration) -> ClientIdentity {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.not_after = OffsetDateTime::now_utc() + ends_in;
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        ClientIdentity { certificate, key: key.serialize_pem().into() }
    }
}

/// A port with TLS before a server without: its own certificate ends so long from now, and clients need one of this authority. Answers
/// how it is reached.
async fn with_tls(server: SocketAddr, ends_in: Duration, clients: &Authority) -> KmsConfig {
    let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
    params.not_after = OffsetDateTime::now_utc() + ends_in;
    let key = KeyPair::generate().unwrap();
    let certificate = params.self_signed(&key).unwrap();
    let mut roots = RootCertStore::empty();
    roots.add(clients.certificate.der().clone()).unwrap();
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).build().unwrap();
    let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let tls = ServerConfig::builder().with_client_cert_verifier(verifier);
    let tls = tls.with_single_cert(vec![certificate.der().clone()], secret).unwrap();
    let port = tls_before(server, tls).await;
    let mut config = config(&format!("https://127.0.0.1:{port}"), "k");
    config.settings.insert("ca_cert".into(), certificate.pem());
    config
}

#[tokio::test(flavor = "multi_thread")]
async fn their_ends_are_told_before() {
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    let authority = Authority::new();
    let (soon, late) = (Duration::days(13), Duration::days(15));
    for (ours, vaults, told) in [
        (late, late, &[][..]),
        (soon, late, &[EXPIRES]),
        (late, soon, &[ENDS_SOON]),
        (soon, soon, &[ENDS_SOON, EXPIRES]),
    ] {
        let config = with_tls(vault.address(), vaults, &authority).await;
        let identity = Some(authority.client(ours));
        let credential = Credential { identity, ..Credential::token(vault.root_token()) };
        let proof = provider().prove(&config, &credential).await.unwrap();
        let (key, status) = (proof.master_key, proof.credential);
        let later = proof.kms.findings(&key, &status);
        for findings in [&proof.findings, &later] {
            let of_certificates =
                findings.iter().filter(|found| found.code.contains("certificate"));
            let codes: Vec<_> = of_certificates.clone().map(|found| found.code.as_str()).collect();
            assert_eq!(codes, told);
            for found in of_certificates {
                assert!(found.told().contains("; it ends in 1"), "{found:?}");
            }
        }
        let warned: Vec<_> = (proof.kms.check(None).await.into_iter())
            .filter(|item| {
                item.code.contains("certificate") && item.outcome != CheckOutcome::Passed
            })
            .map(|item| item.code)
            .collect();
        assert_eq!(warned, told);
        let ends: Vec<_> = (proof.kms.ends().into_iter())
            .map(|ending| (ending.what, ending.left.as_secs().div_ceil(24 * 60 * 60)))
            .collect();
        let days = |life: Duration| u64::try_from(life.whole_days()).unwrap();
        let expected = [("the client certificate", ours), ("Vault's certificate", vaults)];
        assert_eq!(ends, expected.map(|(what, life)| (what.to_owned(), days(life))));
    }
}

/// A connection that resumed the last one would not see it.
#[tokio::test(flavor = "multi_thread")]
async fn another_certificate_is_seen_by_the_next_request() {
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    let ends_in = |days| {
        let mut params = CertificateParams::new(["127.0.0.1".to_owned()]).unwrap();
        params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = aws_lc_rs::default_provider();
        let shown = CertifiedKey::from_der(vec![certificate.der().clone()], secret, &provider);
        (certificate.pem(), Arc::new(shown.unwrap()))
    };
    let (first, second, stranger) = (ends_in(100), ends_in(200), ends_in(300));
    for versions in [&[&version::TLS13], &[&version::TLS12]] {
        let shown = Arc::new(Shown(Mutex::new(Arc::clone(&first.1))));
        let tls = ServerConfig::builder_with_protocol_versions(versions).with_no_client_auth();
        let tls = tls.with_cert_resolver(Arc::clone(&shown) as Arc<dyn ResolvesServerCert>);
        let port = tls_before(vault.address(), tls).await;
        let mut config = config(&format!("https://127.0.0.1:{port}"), "k");
        config.settings.insert("ca_cert".into(), format!("{}{}", first.0, second.0));
        let credential = Credential::token(vault.root_token());
        let kms = provider().open(&config, &credential).unwrap();
        for (certificate, days) in [(&first.1, 100), (&second.1, 200)] {
            shown.0.lock().unwrap().clone_from(certificate);
            kms.master_key().await.unwrap();
            let left = kms.ends()[0].left.as_secs().div_ceil(24 * 60 * 60);
            assert_eq!(left, days);
        }
        shown.0.lock().unwrap().clone_from(&stranger.1);
        assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::Unreachable);
    }
}

/// What a server shows from now on.
#[derive(Debug)]
struct Shown(Mutex<Arc<CertifiedKey>>);

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.lock().unwrap()))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_certificate_that_is_over_is_named() {
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    let authority = Authority::new();
    let over = Some(authority.client(Duration::seconds(-1)));
    let credential = Credential { identity: over, ..Credential::token(vault.root_token()) };
    let config = with_tls(vault.address(), Duration::days(100), &authority).await;
    let kms = provider().open(&config, &credential).unwrap();
    for error in [
        provider().prove(&config, &credential).await.unwrap_err(),
        kms.master_key().await.unwrap_err(),
    ] {
        assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error:?}");
        let (what, cure) = (error.to_string(), error.how_to_mend().unwrap());
        assert!(what.contains("the client certificate any more: it ended at 20"), "{what}");
        assert!(cure.contains("set-vault … --client-cert FILE"), "{cure}");
    }

    // Who does not ask for one answers.
    let kms = provider().open(&self::config(&vault.url(), "k"), &credential).unwrap();
    kms.master_key().await.unwrap();
    assert_eq!(kms.ends(), [], "plain http shows none");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_key_that_does_not_fit_is_named() {
    let authority = Authority::new();
    let (one, other) = (authority.client(Duration::days(9)), authority.client(Duration::days(9)));
    let version_1 = ClientIdentity { certificate: VERSION_1.to_owned(), ..one.clone() };
    let config = config("https://127.0.0.1:1", "k");
    for (identity, why) in [
        (ClientIdentity { key: other.key, ..one }, "the client key is not that of"),
        (version_1, "of an old version"),
    ] {
        let credential = Credential { identity: Some(identity), ..Credential::token("t") };
        let error = provider().open(&config, &credential).unwrap_err();
        assert_eq!(error.kind(), KmsErrorKind::Invalid, "{error:?}");
        assert!(error.to_string().contains(why), "{error:?}");
        let cure = error.how_to_mend().unwrap();
        assert!(cure.contains("--client-cert") && cure.contains("--client-key"), "{cure}");
    }
}

//! Over real Vaults: 1.1.5, the oldest that Coffer supports, and the newest.
//!
//! ```text
//! cargo xtask vault          # builds them and prints their paths
//! COFFER_TEST_VAULT_1_1_5=… COFFER_TEST_VAULT_NEWEST=… \
//!     cargo test -p vault-transit --features real-vault --test real_vault
//! ```
// Clippy takes only functions marked `#[test]` for tests, and not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use kms_core::{ClientIdentity, Credential, KmsErrorKind, KmsProvider as _};
use serde_json::json;
use testkit::vault_server::{self, TlsFiles, VaultServer};

#[path = "it/provider.rs"]
mod provider;
#[path = "it/shared/mod.rs"]
mod shared;

use shared::{Vault, credentials, keys, permissions, prove};

const ROOT: &str = VaultServer::ROOT_TOKEN;

fn start(variable: &str) -> Vault {
    let server = VaultServer::start(&VaultServer::program(variable));
    let url = server.url().to_owned();
    Vault::new(&url, ROOT, server)
}

macro_rules! over {
    ($module:ident, $variable:expr) => {
        mod $module {
            use super::*;

            #[tokio::test(flavor = "multi_thread")]
            async fn contract() {
                let vault = start($variable);
                shared::contract(&vault).await;
                provider::contract(&vault).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn permissions_and_tokens() {
                let vault = start($variable);
                permissions::the_least_privilege_is_enough(&vault).await;
                permissions::each_missing_permission_is_named(&vault).await;
                permissions::a_permission_lost_later_is_named(&vault).await;
                permissions::a_token_that_may_not_renew_itself_ends(&vault).await;
                credentials::bad_tokens_are_named(&vault).await;
                credentials::the_life_of_a_token_is_told(&vault).await;
                credentials::the_root_token_is_warned_of(&vault, ROOT).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn checks() {
                permissions::a_check_tells_all(&start($variable), ROOT).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn logins_and_token_files() {
                let vault = start($variable);
                credentials::a_login_that_is_refused_says_so(&vault).await;
                credentials::a_login_outlives_its_tokens(&vault).await;
                credentials::the_end_of_a_secret_id_is_told_before_a_login_is_refused(&vault).await;
                credentials::a_token_file_is_read_when_it_changes(&vault).await;
            }

            #[tokio::test(flavor = "multi_thread")]
            async fn keys() {
                let vault = start($variable);
                keys::what_is_missing_is_named(&vault, ROOT).await;
                let kv = |version| Some(json!({ "type": "kv", "options": { "version": version } }));
                let engines = [("sys", None), ("identity", None), ("kv1", kv("1")), ("kv2", kv("2"))];
                keys::another_engine_is_told(&vault, ROOT, &engines).await;
                keys::a_key_that_goes_between_read_and_encrypt_is_not_made(&vault).await;
                keys::flags_of_the_key_are_warned_of(&vault, ROOT).await;
                keys::transit_may_be_mounted_anywhere(&vault, ROOT).await;
                for unfit in [
                    json!({ "type": "ed25519" }),
                    json!({ "type": "ecdsa-p256" }),
                    json!({ "type": "rsa-2048" }),
                    json!({ "derived": true }),
                ] {
                    keys::an_unfit_key_is_refused(&vault, ROOT, unfit).await;
                }
                let chacha = vault.make_key(&json!({ "type": "chacha20-poly1305" }));
                prove(&chacha, ROOT).await.unwrap();
                keys::a_sealed_vault_has_its_own_words(&vault, ROOT).await;
            }
        }
    };
}

over!(v1_1_5, vault_server::OLDEST);
over!(newest, vault_server::NEWEST);

/// A private CA: its certificate is needed, is enough, and must be the right one, for the right name.
#[tokio::test(flavor = "multi_thread")]
async fn tls_with_a_private_ca() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key, right) = server_certificate(folder.path());
    let program = VaultServer::program(vault_server::OLDEST);
    let server = VaultServer::start_tls(
        &program,
        TlsFiles { certificate: &certificate, key: &key, clients: None },
    );

    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    let by_name = server.url().replace("127.0.0.1", "localhost");
    for (url, ca, good) in [
        (server.url(), Some(right.clone()), true),
        (server.url(), Some(format!("{}{right}", stranger.cert.pem())), true),
        (server.url(), Some(stranger.cert.pem()), false),
        (server.url(), None, false),
        (&by_name, Some(right.clone()), false),
    ] {
        let mut config = shared::config(url, "k");
        config.settings = BTreeMap::from_iter(ca.map(|pem| ("ca_cert".to_owned(), pem)));
        let error = prove(&config, ROOT).await.unwrap_err();
        if good {
            // Beyond TLS: this Vault has no transit.
            assert_eq!(error.kind(), KmsErrorKind::KeyMissing, "{error:?}");
        } else {
            assert_eq!(error.kind(), KmsErrorKind::Unreachable, "{error:?}");
            assert!(error.chain().contains("no secure connection"), "{}", error.chain());
            assert!(error.chain().contains("certificate"), "{}", error.chain());
            assert!(error.how_to_mend().unwrap().contains("--ca-cert"));
        }
    }
    let mut config = shared::config(server.url(), "k");
    config.settings.insert("ca_cert".into(), "no PEM".into());
    assert_eq!(prove(&config, ROOT).await.unwrap_err().kind(), KmsErrorKind::Invalid);
}

/// A Vault that talks to nobody without a certificate of its authority.
#[tokio::test(flavor = "multi_thread")]
async fn tls_with_client_certificates() {
    let folder = tempfile::tempdir().unwrap();
    let (certificate, key, right) = server_certificate(folder.path());
    let authority = Authority::new();
    let clients = folder.path().join("clients.pem");
    std::fs::write(&clients, authority.certificate.pem()).unwrap();
    let files = TlsFiles { certificate: &certificate, key: &key, clients: Some(&clients) };
    let program = VaultServer::program(vault_server::NEWEST);
    let server = VaultServer::start_tls(&program, files);

    let (good, stranger) = (authority.client(), Authority::new().client());
    let mut config = shared::config(server.url(), "k");
    config.settings.insert("ca_cert".into(), right);
    for (identity, kind) in [
        // Beyond TLS: this Vault has no transit.
        (Some(good.clone()), KmsErrorKind::KeyMissing),
        (Some(stranger), KmsErrorKind::Unreachable),
        (None, KmsErrorKind::Unreachable),
        (Some(ClientIdentity { key: "canary-of-a-key".into(), ..good }), KmsErrorKind::Invalid),
    ] {
        let credential = Credential { identity, ..Credential::token(ROOT) };
        let proof = shared::provider().prove(&config, &credential).await;
        shared::assert_shows_no("canary-of-a-key", &proof);
        let error = proof.unwrap_err();
        assert_eq!(error.kind(), kind, "{error:?}");
        if kind == KmsErrorKind::Unreachable {
            assert!(error.how_to_mend().unwrap().contains("--client-cert"), "{error:?}");
        }
    }
}

/// A certificate for this machine, its key, and the certificate's text.
fn server_certificate(folder: &Path) -> (PathBuf, PathBuf, String) {
    let (certificate, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    std::fs::write(&certificate, issued.cert.pem()).unwrap();
    std::fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
    (certificate, key, issued.cert.pem())
}

struct Authority {
    certificate: rcgen::Certificate,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Self { certificate, issuer: rcgen::Issuer::new(params, key) }
    }

    fn client(&self) -> ClientIdentity {
        let mut params = rcgen::CertificateParams::default();
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap().pem();
        ClientIdentity { certificate, key: key.serialize_pem().into() }
    }
}

//! A Vault that asks its clients for a certificate.

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use serde_json::json;
use testkit::vault_server::{NEWEST, TlsFiles, VaultServer};

use crate::kms::{KEY, policy};
use crate::node::Place;

/// One of the newest version, with a master key, whose files lie with a node's.
#[derive(Debug)]
pub struct MutualTls {
    /// It.
    pub server: VaultServer,
    /// The certificate of its authority, in PEM.
    pub ca: PathBuf,
    /// Whose certificates it takes.
    clients: Issuer<'static, KeyPair>,
}

impl MutualTls {
    /// Starts it.
    pub fn start(place: &Place) -> Self {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let (ca, key) = (place.path("ca.pem"), place.path("ca.key"));
        let clients = place.path("clients");
        fs::write(&ca, issued.cert.pem()).unwrap();
        fs::write(&key, issued.signing_key.serialize_pem()).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let signer = KeyPair::generate().unwrap();
        fs::write(&clients, params.self_signed(&signer).unwrap().pem()).unwrap();
        let files = TlsFiles { certificate: &ca, key: &key, clients: Some(&clients) };
        let server = VaultServer::start_tls(&VaultServer::program(NEWEST), files);
        let admin = server.admin();
        admin.mount_transit();
        admin.write(&format!("transit/keys/{KEY}"), &json!({}));
        Self { server, ca, clients: Issuer::new(params, signer) }
    }

    /// A token that may do what Coffer needs.
    pub fn token(&self) -> String {
        self.server.admin().token("coffer-test", &policy(KEY), &json!({ "period": "1h" }))
    }

    /// The certificate and the key, in PEM, of a client. In days by which the certificate is still valid, or has been over.
    pub fn client(&self, days: i64) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let day = Duration::from_secs(24 * 60 * 60);
        let (now, far) = (SystemTime::now(), day * u32::try_from(days.abs()).unwrap());
        params.not_after = if days < 0 { now - far } else { now + far }.into();
        let key = KeyPair::generate().unwrap();
        [params.signed_by(&key, &self.clients).unwrap().pem(), key.serialize_pem()]
    }
}

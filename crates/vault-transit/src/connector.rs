//! The HTTP client of one Vault: whom it trusts, what it shows, and where it may connect to.

use std::sync::Arc;

use kms_core::{ClientIdentity, ExposeSecret, KmsError, KmsErrorKind, KmsInput};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Client, redirect};
use rustls::client::Resumption;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

use crate::Limits;
use crate::address::Resolver;
use crate::config::VaultConfig;
use crate::http::root_cause;

/// A client that shows this identity, if there is one.
///
/// # Errors
/// [`KmsErrorKind::Invalid`]: the CA certificates or the identity can't be used. [`KmsErrorKind::Internal`]: no client can be made here.
pub(crate) fn client(
    config: &VaultConfig,
    identity: Option<&ClientIdentity>,
    limits: Limits,
) -> Result<Client, KmsError> {
    let client = Client::builder()
        .user_agent(concat!("coffer/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers(config)?)
        // Redirects are followed by `crate::http::Client`: reqwest would carry the token to other hosts.
        .redirect(redirect::Policy::none())
        // No variable of the environment changes where the token goes.
        .no_proxy()
        // A connection that is kept keeps in its buffers what went through it: keys that Vault opened. Requests are few.
        .pool_max_idle_per_host(0)
        .connect_timeout(limits.connect)
        .tls_backend_preconfigured(tls(config, identity)?)
        .tls_info(true)
        .dns_resolver(Resolver { loopback_only: config.loopback_only() });
    client.build().map_err(|e| no_client(&root_cause(&e)))
}

/// Each connection begins anew: one that resumes another shows no certificate, so that the end of one would not be noticed, nor another
/// in its place.
fn tls(config: &VaultConfig, identity: Option<&ClientIdentity>) -> Result<ClientConfig, KmsError> {
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| no_client(&e.to_string()))?
        .with_root_certificates(roots(config)?);
    let mut tls = match identity {
        None => builder.with_no_client_auth(),
        Some(identity) => {
            let (chain, key) = client_identity(identity)?;
            let tls = builder.with_client_auth_cert(chain, key);
            tls.map_err(|e| unfit_identity(&e.to_string()))?
        }
    };
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

const CA_CERT: KmsInput = KmsInput::Setting("ca_cert");

/// Whom it trusts: the authorities that are configured and no other, or the system's.
fn roots(config: &VaultConfig) -> Result<RootCertStore, KmsError> {
    let mut roots = RootCertStore::empty();
    if let Some(pem) = config.ca_cert() {
        for certificate in certificates(pem)? {
            let unfit = |e: rustls::Error| {
                KmsError::new(KmsErrorKind::Invalid, "the CA certificate can't be used")
                    .of_input(CA_CERT)
                    .because(e)
                    .cure("give the certificate of the authority that signed Vault's, in PEM")
            };
            roots.add(certificate).map_err(unfit)?;
        }
        return Ok(roots);
    }
    let found = rustls_native_certs::load_native_certs();
    // Some systems list what can't be used, beside the rest that can.
    let (usable, _) = roots.add_parsable_certificates(found.certs);
    // Plain http needs none.
    if usable == 0 && config.url("").scheme() == "https" {
        let why = found.errors.first().map_or("there is none".to_owned(), ToString::to_string);
        return Err(no_client(&format!("the system's CA certificates can't be read: {why}")));
    }
    Ok(roots)
}

fn headers(config: &VaultConfig) -> Result<HeaderMap, KmsError> {
    let mut headers = HeaderMap::new();
    // A Vault Agent in between can be told to refuse requests without it (protection against SSRF).
    headers.insert("x-vault-request", HeaderValue::from_static("true"));
    if let Some(namespace) = config.namespace() {
        let value = HeaderValue::from_str(namespace).map_err(|_| {
            KmsError::new(KmsErrorKind::Invalid, format!("{namespace:?} is not a namespace"))
        })?;
        headers.insert("x-vault-namespace", value);
    }
    Ok(headers)
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>, KmsError> {
    let invalid = || {
        KmsError::new(KmsErrorKind::Invalid, "the CA certificate is not in PEM")
            .of_input(CA_CERT)
            .cure("give a file with one or more blocks of -----BEGIN CERTIFICATE-----")
    };
    match CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<Vec<_>, _>>() {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(invalid()),
        Err(e) => Err(invalid().because(e)),
    }
}

fn client_identity(
    identity: &ClientIdentity,
) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), KmsError> {
    let chain = CertificateDer::pem_slice_iter(identity.certificate.as_bytes());
    let chain: Result<Vec<_>, _> = chain.collect();
    let key = PrivateKeyDer::from_pem_slice(identity.key.expose_secret().as_bytes());
    match (chain, key) {
        (Ok(chain), Ok(key)) if !chain.is_empty() => Ok((chain, key)),
        // The reason is not told: it could quote the key.
        _ => Err(KmsError::new(
            KmsErrorKind::Invalid,
            "the client certificate and its key are not what TLS can use",
        )
        .of_input(KmsInput::Identity)
        .cure("give the certificate (and those between it and its authority) and its unencrypted private key, both in PEM")),
    }
}

fn no_client(why: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Internal, "no HTTPS client can be made here")
        .because(why)
        .cure("install the system's CA certificates, or give Vault's with --ca-cert")
}

/// A client certificate and a key that are well formed, and can't be used with each other.
fn unfit_identity(cause: &str) -> KmsError {
    let what = if cause.contains("KeyMismatch") {
        "the client key is not that of the client certificate"
    } else if cause.contains("UnsupportedCertVersion") {
        "the client certificate is of an old version, and TLS takes version 3 only"
    } else {
        "the client certificate and its key can't be used"
    };
    KmsError::new(KmsErrorKind::Invalid, what).of_input(KmsInput::Identity).because(cause).cure(
        "give the certificate with --client-cert and the private key that it was made for with --client-key",
    )
}

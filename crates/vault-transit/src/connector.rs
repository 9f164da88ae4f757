//! The HTTP client of one Vault: whom it trusts, what it shows, and where it may connect to.

use kms_core::{ClientIdentity, ExposeSecret, KmsError, KmsErrorKind};
use reqwest::header::{HeaderMap, HeaderValue};
use reqwest::{Certificate, Client, ClientBuilder, Identity, redirect};
use zeroize::Zeroizing;

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
    let connector = connector(config, limits)?;
    let Some(identity) = identity else {
        return connector.build().map_err(|e| no_client(&e));
    };
    connector.identity(client_identity(identity)?).build().or_else(|error| {
        // That it is the identity shows where one can be made without.
        self::connector(config, limits)?.build().map_err(|e| no_client(&e))?;
        Err(unfit_identity(&root_cause(&error)))
    })
}

/// All of an HTTP client but what it shows Vault.
fn connector(config: &VaultConfig, limits: Limits) -> Result<ClientBuilder, KmsError> {
    let builder = Client::builder()
        .user_agent(concat!("coffer/", env!("CARGO_PKG_VERSION")))
        .default_headers(headers(config)?)
        // Redirects are followed by `crate::http::Client`: reqwest would carry the token to other hosts.
        .redirect(redirect::Policy::none())
        // No variable of the environment changes where the token goes.
        .no_proxy()
        // A connection that is kept keeps in its buffers what went through it: keys that Vault opened. Requests are few.
        .pool_max_idle_per_host(0)
        .connect_timeout(limits.connect)
        .tls_info(true)
        .dns_resolver(Resolver { loopback_only: config.loopback_only() });
    Ok(match config.ca_cert() {
        Some(pem) => builder.tls_certs_only(certificates(pem)?),
        None => builder,
    })
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

fn certificates(pem: &str) -> Result<Vec<Certificate>, KmsError> {
    let invalid = || {
        KmsError::new(KmsErrorKind::Invalid, "the CA certificate is not in PEM")
            .cure("give a file with one or more blocks of -----BEGIN CERTIFICATE-----")
    };
    match Certificate::from_pem_bundle(pem.as_bytes()) {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(invalid()),
        Err(e) => Err(invalid().because(root_cause(&e))),
    }
}

fn client_identity(identity: &ClientIdentity) -> Result<Identity, KmsError> {
    let mut pem = Zeroizing::new(Vec::with_capacity(
        identity.certificate.len() + identity.key.expose_secret().len() + 1,
    ));
    pem.extend_from_slice(identity.certificate.as_bytes());
    pem.push(b'\n');
    pem.extend_from_slice(identity.key.expose_secret().as_bytes());
    // The reason is not told: it could quote the key.
    Identity::from_pem(&pem).map_err(|_| {
        KmsError::new(
            KmsErrorKind::Invalid,
            "the client certificate and its key are not what TLS can use",
        )
        .cure("give the certificate (and those between it and its authority) and its unencrypted private key, both in PEM")
    })
}

fn no_client(error: &reqwest::Error) -> KmsError {
    KmsError::new(KmsErrorKind::Internal, "no HTTPS client can be made here")
        .because(root_cause(error))
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
    KmsError::new(KmsErrorKind::Invalid, what).because(cause).cure(
        "give the certificate with --client-cert and the private key that it was made for with --client-key",
    )
}

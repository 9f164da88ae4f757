//! TLS before a server that has none, with a certificate of choice.

use std::net::SocketAddr;
use std::sync::Arc;

use rcgen::{Certificate, CertificateParams, DnType, KeyPair, date_time_ymd};
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Which certificate it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The one that clients are told to trust.
    Own,
    /// One of somebody else.
    Strange,
    /// One that has ended, for the same key and name.
    Expired,
}

/// Accepts TLS and passes on what comes, until it is dropped.
pub(crate) struct Door {
    address: SocketAddr,
    own: Certificate,
    key: KeyPair,
    acceptor: watch::Sender<TlsAcceptor>,
    _runtime: Runtime,
}

impl Door {
    /// One before the server at this address.
    pub(crate) fn before(server: SocketAddr) -> Self {
        let key = KeyPair::generate().unwrap();
        let own = params().self_signed(&key).unwrap();
        let (acceptor, accepts) = watch::channel(acceptor(&own, &key));
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            while let Ok((plain, _)) = listener.accept().await {
                let mut accepts = accepts.clone();
                let acceptor = accepts.borrow_and_update().clone();
                let passing_on = async move {
                    let mut inside = acceptor.accept(plain).await?;
                    let mut outside = TcpStream::connect(server).await?;
                    copy_bidirectional(&mut inside, &mut outside).await
                };
                tokio::spawn(async move {
                    // A connection does not outlive the certificate that it was made under.
                    tokio::select! {
                        _ = passing_on => {}
                        _ = accepts.changed() => {}
                    }
                });
            }
        });
        Self { address, own, key, acceptor, _runtime: runtime }
    }

    pub(crate) fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate that clients are to trust, in PEM.
    pub(crate) fn certificate(&self) -> String {
        self.own.pem()
    }

    /// From now on.
    pub(crate) fn show(&self, shows: Shows) {
        self.acceptor.send_replace(match shows {
            Shows::Own => acceptor(&self.own, &self.key),
            Shows::Strange => {
                let (key, mut params) = (KeyPair::generate().unwrap(), params());
                params.distinguished_name.push(DnType::OrganizationName, "somebody else");
                acceptor(&params.self_signed(&key).unwrap(), &key)
            }
            Shows::Expired => {
                let mut params = params();
                params.not_before = date_time_ymd(2020, 1, 1);
                params.not_after = date_time_ymd(2021, 1, 1);
                acceptor(&params.self_signed(&self.key).unwrap(), &self.key)
            }
        });
    }
}

fn params() -> CertificateParams {
    CertificateParams::new(["127.0.0.1".to_owned()]).unwrap()
}

fn acceptor(certificate: &Certificate, key: &KeyPair) -> TlsAcceptor {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let chain = vec![certificate.der().clone()];
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    TlsAcceptor::from(Arc::new(config.unwrap()))
}

//! Where the console listens.
//!
//! A node that was told no address listens on no network until somebody asks for the console, and then on loopback, on a free port.
//! Beyond loopback it takes a certificate.

use std::future::{Ready, ready};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, Problem};
use axum::Router;
use axum_server::tls_rustls::RustlsConfig;
use axum_server::{Handle, Server};
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use url::Host;
use zeroize::Zeroizing;

use super::guard::Origins;

/// How long connections may take to end when the node does.
const LEAVE_WITHIN: Duration = Duration::from_secs(2);

/// What the door bears.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How long a connection may take to send the head of a request, or be without one.
    head_within: Duration,
    /// Most connections at once: a browser has some six, and streams of events stay open. Others find the door closed.
    connections_most: usize,
    /// Between two looks at the certificate's files.
    look_every: Duration,
}

const LIMITS: Limits = Limits {
    head_within: Duration::from_secs(20),
    connections_most: 512,
    look_every: Duration::from_secs(60),
};

/// Where the console is to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listen {
    /// The address; port 0 is a free one.
    pub address: SocketAddr,
    /// What encrypts the way to it.
    pub tls: Option<Tls>,
    /// Names of the host by which browsers reach it, beside the address itself, without a port.
    pub hosts: Vec<String>,
}

/// Files in PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tls {
    /// The certificate, and those between it and its CA.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl Listen {
    /// On loopback, on a free port.
    pub fn loopback() -> Self {
        Self { address: ([127, 0, 0, 1], 0).into(), tls: None, hosts: Vec::new() }
    }
}

/// The console's listener, opened once.
pub(crate) struct Door {
    listen: Listen,
    limits: Limits,
    opened: Mutex<Option<Opened>>,
}

struct Opened {
    origins: Origins,
    handle: Handle<SocketAddr>,
    /// The server, and who looks at its certificate's files.
    tasks: JoinSet<()>,
}

impl Door {
    pub(crate) fn new(listen: Listen) -> Self {
        Self { listen, limits: LIMITS, opened: Mutex::default() }
    }

    /// Listens, if it does not yet, and serves what `router` makes for where that is. Answers the origin of links.
    pub(crate) async fn open(
        &self,
        router: impl FnOnce(Origins) -> Router,
    ) -> Result<String, Problem> {
        let mut opened = self.opened.lock().await;
        if let Some(opened) = &*opened {
            return Ok(opened.origins.first());
        }
        let Listen { address, tls, hosts } = &self.listen;
        if tls.is_none() && !address.ip().is_loopback() {
            let why =
                format!("{address} is not loopback, and what is sent there would not be encrypted");
            return Err(Problem::new(Exit::Usage, "console-plain", NO_CONSOLE, why)
                .cure("give a certificate with --tls-cert FILE and --tls-key FILE, or listen on 127.0.0.1"));
        }
        let hosts =
            hosts.iter().map(|host| as_browsers_say(host)).collect::<Result<Vec<_>, _>>()?;
        let identity = match tls {
            Some(tls) => Some((tls.clone(), Identity::read(tls).await?)),
            None => None,
        };
        let unusable = |e: io::Error| {
            Problem::new(Exit::State, "console-address", NO_CONSOLE, format!("{address}: {e}"))
                .cure("give another address with --listen ADDR")
        };
        let listener = TcpListener::bind(address).map_err(unusable)?;
        let bound = listener.local_addr().map_err(unusable)?;
        let scheme = if identity.is_some() { "https" } else { "http" };
        let origins = Origins::new(scheme, names(bound, &hosts, scheme));
        let (handle, mut tasks) = (Handle::new(), JoinSet::new());
        let Limits { head_within, connections_most, look_every } = self.limits;
        let routes = limited(router(origins.clone()), handle.clone(), connections_most);
        match identity {
            None => {
                let server = axum_server::from_tcp(listener).map_err(unusable)?;
                tasks.spawn(ended(timed(server, &handle, head_within).serve(routes)));
            }
            Some((files, identity)) => {
                let config = RustlsConfig::from_config(identity.config(&files)?);
                let server = axum_server::from_tcp_rustls(listener, config.clone());
                tasks.spawn(ended(
                    timed(server.map_err(unusable)?, &handle, head_within).serve(routes),
                ));
                tasks.spawn(keep_up(files, identity, config, look_every));
            }
        }
        let origin = origins.first();
        tracing::info!(%origin, "the console is served");
        *opened = Some(Opened { origins, handle, tasks });
        Ok(origin)
    }

    /// Serves nothing more.
    pub(crate) async fn close(&self) {
        let Some(Opened { handle, mut tasks, .. }) = self.opened.lock().await.take() else {
            return;
        };
        handle.graceful_shutdown(Some(LEAVE_WITHIN));
        // The server ends by itself; whoever looks at files does not.
        let _ = timeout(LEAVE_WITHIN * 2, tasks.join_next()).await;
        tasks.shutdown().await;
    }
}

/// Nobody holds a connection who asks for nothing.
fn timed<A>(
    mut server: Server<SocketAddr, A>,
    handle: &Handle<SocketAddr>,
    head_within: Duration,
) -> Server<SocketAddr, A> {
    server.http_builder().http1().header_read_timeout(head_within);
    server.handle(handle.clone()).first_request_timeout(head_within).http1_only()
}

/// The routes for each connection, while there are not too many.
fn limited(
    routes: Router,
    handle: Handle<SocketAddr>,
    most: usize,
) -> impl tower::Service<
    SocketAddr,
    Response = Router,
    Error = io::Error,
    Future = Ready<io::Result<Router>>,
> + Send {
    tower::service_fn(move |_| {
        let is_full = handle.connection_count() >= most;
        ready(if is_full {
            Err(io::Error::other("too many connections"))
        } else {
            Ok(routes.clone())
        })
    })
}

const NO_CONSOLE: &str = "the console can't be served";

async fn ended(served: impl Future<Output = io::Result<()>>) {
    if let Err(error) = served.await {
        tracing::error!(%error, "the console is served no more");
    }
}

/// The name of a host as it stands in what browsers ask for (WHATWG URL, "host parsing").
fn as_browsers_say(host: &str) -> Result<String, Problem> {
    Host::parse(host).map(|host| host.to_string()).map_err(|e| {
        let why = format!("{host:?} is not a host: {e}");
        Problem::new(Exit::Usage, "console-host", NO_CONSOLE, why)
            .cure("give the name or the address alone, without a scheme, a port or a path")
    })
}

/// How browsers can name the host, with the port unless it is the scheme's own.
fn names(bound: SocketAddr, hosts: &[String], scheme: &str) -> Vec<String> {
    let port = match (scheme, bound.port()) {
        ("https", 443) | ("http", 80) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let mut names: Vec<String> = hosts.iter().map(|host| format!("{host}{port}")).collect();
    if !bound.ip().is_unspecified() {
        let ip = match bound {
            SocketAddr::V4(address) => address.ip().to_string(),
            SocketAddr::V6(address) => format!("[{}]", address.ip()),
        };
        names.push(format!("{ip}{port}"));
    }
    if bound.ip().is_loopback() || bound.ip().is_unspecified() {
        names.push(format!("localhost{port}"));
    }
    names
}

/// A certificate and its key, as they lie in files.
#[derive(PartialEq, Eq)]
struct Identity {
    certificate: Vec<u8>,
    key: Zeroizing<Vec<u8>>,
}

impl Identity {
    async fn read(Tls { certificate, key }: &Tls) -> Result<Self, Problem> {
        let read = async |path: &Path| {
            tokio::fs::read(path).await.map_err(|e| unusable(path, e.to_string()))
        };
        let readable = tokio::fs::metadata(key).await.map_err(|e| unusable(key, e.to_string()))?;
        if readable.permissions().mode() & 0o007 != 0 {
            let why = format!("{}: every user of this machine may read it", key.display());
            return Err(Problem::new(Exit::State, "console-certificate", NO_CONSOLE, why)
                .cure("make a new key that only its owner may read, and have it certified; of this one somebody may have a copy (chmod o= FILE lets it be used)"));
        }
        Ok(Self { certificate: read(certificate).await?, key: read(key).await?.into() })
    }

    fn config(&self, Tls { certificate, key }: &Tls) -> Result<Arc<ServerConfig>, Problem> {
        let chain = CertificateDer::pem_slice_iter(&self.certificate)
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| unusable(certificate, e.to_string()))?;
        let private =
            PrivateKeyDer::from_pem_slice(&self.key).map_err(|e| unusable(key, e.to_string()))?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| unusable(certificate, e.to_string()))?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|e| unusable(certificate, e.to_string()))?;
        Ok(Arc::new(config))
    }
}

fn unusable(path: &Path, why: String) -> Problem {
    let why = format!("{}: {why}", path.display());
    Problem::new(Exit::State, "console-certificate", NO_CONSOLE, why)
        .cure("give a certificate and its private key in PEM, which the node's user can read")
}

/// Shows new connections the certificate that lies in its file now: it is renewed while the node runs.
async fn keep_up(files: Tls, mut shown: Identity, server: RustlsConfig, look_every: Duration) {
    loop {
        sleep(look_every).await;
        let read = Identity::read(&files).await;
        match read.and_then(|found| Ok((found.config(&files)?, found))) {
            Ok((_, found)) if found == shown => {}
            Ok((config, found)) => {
                server.reload_from_config(config);
                shown = found;
                tracing::info!("the console shows its new certificate");
            }
            Err(problem) => {
                tracing::warn!(%problem, "the console keeps the certificate that it had")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use rustls::{ClientConfig, RootCertStore};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpStream;
    use tokio_rustls::TlsConnector;

    use super::*;

    async fn opened(listen: Listen) -> Result<String, Problem> {
        let door = Door::new(listen);
        let origin = door.open(|_| Router::new()).await;
        door.close().await;
        origin
    }

    #[tokio::test]
    async fn it_listens_on_loopback_and_says_where() {
        let origin = opened(Listen::loopback()).await.unwrap();
        assert!(origin.starts_with("http://127.0.0.1:") && !origin.ends_with(":0"), "{origin}");
    }

    #[tokio::test]
    async fn plain_http_does_not_leave_the_machine() {
        for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:0"] {
            let listen = Listen { address: address.parse().unwrap(), ..Listen::loopback() };
            assert_eq!(opened(listen).await.unwrap_err().code, "console-plain", "{address}");
        }
    }

    #[tokio::test]
    async fn a_certificate_that_is_none_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("x.pem");
        keep(&file, "none", 0o600);
        for certificate in [file.clone(), dir.path().join("missing")] {
            let tls = Some(Tls { certificate, key: file.clone() });
            let problem = opened(Listen { tls, ..Listen::loopback() }).await.unwrap_err();
            assert_eq!(problem.code, "console-certificate", "{problem}");
        }
    }

    #[tokio::test]
    async fn a_key_that_everybody_can_read_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        let tls = Tls { certificate: dir.path().join("c.pem"), key: dir.path().join("k.pem") };
        put_identity(&tls);
        let of = |mode| {
            std::fs::set_permissions(&tls.key, std::fs::Permissions::from_mode(mode)).unwrap();
            opened(Listen { tls: Some(tls.clone()), ..Listen::loopback() })
        };
        let problem = of(0o644).await.unwrap_err();
        assert!(problem.detail.contains("may read it"), "{problem}");
        assert!(of(0o640).await.unwrap().starts_with("https://127.0.0.1:"));
    }

    #[tokio::test]
    async fn nobody_holds_a_connection_who_asks_for_nothing_and_there_are_not_too_many() {
        let head_within = Duration::from_secs(3);
        let limits = Limits { head_within, connections_most: 3, ..LIMITS };
        let door = Door { limits, ..Door::new(Listen::loopback()) };
        let origin = door.open(|_| Router::new()).await.unwrap();
        let connect = || TcpStream::connect(origin.strip_prefix("http://").unwrap());
        let began = Instant::now();
        let mut held = Vec::new();
        for _ in 0..3 {
            held.push(connect().await.unwrap());
        }
        is_closed(&mut connect().await.unwrap()).await;
        assert!(began.elapsed() < head_within, "it waited for the others to end");
        for idle in &mut held {
            is_closed(idle).await;
        }
        assert!(began.elapsed() >= head_within);
        // There is room again.
        let mut asks = connect().await.unwrap();
        asks.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let mut answer = [0; 12];
        asks.read_exact(&mut answer).await.unwrap();
        assert_eq!(&answer, b"HTTP/1.1 404");
        door.close().await;
    }

    #[tokio::test]
    async fn a_certificate_that_is_renewed_is_shown_and_one_that_is_none_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let files = Tls { certificate: dir.path().join("c.pem"), key: dir.path().join("k.pem") };
        let first = put_identity(&files);
        let listen = Listen { tls: Some(files.clone()), ..Listen::loopback() };
        let limits = Limits { look_every: Duration::from_millis(20), ..LIMITS };
        let door = Door { limits, ..Door::new(listen) };
        let origin = door.open(|_| Router::new()).await.unwrap();
        let shown = async |trusted: &CertificateDer<'static>| {
            let stream =
                TcpStream::connect(origin.strip_prefix("https://").unwrap()).await.unwrap();
            trusting(trusted).connect("127.0.0.1".try_into().unwrap(), stream).await.is_ok()
        };
        assert!(shown(&first).await);

        std::fs::write(&files.certificate, "half of one").unwrap();
        sleep(Duration::from_millis(200)).await;
        assert!(shown(&first).await, "what can't be used takes no other's place");

        let second = put_identity(&files);
        let renewed = async {
            while !shown(&second).await {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(Duration::from_secs(20), renewed).await.expect("the new one is shown");
        assert!(!shown(&first).await);
        door.close().await;
    }

    fn keep(file: &Path, content: &str, mode: u32) {
        std::fs::write(file, content).unwrap();
        std::fs::set_permissions(file, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// Puts a new certificate and its key there.
    fn put_identity(files: &Tls) -> CertificateDer<'static> {
        let issued = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        keep(&files.key, &issued.signing_key.serialize_pem(), 0o600);
        keep(&files.certificate, &issued.cert.pem(), 0o644);
        issued.cert.der().clone()
    }

    fn trusting(certificate: &CertificateDer<'static>) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(certificate.clone()).unwrap();
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        TlsConnector::from(Arc::new(config))
    }

    /// Waits until the other side has closed it.
    async fn is_closed(stream: &mut TcpStream) {
        let read = timeout(Duration::from_secs(20), stream.read(&mut [0; 1])).await;
        let read = read.expect("it is closed");
        assert!(read.is_err() || matches!(read, Ok(0)), "{read:?}");
    }

    #[tokio::test]
    async fn what_is_no_host_is_refused_and_a_foreign_name_is_written_as_browsers_do() {
        let with =
            |host: &str| opened(Listen { hosts: vec![host.to_owned()], ..Listen::loopback() });
        for bad in ["", "http://x", "x:99", "a b", "x/y", "[::1"] {
            assert_eq!(with(bad).await.unwrap_err().code, "console-host", "{bad}");
        }
        assert!(with("Bücher.Example").await.unwrap().starts_with("http://xn--bcher-kva.example:"));
        assert!(with("[::1]").await.unwrap().starts_with("http://[::1]:"));
    }

    #[test]
    fn a_host_has_the_names_that_browsers_give_it() {
        let names = |bound: &str, hosts: &[&str], scheme| {
            let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
            super::names(bound.parse().unwrap(), &hosts, scheme)
        };
        assert_eq!(names("127.0.0.1:8", &[], "http"), ["127.0.0.1:8", "localhost:8"]);
        assert_eq!(names("0.0.0.0:443", &["node.example"], "https"), ["node.example", "localhost"]);
        assert_eq!(names("[::1]:9", &[], "http"), ["[::1]:9", "localhost:9"]);
        assert_eq!(names("192.0.2.1:443", &[], "https"), ["192.0.2.1"]);
    }
}

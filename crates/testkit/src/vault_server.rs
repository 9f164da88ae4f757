//! Real Vaults to test against: a server by the path of its program, and what an administrator does on any Vault.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

/// The environment variable with the absolute path of Vault 1.1.5, the oldest that Coffer supports.
pub const OLDEST: &str = "COFFER_TEST_VAULT_1_1_5";
/// The environment variable with the absolute path of the newest Vault.
pub const NEWEST: &str = "COFFER_TEST_VAULT_NEWEST";

/// A real Vault with everything in memory, killed when this is dropped.
///
/// Two kinds of program are known by their help texts: the whole `vault` (or `bao`) command, run as
/// `server -dev`, and the slim server that `cargo xtask vault` builds of old versions.
pub struct VaultServer {
    child: Child,
    url: String,
    plain_url: Option<String>,
    log: PathBuf,
    // Holds the log until the server is gone.
    _folder: tempfile::TempDir,
}

/// A certificate and its key, as PEM files.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'a> {
    /// The certificate.
    pub certificate: &'a Path,
    /// Its private key.
    pub key: &'a Path,
    /// The authority of the certificates that clients must have, if they need one. The slim server knows none.
    pub clients: Option<&'a Path>,
}

impl VaultServer {
    /// The token that may do everything.
    pub const ROOT_TOKEN: &'static str = "root-token-of-the-tests";

    /// The program that this environment variable names.
    ///
    /// # Panics
    /// Without it: a test whose server is missing fails, and says how to get one.
    pub fn program(variable: &str) -> PathBuf {
        let path = std::env::var_os(variable).map(PathBuf::from);
        path.filter(|p| p.is_file()).unwrap_or_else(|| {
            panic!("{variable} names no Vault: set it to one of the paths that `cargo xtask vault` prints")
        })
    }

    /// Starts a server on a free port of 127.0.0.1, and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with its log.
    pub fn start(program: &Path) -> Self {
        Self::run(program, None)
    }

    /// The same with TLS. The whole command goes on answering without it at another port too.
    pub fn start_tls(program: &Path, tls: TlsFiles<'_>) -> Self {
        Self::run(program, Some(tls))
    }

    fn run(program: &Path, tls: Option<TlsFiles<'_>>) -> Self {
        let slim = is_slim(program);
        let address = free_address();
        let mut command = Command::new(program);
        if slim {
            command.args(["-addr", &address, "-root-token", Self::ROOT_TOKEN]);
        } else {
            command.args(["server", "-dev", "-dev-no-store-token"]);
            command.arg(format!("-dev-root-token-id={}", Self::ROOT_TOKEN));
            command.arg(format!("-dev-listen-address={address}"));
        }
        let folder = tempfile::tempdir().unwrap();
        let plain_url = (!slim || tls.is_none()).then(|| format!("http://{address}"));
        let url = match (tls, slim) {
            (None, _) => format!("http://{address}"),
            (Some(tls), true) => {
                assert!(tls.clients.is_none(), "the slim server asks clients for no certificate");
                command.arg("-tls-cert").arg(tls.certificate).arg("-tls-key").arg(tls.key);
                format!("https://{address}")
            }
            (Some(tls), false) => {
                let (address, config) = (free_address(), folder.path().join("tls.json"));
                let mut listener = json!({
                    "address": address, "tls_cert_file": tls.certificate, "tls_key_file": tls.key,
                });
                if let Some(clients) = tls.clients {
                    listener["tls_require_and_verify_client_cert"] = json!(true);
                    listener["tls_client_ca_file"] = json!(clients);
                }
                let text = json!({ "listener": { "tcp": listener } }).to_string();
                std::fs::write(&config, text).unwrap();
                command.arg("-config").arg(config);
                format!("https://{address}")
            }
        };
        let log = folder.path().join("log");
        let out = File::create(&log).unwrap();
        let child = command
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn()
            .unwrap_or_else(|e| panic!("{} does not start: {e}", program.display()));
        let mut server = Self { child, url, plain_url, log, _folder: folder };
        server.wait_until_ready(slim);
        server
    }

    fn wait_until_ready(&mut self, slim: bool) {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let said = read(&self.log);
            // The slim server says so when it is unsealed and has its root token.
            let ready = if slim {
                said.contains("listening on")
            } else {
                self.plain_url.as_deref().is_some_and(is_healthy)
            };
            if ready {
                return;
            }
            let ended = self.child.try_wait().unwrap();
            assert!(
                ended.is_none() && Instant::now() < deadline,
                "Vault is not ready ({ended:?}):\n{said}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What opens its seal again.
    ///
    /// # Panics
    /// On a slim server, which tells none.
    pub fn unseal_key(&self) -> String {
        let said = read(&self.log);
        let key = said.lines().find_map(|line| line.strip_prefix("Unseal Key: "));
        key.expect("a slim server tells no unseal key").trim().to_owned()
    }

    /// Has it stand still, as a machine that hangs: it accepts connections and answers nothing.
    pub fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Has it go on, if it stands still.
    pub fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Its administrator.
    ///
    /// # Panics
    /// On a slim server with TLS, which answers in no other way.
    pub fn admin(&self) -> VaultAdmin {
        let url = self.plain_url.as_ref().expect("an administrator has no TLS");
        VaultAdmin::new(url, Self::ROOT_TOKEN)
    }
}

impl Drop for VaultServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl fmt::Debug for VaultServer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultServer({}, process {})", self.url, self.child.id())
    }
}

/// Does over HTTP what an administrator does: on a real Vault, on OpenBao, on the embedded one.
#[derive(Clone)]
pub struct VaultAdmin {
    agent: ureq::Agent,
    url: String,
    token: String,
}

impl VaultAdmin {
    /// One who has this token.
    pub fn new(url: &str, token: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .allow_non_standard_methods(true)
            .timeout_global(Some(Duration::from_secs(10)))
            .build();
        Self { agent: config.new_agent(), url: url.to_owned(), token: token.to_owned() }
    }

    /// Asks, with a path such as `transit/keys/k`: the status, and the body or `null`.
    pub fn ask(&self, method: &str, path: &str, body: &Value) -> (u16, Value) {
        let request = ureq::http::Request::builder()
            .method(method)
            .uri(format!("{}/v1/{path}", self.url))
            .header("X-Vault-Token", &self.token)
            .body(body.to_string())
            .unwrap();
        let mut answer = self.agent.run(request).unwrap();
        let text = answer.body_mut().read_to_string().unwrap();
        (answer.status().as_u16(), serde_json::from_str(&text).unwrap_or_default())
    }

    /// Writes, and gives the answer's body.
    ///
    /// # Panics
    /// If it is refused.
    pub fn write(&self, path: &str, body: &Value) -> Value {
        self.must("POST", path, body)
    }

    /// Reads.
    ///
    /// # Panics
    /// If it is refused.
    pub fn read(&self, path: &str) -> Value {
        self.must("GET", path, &json!({}))
    }

    /// Deletes.
    ///
    /// # Panics
    /// If it is refused.
    pub fn delete(&self, path: &str) {
        self.must("DELETE", path, &json!({}));
    }

    fn must(&self, method: &str, path: &str, body: &Value) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
        answer
    }

    /// Mounts transit at `transit/`, unless it is.
    pub fn mount_transit(&self) {
        if self.read("sys/mounts")["data"]["transit/"].is_null() {
            self.write("sys/mounts/transit", &json!({ "type": "transit" }));
        }
    }

    /// Makes a token under a policy of this text and the `default` policy; `settings` are those of
    /// `auth/token/create`, such as `period` and `ttl`.
    pub fn token(&self, policy_name: &str, policy: &str, settings: &Value) -> String {
        self.write(&format!("sys/policies/acl/{policy_name}"), &json!({ "policy": policy }));
        let mut body = json!({ "policies": [policy_name] });
        body.as_object_mut().unwrap().extend(settings.as_object().unwrap().clone());
        let answer = self.write("auth/token/create", &body);
        answer["auth"]["client_token"].as_str().unwrap().to_owned()
    }
}

impl fmt::Debug for VaultAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VaultAdmin({})", self.url)
    }
}

/// The whole command lists its subcommands, the slim server its flags.
fn is_slim(program: &Path) -> bool {
    let help = Command::new(program)
        .arg("-help")
        .output()
        .unwrap_or_else(|e| panic!("{} can't be run: {e}", program.display()));
    [help.stdout, help.stderr]
        .iter()
        .any(|out| String::from_utf8_lossy(out).contains("-root-token"))
}

/// A port that was free a moment ago.
fn free_address() -> String {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().to_string()
}

fn is_healthy(url: &str) -> bool {
    // The dev server makes its root token after it is unsealed.
    ureq::get(format!("{url}/v1/auth/token/lookup-self"))
        .header("X-Vault-Token", VaultServer::ROOT_TOKEN)
        .config()
        .timeout_global(Some(Duration::from_secs(1)))
        .build()
        .call()
        .is_ok()
}

fn read(path: &Path) -> String {
    let mut text = Vec::new();
    File::open(path).unwrap().read_to_end(&mut text).unwrap();
    String::from_utf8_lossy(&text).into_owned()
}

//! The KMS of a scene, whose whole state can be put back.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, policy};
use dev_vault::DevVault;
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::vault_server::{NEWEST, VaultServer};

use super::scene::eventually;
use super::tls::{Door, Shows};

/// The policy of the node's token.
const POLICY: &str = "coffer-test";

/// A name that is no secret, for a token that is made again after it was revoked.
const TOKEN: &str = "token-of-the-node";

pub(crate) struct Vault {
    server: Server,
    /// What encrypts the way to it, if anything does.
    pub(crate) door: Option<Door>,
    /// The token of the node.
    pub(crate) token: String,
    /// Another one, that lives longer and loses no permission.
    pub(crate) spare: String,
}

enum Server {
    Embedded {
        folder: TempDir,
        address: SocketAddr,
        /// None while it is away.
        running: Option<DevVault>,
    },
    Real {
        process: VaultServer,
        /// The master key as it was saved.
        backup: Value,
    },
}

impl Vault {
    /// An embedded one that is well and has the master key in a first version.
    pub(crate) fn embedded(with_tls: bool) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let address = lasting_address();
        let running = Some(serve(folder.path(), address));
        let door = with_tls.then(|| Door::before(address));
        Self::with(Server::Embedded { folder, address, running }, door)
    }

    /// A real one, the newest.
    pub(crate) fn real() -> Self {
        let process = VaultServer::start(&VaultServer::program(NEWEST));
        process.admin().mount_transit();
        // What may be backed up may be put back.
        let key = json!({ "exportable": true, "allow_plaintext_backup": true });
        process.admin().write(&format!("transit/keys/{KEY}"), &key);
        Self::with(Server::Real { process, backup: Value::Null }, None)
    }

    fn with(server: Server, door: Option<Door>) -> Self {
        let (token, spare) = Default::default();
        let mut vault = Self { server, door, token, spare };
        vault.grant(&policy(KEY));
        vault.ask("POST", "sys/policies/acl/spare", json!({ "policy": policy(KEY) }));
        vault.token = vault.token_of_the_node();
        let spare = json!({ "policies": ["spare"], "period": "24h" });
        vault.spare = token_in(&vault.ask("POST", "auth/token/create", spare));
        vault
    }

    pub(crate) fn url(&self) -> String {
        match (&self.server, &self.door) {
            (_, Some(door)) => door.url(),
            (Server::Embedded { address, .. }, None) => format!("http://{address}"),
            (Server::Real { process, .. }, None) => process.url().to_owned(),
        }
    }

    /// For faults, which a real one does not take.
    pub(crate) fn server(&self) -> &DevVault {
        match &self.server {
            Server::Embedded { running: Some(server), .. } => server,
            _ => panic!("this KMS takes no fault"),
        }
    }

    /// As an administrator, whom no fault strikes.
    pub(crate) fn ask(&self, method: &str, path: &str, body: Value) -> Value {
        match &self.server {
            Server::Embedded { .. } => self.server().admin(method, path, body).unwrap(),
            Server::Real { process, .. } => {
                let (status, answer) = process.admin().ask(method, path, &body);
                assert!((200..300).contains(&status), "{method} {path}: {status} {answer}");
                answer
            }
        }
    }

    /// What the node's token may do from now on.
    pub(crate) fn grant(&self, policy: &str) {
        self.ask("POST", &format!("sys/policies/acl/{POLICY}"), json!({ "policy": policy }));
    }

    /// Takes a permission from the node's token.
    pub(crate) fn deny(&self, verb: &str) {
        let all = policy(KEY);
        let rest: Vec<&str> = all.lines().filter(|line| !line.contains(verb)).collect();
        self.grant(&rest.join("\n"));
    }

    fn token_of_the_node(&self) -> String {
        let token = json!({ "id": TOKEN, "policies": [POLICY], "period": "1h" });
        token_in(&self.ask("POST", "auth/token/create", token))
    }

    pub(crate) fn stop(&mut self) {
        match &mut self.server {
            Server::Embedded { running, .. } => *running = None,
            Server::Real { .. } => panic!("a real Vault would forget all"),
        }
    }

    /// Keeps its state of now, to be put back by [`Vault::restore`].
    pub(crate) fn save(&mut self) {
        match &mut self.server {
            Server::Embedded { folder, .. } => {
                fs::copy(folder.path().join("state"), folder.path().join("saved")).unwrap();
            }
            Server::Real { process, backup } => {
                let saved = process.admin().read(&format!("transit/backup/{KEY}"));
                *backup = saved["data"]["backup"].clone();
            }
        }
    }

    /// Puts it back to what was saved, well and at the same place.
    pub(crate) fn restore(&mut self) {
        match &mut self.server {
            Server::Embedded { folder, address, running } => {
                *running = None;
                fs::copy(folder.path().join("saved"), folder.path().join("state")).unwrap();
                *running = Some(serve(folder.path(), *address));
            }
            Server::Real { process, backup } => {
                let admin = process.admin();
                // It is well already, or it does not become so.
                let key = json!({ "key": process.unseal_key() });
                assert_eq!(admin.ask("PUT", "sys/unseal", &key).0, 200);
                eventually(|| admin.ask("GET", "sys/mounts", &Value::Null).0 == 200);
                admin.mount_transit();
                let restored = json!({ "backup": backup, "force": true });
                admin.write(&format!("transit/restore/{KEY}"), &restored);
                let lives = admin.ask("POST", "auth/token/lookup", &json!({ "token": TOKEN })).0;
                self.grant(&policy(KEY));
                if lives != 200 {
                    self.token_of_the_node();
                }
            }
        }
        self.door.iter().for_each(|door| door.show(Shows::Own));
    }
}

fn token_in(answer: &Value) -> String {
    answer["auth"]["client_token"].as_str().unwrap().to_owned()
}

/// A free one that stays free while nobody listens there: below the ports that the system gives to connections going out.
fn lasting_address() -> SocketAddr {
    static NEXT: LazyLock<AtomicU16> =
        LazyLock::new(|| AtomicU16::new(u16::try_from(std::process::id() % 10_000).unwrap()));
    loop {
        let port = 20_000 + NEXT.fetch_add(1, Ordering::Relaxed) % 10_000;
        if let Ok(listener) = TcpListener::bind(("127.0.0.1", port)) {
            return listener.local_addr().unwrap();
        }
    }
}

fn serve(folder: &Path, address: SocketAddr) -> DevVault {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let builder = DevVault::builder().state_file(folder.join("state")).listen(address);
        let builder = builder.root_token("root").unseal_key("unseal").transit_key(KEY);
        match runtime.block_on(builder.start()) {
            Ok(server) => return server,
            // A process that another lane is about to start has all that is open here, until it is its own program.
            Err(e) if e.kind() == ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(e) => panic!("no KMS at {address}: {e}"),
        }
    }
}

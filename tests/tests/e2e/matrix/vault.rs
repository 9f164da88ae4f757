//! The KMS of a scene, whose whole state can be put back.

use std::fs;
use std::io::ErrorKind;
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};

use coffer_tests::kms::{KEY, policy};
use dev_vault::{DevVault, Fault};
use serde_json::{Value, json};
use tempfile::TempDir;
use testkit::vault_server::{NEWEST, VaultServer};

use super::scene::eventually;
use super::tls::{Door, Shows};

/// A master key that a filesystem has of its own.
pub(crate) const OWN: &str = "tenant-a";

/// The policy of the node's token.
const POLICY: &str = "coffer-test";

/// A name that is no secret, for a token that is made again after it was revoked.
const TOKEN: &str = "token-of-the-node";

/// The same, for a role that is made again after it was deleted, and its secret id.
const ROLE_ID: &str = "role-of-the-node";
const SECRET_ID: &str = "secret-of-the-node";

/// More logins than a node makes before the state begins.
const LOGINS: u32 = 20;

/// Longer than what the node has by a token or a login lives.
const TOKEN_LIFE: Duration = Duration::from_secs(2 * 3600);

/// Where a real Vault keeps the limit that it is given.
const QUOTA: &str = "sys/quotas/rate-limit/coffer";

/// How the node shows its KMS who it is, and comes to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Token,
    /// A token, over TLS.
    Tls,
    /// An AppRole.
    Login,
    /// A token in a file that the node reads.
    File,
}

pub(crate) struct Vault {
    server: Server,
    pub(crate) way: Way,
    /// With the token that the node reads, or the secret id that it is given.
    files: TempDir,
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
        /// Whether it can be unsealed.
        is_newest: bool,
        /// The master keys as they were saved.
        backups: [Value; 2],
    },
}

impl Vault {
    /// An embedded one that is well and has the master key in a first version.
    pub(crate) fn embedded(way: Way) -> Self {
        let folder = tempfile::tempdir_in("/dev/shm").unwrap();
        let address = lasting_address();
        let running = Some(serve(folder.path(), address));
        let door = (way == Way::Tls).then(|| Door::before(address));
        Self::with(Server::Embedded { folder, address, running }, way, door)
    }

    /// A real one, by the variable that names its program.
    pub(crate) fn real(variable: &str, way: Way) -> Self {
        let process = VaultServer::start(&VaultServer::program(variable));
        process.admin().mount_transit();
        let is_newest = variable == NEWEST;
        Self::with(Server::Real { process, is_newest, backups: Default::default() }, way, None)
    }

    fn with(server: Server, way: Way, door: Option<Door>) -> Self {
        let ((token, spare), files) = (Default::default(), tempfile::tempdir().unwrap());
        let mut vault = Self { server, way, files, door, token, spare };
        for key in [KEY, OWN] {
            // What may be backed up may be put back.
            let settings = json!({ "exportable": true, "allow_plaintext_backup": true });
            vault.ask("POST", &format!("transit/keys/{key}"), settings);
        }
        vault.grant(&policies());
        vault.ask("POST", "sys/policies/acl/spare", json!({ "policy": policies() }));
        vault.token = vault.token_of_the_node();
        let spare = json!({ "policies": ["spare"], "period": "24h" });
        vault.spare = token_in(&vault.ask("POST", "auth/token/create", spare));
        match way {
            Way::Login => {
                vault.ask("POST", "sys/auth/approle", json!({ "type": "approle" }));
                vault.make_role();
            }
            Way::File => vault.put_token_file(),
            Way::Token | Way::Tls => {}
        }
        vault
    }

    /// By what a node is told who it is, as options of `fs kms set-vault`.
    pub(crate) fn credential(&self) -> Vec<String> {
        let file = |name| self.file(name).to_str().unwrap().to_owned();
        match self.way {
            Way::Token | Way::Tls => vec![self.token.clone()],
            Way::Login => ["--role-id", ROLE_ID, "--secret-id-file", &file("secret-id")]
                .map(str::to_owned)
                .into(),
            Way::File => {
                ["--token-file", &file("token"), "--watch-token-file"].map(str::to_owned).into()
            }
        }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The file that the node reads its token from.
    pub(crate) fn token_file(&self) -> PathBuf {
        self.file("token")
    }

    /// Puts it there, whatever lies in its place.
    fn put_token_file(&self) {
        let file = self.token_file();
        if file.is_dir() {
            fs::remove_dir(&file).unwrap();
        }
        fs::write(file, &self.token).unwrap();
    }

    /// The role that the node logs in with. A real Vault takes the secret id that it is told, so that the role can be made again.
    fn make_role(&self) {
        let role = json!({
            "token_policies": POLICY, "token_period": "1h", "secret_id_num_uses": LOGINS,
            // As 1.1.5 calls them.
            "policies": POLICY, "period": "1h",
        });
        self.ask("POST", "auth/approle/role/node", role);
        self.ask("POST", "auth/approle/role/node/role-id", json!({ "role_id": ROLE_ID }));
        let (path, secret) = match &self.server {
            Server::Embedded { .. } => ("secret-id", json!({})),
            Server::Real { .. } => ("custom-secret-id", json!({ "secret_id": SECRET_ID })),
        };
        let made = self.ask("POST", &format!("auth/approle/role/node/{path}"), secret);
        fs::write(self.file("secret-id"), made["data"]["secret_id"].as_str().unwrap()).unwrap();
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
        self.try_to_ask(method, path, body).unwrap_or_else(|why| panic!("{method} {path}: {why}"))
    }

    fn try_to_ask(&self, method: &str, path: &str, body: Value) -> Result<Value, String> {
        match &self.server {
            Server::Embedded { .. } => {
                self.server().admin(method, path, body).map_err(|refused| refused.to_string())
            }
            Server::Real { process, .. } => match process.admin().ask(method, path, &body) {
                (200..300, answer) => Ok(answer),
                (status, answer) => Err(format!("{status} {answer}")),
            },
        }
    }

    /// What the node's token may do from now on.
    pub(crate) fn grant(&self, policy: &str) {
        self.ask("POST", &format!("sys/policies/acl/{POLICY}"), json!({ "policy": policy }));
    }

    /// Takes a permission from the node's token.
    pub(crate) fn deny(&self, verb: &str) {
        let all = policies();
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

    /// Has it accept connections and never answer.
    pub(crate) fn hang(&self) {
        match &self.server {
            Server::Embedded { .. } => {
                self.server().faults().inject(Fault::Delay { milliseconds: 3_600_000 });
            }
            Server::Real { process, .. } => process.freeze(),
        }
    }

    /// Has it do no rewrap.
    pub(crate) fn hold_rewraps(&self) {
        match &self.server {
            Server::Embedded { .. } => {
                let holds = Fault::Delay { milliseconds: 3_600_000 }.on("transit/rewrap/");
                self.server().faults().inject(holds);
            }
            Server::Real { .. } => self.deny("rewrap"),
        }
    }

    /// Has it answer 429.
    pub(crate) fn limit_the_rate(&self) {
        match &self.server {
            Server::Embedded { .. } => {
                let limit = Fault::RateLimit { requests: 0, milliseconds: 2_000 };
                self.server().faults().inject(limit);
            }
            Server::Real { .. } => {
                let quota = json!({ "path": "transit/", "rate": 1, "interval": "3600s" });
                self.ask("POST", QUOTA, quota);
                let read = || self.try_to_ask("GET", &format!("transit/keys/{KEY}"), json!({}));
                assert!(eventually(|| read().is_err()));
            }
        }
    }

    /// Has the node's token come to its end.
    pub(crate) fn expire_the_token(&self) {
        match &self.server {
            Server::Embedded { .. } => self.server().advance(TOKEN_LIFE),
            Server::Real { process, .. } => {
                // The node renews whatever it finds that can be renewed, and one without a period then lives for a month.
                let token = json!({
                    "id": TOKEN, "policies": [POLICY], "ttl": "1s", "renewable": false,
                });
                self.revoke_the_token();
                self.ask("POST", "auth/token/create", token);
                let lookup = json!({ "token": TOKEN });
                let lives = || process.admin().ask("POST", "auth/token/lookup", &lookup).0 == 200;
                assert!(eventually(|| !lives()));
            }
        }
    }

    pub(crate) fn revoke_the_token(&self) {
        self.ask("POST", "auth/token/revoke", json!({ "token": self.token }));
    }

    /// Ends what the node got by logging in, as time does.
    pub(crate) fn end_logins(&self) {
        match &self.server {
            Server::Embedded { .. } => self.server().advance(TOKEN_LIFE),
            Server::Real { .. } => {
                self.ask("POST", "sys/leases/revoke-prefix/auth/approle/login", json!({}));
            }
        }
    }

    /// Logs in until the secret id is used up.
    pub(crate) fn use_up_the_secret_id(&self) {
        let secret = fs::read_to_string(self.file("secret-id")).unwrap();
        let login = json!({ "role_id": ROLE_ID, "secret_id": secret });
        while self.try_to_ask("POST", "auth/approle/login", login.clone()).is_ok() {}
    }

    /// Keeps its state of now, to be put back by [`Vault::restore`].
    pub(crate) fn save(&mut self) {
        match &mut self.server {
            Server::Embedded { folder, .. } => {
                fs::copy(folder.path().join("state"), folder.path().join("saved")).unwrap();
            }
            Server::Real { process, backups, .. } => {
                *backups = [KEY, OWN].map(|key| {
                    let saved = process.admin().read(&format!("transit/backup/{key}"));
                    saved["data"]["backup"].clone()
                });
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
            Server::Real { process, is_newest, backups } => {
                process.thaw();
                let admin = process.admin();
                let is_newest = *is_newest;
                if is_newest {
                    // It is well already, or it does not become so.
                    let key = json!({ "key": process.unseal_key() });
                    assert_eq!(admin.ask("PUT", "sys/unseal", &key).0, 200);
                    assert!(eventually(|| admin.ask("GET", "sys/mounts", &Value::Null).0 == 200));
                    admin.delete(QUOTA);
                }
                admin.mount_transit();
                for (key, backup) in [KEY, OWN].iter().zip(backups) {
                    let restored = json!({ "backup": backup, "force": true });
                    admin.write(&format!("transit/restore/{key}"), &restored);
                }
                let lives = admin.ask("POST", "auth/token/lookup", &json!({ "token": TOKEN })).0;
                self.grant(&policies());
                if lives != 200 {
                    self.token_of_the_node();
                }
                if self.way == Way::Login {
                    admin.delete("auth/approle/role/node");
                    self.make_role();
                }
                if self.way == Way::Login && is_newest {
                    // After some logins that failed it refuses all for a while.
                    let accessor = &admin.read("sys/auth")["data"]["approle/"]["accessor"];
                    let accessor = accessor.as_str().unwrap();
                    let locked = format!("sys/locked-users/{accessor}/unlock/{ROLE_ID}");
                    admin.write(&locked, &json!({}));
                }
            }
        }
        if self.way == Way::File {
            self.put_token_file();
        }
        self.door.iter().for_each(|door| door.show(Shows::Own));
    }
}

/// All that the node needs with both master keys.
fn policies() -> String {
    policy(KEY) + &policy(OWN)
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

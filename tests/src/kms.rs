//! The KMS of a test: embedded, or a real Vault, with a transit key and a least-privilege token.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use testkit::vault_server::{NEWEST, OLDEST, VaultAdmin, VaultServer};

/// What every test's master key is called.
pub const KEY: &str = "coffer-key";

/// Which KMS a test runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The embedded development server.
    Embedded,
    /// Vault 1.1.5.
    Oldest,
    /// The newest Vault.
    Newest,
}

/// A running KMS with the transit key [`KEY`]; stopped when it is dropped.
pub struct Kms {
    server: Server,
    url: String,
    root: String,
}

enum Server {
    Embedded(Box<dev_vault::DevVault>),
    Real { _process: VaultServer },
}

impl Kms {
    /// Starts one, with transit mounted and the key made.
    pub fn start(kind: Kind) -> Self {
        let kms = match kind {
            Kind::Embedded => {
                let vault = runtime().block_on(dev_vault::DevVault::start()).unwrap();
                let (url, root) = (vault.url(), vault.root_token().to_owned());
                Self { server: Server::Embedded(Box::new(vault)), url, root }
            }
            Kind::Oldest => Self::real(OLDEST),
            Kind::Newest => Self::real(NEWEST),
        };
        kms.admin().mount_transit();
        kms.admin().write(&format!("transit/keys/{KEY}"), &json!({}));
        kms
    }

    fn real(variable: &str) -> Self {
        let process = VaultServer::start(&VaultServer::program(variable));
        let (url, root) = (process.url().to_owned(), VaultServer::ROOT_TOKEN.to_owned());
        Self { server: Server::Real { _process: process }, url, root }
    }

    /// Its base URL.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Its administrator.
    pub fn admin(&self) -> VaultAdmin {
        VaultAdmin::new(&self.url, &self.root)
    }

    /// The embedded server, for faults and counts.
    ///
    /// # Panics
    /// On a real Vault.
    pub fn embedded(&self) -> &dev_vault::DevVault {
        match &self.server {
            Server::Embedded(vault) => vault,
            Server::Real { .. } => panic!("a real Vault has no faults to order"),
        }
    }

    /// A periodic token that may do what Coffer needs with [`KEY`], and nothing else.
    pub fn token(&self) -> String {
        self.token_for(&policy(KEY))
    }

    /// A periodic token under this policy.
    pub fn token_for(&self, policy: &str) -> String {
        self.admin().token("coffer-test", policy, &json!({ "period": "1h" }))
    }

    /// Makes a new version of [`KEY`].
    pub fn rotate(&self) {
        self.admin().write(&format!("transit/keys/{KEY}/rotate"), &json!({}));
    }

    /// Has a real Vault write its own audit log to this file.
    pub fn audit_to(&self, file: &Path) -> VaultLog {
        let device = json!({ "type": "file", "options": { "file_path": file } });
        self.admin().write("sys/audit/file", &device);
        VaultLog { file: file.to_owned(), admin: self.admin() }
    }

    /// Configures [`KEY`].
    pub fn configure(&self, settings: &Value) {
        self.admin().write(&format!("transit/keys/{KEY}/config"), settings);
    }
}

/// A real Vault's own audit log. What is secret stands in it as a keyed hash.
pub struct VaultLog {
    file: PathBuf,
    admin: VaultAdmin,
}

impl VaultLog {
    /// The requests with master keys that were carried out so far: `encrypt`, `decrypt` and `rewrap`, in their order.
    pub fn uses(&self) -> Vec<VaultUse> {
        let text = fs::read_to_string(&self.file).unwrap();
        // The last line may be half written.
        let lines = text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let failed = |line: &Value| line["error"].as_str().is_some_and(|error| !error.is_empty());
        let answered = lines.filter(|line| line["type"] == "response" && !failed(line));
        answered.filter_map(|line| VaultUse::of(&line["request"])).collect()
    }

    /// How a text stands in it.
    pub fn hash(&self, text: &str) -> String {
        let hashed = self.admin.write("sys/audit-hash/file", &json!({ "input": text }));
        hashed["data"]["hash"].as_str().unwrap().to_owned()
    }
}

/// A request that used the master key.
#[derive(Debug, Clone)]
pub struct VaultUse {
    /// Vault's id of it.
    pub id: String,
    /// `encrypt`, `decrypt` or `rewrap`.
    pub operation: String,
    /// The hashes of what went in, item by item.
    pub items: Vec<String>,
}

impl VaultUse {
    fn of(request: &Value) -> Option<Self> {
        let path = request["path"].as_str()?.strip_prefix("transit/")?;
        let (operation, _) = path.split_once('/')?;
        if !["encrypt", "decrypt", "rewrap"].contains(&operation) {
            return None;
        }
        let items = request["data"]["batch_input"].as_array().into_iter().flatten();
        let text = |item: &Value| {
            let found =
                [&item["plaintext"], &item["ciphertext"]].into_iter().find_map(Value::as_str);
            found.unwrap_or_default().to_owned()
        };
        let id = request["id"].as_str()?.to_owned();
        Some(Self { id, operation: operation.to_owned(), items: items.map(text).collect() })
    }
}

/// Least privilege for one master key.
pub fn policy(key: &str) -> String {
    let write =
        |verb: &str| format!("path \"transit/{verb}/{key}\" {{ capabilities = [\"update\"] }}\n");
    format!(
        "path \"transit/keys/{key}\" {{ capabilities = [\"read\"] }}\n{}{}{}",
        write("encrypt"),
        write("decrypt"),
        write("rewrap")
    )
}

/// Keeps the embedded servers of all tests going.
fn runtime() -> &'static tokio::runtime::Runtime {
    static RUNTIME: std::sync::LazyLock<tokio::runtime::Runtime> = std::sync::LazyLock::new(|| {
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
    });
    &RUNTIME
}

//! The KMS of a test: embedded, or a real Vault, with a transit key and a least-privilege token.

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

    /// Configures [`KEY`].
    pub fn configure(&self, settings: &Value) {
        self.admin().write(&format!("transit/keys/{KEY}/config"), settings);
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

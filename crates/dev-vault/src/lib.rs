//! An embedded server that speaks the part of HashiCorp Vault's HTTP API that Coffer uses.
//!
//! **For newcomers, demos and tests, never for production.** It keeps its keys in plain memory, and in a plain
//! file if it is given one; there is no TLS, no audit log and no storage that survives a broken disk. Every answer
//! says so in the header `X-Coffer-Dev-Vault: insecure`.
//!
//! What it does, it does for real: AES-256-GCM under transit keys with versions and minimum versions, policies,
//! tokens with roles, periods and lives, AppRole, seal and unseal. It answers as Vault 1.21.4 does, to the words of the
//! errors, and refuses what it lacks (batch tokens, derived keys, other engines) instead of making up an
//! answer. On top of that, faults can be ordered one by one ([`Faults`]) or by a seed ([`FaultPlan`]), what happens to
//! Vaults can happen to it ([`Event`]: it is sealed, a key is deleted, the clock jumps), and requests are counted
//! ([`RequestLog`]).
//!
//! ```
//! # async fn example() -> std::io::Result<()> {
//! use dev_vault::{DevVault, Event, Fault, FaultPlan};
//! use serde_json::json;
//!
//! let vault = DevVault::builder().transit_key("coffer").start().await?;
//! println!("{}", vault.banner());
//!
//! // Point a client at `vault.url()` with `vault.root_token()`. What an administrator would do:
//! vault.admin("POST", "transit/keys/coffer/rotate", json!({})).expect("the key is there");
//!
//! // The next two decrypt requests are answered as if Vault had a bad day.
//! vault.faults().inject(Fault::Drop.on("transit/decrypt/").times(2));
//!
//! // One request in five meets something, the same each time that this runs; and once Vault is sealed for a while.
//! vault.faults().follow(FaultPlan {
//!     events: vec![Event::Seal.after(100).within(50), Event::Unseal.after(200)],
//!     ..FaultPlan::seeded(7)
//! });
//! # vault.stop().await; Ok(()) }
//! ```
//!
//! Other processes do that over HTTP, with the root token:
//!
//! | path | |
//! |---|---|
//! | `POST /v1/dev/faults` | adds a [`FaultRule`], such as `{"fault": "status", "status": 500, "path": "transit/", "times": 3}` |
//! | `GET`, `DELETE` | shows the rules; ends them and the plan |
//! | `POST /v1/dev/plan` | follows a [`FaultPlan`], such as `{"seed": 7}`, from its first request on |
//! | `GET` | shows it, and how many requests it has seen |
//! | `POST /v1/dev/events` | lets an [`Event`] happen, such as `{"event": "clock_jump", "seconds": 3600}` |
//! | `GET`, `DELETE /v1/dev/requests` | shows the counts; sets them to zero |

mod answer;
mod app_role;
mod broken;
mod clock;
mod control;
mod core;
mod event;
mod faults;
mod life;
mod plan;
mod policy;
mod random;
mod request;
mod server;
mod state;
mod sys;
mod token;
mod token_role;
mod transit;
mod transit_key;

use std::{
    fmt, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    answer::Refusal,
    core::Core,
    request::{Fields, Operation, Request},
    server::Shared,
};
pub use crate::{
    event::Event,
    faults::{Count, Fault, FaultRule, Faults, RequestLog},
    plan::{FaultPlan, Scheduled, Weighted},
};

/// A running server. Dropping it stops it.
///
/// It runs on a thread of its own, so it needs no runtime of its caller's and does not stand still when that
/// is busy.
pub struct DevVault {
    address: SocketAddr,
    root_token: String,
    unseal_key: String,
    shared: Arc<Shared>,
    running: Option<Running>,
}

struct Running {
    /// Dropped to stop the server.
    stop: oneshot::Sender<()>,
    /// Resolves when port and connections are closed.
    stopped: oneshot::Receiver<()>,
    thread: JoinHandle<()>,
}

impl DevVault {
    /// Starts one on a free port of 127.0.0.1, with nothing but a root token.
    pub async fn start() -> io::Result<Self> {
        Self::builder().start().await
    }

    /// Settings for one that is not started yet.
    pub fn builder() -> Builder {
        Builder {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            root_token: None,
            unseal_key: None,
            state_file: None,
            transit_keys: Vec::new(),
            plan: None,
            initialized: true,
        }
    }

    /// What a client takes for Vault's address, such as `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A token that may do everything.
    pub fn root_token(&self) -> &str {
        &self.root_token
    }

    /// Opens the seal again after `sys/seal`.
    pub fn unseal_key(&self) -> &str {
        &self.unseal_key
    }

    /// What to print for the person who started it: that it is insecure, where it is, and how to use it.
    pub fn banner(&self) -> String {
        format!(
            "WARNING: this is Coffer's development KMS. It answers like Vault {}, but it is NOT secure:\n\
             keys lie in plain memory (and in plain sight in a state file), without TLS or audit log.\n\
             Never keep a key in it that protects data you care about.\n\
             \n    export VAULT_ADDR={}\n    export VAULT_TOKEN={}\n\n\
             Unseal key: {}\n",
            sys::VAULT_VERSION,
            self.url(),
            self.root_token,
            self.unseal_key
        )
    }

    /// What goes wrong, on order.
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// What came in over HTTP.
    pub fn requests(&self) -> &RequestLog {
        &self.shared.requests
    }

    /// Sets the server's clock forward, so that tokens expire without anybody waiting.
    pub fn advance(&self, by: Duration) {
        self.shared.core.clock().advance(by);
    }

    /// Lets something happen to it, whatever the policies and the seal. Fails if there is no such key.
    pub fn happen(&self, event: &Event) -> Result<(), AdminError> {
        Ok(self.shared.core.happen(event)?)
    }

    /// Does what an administrator would do with the root token, without HTTP: no fault strikes it and it is
    /// not counted. `method` and `path` are as in Vault's documentation, the path without `/v1/`.
    /// Gives the answer's body, or `null` if it has none.
    pub fn admin(&self, method: &str, path: &str, body: Value) -> Result<Value, AdminError> {
        let operation = match method {
            "GET" => Operation::Read,
            "POST" | "PUT" => Operation::Update,
            "DELETE" => Operation::Delete,
            "LIST" => Operation::List,
            _ => return Err(AdminError::from(Refusal::unsupported_operation())),
        };
        let fields = match body {
            Value::Object(fields) => Fields(fields),
            _ => Fields::default(),
        };
        let path = path.trim_matches('/').to_owned();
        let request = Request { operation, path, token: Some(self.root_token.clone()), fields };
        let (status, body) = self.shared.core.handle(request);
        let body = body.unwrap_or_default();
        if (200..300).contains(&status) { Ok(body) } else { Err(AdminError { status, body }) }
    }

    /// Stops it: the port is free and every connection closed when this returns.
    pub async fn stop(mut self) {
        if let Some(Running { stop, stopped, thread: _ }) = self.running.take() {
            drop(stop);
            // An error means that the thread is gone already.
            stopped.await.ok();
        }
    }
}

impl Drop for DevVault {
    fn drop(&mut self) {
        if let Some(Running { stop, stopped: _, thread }) = self.running.take() {
            drop(stop);
            thread.join().ok();
        }
    }
}

impl fmt::Debug for DevVault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DevVault").field("address", &self.address).finish_non_exhaustive()
    }
}

/// Settings of a [`DevVault`].
pub struct Builder {
    listen: SocketAddr,
    root_token: Option<String>,
    unseal_key: Option<String>,
    state_file: Option<PathBuf>,
    transit_keys: Vec<String>,
    plan: Option<FaultPlan>,
    initialized: bool,
}

impl Builder {
    /// Where to listen. Default: a free port of 127.0.0.1.
    #[must_use]
    pub fn listen(self, address: SocketAddr) -> Self {
        Self { listen: address, ..self }
    }

    /// Default: the one in the state file, or else a random one.
    #[must_use]
    pub fn root_token(self, token: impl Into<String>) -> Self {
        Self { root_token: Some(token.into()), ..self }
    }

    /// Default: the one in the state file, or else a random one.
    #[must_use]
    pub fn unseal_key(self, key: impl Into<String>) -> Self {
        Self { unseal_key: Some(key.into()), ..self }
    }

    /// Where keys, tokens and policies outlive a restart: read at the start, written after each change (mode 0600).
    /// They stand there in the clear. Default: nowhere.
    #[must_use]
    pub fn state_file(self, path: impl Into<PathBuf>) -> Self {
        Self { state_file: Some(path.into()), ..self }
    }

    /// Mounts transit at `transit/` and makes this key, unless they are there.
    #[must_use]
    pub fn transit_key(mut self, name: impl Into<String>) -> Self {
        self.transit_keys.push(name.into());
        self
    }

    /// Follows a plan of faults from the first request on.
    #[must_use]
    pub fn fault_plan(self, plan: FaultPlan) -> Self {
        Self { plan: Some(plan), ..self }
    }

    /// Leaves it as a Vault that `vault operator init` was never run on: `sys/health` answers 501, and
    /// everything else is refused.
    #[must_use]
    pub fn not_initialized(self) -> Self {
        Self { initialized: false, ..self }
    }

    /// Starts the server. Fails if it can't listen, or can't read or write its state file.
    pub async fn start(self) -> io::Result<DevVault> {
        // First of all, so that a start that fails for a taken port leaves the state file alone.
        let listener = std::net::TcpListener::bind(self.listen)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let (mut root_token, mut unseal_key) = (String::new(), String::new());
        let core = Core::open(self.state_file, |state, now| {
            if !self.initialized {
                return Ok(());
            }
            let recorded = |text: &String| Some(text.clone()).filter(|text| !text.is_empty());
            root_token = match self.root_token.or(recorded(&state.root_token)) {
                Some(token) => token,
                None => token::new_id()?,
            };
            unseal_key = match self.unseal_key.or(recorded(&state.unseal_key)) {
                Some(key) => key,
                None => random::base64_key()?,
            };
            state.initialize(root_token.clone(), unseal_key.clone(), now)
        })?;
        let shared =
            Arc::new(Shared { core, faults: Faults::default(), requests: RequestLog::default() });
        let running = run(listener, shared.clone())?;
        let vault = DevVault { address, root_token, unseal_key, shared, running: Some(running) };
        if !self.transit_keys.is_empty() {
            let mounts = vault.admin("GET", "sys/mounts", Value::Null)?;
            if mounts["data"]["transit/"].is_null() {
                vault.admin(
                    "POST",
                    "sys/mounts/transit",
                    serde_json::json!({ "type": "transit" }),
                )?;
            }
        }
        for name in self.transit_keys {
            vault.admin("POST", &format!("transit/keys/{name}"), Value::Null)?;
        }
        if let Some(plan) = self.plan {
            vault.faults().follow(plan);
        }
        Ok(vault)
    }
}

/// Runs the server on a thread with a runtime of its own. When that is dropped, so are all connections,
/// those with an endless answer too.
fn run(listener: std::net::TcpListener, shared: Arc<Shared>) -> io::Result<Running> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let listener = {
        let _entered = runtime.enter();
        tokio::net::TcpListener::from_std(listener)?
    };
    let (stop, stopping) = oneshot::channel();
    let (done, stopped) = oneshot::channel();
    let thread = std::thread::Builder::new().name("dev-vault".to_owned()).spawn(move || {
        runtime.block_on(async {
            tokio::select! {
                _ = stopping => {}
                _ = server::serve(listener, shared) => {}
            }
        });
        drop(runtime);
        done.send(()).ok();
    })?;
    Ok(Running { stop, stopped, thread })
}

/// The server refused what an administrator asked for.
#[derive(Debug)]
pub struct AdminError {
    /// The HTTP status.
    pub status: u16,
    /// The body, `{"errors": […]}`; of a batch with failed items, its results.
    pub body: Value,
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the development KMS answered {}: {}", self.status, self.body)
    }
}

impl std::error::Error for AdminError {}

impl From<Refusal> for AdminError {
    fn from(refusal: Refusal) -> Self {
        let (status, body) = refusal.render();
        Self { status, body }
    }
}

impl From<AdminError> for io::Error {
    fn from(e: AdminError) -> Self {
        Self::other(e)
    }
}

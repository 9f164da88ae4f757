//! What outlives a node (store, KMS, directory), and a node in it.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use admin_api::{Exit, Problem};
use async_trait::async_trait;
use daemon::{AuditLog, BackingVolumes, Meters, Node, Parts, Patience, Rehearse};
use filesystem::{Backend, BackingHeaders, BackingLocks};
use key_manager::{KeyManager, Rehearsal};
use kms_core::{Credential, Kms, KmsConfig, KmsError, KmsProvider, Policy, Proof, SystemClock};
use serde_json::{Value, json};
use testkit::fake_kms::{FakeProvider, FakeServer};
use testkit::fake_store::FakeStore;
use testkit::late::{Gate, Late};
use testkit::tree;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// Where the fake KMS is.
pub(crate) const KMS: &str = "https://kms.example";

/// The token that no answer and no file may show.
pub(crate) const TOKEN: &str = "hvs.canary-of-the-token";

/// The line in the head of a request that has a body.
pub(crate) const JSON: &str = "content-type: application/json\r\n";

/// What outlives a node.
pub(crate) struct World {
    directory: tempfile::TempDir,
    store: Arc<FakeStore>,
    provider: FakeProvider,
    rehearsal: Arc<FakeRehearsal>,
}

/// A node that runs.
pub(crate) struct Running {
    socket: PathBuf,
    stop: oneshot::Sender<()>,
    ended: JoinHandle<()>,
}

/// What was answered.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) kind: String,
    pub(crate) body: Value,
    head: String,
}

impl Answer {
    /// The header with this name, in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let line = |line: &'_ str| -> bool {
            line.split_once(": ").is_some_and(|(known, _)| known == name)
        };
        let found = self.head.lines().find(|found| line(found))?;
        found.split_once(": ").map(|(_, value)| value)
    }
}

impl World {
    pub(crate) fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
            store: Arc::default(),
            provider: FakeProvider::default(),
            rehearsal: Arc::default(),
        }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn store(&self) -> &FakeStore {
        &self.store
    }

    /// Holds the next rehearsal of a start back.
    pub(crate) fn hold_rehearsal(&self) -> Late {
        let (gate, late) = Late::new();
        *self.rehearsal.held.lock().unwrap() = Some(gate);
        late
    }

    /// What rehearsals of a start find from now on.
    pub(crate) fn rehearsals_find(&self, found: Rehearsal) {
        *self.rehearsal.finds.lock().unwrap() = Some(found);
    }

    pub(crate) fn kms(&self) -> FakeServer {
        self.kms_at(KMS)
    }

    pub(crate) fn kms_at(&self, url: &str) -> FakeServer {
        self.provider.server(url)
    }

    pub(crate) async fn start(&self) -> Running {
        let state_dir = self.path("state");
        std::fs::create_dir_all(&state_dir).unwrap();
        let audit = Arc::new(AuditLog::open(&state_dir.join("audit.jsonl")).unwrap());
        let locks = BackingLocks::default();
        let kind = |kind| Arc::new(Kind { kind, provider: self.provider.clone() }) as _;
        let manager = KeyManager::new(key_manager::Parts {
            store: Arc::clone(&self.store) as _,
            providers: vec![kind("vault"), kind("local")],
            holders: vec![Arc::new(Patience::new(BackingHeaders::new(locks.clone())))],
            volumes: Arc::new(BackingVolumes::new(Backend::default(), locks.clone())),
            clock: Arc::new(SystemClock),
            audit: Arc::clone(&audit) as _,
        });
        let socket = state_dir.join("coffer.sock");
        let node = Node::start(Parts {
            manager: Arc::new(manager),
            cipher: Backend::default(),
            locks,
            meters: Meters::install().unwrap(),
            rehearse: Arc::clone(&self.rehearsal) as _,
            audit,
            clock: Arc::new(SystemClock),
            state_dir,
            socket: socket.clone(),
            console: None,
        });
        let node = node.await.unwrap();
        let (stop, stopped) = oneshot::channel();
        let ended = tokio::spawn(async move {
            node.run(async {
                let _ = stopped.await;
                Ok(())
            })
            .await
            .unwrap();
        });
        Running { socket, stop, ended }
    }

    /// A node that has its KMS.
    pub(crate) async fn start_with_kms(&self) -> Running {
        let node = self.start().await;
        node.ok("PUT", "/v1/kms", &set_vault()).await;
        node
    }
}

/// What sets the fake KMS.
pub(crate) fn set_vault() -> Value {
    json!({"base_url": KMS, "master_key": "k", "token": TOKEN})
}

impl Running {
    pub(crate) async fn stop(self) {
        let _ = self.stop.send(());
        self.ended.await.unwrap();
        assert!(!self.socket.exists());
    }

    pub(crate) async fn get(&self, path: &str) -> Value {
        self.ok("GET", path, &Value::Null).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Value {
        self.ok("POST", path, body).await
    }

    pub(crate) async fn ok(&self, method: &str, path: &str, body: &Value) -> Value {
        let answer = self.ask(method, path, &body.to_string()).await;
        assert_eq!((answer.status, answer.kind.as_str()), (200, "application/json"), "{answer:?}");
        answer.body
    }

    /// A request that must be refused with this status; gives the problem.
    pub(crate) async fn refused(
        &self,
        status: u16,
        method: &str,
        path: &str,
        body: &Value,
    ) -> Value {
        let answer = self.ask(method, path, &body.to_string()).await;
        let kind = "application/problem+json";
        assert_eq!((answer.status, answer.kind.as_str()), (status, kind), "{answer:?}");
        answer.body
    }

    /// Sends a request, spelled out so that nothing stands between the test and the wire. The answer can be read, or
    /// the connection dropped.
    pub(crate) async fn send(&self, method: &str, path: &str, body: &str) -> UnixStream {
        self.send_with(JSON, method, path, body).await
    }

    /// As [`Self::send`], with these lines in the request's head.
    pub(crate) async fn send_with(
        &self,
        headers: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> UnixStream {
        let mut stream = UnixStream::connect(&self.socket).await.unwrap();
        let length = match headers.contains("content-length: ") {
            true => String::new(),
            false => format!("content-length: {}\r\n", body.len()),
        };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: coffer\r\nconnection: close\r\n{headers}{length}\r\n{body}"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        stream
    }

    /// One HTTP/1.1 exchange.
    pub(crate) async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        self.ask_with(JSON, method, path, body).await
    }

    /// As [`Self::ask`], with these lines in the request's head.
    pub(crate) async fn ask_with(
        &self,
        headers: &str,
        method: &str,
        path: &str,
        body: &str,
    ) -> Answer {
        let mut stream = self.send_with(headers, method, path, body).await;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert!(!text.contains(TOKEN), "{text}");
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let kind = head.lines().find_map(|line| line.strip_prefix("content-type: "));
        Answer {
            status: head.split(' ').nth(1).unwrap().parse().unwrap(),
            kind: kind.unwrap_or_default().to_owned(),
            body: serde_json::from_str(body).unwrap_or(Value::String(body.to_owned())),
            head: head.to_owned(),
        }
    }

    /// Asks until `found` is content with the answer.
    pub(crate) async fn until(&self, path: &str, found: impl Fn(&Value) -> bool) -> Value {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let answer = self.get(path).await;
            if found(&answer) {
                return answer;
            }
            assert!(Instant::now() < deadline, "{answer}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The job when it has ended.
    pub(crate) async fn ended(&self, job: &Value) -> Value {
        let path = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
        let over = ["done", "partly", "failed", "stopped"];
        self.until(&path, |job| over.contains(&job["state"].as_str().unwrap())).await
    }
}

/// An import that runs and does not begin to copy before the second is dropped. Its answer can take its time: it is in the
/// audit log first, and a disk that is being written to syncs slowly.
pub(crate) async fn held(world: &World, node: &Running, size: usize) -> (Value, Late) {
    let source = world.path("source");
    tree::small_files(&source, 10).unwrap();
    std::fs::write(source.join("large"), tree::noise(1, size)).unwrap();
    node.post("/v1/filesystems", &json!({"name": "home", "allow_no_kms": true})).await;
    // What the command reads comes before its job is recorded.
    let mut begun = world.store().hold_after("job/", "fs/home");
    let job = node.post("/v1/filesystems/home/import", &json!({"source": source})).await;
    begun.reached().await;
    (job, begun)
}

/// A listing of `home` that has its key, and is held before it opens the directory; what `act` gives, which lets it go.
pub(crate) async fn beside_a_listing<T>(
    world: &World,
    node: &Running,
    act: impl AsyncFnOnce(Late) -> T,
) -> (Answer, T) {
    let mut key = world.store().hold("fs/home");
    tokio::join!(node.ask("GET", "/v1/filesystems/home/ls", ""), async {
        key.reached().await;
        let mut place = world.store().hold("fs/home");
        drop(key);
        place.reached().await;
        act(place).await
    })
}

/// Lets it go when what is asked beside it has arrived.
pub(crate) async fn soon(held: Late) {
    tokio::time::sleep(Duration::from_millis(50)).await;
    drop(held);
}

/// Has no other process to try a start in, and finds what it is told to, if anything.
#[derive(Debug, Default)]
struct FakeRehearsal {
    held: Mutex<Option<Gate>>,
    finds: Mutex<Option<Rehearsal>>,
}

#[async_trait]
impl Rehearse for FakeRehearsal {
    async fn rehearse(&self) -> Result<Rehearsal, Problem> {
        let gate = self.held.lock().unwrap().take();
        if let Some(gate) = gate {
            gate.pass().await;
        }
        self.finds.lock().unwrap().clone().ok_or_else(|| {
            Problem::new(Exit::Failed, "no-rehearsal", "no start can be tried", "here is none")
        })
    }
}

/// The fake provider under another kind.
#[derive(Debug)]
struct Kind {
    kind: &'static str,
    provider: FakeProvider,
}

#[async_trait]
impl KmsProvider for Kind {
    fn kind(&self) -> &'static str {
        self.kind
    }

    fn open(&self, config: &KmsConfig, credential: &Credential) -> Result<Arc<dyn Kms>, KmsError> {
        let of_this_machine = Credential::token("none");
        self.provider.open(config, if self.kind == "local" { &of_this_machine } else { credential })
    }

    async fn prove(&self, config: &KmsConfig, credential: &Credential) -> Result<Proof, KmsError> {
        self.provider.prove(config, credential).await
    }

    fn policy(
        &self,
        master_keys: &[String],
        settings: &BTreeMap<String, String>,
    ) -> Result<Policy, KmsError> {
        self.provider.policy(master_keys, settings)
    }
}

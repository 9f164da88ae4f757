//! A KMS of the benchmark's own: the embedded one or a real Vault, and raw requests to it.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use ureq::Agent;

use super::Bench;
use crate::process::Background;
use crate::vault::{self, Version};

/// The master key's name.
pub(super) const MASTER_KEY: &str = "bench";
/// Keys in one request, as `vault-transit` sends them (`Limits::default`).
pub(super) const BATCH: usize = 1_250;
/// Requests under way at once, as in `vault-transit`.
pub(super) const IN_FLIGHT: usize = 4;

/// Root's token.
pub(super) const TOKEN: &str = "bench-root";

/// What a section says that has no real Vault.
pub(super) const NO_VAULT: &str =
    "NOT MEASURED over a real Vault: none is here; `cargo xtask vault` builds one";

/// A running KMS with a master key; it ends with this value.
pub(super) struct Kms {
    _server: Background,
    pub(super) url: String,
}

impl Kms {
    /// `coffer dev vault`.
    pub(super) fn embedded(coffer: &Path, folder: &Path) -> Result<Self> {
        Self::start(folder, |address| {
            let mut command = Command::new(coffer);
            command.args(["dev", "vault", "--listen", address, "--root-token", TOKEN]);
            command
        })
    }

    /// The newest Vault, if one is here.
    pub(super) fn real(bench: &Bench<'_>) -> Result<Option<Self>> {
        let found = vault::find(bench.workspace, Version::Newest)?;
        found.map(|vault| Self::vault(&vault, bench.folder)).transpose()
    }

    /// `vault server -dev`, which keeps all in memory.
    fn vault(vault: &Path, folder: &Path) -> Result<Self> {
        Self::start(folder, |address| {
            let mut command = Command::new(vault);
            command.args(["server", "-dev", "-dev-no-store-token"]).env("HOME", folder);
            command.arg(format!("-dev-root-token-id={TOKEN}"));
            command.arg(format!("-dev-listen-address={address}"));
            command
        })
    }

    fn start(folder: &Path, command: impl Fn(&str) -> Command) -> Result<Self> {
        let address = TcpListener::bind("127.0.0.1:0")?.local_addr()?.to_string();
        let url = format!("http://{address}");
        let mut server = Background::start(&mut command(&address), &folder.join("kms.log"))?;
        let health = format!("{url}/v1/sys/health");
        server.wait_until(|| ureq::get(&health).call().is_ok()).context("the KMS")?;
        let kms = Self { _server: server, url };
        match kms.post("sys/mounts/transit", &json!({"type": "transit"})) {
            Err(error) if !error.to_string().contains("already in use") => return Err(error),
            _ => {}
        }
        kms.make_key(MASTER_KEY)?;
        Ok(kms)
    }

    /// Another master key.
    pub(super) fn make_key(&self, name: &str) -> Result<()> {
        self.post(&format!("transit/keys/{name}"), &json!({})).map(drop)
    }

    /// A new version of a master key.
    pub(super) fn rotate(&self, name: &str) -> Result<()> {
        self.post(&format!("transit/keys/{name}/rotate"), &json!({})).map(drop)
    }

    /// Where its token is for the node to read.
    pub(super) fn token_file(&self, folder: &Path) -> Result<String> {
        let file = folder.join("token");
        fs::write(&file, TOKEN)?;
        Ok(file.display().to_string())
    }

    /// Encrypts plaintexts, which are in base64.
    pub(super) fn encrypt(&self, plaintexts: &[String]) -> Result<Vec<String>> {
        let mut ciphertexts = Vec::with_capacity(plaintexts.len());
        for batch in plaintexts.chunks(BATCH) {
            let items: Vec<_> = batch.iter().map(|p| json!({"plaintext": p})).collect();
            let body = json!({"batch_input": items});
            let answer = self.post(&format!("transit/encrypt/{MASTER_KEY}"), &body)?;
            ciphertexts.extend(results(&answer, "ciphertext")?);
        }
        Ok(ciphertexts)
    }

    /// How long the KMS takes to decrypt all of these in raw batch requests: from the first byte out to
    /// the last byte in. Making the requests and reading the answers is not in it.
    pub(super) fn time_to_decrypt(&self, ciphertexts: &[String]) -> Result<Duration> {
        self.time(&format!("transit/decrypt/{MASTER_KEY}"), ciphertexts, "plaintext")
    }

    /// As [`Self::time_to_decrypt`], to rewrap them.
    pub(super) fn time_to_rewrap(&self, ciphertexts: &[String]) -> Result<Duration> {
        self.time(&format!("transit/rewrap/{MASTER_KEY}"), ciphertexts, "ciphertext")
    }

    fn time(&self, path: &str, ciphertexts: &[String], answered: &str) -> Result<Duration> {
        let bodies = ciphertexts.chunks(BATCH).map(|batch| {
            let items: Vec<_> = batch.iter().map(|c| json!({"ciphertext": c})).collect();
            json!({"batch_input": items}).to_string()
        });
        let bodies: Vec<String> = bodies.collect();
        let agent = agent();
        let next = AtomicUsize::new(0);
        let send = || -> Result<Vec<_>> {
            let mut answers = Vec::new();
            while let Some(body) = bodies.get(next.fetch_add(1, Ordering::Relaxed)) {
                answers.push(self.send(&agent, path, body)?);
            }
            Ok(answers)
        };
        let began = Instant::now();
        let answers: Result<Vec<_>> = thread::scope(|scope| {
            let threads: Vec<_> = (0..IN_FLIGHT).map(|_| scope.spawn(send)).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| died())?).collect()
        });
        let took = began.elapsed();
        let mut done = 0;
        for answer in answers?.concat() {
            done += results(&serde_json::from_slice(&answer)?, answered)?.len();
        }
        ensure!(done == ciphertexts.len(), "the KMS answered {done} keys at {path}");
        Ok(took)
    }

    /// Has a real Vault log each request from now on, until the log is dropped.
    pub(super) fn log_requests(&self, folder: &Path) -> Result<RequestLog<'_>> {
        let file = folder.join("vault-audit.jsonl");
        let device = json!({"type": "file", "options": {"file_path": file}});
        self.post(RequestLog::DEVICE, &device)?;
        Ok(RequestLog { kms: self, file })
    }

    fn delete(&self, path: &str) -> Result<()> {
        let url = format!("{}/v1/{path}", self.url);
        let answer = agent().delete(&url).header("X-Vault-Token", TOKEN).call();
        Self::content(&url, answer?).map(drop)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.send(&agent(), path, &body.to_string())?;
        Ok(if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer)? })
    }

    fn send(&self, agent: &Agent, path: &str, body: &str) -> Result<Vec<u8>> {
        let url = format!("{}/v1/{path}", self.url);
        let answer = agent.post(&url).header("X-Vault-Token", TOKEN).send(body);
        Self::content(&url, answer?)
    }

    fn content(url: &str, mut answer: ureq::http::Response<ureq::Body>) -> Result<Vec<u8>> {
        let content = answer.body_mut().read_to_vec()?;
        if !answer.status().is_success() {
            bail!("{url}: {}: {}", answer.status(), String::from_utf8_lossy(&content));
        }
        Ok(content)
    }
}

/// The log of a Vault's audit device; it ends with this value.
pub(super) struct RequestLog<'a> {
    kms: &'a Kms,
    file: PathBuf,
}

impl RequestLog<'_> {
    const DEVICE: &'static str = "sys/audit/bench";

    /// The requests so far, each by its operation and path, but for those about the log itself.
    pub(super) fn requests(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(&self.file)?;
        let mut requests = Vec::new();
        // The last line may not be whole yet.
        for line in log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let request = &line["request"];
            let path = request["path"].as_str().context("an audit line without a path")?;
            if line["type"] == "request" && !path.starts_with("sys/audit/") {
                let operation = request["operation"].as_str().unwrap_or_default();
                requests.push(format!("{operation} {path}"));
            }
        }
        Ok(requests)
    }
}

impl Drop for RequestLog<'_> {
    fn drop(&mut self) {
        // A Vault that does not answer any more logs no more either.
        let _ = self.kms.delete(Self::DEVICE);
        let _ = fs::remove_file(&self.file);
    }
}

fn died() -> anyhow::Error {
    anyhow!("a thread that asked the KMS died")
}

fn agent() -> Agent {
    Agent::config_builder().http_status_as_error(false).build().into()
}

/// One field of every item of a batch's answer.
fn results(answer: &Value, field: &str) -> Result<Vec<String>> {
    let items = answer["data"]["batch_results"].as_array().context("no batch_results")?;
    let fields = items.iter().map(|item| item[field].as_str().map(str::to_owned));
    fields.collect::<Option<_>>().with_context(|| format!("an item without {field}"))
}

//! A KMS of the benchmark's own: the embedded one or a real Vault, and raw requests to it.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};
use ureq::Agent;

use crate::process::Background;

/// The master key's name.
pub(super) const MASTER_KEY: &str = "bench";
/// Keys in one request, as `vault-transit` sends them (`Limits::default`).
pub(super) const BATCH: usize = 2_500;
/// Requests under way at once, as in `vault-transit`.
pub(super) const IN_FLIGHT: usize = 4;

const TOKEN: &str = "bench-root";

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

    /// `vault server -dev`, which keeps all in memory.
    pub(super) fn vault(vault: &Path, folder: &Path) -> Result<Self> {
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
        kms.post(&format!("transit/keys/{MASTER_KEY}"), &json!({}))?;
        Ok(kms)
    }

    /// Where its token is for the node to read.
    pub(super) fn token_file(&self, folder: &Path) -> Result<String> {
        let file = folder.join("token");
        std::fs::write(&file, TOKEN)?;
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
        ensure!(ciphertexts.len() <= BATCH * IN_FLIGHT, "all requests are under way at once");
        let bodies = ciphertexts.chunks(BATCH).map(|batch| {
            let items: Vec<_> = batch.iter().map(|c| json!({"ciphertext": c})).collect();
            json!({"batch_input": items}).to_string()
        });
        let bodies: Vec<String> = bodies.collect();
        let agent = agent();
        let path = format!("transit/decrypt/{MASTER_KEY}");
        let began = Instant::now();
        let send = &|body: &String| self.send(&agent, &path, body);
        let answers: Result<Vec<_>> = thread::scope(|scope| {
            let threads: Vec<_> =
                bodies.iter().map(|body| scope.spawn(move || send(body))).collect();
            threads.into_iter().map(|thread| thread.join().map_err(|_| died())?).collect()
        });
        let took = began.elapsed();
        let mut opened = 0;
        for answer in answers? {
            opened += results(&serde_json::from_slice(&answer)?, "plaintext")?.len();
        }
        ensure!(opened == ciphertexts.len(), "the KMS opened {opened} keys");
        Ok(took)
    }

    fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let answer = self.send(&agent(), path, &body.to_string())?;
        Ok(if answer.is_empty() { Value::Null } else { serde_json::from_slice(&answer)? })
    }

    fn send(&self, agent: &Agent, path: &str, body: &str) -> Result<Vec<u8>> {
        let url = format!("{}/v1/{path}", self.url);
        let mut answer = agent.post(&url).header("X-Vault-Token", TOKEN).send(body)?;
        let content = answer.body_mut().read_to_vec()?;
        if !answer.status().is_success() {
            bail!("{url}: {}: {}", answer.status(), String::from_utf8_lossy(&content));
        }
        Ok(content)
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

//! Bad days out of seeds: the client goes through hundreds of operations while its Vault breaks by a plan. Each ends in
//! time, with the right answer or an error that says what kind it is.
//!
//! A failure names its seed; `COFFER_FAULT_SEED=<seed>` runs that day alone.
//!
//! These tests have a process of their own, because they look at how much memory it took.
// Clippy takes only functions marked `#[test]` for tests, and not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{BTreeMap, HashMap};
use std::net::TcpListener;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use dev_vault::{DevVault, Event, Fault, FaultPlan};
use futures::{StreamExt as _, stream};
use kms_core::{
    Auth, Ciphertext, Credential, FilesystemKey, Items, KeyRecord, Kms, KmsConfig, KmsConfigId,
    KmsError, KmsErrorKind, KmsProvider as _, Login,
};
use serde_json::{Value, json};
use vault_transit::{KIND, Limits, VaultProvider};

const SEEDS: u64 = 32;
/// When all that a plan has in store has happened.
const REQUESTS: u64 = 240;

/// Short, so that what takes too long ends soon; each operation takes a handful of requests.
const LIMITS: Limits = Limits {
    connect: Duration::from_secs(2),
    attempt: Duration::from_millis(250),
    deadline: Duration::from_secs(1),
    tries: 4,
    pause: Duration::from_millis(1),
    reply_bytes: 1 << 20,
    batch_items: 4,
    batch_bytes: 1 << 20,
    // The same requests in the same order each time.
    in_flight: 1,
};
/// Many times what the limits above allow, for a machine that is busy.
const PATIENCE: Duration = Duration::from_secs(40);

#[tokio::test(flavor = "multi_thread")]
async fn every_operation_ends_right_or_with_an_error_that_is_known() {
    let elsewhere = TcpListener::bind("127.0.0.1:0").unwrap();
    elsewhere.set_nonblocking(true).unwrap();
    let port = elsewhere.local_addr().unwrap().port();
    let before = peak_memory();
    let seeds: Vec<u64> = match std::env::var("COFFER_FAULT_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (0..SEEDS).collect(),
    };
    let days = seeds.into_iter().map(|seed| async move {
        let outcome = tokio::spawn(async move { Day::new(seed, port).await.live().await }).await;
        outcome.unwrap_or_else(|e| panic!("COFFER_FAULT_SEED={seed}: {e}"))
    });
    let operations: Vec<Tally> = stream::iter(days).buffer_unordered(16).collect().await;

    let all = operations.iter().fold(Tally::default(), |sum, day| sum.and(*day));
    assert!(all.right >= operations.len() && all.failed >= operations.len(), "{all:?}");
    let error =
        elsewhere.accept().expect_err("a request, and maybe a token, went to another origin");
    assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
    // Answers of 64 MiB and without end have come in: none was kept.
    let grown = peak_memory() - before;
    assert!(grown < 64 << 20, "{} MiB", grown >> 20);
}

/// How operations ended.
#[derive(Debug, Default, Clone, Copy)]
struct Tally {
    right: usize,
    failed: usize,
}

impl Tally {
    fn and(self, other: Self) -> Self {
        Self { right: self.right + other.right, failed: self.failed + other.failed }
    }
}

/// One Vault, one client, one plan.
struct Day {
    seed: u64,
    vault: DevVault,
    kms: Arc<dyn Kms>,
    /// Errors that this plan may lead to.
    known: Vec<KmsErrorKind>,
    /// What was wrapped, as far as the client told: texts, and the records in them.
    wrapped: HashMap<String, Vec<u8>>,
    secrets: Vec<String>,
    tally: Tally,
}

/// What an administrator does on such a day, beside rotation and a sealing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Nothing,
    DeleteAndMakeAgain,
    Delete,
    JumpClock,
}

/// As the page's own policy, it lets Vault make keys.
const POLICY: &str = r#"
    path "transit/keys/k" { capabilities = ["read"] }
    path "transit/+/k" { capabilities = ["create", "update"] }
"#;

impl Day {
    async fn new(seed: u64, elsewhere: u16) -> Self {
        use KmsErrorKind::{Denied, KeyMissing, NotAuthentic, Sealed, Unreachable};
        let acts = [Act::Nothing, Act::DeleteAndMakeAgain, Act::Delete, Act::JumpClock];
        let act = acts[usize::try_from(seed % 4).unwrap()];
        let logs_in = seed / 4 % 2 == 1;
        let vault = DevVault::builder().transit_key("k").start().await.unwrap();
        let admin = |path: &str, body: Value| vault.admin("POST", path, body).unwrap();
        admin("sys/policies/acl/p", json!({ "policy": POLICY }));
        let credential = if logs_in {
            admin("sys/auth/approle", json!({ "type": "approle" }));
            admin("auth/approle/role/r", json!({ "token_policies": "p", "token_period": "1h" }));
            let id = vault.admin("GET", "auth/approle/role/r/role-id", Value::Null).unwrap();
            let id = id["data"]["role_id"].as_str().unwrap().to_owned();
            let secret = admin("auth/approle/role/r/secret-id", json!({}));
            let secret = secret["data"]["secret_id"].as_str().unwrap().to_owned();
            (Auth::Login(Login { path: String::new(), id, secret: secret.as_str().into() }), secret)
        } else {
            let made = admin("auth/token/create", json!({ "policies": ["p"], "period": "1h" }));
            let token = made["auth"]["client_token"].as_str().unwrap().to_owned();
            (Credential::token(token.as_str()).auth, token)
        };
        let (auth, secret) = credential;
        let config = KmsConfig {
            id: KmsConfigId::random(),
            kind: KIND.to_owned(),
            address: vault.url(),
            master_key: "k".to_owned(),
            settings: BTreeMap::new(),
        };
        let provider = VaultProvider::with_limits(LIMITS);
        let kms = provider.open(&config, &Credential { auth, identity: None }).unwrap();

        let redirect = |location: String| Fault::Redirect { location, status: 307 }.weighing(1);
        let mut plan = FaultPlan { percent: 30, ..FaultPlan::seeded(seed) };
        plan.faults.extend([
            redirect(format!("http://127.0.0.1:{elsewhere}{{path}}")),
            redirect(format!("https://127.0.0.1:{elsewhere}{{path}}")),
            redirect(format!("//127.0.0.1:{elsewhere}{{path}}")),
            // Longer than anybody's patience, all in all.
            Fault::Delay { milliseconds: 600_000 }.weighing(1),
            Fault::Drip { bytes: 1, milliseconds: 200, slower_by: 0 }.weighing(1),
        ]);
        let key = || "transit/keys/k".to_owned();
        plan.events = vec![
            Event::RotateKey { key: key() }.after(10).within(20),
            Event::Seal.after(60).within(10),
            Event::Unseal.after(85).within(10),
        ];
        // A fault that says of an item that it is not authentic is among the usual ones.
        let mut known = vec![Unreachable, Sealed, NotAuthentic];
        match act {
            Act::Nothing => {}
            Act::DeleteAndMakeAgain => {
                plan.events.push(Event::DeleteKey { key: key() }.after(130).within(20));
                plan.events.push(Event::RecreateKey { key: key() }.after(180).within(20));
                known.push(KeyMissing);
            }
            Act::Delete => {
                plan.events.push(Event::DeleteKey { key: key() }.after(130).within(80));
                known.push(KeyMissing);
            }
            Act::JumpClock => {
                plan.events.push(Event::ClockJump { seconds: 1800 }.after(40));
                plan.events.push(Event::ClockJump { seconds: -7200 }.after(110));
                plan.events.push(Event::ClockJump { seconds: 4 * 3600 }.after(140).within(60));
                // Who logs in gets another token.
                if !logs_in {
                    known.push(Denied);
                }
            }
        }
        vault.faults().follow(plan);
        Self {
            seed,
            vault,
            kms,
            known,
            wrapped: HashMap::new(),
            secrets: vec![secret],
            tally: Tally::default(),
        }
    }

    async fn live(mut self) -> Tally {
        for n in 0_u64.. {
            if self.vault.faults().plan().unwrap().1 >= REQUESTS {
                break;
            }
            assert!(n < 10 * REQUESTS, "the operations ask nothing any more");
            self.operate(n).await;
        }
        self.no_key_was_made();
        self.recover().await;
        self.tally
    }

    async fn operate(&mut self, n: u64) {
        let kms = Arc::clone(&self.kms);
        let sample: Vec<Ciphertext> = self.some_wrapped(n);
        match n % 6 {
            0 => {
                let records: Vec<_> = (0..6).map(|_| record()).collect();
                let answer = in_time(kms.wrap(&records)).await;
                let plain = records.iter().map(|record| record.expose().to_vec()).collect();
                self.take_ciphertexts(answer, plain);
            }
            1 => {
                let plain = self.plain_of(&sample);
                let answer = in_time(kms.rewrap(&sample)).await;
                self.take_ciphertexts(answer, plain);
            }
            2 | 3 => {
                let plain = self.plain_of(&sample);
                let answer = in_time(kms.unwrap(&sample)).await;
                for (opened, plain) in self.items(answer, plain.len()).into_iter().zip(plain) {
                    if let Some(opened) = self.judge(opened) {
                        assert_eq!(
                            opened.expose().as_slice(),
                            plain,
                            "another key than was wrapped"
                        );
                    }
                }
            }
            4 => {
                let answer = in_time(kms.master_key()).await;
                if let Some(key) = self.judge(answer) {
                    assert_eq!(key.name, "k");
                }
            }
            _ if n % 12 == 5 => {
                let answer = in_time(kms.credential()).await;
                self.judge(answer);
            }
            _ => {
                let answer = in_time(kms.renew()).await;
                self.judge(answer);
            }
        }
    }

    fn some_wrapped(&self, n: u64) -> Vec<Ciphertext> {
        // The same ones each time that this day is lived.
        let mut texts: Vec<&String> = self.wrapped.keys().collect();
        texts.sort();
        let from = usize::try_from(n).unwrap() % texts.len().max(1);
        let texts = texts.iter().cycle().skip(from).take(texts.len().min(6));
        texts.map(|text| parse(text)).collect()
    }

    fn plain_of(&self, ciphertexts: &[Ciphertext]) -> Vec<Vec<u8>> {
        ciphertexts.iter().map(|c| self.wrapped[&c.text].clone()).collect()
    }

    fn take_ciphertexts(
        &mut self,
        answer: Result<Items<Ciphertext>, KmsError>,
        plain: Vec<Vec<u8>>,
    ) {
        for (wrapped, plain) in self.items(answer, plain.len()).into_iter().zip(plain) {
            if let Some(wrapped) = self.judge(wrapped) {
                self.wrapped.insert(wrapped.text, plain);
            }
        }
    }

    /// The answers of a call, one for each item; none if all of it failed.
    fn items<T>(&mut self, answer: Result<Items<T>, KmsError>, asked: usize) -> Items<T> {
        match answer {
            Ok(items) => {
                assert_eq!(items.len(), asked);
                items
            }
            Err(e) => {
                self.judge(Err::<(), _>(e));
                Items::default()
            }
        }
    }

    /// The answer, or nothing for an error of a kind that the plan may lead to.
    fn judge<T>(&mut self, answer: Result<T, KmsError>) -> Option<T> {
        match answer {
            Ok(answer) => {
                self.tally.right += 1;
                Some(answer)
            }
            Err(e) => {
                assert!(self.known.contains(&e.kind()), "{:?}: {}", e.kind(), e.chain());
                let shown = format!("{e} {e:?} {} {:?}", e.chain(), e.how_to_mend());
                assert!(
                    !self.secrets.iter().any(|secret| shown.contains(secret)),
                    "a secret shows"
                );
                self.tally.failed += 1;
                None
            }
        }
    }

    /// A key that was deleted is not there, unless the plan made it again; and no other one is.
    fn no_key_was_made(&self) {
        let keys = self.vault.admin("LIST", "transit/keys", Value::Null);
        match self.seed % 4 {
            2 => assert_eq!(keys.unwrap_err().status, 404, "the client made a key"),
            _ => assert_eq!(keys.unwrap()["data"]["keys"], json!(["k"])),
        }
    }

    /// When the faults are over all that was wrapped opens, by the client and by hand, but for what a key wrapped that is
    /// gone.
    async fn recover(&mut self) {
        self.vault.faults().clear();
        if !matches!(self.seed % 4, 0 | 3) {
            return;
        }
        assert!(!self.wrapped.is_empty(), "nothing was ever wrapped");
        for (text, plain) in &self.wrapped {
            let asked = json!({ "ciphertext": text });
            let opened = self.vault.admin("POST", "transit/decrypt/k", asked).unwrap();
            assert_eq!(opened["data"]["plaintext"], BASE64.encode(plain));
        }
        if self.known.contains(&KmsErrorKind::Denied) {
            return;
        }
        let (texts, plain): (Vec<_>, Vec<_>) =
            self.wrapped.iter().map(|(text, plain)| (parse(text), plain)).unzip();
        // A machine that is busy may need longer than the limits are here: then it is asked again.
        let opened = loop {
            match in_time(self.kms.unwrap(&texts)).await {
                Err(e) if e.kind() == KmsErrorKind::Unreachable => {}
                opened => break opened.unwrap(),
            }
        };
        for (opened, plain) in opened.into_iter().zip(plain) {
            assert_eq!(opened.unwrap().expose().as_slice(), plain);
        }
    }
}

async fn in_time<T>(operation: impl Future<Output = T>) -> T {
    let ended = tokio::time::timeout(PATIENCE, operation).await;
    ended.unwrap_or_else(|_| panic!("an operation hangs"))
}

fn record() -> KeyRecord {
    KeyRecord::of(&FilesystemKey::generate().unwrap())
}

fn parse(text: &str) -> Ciphertext {
    let version = text.split(':').nth(1).unwrap().trim_start_matches('v').parse().unwrap();
    Ciphertext { text: text.to_owned(), version: kms_core::KeyVersion(version) }
}

/// The most that this process ever had in memory, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() << 10
}

//! The KMS away and back, and nothing at all: what a node asks of it meanwhile.

use std::fs;
use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::fleet::Fleet;
use super::kms::{self, BATCH, Kms};
use super::measure::{self, Peaks};
use super::node::{Node, Place};
use super::report::{Bar, Bound, Row, Section};
use super::{Bench, progress};
use crate::process;

/// From the KMS's return until everything is open.
const OPEN_WITHIN: f64 = 3.0;
/// Requests to Vault in that time.
const REQUESTS: f64 = 30.0;
/// Requests in a minute to which nothing happens.
const AT_REST: f64 = 1.0;

/// Starts nodes while the KMS is away, and lets it return.
pub(super) fn away(bench: &Bench<'_>) -> Result<Section> {
    let (count, rounds) = if bench.quick { (1_000, 1) } else { (10_000, 5) };
    let title =
        format!("outage: {count} filesystems, a real Vault away at start, rounds: {rounds}");
    let Some(kms) = Kms::real(bench)? else {
        return Ok(Section::not_measured(title, kms::NO_VAULT));
    };
    progress(&format!("outage: preparing {count} filesystems"));
    let mut way = Way::open(&kms.url)?;
    let Fleet { place, .. } = Fleet::make(bench, &kms, &way.url(), count)?;
    let (mut seconds, mut requests, mut busy) = (Vec::new(), Vec::new(), Vec::new());
    let mut peaks = Peaks::new();
    for round in 1..=rounds {
        progress(&format!("outage: round {round} of {rounds}"));
        way.shut()?;
        let node = Node::start(&place)?;
        let log = kms.log_requests(bench.folder)?;
        // Each round another while, so that the return meets the node in other moments between its tries.
        let away = Duration::from_millis(8_000 + 370 * round);
        let before = measure::processor_time(node.id())?;
        process::pause_for(away)?;
        let used = measure::processor_time(node.id())? - before;
        busy.push(used.as_secs_f64() / away.as_secs_f64());
        ensure!(unlocked(&place)? == 0, "something opened while the KMS was away");
        way.reopen()?;
        seconds.push(time_to_open(&place, count as u64)?.as_secs_f64());
        // What comes after it counts too.
        process::pause_for(Duration::from_secs(2))?;
        requests.push(log.requests()?.len());
        let bytes = measure::peak_memory(node.id()).context("coffer serve has ended")?;
        measure::raise(&mut peaks, "coffer serve", bytes);
    }
    fs::remove_dir_all(place.path(""))?;

    let most = seconds.iter().copied().fold(0.0, f64::max);
    let bars = vec![
        Bar {
            what: "slowest return to all open".to_owned(),
            value: most,
            unit: "s",
            bound: Bound::AtMost(OPEN_WITHIN),
            limit: "The node tries again after at most 1 s; then each copy is compared and each key opened".to_owned(),
        },
        Bar {
            what: "most requests".to_owned(),
            value: requests.iter().copied().max().unwrap_or_default() as f64,
            unit: "",
            bound: Bound::AtMost(REQUESTS),
            limit: format!("Batches of {BATCH} keys, and a look at the KMS"),
        },
    ];
    let row =
        Row { name: "return of the KMS to all open".to_owned(), seconds, detail: String::new() };
    let busy = 100.0 * super::report::median(&busy);
    let notes = vec![
        format!(
            "requests from the return until 2 s after all were open, by Vault's audit log: {requests:?}"
        ),
        format!(
            "away: connections are refused; the node uses {busy:.0} % of a processor meanwhile"
        ),
    ];
    Ok(Section { title, rows: vec![row], bars, notes, peaks })
}

/// Counts what a node at rest asks.
pub(super) fn rest(bench: &Bench<'_>) -> Result<Section> {
    let minutes = if bench.quick { 1 } else { 10 };
    let title =
        format!("rest: a node to which nothing happens for {minutes} minutes, over a real Vault");
    let Some(kms) = Kms::real(bench)? else {
        return Ok(Section::not_measured(title, kms::NO_VAULT));
    };
    let Fleet { place, .. } = Fleet::make(bench, &kms, &kms.url, 100)?;
    let mut node = Node::start(&place)?;
    node.wait_for_unlock(100)?;
    node.wait_until_idle()?;
    let log = kms.log_requests(bench.folder)?;
    for minute in 1..=minutes {
        progress(&format!("rest: minute {minute} of {minutes}"));
        process::pause_for(Duration::from_secs(60))?;
    }
    let requests = log.requests()?;
    drop(node);
    fs::remove_dir_all(place.path(""))?;
    let bar = Bar {
        what: "requests to Vault in a minute".to_owned(),
        value: requests.len() as f64 / f64::from(minutes),
        unit: "",
        bound: Bound::AtMost(AT_REST),
        limit: "A look at the KMS takes three requests".to_owned(),
    };
    let note = format!("requests by Vault's audit log: {}", requests.join(", "));
    let (rows, peaks) = Default::default();
    Ok(Section { title, rows, bars: vec![bar], notes: vec![note], peaks })
}

fn time_to_open(place: &Place, filesystems: u64) -> Result<Duration> {
    const PATIENCE: Duration = Duration::from_secs(120);
    let began = Instant::now();
    loop {
        let open = unlocked(place)?;
        if open == filesystems {
            return Ok(began.elapsed());
        }
        ensure!(began.elapsed() < PATIENCE, "{open} of {filesystems} filesystems are open");
        // Each look makes the node count all of them.
        process::pause_for(Duration::from_millis(100))?;
    }
}

fn unlocked(place: &Place) -> Result<u64> {
    let status = place.ask("GET", "/v1/status", &Value::Null)?;
    status["filesystems"]["unlocked"].as_u64().context("a status that counts no filesystems")
}

/// A way to the KMS that can be shut: while it is, connections are refused.
struct Way {
    kms: SocketAddr,
    here: SocketAddr,
    open: Option<Open>,
}

struct Open {
    ends: Arc<AtomicBool>,
    accepting: JoinHandle<()>,
}

impl Way {
    fn open(kms: &str) -> Result<Self> {
        let kms = kms.strip_prefix("http://").context("the KMS speaks no plain http")?.parse()?;
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let here = listener.local_addr()?;
        Ok(Self { kms, here, open: Some(Open::accept(listener, kms)) })
    }

    fn url(&self) -> String {
        format!("http://{}", self.here)
    }

    fn shut(&mut self) -> Result<()> {
        if let Some(Open { ends, accepting }) = self.open.take() {
            ends.store(true, Ordering::SeqCst);
            // Wakes it.
            drop(TcpStream::connect(self.here));
            accepting.join().map_err(|_| anyhow::anyhow!("the way to the KMS broke"))?;
        }
        Ok(())
    }

    fn reopen(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.here).context("the way to the KMS")?;
        self.open = Some(Open::accept(listener, self.kms));
        Ok(())
    }
}

impl Drop for Way {
    fn drop(&mut self) {
        let _ = self.shut();
    }
}

impl Open {
    /// Takes connections until it ends, and then breaks those that are left.
    fn accept(listener: TcpListener, kms: SocketAddr) -> Self {
        let ends = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&ends);
        let accepting = thread::spawn(move || {
            let mut connections = Vec::new();
            for client in listener.incoming() {
                if until.load(Ordering::SeqCst) {
                    break;
                }
                // What can't be carried on is a connection that breaks, for whoever asked.
                connections.extend(client.and_then(|client| join(client, kms)));
            }
            for stream in connections.iter().flatten() {
                let _ = stream.shutdown(Shutdown::Both);
            }
        });
        Self { ends, accepting }
    }
}

/// Carries bytes both ways until either end closes. Answers both connections.
fn join(client: TcpStream, kms: SocketAddr) -> io::Result<[TcpStream; 2]> {
    let server = TcpStream::connect(kms)?;
    for stream in [&client, &server] {
        stream.set_nodelay(true)?;
    }
    for (from, to) in [(&client, &server), (&server, &client)] {
        let (mut from, mut to) = (from.try_clone()?, to.try_clone()?);
        thread::spawn(move || {
            let _ = io::copy(&mut from, &mut to);
            let _ = to.shutdown(Shutdown::Write);
        });
    }
    Ok([client, server])
}

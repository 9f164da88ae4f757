//! Wrapping many keys anew, each proved, beside what a KMS and a disk take at least for that.
//!
//! The master key is rotated and the keys are rewrapped; then they move to another master key. Peers are the same number of
//! ciphertexts, rewrapped in raw requests, and as many copies, written and synced by the benchmark.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde_json::{Value, json};

use super::fleet::Fleet;
use super::kms::{self, BATCH, IN_FLIGHT, Kms, MASTER_KEY};
use super::measure::{self, Peaks};
use super::node::{Node, Place};
use super::report::{Bar, Bound, Row, Section};
use super::{Bench, progress};
use crate::process;

/// Keys and proofs, in times of a raw rewrap.
const KEYS: f64 = 4.0;
/// The longest time in milliseconds in which a job shows no progress.
const STANDSTILL: f64 = 500.0;
/// The node's memory in MiB.
const MEMORY: f64 = 128.0;

/// Where keys move, and back.
const OTHER_KEY: &str = "bench-other";

/// Disks that are worked on at once, as by `key-manager`.
const DISKS_AT_ONCE: usize = 64;

/// What one job took.
#[derive(Default)]
struct Runs {
    whole: Vec<f64>,
    keys: Vec<f64>,
    copies: Vec<f64>,
    /// The longest time without progress, each.
    standstill: Vec<f64>,
    /// Changes of progress in a second, each.
    changes: Vec<f64>,
}

pub(super) fn run(bench: &Bench<'_>) -> Result<Section> {
    let (count, rounds) = if bench.quick { (1_000, 1) } else { (10_000, 5) };
    let title = format!("rewrap and move: {count} keys over a real Vault, rounds: {rounds}");
    let Some(kms) = Kms::real(bench)? else {
        return Ok(Section::not_measured(title, kms::NO_VAULT));
    };
    progress(&format!("rewrap: preparing {count} filesystems"));
    let Fleet { place, backing, ciphertexts } = Fleet::make(bench, &kms, &kms.url, count)?;
    kms.make_key(OTHER_KEY)?;
    let raw_copies = RawCopies::make(&backing)?;
    let mut node = Node::start(&place)?;
    node.wait_for_unlock(count as u64)?;

    let (mut rewraps, mut moves) = (Runs::default(), Runs::default());
    let (mut raw, mut copies) = (Vec::new(), Vec::new());
    let mut requests = None;
    let (mut key, mut other) = (MASTER_KEY, OTHER_KEY);
    // The last round is counted and not timed: Vault's log of requests slows Vault down.
    for round in 1..=rounds + 1 {
        progress(&format!("rewrap: round {round} of {rounds}, and one to count requests"));
        let log = if round > rounds { Some(kms.log_requests(bench.folder)?) } else { None };
        kms.rotate(key)?;
        node.wait_until_idle()?;
        let counted =
            log.as_ref().map_or(Ok(0), |log| Ok::<_, anyhow::Error>(log.requests()?.len()));
        let counted = counted?;
        let job = Watched::start(&place, "POST", "/v1/kms/rewrap", &Value::Null)?;
        let ended = job.until_ended(&place, count as u64)?;
        if let Some(log) = &log {
            requests = Some(log.requests()?.len() - counted);
            break;
        }
        rewraps.add(&mut node, &ended)?;
        node.wait_until_idle()?;
        raw.push(kms.time_to_rewrap(&ciphertexts)?.as_secs_f64());
        copies.push(raw_copies.time()?.as_secs_f64());

        (key, other) = (other, key);
        node.wait_until_idle()?;
        let set = json!({"base_url": kms.url, "master_key": key, "token": kms::TOKEN});
        let job = Watched::start(&place, "PUT", "/v1/kms", &set)?;
        moves.add(&mut node, &job.until_ended(&place, count as u64)?)?;
        node.wait_until_idle()?;
        // As often as the jobs: ext4 makes who replaces files pay for those that were replaced within five minutes.
        copies.push(raw_copies.time()?.as_secs_f64());
    }
    let peak = measure::peak_memory(node.id()).context("coffer serve has ended")?;
    drop(node);
    fs::remove_dir_all(place.path(""))?;
    report(title, rewraps, moves, raw, copies, requests, peak)
}

fn report(
    title: String,
    rewraps: Runs,
    moves: Runs,
    raw: Vec<f64>,
    copies: Vec<f64>,
    requests: Option<usize>,
    peak: u64,
) -> Result<Section> {
    let row = |name: &str, seconds: &Vec<f64>| {
        let (name, seconds) = (name.to_owned(), seconds.clone());
        Row { name, seconds, detail: String::new() }
    };
    let raw = row("raw rewrap of the same ciphertexts", &raw);
    let copies = row("as many copies, written and synced", &copies);
    let (mut rows, mut bars) = (Vec::new(), Vec::new());
    for (what, runs) in [("rewrap", &rewraps), ("move", &moves)] {
        let whole = row(&format!("{what}: the whole job"), &runs.whole);
        let keys = row(&format!("{what}: keys, beside no copy"), &runs.keys);
        bars.push(Bar {
            what: format!("{what}: keys beside no copy / raw rewrap"),
            value: keys.median() / raw.median(),
            unit: "×",
            bound: Bound::AtMost(KEYS),
            limit: "Beside two or three answers of the KMS the node commits every record and writes its audit log".to_owned(),
        });
        bars.push(Bar {
            what: format!("{what}: whole / ({KEYS} raw + raw copies)"),
            value: whole.median() / (KEYS * raw.median() + copies.median()),
            unit: "×",
            bound: Bound::AtMost(1.0),
            limit: "The KMS works on the same processors meanwhile, and each copy is read and compared before it is replaced".to_owned(),
        });
        let most = |values: &[f64]| values.iter().copied().fold(0.0, f64::max);
        bars.push(Bar {
            what: format!("{what}: longest without progress"),
            value: most(&runs.standstill) * 1000.0,
            unit: "ms",
            bound: Bound::AtMost(STANDSTILL),
            limit: "A key is done with its copy, and those of one batch go to the KMS before"
                .to_owned(),
        });
        rows.push(whole);
        rows.push(keys);
        rows.push(row(&format!("{what}: copies"), &runs.copies));
    }
    rows.extend([raw, copies]);
    bars.push(Bar {
        what: "the node's memory".to_owned(),
        value: peak as f64 / f64::from(1 << 20),
        unit: "MiB",
        bound: Bound::AtMost(MEMORY),
        limit: "It holds every record, and one batch of keys with their answers".to_owned(),
    });
    let changes = super::report::median(&[rewraps.changes, moves.changes].concat());
    let mut notes = vec![
        format!(
            "raw requests of {BATCH} keys, {IN_FLIGHT} at once; raw copies by {DISKS_AT_ONCE} threads"
        ),
        format!(
            "progress as the API shows it changed {changes:.0} times a second (the median of all jobs)"
        ),
    ];
    notes.extend(requests.map(|n| format!("requests of one rewrap, by Vault's audit log: {n}")));
    Ok(Section {
        title,
        rows,
        bars,
        notes,
        peaks: Peaks::from([("coffer serve".to_owned(), peak)]),
    })
}

impl Runs {
    fn add(&mut self, node: &mut Node, ended: &Ended) -> Result<()> {
        let (keys, copies) = node.move_times(&ended.job)?;
        self.whole.push(ended.took.as_secs_f64());
        self.keys.push(keys.as_secs_f64());
        self.copies.push(copies.as_secs_f64());
        self.standstill.push(ended.standstill.as_secs_f64());
        self.changes.push(f64::from(ended.changes) / ended.took.as_secs_f64());
        Ok(())
    }
}

/// A job that was asked for.
struct Watched {
    job: String,
    /// Since 1970.
    began_at: Duration,
}

/// A job that did all of it.
struct Ended {
    job: String,
    /// From when it was begun to the end that the node recorded.
    took: Duration,
    changes: u32,
    standstill: Duration,
}

impl Watched {
    /// Asks for something that is a job. The clock runs from when the node has made it: what is proved before is not in it.
    fn start(place: &Place, method: &str, path: &str, body: &Value) -> Result<Self> {
        let answer = place.ask(method, path, body)?;
        let job = if answer["job"].is_null() { &answer } else { &answer["job"] };
        let name = job["id"].as_str().with_context(|| format!("no job: {answer}"))?.to_owned();
        let began_at = job["created_at"].as_u64().context("a job without a beginning")?;
        Ok(Self { job: name, began_at: Duration::from_millis(began_at) })
    }

    /// Looks at it fifty times a second.
    fn until_ended(self, place: &Place, keys: u64) -> Result<Ended> {
        const LOOK_EVERY: Duration = Duration::from_millis(20);
        let Self { job: name, began_at } = self;
        // Nobody can look at it before it is answered.
        let (mut seen, mut changed, mut changes) = (json!(0), Instant::now(), 0);
        let mut standstill = Duration::ZERO;
        loop {
            let job = place.ask("GET", &format!("/v1/jobs/{name}"), &Value::Null)?;
            let ended = job["state"] != "running";
            let now = Instant::now();
            if job["progress"]["items"] != seen || ended {
                standstill = standstill.max(now - changed);
                changes += u32::from(!ended);
                (seen, changed) = (job["progress"]["items"].clone(), now);
            }
            if ended {
                ensure!(job["state"] == "done" && seen == keys, "the job ended like this: {job}");
                let at = job["ended_at"].as_u64().context("a job without an end")?;
                let took = Duration::from_millis(at).saturating_sub(began_at);
                return Ok(Ended { job: name, took, changes, standstill });
            }
            process::pause_for(LOOK_EVERY)?;
        }
    }
}

/// What a node doesn't look at, and what is about to take its place.
const COPY: &str = "bench.key";
const STAGED: &str = "bench.key.new";

/// Copies of wrapped keys that mean nothing, one beside each that a node replaces: in a file system it depends on the directory
/// what a new file costs.
struct RawCopies {
    copies: Vec<(PathBuf, Vec<u8>)>,
}

impl RawCopies {
    /// Beside each copy below `backing` another one, which has the same bytes.
    fn make(backing: &Path) -> Result<Self> {
        let mut copies = Vec::new();
        for entry in fs::read_dir(backing)? {
            let directory = entry?.path();
            let text = fs::read(directory.join("coffer.key"))?;
            fs::write(directory.join(COPY), &text)?;
            copies.push((directory, text));
        }
        measure::sync(backing)?;
        Ok(Self { copies })
    }

    /// How long it takes to replace all of them durably.
    fn time(&self) -> Result<Duration> {
        let next = AtomicUsize::new(0);
        let work = || -> Result<()> {
            while let Some((directory, text)) =
                self.copies.get(next.fetch_add(1, Ordering::Relaxed))
            {
                replace(directory, text)?;
            }
            Ok(())
        };
        let began = Instant::now();
        thread::scope(|scope| {
            let threads: Vec<_> = (0..DISKS_AT_ONCE).map(|_| scope.spawn(work)).collect();
            let died = |_| anyhow!("a thread that wrote copies died");
            threads.into_iter().try_for_each(|thread| thread.join().map_err(died)?)
        })?;
        Ok(began.elapsed())
    }
}

/// At any moment the old file or the new one is there.
fn replace(directory: &Path, text: &[u8]) -> Result<()> {
    let staged = directory.join(STAGED);
    let mut file = File::create(&staged)?;
    file.write_all(text)?;
    file.sync_all()?;
    fs::rename(&staged, directory.join(COPY))?;
    Ok(File::open(directory)?.sync_all()?)
}

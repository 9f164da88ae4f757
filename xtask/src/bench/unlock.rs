//! A node's start: the KMS's part of unlocking many filesystems, and the time to the first answer.

use std::fs;
use std::time::Duration;

use anyhow::Result;

use super::fleet::Fleet;
use super::kms::{self, BATCH, IN_FLIGHT, Kms, MASTER_KEY};
use super::measure::{self, Peaks};
use super::node::{Node, Place};
use super::report::{Bar, Bound, Row, Section};
use super::{Bench, progress};

/// Unlocks 10,000 filesystems over the embedded KMS and over a real Vault.
pub(super) fn many(bench: &Bench<'_>) -> Result<Vec<Section>> {
    let embedded = Kms::embedded(&bench.program, bench.folder)?;
    let mut sections = vec![unlock(bench, &embedded, "the embedded KMS")?];
    drop(embedded);
    match Kms::real(bench)? {
        Some(vault) => sections.push(unlock(bench, &vault, "a real Vault")?),
        None => sections[0].notes.push(kms::NO_VAULT.to_owned()),
    }
    Ok(sections)
}

fn unlock(bench: &Bench<'_>, kms: &Kms, which: &str) -> Result<Section> {
    const BAR: f64 = 2.0;
    let (count, rounds) = if bench.quick { (1_000, 1) } else { (10_000, 7) };
    progress(&format!("unlock: preparing {count} filesystems on {which}"));
    let Fleet { place, ciphertexts, .. } = Fleet::make(bench, kms, &kms.url, count)?;

    let (mut ours, mut raw, mut peaks) = (Vec::new(), Vec::new(), Peaks::new());
    for round in 1..=rounds {
        progress(&format!("unlock: round {round} of {rounds} on {which}"));
        let mut node = Node::start(&place)?;
        ours.push(node.wait_for_unlock(count as u64)?.as_secs_f64());
        if let Some(bytes) = measure::peak_memory(node.id()) {
            measure::raise(&mut peaks, "coffer serve", bytes);
        }
        drop(node);
        raw.push(kms.time_to_decrypt(&ciphertexts)?.as_secs_f64());
    }
    fs::remove_dir_all(place.path(""))?;

    let row = |name: &str, seconds| Row { name: name.to_owned(), seconds, detail: String::new() };
    let ours = row("a node's unlock, the KMS's part", ours);
    let raw = row("the same ciphertexts in raw requests", raw);
    let bar = Bar {
        what: "ours / raw".to_owned(),
        value: ours.median() / raw.median(),
        unit: "×",
        bound: Bound::AtMost(BAR),
        limit: "Beside the KMS's answer the node parses it, compares ids and fills locked memory"
            .to_owned(),
    };
    Ok(Section {
        title: format!("unlock: {count} filesystems over {which}, rounds: {rounds}"),
        rows: vec![ours, raw],
        bars: vec![bar],
        notes: vec![format!("requests of {BATCH} keys, {IN_FLIGHT} at once, on both sides")],
        peaks,
    })
}

/// Starts a node with one filesystem until it answers.
pub(super) fn one(bench: &Bench<'_>) -> Result<Section> {
    const BAR: Duration = Duration::from_millis(200);
    let rounds = if bench.quick { 1 } else { 9 };
    let kms = Kms::embedded(&bench.program, bench.folder)?;
    let place = Place::new(&bench.program, &bench.folder.join("node"))?;
    let token = kms.token_file(&place.path(""))?;
    let node = Node::start(&place)?;
    place.coffer(&["fs", "kms", "set-vault", &kms.url, MASTER_KEY, "--token-file", &token])?;
    place.coffer(&["fs", "create", "one"])?;
    drop(node);

    let (mut seconds, mut peaks) = (Vec::new(), Peaks::new());
    for round in 1..=rounds {
        progress(&format!("start: round {round} of {rounds}"));
        let mut node = Node::start(&place)?;
        seconds.push(node.answered_after.as_secs_f64());
        node.wait_for_unlock(1)?;
        if let Some(bytes) = measure::peak_memory(node.id()) {
            measure::raise(&mut peaks, "coffer serve", bytes);
        }
    }
    fs::remove_dir_all(place.path(""))?;

    let detail = String::new();
    let row = Row { name: "start of the process to first answer".to_owned(), seconds, detail };
    let bar = Bar {
        what: "start to first answer".to_owned(),
        value: row.median() * 1000.0,
        unit: "ms",
        bound: Bound::AtMost(BAR.as_millis() as f64),
        limit: "The node's log names its steps with their times".to_owned(),
    };
    Ok(Section {
        title: format!("start: a node with one filesystem, starts: {rounds}"),
        rows: vec![row],
        bars: vec![bar],
        notes: Vec::new(),
        peaks,
    })
}

//! A node's start: the KMS's part of unlocking many filesystems, and the time to the first answer.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use uuid::Uuid;

use super::kms::{BATCH, IN_FLIGHT, Kms, MASTER_KEY};
use super::measure::{self, Peaks};
use super::node::{Node, Place};
use super::report::{Bar, Bound, Row, Section};
use super::{Bench, progress};
use crate::vault::{self, Version};

/// Unlocks 10,000 filesystems over the embedded KMS and over a real Vault.
pub(super) fn many(bench: &Bench<'_>) -> Result<Vec<Section>> {
    let embedded = Kms::embedded(&bench.program, bench.folder)?;
    let mut sections = vec![unlock(bench, &embedded, "the embedded KMS")?];
    drop(embedded);
    match vault::find(bench.workspace, Version::Newest)? {
        Some(binary) => {
            let vault = Kms::vault(&binary, bench.folder)?;
            sections.push(unlock(bench, &vault, "a real Vault")?);
        }
        None => sections[0].notes.push(
            "NOT MEASURED over a real Vault: none is here; `cargo xtask vault` builds one"
                .to_owned(),
        ),
    }
    Ok(sections)
}

fn unlock(bench: &Bench<'_>, kms: &Kms, which: &str) -> Result<Section> {
    const BAR: f64 = 2.0;
    let (count, rounds) = if bench.quick { (1_000, 1) } else { (10_000, 7) };
    progress(&format!("unlock: preparing {count} filesystems on {which}"));
    let place = Place::new(&bench.program, &bench.folder.join("node"))?;
    let backing = place.path("backing");
    let ciphertexts = make_filesystems(kms, &backing, count)?;
    let state = place.state_dir().display().to_string();
    place.coffer(&["recover", "--from", &backing.display().to_string(), "--state-dir", &state])?;
    let node = Node::start(&place)?;
    let token = kms.token_file(&place.path(""))?;
    place.coffer(&["fs", "kms", "set-vault", &kms.url, MASTER_KEY, "--token-file", &token])?;
    drop(node);

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

/// Makes backing directories that hold nothing but their wrapped key, as `coffer recover` needs it.
/// Answers the ciphertexts.
fn make_filesystems(kms: &Kms, backing: &Path, count: usize) -> Result<Vec<String>> {
    let mut random = File::open("/dev/urandom")?;
    let mut records = Vec::with_capacity(count);
    let ids: Vec<Uuid> = (0..count).map(|_| Uuid::new_v4()).collect();
    for id in &ids {
        let mut key = [0; 32];
        random.read_exact(&mut key)?;
        records.push(BASE64_STANDARD.encode(key_record(*id, &key)));
    }
    let ciphertexts = kms.encrypt(&records)?;
    let config = Uuid::new_v4();
    for (number, (id, ciphertext)) in ids.iter().zip(&ciphertexts).enumerate() {
        let name = format!("fs-{number:05}");
        let envelope = json!({
            "format": 1,
            "filesystem": name,
            "revision": 1,
            "wrapped": {
                "key_id": id,
                "config_id": config,
                "ciphertext": {"text": ciphertext, "version": 1},
            },
            "kms": {
                "id": config,
                "kind": "vault",
                "address": kms.url,
                "master_key": MASTER_KEY,
                "settings": {},
            },
            "exposed": false,
        });
        fs::create_dir_all(backing.join(&name))?;
        fs::write(backing.join(&name).join("coffer.key"), envelope.to_string())?;
    }
    Ok(ciphertexts)
}

/// The record that a KMS encrypts (`kms_core::KeyRecord`; `docs/formats.md`).
fn key_record(id: Uuid, key: &[u8; 32]) -> Vec<u8> {
    [b"CFSK\x01\0\0\0", &id.as_bytes()[..], key].concat()
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_record_has_the_layout_that_is_specified() {
        let id = Uuid::from_bytes([3; 16]);
        let record = key_record(id, &[9; 32]);
        assert_eq!(record.len(), 56);
        assert_eq!(record[..8], *b"CFSK\x01\0\0\0");
        assert_eq!(record[8..24], [3; 16]);
        assert_eq!(record[24..], [9; 32]);
    }
}

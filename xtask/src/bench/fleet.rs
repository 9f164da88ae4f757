//! Many filesystems without data, and the state of a node that knows them.

use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::Result;
use base64::prelude::{BASE64_STANDARD, Engine};
use serde_json::json;
use uuid::Uuid;

use super::Bench;
use super::kms::{Kms, MASTER_KEY};
use super::node::{Node, Place};

/// They, and where they lie.
pub(super) struct Fleet {
    /// The node's place; no node runs.
    pub(super) place: Place,
    /// The directory with the backing directories.
    pub(super) backing: PathBuf,
    /// Their wrapped keys, as they were made.
    pub(super) ciphertexts: Vec<String>,
}

impl Fleet {
    /// Makes them under the master key of `kms`, which the node reaches at `url`.
    pub(super) fn make(bench: &Bench<'_>, kms: &Kms, url: &str, count: usize) -> Result<Self> {
        let place = Place::new(&bench.program, &bench.folder.join("node"))?;
        let backing = place.path("backing");
        let ciphertexts = make_backing(kms, url, &backing, count)?;
        let state = place.state_dir().display().to_string();
        let from = backing.display().to_string();
        place.coffer(&["recover", "--from", &from, "--state-dir", &state])?;
        let node = Node::start(&place)?;
        let token = kms.token_file(&place.path(""))?;
        place.coffer(&["fs", "kms", "set-vault", url, MASTER_KEY, "--token-file", &token])?;
        drop(node);
        Ok(Self { place, backing, ciphertexts })
    }
}

/// Makes backing directories that hold nothing but their wrapped key, as `coffer recover` needs it.
/// Answers the ciphertexts.
fn make_backing(kms: &Kms, url: &str, backing: &Path, count: usize) -> Result<Vec<String>> {
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
                "address": url,
                "master_key": MASTER_KEY,
                "settings": {},
            },
            "exposed": false,
        });
        // Without its tree it is no backing directory.
        fs::create_dir_all(backing.join(&name).join("root"))?;
        fs::write(backing.join(&name).join("coffer.key"), envelope.to_string())?;
    }
    Ok(ciphertexts)
}

/// The record that a KMS encrypts (`kms_core::KeyRecord`; `docs/formats.md`).
fn key_record(id: Uuid, key: &[u8; 32]) -> Vec<u8> {
    [b"CFSK\x01\0\0\0", &id.as_bytes()[..], key].concat()
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

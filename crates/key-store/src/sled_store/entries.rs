//! How a record lies in sled.
//!
//! A record is sealed, `version (8, big-endian) | seal (32) | value`, and cut into chunks; the
//! chunk's entry is `key | NUL | chunk number (1)`. No key contains NUL, so no two records'
//! entries mix, and the entry `NUL` is free for the [`Head`](super::head::Head).
//!
//! Chunks are small because sled moves a page beyond 128 KiB into a file of its own that it does not
//! sync, and whose loss it skips on recovery. A page holds up to 17 entries: 17 × (4 KiB + key) stays below.

use std::collections::BTreeMap;

use kms_core::{Commit, Version};
use sha2::{Digest as _, Sha256};

use super::Fault;
use super::head::{Digest, Head};
use crate::table::{Stored, Table};

const CHUNK: usize = 4096;
const VERSION_LEN: usize = 8;
const SEAL_LEN: usize = 32;
const HEAD_KEY: &[u8] = b"\0";

/// A record's checksum. The key and the version are in it, so that a record that was moved under another key, or
/// left behind by a lost commit, is noticed.
fn seal(key: &str, version: Version, value: &[u8]) -> [u8; SEAL_LEN] {
    let mut hash = Sha256::new();
    hash.update(b"coffer key store record\0");
    hash.update(version.0.to_be_bytes());
    hash.update((key.len() as u64).to_be_bytes());
    hash.update(key);
    hash.update(value);
    hash.finalize().into()
}

fn chunk_key(key: &str, chunk: usize) -> Vec<u8> {
    // A record has at most 17 chunks.
    [key.as_bytes(), &[0, chunk as u8]].concat()
}

fn chunks(value_len: usize) -> usize {
    (VERSION_LEN + SEAL_LEN + value_len).div_ceil(CHUNK)
}

/// What sled is to write for a commit on top of `table`, and the head that this makes.
pub(super) fn batch(
    table: &Table,
    head: &Head,
    commit: &Commit,
    version: Version,
) -> (sled::Batch, Head) {
    let mut batch = sled::Batch::default();
    let mut digest = head.digest;
    let mut retire = |key: &str, batch: &mut sled::Batch, kept: usize| {
        if let Some(old) = table.stored(key) {
            digest.toggle(&seal(key, old.version, &old.value));
            for chunk in kept..chunks(old.value.len()) {
                batch.remove(chunk_key(key, chunk));
            }
        }
    };
    for key in &commit.deletes {
        retire(key, &mut batch, 0);
    }
    for (key, value) in &commit.puts {
        retire(key, &mut batch, chunks(value.len()));
    }
    for (key, value) in &commit.puts {
        let seal = seal(key, version, value);
        digest.toggle(&seal);
        let sealed = [&version.0.to_be_bytes(), &seal[..], value].concat();
        for (chunk, bytes) in sealed.chunks(CHUNK).enumerate() {
            batch.insert(chunk_key(key, chunk), bytes);
        }
    }
    let head = head.next(digest);
    batch.insert(HEAD_KEY, head.encode().as_bytes());
    (batch, head)
}

/// What sled is to write when a store is made.
pub(super) fn first_batch() -> sled::Batch {
    let mut batch = sled::Batch::default();
    batch.insert(HEAD_KEY, Head::default().encode().as_bytes());
    batch
}

/// All that lies in sled.
pub(super) struct Contents {
    pub(super) head: Head,
    pub(super) records: BTreeMap<String, Stored>,
    /// As the records are, whatever the head says.
    pub(super) digest: Digest,
}

/// Reads everything and compares every seal.
pub(super) fn read_all(tree: &sled::Tree) -> Result<Contents, Fault> {
    let mut head = None;
    let mut sealed = BTreeMap::<String, Vec<u8>>::new();
    let mut last = None;
    for entry in tree {
        let (at, bytes) = entry?;
        // A damaged tree could lead in a circle.
        if last.as_ref().is_some_and(|last| *last >= at) {
            return Err(Fault::Contents("its entries are out of order".into()));
        }
        if at == HEAD_KEY {
            head = Some(Head::decode(&bytes)?);
        } else if let [key @ .., 0, _] = at.as_ref()
            && let Ok(key) = std::str::from_utf8(key)
        {
            sealed.entry(key.to_owned()).or_default().extend_from_slice(&bytes);
        } else {
            return Err(Fault::Contents("it holds an entry that no Coffer wrote".into()));
        }
        last = Some(at);
    }
    let head = head.ok_or_else(|| Fault::Contents("its records were emptied".into()))?;
    let mut contents = Contents { head, records: BTreeMap::new(), digest: Digest::default() };
    for (key, bytes) in sealed {
        let Some((stored, seal)) = open(&key, &bytes) else {
            return Err(Fault::Contents(format!("the record {key} is not as it was written")));
        };
        contents.digest.toggle(&seal);
        contents.records.insert(key, stored);
    }
    Ok(contents)
}

fn open(key: &str, sealed: &[u8]) -> Option<(Stored, [u8; SEAL_LEN])> {
    let (version, rest) = sealed.split_first_chunk::<VERSION_LEN>()?;
    let (claimed, value) = rest.split_first_chunk::<SEAL_LEN>()?;
    let version = Version(u64::from_be_bytes(*version));
    (*claimed == seal(key, version, value))
        .then(|| (Stored { version, value: value.into() }, *claimed))
}

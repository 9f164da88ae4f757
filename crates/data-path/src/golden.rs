//! Golden vectors of every format: made again from fixed random bytes, they must equal
//! `tests/vectors/formats-v1.json`.
//!
//! `tests/it/reader.rs` reads that file by the specification alone. With `COFFER_VECTORS_OUT=FILE`
//! the test also writes what it made: a new format gets a new file, and this one never changes.

use std::sync::Arc;

use kms_core::{FilesystemKey, KeyId};
use serde_json::{Value, json};

use crate::layout::{self, PAGE};
use crate::nonce::fixed;
use crate::*;

const COMMITTED: &str = include_str!("../tests/vectors/formats-v1.json");
const KEY: [u8; 32] = *b"the filesystem key of the vector";
const KEY_ID: [u8; 16] = *b"key id of vector";
const DIR: DirId = DirId::from_bytes(*b"directory vector");
const FILE: FileId = FileId::from_bytes(*b"the file vector.");

#[test]
fn the_formats_are_as_committed() {
    let made = serde_json::to_string_pretty(&make()).unwrap() + "\n";
    if let Ok(path) = std::env::var("COFFER_VECTORS_OUT") {
        std::fs::write(path, &made).unwrap();
    }
    assert!(made == COMMITTED, "a format has changed, and what was written before no longer opens");
}

fn make() -> Value {
    let key = FilesystemKey::from_bytes(KeyId::from_bytes(KEY_ID), &KEY).unwrap();
    let keys = FilesystemKeys::new(Arc::new(key), Backend::RustCrypto).unwrap();
    json!({
        "filesystem_key": hex::encode(KEY),
        "key_id": hex::encode(KEY_ID),
        "files": [
            file("empty", &[], 0, &fixed::run(|| finished(&keys, &[], 0))),
            file("small", SMALL, 14, &fixed::run(|| finished(&keys, SMALL, 14))),
            file("sparse", SPARSE, SPARSE_LEN, &fixed::run(|| finished(&keys, SPARSE, SPARSE_LEN))),
            file("two epochs, dirty", OVERWRITTEN, 5000, &fixed::run(|| overwritten(&keys))),
        ],
        "names": [name(&keys, b"report.txt"), name(&keys, &[0xff; 175])],
        "directory": { "id": hex::encode(DIR.as_bytes()), "record": hex::encode(keys.seal_directory(DIR)) },
        "root_directory": hex::encode(keys.root_directory().as_bytes()),
        "targets": [target(&keys, b"../elsewhere"), target(&keys, &[b't'; 800])],
        "nodes": [
            node(&keys, NodeKind::Fifo, 0, 0),
            node(&keys, NodeKind::CharacterDevice, 1, 3),
            node(&keys, NodeKind::BlockDevice, 259, 0x000a_bcde),
        ],
        "xattrs": [
            xattr(&keys, "file", XattrOwner::File(FILE)),
            xattr(&keys, "directory", XattrOwner::Directory(DIR)),
        ],
    })
}

/// Runs of one byte: where, how long, which. What lies between them are holes.
type Runs = &'static [(usize, usize, u8)];

const SMALL: Runs = &[(0, 14, b's')];
/// The first and the last block of group 0, none of group 1, two of group 2.
const SPARSE: Runs = &[(0, 4096, b'a'), (61 * 4096, 4096, b'b'), (126 * 4096, 4106, b'c')];
const SPARSE_LEN: usize = 127 * 4096 + 10;
const OVERWRITTEN: Runs = &[(0, 4096, b'n'), (4096, 904, b'o')];

fn finished(keys: &FilesystemKeys, runs: Runs, size: usize) -> Vec<u8> {
    let file = keys.create_file().unwrap();
    let mut image = vec![0; layout::backing_len(size as u64) as usize];
    let mut holes = HoleMap::default();
    for group in (0..layout::group_count(size as u64)).rev() {
        let at = layout::group_position(group) as usize;
        let len = layout::group_len(group, size as u64);
        let data = layout::group_data(group, size as u64);
        let buffer = &mut image[at..at + len];
        let mut written = Entries::NONE;
        for byte in data.start as usize..data.end as usize {
            let run = runs.iter().find(|(at, len, _)| (*at..at + len).contains(&byte));
            if let Some((_, _, value)) = run {
                let offset = byte - data.start as usize;
                buffer[PAGE + offset] = *value;
                written.insert(offset / PAGE);
            }
        }
        if written.is_empty() && group > 0 {
            holes.set_hole(group);
        } else {
            file.seal_group(group, buffer, written, Some(&holes)).unwrap();
        }
    }
    file.write_header(&mut image, size as u64).unwrap();
    image
}

/// Two blocks, of which the first is overwritten under a new salt by a writer that dies before it
/// closes the file.
fn overwritten(keys: &FilesystemKeys) -> Vec<u8> {
    const OLD: Runs = &[(0, 5000, b'o')];
    let mut image = finished(keys, OLD, 5000);
    let file = keys.open_file(&image, image.len() as u64).unwrap();
    let (page, data) = image.split_first_chunk_mut().unwrap();
    let mut tags = file.open_tag_page(0, page).unwrap();
    let state = FileState { dirty: true, ..file.state() };
    let file = file.renew_salt(keys, page, &state).unwrap();
    data[..PAGE].fill(b'n');
    tags.fill_older(0, &file.seal_block(0, &mut data[..PAGE]).unwrap());
    file.seal_tag_page(0, &tags, page).unwrap();
    image
}

fn file(what: &str, runs: Runs, size: usize, image: &[u8]) -> Value {
    let pages = image.chunks(PAGE).enumerate().filter(|(_, page)| !layout::is_zero(page));
    json!({
        "what": what,
        "size": size,
        "plain_runs": runs.iter().map(|(at, len, byte)| json!([at, len, byte])).collect::<Vec<_>>(),
        "backing_len": image.len(),
        "backing_pages": pages.map(|(n, page)| json!([n, hex::encode(page)])).collect::<Vec<_>>(),
    })
}

fn name(keys: &FilesystemKeys, plain: &[u8]) -> Value {
    let backing = keys.seal_name(DIR, plain).unwrap();
    json!({
        "plain": hex::encode(plain),
        "backing": backing.name,
        "side": backing.side.map(|side| json!([side.name, hex::encode(side.content)])),
    })
}

fn target(keys: &FilesystemKeys, plain: &[u8]) -> Value {
    let backing = fixed::run(|| keys.seal_target(plain)).unwrap();
    json!({ "plain": hex::encode(plain), "text": backing.text, "record": backing.record.map(hex::encode) })
}

fn node(keys: &FilesystemKeys, kind: NodeKind, major: u32, minor: u32) -> Value {
    let letter = match kind {
        NodeKind::Fifo => "p",
        NodeKind::CharacterDevice => "c",
        NodeKind::BlockDevice => "b",
    };
    let record = hex::encode(keys.seal_node(Node { kind, major, minor }));
    json!({ "kind": letter, "major": major, "minor": minor, "record": record })
}

fn xattr(keys: &FilesystemKeys, kind: &str, owner: XattrOwner) -> Value {
    let id = match &owner {
        XattrOwner::File(id) => id.as_bytes(),
        XattrOwner::Directory(id) => id.as_bytes(),
    };
    json!({
        "owner": [kind, hex::encode(id)],
        "name": "user.mime_type",
        "value": hex::encode("text/plain"),
        "backing_name": keys.xattr_name(owner, b"user.mime_type"),
        "backing_value": hex::encode(fixed::run(|| keys.seal_xattr(owner, b"user.mime_type", b"text/plain")).unwrap()),
    })
}

//! The golden vectors, read by the second reader.

use serde_json::Value;

use crate::reader::{File, Keys, PAGE};

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/formats-v1.json")).unwrap()
}

fn keys(vectors: &Value) -> Keys {
    Keys { key: bytes(&vectors["filesystem_key"]), id: bytes(&vectors["key_id"]) }
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

#[test]
fn files() {
    let vectors = vectors();
    let keys = keys(&vectors);
    let files = vectors["files"].as_array().unwrap();
    assert_eq!(files.len(), 4);
    for file in files {
        let mut image = vec![0; number(&file["backing_len"])];
        for page in file["backing_pages"].as_array().unwrap() {
            let content = bytes(&page[1]);
            image[number(&page[0]) * PAGE..][..content.len()].copy_from_slice(&content);
        }
        let mut plain = vec![0; number(&file["size"])];
        for run in file["plain_runs"].as_array().unwrap() {
            plain[number(&run[0])..][..number(&run[1])].fill(number(&run[2]) as u8);
        }
        assert!(File::open(&keys, &image).plain() == plain, "{}", file["what"]);
    }
}

#[test]
fn names_and_directories() {
    let vectors = vectors();
    let keys = keys(&vectors);
    let id = bytes(&vectors["directory"]["id"]);
    assert_eq!(keys.directory(&bytes(&vectors["directory"]["record"])), id);
    assert_eq!(keys.root_directory(), bytes(&vectors["root_directory"]));
    for name in vectors["names"].as_array().unwrap() {
        let side = |side: &str| {
            assert_eq!(name["side"][0], side);
            bytes(&name["side"][1])
        };
        let plain = keys.name(&id, name["backing"].as_str().unwrap(), side);
        assert_eq!(plain, bytes(&name["plain"]));
    }
}

#[test]
fn symlinks() {
    let vectors = vectors();
    let keys = keys(&vectors);
    for target in vectors["targets"].as_array().unwrap() {
        let record = |_: &str| bytes(&target["record"]);
        let plain = keys.target(target["text"].as_str().unwrap(), record);
        assert_eq!(plain, bytes(&target["plain"]));
    }
}

#[test]
fn nodes() {
    let vectors = vectors();
    let keys = keys(&vectors);
    for node in vectors["nodes"].as_array().unwrap() {
        let (kind, major, minor) = keys.node(&bytes(&node["record"]));
        assert_eq!([kind], *node["kind"].as_str().unwrap().as_bytes());
        assert_eq!(Some(major), node["major"].as_u64());
        assert_eq!(Some(minor), node["minor"].as_u64());
    }
}

#[test]
fn attributes() {
    let vectors = vectors();
    let keys = keys(&vectors);
    for xattr in vectors["xattrs"].as_array().unwrap() {
        let kind = &xattr["owner"][0].as_str().unwrap()[..1];
        let owner = [kind.as_bytes(), &bytes(&xattr["owner"][1])].concat();
        let backing = xattr["backing_name"].as_str().unwrap();
        let (name, value) = keys.attribute(&owner, backing, &bytes(&xattr["backing_value"]));
        assert_eq!(name, xattr["name"].as_str().unwrap().as_bytes());
        assert_eq!(value, bytes(&xattr["value"]));
    }
}

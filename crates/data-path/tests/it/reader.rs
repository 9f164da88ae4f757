//! A second reader, made from `docs/formats.md` alone on the bare libraries: it uses nothing of the
//! data path, and reads the golden vectors.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use aes_siv::siv::Aes256Siv;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hkdf::hmac::{Hmac, Mac};
use serde_json::Value;
use sha2::{Digest, Sha256};

const PAGE: usize = 4096;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../vectors/formats-v1.json")).unwrap()
}

fn bytes(value: &Value) -> Vec<u8> {
    hex::decode(value.as_str().unwrap()).unwrap()
}

fn number(value: &Value) -> usize {
    usize::try_from(value.as_u64().unwrap()).unwrap()
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

/// The filesystem key and its id.
struct Keys {
    key: Vec<u8>,
    id: Vec<u8>,
}

impl Keys {
    fn of(vectors: &Value) -> Self {
        Self { key: bytes(&vectors["filesystem_key"]), id: bytes(&vectors["key_id"]) }
    }

    fn derive(&self, salt: &[u8], info: &[u8]) -> [u8; 64] {
        let mut derived = [0; 64];
        Hkdf::<Sha256>::new(Some(salt), &self.key).expand(info, &mut derived).unwrap();
        derived
    }

    fn siv(&self, info: &str) -> Aes256Siv {
        Aes256Siv::new(&self.derive(&self.id, info.as_bytes()).into())
    }

    fn hmac(&self, info: &str, message: &[u8]) -> [u8; 32] {
        let mut mac = Hmac::<Sha256>::new(&self.derive(&self.id, info.as_bytes()).into());
        mac.update(message);
        mac.finalize().into_bytes().into()
    }
}

/// A backing file and the ciphers of its epochs.
struct File<'a> {
    image: &'a [u8],
    key_id: &'a [u8],
    epochs: [Option<Aes256Gcm>; 2],
}

impl<'a> File<'a> {
    fn open(keys: &'a Keys, image: &'a [u8]) -> Self {
        assert_eq!(&image[..7], b"COFFER\x01");
        let epochs = [24, 104].map(|at| {
            let epoch = &image[at..at + 80];
            if epoch.iter().all(|&byte| byte == 0) {
                return None;
            }
            assert_eq!(&epoch[..16], keys.id);
            let info = [b"coffer v1 file", &image[8..24]].concat();
            let derived = keys.derive(&epoch[16..48], &info);
            assert_eq!(&epoch[48..], &derived[32..], "commitment");
            Some(Aes256Gcm::new(derived[..32].try_into().unwrap()))
        });
        Self { image, key_id: &keys.id, epochs }
    }

    /// Opens something sealed; `rest` is the associated data that follows the 48 bytes.
    fn unseal(
        &self,
        (epoch, nonce, tag): (usize, &[u8], &[u8]),
        (domain, number): (&str, usize),
        rest: &[u8],
        sealed: &[u8],
    ) -> Option<Vec<u8>> {
        let mut aad = [domain.as_bytes(), self.key_id, &self.image[8..24]].concat();
        aad.extend((number as u64).to_le_bytes());
        aad.extend((sealed.len() as u32).to_le_bytes());
        assert_eq!(aad.len(), 48);
        aad.extend(rest);
        let mut data = sealed.to_vec();
        let (nonce, tag) = (Nonce::try_from(nonce).unwrap(), Tag::try_from(tag).unwrap());
        let cipher = self.epochs[epoch].as_ref().unwrap();
        cipher.decrypt_inout_detached(&nonce, &aad, data.as_mut_slice().into(), &tag).ok()?;
        Some(data)
    }

    /// Size, and whether the file is dirty.
    fn sealed_part(&self) -> (usize, bool) {
        let copies = [0, 1].map(|copy| {
            let at = 184 + 44 * copy;
            let sealed = &self.image[at..at + 44];
            let epoch = usize::from(self.image[7] >> (1 + copy) & 1);
            let bound = [&self.image[..7], &self.image[8..184]].concat();
            let seal = (epoch, &sealed[..12], &sealed[12..28]);
            self.unseal(seal, ("CFHD", copy), &bound, &sealed[28..]).unwrap()
        });
        let [first, second] = [0, 1].map(|copy| little_endian(&copies[copy][..4]));
        assert_eq!((first % 2, second % 2), (0, 1));
        let newer = if first == second + 1 { 0 } else { 1 };
        assert_eq!(first.abs_diff(second), 1);
        let part = &copies[newer];
        (little_endian(&part[8..15]) as usize, part[15] & 1 == 1)
    }

    fn plain(&self) -> Vec<u8> {
        let (size, dirty) = self.sealed_part();
        let mut plain = vec![0; size];
        let mut hole_map: Option<Vec<u8>> = None;
        // The vectors end in their first region.
        for (block, out) in plain.chunks_mut(PAGE).enumerate() {
            let e = if block < 62 { block } else { block + 1 };
            let (group, entry) = (e / 63, e % 63);
            if block == 0 && self.image.len() > 63 * PAGE {
                hole_map = self.entry(0, 62, ("CFHM", 0), PAGE, dirty);
            }
            if hole_map.as_ref().is_some_and(|map| map[group / 8] >> (group % 8) & 1 == 1) {
                continue;
            }
            if let Some(data) = self.entry(group, entry, ("CFBL", block), out.len(), dirty) {
                out.copy_from_slice(&data);
            }
        }
        plain
    }

    /// What an entry describes; `None` for a hole.
    fn entry(
        &self,
        group: usize,
        entry: usize,
        what: (&str, usize),
        len: usize,
        dirty: bool,
    ) -> Option<Vec<u8>> {
        let group_at = group * 262_144;
        let tags = &self.image[group_at..group_at + PAGE];
        let seal = (usize::from(tags[7] & 1), &tags[272..284], &tags[284..300]);
        let state = self.unseal(seal, ("CFTP", group), &tags[316..], &tags[300..316]).unwrap();
        let bit = |word: &[u8]| little_endian(word) >> entry & 1;
        if bit(&state[..8]) == 0 {
            return None;
        }
        let newer = bit(&state[8..]) as usize;
        let slots: &[usize] = if dirty { &[newer, 1 - newer] } else { &[newer] };
        let at = group_at + (entry + 1) * PAGE;
        let opened = slots.iter().find_map(|slot| {
            let slot = &tags[316 + entry * 60 + slot * 30..][..30];
            let word = little_endian(&slot[28..]) as usize;
            if word & 0x7fff != len {
                return None;
            }
            let seal = (word >> 15, &slot[..12], &slot[12..28]);
            self.unseal(seal, what, &[], &self.image[at..at + len])
        });
        Some(opened.unwrap())
    }
}

#[test]
fn files() {
    let vectors = vectors();
    let keys = Keys::of(&vectors);
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
    let keys = Keys::of(&vectors);
    let record = bytes(&vectors["directory"]["record"]);
    let id = bytes(&vectors["directory"]["id"]);
    assert_eq!(record[..40], [b"COFFDIR\x01", &keys.id[..], &id].concat());
    assert_eq!(record[40..], keys.hmac("coffer v1 directories", &record[..40]));
    let root = keys.derive(&keys.id, b"coffer v1 root directory");
    assert_eq!(bytes(&vectors["root_directory"]), root[..16]);
    for name in vectors["names"].as_array().unwrap() {
        let (kind, text) = name["backing"].as_str().unwrap().split_at(1);
        let decoded = URL_SAFE_NO_PAD.decode(text).unwrap();
        let sealed = match kind {
            "e" => decoded,
            _ => {
                assert_eq!(kind, "l");
                assert_eq!(name["side"][0], format!("l{text}.name"));
                let content = bytes(&name["side"][1]);
                assert_eq!(decoded, Sha256::digest(&content)[..]);
                content
            }
        };
        let plain = keys.siv("coffer v1 names").decrypt([&id], &sealed).unwrap();
        assert_eq!(plain, bytes(&name["plain"]));
    }
}

#[test]
fn symlinks() {
    let vectors = vectors();
    let keys = Keys::of(&vectors);
    for target in vectors["targets"].as_array().unwrap() {
        let (kind, text) = target["text"].as_str().unwrap().split_at(1);
        let decoded = URL_SAFE_NO_PAD.decode(text).unwrap();
        let (binding, sealed) = match kind {
            "e" => (b"inline".to_vec(), decoded),
            _ => (decoded, bytes(&target["record"])),
        };
        let mut key = keys.siv("coffer v1 symlinks");
        let plain = key.decrypt([&binding[..], &sealed[..16]], &sealed[16..]).unwrap();
        assert_eq!(plain, bytes(&target["plain"]));
    }
}

#[test]
fn nodes() {
    let vectors = vectors();
    let keys = Keys::of(&vectors);
    for node in vectors["nodes"].as_array().unwrap() {
        let record = bytes(&node["record"]);
        assert_eq!(record.len(), 72);
        assert_eq!(record[..24], [b"COFFNOD\x01", &keys.id[..]].concat());
        assert_eq!(record[24..25], *node["kind"].as_str().unwrap().as_bytes());
        assert_eq!(record[25..32], [0; 7]);
        assert_eq!(little_endian(&record[32..36]), node["major"].as_u64().unwrap());
        assert_eq!(little_endian(&record[36..40]), node["minor"].as_u64().unwrap());
        assert_eq!(record[40..], keys.hmac("coffer v1 nodes", &record[..40]));
    }
}

#[test]
fn attributes() {
    let vectors = vectors();
    let keys = Keys::of(&vectors);
    for xattr in vectors["xattrs"].as_array().unwrap() {
        let kind = &xattr["owner"][0].as_str().unwrap()[..1];
        let owner = [kind.as_bytes(), &bytes(&xattr["owner"][1])].concat();
        let sealed = bytes(&xattr["backing_value"]);
        let mut key = keys.siv("coffer v1 xattrs");
        let plain = key.decrypt([&owner[..], &sealed[..16]], &sealed[16..]).unwrap();
        let (name, value) = plain[1..].split_at(usize::from(plain[0]));
        assert_eq!(name, xattr["name"].as_str().unwrap().as_bytes());
        assert_eq!(value, bytes(&xattr["value"]));
        let code = keys.hmac("coffer v1 xattr names", &[&owner, name].concat());
        let expected = format!("user.coffer.{}", URL_SAFE_NO_PAD.encode(&code[..16]));
        assert_eq!(xattr["backing_name"], expected);
    }
}

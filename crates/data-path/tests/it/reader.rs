//! A second reader, made from `docs/formats.md` alone on the bare libraries: it uses nothing of the
//! data path. Here it reads the golden vectors, in the tests of `filesystem` whole trees.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Nonce, Tag};
use aes_siv::siv::Aes256Siv;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hkdf::Hkdf;
use hkdf::hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

pub(crate) const PAGE: usize = 4096;

/// The filesystem key and its id.
pub(crate) struct Keys {
    pub(crate) key: Vec<u8>,
    pub(crate) id: Vec<u8>,
}

impl Keys {
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

    /// The id of the root directory.
    pub(crate) fn root_directory(&self) -> Vec<u8> {
        self.derive(&self.id, b"coffer v1 root directory")[..16].to_vec()
    }

    /// The id in a directory's record.
    pub(crate) fn directory(&self, record: &[u8]) -> Vec<u8> {
        assert_eq!(record.len(), 72);
        assert_eq!(record[..24], [b"COFFDIR\x01", &self.id[..]].concat());
        assert_eq!(record[40..], self.hmac("coffer v1 directories", &record[..40]));
        record[24..40].to_vec()
    }

    /// The plain name; `side` gives the content of the side file with this name.
    pub(crate) fn name(
        &self,
        directory: &[u8],
        backing: &str,
        side: impl FnOnce(&str) -> Vec<u8>,
    ) -> Vec<u8> {
        let (kind, text) = backing.split_at(1);
        let decoded = URL_SAFE_NO_PAD.decode(text).unwrap();
        let sealed = match kind {
            "e" => decoded,
            _ => {
                assert_eq!(kind, "l");
                let content = side(&format!("{backing}.name"));
                assert_eq!(decoded, Sha256::digest(&content)[..]);
                content
            }
        };
        let plain = self.siv("coffer v1 names").decrypt([directory], &sealed).unwrap();
        assert_eq!(kind == "e", plain.len() <= 174);
        plain
    }

    /// The target of a symlink with this text; `record` gives the content of the record with this name.
    pub(crate) fn target(&self, text: &str, record: impl FnOnce(&str) -> Vec<u8>) -> Vec<u8> {
        let (kind, encoded) = text.split_at(1);
        let decoded = URL_SAFE_NO_PAD.decode(encoded).unwrap();
        let (binding, sealed) = match kind {
            "e" => (b"inline".to_vec(), decoded),
            _ => {
                assert_eq!((kind, decoded.len()), ("l", 16));
                (decoded, record(text))
            }
        };
        let mut key = self.siv("coffer v1 symlinks");
        let plain = key.decrypt([&binding[..], &sealed[..16]], &sealed[16..]).unwrap();
        assert_eq!(kind == "e", plain.len() <= 734);
        plain
    }

    /// Kind, major and minor number of a FIFO or a device.
    pub(crate) fn node(&self, record: &[u8]) -> (u8, u64, u64) {
        assert_eq!(record.len(), 72);
        assert_eq!(record[..24], [b"COFFNOD\x01", &self.id[..]].concat());
        assert_eq!(record[25..32], [0; 7]);
        assert_eq!(record[40..], self.hmac("coffer v1 nodes", &record[..40]));
        (record[24], little_endian(&record[32..36]), little_endian(&record[36..40]))
    }

    /// The plain form of an attribute. The owner is `f` and the file's id, or `d` and the directory's.
    pub(crate) fn attribute(
        &self,
        owner: &[u8],
        backing: &str,
        sealed: &[u8],
    ) -> (Vec<u8>, Vec<u8>) {
        let mut key = self.siv("coffer v1 xattrs");
        let plain = key.decrypt([owner, &sealed[..16]], &sealed[16..]).unwrap();
        let (name, value) = plain[1..].split_at(usize::from(plain[0]));
        let code = self.hmac("coffer v1 xattr names", &[owner, name].concat());
        assert_eq!(backing, format!("user.coffer.{}", URL_SAFE_NO_PAD.encode(&code[..16])));
        (name.to_vec(), value.to_vec())
    }
}

/// A backing file and the ciphers of its epochs.
pub(crate) struct File<'a> {
    image: &'a [u8],
    key_id: &'a [u8],
    epochs: [Option<Aes256Gcm>; 2],
}

impl<'a> File<'a> {
    pub(crate) fn open(keys: &'a Keys, image: &'a [u8]) -> Self {
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

    pub(crate) fn plain(&self) -> Vec<u8> {
        let (size, dirty) = self.sealed_part();
        if !dirty {
            assert_eq!(self.image.len(), backing_len(size));
        }
        let mut plain = vec![0; size];
        let mut hole_map: Option<Vec<u8>> = None;
        // What is read here ends in its first region.
        for (block, out) in plain.chunks_mut(PAGE).enumerate() {
            let e = if block < 62 { block } else { block + 1 };
            let (group, entry) = (e / 63, e % 63);
            if block == 0 && self.image.len() > 63 * PAGE {
                hole_map = self.entry(0, 62, ("CFHM", 0), PAGE, dirty);
            }
            let absent = |map: &Vec<u8>| map[group / 8] >> (group % 8) & 1 == 1;
            let at = group * 262_144 + (entry + 1) * PAGE;
            let data = match hole_map.as_ref().is_some_and(absent) {
                true => None,
                false => self.entry(group, entry, ("CFBL", block), out.len(), dirty),
            };
            match data {
                Some(data) => out.copy_from_slice(&data),
                None => assert!(dirty || self.image[at..at + out.len()].iter().all(|b| *b == 0)),
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

/// The length of the backing file of a file of `size` bytes, which ends in its first region.
fn backing_len(size: usize) -> usize {
    let Some(last) = size.checked_sub(1) else { return PAGE };
    let block = last / PAGE;
    let e = if block < 62 { block } else { block + 1 };
    e / 63 * 262_144 + (e % 63 + 1) * PAGE + last % PAGE + 1
}

fn little_endian(bytes: &[u8]) -> u64 {
    bytes.iter().rev().fold(0, |number, &byte| number << 8 | u64::from(byte))
}

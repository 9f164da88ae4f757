//! Many filesystems at once.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use filesystem::{Backend, Filesystem};
use kms_core::{
    Ciphertext, ENVELOPE_FORMAT, FilesystemKey, KeyEnvelope, KeyRecord, KeyVersion, KmsConfig,
    KmsConfigId, WrappedKey,
};
use serde_json::json;

use crate::kms::{KEY, Kms};
use crate::node::Place;

/// Filesystems that a store knows because it was rebuilt from them: far faster than to create each. Answers the ciphertext of
/// each one's key.
pub fn recovered_filesystems(place: &Place, kms: &Kms, count: usize) -> BTreeMap<String, String> {
    let keys: Vec<_> = (0..count).map(|_| Arc::new(FilesystemKey::generate().unwrap())).collect();
    let item = |key| json!({ "plaintext": STANDARD.encode(KeyRecord::of(key).expose()) });
    let batch: Vec<_> = keys.iter().map(|key| item(key)).collect();
    let wrapped =
        kms.admin().write(&format!("transit/encrypt/{KEY}"), &json!({ "batch_input": batch }));
    let config = KmsConfig {
        id: KmsConfigId::random(),
        kind: "vault".to_owned(),
        address: kms.url().to_owned(),
        master_key: KEY.to_owned(),
        settings: BTreeMap::new(),
    };
    let mut ciphertexts = BTreeMap::new();
    for (n, key) in keys.into_iter().enumerate() {
        let (name, item) = (format!("fs-{n:04}"), &wrapped["data"]["batch_results"][n]);
        let text = item["ciphertext"].as_str().unwrap().to_owned();
        let ciphertext = Ciphertext { text: text.clone(), version: KeyVersion(1) };
        let envelope = KeyEnvelope {
            format: ENVELOPE_FORMAT,
            filesystem: name.clone(),
            revision: 1,
            wrapped: WrappedKey { key_id: key.id(), config_id: config.id, ciphertext },
            kms: config.clone(),
            exposed: false,
            own_master_key: None,
        };
        let backing = place.path("backing").join(&name);
        fs::create_dir_all(&backing).unwrap();
        Filesystem::create(&backing, key, &envelope, Backend::default()).unwrap();
        ciphertexts.insert(name, text);
    }
    let (from, state) = (place.path("backing"), place.state());
    let (from, state) = (from.to_str().unwrap(), state.to_str().unwrap());
    place.ok(&["recover", "--from", from, "--state-dir", state]);
    ciphertexts
}

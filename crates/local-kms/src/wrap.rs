//! The ciphertext: `local:v1:<base64url(nonce (12) | AES-256-GCM of the key record | tag (16))>`.

use aes_gcm::aead::{AeadInOut, KeyInit};
use aes_gcm::{Aes256Gcm, Key, Nonce};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kms_core::{Ciphertext, KEY_LEN, KeyRecord, KeyVersion, KmsConfigId, KmsError, KmsErrorKind};
use zeroize::Zeroizing;

/// The only version that there is: a new local key is a new configuration.
pub(crate) const VERSION: KeyVersion = KeyVersion(1);

const PREFIX: &str = "local:v1:";
const NONCE_LEN: usize = 12;
const TAG_LEN: usize = 16;

/// Encrypts a record under a fresh random nonce. 2^32 of them under one key are safe (NIST SP 800-38D, 8.3).
pub(crate) fn seal(
    key: &[u8; KEY_LEN],
    config_id: KmsConfigId,
    record: &KeyRecord,
) -> Result<Ciphertext, KmsError> {
    let mut nonce = [0; NONCE_LEN];
    getrandom::fill(&mut nonce).map_err(|e| {
        KmsError::new(KmsErrorKind::Internal, "the system gives no random bytes").because(e)
    })?;
    // Holds the plaintext for a moment, so it is wiped, and never grows into another place.
    let mut sealed = Zeroizing::new(Vec::with_capacity(KeyRecord::LEN + TAG_LEN));
    sealed.extend_from_slice(record.expose());
    cipher(key)
        .encrypt_in_place(&Nonce::from(nonce), &associated_data(config_id), &mut *sealed)
        .map_err(|_| KmsError::new(KmsErrorKind::Internal, "AES-256-GCM did not encrypt"))?;
    let mut bytes = nonce.to_vec();
    bytes.extend_from_slice(&sealed);
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes));
    Ok(Ciphertext { text, version: VERSION })
}

/// Opens what [`seal`] made under the same key and configuration.
pub(crate) fn open(
    key: &[u8; KEY_LEN],
    config_id: KmsConfigId,
    ciphertext: &Ciphertext,
) -> Result<KeyRecord, KmsError> {
    let not_authentic = |what: &str| {
        KmsError::new(KmsErrorKind::NotAuthentic, what)
            .cure("put the right wrapped key back: the backing directory and each snapshot hold a copy (coffer recover)")
    };
    let malformed = || not_authentic("this is not a locally wrapped key: local:v1:… was expected");
    let encoded = ciphertext.text.strip_prefix(PREFIX).ok_or_else(malformed)?;
    let bytes = URL_SAFE_NO_PAD.decode(encoded).map_err(|_| malformed())?;
    let (nonce, sealed) = bytes.split_first_chunk::<NONCE_LEN>().ok_or_else(malformed)?;
    let mut opened = Zeroizing::new(sealed.to_vec());
    cipher(key)
        .decrypt_in_place(&Nonce::from(*nonce), &associated_data(config_id), &mut *opened)
        .map_err(|_| {
        not_authentic("the locally wrapped key was altered, or another local key made it")
    })?;
    KeyRecord::parse(&opened).map_err(|e| not_authentic(&e.to_string()).because(e))
}

/// What a ciphertext is bound to: this use, and the configuration.
fn associated_data(config_id: KmsConfigId) -> Vec<u8> {
    [b"coffer local wrapping v1\0", &config_id.as_bytes()[..]].concat()
}

fn cipher(key: &[u8; KEY_LEN]) -> Aes256Gcm {
    Aes256Gcm::new(<&Key<Aes256Gcm>>::from(key))
}

#[cfg(test)]
mod tests {
    use kms_core::FilesystemKey;
    use proptest::prelude::*;

    use super::*;

    const KEY: [u8; KEY_LEN] = [7; KEY_LEN];

    fn id() -> KmsConfigId {
        KmsConfigId::from_bytes(*b"0123456789abcdef")
    }

    fn sealed() -> Ciphertext {
        seal(&KEY, id(), &KeyRecord::of(&FilesystemKey::generate().unwrap())).unwrap()
    }

    #[test]
    fn associated_data_is_the_domain_and_the_configuration() {
        assert_eq!(associated_data(id()), b"coffer local wrapping v1\x000123456789abcdef");
    }

    #[test]
    fn round_trip() {
        let key = FilesystemKey::generate().unwrap();
        let record = KeyRecord::of(&key);
        let ciphertext = seal(&KEY, id(), &record).unwrap();
        assert_eq!(ciphertext.version, KeyVersion(1));
        let opened = open(&KEY, id(), &ciphertext).unwrap();
        assert_eq!(opened.expose(), record.expose());
        assert_ne!(seal(&KEY, id(), &record).unwrap().text, ciphertext.text, "a nonce of its own");
    }

    #[test]
    fn neither_another_key_nor_another_configuration_opens_it() {
        let kind = |answer: Result<KeyRecord, KmsError>| answer.unwrap_err().kind();
        let ciphertext = sealed();
        assert_eq!(kind(open(&[8; KEY_LEN], id(), &ciphertext)), KmsErrorKind::NotAuthentic);
        let other = KmsConfigId::random();
        assert_eq!(kind(open(&KEY, other, &ciphertext)), KmsErrorKind::NotAuthentic);
    }

    #[test]
    fn every_changed_character_is_noticed() {
        let text = sealed().text;
        for at in 0..text.len() {
            for other in ["A", "b", "-", "=", ""] {
                let mut changed = text.clone();
                changed.replace_range(at..=at, other);
                if changed != text {
                    let changed = Ciphertext { text: changed, version: VERSION };
                    let kind = open(&KEY, id(), &changed).unwrap_err().kind();
                    assert_eq!(kind, KmsErrorKind::NotAuthentic, "{at} {other}");
                }
            }
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "(local:v1:)?[A-Za-z0-9_=-]{0,120}|.{0,40}") {
            let ciphertext = Ciphertext { text, version: VERSION };
            prop_assert!(open(&KEY, id(), &ciphertext).is_err());
        }
    }
}

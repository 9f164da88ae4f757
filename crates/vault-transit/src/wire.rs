//! The bodies of requests and answers.
//!
//! Plaintext goes out of and comes into buffers that are wiped; between them it exists only as
//! what the JSON parser borrows from those.

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use kms_core::{Ciphertext, KeyRecord, KeyVersion, RecordError};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer};
use zeroize::Zeroizing;

/// Length of a record in base64.
const PLAINTEXT_LEN: usize = KeyRecord::LEN.div_ceil(3) * 4;

/// About the size of one item in JSON, for buffers that don't have to grow (a grown buffer leaves a copy behind).
pub(crate) const WRAP_ITEM_LEN: usize = PLAINTEXT_LEN + 24;

/// A body for `encrypt`.
///
/// `type` is looked at only if Vault is about to make a missing key, and this one it refuses to make: see the
/// crate's documentation.
pub(crate) fn encrypt_body(records: &[KeyRecord]) -> serde_json::Result<Bytes> {
    #[derive(Serialize)]
    struct Body<'a> {
        r#type: &'static str,
        batch_input: Vec<Item<'a>>,
    }
    #[derive(Serialize)]
    struct Item<'a> {
        plaintext: Plaintext<'a>,
    }
    struct Plaintext<'a>(&'a KeyRecord);
    impl Serialize for Plaintext<'_> {
        fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
            let mut text = Zeroizing::new([0; PLAINTEXT_LEN]);
            BASE64.encode_slice(self.0.expose(), text.as_mut_slice()).map_err(S::Error::custom)?;
            serializer
                .serialize_str(std::str::from_utf8(text.as_slice()).map_err(S::Error::custom)?)
        }
    }
    let items = records.iter().map(|record| Item { plaintext: Plaintext(record) }).collect();
    to_bytes(&Body { r#type: "ecdsa-p256", batch_input: items }, records.len() * WRAP_ITEM_LEN + 64)
}

/// A body for `decrypt` and `rewrap`.
pub(crate) fn ciphertext_body(ciphertexts: &[Ciphertext]) -> serde_json::Result<Bytes> {
    #[derive(Serialize)]
    struct Body<'a> {
        batch_input: Vec<Item<'a>>,
    }
    #[derive(Serialize)]
    struct Item<'a> {
        ciphertext: &'a str,
    }
    let batch_input = ciphertexts.iter().map(|c| Item { ciphertext: &c.text }).collect();
    to_bytes(&Body { batch_input }, 0)
}

/// A body for `renew-self`: how many seconds of life to ask for.
pub(crate) fn renew_body(increment: u64) -> serde_json::Result<Bytes> {
    to_bytes(&serde_json::json!({ "increment": increment }), 0)
}

/// A body for `sys/capabilities-self`.
pub(crate) fn paths_body(paths: &[String]) -> serde_json::Result<Bytes> {
    to_bytes(&serde_json::json!({ "paths": paths }), 0)
}

/// A body for a login of the AppRole kind.
pub(crate) fn login_body(role_id: &str, secret_id: &str) -> serde_json::Result<Bytes> {
    #[derive(Serialize)]
    struct Body<'a> {
        role_id: &'a str,
        secret_id: &'a str,
    }
    to_bytes(&Body { role_id, secret_id }, 2 * (role_id.len() + secret_id.len()) + 64)
}

/// A body for the look-up of a secret id.
pub(crate) fn secret_id_body(secret_id: &str) -> serde_json::Result<Bytes> {
    #[derive(Serialize)]
    struct Body<'a> {
        secret_id: &'a str,
    }
    to_bytes(&Body { secret_id }, 2 * secret_id.len() + 32)
}

fn to_bytes(body: &impl Serialize, capacity: usize) -> serde_json::Result<Bytes> {
    let mut buffer = Zeroizing::new(Vec::with_capacity(capacity));
    serde_json::to_writer(&mut *buffer, body)?;
    Ok(Bytes::from_owner(buffer))
}

/// What Vault wraps every answer in.
#[derive(Deserialize)]
pub(crate) struct Envelope<T> {
    /// A UUID, by which the request is found in Vault's audit log.
    #[serde(default)]
    pub(crate) request_id: String,
    pub(crate) data: T,
}

/// The answers to a batch, in order. They come with status 200, from newer Vaults with 400 if one item failed.
#[derive(Deserialize)]
pub(crate) struct Batch<'a> {
    #[serde(borrow)]
    pub(crate) batch_results: Vec<BatchItem<'a>>,
}

/// One of them. What is absent in one version is an empty text in another.
#[derive(Deserialize)]
pub(crate) struct BatchItem<'a> {
    #[serde(borrow, default)]
    pub(crate) ciphertext: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) plaintext: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(crate) error: Cow<'a, str>,
}

/// The ciphertext `vault:v<N>:…` with its version; 1.1.5 sends no `key_version` beside it.
pub(crate) fn parse_ciphertext(text: &str) -> Option<Ciphertext> {
    let (version, _) = text.strip_prefix("vault:v")?.split_once(':')?;
    let version = version.parse().ok().filter(|v| *v > 0)?;
    Some(Ciphertext { text: text.to_owned(), version: KeyVersion(version) })
}

/// The record in a plaintext. Its bytes pass one buffer, which is wiped and not moved.
pub(crate) fn decode_record(text: &str) -> Result<KeyRecord, RecordError> {
    // base64 asks for room for whole groups of three.
    let mut decoded = Zeroizing::new([0; KeyRecord::LEN.div_ceil(3) * 3]);
    let len = BASE64.decode_slice(text, decoded.as_mut_slice());
    let len = len.map_err(|_| RecordError::NotARecord)?;
    KeyRecord::parse(decoded.get(..len).unwrap_or_default())
}

/// `keys/<name>`, as far as Coffer looks.
#[derive(Deserialize)]
pub(crate) struct KeyData {
    pub(crate) name: String,
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) latest_version: u64,
    pub(crate) min_decryption_version: u64,
    pub(crate) derived: bool,
    pub(crate) deletion_allowed: bool,
    pub(crate) exportable: bool,
    pub(crate) allow_plaintext_backup: bool,
    /// OpenBao only.
    #[serde(default)]
    pub(crate) soft_deleted: bool,
    /// Version to creation time in Unix seconds; of types that can't serve us, to more than that.
    pub(crate) keys: BTreeMap<String, serde_json::Value>,
}

/// `auth/token/lookup-self`, as far as Coffer looks. Of the token itself, which it holds too, nothing is kept.
#[derive(Deserialize)]
pub(crate) struct TokenData {
    /// Seconds; 0 also for a token that never ends.
    pub(crate) ttl: i64,
    /// `null` for a token that never ends.
    pub(crate) expire_time: Option<serde::de::IgnoredAny>,
    /// Seconds that it was first given.
    #[serde(default)]
    pub(crate) creation_ttl: u64,
    /// When it was made, in seconds since 1970.
    #[serde(default)]
    pub(crate) creation_time: u64,
    /// Seconds since then; no renewal goes past them. 0: it has no such end of its own.
    #[serde(default)]
    pub(crate) explicit_max_ttl: u64,
    #[serde(default)]
    pub(crate) renewable: bool,
    /// Seconds. Absent if a role made the token periodic, in every version.
    #[serde(default)]
    pub(crate) period: u64,
    /// How often it may still be used; 0 for any number, less if this was its last use.
    #[serde(default)]
    pub(crate) num_uses: i64,
    #[serde(default)]
    pub(crate) orphan: bool,
    #[serde(default)]
    pub(crate) policies: Vec<String>,
}

/// `auth/<mount>/login`.
#[derive(Deserialize)]
pub(crate) struct LoggedIn<'a> {
    #[serde(borrow)]
    pub(crate) auth: ClientToken<'a>,
}

#[derive(Deserialize)]
pub(crate) struct ClientToken<'a> {
    #[serde(borrow)]
    pub(crate) client_token: Cow<'a, str>,
    #[serde(default)]
    pub(crate) metadata: Option<LoginMetadata>,
}

#[derive(Deserialize)]
pub(crate) struct LoginMetadata {
    /// The name of the AppRole that the role id is of.
    #[serde(default)]
    pub(crate) role_name: Option<String>,
}

/// `auth/<mount>/role/<role>/secret-id/lookup`, as far as Coffer looks.
#[derive(Deserialize)]
pub(crate) struct SecretIdData {
    /// How often it may still be used; 0 for any number.
    pub(crate) secret_id_num_uses: u64,
    /// RFC 3339, in Vault's time zone; in the year 1 for one that never ends.
    pub(crate) expiration_time: String,
}

/// `auth/token/renew-self`.
#[derive(Deserialize)]
pub(crate) struct Renewal {
    pub(crate) auth: Lease,
    #[serde(default)]
    pub(crate) warnings: Option<Vec<String>>,
}

#[derive(Deserialize)]
pub(crate) struct Lease {
    /// Seconds from now.
    pub(crate) lease_duration: u64,
    #[serde(default)]
    pub(crate) renewable: bool,
}

#[cfg(test)]
mod tests {
    use kms_core::FilesystemKey;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_record_goes_out_and_comes_back() {
        let record = KeyRecord::of(&FilesystemKey::generate().unwrap());
        let body = encrypt_body(std::slice::from_ref(&record)).unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "ecdsa-p256");
        let plaintext = body["batch_input"][0]["plaintext"].as_str().unwrap();
        assert_eq!(decode_record(plaintext).unwrap().expose(), record.expose());
    }

    #[test]
    fn wrap_bodies_do_not_outgrow_their_buffer() {
        let records: Vec<_> =
            (0..100).map(|_| KeyRecord::of(&FilesystemKey::generate().unwrap())).collect();
        assert!(encrypt_body(&records).unwrap().len() <= 100 * WRAP_ITEM_LEN + 64);
    }

    #[test]
    fn answers_of_all_versions() {
        let old = r#"{"request_id":"b03840fb-a8f8","data":{"batch_results":[{"ciphertext":"vault:v1:AA=="},{"error":"bad"}]}}"#;
        let new = r#"{"data":{"batch_results":[{"plaintext":"AA\u003d","error":"","reference":""},{"ciphertext":"vault:v12:AA","key_version":12}]}}"#;
        let old: Envelope<Batch<'_>> = serde_json::from_str(old).unwrap();
        assert_eq!(old.request_id, "b03840fb-a8f8");
        assert_eq!(parse_ciphertext(&old.data.batch_results[0].ciphertext).unwrap().version.0, 1);
        assert_eq!(old.data.batch_results[1].error, "bad");
        let new: Envelope<Batch<'_>> = serde_json::from_str(new).unwrap();
        assert_eq!(new.data.batch_results[0].plaintext, "AA=");
        assert_eq!(parse_ciphertext(&new.data.batch_results[1].ciphertext).unwrap().version.0, 12);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "\\PC*") {
            prop_assert!(decode_record(&text).is_err());
            prop_assert!(parse_ciphertext(&text).is_none());
        }

        #[test]
        fn versions(version in 1_u64.., rest in "[A-Za-z0-9+/=]*") {
            let text = format!("vault:v{version}:{rest}");
            prop_assert_eq!(parse_ciphertext(&text).unwrap().version.0, version);
        }
    }
}

//! A transit key: its versions, its limits, and what is sealed under it.

use std::{borrow::Cow, collections::BTreeMap, fmt};

use aes_gcm::{
    Aes256Gcm, KeyInit, Nonce,
    aead::{Aead, Payload},
};
use base64::{
    DecodeError, Engine,
    engine::{GeneralPurpose, GeneralPurposeConfig, general_purpose::STANDARD as BASE64},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{answer::Refusal, clock, random, request::Fields};

#[derive(Serialize, Deserialize)]
pub(crate) struct Key {
    kind: Kind,
    /// From 1 without gaps.
    versions: BTreeMap<u32, Version>,
    pub(crate) min_decryption_version: u32,
    /// Zero for the latest.
    pub(crate) min_encryption_version: u32,
    pub(crate) deletion_allowed: bool,
    pub(crate) exportable: bool,
    pub(crate) allow_plaintext_backup: bool,
}

/// 32 bytes under either type: an AES key, or an Ed25519 seed.
#[derive(Serialize, Deserialize)]
struct Version {
    #[serde(with = "base64_bytes")]
    secret: [u8; 32],
    created: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    Aes256Gcm96,
    /// Can't encrypt: for tests of what refuses such a key.
    Ed25519,
}

impl Kind {
    pub(crate) fn named(fields: &Fields) -> Result<Self, Refusal> {
        match fields.string("type")?.as_deref() {
            None | Some("" | "aes256-gcm96") => Ok(Self::Aes256Gcm96),
            Some("ed25519") => Ok(Self::Ed25519),
            Some(other) => Err(Refusal::invalid(format!("unknown key type {other}"))),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Aes256Gcm96 => "aes256-gcm96",
            Self::Ed25519 => "ed25519",
        })
    }
}

/// Why an item failed, in Vault's words, and whose fault Vault thinks it was.
#[derive(Debug)]
pub(crate) enum Failure {
    Sender(String),
    Internal(String),
}

impl Failure {
    pub(crate) fn new(why: impl Into<String>) -> Self {
        Self::Sender(why.into())
    }

    pub(crate) fn status(&self) -> u16 {
        match self {
            Self::Sender(_) => 400,
            Self::Internal(_) => 500,
        }
    }

    pub(crate) fn refusal(self) -> Refusal {
        match self {
            Self::Sender(why) => Refusal::invalid(why),
            Self::Internal(why) => Refusal::internal(&why),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sender(why) | Self::Internal(why) => f.write_str(why),
        }
    }
}

impl Key {
    pub(crate) fn new(
        kind: Kind,
        exportable: bool,
        allow_plaintext_backup: bool,
        now: u64,
    ) -> Result<Self, Refusal> {
        Ok(Self {
            kind,
            versions: BTreeMap::from([(1, Version::new(now)?)]),
            min_decryption_version: 1,
            min_encryption_version: 0,
            deletion_allowed: false,
            exportable,
            allow_plaintext_backup,
        })
    }

    pub(crate) fn rotate(&mut self, now: u64) -> Result<(), Refusal> {
        self.versions.insert(self.latest_version() + 1, Version::new(now)?);
        Ok(())
    }

    pub(crate) fn latest_version(&self) -> u32 {
        self.versions.keys().next_back().copied().unwrap_or(0)
    }

    /// Seals base64 under a version (zero: the latest), with associated data in base64 too. Gives the ciphertext
    /// and the version.
    pub(crate) fn encrypt(
        &self,
        version: i64,
        plaintext: &str,
        associated_data: &str,
    ) -> Result<(String, u32), Failure> {
        let plaintext = decode(plaintext).map_err(Failure::Sender)?;
        if self.kind != Kind::Aes256Gcm96 {
            return Err(Failure::new(format!(
                "message encryption not supported for key type {}",
                self.kind
            )));
        }
        let latest = self.latest_version();
        let version = match u32::try_from(version) {
            Ok(0) => latest,
            Ok(version) if version > latest => {
                return Err(Failure::new(
                    "requested version for encryption is higher than the latest key version",
                ));
            }
            Ok(version) if version < self.min_encryption_version => {
                return Err(Failure::new(
                    "requested version for encryption is less than the minimum encryption key version",
                ));
            }
            Ok(version) => version,
            Err(_) if version > 0 => {
                return Err(Failure::new(
                    "requested version for encryption is higher than the latest key version",
                ));
            }
            Err(_) => return Err(Failure::new("requested version for encryption is negative")),
        };
        let associated_data = decode_associated(associated_data)?;
        let nonce: [u8; NONCE] = random::bytes()
            .map_err(|_| Failure::new("no random bytes from the operating system"))?;
        let payload = Payload { msg: &plaintext, aad: &associated_data };
        let sealed = self
            .cipher(version)?
            .encrypt(&Nonce::from(nonce), payload)
            .map_err(|_| Failure::new("plaintext is too long"))?;
        let ciphertext = BASE64.encode([&nonce[..], &sealed].concat());
        Ok((format!("vault:v{version}:{ciphertext}"), version))
    }

    /// Opens `vault:v<N>:<base64 of nonce, ciphertext and tag>`. Gives base64.
    pub(crate) fn decrypt(
        &self,
        ciphertext: &str,
        associated_data: &str,
    ) -> Result<String, Failure> {
        if self.kind != Kind::Aes256Gcm96 {
            return Err(Failure::new(format!(
                "message decryption not supported for key type {}",
                self.kind
            )));
        }
        let invalid = |why: &str| Failure::new(format!("invalid ciphertext: {why}"));
        let rest = ciphertext.strip_prefix("vault:v").ok_or_else(|| invalid("no prefix"))?;
        let (version, sealed) =
            rest.split_once(':').ok_or_else(|| invalid("wrong number of fields"))?;
        let version: i64 =
            version.parse().map_err(|_| invalid("version number could not be decoded"))?;
        // Keys of Vault's first releases started at zero.
        let version = if version == 0 { 1 } else { version };
        if version > i64::from(self.latest_version()) {
            return Err(invalid("version is too new"));
        }
        if version < i64::from(self.min_decryption_version) {
            return Err(Failure::new(
                "ciphertext or signature version is disallowed by policy (too old)",
            ));
        }
        let sealed = decode(sealed).map_err(|_| invalid("could not decode base64"))?;
        let associated_data = decode_associated(associated_data)?;
        let (nonce, sealed) = sealed
            .split_first_chunk::<NONCE>()
            .ok_or_else(|| Failure::new("invalid ciphertext length"))?;
        let opened = self
            .cipher(u32::try_from(version).unwrap_or(0))?
            .decrypt(&Nonce::from(*nonce), Payload { msg: sealed, aad: &associated_data })
            .map_err(|_| Failure::new("cipher: message authentication failed"))?;
        Ok(BASE64.encode(opened))
    }

    fn cipher(&self, version: u32) -> Result<Aes256Gcm, Failure> {
        let version = self.usable_versions().find(|(number, _)| **number == version);
        let (_, version) = version.ok_or_else(|| Failure::new("no such key version"))?;
        Ok(Aes256Gcm::new(&version.secret.into()))
    }

    /// Vault puts versions below the minimum away: they can't be used or seen until it is lowered again.
    fn usable_versions(&self) -> impl Iterator<Item = (&u32, &Version)> {
        self.versions.range(self.min_decryption_version..)
    }

    /// As `GET keys/<name>` shows it.
    pub(crate) fn show(&self, name: &str) -> Value {
        let encrypts = self.kind == Kind::Aes256Gcm96;
        let keys: Map<_, _> = self
            .usable_versions()
            .map(|(number, version)| (number.to_string(), version.show(self.kind)))
            .collect();
        json!({
            "name": name,
            "type": self.kind.to_string(),
            "derived": false,
            "deletion_allowed": self.deletion_allowed,
            "min_available_version": 0,
            "min_decryption_version": self.min_decryption_version,
            "min_encryption_version": self.min_encryption_version,
            "latest_version": self.latest_version(),
            "exportable": self.exportable,
            "allow_plaintext_backup": self.allow_plaintext_backup,
            "supports_encryption": encrypts,
            "supports_decryption": encrypts,
            "supports_signing": !encrypts,
            "supports_derivation": true,
            "auto_rotate_period": 0,
            "imported_key": false,
            "keys": keys,
        })
    }
}

const NONCE: usize = 12;

impl Version {
    fn new(now: u64) -> Result<Self, Refusal> {
        Ok(Self { secret: random::bytes()?, created: now })
    }

    fn show(&self, kind: Kind) -> Value {
        match kind {
            Kind::Aes256Gcm96 => json!(self.created),
            Kind::Ed25519 => {
                let public = ed25519_dalek::SigningKey::from_bytes(&self.secret).verifying_key();
                json!({
                    "name": "ed25519",
                    "public_key": BASE64.encode(public.as_bytes()),
                    "certificate_chain": "",
                    "creation_time": clock::rfc3339(self.created),
                    "hybrid_public_key": "",
                })
            }
        }
    }
}

/// Go does not look at the bits that are left over behind the last byte.
const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_allow_trailing_bits(true),
);

/// Base64 as Go reads it, line breaks and all; the error in its words.
fn decode(text: &str) -> Result<Vec<u8>, String> {
    let text = if text.contains(['\r', '\n']) {
        Cow::Owned(text.replace(['\r', '\n'], ""))
    } else {
        Cow::Borrowed(text)
    };
    LENIENT.decode(text.as_ref()).map_err(|e| {
        let at = match e {
            DecodeError::InvalidByte(at, _) => at,
            // Go reads groups of four, and names the start of the one that is not whole.
            _ => text.len() / 4 * 4,
        };
        format!("illegal base64 data at input byte {at}")
    })
}

fn decode_associated(text: &str) -> Result<Vec<u8>, Failure> {
    decode(text).map_err(|e| {
        Failure::Internal(format!(
            "unable to get associated_data/additional_data from factory[0]: {e}"
        ))
    })
}

mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(bytes: &[u8; 32], to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&BASE64.encode(bytes))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<[u8; 32], D::Error> {
        let bytes = BASE64.decode(String::deserialize(from)?).map_err(D::Error::custom)?;
        bytes.try_into().map_err(|_| D::Error::custom("a key has 32 bytes"))
    }
}

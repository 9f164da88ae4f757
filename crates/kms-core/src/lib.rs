//! The words of Coffer's key handling, and the traits that its parts meet at.
//!
//! A *master key* lives in a KMS and never leaves it. A [`FilesystemKey`] is 32 random bytes with
//! a [`KeyId`]; at rest it exists only as a [`WrappedKey`], encrypted by the KMS. This crate says
//! what those are and which promises the parts make to each other; it does no I/O, has no
//! runtime and knows no KMS, no store and no file format of data.
//!
//! | trait | who implements it | its promise |
//! |---|---|---|
//! | [`Kms`] | `vault-transit`, `local-kms` | wraps, unwraps and rewraps batches, item by item |
//! | [`KmsProvider`] | the same | a configuration in, a proved [`Kms`] out |
//! | [`KeyStore`] | `key-store` | atomic commits with preconditions over versioned records |
//! | [`KeyHolder`] | `filesystem`, later `snapshot` | lists and replaces copies of wrapped keys |
//! | [`AuditSink`] | `daemon` | keeps a record of every act on a key |
//! | [`Clock`] | [`SystemClock`], tests | the time, as an argument |
//!
//! ```
//! use kms_core::{FilesystemKey, KeyRecord};
//!
//! let key = FilesystemKey::generate()?;
//! // What a KMS encrypts is not the bare key but a record that carries the key's id, so that
//! // wrapped keys swapped in a store are noticed when they are opened.
//! let record = KeyRecord::of(&key);
//! assert_eq!(KeyRecord::parse(record.expose())?.key_id(), key.id());
//! assert!(!format!("{key:?}").contains("secret_bytes"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod answers;
mod arena;
mod audit;
mod backoff;
mod check;
mod clock;
mod credential;
mod error;
mod holder;
mod id;
mod kms;
mod record;
mod store;
mod wrapped;

pub use answers::{Items, RequestId};
pub use arena::{FilesystemKey, KEY_LEN, arena_is_locked};
pub use audit::{AuditEvent, AuditSink, KeyUse, Outcome};
pub use backoff::full_jitter;
pub use check::{CheckItem, CheckOutcome};
pub use clock::{Clock, SystemClock, UnixMillis};
pub use credential::{
    Auth, ClientIdentity, Credential, CredentialHere, CredentialStatus, Ending, Login,
};
pub use error::{KmsError, KmsErrorKind, KmsInput};
pub use holder::{FilesystemSite, HolderError, KeyCopy, KeyHolder, replaced};
pub use id::{IdError, KeyId, KmsConfigId};
pub use kms::{Finding, Kms, KmsConfig, KmsExt, KmsProvider, MasterKey, Policy, Proof};
pub use record::{KeyRecord, RecordError};
pub use secrecy::{ExposeSecret, SecretString};
pub use store::{Check, Commit, KeyStore, Page, Record, StoreError, Version};
pub use wrapped::{
    Ciphertext, ENVELOPE_FORMAT, EnvelopeError, KeyEnvelope, KeyVersion, WrappedKey,
};

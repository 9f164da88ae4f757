//! A [`Kms`](kms_core::Kms) whose master key is a file on this machine.
//!
//! It is what `fs create --allow-no-kms` and `fs kms unset --allow-downgrade` leave: filesystem keys
//! that open without any KMS. **It protects nothing against who can read the state directory**,
//! where the key lies beside what it wraps: a stolen disk, a backup, another administrator. Keys that
//! ever lay under it count as `exposed` until the data has a new one. What it gives is one way of
//! handling keys for everybody: with a real KMS they move, and the local key is erased.
//!
//! ```
//! use std::sync::Arc;
//! use kms_core::{Credential, FilesystemKey, KmsConfigId, KmsExt, KmsProvider};
//! use local_kms::LocalProvider;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let state = tempfile::tempdir()?;
//! let local = LocalProvider::new(state.path());
//! let config = LocalProvider::config(KmsConfigId::random());
//! local.create_key(config.id)?;
//!
//! let kms = local.prove(&config, &Credential::default()).await?.kms;
//! let key = Arc::new(FilesystemKey::generate()?);
//! let wrapped = kms.wrap_keys(&[Arc::clone(&key)]).await?.only()?;
//! assert!(wrapped.ciphertext.text.starts_with("local:v1:"));
//! assert_eq!(kms.unwrap_keys(&[wrapped]).await?.only()?.id(), key.id());
//!
//! local.erase_key(config.id)?;
//! # Ok(()) }
//! ```

mod key_file;
mod kms;
mod provider;
mod wrap;

pub use kms::LocalKms;
pub use provider::LocalProvider;

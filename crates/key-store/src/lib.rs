//! The key store: atomic commits with preconditions over small, versioned records.
//!
//! Two implementations of [`KeyStore`](kms_core::KeyStore), a module and a feature each:
//! [`MemoryStore`] (`memory`) forgets everything when it is dropped; [`SledStore`] (`sled`) is
//! what a node keeps in its state directory, through kill -9 and power cuts, and it notices damage
//! and old copies when it is opened. Both answer from the same `Table`, so what a
//! check, a page or a version means is written once.
//!
//! ```
//! use kms_core::{Commit, KeyStore, StoreError};
//! use key_store::SledStore;
//!
//! # #[tokio::main] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! # let state = tempfile::tempdir()?;
//! let store = SledStore::open(&state.path().join("store"))?;
//! store.commit(Commit::new().absent("fs/home").put("fs/home", b"{}".to_vec())).await?;
//!
//! let read = store.get("fs/home").await?.ok_or("it was just written")?;
//! store.commit(Commit::new().unchanged(&read).put("fs/home", b"{1}".to_vec())).await?;
//!
//! // Somebody who still has the old version in hand loses, and nothing of the commit is done.
//! let late = store.commit(Commit::new().unchanged(&read).delete("fs/home")).await;
//! assert!(matches!(late, Err(StoreError::Conflict { .. })));
//! # Ok(()) }
//! ```

#[cfg(feature = "memory")]
mod memory;
#[cfg(feature = "sled")]
mod sled_store;
#[cfg(any(feature = "memory", feature = "sled"))]
mod table;

#[cfg(feature = "memory")]
pub use memory::MemoryStore;
#[cfg(feature = "sled")]
pub use sled_store::SledStore;

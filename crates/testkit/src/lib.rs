//! What Coffer's tests share: a contract suite for each trait, run by every implementation of it, and
//! stand-ins that a test controls. A dev-dependency only.
//!
//! A suite panics at the first broken promise, which is how a test fails:
//!
//! ```no_run
//! # async fn test<S: kms_core::KeyStore + 'static>(make: impl AsyncFn() -> S) {
//! testkit::store::key_store_contract(make).await;
//! # }
//! ```
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod audit;
pub mod clock;
pub mod fake_kms;
pub mod fake_store;
pub mod key_holder;
pub mod kms;
pub mod late;
pub mod provider;
pub mod store;
pub mod tree;
pub mod vault_server;

//! What the end-to-end tests are written with: a node of the built program, a KMS of three kinds, and a way to
//! kill a node at any of its system calls.
//!
//! The tests themselves are in `tests/e2e` (what works and what is refused) and `tests/crash` (a kill at every
//! system call). They run the program that `cargo build --package coffer` made, and need the environment
//! variables with the real Vaults' paths; `cargo xtask test` provides both.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod document;
pub mod fleet;
pub mod kill;
pub mod kms;
pub mod mtls;
pub mod node;
pub mod tmpfs;

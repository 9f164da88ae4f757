//! What works and what is refused, with the built program, over the embedded KMS and real Vaults.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod bad_input;
mod check;
mod credentials;
mod damage;
mod deadlines;
mod dev_vault;
mod docs;
mod documents;
mod impact;
mod jobs;
mod key_versions;
mod kms_faults;
mod logs;
mod main_job;
mod matrix;
mod metrics;
mod ordinary_user;
mod own_keys;
mod page;
mod rehearse;
mod rekey;
mod secrets;
mod store;
mod terminal;
mod two_nodes;
mod vault_options;

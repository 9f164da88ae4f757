//! A node over its socket, with real filesystems, a store in memory and a fake KMS.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod checks;
mod credentials;
mod events;
mod filesystems;
mod jobs;
mod openapi;
mod outage;
mod rekey;
mod requests;
mod versions;
mod world;

//! The filesystem on real directories.
//!
//! Some of it needs root: foreign owners, devices, a small disk of its own. Without root those
//! tests fail and say so.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod damage;
mod deep;
mod disk_full;
mod formats;
mod holes;
mod key_holder;
mod leftover;
mod life;
mod listing;
mod merge;
#[path = "../../../data-path/tests/it/reader.rs"]
mod reader;
mod rekey;
mod resume;
mod rights;
mod round_trip;
mod support;
mod told;

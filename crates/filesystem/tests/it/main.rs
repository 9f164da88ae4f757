//! The filesystem on real directories.
//!
//! Some of it needs root: foreign owners, devices, a small disk of its own. Without root those
//! tests fail and say so.

#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "tests")]

mod damage;
mod deep;
mod disk_full;
<<<<<<< HEAD
mod holes;
=======
mod formats;
>>>>>>> 845fe80 (The second reader, made from formats.md alone, reads a whole backing directory as the filesystem writes it, not golden vectors alone; a hole of a clean file has to be zero there too)
mod key_holder;
mod leftover;
mod life;
mod listing;
<<<<<<< HEAD
mod merge;
=======
#[path = "../../../data-path/tests/it/reader.rs"]
mod reader;
>>>>>>> 845fe80 (The second reader, made from formats.md alone, reads a whole backing directory as the filesystem writes it, not golden vectors alone; a hole of a clean file has to be zero there too)
mod resume;
mod rights;
mod round_trip;
mod support;

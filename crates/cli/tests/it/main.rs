//! The command line against a node that answers from a script: what is asked, and exactly what is shown.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod console;
mod filesystems;
mod kms;
mod node;
mod usage;

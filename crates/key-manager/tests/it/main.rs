//! The life of keys over fakes of KMS, local wrapping and store: what happens, and what is
//! there after a stop at any point.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod canary;
mod crash;
mod hangs;
mod life;
mod moves;
mod own_key;
mod recover;
mod rekey;
mod removal;
mod repeat;
mod versions;
mod world;

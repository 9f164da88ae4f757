//! The life of keys over a fake KMS, real local wrapping and a store in memory: what happens, and what is
//! there after a stop at any point.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod crash;
mod life;
mod moves;
mod recover;
mod world;

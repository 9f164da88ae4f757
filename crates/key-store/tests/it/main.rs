//! The stores against the contract; sled against kill -9, damage and old copies.
#![allow(clippy::unwrap_used, clippy::panic)]

mod contract;
mod crash;
mod damage;
mod history;
mod power_cut;
mod private;

//! The stores against the contract; sled against kill -9, damage and old copies.

mod contract;
mod crash;
mod damage;
mod history;
mod power_cut;
mod private;

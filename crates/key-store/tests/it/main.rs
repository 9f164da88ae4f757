//! The stores against the contract; sled against kill -9 and damage.

mod contract;

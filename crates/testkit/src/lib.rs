//! testkit

pub mod tree;

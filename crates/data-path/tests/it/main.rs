//! The data path through its public API: round trips, attacks on what lies on disk, death between
//! writes; and a second reader of the formats.

#![allow(clippy::unwrap_used, reason = "the helpers beside the test functions fail by panic too")]

mod attacks;
mod golden;
mod image;
mod kill;
mod reader;
mod round_trip;
mod small;

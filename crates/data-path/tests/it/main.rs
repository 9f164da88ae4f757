//! The data path through its public API: round trips, attacks on what lies on disk, and death between writes.

mod attacks;
mod image;
mod kill;
mod round_trip;
mod small;

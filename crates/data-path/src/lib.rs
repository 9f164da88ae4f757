//! data-path

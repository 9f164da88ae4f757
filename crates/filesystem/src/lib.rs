//! filesystem

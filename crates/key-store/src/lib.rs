//! key-store

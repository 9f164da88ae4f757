//! key-manager

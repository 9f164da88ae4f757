//! vault-transit

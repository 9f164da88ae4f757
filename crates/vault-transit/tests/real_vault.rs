//! Over real Vaults.

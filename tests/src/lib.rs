//! End-to-end tests of the built binary over real servers.

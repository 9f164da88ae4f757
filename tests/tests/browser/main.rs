//! The web console in a real browser: Debian's Chromium, headless, driven through WebDriver.
//!
//! | module | its part |
//! |---|---|
//! | `driver` | chromedriver, and a Chromium with a fresh profile for each test |
//! | `browser` | what a person does in it: press, type, read |
//! | `console` | the console of a node, opened by its link |
//! | `http` | what a browser can't be made to send |
//!
//! The other modules are the tests. They need `apt-get install chromium chromium-driver`; `cargo xtask test` sees to that.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod audit;
mod browser;
mod console;
mod driver;
mod filesystems;
mod http;
mod jobs;
mod keyboard;
mod kms;
mod listener;
mod looks;
mod security;
mod sessions;
mod vault;

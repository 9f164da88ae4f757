//! [`kms_core::Kms`] over the transit engine of HashiCorp Vault, from 1.1.5 to the newest, and of
//! OpenBao. Everything that Coffer knows of Vault is here.
//!
//! [`VaultProvider`] is the way in. It checks a configuration ([`VaultConfig`]), and proves by use that
//! address, token and master key work before anything is stored.
//!
//! | file | its part |
//! |---|---|
//! | `config` | which Vault and which key: checked so that nothing in it leads elsewhere; the policy that a token needs |
//! | `session` | the token: given, read from a file, got by a login, which clients share; the pause after one that was refused |
//! | `secret_id` | what is left of the secret id of a login |
//! | `size` | how much may be given |
//! | `operation` | the requests that are ever sent, and what a policy must allow for each |
//! | `address` | addresses that are never connected to |
//! | `certificate` | when certificates end |
//! | `connector` | the HTTP client: TLS, what is trusted and what is shown, no redirect, proxy or pool |
//! | `http` | one request: retries with full jitter, deadlines, redirects by hand, sizes |
//! | `wire` | the bodies of requests and answers; secrets in memory that is wiped |
//! | `refusal` | what Vault's refusals mean, and what to do about each |
//! | `kms` | batches; the life of a token |
//! | `provider` | the proof |
//! | `check` | what an administrator's check looks at |
//! | `policy` | the policy for several keys, and the commands that apply it |
//! | `findings` | warnings, at the proof and later |
//!
//! # No key is made by accident
//!
//! `transit/encrypt/<name>` makes a missing key if the policy has `create`, and the policy that many
//! guides show has it. So each wrap reads the key first, which tells apart what is missing from what is
//! forbidden, and each encrypt request carries `"type": "ecdsa-p256"`. Vault looks at `type` only
//! when it is about to make a key, and refuses to make one of a type that can't encrypt
//! (`pathEncryptWrite` in `builtin/logical/transit/path_encrypt.go`, from 1.1.5 to 1.21.4). Vault
//! decides that under its own lock, so a key that is deleted between the two requests is not made again either.
//!
//! ```no_run
//! use kms_core::{Credential, KeyRecord, FilesystemKey, KmsConfig, KmsConfigId, KmsProvider};
//! use vault_transit::VaultProvider;
//!
//! # async fn example() -> Result<(), kms_core::KmsError> {
//! let config = KmsConfig {
//!     id: KmsConfigId::random(),
//!     kind: vault_transit::KIND.to_owned(),
//!     address: "https://vault.example.com:8200".to_owned(),
//!     master_key: "coffer".to_owned(),
//!     settings: Default::default(),
//! };
//! let token = Credential::token(std::env::var("MY_TOKEN").unwrap_or_default());
//! let proof = VaultProvider::default().prove(&config, &token).await?;
//! for finding in &proof.findings {
//!     println!("{}: {}; {}", finding.code, finding.what, finding.cure);
//! }
//! let key = FilesystemKey::generate()?;
//! let wrapped = proof.kms.wrap(&[KeyRecord::of(&key)]).await?;
//! # Ok(()) }
//! ```

mod address;
mod answer;
mod certificate;
mod check;
mod client;
mod config;
mod connector;
mod findings;
mod http;
mod kms;
mod measure;
mod operation;
mod pauses;
mod policy;
mod provider;
mod refusal;
mod secret_id;
mod session;
mod size;
mod wire;

use std::time::Duration;

pub use config::{KIND, VaultConfig, valid_name};
pub use measure::describe_metrics;
pub use policy::policy;
pub use provider::VaultProvider;

/// How long to wait for Vault and how much to send it at once.
///
/// Each request to Vault has the deadline for itself; a call of [`kms_core::Kms`] that takes many requests ends with
/// the first of them that fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// For a connection, TLS included.
    pub connect: Duration,
    /// For one try, from the connection to the last byte of the answer.
    pub attempt: Duration,
    /// For a request with all its tries.
    pub deadline: Duration,
    /// Tries of one request, the first included.
    pub tries: u32,
    /// The longest pause after the first try; it doubles with each, up to 5 s, and a random part of it is taken.
    pub pause: Duration,
    /// Longest answer that is read, in bytes.
    pub reply_bytes: usize,
    /// Keys in one request.
    pub batch_items: usize,
    /// Bytes in one request, roughly; Vault's own limit is 32 MiB (`max_request_size`).
    pub batch_bytes: usize,
    /// Requests of one call under way at once.
    pub in_flight: usize,
}

impl Limits {
    /// Those of a request that ends within `deadline`, which leaves time for three tries that nobody answers.
    #[must_use]
    pub fn within(deadline: Duration) -> Self {
        Self { connect: deadline / 6, attempt: deadline / 3, deadline, ..Self::default() }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            attempt: Duration::from_secs(10),
            deadline: Duration::from_secs(30),
            tries: 6,
            pause: Duration::from_millis(100),
            reply_bytes: 16 << 20,
            batch_items: 1_250,
            batch_bytes: 4 << 20,
            in_flight: 4,
        }
    }
}

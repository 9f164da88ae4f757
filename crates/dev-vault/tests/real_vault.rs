//! The table of Vault's answers, held against real ones: 1.1.5, the oldest that Coffer supports, and the newest, as which
//! the embedded server has to answer.
//!
//! ```text
//! cargo xtask vault          # builds them and prints their paths
//! COFFER_TEST_VAULT_1_1_5=… COFFER_TEST_VAULT_NEWEST=… \
//!     cargo test -p dev-vault --features real-vault --test real_vault
//! ```
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::fmt::Write as _;

use dev_vault::{DevVault, Fault};
use serde_json::{Value, json};
use testkit::vault_server::{self, VaultServer};

#[path = "it/conformance/mod.rs"]
mod conformance;

use conformance::{Seen, Version, conform};

async fn over_real(variable: &str, version: Version) -> Vec<Seen> {
    let server = VaultServer::start(&VaultServer::program(variable));
    conform(server.url(), VaultServer::ROOT_TOKEN, version).await
}

#[tokio::test(flavor = "multi_thread")]
async fn v1_1_5_answers_as_the_table_says() {
    over_real(vault_server::OLDEST, Version::V1_1_5).await;
}

/// Beyond what the rows name, the embedded server's whole answers have the form of the newest Vault's.
#[tokio::test(flavor = "multi_thread")]
async fn the_newest_answers_as_the_table_says_and_the_embedded_one_in_the_same_form() {
    let real = over_real(vault_server::NEWEST, Version::Newest).await;
    let vault = DevVault::start().await.unwrap();
    let embedded = conform(&vault.url(), vault.root_token(), Version::Newest).await;
    let mut differences = String::new();
    for (real, embedded) in real.iter().zip(&embedded) {
        assert_eq!(real.row, embedded.row);
        // One of them may have closed the connection of a request that was too long.
        let (Some(expected), Some(found)) = (&real.answer, &embedded.answer) else { continue };
        if form(&expected.1) != form(&found.1) {
            writeln!(differences, "{}:\n  real     {expected:?}\n  embedded {found:?}", real.row)
                .unwrap();
        }
    }
    assert!(differences.is_empty(), "{differences}");
}

/// The words and the header of a quota, which the embedded server has as a fault.
#[tokio::test(flavor = "multi_thread")]
async fn the_embedded_server_limits_rates_as_the_newest() {
    const PATH: &str = "transit/keys/k";
    let server = VaultServer::start(&VaultServer::program(vault_server::NEWEST));
    server.admin().mount_transit();
    server.admin().write(PATH, &json!({}));
    let quota = json!({ "path": "transit/", "rate": 1, "interval": "1h" });
    server.admin().write("sys/quotas/rate-limit/narrow", &quota);
    // Off by default.
    let headers = json!({ "enable_rate_limit_response_headers": true });
    server.admin().write("sys/quotas/config", &headers);
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    vault.faults().inject(Fault::RateLimit { requests: 1, milliseconds: 3_600_000 });

    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut answers = Vec::new();
    for (url, token) in
        [(server.url(), VaultServer::ROOT_TOKEN), (&vault.url(), vault.root_token())]
    {
        let ask = async || {
            let request = http.get(format!("{url}/v1/{PATH}")).header("x-vault-token", token);
            request.send().await.unwrap()
        };
        assert_eq!(ask().await.status(), 200, "{url}");
        let refused = ask().await;
        let wait: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
        assert!((1..=3600).contains(&wait), "{wait}");
        answers.push((refused.status(), refused.json::<Value>().await.unwrap()));
    }
    assert_eq!(answers[0].0, 429);
    assert_eq!(answers[0], answers[1]);
}

/// An answer with the kind of each value in its place.
fn form(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            fields.iter().map(|(name, value)| (name.clone(), form(value))).collect()
        }
        Value::Array(items) => items.iter().map(form).collect(),
        Value::String(_) => "text".into(),
        Value::Number(_) => "number".into(),
        Value::Bool(_) => "flag".into(),
        Value::Null => Value::Null,
    }
}

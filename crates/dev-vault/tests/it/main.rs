//! Each behaviour of the development KMS, over HTTP. What is asserted here was seen on Vault 1.21.4.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod app_role;
mod conformance;
mod faults;
mod plans;
mod policies;
mod server;
mod sys;
mod tokens;
mod transit;

use std::collections::BTreeSet;

use base64::{Engine, engine::general_purpose::STANDARD};
use conformance::{Version, conform};
use dev_vault::DevVault;
use reqwest::Method;
use serde_json::{Value, json};

/// What came back: the status, and the JSON body (`null` if there is none).
#[derive(Debug, PartialEq)]
struct Reply {
    status: u16,
    body: Value,
}

impl Reply {
    /// The data of a request that must have worked.
    #[track_caller]
    fn data(&self) -> &Value {
        assert_eq!(self.status, 200, "{}", self.body);
        &self.body["data"]
    }

    /// The token of a request that must have made one.
    #[track_caller]
    fn token(&self) -> String {
        assert_eq!(self.status, 200, "{}", self.body);
        self.body["auth"]["client_token"].as_str().unwrap().to_owned()
    }

    /// The status, and the errors as one text.
    fn refusal(&self) -> (u16, String) {
        let errors =
            self.body["errors"].as_array().unwrap_or_else(|| panic!("no errors: {self:?}"));
        let errors: Vec<_> = errors.iter().map(|e| e.as_str().unwrap()).collect();
        (self.status, errors.join("|"))
    }
}

/// The status and the words of a refusal.
#[track_caller]
fn assert_refused(reply: &Reply, status: u16, words: &str) {
    assert_eq!(reply.refusal(), (status, words.to_owned()));
}

const DENIED: &str = "1 error occurred:\n\t* permission denied\n\n";
const BAD_TOKEN: &str = "2 errors occurred:\n\t* permission denied\n\t* invalid token\n\n";

/// Asks one server with one token.
#[derive(Clone)]
struct Client {
    http: reqwest::Client,
    url: String,
    token: Option<String>,
}

impl Client {
    fn new(vault: &DevVault) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { http, url: vault.url(), token: Some(vault.root_token().to_owned()) }
    }

    fn with_token(&self, token: impl Into<String>) -> Self {
        Self { token: Some(token.into()), ..self.clone() }
    }

    fn without_token(&self) -> Self {
        Self { token: None, ..self.clone() }
    }

    fn request(&self, method: &str, path: &str) -> reqwest::RequestBuilder {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let request = self.http.request(method, format!("{}/v1/{path}", self.url));
        match &self.token {
            Some(token) => request.header("X-Vault-Token", token),
            None => request,
        }
    }

    async fn send(request: reqwest::RequestBuilder) -> Reply {
        let response = request.send().await.unwrap();
        assert_eq!(response.headers()["x-coffer-dev-vault"], "insecure");
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        let body = if text.is_empty() { Value::Null } else { serde_json::from_str(&text).unwrap() };
        Reply { status, body }
    }

    async fn get(&self, path: &str) -> Reply {
        Self::send(self.request("GET", path)).await
    }

    async fn list(&self, path: &str) -> Reply {
        Self::send(self.request("LIST", path)).await
    }

    async fn delete(&self, path: &str) -> Reply {
        Self::send(self.request("DELETE", path)).await
    }

    async fn post(&self, path: &str, body: Value) -> Reply {
        Self::send(self.request("POST", path).json(&body)).await
    }

    async fn post_raw(&self, path: &str, body: impl Into<reqwest::Body>) -> Reply {
        Self::send(self.request("POST", path).body(body)).await
    }

    /// Writes a policy, and makes a client with a token that has only this one.
    async fn with_policy(&self, name: &str, policy: &str) -> Self {
        let written =
            self.post(&format!("sys/policies/acl/{name}"), json!({ "policy": policy })).await;
        assert_eq!(written.status, 204, "{}", written.body);
        let made = self.post("auth/token/create", json!({ "policies": [name] })).await;
        self.with_token(made.token())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_answers_as_the_newest_vault() {
    let vault = DevVault::start().await.unwrap();
    let seen = conform(&vault.url(), vault.root_token(), Version::Newest).await;
    let rows: BTreeSet<_> = seen.iter().map(|seen| &seen.row).collect();
    assert_eq!(rows.len(), seen.len(), "each row stands once");
    // A connection may be closed under a body that is too long.
    assert!(seen.iter().filter(|seen| seen.answer.is_none()).count() <= 1);
}

#[tokio::test(flavor = "multi_thread")]
#[should_panic(expected = "does not answer as V1_1_5")]
async fn the_table_tells_one_vault_from_another() {
    let vault = DevVault::start().await.unwrap();
    conform(&vault.url(), vault.root_token(), Version::V1_1_5).await;
}

/// A server with transit and the key `k`, and a client with its root token.
async fn vault_with_key() -> (DevVault, Client) {
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    let client = Client::new(&vault);
    (vault, client)
}

fn b64(text: &str) -> String {
    STANDARD.encode(text)
}

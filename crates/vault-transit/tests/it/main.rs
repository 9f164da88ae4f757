//! Over the embedded Vault, and over servers that answer what no Vault does.
// Clippy takes only functions marked `#[test]` for tests, and not what they call.
#![allow(clippy::unwrap_used, clippy::panic)]

mod certificates;
mod faults;
mod foreign;
mod logins;
mod provider;
mod shared;
mod tls;

use dev_vault::DevVault;
use serde_json::json;
use shared::{Vault, credentials, keys, permissions};

const ROOT: &str = "root-token-of-the-test";

async fn start() -> Vault {
    let server = DevVault::builder().root_token(ROOT).start().await.unwrap();
    let url = server.url();
    Vault::new(&url, ROOT, server)
}

#[tokio::test(flavor = "multi_thread")]
async fn contract() {
    shared::contract(&start().await).await;
    provider::contract(&start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_least_privilege_is_enough() {
    permissions::the_least_privilege_is_enough(&start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn each_missing_permission_is_named() {
    permissions::each_missing_permission_is_named(&start().await).await;
    permissions::a_permission_lost_later_is_named(&start().await).await;
    permissions::a_token_that_may_not_renew_itself_ends(&start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_tokens_are_named() {
    credentials::bad_tokens_are_named(&start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn logins() {
    let vault = start().await;
    credentials::a_login_that_is_refused_says_so(&vault).await;
    credentials::a_login_outlives_its_tokens(&vault).await;
    credentials::the_end_of_a_secret_id_is_told_before_a_login_is_refused(&vault).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn checks() {
    permissions::a_check_tells_all(&start().await, ROOT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn token_files() {
    credentials::a_token_file_is_read_when_it_changes(&start().await).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_life_of_a_token_is_told() {
    let vault = start().await;
    credentials::the_life_of_a_token_is_told(&vault).await;
    credentials::the_root_token_is_warned_of(&vault, ROOT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_can_not_serve() {
    let vault = start().await;
    keys::what_is_missing_is_named(&vault, ROOT).await;
    keys::another_engine_is_told(&vault, ROOT, &[("sys", None), ("auth/token", None)]).await;
    keys::a_key_that_goes_between_read_and_encrypt_is_not_made(&vault).await;
    keys::flags_of_the_key_are_warned_of(&vault, ROOT).await;
    keys::an_unfit_key_is_refused(&vault, ROOT, json!({ "type": "ed25519" })).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn transit_may_be_mounted_anywhere() {
    keys::transit_may_be_mounted_anywhere(&start().await, ROOT).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sealed_vault_has_its_own_words() {
    keys::a_sealed_vault_has_its_own_words(&start().await, ROOT).await;
}

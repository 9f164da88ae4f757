use super::*;

#[tokio::test]
async fn health_and_seal_status_need_no_token() {
    let vault = DevVault::start().await.unwrap();
    let client = Client::new(&vault).without_token();
    let health = client.get("sys/health").await;
    assert_eq!(health.status, 200);
    assert_eq!(
        (&health.body["initialized"], &health.body["sealed"]),
        (&json!(true), &json!(false))
    );
    assert_eq!(
        (&health.body["standby"], &health.body["version"]),
        (&json!(false), &json!("1.21.4"))
    );
    let status = client.get("sys/seal-status").await;
    assert_eq!(
        (&status.body["sealed"], &status.body["t"], &status.body["n"]),
        (&json!(false), &json!(1), &json!(1))
    );
    assert_eq!(client.get("sys/init").await.body, json!({ "initialized": true }));
}

#[tokio::test]
async fn a_sealed_vault_does_nothing_until_it_is_unsealed() {
    let (vault, client) = vault_with_key().await;
    let body = json!({ "plaintext": b64("x") });
    let sealed = client.post("transit/encrypt/k", body.clone()).await;
    let sealed = json!({ "ciphertext": sealed.data()["ciphertext"] });
    let put = client.request("PUT", "sys/seal");
    assert_eq!(Client::send(put).await.status, 204);
    for client in [&client, &client.with_token("bad"), &client.without_token()] {
        assert_refused(
            &client.post("transit/encrypt/k", body.clone()).await,
            503,
            "Vault is sealed",
        );
        assert_refused(&client.get("auth/token/lookup-self").await, 503, "Vault is sealed");
    }
    let health = client.get("sys/health").await;
    assert_eq!((health.status, &health.body["sealed"]), (503, &json!(true)));
    assert_eq!(client.get("sys/seal-status").await.body["sealed"], true);

    let client = client.without_token();
    let wrong = client.post("sys/unseal", json!({ "key": b64("wrong") })).await;
    let (status, words) = wrong.refusal();
    assert_eq!(status, 400);
    assert!(words.contains("invalid key"), "{words}");
    assert_eq!(client.get("sys/seal-status").await.body["sealed"], true);
    let opened = client.post("sys/unseal", json!({ "key": vault.unseal_key() })).await;
    assert_eq!((opened.status, &opened.body["sealed"]), (200, &json!(false)));
    let opened = Client::new(&vault).post("transit/decrypt/k", sealed).await;
    assert_eq!(opened.data()["plaintext"], b64("x"));
}

#[tokio::test]
async fn one_that_is_not_initialized_answers_501() {
    let vault = DevVault::builder().not_initialized().start().await.unwrap();
    let client = Client::new(&vault).with_token("any");
    let health = client.get("sys/health").await;
    assert_eq!((health.status, &health.body["initialized"]), (501, &json!(false)));
    assert_eq!(client.get("sys/init").await.body, json!({ "initialized": false }));
    assert_refused(&client.get("transit/keys/k").await, 503, "Vault is sealed");
}

#[tokio::test]
async fn mounts_are_listed_and_guarded() {
    let (_vault, client) = vault_with_key().await;
    let mounts = client.get("sys/mounts").await;
    assert_eq!(mounts.data()["transit/"]["type"], "transit");
    assert_eq!(mounts.body["transit/"]["type"], "transit", "old clients look beside the data");
    let transit = json!({ "type": "transit" });
    for (path, body, words) in [
        ("transit", transit.clone(), "path is already in use at transit/"),
        ("transit/more", transit.clone(), "path is already in use at transit/"),
        ("sys", transit.clone(), "cannot mount \"sys/\""),
        ("x", json!({}), "backend type must be specified as a string"),
        (
            "x",
            json!({ "type": "kv" }),
            "secrets engine \"kv\" is not supported by this development server, which has transit only",
        ),
    ] {
        assert_refused(&client.post(&format!("sys/mounts/{path}"), body).await, 400, words);
    }
    assert_eq!(client.delete("sys/mounts/transit").await.status, 204);
    assert_eq!(client.get("transit/keys/k").await.status, 404);
    client.post("sys/mounts/transit", transit).await;
    assert_refused(&client.get("transit/keys/k").await, 404, "");
}

#[tokio::test]
async fn token_auth_is_on_already() {
    let (_vault, client) = vault_with_key().await;
    let auth = client.get("sys/auth").await;
    assert_eq!(auth.data()["token/"]["type"], "token");
    assert_eq!(auth.body["token/"]["description"], "token based credentials");
    let again = client.post("sys/auth/token", json!({ "type": "token" })).await;
    assert_refused(&again, 400, "path is already in use at token/");
}

#[tokio::test]
async fn sudo_paths_want_sudo() {
    let (_vault, root) = vault_with_key().await;
    let all = |more: &str| {
        format!("path \"sys/*\" {{ capabilities = [\"create\", \"update\", \"read\"{more}] }}")
    };
    let client = root.with_policy("plain", &all("")).await;
    assert_refused(&client.post("sys/seal", json!({})).await, 403, DENIED);
    assert_refused(
        &client.post("sys/auth/approle", json!({ "type": "approle" })).await,
        403,
        DENIED,
    );
    let client = root.with_policy("super", &all(", \"sudo\"")).await;
    assert_eq!(client.post("sys/auth/approle", json!({ "type": "approle" })).await.status, 204);
    assert_eq!(client.post("sys/seal", json!({})).await.status, 204);
}

#[tokio::test]
async fn wrong_methods_and_bodies() {
    let (_vault, client) = vault_with_key().await;
    let wrong = "1 error occurred:\n\t* unsupported operation\n\n";
    assert_refused(&client.get("transit/encrypt/k").await, 405, wrong);
    assert_eq!(client.get("transit/elsewhere").await.status, 404);
    assert_eq!(client.post_raw("transit/encrypt/k", "{not json").await.status, 500);
    assert_eq!(client.post_raw("transit/encrypt/k", "[1]").await.status, 400);
    let nothing = client.post_raw("transit/encrypt/k", "").await;
    assert_refused(&nothing, 400, "missing plaintext to encrypt");
}

#[tokio::test]
async fn a_namespace_is_ignored() {
    let (_vault, client) = vault_with_key().await;
    let request = client.request("GET", "transit/keys/k").header("X-Vault-Namespace", "foo");
    assert_eq!(Client::send(request).await.status, 200);
}

#[tokio::test]
async fn a_body_above_32_mib_is_refused() {
    let (_vault, client) = vault_with_key().await;
    // This one is read, and refused for what it says.
    let body = |mib: usize| format!("{{\"plaintext\": \"{}\"}}", "!".repeat(mib << 20));
    assert_eq!(client.post_raw("transit/encrypt/k", body(31)).await.status, 400);
    // As Vault, it may close the connection before all of the body is sent.
    match client.request("POST", "transit/encrypt/k").body(body(34)).send().await {
        Ok(response) => assert_eq!(response.status(), 500),
        Err(e) => assert!(e.is_request(), "{e:?}"),
    }
}

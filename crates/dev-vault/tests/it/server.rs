use std::{fs, net::SocketAddr, os::unix::fs::PermissionsExt, time::Duration};

use super::*;

#[tokio::test]
async fn the_banner_warns_and_tells_how_to_use_it() {
    let vault = DevVault::builder().root_token("my-root").start().await.unwrap();
    let banner = vault.banner();
    for part in ["WARNING", "NOT secure", &vault.url(), "my-root", vault.unseal_key()] {
        assert!(banner.contains(part), "{part} in {banner}");
    }
    assert!(!format!("{vault:?}").contains("my-root"));
}

#[tokio::test]
async fn a_stopped_server_leaves_its_port_and_its_connections() {
    let (vault, client) = vault_with_key().await;
    let address = vault.address();
    // The connection of this request is kept alive by the client.
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    vault.stop().await;
    client.request("GET", "transit/keys/k").send().await.unwrap_err();
    let again = DevVault::builder().listen(address).root_token("root").start().await.unwrap();
    let health = Client::new(&again).get("sys/health").await;
    assert_eq!(health.status, 200);
    drop(again);
    std::net::TcpListener::bind(address).unwrap();
}

#[test]
fn it_needs_no_runtime_of_its_caller() {
    let vault = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap()
        .block_on(DevVault::builder().transit_key("k").start())
        .unwrap();
    std::net::TcpStream::connect(vault.address()).unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error() {
    let vault = DevVault::start().await.unwrap();
    let error = DevVault::builder().listen(vault.address()).start().await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
}

#[tokio::test]
async fn an_administrator_in_process_is_not_struck_and_not_counted() {
    let vault = DevVault::builder().transit_key("k").start().await.unwrap();
    vault.faults().inject(dev_vault::Fault::Drop);
    let key = vault.admin("POST", "transit/keys/k/rotate", json!({})).unwrap();
    assert_eq!(key["data"]["latest_version"], 2);
    let error = vault.admin("GET", "transit/keys/none", Value::Null).unwrap_err();
    assert_eq!(error.status, 404);
    let error = vault.admin("BREW", "tea", Value::Null).unwrap_err();
    assert_eq!(error.status, 405);
    assert!(vault.requests().all().is_empty());
}

#[tokio::test]
async fn all_of_it_outlives_a_restart_in_its_state_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault.json");
    let start = async |address: SocketAddr| {
        DevVault::builder()
            .listen(address)
            .state_file(&file)
            .transit_key("k")
            .start()
            .await
            .unwrap()
    };
    let vault = start(([127, 0, 0, 1], 0).into()).await;
    let (address, root_token) = (vault.address(), vault.root_token().to_owned());
    let unseal_key = vault.unseal_key().to_owned();
    assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let root = Client::new(&vault);
    root.post("transit/keys/k/rotate", json!({})).await;
    let sealed = root.post("transit/encrypt/k", json!({ "plaintext": b64("x") })).await;
    let sealed = json!({ "ciphertext": sealed.data()["ciphertext"] });
    let policy = "path \"transit/decrypt/k\" { capabilities = [\"update\"] }";
    let client = root.with_policy("opener", policy).await;
    root.post("sys/auth/approle", json!({ "type": "approle" })).await;
    root.post("auth/approle/role/r", json!({})).await;
    let role = root.get("auth/approle/role/r/role-id").await;
    let key = root.get("transit/keys/k").await.data().clone();
    vault.stop().await;

    let vault = start(address).await;
    // Without the connections of before, of which the end may not have been seen yet.
    let root = Client::new(&vault);
    let client = root.with_token(client.token.unwrap());
    assert_eq!((vault.root_token(), vault.unseal_key()), (&*root_token, &*unseal_key));
    assert_eq!(root.get("transit/keys/k").await.data(), &key);
    assert_eq!(
        client.post("transit/decrypt/k", sealed.clone()).await.data()["plaintext"],
        b64("x")
    );
    assert_eq!(root.get("auth/approle/role/r/role-id").await.data(), role.data());
    vault.stop().await;

    // Another root token takes the place of the old one.
    let vault = DevVault::builder().state_file(&file).root_token("other").start().await.unwrap();
    let other = Client::new(&vault);
    assert_eq!(other.post("transit/decrypt/k", sealed).await.data()["plaintext"], b64("x"));
    let old = other.with_token(root_token);
    assert_refused(&old.get("transit/keys/k").await, 403, BAD_TOKEN);
}

#[tokio::test]
async fn the_state_file_changes_only_when_something_did() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault.json");
    let vault = DevVault::builder().state_file(&file).transit_key("k").start().await.unwrap();
    let client = Client::new(&vault);
    let written = || fs::metadata(&file).unwrap().modified().unwrap();
    let before = written();
    tokio::time::sleep(Duration::from_millis(20)).await;
    client.post("transit/encrypt/k", json!({ "plaintext": "" })).await;
    assert_eq!(written(), before);
    client.post("transit/keys/k/rotate", json!({})).await;
    assert_ne!(written(), before);
    let files: Vec<_> = fs::read_dir(directory.path()).unwrap().collect();
    assert_eq!(files.len(), 1, "no temporary file stays: {files:?}");
}

#[tokio::test]
async fn a_damaged_state_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("vault.json");
    fs::write(&file, "{\"root_token\": 3").unwrap();
    let error = DevVault::builder().state_file(&file).start().await.unwrap_err().to_string();
    assert!(error.contains("vault.json") && error.contains("move it away"), "{error}");
    assert_eq!(fs::read_to_string(&file).unwrap(), "{\"root_token\": 3");
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_fails_the_request() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("sub").join("vault.json");
    fs::create_dir(directory.path().join("sub")).unwrap();
    let vault = DevVault::builder().state_file(&file).transit_key("k").start().await.unwrap();
    fs::remove_dir_all(directory.path().join("sub")).unwrap();
    let (status, words) =
        Client::new(&vault).post("transit/keys/k/rotate", json!({})).await.refusal();
    assert_eq!(status, 500);
    assert!(words.contains("the state file") && words.contains("cannot be written"), "{words}");
}

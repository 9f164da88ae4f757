use super::*;

/// The page's own policy, to the letter.
const PAGE: &str = "path \"transit/+/wekaio-key\" {\n\
    capabilities = [\"read\", \"create\", \"update\"]\n}\n\
    path \"transit/keys/wekaio-key\" {\ncapabilities = [\"read\"]\n}\n";

#[tokio::test]
async fn the_page_policy_allows_the_key_and_nothing_else() {
    let (_vault, root) = vault_with_key().await;
    root.post("transit/keys/wekaio-key", json!({})).await;
    let client = root.with_policy("wekaio", PAGE).await;
    let sealed = client.post("transit/encrypt/wekaio-key", json!({ "plaintext": b64("x") })).await;
    let sealed = sealed.data()["ciphertext"].clone();
    for act in ["decrypt", "rewrap"] {
        let path = format!("transit/{act}/wekaio-key");
        assert_eq!(client.post(&path, json!({ "ciphertext": sealed })).await.status, 200);
    }
    assert_eq!(client.get("transit/keys/wekaio-key").await.status, 200);
    for (method, path) in [
        ("POST", "transit/keys/wekaio-key"),
        ("POST", "transit/keys/wekaio-key/rotate"),
        ("POST", "transit/keys/wekaio-key/config"),
        ("DELETE", "transit/keys/wekaio-key"),
        ("POST", "transit/encrypt/k"),
        ("GET", "transit/keys/k"),
        ("LIST", "transit/keys"),
        ("GET", "sys/mounts"),
        ("POST", "sys/seal"),
        ("POST", "auth/token/lookup"),
        ("GET", "nowhere/at/all"),
    ] {
        let request = client.request(method, path).json(&json!({}));
        assert_refused(&Client::send(request).await, 403, DENIED);
    }
    assert_eq!(client.get("auth/token/lookup-self").await.status, 200);
    assert_eq!(client.post("auth/token/renew-self", json!({})).await.status, 200);
}

#[tokio::test]
async fn encrypt_tells_create_from_update() {
    let (_vault, root) = vault_with_key().await;
    let grant = |capabilities: &str| {
        format!("path \"transit/encrypt/*\" {{ capabilities = [{capabilities}] }}")
    };
    let update = root.with_policy("update", &grant("\"update\"")).await;
    let create = root.with_policy("create", &grant("\"create\"")).await;
    let both = root.with_policy("both", &grant("\"create\", \"update\"")).await;
    let body = json!({ "plaintext": b64("x") });
    assert_eq!(update.post("transit/encrypt/k", body.clone()).await.status, 200);
    assert_refused(&update.post("transit/encrypt/new", body.clone()).await, 403, DENIED);
    assert_refused(&root.get("transit/keys/new").await, 404, "");
    assert_refused(&create.post("transit/encrypt/k", body.clone()).await, 403, DENIED);
    assert_eq!(create.post("transit/encrypt/new", body.clone()).await.status, 200);
    assert_eq!(both.post("transit/encrypt/newer", body).await.status, 200);
    assert_eq!(root.get("transit/keys/newer").await.status, 200);
}

#[tokio::test]
async fn policies_are_written_read_listed_and_deleted() {
    let (_vault, client) = vault_with_key().await;
    assert_eq!(client.post("sys/policies/acl/wekaio", json!({ "policy": PAGE })).await.status, 204);
    let read = client.get("sys/policies/acl/wekaio").await;
    assert_eq!(read.data(), &json!({ "name": "wekaio", "policy": PAGE }));
    let read = client.get("sys/policy/wekaio").await;
    assert_eq!((&read.body["rules"], &read.data()["rules"]), (&json!(PAGE), &json!(PAGE)));

    let put = client.request("PUT", "sys/policy/old").json(&json!({ "policy": b64(PAGE) }));
    assert_eq!(Client::send(put).await.status, 204);
    assert_eq!(client.get("sys/policies/acl/old").await.data()["policy"], PAGE);
    let names = json!(["default", "old", "wekaio", "root"]);
    assert_eq!(client.list("sys/policies/acl").await.data()["keys"], names);
    assert_eq!(client.get("sys/policy").await.body["policies"], names);

    let renamed = client.post("sys/policies/acl/UPPER", json!({ "policy": PAGE })).await;
    assert_eq!(renamed.body["warnings"], json!(["policy name was converted to upper"]));
    assert_eq!(client.delete("sys/policies/acl/wekaio").await.status, 204);
    assert_refused(&client.get("sys/policies/acl/wekaio").await, 404, "");
    for (name, words) in
        [("root", "cannot delete \"root\" policy"), ("default", "cannot delete default policy")]
    {
        assert_refused(&client.delete(&format!("sys/policies/acl/{name}")).await, 400, words);
    }
    let root = client.post("sys/policies/acl/root", json!({ "policy": PAGE })).await;
    assert_refused(&root, 400, "cannot update \"root\" policy");
    let empty = client.post("sys/policies/acl/x", json!({})).await;
    assert_refused(&empty, 400, "'policy' parameter not supplied or empty");
    let wrong = json!({ "policy": "path \"a\" { capabilities = [\"raed\"] }" });
    let wrong = client.post("sys/policies/acl/x", wrong).await;
    assert_refused(&wrong, 400, "failed to parse policy: path \"a\": invalid capability \"raed\"");
}

#[tokio::test]
async fn a_changed_policy_counts_at_once() {
    let (_vault, root) = vault_with_key().await;
    let client =
        root.with_policy("p", "path \"transit/keys/k\" { capabilities = [\"read\"] }").await;
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    let denying = json!({ "policy": "path \"transit/keys/*\" { capabilities = [\"deny\"] }" });
    root.post("sys/policies/acl/p", denying).await;
    assert_refused(&client.get("transit/keys/k").await, 403, DENIED);
    root.delete("sys/policies/acl/p").await;
    assert_refused(&client.get("transit/keys/k").await, 403, DENIED);
}

#[tokio::test]
async fn capabilities_self_names_them() {
    let (_vault, root) = vault_with_key().await;
    let client = root.with_policy("wekaio", PAGE).await;
    let paths = json!({ "paths": ["transit/encrypt/wekaio-key", "transit/keys/wekaio-key", "x"] });
    let reply = client.post("sys/capabilities-self", paths.clone()).await;
    let data = reply.data();
    assert_eq!(data["transit/encrypt/wekaio-key"], json!(["create", "read", "update"]));
    assert_eq!(data["transit/keys/wekaio-key"], json!(["read"]));
    assert_eq!(data["x"], json!(["deny"]));
    assert_eq!(reply.body["x"], json!(["deny"]), "old clients look beside the data");
    let one =
        client.post("sys/capabilities-self", json!({ "path": "auth/token/renew-self" })).await;
    assert_eq!(one.data()["capabilities"], json!(["update"]));
    assert_eq!(root.post("sys/capabilities-self", paths).await.data()["x"], json!(["root"]));
    let none = client.post("sys/capabilities-self", json!({})).await;
    assert_refused(&none, 400, "paths must be supplied");

    let mut body = json!({ "token": client.token, "path": "transit/keys/wekaio-key" });
    let of_another = root.post("sys/capabilities", body.clone()).await;
    assert_eq!(of_another.data()["capabilities"], json!(["read"]));
    body["token"] = json!("none");
    assert_refused(&root.post("sys/capabilities", body).await, 400, "invalid token");
}

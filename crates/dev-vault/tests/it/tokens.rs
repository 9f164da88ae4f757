use std::time::Duration;

use super::*;

const HOUR: u64 = 3600;

fn hours(n: u64) -> Duration {
    Duration::from_secs(n * HOUR)
}

impl Client {
    async fn create(&self, body: Value) -> Reply {
        self.post("auth/token/create", body).await
    }

    /// What `lookup-self` says of the token.
    async fn me(&self) -> Value {
        self.get("auth/token/lookup-self").await.data().clone()
    }

    async fn renew(&self, increment: &str) -> Reply {
        self.post("auth/token/renew-self", json!({ "increment": increment })).await
    }

    async fn is_alive(&self) -> bool {
        let reply = self.get("auth/token/lookup-self").await;
        if reply.status != 200 {
            assert_refused(&reply, 403, BAD_TOKEN);
        }
        reply.status == 200
    }
}

#[tokio::test]
async fn only_a_living_token_is_heard() {
    let (_vault, client) = vault_with_key().await;
    assert_refused(&client.without_token().get("transit/keys/k").await, 403, "permission denied");
    for token in ["bad", "hvs.bad", "s.bad"] {
        let reply = client.with_token(token).get("transit/keys/k").await;
        assert_refused(&reply, 403, BAD_TOKEN);
    }
    let bearer = client.without_token().request("GET", "transit/keys/k");
    let bearer = bearer.bearer_auth(client.token.as_ref().unwrap());
    assert_eq!(Client::send(bearer).await.status, 200);
}

#[tokio::test]
async fn root_lives_for_ever() {
    let (vault, client) = vault_with_key().await;
    vault.advance(hours(100_000));
    let me = client.me().await;
    assert_eq!((&me["policies"], &me["ttl"]), (&json!(["root"]), &json!(0)));
    assert_eq!((&me["expire_time"], &me["renewable"]), (&Value::Null, &json!(false)));
    assert_refused(&client.renew("1h").await, 400, "lease is not renewable");
}

#[tokio::test]
async fn a_token_of_the_page_role() {
    let (vault, root) = vault_with_key().await;
    let policy = json!({ "policy": "path \"transit/keys/k\" { capabilities = [\"read\"] }" });
    root.post("sys/policies/acl/wekaio", policy).await;
    let role = json!({ "allowed_policies": "wekaio", "period": "768h" });
    assert_eq!(root.post("auth/token/roles/wekaio", role).await.status, 204);
    let made = root.post("auth/token/create/wekaio", json!({})).await;
    let auth = made.body["auth"].clone();
    let token = made.token();
    assert!(token.starts_with("hvs.") && token.len() > 90, "{token}");
    assert_eq!(auth["policies"], json!(["default", "wekaio"]));
    assert_eq!(auth["lease_duration"], 768 * HOUR);
    assert_eq!((&auth["renewable"], &auth["orphan"]), (&json!(true), &json!(false)));
    assert_eq!((&auth["token_type"], &auth["num_uses"]), (&json!("service"), &json!(0)));

    let client = root.with_token(token.clone());
    let me = client.me().await;
    assert_eq!((&me["id"], &me["accessor"]), (&json!(token), &auth["accessor"]));
    assert_eq!((&me["role"], &me["path"]), (&json!("wekaio"), &json!("auth/token/create/wekaio")));
    assert_eq!(me.get("period"), None, "the period of a role is not shown");
    assert_eq!(me["ttl"], 768 * HOUR);
    assert!(me["expire_time"].as_str().unwrap().ends_with('Z'));
    assert!(me.get("last_renewal").is_none());

    // A period starts again at each renewal.
    for _ in 0..3 {
        vault.advance(hours(700));
        assert_eq!(client.me().await["ttl"].as_u64().unwrap().div_ceil(HOUR), 68);
        assert_eq!(client.renew("10s").await.body["auth"]["lease_duration"], 768 * HOUR);
    }
    assert!(client.me().await["last_renewal_time"].is_u64());
    vault.advance(hours(768));
    assert!(!client.is_alive().await);
}

#[tokio::test]
async fn roles_are_read_listed_changed_and_deleted() {
    let (_vault, client) = vault_with_key().await;
    assert_refused(&client.list("auth/token/roles").await, 404, "");
    let role = json!({
        "allowed_policies": ["a", "b"], "token_period": "1h", "orphan": true, "renewable": false,
        "token_explicit_max_ttl": 7200,
    });
    client.post("auth/token/roles/r", role).await;
    let shown = client.get("auth/token/roles/r").await.data().clone();
    assert_eq!((&shown["token_period"], &shown["period"]), (&json!(3600), &json!(0)));
    assert_eq!((&shown["orphan"], &shown["renewable"]), (&json!(true), &json!(false)));
    assert_eq!(shown["token_explicit_max_ttl"], 7200);
    assert_eq!(client.list("auth/token/roles").await.data()["keys"], json!(["r"]));

    let both = client.post("auth/token/roles/r", json!({ "period": 1, "token_period": 2 })).await;
    let warning =
        "Both 'token_period' and deprecated 'period' value supplied, ignoring the deprecated value";
    assert_eq!(both.body["warnings"], json!([warning]));
    assert_eq!(
        client.get("auth/token/roles/r").await.data()["allowed_policies"],
        json!(["a", "b"])
    );
    assert_eq!(client.delete("auth/token/roles/r").await.status, 204);
    assert_refused(&client.get("auth/token/roles/r").await, 404, "");
    let unknown = client.post("auth/token/create/r", json!({})).await;
    assert_refused(&unknown, 400, "unknown role r");
}

#[tokio::test]
async fn a_role_shapes_its_tokens() {
    let (_vault, client) = vault_with_key().await;
    let role = json!({
        "allowed_policies": ["a", "b"], "token_period": "1h", "orphan": true, "renewable": false,
        "token_num_uses": 7,
    });
    client.post("auth/token/roles/r", role).await;
    let auth = client.post("auth/token/create/r", json!({})).await.body["auth"].clone();
    assert_eq!(auth["policies"], json!(["a", "b", "default"]));
    assert_eq!((&auth["orphan"], &auth["renewable"]), (&json!(true), &json!(false)));
    assert_eq!((&auth["lease_duration"], &auth["num_uses"]), (&json!(3600), &json!(7)));
    let body = json!({ "policies": ["a"], "no_default_policy": true });
    let auth = client.post("auth/token/create/r", body).await.body["auth"].clone();
    assert_eq!(auth["policies"], json!(["a"]));
    let other = client.post("auth/token/create/r", json!({ "policies": ["c"] })).await;
    let words = "token policies ([\"c\" \"default\"]) must be subset of the role's allowed policies ([\"a\" \"b\" \"default\"]) or glob policies ([])";
    assert_refused(&other, 400, words);
}

#[tokio::test]
async fn a_role_counts_as_it_is_at_renewal() {
    let (_vault, root) = vault_with_key().await;
    root.post("auth/token/roles/r", json!({ "allowed_policies": "a", "token_period": "1h" })).await;
    let client = root.with_token(root.post("auth/token/create/r", json!({})).await.token());
    root.post("auth/token/roles/r", json!({ "token_period": "2h" })).await;
    assert_eq!(client.renew("").await.body["auth"]["lease_duration"], 2 * HOUR);
    root.delete("auth/token/roles/r").await;
    assert_eq!(client.renew("").await.status, 500);
}

#[tokio::test]
async fn a_period_of_the_token_itself_is_shown() {
    let (_vault, root) = vault_with_key().await;
    let made = root.create(json!({ "policies": ["default"], "period": "1h" })).await;
    let me = root.with_token(made.token()).me().await;
    assert_eq!((&me["period"], &me["ttl"]), (&json!(HOUR), &json!(HOUR)));
}

#[tokio::test]
async fn a_life_without_period_ends() {
    let (vault, root) = vault_with_key().await;
    let body = json!({ "policies": ["default"], "ttl": "1h", "explicit_max_ttl": "90m" });
    let client = root.with_token(root.create(body).await.token());
    assert_eq!(client.me().await["explicit_max_ttl"], 5400);
    vault.advance(Duration::from_secs(45 * 60));
    let renewed = client.renew("1h").await;
    assert_eq!(renewed.body["auth"]["lease_duration"].as_u64().unwrap().div_ceil(60), 45);
    assert!(renewed.body["warnings"][0].as_str().unwrap().contains("capped"), "{}", renewed.body);
    vault.advance(Duration::from_secs(44 * 60));
    assert!(client.is_alive().await);
    vault.advance(Duration::from_secs(60));
    assert!(!client.is_alive().await);

    let long = root.create(json!({ "policies": ["default"], "ttl": "1000h" })).await;
    assert_eq!(long.body["auth"]["lease_duration"], 768 * HOUR);
    let warning = "TTL of \"1000h\" exceeded the effective max_ttl of \"768h\"; TTL value is capped accordingly";
    assert_eq!(long.body["warnings"], json!([warning]));
}

#[tokio::test]
async fn what_is_not_renewable_is_not_renewed() {
    let (_vault, root) = vault_with_key().await;
    let body = json!({ "policies": ["default"], "ttl": "1h", "renewable": false });
    let client = root.with_token(root.create(body).await.token());
    assert_eq!(client.me().await["renewable"], false);
    assert_refused(&client.renew("1h").await, 400, "lease is not renewable");
}

#[tokio::test]
async fn uses_are_counted() {
    let (_vault, root) = vault_with_key().await;
    let policy = "path \"transit/keys/k\" { capabilities = [\"read\"] }";
    root.post("sys/policies/acl/p", json!({ "policy": policy })).await;
    let made = root.create(json!({ "policies": ["p"], "num_uses": 3 })).await;
    let client = root.with_token(made.token());
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    assert_refused(&client.get("transit/keys/other").await, 403, DENIED);
    assert_eq!(client.get("transit/keys/k").await.status, 200);
    assert_refused(&client.get("transit/keys/k").await, 403, BAD_TOKEN);
}

#[tokio::test]
async fn revocation_takes_the_children_but_not_the_orphans() {
    let (_vault, root) = vault_with_key().await;
    let parent =
        root.with_token(root.create(json!({ "policies": ["root"], "ttl": "1h" })).await.token());
    let child = root.with_token(parent.create(json!({ "policies": ["default"] })).await.token());
    let body = json!({ "policies": ["default"], "no_parent": true });
    let orphan = root.with_token(parent.create(body).await.token());
    assert_eq!(
        (&child.me().await["orphan"], &orphan.me().await["orphan"]),
        (&json!(false), &json!(true))
    );
    let token = parent.token.clone().unwrap();
    assert_eq!(root.post("auth/token/revoke", json!({ "token": token })).await.status, 204);
    assert!(!parent.is_alive().await && !child.is_alive().await);
    assert!(orphan.is_alive().await);
    assert_eq!(orphan.post("auth/token/revoke-self", json!({})).await.status, 204);
    assert!(!orphan.is_alive().await);
}

#[tokio::test]
async fn a_child_dies_with_its_parents_time() {
    let (vault, root) = vault_with_key().await;
    let parent =
        root.with_token(root.create(json!({ "policies": ["root"], "ttl": "1h" })).await.token());
    let child = root.with_token(parent.create(json!({ "policies": ["default"] })).await.token());
    assert_eq!(child.me().await["ttl"], 768 * HOUR);
    vault.advance(hours(1));
    assert!(!child.is_alive().await);
}

#[tokio::test]
async fn another_token_is_looked_up_and_renewed_by_those_who_may() {
    let (_vault, root) = vault_with_key().await;
    let token = root.create(json!({ "policies": ["default"], "ttl": "1h" })).await.token();
    let body = json!({ "token": token });
    assert_eq!(root.post("auth/token/lookup", body.clone()).await.data()["id"], json!(token));
    assert_eq!(root.post("auth/token/renew", body.clone()).await.status, 200);
    let missing = root.post("auth/token/lookup", json!({ "token": "none" })).await;
    assert_refused(&missing, 403, "bad token");
    let itself = root.with_token(token);
    assert_refused(&itself.post("auth/token/lookup", body).await, 403, DENIED);
}

#[tokio::test]
async fn privileges_are_not_handed_up() {
    let (_vault, root) = vault_with_key().await;
    let policy = "path \"auth/token/create\" { capabilities = [\"update\"] }";
    let client = root.with_policy("maker", policy).await;
    for (body, words) in [
        (json!({ "policies": ["other"] }), "child policies must be subset of parent"),
        (json!({ "policies": ["root"] }), "child policies must be subset of parent"),
        (json!({ "period": "1h" }), "root or sudo privileges required to create periodic token"),
        (json!({ "no_parent": true }), "root or sudo privileges required to create orphan token"),
        (json!({ "id": "mine" }), "root or sudo privileges required to specify token id"),
    ] {
        assert_refused(&client.create(body).await, 400, words);
    }
    let auth = client.create(json!({})).await.body["auth"].clone();
    assert_eq!(auth["policies"], json!(["default", "maker"]));
}

#[tokio::test]
async fn odd_requests_for_tokens_are_refused() {
    let (_vault, client) = vault_with_key().await;
    let batch = "batch tokens are not supported by this development server; use type=service";
    for (body, words) in [
        (json!({ "type": "batch" }), batch),
        (json!({ "type": "foo" }), "invalid 'token_type' value"),
        (json!({ "num_uses": -1 }), "number of uses cannot be negative"),
        (json!({ "ttl": "soon" }), "time: invalid duration \"soon\""),
        (json!({ "ttl": "-5s" }), "ttl must be positive"),
        (json!({ "ttl": "9999999999h" }), "time: invalid duration \"9999999999h\""),
    ] {
        assert_refused(&client.create(body).await, 400, words);
    }
    let unknown = client.create(json!({ "policies": ["nowhere"] })).await;
    assert_eq!(unknown.body["warnings"], json!(["Policy \"nowhere\" does not exist"]));
    let named =
        client.create(json!({ "policies": ["default"], "display_name": "my token!" })).await;
    let me = client.with_token(named.token()).me().await;
    assert_eq!(me["display_name"], "token-my-token");
}

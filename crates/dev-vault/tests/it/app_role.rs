use std::time::Duration;

use super::*;

/// A server with AppRole on, a role `r`, and its role id.
async fn vault_with_role(role: Value) -> (DevVault, Client, String) {
    let (vault, client) = vault_with_key().await;
    assert_eq!(client.post("sys/auth/approle", json!({ "type": "approle" })).await.status, 204);
    let written = client.post("auth/approle/role/r", role).await;
    assert_eq!(written.status, 204, "{}", written.body);
    let id = client.get("auth/approle/role/r/role-id").await.data()["role_id"].clone();
    (vault, client, id.as_str().unwrap().to_owned())
}

impl Client {
    async fn secret_id(&self) -> String {
        let reply = self.post("auth/approle/role/r/secret-id", json!({})).await;
        reply.data()["secret_id"].as_str().unwrap().to_owned()
    }

    async fn log_in(&self, role_id: &str, secret_id: &str) -> Reply {
        let body = json!({ "role_id": role_id, "secret_id": secret_id });
        self.without_token().post("auth/approle/login", body).await
    }
}

#[tokio::test]
async fn a_login_gives_a_token_as_the_role_says() {
    let role = json!({ "token_policies": "wekaio", "token_period": "1h" });
    let (vault, client, role_id) = vault_with_role(role).await;
    let reply = client.log_in(&role_id, &client.secret_id().await).await;
    let auth = reply.body["auth"].clone();
    assert_eq!(auth["policies"], json!(["default", "wekaio"]));
    assert_eq!(auth["metadata"], json!({ "role_name": "r" }));
    assert_eq!((&auth["orphan"], &auth["renewable"]), (&json!(true), &json!(true)));
    let me = client.with_token(reply.token());
    let shown = me.get("auth/token/lookup-self").await.data().clone();
    assert_eq!((&shown["period"], &shown["path"]), (&json!(3600), &json!("auth/approle/login")));
    vault.advance(Duration::from_secs(3000));
    let renewed = me.post("auth/token/renew-self", json!({})).await;
    assert_eq!(renewed.body["auth"]["lease_duration"], 3600);
}

#[tokio::test]
async fn a_life_from_the_role_ends_at_its_maximum() {
    let role = json!({ "token_ttl": "20m", "token_max_ttl": "30m" });
    let (vault, client, role_id) = vault_with_role(role).await;
    let me = client.with_token(client.log_in(&role_id, &client.secret_id().await).await.token());
    vault.advance(Duration::from_secs(900));
    let renewed = me.post("auth/token/renew-self", json!({ "increment": "2h" })).await;
    assert_eq!(renewed.body["auth"]["lease_duration"].as_u64().unwrap().div_ceil(60), 15);
    vault.advance(Duration::from_secs(900));
    assert_refused(&me.get("auth/token/lookup-self").await, 403, BAD_TOKEN);
}

#[tokio::test]
async fn wrong_spent_expired_and_destroyed_secret_ids_are_refused() {
    let role = json!({ "secret_id_num_uses": 2, "secret_id_ttl": "10m" });
    let (vault, client, role_id) = vault_with_role(role).await;
    let wrong = "invalid role or secret ID";
    let secret_id = client.secret_id().await;
    assert_refused(&client.log_in("none", &secret_id).await, 400, wrong);
    assert_refused(&client.log_in(&role_id, "none").await, 400, wrong);
    assert_refused(&client.log_in(&role_id, "").await, 400, "missing secret_id");
    for _ in 0..2 {
        assert_eq!(client.log_in(&role_id, &secret_id).await.status, 200);
    }
    assert_refused(&client.log_in(&role_id, &secret_id).await, 400, wrong);

    let destroyed = client.secret_id().await;
    let body = json!({ "secret_id": destroyed });
    client.post("auth/approle/role/r/secret-id/destroy", body).await;
    assert_refused(&client.log_in(&role_id, &destroyed).await, 400, wrong);

    let expired = client.secret_id().await;
    vault.advance(Duration::from_secs(600));
    assert_refused(&client.log_in(&role_id, &expired).await, 400, wrong);
}

#[tokio::test]
async fn roles_are_read_listed_and_deleted() {
    let (_vault, client, role_id) = vault_with_role(json!({ "token_policies": ["a"] })).await;
    let shown = client.get("auth/approle/role/r").await.data().clone();
    assert_eq!((&shown["token_policies"], &shown["bind_secret_id"]), (&json!(["a"]), &json!(true)));
    assert_eq!(client.list("auth/approle/role").await.data()["keys"], json!(["r"]));
    client.post("auth/approle/role/r/role-id", json!({ "role_id": "chosen" })).await;
    let secret_id = client.secret_id().await;
    assert_eq!(client.log_in("chosen", &secret_id).await.status, 200);
    assert_refused(&client.log_in(&role_id, &secret_id).await, 400, "invalid role or secret ID");
    assert_eq!(client.delete("auth/approle/role/r").await.status, 204);
    assert_refused(&client.get("auth/approle/role/r").await, 404, "");
    let missing = client.post("auth/approle/role/r/secret-id", json!({})).await;
    assert_refused(&missing, 404, "role \"r\" does not exist");
    assert_eq!(client.delete("sys/auth/approle").await.status, 204);
    assert_refused(&client.log_in("chosen", &secret_id).await, 403, "permission denied");
}

#[tokio::test]
async fn what_is_left_of_a_secret_id_is_told_by_the_server_s_clock() {
    let (vault, client, role_id) = vault_with_role(json!({ "secret_id_ttl": "1h" })).await;
    let secret_id = client.secret_id().await;
    let body = json!({ "secret_id": secret_id });
    let look_up = async || client.post("auth/approle/role/r/secret-id/lookup", body.clone()).await;
    let made = look_up().await.data().clone();
    assert_eq!(made["creation_time"], made["last_updated_time"]);
    vault.advance(Duration::from_secs(1800));
    assert_eq!(client.log_in(&role_id, &secret_id).await.status, 200);
    let answer = client.request("POST", "auth/approle/role/r/secret-id/lookup");
    let answer = answer.body(body.to_string()).send().await.unwrap();
    let date = answer.headers()["date"].to_str().unwrap().to_owned();
    let used: Value = answer.json().await.unwrap();
    let used = &used["data"];
    assert_eq!(used["expiration_time"], made["expiration_time"]);
    let time = |text: &Value| humantime::parse_rfc3339(text.as_str().unwrap()).unwrap();
    let answered = httpdate::parse_http_date(&date).unwrap();
    let left = time(&used["expiration_time"]).duration_since(answered).unwrap();
    assert!(left.as_secs() <= 1800 && left.as_secs() > 1700, "{left:?}");
    assert!(
        time(&used["last_updated_time"])
            >= time(&used["creation_time"]) + Duration::from_secs(1800)
    );
}

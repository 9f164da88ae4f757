//! Two administrators at once, and a credential that is kept, over HTTP.

use serde_json::{Value, json};

use crate::world::{Answer, JSON, KMS, Running, World, set_vault};

/// A change that is meant for this version.
async fn change(node: &Running, if_match: &str, method: &str, body: &Value) -> Answer {
    let headers = format!("{JSON}if-match: {if_match}\r\n");
    node.ask_with(&headers, method, "/v1/kms", &body.to_string()).await
}

fn assert_changed_meanwhile(answer: &Answer) {
    assert_eq!((answer.status, &*answer.kind), (412, "application/problem+json"), "{answer:?}");
    assert_eq!(
        (&answer.body["code"], &answer.body["exit"]),
        (&json!("kms-changed"), &json!("state"))
    );
    assert!(answer.body["cure"].as_str().unwrap().contains("coffer fs kms"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_that_is_meant_for_another_version_is_refused() {
    let world = World::new();
    let node = world.start().await;
    let seen = async || {
        let answer = node.ask("GET", "/v1/kms", "").await;
        let tag = answer.header("etag").unwrap().to_owned();
        assert_eq!(tag, format!("\"{}\"", answer.body["version"].as_str().unwrap()));
        tag
    };
    let none = seen().await;
    let set = change(&node, &none, "PUT", &set_vault()).await;
    assert_eq!(set.status, 200, "{set:?}");
    let first = seen().await;
    assert_eq!(set.header("etag"), Some(&*first));
    assert_eq!(node.get("/v1/status").await["kms"]["version"], set.body["kms"]["version"]);

    assert_changed_meanwhile(&change(&node, &none, "PUT", &set_vault()).await);
    assert_changed_meanwhile(&change(&node, &none, "DELETE", &Value::Null).await);
    assert_changed_meanwhile(&change(&node, &format!("W/{first}"), "DELETE", &Value::Null).await);
    assert_eq!(seen().await, first, "nothing was changed");

    let several = format!("\"another\", {first}");
    assert_eq!(change(&node, &several, "PUT", &set_vault()).await.status, 200);
    assert_changed_meanwhile(&change(&node, &first, "PUT", &set_vault()).await);
    assert_eq!(change(&node, "*", "PUT", &set_vault()).await.status, 200);
    let bad = change(&node, "unquoted", "PUT", &set_vault()).await;
    assert_eq!((bad.status, &bad.body["code"]), (400, &json!("bad-request")), "{bad:?}");

    let last = seen().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    let begun = world.kms().hold("unwrap");
    let path = "/v1/kms?allow_downgrade=true";
    let headers = format!("if-match: {last}\r\n");
    let removed = node.ask_with(&headers, "DELETE", path, "").await;
    assert_eq!(
        (removed.status, &removed.body["change"]),
        (200, &json!("downgrading")),
        "{removed:?}"
    );
    assert_eq!(removed.header("etag"), Some(&*none));
    // Also while the same one is under way.
    assert_changed_meanwhile(&node.ask_with(&headers, "DELETE", path, "").await);
    drop(begun);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_without_a_token_keeps_the_stored_one_at_its_origin() {
    let world = World::new();
    let node = world.start().await;
    let without = |url: &str, key: &str| json!({"base_url": url, "master_key": key});
    let refused = node.refused(400, "PUT", "/v1/kms", &without(KMS, "k")).await;
    assert_eq!((&refused["code"], &refused["exit"]), (&json!("invalid"), &json!("usage")));
    node.ok("PUT", "/v1/kms", &set_vault()).await;

    let kept = node.ok("PUT", "/v1/kms", &without(KMS, "k")).await;
    assert_eq!(kept["kms"]["configured"]["credential_set"], true, "{kept}");
    let elsewhere = "https://elsewhere.example";
    let refused = node.refused(400, "PUT", "/v1/kms", &without(elsewhere, "k")).await;
    assert_eq!(refused["code"], "invalid");
    assert!(refused["detail"].as_str().unwrap().contains("origin"), "{refused}");
    assert!(refused["cure"].as_str().unwrap().contains("give a token"), "{refused}");
    assert_eq!(world.kms_at(elsewhere).asked("lookup"), 0);
    node.stop().await;

    let node = world.start().await;
    assert_eq!(node.get("/v1/kms").await["configured"]["problem"], Value::Null);
    node.stop().await;
}

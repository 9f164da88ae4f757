//! Faults out of a seed, and what happens to the server itself.

use dev_vault::{Event, Fault, FaultPlan};

use super::*;

const KEY: &str = "transit/keys/k";

fn key() -> String {
    KEY.to_owned()
}

/// What 60 requests meet.
async fn day(vault: &DevVault, plan: FaultPlan) -> Vec<Option<u16>> {
    let client = Client::new(vault);
    vault.faults().follow(plan);
    let mut met = Vec::new();
    for _ in 0..60 {
        let answer = client.request("GET", KEY).send().await;
        met.push(answer.ok().map(|answer| answer.status().as_u16()));
    }
    vault.faults().clear();
    met
}

#[tokio::test]
async fn the_same_seed_and_the_same_requests_meet_the_same() {
    let plan = |seed| {
        let status =
            |status| Fault::Status { status, body: "{}".into(), headers: Default::default() };
        FaultPlan {
            percent: 40,
            faults: vec![Fault::Drop.weighing(1), status(500).weighing(2)],
            events: vec![Event::Seal.after(20).within(10), Event::Unseal.after(35).within(10)],
            ..FaultPlan::seeded(seed)
        }
    };
    let (one, other) = (vault_with_key().await.0, vault_with_key().await.0);
    let seen = day(&one, plan(7)).await;
    assert_eq!(seen, day(&other, plan(7)).await, "another server");
    assert_eq!(seen, day(&one, plan(7)).await, "the same one again");
    assert_ne!(seen, day(&one, plan(8)).await);
    for status in [None, Some(200), Some(500), Some(503)] {
        assert!(seen.contains(&status), "{status:?} in {seen:?}");
    }
}

#[tokio::test]
async fn a_plan_keeps_to_its_path_and_gives_way_to_rules() {
    let (vault, client) = vault_with_key().await;
    let plan = FaultPlan {
        path: "transit/".into(),
        percent: 100,
        faults: vec![Fault::Html.weighing(1)],
        events: vec![Event::RotateKey { key: key() }.after(1)],
        ..FaultPlan::seeded(0)
    };
    vault.faults().follow(plan.clone());
    let status = Fault::Status { status: 502, body: "{}".into(), headers: Default::default() };
    vault.faults().inject(status.on("transit/").times(1));
    assert_eq!(client.get("auth/token/lookup-self").await.status, 200);
    assert_eq!(client.get(KEY).await.status, 502);
    let page = client.request("GET", KEY).send().await.unwrap();
    assert_eq!(page.headers()["content-type"], "text/html");
    assert_eq!(vault.faults().plan(), Some((plan, 2)));
    vault.faults().clear();
    assert_eq!(vault.faults().plan(), None);
    assert_eq!(client.get(KEY).await.data()["latest_version"], 2, "the event, once");
}

#[tokio::test]
async fn a_server_may_start_with_a_plan() {
    let plan =
        FaultPlan { percent: 100, faults: vec![Fault::Drop.weighing(1)], ..FaultPlan::seeded(1) };
    let vault = DevVault::builder().transit_key("k").fault_plan(plan).start().await.unwrap();
    Client::new(&vault).request("GET", KEY).send().await.unwrap_err();
}

#[tokio::test]
async fn an_event_that_cannot_happen_is_told() {
    let (vault, client) = vault_with_key().await;
    for (event, words) in [
        (Event::RotateKey { key: "transit/keys/none".into() }, "key not found"),
        (Event::DeleteKey { key: "transit/keys/none".into() }, "there is no transit/keys/none"),
        (Event::RecreateKey { key: "kv/keys/k".into() }, "no path of a key"),
        (Event::RecreateKey { key: "k".into() }, "no path of a key"),
    ] {
        let refused = vault.happen(&event).unwrap_err();
        assert!(refused.status == 400 && refused.to_string().contains(words), "{refused}");
        let plan = FaultPlan { percent: 0, events: vec![event.after(0)], ..FaultPlan::seeded(0) };
        vault.faults().follow(plan);
        let (status, said) = client.get(KEY).await.refusal();
        assert!(status == 500 && said.contains("fault plan") && said.contains(words), "{said}");
        assert_eq!(client.get(KEY).await.status, 200);
    }
    let bare = DevVault::builder().not_initialized().start().await.unwrap();
    assert_eq!(bare.happen(&Event::Unseal).unwrap_err().status, 400);
}

#[tokio::test]
async fn keys_and_seal_change_under_their_users() {
    let (vault, client) = vault_with_key().await;
    let encrypted = client.post("transit/encrypt/k", json!({ "plaintext": b64("x") })).await;
    let sealed = json!({ "ciphertext": encrypted.data()["ciphertext"] });
    let decrypted = async || client.post("transit/decrypt/k", sealed.clone()).await;

    vault.happen(&Event::Seal).unwrap();
    assert_refused(&decrypted().await, 503, "Vault is sealed");
    vault.happen(&Event::Unseal).unwrap();
    vault.happen(&Event::RotateKey { key: key() }).unwrap();
    assert_eq!(decrypted().await.data()["plaintext"], b64("x"));
    vault.happen(&Event::DeleteKey { key: key() }).unwrap();
    assert_refused(&decrypted().await, 400, "encryption key not found");
    for _ in 0..2 {
        vault.happen(&Event::RecreateKey { key: key() }).unwrap();
        assert_eq!(client.get(KEY).await.data()["latest_version"], 1);
        assert_refused(&decrypted().await, 400, "cipher: message authentication failed");
    }
}

#[tokio::test]
async fn the_clock_of_tokens_jumps_both_ways() {
    let (vault, root) = vault_with_key().await;
    let made =
        root.post("auth/token/create", json!({ "policies": ["default"], "ttl": "1h" })).await;
    let client = root.with_token(made.token());
    let me = async || client.get("auth/token/lookup-self").await;
    vault.happen(&Event::ClockJump { seconds: 3000 }).unwrap();
    assert!(me().await.data()["ttl"].as_u64().unwrap() <= 600);
    vault.happen(&Event::ClockJump { seconds: -2 * 3600 }).unwrap();
    assert!(me().await.data()["ttl"].as_u64().unwrap() > 3600);
    for far in [i64::MIN, i64::MAX] {
        vault.happen(&Event::ClockJump { seconds: far }).unwrap();
    }
    vault.happen(&Event::ClockJump { seconds: i64::MAX }).unwrap();
    assert_refused(&me().await, 403, BAD_TOKEN);
}

#[tokio::test]
async fn other_processes_order_plans_and_events_over_http() {
    let (vault, client) = vault_with_key().await;
    let plan = json!({
        "seed": 7, "percent": 100, "faults": [{ "fault": "redirect", "location": "{path}" }],
        "events": [{ "after": 1, "event": "rotate_key", "key": KEY }],
    });
    assert_eq!(client.get("dev/plan").await.data(), &json!({ "plan": null, "requests": null }));
    assert_eq!(client.post("dev/plan", plan).await.status, 204);
    client.request("GET", KEY).send().await.unwrap_err();
    let shown = client.get("dev/plan").await;
    assert_eq!(shown.data()["plan"]["faults"][0]["status"], 307);
    assert!(shown.data()["requests"].as_u64().unwrap() > 1, "{}", shown.body);
    assert_eq!(client.delete("dev/faults").await.status, 204);
    assert_eq!(client.get(KEY).await.data()["latest_version"], 2);

    assert_eq!(client.post("dev/events", json!({ "event": "seal" })).await.status, 204);
    assert_eq!(client.get("sys/health").await.status, 503);
    assert_eq!(client.post("dev/events", json!({ "event": "unseal" })).await.status, 204);
    for event in [json!({ "event": "earthquake" }), json!({ "event": "rotate_key", "key": "k" })] {
        assert_eq!(client.post("dev/events", event).await.status, 400);
    }
    assert_eq!(client.post("dev/plan", json!({ "sead": 7 })).await.status, 400);
    let other = client.with_policy("dev", "path \"dev/*\" { capabilities = [\"update\"] }").await;
    for path in ["dev/plan", "dev/events"] {
        assert_refused(&other.post(path, json!({ "event": "seal" })).await, 403, DENIED);
    }
    assert_eq!(vault.faults().plan(), None);
}

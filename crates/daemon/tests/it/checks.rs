//! What a check has found, and how long that is told.

use std::time::Duration;

use kms_core::{CheckItem, KmsError, KmsErrorKind};
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::world::{Running, World};

const ENCRYPT: &str = "the token may update transit/encrypt/k";

fn refused(code: &str, what: &str) -> CheckItem {
    CheckItem::failed(code, what, &KmsError::new(KmsErrorKind::Denied, "it is not allowed"))
}

fn passed(code: &str, what: &str) -> CheckItem {
    CheckItem::passed(code, what, "")
}

/// What a check finds while the token may not encrypt.
fn may_not_encrypt() -> Vec<CheckItem> {
    vec![
        passed("answers", "it answers"),
        passed("may-lookup-self", "it"),
        refused("may-encrypt", ENCRYPT),
    ]
}

async fn check(node: &Running) -> Value {
    node.ok("POST", "/v1/kms/check", &Value::Null).await["exit"].clone()
}

/// Whether that a check failed is told, by the status and by the metrics.
async fn is_told(node: &Running) -> bool {
    let status = node.get("/v1/status").await;
    let findings = status["kms"]["findings"].as_array().unwrap().iter();
    let told = findings.filter(|found| found["code"] == "check-failed").count() == 1;
    if status["kms"]["configured"]["problem"].is_null() {
        assert_eq!(status["kms"]["configured"]["does_all"], !told, "{status}");
    }
    let metrics = node.ask("GET", "/metrics", "").await.body;
    assert_eq!(metrics.to_string().contains("coffer_findings{code=\\\"check-failed\\\"} 1"), told);
    told
}

/// The ends of such warnings that the audit log has.
async fn recorded_ends(node: &Running) -> usize {
    let page = node.get("/v1/audit?action=kms.warning").await;
    let lines = page["lines"].as_array().unwrap().iter();
    lines.filter(|line| line["detail"] == "check-failed: it is so no more").count()
}

#[tokio::test]
async fn what_a_check_found_to_fail_is_told_until_one_finds_it_to_hold() {
    let world = World::new();
    let node = world.start_with_kms().await;
    world.kms().checks_find(may_not_encrypt());
    assert_eq!(check(&node).await, "kms-refused");
    assert!(is_told(&node).await);
    // A KMS that answers nothing, or that goes away meanwhile, does not say that it is over; nor does what is not tried.
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    assert_eq!(check(&node).await, "kms-unreachable");
    world.kms().set_down(None);
    let away = KmsError::new(KmsErrorKind::Unreachable, "it is away");
    for found in [
        vec![CheckItem::failed("may-lookup-self", "it", &away)],
        vec![CheckItem::failed("may-encrypt", ENCRYPT, &away)],
        vec![CheckItem::unknown("may-encrypt", ENCRYPT, "not asked")],
    ] {
        world.kms().checks_find(found);
        check(&node).await;
        assert!(is_told(&node).await);
    }
    node.get("/v1/kms").await;
    assert!(is_told(&node).await);
    assert_eq!(recorded_ends(&node).await, 0);
    world.kms().checks_find(vec![passed("may-encrypt", ENCRYPT)]);
    assert_eq!(check(&node).await, "done");
    node.get("/v1/kms").await;
    assert!(!is_told(&node).await);
    assert_eq!(recorded_ends(&node).await, 1);
    node.stop().await;
}

#[tokio::test]
async fn a_login_that_was_refused_is_told_until_one_is_granted() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let renewal = "the token is renewed or replaced in time";
    world.kms().checks_find(vec![refused("may-renew-self", renewal)]);
    check(&node).await;
    assert!(is_told(&node).await);
    world.kms().checks_find(vec![CheckItem::unknown("may-renew-self", renewal, "the last login")]);
    check(&node).await;
    assert!(is_told(&node).await);
    // Another credential is renewed in another way.
    world.kms().checks_find(vec![passed("may-renew-self", "the token may update renew-self")]);
    check(&node).await;
    node.get("/v1/kms").await;
    assert!(!is_told(&node).await);
    node.stop().await;
}

#[tokio::test]
async fn what_a_check_has_nothing_to_try_with_any_more_is_told_no_more() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let of_own = refused("may-encrypt", "own: the token may update transit/encrypt/own");
    world.kms().checks_find(vec![passed("may-encrypt", ENCRYPT), of_own]);
    check(&node).await;
    assert!(is_told(&node).await);
    world.kms().checks_find(vec![passed("may-encrypt", ENCRYPT)]);
    check(&node).await;
    node.get("/v1/kms").await;
    assert!(!is_told(&node).await);
    node.stop().await;
}

/// The looks see that it is refused, and that another one is not.
#[tokio::test]
async fn a_check_with_a_token_that_is_refused_says_nothing_of_its_permissions() {
    let world = World::new();
    let node = world.start_with_kms().await;
    let all = [("may-lookup-self", "it"), ("may-read-key", "it"), ("may-encrypt", ENCRYPT)];
    let all = all.map(|(code, what)| refused(code, what));
    world.kms().checks_find(all.to_vec());
    assert_eq!(check(&node).await, "kms-refused");
    assert!(!is_told(&node).await);
    // Nor does it say that they are there.
    world.kms().checks_find(may_not_encrypt());
    check(&node).await;
    world.kms().checks_find(all.to_vec());
    check(&node).await;
    assert!(is_told(&node).await);
    world.kms().checks_find(vec![passed("may-encrypt", ENCRYPT)]);
    check(&node).await;
    assert!(!is_told(&node).await);
    // One that may do something is not refused.
    let [own, _, encrypt] = all;
    world.kms().checks_find(vec![own, passed("may-read-key", "it"), encrypt]);
    check(&node).await;
    assert!(is_told(&node).await);
    node.stop().await;
}

/// What was refused is tried again now and then only, and looked at as seldom.
#[tokio::test]
async fn what_a_check_finds_to_be_over_is_seen_and_used_at_once() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.stop().await;
    // The pause has a random part, which may be short once.
    for _ in 0..3 {
        world.kms().set_down(Some(KmsErrorKind::Denied));
        let node = world.start().await;
        let problem = |status: &Value| status["kms"]["configured"]["problem"].clone();
        node.until("/v1/status", |status| problem(status)["code"] == "kms-denied").await;
        node.until("/v1/filesystems/home", |fs| fs["problem"]["code"] == "kms-denied").await;
        world.kms().set_down(None);
        let begun = Instant::now();
        assert_eq!(check(&node).await, "done");
        node.until("/v1/status", |status| problem(status).is_null()).await;
        node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        node.stop().await;
    }
}

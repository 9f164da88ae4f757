//! What an administrator is told of the life of a credential.

use std::time::Duration;

use kms_core::KmsErrorKind;
use serde_json::{Value, json};

use crate::world::{Running, World};

const LIFE: u64 = 110;

/// Lets so many seconds pass by the clock that the node waits by.
async fn pass(seconds: u64) {
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(seconds)).await;
    tokio::time::resume();
}

async fn metrics(node: &Running) -> String {
    node.ask("GET", "/metrics", "").await.body.as_str().unwrap().to_owned()
}

/// How long the token lives, which the warning of it tells too.
fn left(kms: &Value) -> u64 {
    let left = kms["configured"]["credential"]["seconds_left"].as_u64();
    let left = left.unwrap_or_else(|| panic!("{kms}"));
    let what = kms["findings"][0]["what"].as_str().unwrap_or_else(|| panic!("{kms}"));
    assert_eq!(what, format!("the token can't be renewed; it ends in {left} seconds"), "{kms}");
    left
}

#[tokio::test]
async fn what_is_left_is_told_by_the_clock_and_not_as_it_was_looked_up() {
    let world = World::new();
    world.kms().let_token_end(Duration::from_secs(LIFE));
    let node = world.start_with_kms().await;
    left(&node.get("/v1/kms").await);
    let looks = world.kms().asked("lookup");
    pass(3).await;
    let before = left(&node.get("/v1/status").await["kms"]);
    pass(5).await;
    let after = left(&node.get("/v1/status").await["kms"]);
    assert!(after <= before - 5, "{before} {after}");
    assert!(world.kms().asked("lookup") <= looks + 2, "what was looked up is not that young");
    node.stop().await;
}

#[tokio::test]
async fn while_the_kms_is_away_the_life_of_the_token_is_counted_down() {
    let world = World::new();
    world.kms().let_token_end(Duration::from_secs(LIFE));
    let node = world.start_with_kms().await;
    left(&node.get("/v1/kms").await);
    world.kms().set_down(Some(KmsErrorKind::Unreachable));
    let shown = node.get("/v1/kms").await;
    assert_eq!(shown["configured"]["problem"]["code"], "kms-unreachable", "{shown}");
    let before = left(&shown);
    pass(30).await;
    let status = node.get("/v1/status").await;
    assert!(left(&status["kms"]) <= before - 30, "{status}");
    let told = status["kms"]["configured"]["credential"]["told_seconds_ago"].as_u64();
    assert!(told >= Some(30), "{status}");
    let shown = metrics(&node).await;
    let line = shown.lines().find_map(|line| line.strip_prefix("coffer_token_seconds_left "));
    let told = line.unwrap_or_else(|| panic!("{shown}")).parse::<u64>().unwrap();
    assert!(told <= before - 30, "{told}");
    for line in [
        "coffer_kms_up 0\n",
        "coffer_token_renewed_for_ever 0\n",
        "coffer_findings{code=\"token-not-renewable\"} 1\n",
    ] {
        assert!(shown.contains(line), "{line} {shown}");
    }
    // A token that the KMS refuses has no life left that could be told.
    world.kms().set_down(Some(KmsErrorKind::Denied));
    let shown = node.get("/v1/kms").await;
    assert_eq!(shown["configured"]["problem"]["code"], "kms-denied", "{shown}");
    assert!(shown["configured"]["credential"].is_null(), "{shown}");
    assert!(!metrics(&node).await.contains("coffer_token_seconds_left "));
    node.stop().await;
}

/// What a KMS refuses is tried again now and then only.
#[tokio::test]
async fn with_another_credential_what_was_refused_is_tried_at_once() {
    let world = World::new();
    let node = world.start_with_kms().await;
    node.post("/v1/filesystems", &json!({"name": "home"})).await;
    node.stop().await;
    // The pause has a random part, which may be short once.
    for _ in 0..3 {
        world.kms().set_down(Some(KmsErrorKind::Denied));
        let node = world.start().await;
        let refused = |kms: &Value| kms["configured"]["problem"]["code"] == "kms-denied";
        node.until("/v1/kms", refused).await;
        node.until("/v1/filesystems/home", |fs| fs["problem"]["code"] == "kms-denied").await;
        world.kms().replace_credential();
        let begun = tokio::time::Instant::now();
        pass(6).await;
        node.until("/v1/filesystems/home", |fs| fs["state"] == "unlocked").await;
        node.until("/v1/status", |status| status["kms"]["configured"]["problem"].is_null()).await;
        assert!(begun.elapsed() < Duration::from_secs(15), "{:?}", begun.elapsed());
        node.stop().await;
    }
}

/// By seconds, with no request more; also while the KMS can't be asked.
#[tokio::test]
async fn a_credential_that_can_not_be_read_here_is_told_without_the_kms() {
    for down in [None, Some(KmsErrorKind::Unreachable)] {
        let world = World::new();
        let node = world.start_with_kms().await;
        let codes = async || {
            let status = node.get("/v1/status").await;
            let findings = status["kms"]["findings"].as_array().unwrap().iter();
            findings.map(|found| found["code"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
        };
        let recorded = async || {
            let page = node.get("/v1/audit?action=kms.warning").await;
            let lines = page["lines"].as_array().unwrap().iter();
            let of_it =
                |line: &&Value| line["detail"].to_string().contains("token-file-unreadable");
            let told = |line: &Value| line["outcome"].as_str().unwrap().to_owned();
            lines.filter(of_it).map(told).collect::<Vec<_>>()
        };
        world.kms().set_down(down);
        node.get("/v1/kms").await;
        let before = world.kms().asked("lookup") + world.kms().asked("read");
        world.kms().set_unread(Some("it is gone"));
        pass(6).await;
        assert_eq!(codes().await, ["token-file-unreadable"]);
        assert_eq!(recorded().await, ["begun"]);
        assert!(
            metrics(&node).await.contains("coffer_findings{code=\"token-file-unreadable\"} 1\n")
        );
        let asked = world.kms().asked("lookup") + world.kms().asked("read") - before;
        assert_eq!(asked, 0, "{down:?}");
        world.kms().set_unread(None);
        pass(6).await;
        assert_eq!(codes().await, [""; 0]);
        let mut told = recorded().await;
        told.sort();
        assert_eq!(told, ["begun", "done"]);
        node.stop().await;
    }
}

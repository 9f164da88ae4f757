//! What an administrator is told of the life of a credential.

use std::time::Duration;

use kms_core::KmsErrorKind;
use serde_json::Value;

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

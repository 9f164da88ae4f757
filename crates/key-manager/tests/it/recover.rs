//! A store that is lost, and rebuilt from the backing directories.

use std::path::PathBuf;

use key_manager::{Error, rebuild};
use kms_core::KeyEnvelope;
use testkit::clock::ManualClock;
use testkit::fake_store::FakeStore;

use crate::world::{Acts, World, name};

fn found(world: &World) -> Vec<(PathBuf, KeyEnvelope)> {
    world.headers.files.lock().unwrap().clone().into_iter().collect()
}

#[tokio::test]
async fn everything_but_the_token_comes_back() {
    let mut world = World::new();
    let node = world.node().await;
    node.create("local").await.unwrap();
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.kms.server("http://a").rotate();
    node.rewrap().await.unwrap();
    let before = (node.bytes("local").await, node.bytes("x").await);
    drop(node);

    world.store = FakeStore::default();
    let recovered = rebuild(&world.store, &ManualClock::default(), found(&world)).await.unwrap();
    assert_eq!(recovered.filesystems.len(), 2);
    assert_eq!(recovered.kms.unwrap().address, "http://a");

    let node = world.node().await;
    let set = node.set("http://a").await.unwrap();
    assert!(set.updated && set.job.is_none());
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!((node.bytes("local").await, node.bytes("x").await), before);
    let exposed: Vec<_> =
        node.filesystem_statuses().await.unwrap().iter().map(|s| s.exposed).collect();
    assert_eq!(exposed, [true, false], "what was exposed stays so");
}

#[tokio::test]
async fn a_store_with_records_is_not_touched() {
    let world = World::new();
    world.node().await.create("x").await.unwrap();
    let again = rebuild(&world.store, &ManualClock::default(), found(&world)).await;
    assert!(matches!(again, Err(Error::Exists { .. })));
}

#[tokio::test]
async fn clashes_newer_formats_and_copies_are_named() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    let good = world.headers.at("/backing/x");
    let newer = KeyEnvelope { format: 9, ..good.clone() };
    let odd = KeyEnvelope { filesystem: "../../etc".into(), ..good.clone() };
    let store = FakeStore::default();
    let found = vec![
        ("/backing/x".into(), good.clone()),
        ("/backing/x".into(), good.clone()),
        ("/copy/x".into(), good),
        ("/newer".into(), newer),
        ("/odd".into(), odd),
    ];
    let recovered = rebuild(&store, &ManualClock::default(), found).await.unwrap();
    assert_eq!(recovered.filesystems.len(), 3);
    assert_eq!(recovered.filesystems[0].0, name("x"));
    assert_eq!(recovered.renamed.len(), 2);
    assert_eq!(recovered.left_out.len(), 1);
    assert!(recovered.left_out[0].1.contains("newer"));
}

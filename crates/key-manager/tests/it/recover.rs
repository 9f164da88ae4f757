//! A store that is lost, and rebuilt from the backing directories.

use std::path::PathBuf;

use key_manager::{Error, rebuild};
use kms_core::{KeyEnvelope, KeyStore as _, KmsErrorKind};
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
async fn what_lay_under_local_wrapping_moves_to_the_kms_that_is_set() {
    let mut world = World::new();
    world.node().await.create("local").await.unwrap();
    world.store = FakeStore::default();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), found(&world)).await.unwrap();

    let node = world.node().await;
    assert!(node.set("http://a").await.unwrap().job.is_some());
    assert!(node.unlock_all().await.unwrap().is_empty());
    let statuses = node.filesystem_statuses().await.unwrap();
    assert!(statuses.iter().all(|s| s.wrapped_by.as_ref().unwrap().address == "http://a"));
    assert_eq!(world.local.keys(), 0);
}

#[tokio::test]
async fn a_damaged_copy_keeps_no_kms_out() {
    for address in ["http://a", "http://new-name-of-a"] {
        let mut world = World::new();
        let node = world.node().await;
        node.set("http://a").await.unwrap();
        world.kms.alias("http://new-name-of-a", &world.kms.server("http://a"));
        for fs in ["x", "y"] {
            node.create(fs).await.unwrap();
        }
        drop(node);
        let mut found = found(&world);
        let (_, damaged) = found.iter_mut().find(|(_, e)| e.filesystem == "y").unwrap();
        let text = &mut damaged.wrapped.ciphertext.text;
        text.truncate(text.len() - 2);
        world.store = FakeStore::default();
        rebuild(&world.store, &ManualClock::default(), found).await.unwrap();

        let node = world.node().await;
        let set = node.set(address).await.unwrap();
        assert!(set.updated, "{address}");
        let locked = node.unlock_all().await.unwrap();
        assert_eq!(locked.iter().map(|(fs, _)| fs.as_str()).collect::<Vec<_>>(), ["y"]);
        node.bytes("x").await;
    }
}

#[tokio::test]
async fn another_kms_than_the_one_that_wrapped_is_refused_by_name() {
    let mut world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    let found = found(&world);
    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), found).await.unwrap();
    world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
    let Error::NotAll { why, .. } = world.node().await.set("http://b").await.unwrap_err() else {
        panic!("x can't go along");
    };
    assert!(why.contains("x, wrapped by") && why.contains("http://a"), "{why}");
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

#[tokio::test]
async fn a_key_under_local_wrapping_is_exposed_whatever_its_copies_say() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    let mut unmarked = world.headers.at("/backing/x");
    unmarked.exposed = false;
    let store = FakeStore::default();
    let found = vec![("/backing/x".into(), unmarked)];
    rebuild(&store, &ManualClock::default(), found).await.unwrap();
    let page = store.list("key/", None, 9).await.unwrap();
    let entry: serde_json::Value = serde_json::from_slice(&page.records[0].value).unwrap();
    assert_eq!(entry["exposed"], true);
}

#[tokio::test]
async fn a_revision_that_no_key_comes_to_is_left_out() {
    let world = World::new();
    world.node().await.create("x").await.unwrap();
    let forged = KeyEnvelope { revision: u64::MAX, ..world.headers.at("/backing/x") };
    let store = FakeStore::default();
    let found = vec![("/backing/x".into(), forged)];
    let recovered = rebuild(&store, &ManualClock::default(), found).await.unwrap();
    assert!(recovered.filesystems.is_empty());
    assert!(recovered.left_out[0].1.contains("forged"), "{:?}", recovered.left_out);
}

#[tokio::test]
async fn the_last_revision_is_refused_at_a_rewrap_and_the_others_go_on() {
    let mut world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("forged").await.unwrap();
    node.create("sound").await.unwrap();
    drop(node);
    world
        .headers
        .files
        .lock()
        .unwrap()
        .get_mut(std::path::Path::new("/backing/forged"))
        .unwrap()
        .revision = KeyEnvelope::MAX_REVISION;
    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), found(&world)).await.unwrap();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    world.kms.server("http://a").rotate();
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 1));
    assert!(report.failed[0].contains("coffer.key") && report.failed[0].contains("recover"));
    assert!(node.unlock_all().await.unwrap().is_empty(), "it goes on as it is");
}

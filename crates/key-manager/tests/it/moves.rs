//! Rewrap, takeover, moves between KMSs, from and to local wrapping.

use key_manager::{Error, KeyState};
use kms_core::{KeyStore as _, KeyVersion, KmsErrorKind};

use crate::world::{Acts, World, name, vault};

#[tokio::test]
async fn rewrap_moves_store_and_copies_and_keeps_the_keys() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["a", "b", "c"] {
        node.create(fs).await.unwrap();
    }
    let before = node.bytes("a").await;
    let server = world.kms.server("http://a");
    server.rotate();
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (3, 0, 3));
    for fs in node.filesystem_statuses().await.unwrap() {
        assert_eq!(fs.version, KeyVersion(2));
    }
    assert_eq!(world.headers.at("/backing/a").wrapped.ciphertext.version, KeyVersion(2));

    // A second rewrap finds nothing to do and sends no key again.
    let asked = server.asked("rewrap");
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (0, 3, 0));
    assert_eq!(server.asked("rewrap"), asked);

    // Old versions can be retired now: keys, copies and the canary are all beyond them.
    server.set_minimum(2);
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("a").await, before);
    node.create("d").await.unwrap();
}

#[tokio::test]
async fn one_filesystem_alone_can_be_rewrapped() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("a").await.unwrap();
    node.create("b").await.unwrap();
    world.kms.server("http://a").rotate();
    let job = node.start_rewrap(Some(name("b"))).await.unwrap();
    assert_eq!(node.run(job).await.unwrap().moved, 1);
    let versions: Vec<_> =
        node.filesystem_statuses().await.unwrap().iter().map(|s| s.version.0).collect();
    assert_eq!(versions, [1, 2]);
}

#[tokio::test]
async fn a_new_address_of_the_same_kms_takes_over() {
    let world = World::new();
    let node = world.node().await;
    let first = node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    let server = world.kms.server("http://old");
    world.kms.alias("http://new", &server);
    let wraps = server.asked("wrap");
    let second = node.set("http://new").await.unwrap();
    assert_eq!(second.config.id, first.config.id);
    assert_eq!(server.asked("wrap"), wraps + 2, "two canaries and no key were wrapped");
    assert_eq!(world.headers.at("/backing/x").kms.address, "http://new");
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_new_token_for_the_same_kms_needs_no_job() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let again = node.set_kms(vault("http://a")).await.unwrap();
    assert!(again.updated && again.job.is_none());
}

#[tokio::test]
async fn another_kms_takes_the_keys_over_and_the_old_one_is_forgotten() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    let before = node.bytes("x").await;
    drop(node);
    // The node has just started: keys come from the old KMS, not from memory.
    let node = world.node().await;
    let new = node.set("http://new").await.unwrap();
    assert_ne!(new.config.id, old.config.id);
    assert_eq!(world.headers.at("/backing/x").kms.address, "http://new");
    let configs = world.store.list("kms/", None, 10).await.unwrap().records;
    assert!(configs.iter().all(|r| !r.key.contains(&old.config.id.to_string())), "{configs:?}");
    world.kms.server("http://old").set_down(Some(KmsErrorKind::Unreachable));
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, before);
}

#[tokio::test]
async fn a_kms_that_can_not_take_every_key_changes_nothing() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://old").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    world.kms.server("http://old").set_down(Some(KmsErrorKind::Unreachable));
    let node = world.node().await;
    let before = world.store.list("", None, 100).await.unwrap();
    let error = node.set_kms(vault("http://new")).await.unwrap_err();
    assert!(matches!(error, Error::NotAll { failed: 1, .. }), "{error}");
    let error = node.unset_kms(true).await.unwrap_err();
    assert!(matches!(error, Error::NotAll { failed: 1, .. }), "{error}");
    assert_eq!(world.store.list("", None, 100).await.unwrap(), before);
}

#[tokio::test]
async fn from_local_to_a_kms_stays_exposed_and_erases_the_local_key() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    let before = node.bytes("x").await;
    assert_eq!(world.local.keys(), 1);
    node.set("http://a").await.unwrap();
    assert_eq!(world.local.keys(), 0);
    let envelope = world.headers.at("/backing/x");
    assert!(envelope.exposed && envelope.kms.kind == "fake");
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, before);
    assert!(node.filesystem_statuses().await.unwrap()[0].exposed);
}

#[tokio::test]
async fn a_downgrade_works_without_the_kms_and_forgets_its_token() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    node.create("y").await.unwrap();
    let report = node.downgrade().await.unwrap();
    assert_eq!((report.moved, report.copies), (2, 2));
    world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
    let records = world.store.list("", None, 100).await.unwrap().records;
    assert!(records.iter().all(|r| !String::from_utf8_lossy(&r.value).contains("the-token")));
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert!(node.filesystem_statuses().await.unwrap().iter().all(|s| s.exposed));
    assert_eq!(node.state("y").await, KeyState::Unlocked);
    assert!(node.kms_overview().await.unwrap().config.is_none());
}

#[tokio::test]
async fn a_new_master_key_under_the_old_name_takes_keys_from_memory() {
    let world = World::new();
    let node = world.node().await;
    let old = node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.kms.server("http://a").recreate();
    let new = node.set("http://a").await.unwrap();
    assert_ne!(new.config.id, old.config.id);
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_copy_that_can_not_be_written_makes_it_partly_done() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    world.kms.server("http://a").rotate();
    let node = world.manager(u64::MAX, 0);
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.copies, report.failed.len()), (1, 0, 1));
    drop(node);
    let report = world.node().await.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already, report.copies), (0, 1, 1));
}

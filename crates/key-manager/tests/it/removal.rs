//! Deletion, forgetting, and creations that are undone: what they leave, and what goes on with them.

use key_manager::{Error, Expected, KeyState};
use kms_core::KeyStore as _;
use testkit::clock::ManualClock;
use testkit::fake_store::FakeStore;

use crate::world::{Acts, World, name, rebuild};

#[tokio::test]
async fn a_deletion_that_meets_another_node_is_taken_back() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let key = node.bytes("x").await;
    world.headers.set_in_use("/backing/x", true);
    let error = node.delete_filesystem(&name("x")).await.unwrap_err();
    assert!(matches!(error, Error::Volume { .. }), "{error}");
    assert!(node.finish_removals().await.unwrap(), "nothing is left to be removed");
    node.unlock_all().await.unwrap();
    assert_eq!(node.bytes("x").await, key);
    // One that a node died over is gone on with: nobody knows how much of it is left.
    let (mut dies, x) = (world.headers.hang(), name("x"));
    tokio::select! {
        _ = node.delete_filesystem(&x) => unreachable!("it hangs"),
        () = dies.reached() => {}
    }
    world.headers.set_in_use("/backing/x", true);
    assert!(!node.finish_removals().await.unwrap());
    assert!(matches!(node.filesystem(&name("x")).await, Err(Error::Deleting { .. })));
    world.headers.set_in_use("/backing/x", false);
    assert!(node.finish_removals().await.unwrap());
    assert!(matches!(node.filesystem(&name("x")).await, Err(Error::Unknown { .. })));

    // So is one that failed.
    node.create("x").await.unwrap();
    world.headers.allow_writes(0);
    world.headers.set_in_use("/backing/x", false);
    node.delete_filesystem(&name("x")).await.unwrap_err();
    world.headers.allow_writes(u64::MAX);
    world.headers.set_in_use("/backing/x", true);
    assert!(!node.finish_removals().await.unwrap(), "what has begun is gone on with");
    world.headers.set_in_use("/backing/x", false);
    assert!(node.finish_removals().await.unwrap());
    assert!(matches!(node.filesystem(&name("x")).await, Err(Error::Unknown { .. })));
}

#[tokio::test]
async fn what_is_out_of_reach_is_not_deleted_but_forgotten_on_request() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.headers.set_away("/backing/x", true);
    let before = world.store.list("", None, 100).await.unwrap();
    let error = node.delete_filesystem(&name("x")).await.unwrap_err();
    assert!(matches!(error, Error::BackingAway { .. }), "{error}");
    assert!(error.to_string().contains("it is away") && error.cure().unwrap().contains("--forget"));
    assert_eq!(world.store.list("", None, 100).await.unwrap(), before);
    node.key(&name("x")).await.unwrap();

    let deleted = node.forget_filesystem(&name("x")).await.unwrap();
    assert!(deleted.removed.is_empty());
    assert_eq!(deleted.remaining, ["/backing/x, as it is"]);
    assert!(node.filesystems().await.unwrap().is_empty());
    assert!(world.store.list("key/", None, 9).await.unwrap().records.is_empty());
    assert!(world.headers.files.lock().unwrap().contains_key(std::path::Path::new("/backing/x")));
    node.unset_kms(false, &Expected::Whatever).await.unwrap();
}

#[tokio::test]
async fn a_deletion_that_failed_is_shown_and_gone_on_with() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["x", "y", "z"] {
        node.create(fs).await.unwrap();
    }
    world.headers.allow_writes(0);
    for fs in ["x", "y"] {
        let failed = node.delete_filesystem(&name(fs)).await.unwrap_err();
        assert!(matches!(failed, Error::Volume { .. }), "{failed}");
    }
    let statuses = node.filesystem_statuses().await.unwrap();
    assert_eq!(statuses.len(), 3);
    let KeyState::Deleting(reason) = &statuses[0].key else { panic!("{statuses:?}") };
    assert!(reason.why.contains("it stopped here"), "{reason:?}");
    assert!(reason.cure.as_ref().unwrap().contains("coffer fs delete x"), "{reason:?}");
    for refused in [node.key(&name("x")).await.err(), node.create("x").await.err()] {
        assert!(matches!(refused, Some(Error::Deleting { .. })), "{refused:?}");
    }

    // Its key holds nothing up.
    world.headers.allow_writes(u64::MAX);
    world.kms.server("http://a").rotate();
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 0));
    let current = node.in_use().await.unwrap().versions;
    assert!(current.iter().all(|count| count.version.0 == 2), "{current:?}");

    // One that is away keeps no other from going, and does not count as removed, after a restart neither.
    world.headers.set_away("/backing/x", true);
    drop(node);
    let node = world.node().await;
    assert!(!node.finish_removals().await.unwrap());
    let left = node.filesystems().await.unwrap();
    assert_eq!(left.iter().map(|fs| fs.name.as_str()).collect::<Vec<_>>(), ["x", "z"]);
    let away = node.delete_filesystem(&name("x")).await.unwrap_err();
    assert!(matches!(away, Error::BackingAway { .. }), "{away}");

    world.headers.set_away("/backing/x", false);
    assert!(node.finish_removals().await.unwrap());
    assert_eq!(node.filesystems().await.unwrap().len(), 1);
    assert_eq!(world.headers.files.lock().unwrap().len(), 1);
    node.create("x").await.unwrap();
}

#[tokio::test]
async fn a_creation_that_could_not_be_undone_is_shown_until_it_is() {
    let world = World::new();
    let node = world.node().await;
    world.headers.allow_writes(0);
    node.create("x").await.unwrap_err();
    let shown = node.filesystem_statuses().await.unwrap();
    assert!(matches!(shown[0].key, KeyState::Deleting(_)), "{shown:?}");
    assert!(matches!(node.create("x").await, Err(Error::Deleting { .. })));
    world.headers.allow_writes(u64::MAX);
    assert!(node.finish_removals().await.unwrap());
    assert!(node.filesystem_statuses().await.unwrap().is_empty());
    node.create("x").await.unwrap();
}

#[tokio::test]
async fn what_is_half_deleted_can_be_forgotten() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    world.headers.allow_writes(0);
    node.delete_filesystem(&name("x")).await.unwrap_err();
    let deleted = node.forget_filesystem(&name("x")).await.unwrap();
    assert!(deleted.removed.is_empty());
    assert_eq!(deleted.remaining, ["/backing/x, as it is"]);
    assert!(node.filesystem_statuses().await.unwrap().is_empty());
    assert_eq!(world.local.keys(), 0);
}

#[tokio::test]
async fn what_is_forgotten_out_of_reach_keeps_the_local_key_that_its_copy_may_need() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    world.headers.set_away("/backing/x", true);
    node.set("http://a").await.unwrap();
    node.forget_filesystem(&name("x")).await.unwrap();
    node.settle().await.unwrap();
    assert_eq!(world.local.keys(), 1);
}

#[tokio::test]
async fn what_is_forgotten_in_reach_lies_as_it_did_and_can_be_recovered() {
    for kms in [false, true] {
        let mut world = World::new();
        let node = world.node().await;
        if kms {
            node.set("http://a").await.unwrap();
        }
        node.create("x").await.unwrap();
        let (key, before) = (node.bytes("x").await, world.headers.at("/backing/x"));
        let forgotten = node.forget_filesystem(&name("x")).await.unwrap();
        assert_eq!(forgotten.remaining[0].contains("local key"), !kms, "{forgotten:?}");
        assert_eq!(world.headers.at("/backing/x"), before);
        assert!(node.key(&name("x")).await.is_err());
        // Nothing that comes later takes the local key along.
        node.create("y").await.unwrap();
        node.set("http://b").await.unwrap();
        node.delete_filesystem(&name("y")).await.unwrap();
        node.unset_kms(false, &Expected::Whatever).await.unwrap();
        drop(node);

        world.store = FakeStore::default();
        let found = vec![("/backing/x".into(), before)];
        rebuild(&world.store, &ManualClock::default(), found).await.unwrap();
        let node = world.node().await;
        if kms {
            node.set("http://a").await.unwrap();
        }
        node.unlock_all().await.unwrap();
        assert_eq!(node.bytes("x").await, key);
    }
}

#[tokio::test]
async fn another_filesystem_in_the_place_of_a_half_deleted_one_is_left_and_not_called_deleted() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    node.create("y").await.unwrap();
    world.headers.allow_writes(0);
    node.delete_filesystem(&name("x")).await.unwrap_err();
    world.headers.allow_writes(u64::MAX);
    let of_another = world.headers.at("/backing/y");
    world.headers.files.lock().unwrap().insert("/backing/x".into(), of_another.clone());
    let refused = node.delete_filesystem(&name("x")).await.unwrap_err();
    assert!(matches!(refused, Error::BackingAway { .. }), "{refused}");
    assert_eq!(world.headers.at("/backing/x"), of_another);
}

#[tokio::test]
async fn the_local_key_goes_with_the_last_filesystem_that_needs_it() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    node.create("y").await.unwrap();
    node.delete_filesystem(&name("x")).await.unwrap();
    assert_eq!(world.local.keys(), 1);
    node.delete_filesystem(&name("y")).await.unwrap();
    assert_eq!(world.local.keys(), 0);
    node.create("z").await.unwrap();
    drop(node);
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_create_that_fails_leaves_no_local_key() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    let of_another = world.headers.at("/backing/x");
    node.delete_filesystem(&name("x")).await.unwrap();
    world.headers.files.lock().unwrap().insert("/backing/y".into(), of_another.clone());
    assert!(matches!(node.create("y").await, Err(Error::Volume { .. })));
    assert_eq!(world.local.keys(), 0);
    assert_eq!(world.headers.at("/backing/y"), of_another);
}

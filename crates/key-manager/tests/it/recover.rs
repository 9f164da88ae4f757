//! A store that is lost, and rebuilt from the backing directories.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use key_manager::{Error, KeyManager, NewKms, Recovered};
use kms_core::{KeyEnvelope, KeyStore as _, KeyVersion, KmsErrorKind};
use testkit::clock::ManualClock;
use testkit::fake_kms::FakeProvider;
use testkit::fake_store::FakeStore;

use crate::world::{Acts, NoControl, World, name, rebuild, vault};

/// In the order of their paths.
fn found(world: &World) -> Vec<(PathBuf, KeyEnvelope)> {
    world
        .headers
        .files
        .lock()
        .unwrap()
        .clone()
        .into_iter()
        .collect::<BTreeMap<_, _>>()
        .into_iter()
        .collect()
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
}

#[tokio::test]
async fn no_local_key_of_before_is_erased() {
    let mut world = World::new();
    let node = world.node().await;
    for fs in ["forgotten", "left-out", "x"] {
        node.create(fs).await.unwrap();
    }
    node.forget_filesystem(&name("forgotten")).await.unwrap();
    drop(node);
    let all = found(&world);
    let named = all.iter().filter(|(_, envelope)| envelope.filesystem == "x").cloned().collect();
    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), named).await.unwrap();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(world.local.keys(), 1);
    // What is wrapped locally from now on has a key that goes with it, and not the one that stays.
    node.downgrade().await.unwrap();
    assert_eq!(world.local.keys(), 2);
    node.set("http://a").await.unwrap();
    assert_eq!(world.local.keys(), 1);
    drop(node);

    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), found(&world)).await.unwrap();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(world.local.keys(), 1);
}

/// Puts the filesystems of nodes that know nothing of each other into one store: one filesystem for each way to a KMS.
async fn of_several_nodes(ways: &[(&str, NewKms)], world: &mut World) -> (KeyManager, Recovered) {
    for (fs, way) in ways {
        world.store = FakeStore::default();
        let node = world.node().await;
        node.set_kms(way.clone()).await.unwrap();
        node.create(fs).await.unwrap();
    }
    world.store = FakeStore::default();
    let recovered = rebuild(&world.store, &ManualClock::default(), found(world)).await.unwrap();
    (world.node().await, recovered)
}

/// Sets the KMS, runs the move, and requires that all is open and under this one configuration, in the copies too.
async fn set_opens_all(node: &KeyManager, world: &World, new: NewKms) {
    let set = node.set_kms(new).await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    if let Some(job) = set.job {
        node.run(job).await.unwrap();
    }
    assert!(node.settle_copies().await.unwrap().is_empty());
    for (_, envelope) in found(world) {
        assert_eq!((envelope.wrapped.config_id, envelope.kms), (set.config.id, set.config.clone()));
    }
    assert_eq!(world.store.list("kms/config/", None, 9).await.unwrap().records.len(), 1);
    node.forget_keys();
    assert!(node.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn configurations_that_say_the_same_are_one() {
    let mut world = World::new();
    let ways = [("x", vault("http://a")), ("y", vault("http://a"))];
    let (node, recovered) = of_several_nodes(&ways, &mut world).await;
    let ids: BTreeSet<_> = found(&world).iter().map(|(_, e)| e.wrapped.config_id).collect();
    assert_eq!(ids.len(), 2);
    assert_eq!(recovered.others, []);
    let asked = world.kms.server("http://a").asked("wrap");
    set_opens_all(&node, &world, vault("http://a")).await;
    let probes = 2;
    assert!(world.kms.server("http://a").asked("wrap") <= asked + probes, "no key had to move");
}

#[tokio::test]
async fn several_master_keys_of_one_kms_need_one_token() {
    let other = |address: &str| NewKms { master_key: "other".into(), ..vault(address) };
    for first in [vault("http://a"), other("http://a")] {
        let mut world = World::new();
        world.kms.server("http://a");
        world.kms.server("http://a/other");
        let ways = [("x", vault("http://a")), ("y", other("http://a")), ("z", other("http://a"))];
        let (node, recovered) = of_several_nodes(&ways, &mut world).await;
        assert_eq!(recovered.kms.unwrap().master_key, "other");
        assert_eq!(recovered.others.len(), 1);
        set_opens_all(&node, &world, first).await;
    }
}

#[tokio::test]
async fn one_kms_under_two_names_is_one_even_if_no_name_leads_there_any_more() {
    for new in ["http://a", "http://b", "http://new"] {
        let mut world = World::new();
        let server = world.kms.server("http://a");
        for name in ["http://b", "http://new"] {
            world.kms.alias(name, &server);
        }
        let ways = [("x", vault("http://a")), ("y", vault("http://b")), ("z", vault("http://b"))];
        let (node, _) = of_several_nodes(&ways, &mut world).await;
        for gone in ["http://a", "http://b"].into_iter().filter(|name| *name != new) {
            let nothing = FakeProvider::default().server(gone);
            nothing.set_down(Some(KmsErrorKind::Unreachable));
            world.kms.alias(gone, &nothing);
        }
        set_opens_all(&node, &world, vault(new)).await;
    }
}

#[tokio::test]
async fn several_kms_are_given_their_tokens_one_after_the_other() {
    let mut world = World::new();
    let ways = ["http://a", "http://b", "http://c"].map(|address| (&address[7..], vault(address)));
    let (node, _) = of_several_nodes(&ways, &mut world).await;
    let mut open = 0;
    for (fs, way) in &ways {
        let set = node.set_kms(way.clone()).await.unwrap();
        assert_eq!(set.config.address, way.address);
        let locked = node.unlock_all().await.unwrap();
        node.bytes(fs).await;
        open += 1;
        assert_eq!(locked.len(), ways.len() - open, "{locked:?}");
        let moved = node.run_move(set.job.unwrap(), &NoControl).await;
        assert_eq!(moved.is_ok(), locked.is_empty(), "{moved:?}");
    }
    set_opens_all(&node, &world, vault("http://a")).await;
}

#[tokio::test]
async fn a_token_is_shown_to_no_other_place() {
    let mut world = World::new();
    let elsewhere = NewKms { settings: [("ca".into(), "mine".into())].into(), ..vault("http://a") };
    let elsewhere = NewKms { master_key: "other".into(), ..elsewhere };
    world.kms.server("http://a/other");
    let ways = [
        ("x", vault("http://a")),
        ("most", vault("http://a")),
        ("y", elsewhere),
        ("z", vault("http://b")),
    ];
    let (node, _) = of_several_nodes(&ways, &mut world).await;
    node.set_kms(vault("http://a")).await.unwrap();
    let locked = node.unlock_all().await.unwrap();
    let locked: BTreeSet<_> = locked.iter().map(|(fs, _)| fs.as_str()).collect();
    assert_eq!(locked, ["y", "z"].into());
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
    assert_eq!(recovered.filesystems[0].name, name("x"));
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
async fn what_one_master_key_is_needed_for_is_told_of_all_its_configurations() {
    let mut world = World::new();
    let server = world.kms.server("http://a");
    world.kms.alias("http://b", &server);
    for (fs, address) in [("forged", "http://b"), ("sound", "http://a")] {
        world.store = FakeStore::default();
        let node = world.node().await;
        node.set(address).await.unwrap();
        node.create(fs).await.unwrap();
        server.rotate();
    }
    let forged = std::path::Path::new("/backing/forged");
    world.headers.files.lock().unwrap().get_mut(forged).unwrap().revision =
        KeyEnvelope::MAX_REVISION;
    world.store = FakeStore::default();
    rebuild(&world.store, &ManualClock::default(), found(&world)).await.unwrap();
    let node = world.node().await;
    let set = node.set("http://a").await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    node.run_move(set.job.unwrap(), &NoControl).await.unwrap_err();
    node.settle_copies().await.unwrap();
    let in_use = node.in_use().await.unwrap();
    let configs: BTreeSet<_> = in_use.versions.iter().map(|count| count.config.id).collect();
    assert_eq!(configs.len(), 2, "{in_use:?}");
    for config in configs {
        assert_eq!(in_use.lowest_needed(config), Some(KeyVersion(1)), "{in_use:?}");
        assert_eq!(in_use.blockers(config, Some(KeyVersion(3))), ["forged"]);
    }
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

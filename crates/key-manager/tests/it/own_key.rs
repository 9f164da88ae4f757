//! Master keys that filesystems have of their own.

use std::path::Path;

use key_manager::{
    Error, Expected, FoundCopy, JobState, KeyManager, KeyState, Loss, NewCredential, NewKms,
    rebuild,
};
use kms_core::{Commit, Credential, KeyStore as _, KeyVersion, KmsConfigId, KmsErrorKind, Record};
use testkit::clock::ManualClock;
use testkit::fake_kms::FakeServer;
use testkit::fake_store::FakeStore;

use crate::world::{Acts, NoControl, World, name, vault};

/// The master key `own` of this KMS, which is another one than `key`.
fn own(world: &World, address: &str) -> FakeServer {
    world.kms.server(address);
    world.kms.server(&format!("{address}/own"))
}

/// What lies in all backing directories.
fn found(world: &World) -> Vec<FoundCopy> {
    let files = world.headers.files.lock().unwrap().clone();
    let found = |(backing, envelope)| FoundCopy { backing, envelope, previous: None };
    files.into_iter().map(found).collect()
}

/// A node on the KMS `http://a` with the filesystem `all` under `key`, and `x` and `y` under `own`.
async fn three(world: &World) -> KeyManager {
    own(world, "http://a");
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("all").await.unwrap();
    node.create_under("x", "own").await.unwrap();
    node.create_under("y", "own").await.unwrap();
    node
}

/// By name, what wraps each filesystem's key: address, master key, version; the copy in its backing directory says the same.
async fn wrapped(node: &KeyManager, world: &World) -> Vec<(String, String, u64)> {
    let mut wrapped = Vec::new();
    for fs in node.filesystem_statuses().await.unwrap() {
        let by = fs.wrapped_by.unwrap();
        let copy = world.headers.at(fs.filesystem.backing.to_str().unwrap());
        assert_eq!((&copy.kms, copy.wrapped.ciphertext.version), (&*by, fs.version));
        assert_eq!(copy.own_master_key, fs.own_master_key);
        wrapped.push((by.address.clone(), by.master_key.clone(), fs.version.0));
    }
    wrapped
}

fn on(address: &str, keys: [(&str, u64); 3]) -> Vec<(String, String, u64)> {
    keys.map(|(key, version)| (address.to_owned(), key.to_owned(), version)).into()
}

async fn records(world: &World, prefix: &str) -> Vec<Record> {
    world.store.list(prefix, None, 100).await.unwrap().records
}

fn other(address: &str) -> NewKms {
    NewKms { master_key: "other".to_owned(), ..vault(address) }
}

/// All open on a node that has just started, under one configuration for each master key.
async fn all_open_on(world: &World, expected: Vec<(String, String, u64)>) {
    let node = world.node().await;
    assert_eq!(node.unlock_all().await.unwrap(), []);
    assert_eq!(node.settle_copies().await.unwrap(), [""; 0]);
    assert_eq!(wrapped(&node, world).await, expected);
    let mut keys: Vec<_> = expected.into_iter().map(|(_, key, _)| key).collect();
    keys.dedup();
    assert_eq!(records(world, "kms/config/").await.len(), keys.len());
}

#[tokio::test]
async fn a_filesystem_hangs_on_its_own_master_key_alone() {
    let world = World::new();
    let node = three(&world).await;
    assert_eq!(wrapped(&node, &world).await, on("http://a", [("key", 1), ("own", 1), ("own", 1)]));
    assert_eq!(records(&world, "kms/config/").await.len(), 2, "it is made once");
    drop(node);
    own(&world, "http://a").delete();
    let node = world.node().await;
    let locked = node.unlock_all().await.unwrap();
    let locked: Vec<_> = locked.iter().map(|(fs, why)| (fs.as_str(), why.code.as_str())).collect();
    assert_eq!(locked, [("x", "master-key-missing"), ("y", "master-key-missing")]);
    assert_eq!(node.state("all").await, KeyState::Unlocked);
    node.create("more").await.unwrap();
}

#[tokio::test]
async fn what_can_not_have_its_own_master_key_is_not_made_and_leaves_nothing() {
    let world = World::new();
    let node = world.node().await;
    let refused = node.create_under("x", "own").await.unwrap_err();
    assert!(matches!(refused, Error::NotConfigured), "{refused}");
    assert_eq!((records(&world, "").await.len(), world.local.keys()), (0, 0));
    let server = own(&world, "http://a");
    node.set("http://a").await.unwrap();
    let before = records(&world, "").await;
    for kind in [KmsErrorKind::KeyMissing, KmsErrorKind::Denied, KmsErrorKind::Unreachable] {
        server.set_down(Some(kind));
        let refused = node.create_under("x", "own").await.unwrap_err();
        assert!(matches!(&refused, Error::Kms(e) if e.kind() == kind), "{refused}");
        assert_eq!(records(&world, "").await, before);
    }
    server.set_down(None);
    node.create_under("x", "own").await.unwrap();
}

#[tokio::test]
async fn the_one_that_is_set_can_be_its_own_and_stays_it() {
    let world = World::new();
    world.kms.server("http://a");
    world.kms.server("http://a/other");
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["all", "b"] {
        node.create(fs).await.unwrap();
    }
    node.create_under("c", "key").await.unwrap();
    assert_eq!(records(&world, "kms/config/").await.len(), 1);
    let set = node.set_kms(other("http://a")).await.unwrap();
    node.run(set.job.unwrap()).await.unwrap();
    let expected = on("http://a", [("other", 1), ("other", 1), ("key", 1)]);
    assert_eq!(wrapped(&node, &world).await, expected);
    // And it is the one for all again.
    node.set("http://a").await.unwrap();
    drop(node);
    all_open_on(&world, on("http://a", [("key", 1), ("key", 1), ("key", 1)])).await;
}

#[tokio::test]
async fn a_rewrap_brings_each_to_the_newest_version_of_its_own() {
    let world = World::new();
    let node = three(&world).await;
    let server = own(&world, "http://a");
    server.rotate();
    let job = node.start_rewrap(Some(name("x"))).await.unwrap();
    assert_eq!(node.run(job).await.unwrap().moved, 1);
    assert_eq!(wrapped(&node, &world).await, on("http://a", [("key", 1), ("own", 2), ("own", 1)]));
    server.rotate();
    world.kms.server("http://a").rotate();
    let job = node.start_rewrap(None).await.unwrap();
    let report = node.run(job).await.unwrap();
    assert_eq!((report.moved, report.copies), (3, 3));
    assert_eq!(node.job(job).await.unwrap().progress.items_total, 3);
    assert_eq!(wrapped(&node, &world).await, on("http://a", [("key", 2), ("own", 3), ("own", 3)]));

    // Keys, copies and canaries are beyond the old versions of both.
    server.set_minimum(3);
    world.kms.server("http://a").set_minimum(2);
    node.settle_copies().await.unwrap();
    let in_use = node.in_use().await.unwrap();
    for count in &in_use.versions {
        assert_eq!(in_use.lowest_needed(count.config.id), Some(count.version));
    }
    assert_eq!(in_use.versions.len(), 2);
    node.create_under("z", "own").await.unwrap();
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.already), (0, 4));
}

#[tokio::test]
async fn a_rewrap_of_the_only_one_takes_the_canary_along() {
    let world = World::new();
    let node = three(&world).await;
    node.delete_filesystem(&name("y")).await.unwrap();
    let server = own(&world, "http://a");
    server.rotate();
    let job = node.start_rewrap(Some(name("x"))).await.unwrap();
    node.run(job).await.unwrap();
    let in_use = node.in_use().await.unwrap();
    let of_own = in_use.versions.iter().filter(|count| count.config.master_key == "own");
    let of_own: Vec<_> = of_own.map(|count| (count.version.0, count.keys, count.canary)).collect();
    assert_eq!(of_own, [(2, 1, true)]);
    server.set_minimum(2);
    node.create_under("y", "own").await.unwrap();
}

#[tokio::test]
async fn where_keys_are_still_to_go_is_not_forgotten() {
    let world = World::new();
    let node = three(&world).await;
    let there = own(&world, "http://b");
    let job = node.set_kms(vault("http://b")).await.unwrap().job.unwrap();
    there.recreate();
    let report = node.run_move(job, &NoControl).await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 2));
    node.delete_filesystem(&name("all")).await.unwrap();
    node.settle_copies().await.unwrap();
    assert_eq!(records(&world, "kms/own/").await.len(), 1);
    // Both are known, and the one that they hang on opens them.
    assert_eq!(records(&world, "kms/config/").await.len(), 3);
    node.set("http://b").await.unwrap();
    drop(node);
    let node = world.node().await;
    assert_eq!(node.unlock_all().await.unwrap(), []);
    assert_eq!(records(&world, "kms/config/").await.len(), 2);
}

#[tokio::test]
async fn a_rewrap_goes_on_without_the_master_key_that_is_gone() {
    let world = World::new();
    let node = three(&world).await;
    world.kms.server("http://a").rotate();
    own(&world, "http://a").delete();
    let job = node.start_rewrap(None).await.unwrap();
    let report = node.run_move(job, &NoControl).await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 2));
    assert!(report.failed.iter().any(|why| why.starts_with("x: ")), "{report:?}");
    let job = node.job(job).await.unwrap();
    assert_eq!((job.state, job.progress.items_failed), (JobState::PartlyDone, 2));
    let refused = node.start_rewrap(Some(name("x"))).await.unwrap_err();
    assert!(matches!(&refused, Error::Kms(e) if e.kind() == KmsErrorKind::KeyMissing), "{refused}");
    // Where it is away, and not gone, all of it waits.
    own(&world, "http://a").set_down(Some(KmsErrorKind::Unreachable));
    let job = node.start_rewrap(None).await.unwrap();
    assert!(node.run_move(job, &NoControl).await.is_err());
    own(&world, "http://a").set_down(None);
    assert_eq!(node.run(job).await.unwrap().failed.len(), 0);
}

#[tokio::test]
async fn each_key_is_counted_once_when_the_master_key_goes_away_between_two_batches() {
    const BATCH: usize = 1250;
    let mut world = World::new();
    let server = own(&world, "http://a");
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create_under("x", "own").await.unwrap();
    drop(node);
    let first = world.headers.files.lock().unwrap().remove(Path::new("/backing/x")).unwrap();
    world.multiply(&first, BATCH + 2).await;
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    // What is in memory can be wrapped whatever becomes of its record.
    drop(node);
    let node = world.node().await;
    server.rotate();
    // One of the first batch does not open, and one of the second is no record.
    let page = world.store.list("key/", None, BATCH + 2).await.unwrap().records;
    let (spoilt, last) = (&page[0], page.last().unwrap());
    let mut value: serde_json::Value = serde_json::from_slice(&spoilt.value).unwrap();
    value["wrapped"]["ciphertext"]["text"] = "spoilt".into();
    let damage = Commit::new()
        .put(spoilt.key.clone(), serde_json::to_vec(&value).unwrap())
        .put(last.key.clone(), b"no record".to_vec());
    world.store.commit(damage).await.unwrap();

    let job = node.start_rewrap(None).await.unwrap();
    let mut first = server.hold("rewrap");
    let (report, ()) = tokio::join!(node.run_move(job, &NoControl), async {
        first.reached().await;
        let mut second = server.hold("rewrap");
        drop(first);
        second.reached().await;
        server.delete();
        drop(second);
    });
    let report = report.unwrap();
    assert_eq!((report.moved, report.failed.len()), (BATCH as u64 - 1, 3));
    let counted = async |job| {
        let progress = node.job(job).await.unwrap().progress;
        (progress.items_done, progress.items_failed, progress.items_total)
    };
    assert_eq!(counted(job).await, (1249, 3, 1252));

    // Gone from the start: no key is known to be where it should be.
    let job = node.start_rewrap(None).await.unwrap();
    node.run_move(job, &NoControl).await.unwrap();
    assert_eq!(counted(job).await, (0, 1252, 1252));
    server.set_down(None);
    let job = node.start_rewrap(None).await.unwrap();
    let report = node.run_move(job, &NoControl).await.unwrap();
    assert_eq!((report.moved, report.already, report.failed.len()), (1, 1249, 2));
    assert_eq!(counted(job).await, (1250, 2, 1252));
}

#[tokio::test]
async fn a_new_token_and_a_new_address_serve_all_as_they_lie() {
    let world = World::new();
    let node = three(&world).await;
    assert!(node.set("http://a").await.unwrap().job.is_none());
    for key in ["", "/own"] {
        let server = world.kms.server(&format!("http://a{key}"));
        world.kms.alias(&format!("http://new{key}"), &server);
    }
    let asked = own(&world, "http://a").asked("wrap");
    node.set("http://new").await.unwrap();
    assert!(own(&world, "http://a").asked("wrap") <= asked + 2, "canaries alone were wrapped");
    drop(node);
    all_open_on(&world, on("http://new", [("key", 1), ("own", 1), ("own", 1)])).await;
}

#[tokio::test]
async fn another_master_key_for_all_leaves_them_alone() {
    let world = World::new();
    let node = three(&world).await;
    world.kms.server("http://a/other");
    let set = node.set_kms(other("http://a")).await.unwrap();
    assert_eq!(node.run(set.job.unwrap()).await.unwrap().moved, 1);
    drop(node);
    all_open_on(&world, on("http://a", [("other", 1), ("own", 1), ("own", 1)])).await;
    // Set for all it is everybody's, and theirs still when it is not.
    let node = world.node().await;
    for (new, expected) in [("own", ["own"; 3]), ("other", ["other", "own", "own"])] {
        let new = NewKms { master_key: new.to_owned(), ..vault("http://a") };
        let set = node.set_kms(new).await.unwrap();
        assert_eq!(node.run(set.job.unwrap()).await.unwrap().moved, 1);
        let beside = expected.iter().any(|key| *key != expected[0]);
        let expected = on("http://a", expected.map(|key| (key, 1)));
        assert_eq!(wrapped(&node, &world).await, expected);
        assert_eq!(records(&world, "kms/own/").await.len(), usize::from(beside));
    }
    drop(node);
    all_open_on(&world, on("http://a", [("other", 1), ("own", 1), ("own", 1)])).await;
}

#[tokio::test]
async fn another_kms_takes_each_to_the_master_key_of_the_same_name() {
    let world = World::new();
    let node = three(&world).await;
    let there = own(&world, "http://b");
    let before = records(&world, "").await;
    for kind in [KmsErrorKind::KeyMissing, KmsErrorKind::Denied] {
        there.set_down(Some(kind));
        let refused = node.set_kms(vault("http://b")).await.unwrap_err();
        assert!(matches!(refused, Error::OwnKey { .. }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("x, y") && text.contains("\"own\""), "{text}");
        assert_eq!(refused.code(), kind.code());
        assert!(refused.cure().is_some());
        assert_eq!(records(&world, "").await, before);
    }
    there.set_down(None);
    let bytes = node.bytes("x").await;
    node.set("http://b").await.unwrap();
    for gone in ["http://a", "http://a/own"] {
        world.kms.server(gone).set_down(Some(KmsErrorKind::Unreachable));
    }
    drop(node);
    all_open_on(&world, on("http://b", [("key", 1), ("own", 1), ("own", 1)])).await;
    let node = world.node().await;
    node.unlock_all().await.unwrap();
    assert_eq!(node.bytes("x").await, bytes);
}

/// The one that can't be opened any more holds up the other, whose key is in memory; to delete both would lose both.
#[tokio::test]
async fn what_a_locked_filesystem_holds_up_moves_once_that_is_forgotten() {
    let world = World::new();
    let node = three(&world).await;
    let bytes = node.bytes("x").await;
    node.lock(&name("y")).await.unwrap();
    own(&world, "http://a").recreate();
    let configured = node.set_kms(vault("http://a")).await.unwrap();
    let [finding] = &configured.findings[..] else { panic!("{:?}", configured.findings) };
    assert!(finding.cure.contains("coffer fs delete --forget"), "{}", finding.cure);

    node.forget_filesystem(&name("y")).await.unwrap();
    node.set("http://a").await.unwrap();
    drop(node);
    let node = world.node().await;
    assert_eq!(node.unlock_all().await.unwrap(), []);
    assert_eq!(node.bytes("x").await, bytes);
}

#[tokio::test]
async fn a_master_key_that_was_made_again_takes_keys_from_memory() {
    let world = World::new();
    let node = three(&world).await;
    own(&world, "http://a").recreate();
    let overview = node.kms_overview().await.unwrap();
    let findings = overview.own[0].live.as_ref().unwrap().as_ref().unwrap().findings.clone();
    assert_eq!(findings[0].code, "master-key-replaced");
    assert_eq!(overview.live.unwrap().unwrap().findings, []);
    node.set("http://a").await.unwrap();
    drop(node);
    all_open_on(&world, on("http://a", [("key", 1), ("own", 1), ("own", 1)])).await;
}

#[tokio::test]
async fn a_new_token_that_may_not_use_it_is_refused() {
    let world = World::new();
    let node = three(&world).await;
    let before = records(&world, "").await;
    for kind in [KmsErrorKind::Denied, KmsErrorKind::Unreachable] {
        own(&world, "http://a").set_down(Some(kind));
        let refused = node.set_kms(vault("http://a")).await.unwrap_err();
        assert!(matches!(refused, Error::OwnKey { .. }) && refused.code() == kind.code());
        assert_eq!(records(&world, "").await, before);
    }
}

#[tokio::test]
async fn one_that_is_lost_keeps_no_new_token_out() {
    for gone in [true, false] {
        let world = World::new();
        drop(three(&world).await);
        let server = own(&world, "http://a");
        if gone {
            server.delete()
        } else {
            server.recreate()
        };
        let node = world.node().await;
        assert_eq!(node.unlock_all().await.unwrap().len(), 2);
        let set = node.set_kms(vault("http://a")).await.unwrap();
        let code = if gone { "master-key-missing" } else { "master-key-replaced" };
        let told = set.findings.iter().find(|finding| finding.code == code).unwrap();
        assert!(told.what.starts_with("x, y"), "{told:?}");
        assert!(set.job.is_none());
        assert_eq!(node.state("all").await, KeyState::Unlocked);
        assert_eq!(records(&world, "kms/config/").await.len(), 2);
        // Elsewhere it is not known to be lost, and must be there.
        own(&world, "http://b").delete();
        let refused = node.set_kms(vault("http://b")).await.unwrap_err();
        assert!(matches!(refused, Error::OwnKey { .. }), "{refused}");
    }
}

#[tokio::test]
async fn after_a_downgrade_each_comes_back_to_its_own() {
    let world = World::new();
    let node = three(&world).await;
    assert_eq!(node.downgrade().await.unwrap().moved, 3);
    assert_eq!(records(&world, "kms/").await.len(), 1, "only local wrapping is left");
    for fs in node.filesystem_statuses().await.unwrap() {
        assert!(fs.exposed && fs.wrapped_by.unwrap().kind == "local");
        assert_eq!(fs.own_master_key.is_some(), fs.filesystem.name.as_str() != "all");
    }
    let there = own(&world, "http://b");
    there.delete();
    let refused = node.set_kms(vault("http://b")).await.unwrap_err();
    assert!(matches!(refused, Error::OwnKey { .. }), "{refused}");
    there.set_down(None);
    node.set("http://b").await.unwrap();
    drop(node);
    all_open_on(&world, on("http://b", [("key", 1), ("own", 1), ("own", 1)])).await;
    assert_eq!(world.local.keys(), 0);
}

#[tokio::test]
async fn it_is_forgotten_with_the_last_filesystem_that_has_it() {
    let world = World::new();
    let node = three(&world).await;
    node.delete_filesystem(&name("x")).await.unwrap();
    assert_eq!(records(&world, "kms/own/").await.len(), 1);
    node.delete_filesystem(&name("y")).await.unwrap();
    assert_eq!(records(&world, "kms/").await.len(), 3, "the one for all is left");
    node.create_under("y", "own").await.unwrap();
    for fs in ["y", "all"] {
        node.delete_filesystem(&name(fs)).await.unwrap();
    }
    node.unset_kms(false, &Expected::Whatever).await.unwrap();
    assert_eq!(records(&world, "kms/").await, []);
}

#[tokio::test]
async fn what_would_fail_is_told_of_each_master_key() {
    let world = World::new();
    let node = three(&world).await;
    let names = |names: &[key_manager::FilesystemName]| {
        names.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    for (loss, key, expected, for_all) in [
        (Loss::Credential, None, "all x y", true),
        (Loss::MasterKey, None, "all", true),
        (Loss::MasterKey, Some("key"), "all", true),
        (Loss::MasterKey, Some("own"), "x y", false),
        (Loss::VersionsBelow(KeyVersion(2)), Some("own"), "x y", false),
        (Loss::VersionsBelow(KeyVersion(1)), Some("own"), "", false),
    ] {
        let impact = node.impact(loss, key).await.unwrap();
        assert_eq!(names(&impact.shut_at_start), expected, "{loss:?} of {key:?}");
        assert_eq!(impact.for_all, for_all);
    }
    // Each is told once, also one whose copy can't be seen.
    for backing in ["/backing/all", "/backing/y"] {
        world.headers.set_away(backing, true);
    }
    assert_eq!(node.settle_copies().await.unwrap().len(), 2);
    let impact = node.impact(Loss::MasterKey, Some("own")).await.unwrap();
    let told = [&impact.shut_at_start, &impact.unknown, &impact.untouched].map(|it| names(it));
    assert_eq!(told, ["x y", "all", ""]);
    let unknown = node.impact(Loss::MasterKey, Some("nobody's")).await.unwrap_err();
    assert!(matches!(unknown, Error::Unknown { .. }), "{unknown}");
}

#[tokio::test]
async fn a_glance_asks_for_one_of_them_in_turn() {
    let world = World::new();
    let node = three(&world).await;
    let third = world.kms.server("http://a/third");
    node.create_under("z", "third").await.unwrap();
    let servers = [world.kms.server("http://a"), own(&world, "http://a"), third];
    let reads = || servers.each_ref().map(|server| server.asked("read"));
    for (turn, asked) in [(0, [1, 1, 0]), (1, [1, 0, 1]), (2, [1, 1, 0])] {
        let before = reads();
        let glance = node.kms_glance(turn).await.unwrap();
        let after = reads();
        assert_eq!([0, 1, 2].map(|n| after[n] - before[n]), asked, "{turn}");
        let live: Vec<_> = glance.own.iter().map(|own| u64::from(own.live.is_some())).collect();
        assert_eq!(live, asked[1..]);
    }
    let overview = node.kms_overview().await.unwrap();
    assert!(overview.own.iter().all(|own| matches!(own.live, Some(Ok(_)))), "{overview:?}");
    // Without the KMS none is asked; where the one for all is lost, the others are.
    servers[0].delete();
    assert!(node.kms_overview().await.unwrap().own.iter().all(|own| own.live.is_some()));
    servers[0].set_down(Some(KmsErrorKind::Unreachable));
    assert!(node.kms_overview().await.unwrap().own.iter().all(|own| own.live.is_none()));
}

#[tokio::test]
async fn a_recovery_brings_it_back() {
    let mut world = World::new();
    let node = three(&world).await;
    let bytes = node.bytes("x").await;
    drop(node);
    world.store = FakeStore::default();
    let found = found(&world);
    let recovered = rebuild(&world.store, &ManualClock::default(), found).await.unwrap();
    assert_eq!(recovered.kms.unwrap().master_key, "key", "not the one that most keys name");
    assert_eq!(recovered.others[0].master_key, "own");
    let node = world.node().await;
    assert!(node.set("http://a").await.unwrap().job.is_none(), "no key has to move");
    assert_eq!(node.unlock_all().await.unwrap(), []);
    assert_eq!(node.bytes("x").await, bytes);
    own(&world, "http://a").rotate();
    assert_eq!(node.rewrap().await.unwrap().moved, 2);
    drop(node);
    all_open_on(&world, on("http://a", [("key", 1), ("own", 2), ("own", 2)])).await;
}

#[tokio::test]
async fn a_forged_name_keeps_nothing_from_being_recovered() {
    let mut world = World::new();
    drop(three(&world).await);
    for forged in ["k".repeat(600), "nul\0".to_owned()] {
        let mut found = found(&world);
        let copies = found.iter_mut().map(|found| &mut found.envelope);
        for copy in copies.filter(|copy| copy.filesystem == "x") {
            copy.kms.master_key = forged.clone();
            copy.wrapped.config_id = KmsConfigId::random();
            copy.own_master_key = Some(forged.clone());
        }
        world.store = FakeStore::default();
        let recovered = rebuild(&world.store, &ManualClock::default(), found).await.unwrap();
        assert_eq!(recovered.filesystems.len(), 3);
        // It is in the way of the KMS, by name, until it is left out.
        own(&world, "http://a");
        world.kms.server(&format!("http://a/{forged}")).set_down(Some(KmsErrorKind::Invalid));
        let node = world.node().await;
        let refused = node.set_kms(vault("http://a")).await.unwrap_err();
        assert!(refused.to_string().starts_with("x must have"), "{refused}");
        node.forget_filesystem(&name("x")).await.unwrap();
        node.set("http://a").await.unwrap();
        assert_eq!(node.unlock_all().await.unwrap(), []);
    }
}

#[tokio::test]
async fn one_that_is_recovered_from_elsewhere_moves_to_where_the_kms_is() {
    let mut world = World::new();
    drop(three(&world).await);
    own(&world, "http://b");
    let mut found = found(&world);
    // More keys lie under another KMS, with a token of its own.
    world.store = FakeStore::default();
    let node = world.node().await;
    node.set("http://b").await.unwrap();
    for fs in ["p", "q"] {
        node.create(fs).await.unwrap();
        let backing = format!("/backing/{fs}");
        let envelope = world.headers.at(&backing);
        found.push(FoundCopy { backing: backing.into(), envelope, previous: None });
    }
    drop(node);
    world.store = FakeStore::default();
    let recovered = rebuild(&world.store, &ManualClock::default(), found).await.unwrap();
    assert_eq!(recovered.kms.unwrap().address, "http://b");
    let node = world.node().await;
    let refused = node.start_rewrap(Some(name("x"))).await.unwrap_err();
    assert!(refused.cure().unwrap().contains("set-vault"), "{refused}");
    // Where its own master key is not known it is not taken to the one for all.
    for (address, open) in [("http://a", 3), ("http://b", 5)] {
        let set = node.set_kms(vault(address)).await.unwrap();
        assert_eq!(5 - node.unlock_all().await.unwrap().len(), open);
        let moved = node.run_move(set.job.unwrap(), &NoControl).await;
        assert_eq!(moved.is_ok(), open == 5, "{moved:?}");
    }
    for fs in node.filesystem_statuses().await.unwrap() {
        let by = fs.wrapped_by.unwrap();
        let expected = fs.own_master_key.as_deref().unwrap_or("key");
        assert_eq!((by.address.as_str(), by.master_key.as_str()), ("http://b", expected));
    }
}

#[tokio::test]
async fn a_creation_that_races_another_kms_or_none_ends_well() {
    for unset in [true, false] {
        let world = World::new();
        let server = own(&world, "http://a");
        own(&world, "http://b");
        let node = world.node().await;
        node.set("http://a").await.unwrap();
        let mut late = server.hold("wrap");
        let (created, ()) = tokio::join!(node.create_under("x", "own"), async {
            late.reached().await;
            if unset {
                node.unset_kms(false, &Expected::Whatever).await.unwrap();
            } else {
                node.set("http://b").await.unwrap();
            }
            drop(late);
        });
        if unset {
            assert!(matches!(created, Err(Error::NotConfigured)), "{created:?}");
            assert_eq!(records(&world, "kms/").await, []);
        } else {
            created.unwrap();
            assert_eq!(world.headers.at("/backing/x").kms.address, "http://b");
        }
    }
}

/// The configuration that is set keeps its id then.
#[tokio::test]
async fn a_creation_that_races_a_new_address_or_a_new_token_takes_it_along() {
    for (address, token) in [("http://new", "the-token"), ("http://a", "a-new-token")] {
        let world = World::new();
        let server = own(&world, "http://a");
        for key in ["", "/own"] {
            let server = world.kms.server(&format!("http://a{key}"));
            world.kms.alias(&format!("http://new{key}"), &server);
        }
        let node = world.node().await;
        node.set("http://a").await.unwrap();
        let mut late = server.hold("wrap");
        let (created, ()) = tokio::join!(node.create_under("x", "own"), async {
            late.reached().await;
            let credential = NewCredential::Given(Credential::token(token));
            node.set_kms(NewKms { credential, ..vault(address) }).await.unwrap();
            drop(late);
        });
        created.unwrap();
        assert_eq!(world.headers.at("/backing/x").kms.address, address);
        let credentials = records(&world, "kms/credential/").await;
        assert_eq!(credentials.len(), 2);
        for credential in credentials {
            let text = String::from_utf8(credential.value).unwrap();
            assert!(text.contains(&format!("{token:?}")), "{text}");
        }
    }
}

#[tokio::test]
async fn a_kms_that_is_set_while_a_master_key_is_added_loses_cleanly() {
    let world = World::new();
    own(&world, "http://a");
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let mut late = world.kms.server("http://a").hold("wrap");
    let (set, ()) = tokio::join!(node.set_kms(vault("http://a")), async {
        late.reached().await;
        node.create_under("x", "own").await.unwrap();
        drop(late);
    });
    assert!(matches!(set, Err(Error::Changed { .. })), "{set:?}");
    assert!(node.set("http://a").await.unwrap().job.is_none());
}

#[tokio::test]
async fn several_at_once_share_what_is_made_once() {
    let world = World::new();
    own(&world, "http://a");
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let (x, y, z, all) = tokio::join!(
        node.create_under("x", "own"),
        node.create_under("y", "own"),
        node.create_under("z", "own"),
        node.create("all"),
    );
    for made in [x, y, z, all] {
        made.unwrap();
    }
    assert_eq!(records(&world, "kms/config/").await.len(), 2);
    // Another node on this store does not make a second one either.
    let another = world.manager(u64::MAX, u64::MAX);
    another.create_under("w", "own").await.unwrap();
    assert_eq!(records(&world, "kms/config/").await.len(), 2);
}

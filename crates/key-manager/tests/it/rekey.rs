//! A new key for a filesystem: the two keys that it has meanwhile, and what is left in the end.

use std::path::{Path, PathBuf};

use key_manager::{
    Error, Expected, FoundCopy, JobKind, JobRecord, JobState, KeyManager, KeyState, Loss,
};
use kms_core::{Commit, KeyId, KeyStore as _, KeyVersion, KmsErrorKind, Outcome, UnixMillis};
use testkit::clock::ManualClock;
use testkit::fake_store::FakeStore;

use crate::world::{Acts as _, World, name, rebuild, vault};

/// A filesystem `x` that is being re-encrypted: its first key is wrapped by version 1, its new one by version 2.
async fn begun(world: &World) -> (KeyManager, key_manager::JobRecord) {
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    world.kms.server("http://a").rotate();
    let job = node.begin_rekey_of("x").await.unwrap();
    node.settle_rekey(&name("x")).await.unwrap();
    (node, job)
}

async fn both(node: &KeyManager) -> ([u8; 32], [u8; 32]) {
    let keys = node.keys(&name("x")).await.unwrap();
    (keys.key.expose(|key| *key), keys.previous.unwrap().expose(|key| *key))
}

async fn wrapped_keys(world: &World) -> usize {
    world.store.list("key/", None, 9).await.unwrap().records.len()
}

fn previous(world: &World) -> Option<KeyId> {
    let previous = world.headers.previous.lock().unwrap();
    previous.get(Path::new("/backing/x")).map(|copy| copy.wrapped.key_id)
}

#[tokio::test]
async fn it_ends_exposed_and_leaves_nothing_of_the_old_key() {
    let world = World::new();
    let node = world.node().await;
    let old = node.create("x").await.unwrap();
    node.set("http://a").await.unwrap();
    let before = node.bytes("x").await;

    let job = node.begin_rekey_of("x").await.unwrap();
    let status = node.filesystem_statuses().await.unwrap().remove(0);
    assert!(status.exposed && status.previous.unwrap().id == old, "what lies under the old key is");
    assert_eq!(world.headers.at("/backing/x").wrapped.key_id, old, "the store is the first");
    node.settle_rekey(&name("x")).await.unwrap();
    let new = status.filesystem.key_id;
    let header = world.headers.at("/backing/x");
    assert!(header.wrapped.key_id == new && !header.exposed);
    assert_eq!((previous(&world), wrapped_keys(&world).await), (Some(old), 2));
    let (now, then) = both(&node).await;
    assert!(then == before && now != before);

    node.end_rekey_of("x", job.clone()).await.unwrap();
    let status = node.filesystem_statuses().await.unwrap().remove(0);
    assert!(!status.exposed && status.previous.is_none());
    assert_eq!((previous(&world), wrapped_keys(&world).await), (None, 1));
    let keys = node.keys(&name("x")).await.unwrap();
    assert!(keys.previous.is_none() && keys.key.expose(|key| *key) == now);
    assert_eq!(node.job(job.id).await.unwrap().state, JobState::Done);
    // Twice is once.
    node.end_rekey_of("x", job).await.unwrap();

    let events = world.audit.events();
    let of_rekey: Vec<_> = events.iter().filter(|event| event.action == "fs.rekey").collect();
    let outcomes: Vec<_> = of_rekey.iter().map(|event| event.outcome).collect();
    assert_eq!(outcomes, [Outcome::Begun, Outcome::Done]);
    for event in of_rekey {
        assert_eq!((event.subject.as_str(), &event.detail), ("x", &format!("from {old} to {new}")));
    }
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, now);
}

#[tokio::test]
async fn a_master_key_of_its_own_wraps_the_new_key_too() {
    let world = World::new();
    for master_key in ["http://a", "http://a/own"] {
        world.kms.server(master_key);
    }
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create_under("x", "own").await.unwrap();
    let job = node.begin_rekey_of("x").await.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    let status = node.filesystem_statuses().await.unwrap().remove(0);
    assert_eq!(status.own_master_key.as_deref(), Some("own"));
    assert_eq!(status.wrapped_by.unwrap().master_key, "own");
    assert_eq!(world.headers.at("/backing/x").own_master_key.as_deref(), Some("own"));
    assert!(world.node().await.unlock_all().await.unwrap().is_empty());
}

#[tokio::test]
async fn an_older_program_reads_no_record_that_it_would_misunderstand() {
    let world = World::new();
    let format = async |key: &str| {
        let record = world.store.get(key).await.unwrap().unwrap();
        serde_json::from_slice::<serde_json::Value>(&record.value).unwrap()["format"].clone()
    };
    let (node, job) = begun(&world).await;
    assert_eq!(
        (format("fs/x").await, format(&format!("job/{}", job.id)).await),
        (2.into(), 2.into())
    );
    node.end_rekey_of("x", job).await.unwrap();
    assert_eq!(format("fs/x").await, 1);
}

#[tokio::test]
async fn what_can_not_begin_leaves_nothing() {
    let world = World::new();
    let node = world.node().await;
    let old = node.create("x").await.unwrap();
    let refused = node.begin_rekey_of("x").await.unwrap_err();
    assert!(matches!(refused, Error::NotConfigured), "it would be exposed again: {refused}");
    node.set("http://a").await.unwrap();
    let server = world.kms.server("http://a");
    server.set_down(Some(KmsErrorKind::Unreachable));
    let away = node.begin_rekey_of("x").await.unwrap_err();
    assert!(matches!(&away, Error::Kms(e) if e.kind() == KmsErrorKind::Unreachable), "{away}");
    server.set_down(None);
    world.headers.set_away("/backing/x", true);
    assert!(matches!(node.begin_rekey_of("x").await.unwrap_err(), Error::Holder(_)));
    world.headers.set_away("/backing/x", false);

    world.headers.allow_writes(0);
    let full = node.begin_rekey_of("x").await.unwrap_err();
    assert!(matches!(full, Error::Volume { .. }), "the copies can't be written: {full}");
    assert_eq!(node.bytes("x").await.len(), 32, "it is as it was");
    world.headers.allow_writes(u64::MAX);

    // What changes between the answer of the KMS and the commit.
    let job = |fs: &str| {
        let spec = serde_json::Value::Null;
        key_manager::JobRecord::new(key_manager::JobKind::Rekey, fs, spec, kms_core::UnixMillis(1))
    };
    let new = node.new_key(&name("x")).await.unwrap();
    node.set("http://b").await.unwrap();
    let changed = node.begin_rekey(&name("x"), new, &job("x")).await.unwrap_err();
    assert!(matches!(changed, Error::Changed { .. }), "the KMS: {changed}");
    let new = node.new_key(&name("x")).await.unwrap();
    node.lock(&name("x")).await.unwrap();
    let changed = node.begin_rekey(&name("x"), new, &job("x")).await.unwrap_err();
    assert!(matches!(changed, Error::Changed { .. }), "it was locked: {changed}");
    assert!(matches!(node.begin_rekey_of("x").await.unwrap_err(), Error::Locked { .. }));
    node.unlock(&name("x")).await.unwrap();
    let changed = node.begin_rekey(&name("x"), None, &job("x")).await.unwrap_err();
    assert!(matches!(changed, Error::Changed { .. }), "nothing was begun: {changed}");

    assert!(node.jobs().await.unwrap().iter().all(|job| job.filesystem != "x"));
    assert_eq!(wrapped_keys(&world).await, 1);
    let fs = node.filesystem(&name("x")).await.unwrap();
    assert_eq!((fs.key_id, fs.previous_key), (old, None));
}

#[tokio::test]
async fn one_that_was_stopped_goes_on_under_the_same_keys() {
    let world = World::new();
    let (node, _) = begun(&world).await;
    let keys = both(&node).await;
    world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
    let again = node.begin_rekey_of("x").await.unwrap();
    assert_eq!((both(&node).await, node.jobs().await.unwrap().len()), (keys, 2));
    node.end_rekey_of("x", again).await.unwrap();
    assert_eq!(node.bytes("x").await, keys.0);
}

#[tokio::test]
async fn one_that_is_exposed_meanwhile_waits_for_a_kms_and_says_so() {
    let world = World::new();
    let (node, _) = begun(&world).await;
    node.downgrade().await.unwrap();
    let refused = node.begin_rekey_of("x").await.unwrap_err();
    assert!(matches!(refused, Error::NotConfigured), "{refused}");
    node.set("http://a").await.unwrap();
    let job = node.begin_rekey_of("x").await.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    assert!(node.has_exposed_key(&name("x")).await.unwrap());
    let job = node.begin_rekey_of("x").await.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    assert!(!node.has_exposed_key(&name("x")).await.unwrap());
}

#[tokio::test]
async fn what_was_noted_of_its_copies_is_gone_with_its_end() {
    let world = World::new();
    let (node, job) = begun(&world).await;
    world.headers.set_away("/backing/x", true);
    node.settle_copies().await.unwrap();
    let behind = async || node.filesystem_statuses().await.unwrap().remove(0).copies_behind;
    assert!(behind().await.is_some());
    world.headers.set_away("/backing/x", false);
    node.end_rekey_of("x", job).await.unwrap();
    assert_eq!(behind().await, None);
}

#[tokio::test]
async fn both_keys_are_wrapped_anew_and_moved() {
    let world = World::new();
    let (node, job) = begun(&world).await;
    let keys = both(&node).await;
    // The old one is wrapped by version 1 still.
    node.settle_copies().await.unwrap();
    let needed = |in_use: key_manager::InUse| {
        let config = in_use.versions[0].config.id;
        in_use.lowest_needed(config)
    };
    assert_eq!(needed(node.in_use().await.unwrap()), Some(KeyVersion(1)));
    let impact = node.impact(Loss::VersionsBelow(KeyVersion(2)), None).await.unwrap();
    assert_eq!(impact.shut_at_start, [name("x")]);
    let rewrap = node.start_rewrap(Some(name("x"))).await.unwrap();
    assert_eq!(node.run(rewrap).await.unwrap().moved, 1);
    assert_eq!(needed(node.in_use().await.unwrap()), Some(KeyVersion(2)));

    let report = node.set_kms(vault("http://b")).await.unwrap().job.unwrap();
    let report = node.run(report).await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (2, 0));
    assert_eq!(node.downgrade().await.unwrap().moved, 2);
    assert!(node.filesystem_statuses().await.unwrap()[0].exposed);
    node.set("http://c").await.unwrap();
    for gone in ["http://a", "http://b"] {
        world.kms.server(gone).set_down(Some(KmsErrorKind::Unreachable));
    }
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(both(&node).await, keys);
    assert_eq!(world.local.keys(), 0);
    let copies = world.headers.previous.lock().unwrap().clone();
    assert_eq!(copies[Path::new("/backing/x")].kms.address, "http://c");
    let rehearsed = world.node().await.rehearse().await.unwrap();
    assert_eq!((rehearsed.open, rehearsed.shut.len()), (1, 0));
    node.end_rekey_of("x", job).await.unwrap();
    assert!(
        node.filesystem_statuses().await.unwrap()[0].exposed,
        "the new one has lain locally too"
    );
}

#[tokio::test]
async fn it_is_open_when_both_keys_are() {
    let world = World::new();
    let (node, _) = begun(&world).await;
    let keys = both(&node).await;
    node.lock(&name("x")).await.unwrap();
    let fs = node.filesystem(&name("x")).await.unwrap();
    node.keys(&name("x")).await.unwrap_err();
    node.unlock(&name("x")).await.unwrap();
    assert_eq!(both(&node).await, keys);

    // One that does not open keeps the filesystem shut, whichever of the two it is.
    for id in [fs.key_id, fs.previous_key.unwrap()] {
        let record = world.store.get(&format!("key/{id}")).await.unwrap().unwrap();
        let mut spoilt: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
        spoilt["wrapped"]["ciphertext"]["text"] = "fake:v1:spoilt".into();
        let put = |value: Vec<u8>| Commit::new().put(record.key.clone(), value);
        world.store.commit(put(serde_json::to_vec(&spoilt).unwrap())).await.unwrap();
        let node = world.node().await;
        let locked = node.unlock_all().await.unwrap();
        assert_eq!(locked.len(), 1, "{locked:?}");
        assert!(matches!(node.state("x").await, KeyState::Locked(why) if why == locked[0].1));
        world.store.commit(put(record.value.clone())).await.unwrap();
        assert!(node.unlock_all().await.unwrap().is_empty());
        assert_eq!(both(&node).await, keys);
    }
}

#[tokio::test]
async fn an_older_store_that_was_put_back_is_noticed_by_either_copy() {
    for of_previous in [false, true] {
        let world = World::new();
        let (node, _) = begun(&world).await;
        drop(node);
        let copies = if of_previous { &world.headers.previous } else { &world.headers.files };
        copies.lock().unwrap().get_mut(Path::new("/backing/x")).unwrap().revision = 9;
        let node = world.node().await;
        let locked = node.unlock_all().await.unwrap();
        assert!(locked[0].1.why.contains("older store"), "{locked:?}");
    }
}

#[tokio::test]
async fn a_copy_that_is_lost_or_old_is_put_back() {
    let world = World::new();
    let (node, _) = begun(&world).await;
    let stale = world.headers.at("/backing/x");
    node.rewrap().await.unwrap();
    let copies = || {
        let header = world.headers.at("/backing/x");
        (header, world.headers.previous.lock().unwrap().get(Path::new("/backing/x")).cloned())
    };
    let whole = copies();
    world.headers.previous.lock().unwrap().clear();
    assert!(node.settle_copies().await.unwrap().is_empty());
    assert_eq!(copies(), whole);
    world.headers.files.lock().unwrap().insert("/backing/x".into(), stale);
    assert!(node.settle_copies().await.unwrap().is_empty());
    assert_eq!(copies(), whole);
    world.headers.set_away("/backing/x", true);
    assert!(!node.settle_copies().await.unwrap().is_empty());
    let status = node.filesystem_statuses().await.unwrap().remove(0);
    assert!(status.copies_behind.is_some());
    world.headers.set_away("/backing/x", false);
    assert!(node.settle_copies().await.unwrap().is_empty());
    assert!(node.filesystem_statuses().await.unwrap()[0].copies_behind.is_none());
}

#[tokio::test]
async fn it_can_be_deleted_or_forgotten_in_the_middle() {
    for forget in [false, true] {
        let world = World::new();
        let (node, _) = begun(&world).await;
        let fs = node.filesystem(&name("x")).await.unwrap();
        let deleted = match forget {
            false => node.delete_filesystem(&name("x")).await.unwrap(),
            true => node.forget_filesystem(&name("x")).await.unwrap(),
        };
        assert_eq!(deleted.removed.len(), if forget { 0 } else { 2 }, "{deleted:?}");
        assert_eq!(wrapped_keys(&world).await, 0);
        assert_eq!(previous(&world), fs.previous_key.filter(|_| forget));
        assert!(node.settle_copies().await.unwrap().is_empty());
        node.unset_kms(false, &Expected::Whatever).await.unwrap();
    }
}

#[tokio::test]
async fn a_key_that_another_filesystem_has_too_stays_for_that_one() {
    let mut world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let copy = world.headers.at("/backing/x");
    world.headers.files.lock().unwrap().insert("/backing/y".into(), copy.clone());
    drop(node);
    world.store = FakeStore::default();
    let mut of_y = copy.clone();
    of_y.filesystem = "y".into();
    let found = vec![("/backing/x".into(), copy), ("/backing/y".into(), of_y)];
    rebuild(&world.store, &ManualClock::default(), found).await.unwrap();

    let node = world.node().await;
    node.set("http://a").await.unwrap();
    assert!(node.unlock_all().await.unwrap().is_empty());
    let old = node.bytes("y").await;
    let job = node.begin_rekey_of("x").await.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    assert_eq!(node.bytes("y").await, old);
    assert_ne!(node.bytes("x").await, old);
    let job = node.begin_rekey_of("y").await.unwrap();
    node.end_rekey_of("y", job).await.unwrap();
    assert_eq!(wrapped_keys(&world).await, 2);
}

#[tokio::test]
async fn a_store_that_is_lost_in_the_middle_is_rebuilt_and_gone_on_with() {
    // How far the backing directory was: nothing of it, the old wrapped key a second time, the new one in its place.
    for steps in 0..=2 {
        let prepared = steps > 0;
        let mut world = World::new();
        let node = world.node().await;
        node.set("http://a").await.unwrap();
        let old = node.create("x").await.unwrap();
        let old_bytes = node.bytes("x").await;
        let _job = node.begin_rekey_of("x").await.unwrap();
        if !prepared {
            world.headers.previous.lock().unwrap().clear();
        }
        world.headers.allow_writes(steps.max(1) - 1);
        let brought = node.settle_rekey(&name("x")).await;
        assert_eq!(brought.is_ok(), steps == 2);
        drop(node);

        world.store = FakeStore::default();
        let backing = PathBuf::from("/backing/x");
        let copies = FoundCopy {
            envelope: world.headers.at("/backing/x"),
            previous: world.headers.previous.lock().unwrap().get(&backing).cloned(),
            backing,
        };
        let recovered = key_manager::rebuild(&world.store, &ManualClock::default(), vec![copies])
            .await
            .unwrap();
        let fs = &recovered.filesystems[0];
        assert_eq!((recovered.filesystems.len(), fs.name.as_str()), (1, "x"));
        assert_eq!(fs.previous_key, (steps == 2).then_some(old), "{steps}");

        let node = world.node().await;
        node.set("http://a").await.unwrap();
        assert!(node.unlock_all().await.unwrap().is_empty());
        let job = node.begin_rekey_of("x").await.unwrap();
        assert_eq!(both(&node).await.1, old_bytes);
        node.end_rekey_of("x", job).await.unwrap();
        assert_ne!(node.bytes("x").await, old_bytes);
        assert_eq!((previous(&world), wrapped_keys(&world).await), (None, 1));
    }
}

#[tokio::test]
async fn it_waits_for_no_kms_that_a_move_waits_for() {
    let world = World::new();
    let (node, job) = begun(&world).await;
    let mut asked = world.kms.server("http://a").hold("rewrap");
    let rewrap = node.start_rewrap(None).await.unwrap();
    let (moved, ()) = tokio::join!(node.run(rewrap), async {
        asked.reached().await;
        // It is open and in use meanwhile; its end waits for the move, which would put back what it removes.
        node.settle_rekey(&name("x")).await.unwrap();
        let ended = node.end_rekey_of("x", job.clone());
        assert!(tokio::time::timeout(std::time::Duration::from_millis(50), ended).await.is_err());
        drop(asked);
    });
    moved.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    assert_eq!((previous(&world), wrapped_keys(&world).await), (None, 1));
}

#[tokio::test]
async fn it_does_not_begin_while_keys_are_moved() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let mut asked = world.kms.server("http://a").hold("rewrap");
    world.kms.server("http://a").rotate();
    let rewrap = node.start_rewrap(None).await.unwrap();
    let (moved, ()) = tokio::join!(node.run(rewrap), async {
        asked.reached().await;
        let busy = node.begin_rekey_of("x").await.unwrap_err();
        assert!(matches!(busy, Error::Busy { .. }), "{busy}");
        drop(asked);
    });
    assert_eq!(moved.unwrap().moved, 1);
    assert_eq!(wrapped_keys(&world).await, 1);
    node.begin_rekey_of("x").await.unwrap();
}

#[tokio::test]
async fn what_has_changed_since_the_new_key_was_wrapped_is_no_damage() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let record = JobRecord::new(JobKind::Rekey, "x", serde_json::Value::Null, UnixMillis(1));

    let new = node.new_key(&name("x")).await.unwrap();
    let job = node.begin_rekey_of("x").await.unwrap();
    node.end_rekey_of("x", job).await.unwrap();
    let changed = node.begin_rekey(&name("x"), new, &record).await;
    assert!(matches!(changed, Err(Error::Changed { .. })), "{changed:?}");

    let new = node.new_key(&name("x")).await.unwrap();
    node.delete_filesystem(&name("x")).await.unwrap();
    let gone = node.begin_rekey(&name("x"), new, &record).await;
    assert!(matches!(gone, Err(Error::Unknown { .. })), "{gone:?}");

    node.create("x").await.unwrap();
    let mut read = world.store.hold("fs/x");
    let (gone, ()) = tokio::join!(async { node.new_key(&name("x")).await }, async {
        read.reached().await;
        node.delete_filesystem(&name("x")).await.unwrap();
        drop(read);
    });
    assert!(matches!(gone, Err(Error::Unknown { .. })), "{gone:?}");
    assert_eq!(wrapped_keys(&world).await, 0);
}

#[tokio::test]
async fn one_whose_old_key_is_let_go_while_it_is_unlocked_opens() {
    let world = World::new();
    let (node, job) = begun(&world).await;
    let new = node.filesystem(&name("x")).await.unwrap().key_id;
    drop(node);
    let node = world.node().await;
    let mut read = world.store.hold(&format!("key/{new}"));
    let (locked, ()) = tokio::join!(node.unlock_all(), async {
        read.reached().await;
        node.end_rekey_of("x", job).await.unwrap();
        drop(read);
    });
    assert_eq!(locked.unwrap(), []);
    assert_eq!(node.state("x").await, KeyState::Unlocked);
}

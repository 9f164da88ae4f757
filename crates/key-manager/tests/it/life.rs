//! Configure, create, unlock, lock, remove the KMS.

use key_manager::{Error, Expected, FilesystemStatus, KeyManager, KeyState};
use kms_core::{Commit, KeyStore as _, KmsErrorKind};

use crate::world::{Acts, NoControl, World, name, vault};

#[tokio::test]
async fn a_restart_opens_what_was_created() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("one").await.unwrap();
    node.create("two").await.unwrap();
    let before = (node.bytes("one").await, node.bytes("two").await);
    assert_ne!(before.0, before.1);
    drop(node);

    let node = world.node().await;
    assert!(matches!(node.state("one").await, KeyState::Locked(_)));
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!((node.bytes("one").await, node.bytes("two").await), before);
}

#[tokio::test]
async fn without_a_kms_creation_needs_consent_and_exposes() {
    let world = World::new();
    let node = world.node().await;
    let refused = node.create_filesystem(name("x"), "/backing/x".into(), false).await;
    assert!(matches!(refused, Err(Error::NoKms)));
    assert!(node.filesystems().await.unwrap().is_empty());
    node.create("x").await.unwrap();
    assert!(node.filesystem_statuses().await.unwrap()[0].exposed);
    assert!(world.headers.at("/backing/x").exposed);
}

#[tokio::test]
async fn while_the_kms_is_away_a_create_leaves_nothing() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
    let error = node.create("x").await.unwrap_err();
    assert!(matches!(&error, Error::Kms(e) if e.kind() == KmsErrorKind::Unreachable), "{error}");
    assert!(node.filesystems().await.unwrap().is_empty());
    assert!(world.headers.files.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_node_that_starts_without_its_kms_opens_later() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    let server = world.kms.server("http://a");
    for kind in [KmsErrorKind::Unreachable, KmsErrorKind::Sealed] {
        server.set_down(Some(kind));
        let node = world.node().await;
        let locked = node.unlock_all().await.unwrap();
        assert_eq!(locked.len(), 1);
        assert!(locked[0].1.transient && locked[0].1.code == kind.code(), "{:?}", locked[0]);
        assert!(matches!(node.key(&name("x")).await, Err(Error::Locked { .. })));
        server.set_down(None);
        assert!(node.unlock_all().await.unwrap().is_empty());
        // Open ones go on when the KMS goes away again.
        server.set_down(Some(kind));
        assert!(node.unlock_all().await.unwrap().is_empty());
        node.key(&name("x")).await.unwrap();
    }
}

#[tokio::test]
async fn names_are_unique_and_backings_apart() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    assert!(matches!(node.create("x").await, Err(Error::Exists { .. })));
    for backing in ["/backing/x", "/backing/x/inside", "/backing", "relative"] {
        let refused = node.create_filesystem(name("y"), backing.into(), true).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{backing}");
    }
}

/// Through pages nobody is missed and nobody comes twice, whatever is looked for.
#[tokio::test]
async fn pages_are_the_whole_in_parts() {
    let world = World::new();
    let node = world.node().await;
    let names: Vec<String> = (0..600).map(|n| format!("fs-{n:03}")).collect();
    for fs in &names {
        node.create(fs).await.unwrap();
    }
    node.lock(&name("fs-007")).await.unwrap();
    let all = node.filesystem_statuses().await.unwrap();
    assert_eq!(all.len(), 600);
    let locked = |fs: &FilesystemStatus| fs.key != KeyState::Unlocked;
    for (text, only_locked, limit) in
        [("", false, 599), ("", false, 600), ("7", false, 10), ("", true, 1), ("none", false, 5)]
    {
        let wanted = |fs: &FilesystemStatus| !only_locked || locked(fs);
        let has_text = |fs: &&FilesystemStatus| fs.filesystem.name.as_str().contains(text);
        let whole: Vec<_> = all.iter().filter(has_text).filter(|fs| wanted(fs)).collect();
        let (mut after, mut parts) = (String::new(), Vec::new());
        loop {
            let (page, more) = node.filesystem_page(&after, limit, text, wanted).await.unwrap();
            assert!(page.len() <= limit && (page.len() == limit || !more));
            parts.extend(page);
            if !more {
                break;
            }
            after = parts.last().unwrap().filesystem.name.to_string();
        }
        let said = |fs: &FilesystemStatus| format!("{fs:?}");
        let whole: Vec<_> = whole.into_iter().map(said).collect();
        assert_eq!(parts.iter().map(said).collect::<Vec<_>>(), whole, "{text:?} {limit}");
    }
    let one = node.filesystem_status(&name("fs-007")).await.unwrap();
    assert_eq!(format!("{one:?}"), format!("{:?}", all[7]));
    let none = node.filesystem_status(&name("fs-999")).await;
    assert!(matches!(none, Err(Error::Unknown { .. })));
}

#[tokio::test]
async fn swapped_wrapped_keys_are_refused_and_the_others_open() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["a", "b", "c"] {
        node.create(fs).await.unwrap();
    }
    drop(node);
    // Whoever can write the store swaps the ciphertexts of two records and leaves the ids in place.
    let page = world.store.list("key/", None, 10).await.unwrap();
    let mut values: Vec<serde_json::Value> =
        page.records.iter().map(|r| serde_json::from_slice(&r.value).unwrap()).collect();
    let first = values[0]["wrapped"]["ciphertext"].take();
    values[0]["wrapped"]["ciphertext"] = values[1]["wrapped"]["ciphertext"].take();
    values[1]["wrapped"]["ciphertext"] = first;
    for (record, value) in page.records.iter().zip(&values).take(2) {
        let put = Commit::new().put(record.key.clone(), serde_json::to_vec(value).unwrap());
        world.store.commit(put).await.unwrap();
    }
    let node = world.node().await;
    let locked = node.unlock_all().await.unwrap();
    assert_eq!(locked.len(), 2);
    for (_, reason) in &locked {
        assert_eq!(reason.code, "wrapped-key-of-another");
        assert!(!reason.transient);
    }
    assert_eq!(world.kms.server("http://a").asked("wrap"), 4, "nothing is regenerated");
}

#[tokio::test]
async fn whole_records_swapped_are_refused_too() {
    let world = World::new();
    let node = world.node().await;
    node.create("a").await.unwrap();
    node.create("b").await.unwrap();
    drop(node);
    let page = world.store.list("key/", None, 10).await.unwrap();
    let swap = Commit::new()
        .put(page.records[0].key.clone(), page.records[1].value.clone())
        .put(page.records[1].key.clone(), page.records[0].value.clone());
    world.store.commit(swap).await.unwrap();
    let locked = world.node().await.unlock_all().await.unwrap();
    assert_eq!(locked.len(), 2);
    assert!(locked.iter().all(|(_, reason)| reason.code == "record-damaged"), "{locked:?}");
}

#[tokio::test]
async fn a_master_key_made_again_is_noticed_before_it_wraps() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    drop(node);
    let server = world.kms.server("http://a");
    server.recreate();
    let wraps = server.asked("wrap");
    let node = world.node().await;
    let locked = node.unlock_all().await.unwrap();
    assert_eq!(locked[0].1.code, "master-key-replaced");
    assert!(locked[0].1.why.contains("made again"), "{}", locked[0].1.why);
    for error in [node.create("y").await.unwrap_err(), node.rewrap().await.unwrap_err()] {
        assert!(
            matches!(&error, Error::Kms(e) if e.kind() == KmsErrorKind::KeyReplaced),
            "{error}"
        );
    }
    assert_eq!(server.asked("wrap"), wraps);
}

#[tokio::test]
async fn too_old_is_told_apart_from_another_key() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("old").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    node.create("new").await.unwrap();
    server.set_minimum(2);
    drop(node);
    let locked = world.node().await.unlock_all().await.unwrap();
    assert_eq!(locked.len(), 1);
    assert_eq!((locked[0].0.as_str(), locked[0].1.code.as_str()), ("old", "key-version-too-old"));
}

#[tokio::test]
async fn unset_is_refused_while_a_filesystem_exists() {
    let world = World::new();
    let node = world.node().await;
    assert!(matches!(node.unset_kms(false, &Expected::Whatever).await, Err(Error::NotConfigured)));
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let error = node.unset_kms(false, &Expected::Whatever).await.unwrap_err();
    assert!(matches!(error, Error::Encrypted { count: 1, .. }), "{error}");
    let key = node.delete_filesystem(&name("x")).await.unwrap().key_id;
    let told = world.audit.events().into_iter().find(|it| it.action == "fs.delete").unwrap();
    assert_eq!(told.detail, key.to_string(), "nothing is left, and nothing said of it");
    assert_eq!(node.unset_kms(false, &Expected::Whatever).await.unwrap(), None);
    let left = world.store.list("", None, 100).await.unwrap().records;
    let left: Vec<_> = left.into_iter().map(|r| r.key).filter(|k| !k.starts_with("job/")).collect();
    assert_eq!(left, ["fs-epoch"], "no configuration, no token, no key stays");
}

#[tokio::test]
async fn locked_by_an_admin_stays_locked_over_a_restart() {
    let world = World::new();
    let node = world.node().await;
    node.create("x").await.unwrap();
    node.lock(&name("x")).await.unwrap();
    assert!(node.key(&name("x")).await.is_err());
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert!(matches!(node.state("x").await, KeyState::Locked(r) if r.code == "locked-by-admin"));
    node.unlock(&name("x")).await.unwrap();
    assert_eq!(node.state("x").await, KeyState::Unlocked);
}

#[tokio::test]
async fn the_copy_that_another_node_has_is_left_and_told() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["x", "y"] {
        node.create(fs).await.unwrap();
    }
    world.kms.server("http://a").rotate();
    world.headers.set_in_use("/backing/x", true);
    let before = world.headers.at("/backing/x");
    let job = node.start_rewrap(None).await.unwrap();
    let report = node.run_move(job, &NoControl).await.unwrap();
    assert_eq!(report.failed.len(), 1, "{report:?}");
    assert!(report.failed[0].contains("another node has it"), "{report:?}");
    assert_eq!(world.headers.at("/backing/x"), before);
    // A copy that is ahead of the store is told while its key is still in memory.
    world.headers.set_in_use("/backing/x", false);
    let ahead = kms_core::KeyEnvelope { revision: 99, ..before };
    world.headers.files.lock().unwrap().insert("/backing/x".into(), ahead.clone());
    let failed = node.settle_copies().await.unwrap();
    assert!(failed[0].contains("newer than what the store has"), "{failed:?}");
    assert_eq!(world.headers.at("/backing/x"), ahead);
}

#[tokio::test]
async fn a_disk_that_hangs_keeps_nothing_else_waiting() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("y").await.unwrap();
    let mut hangs = world.headers.hang();
    let (made, ()) = tokio::join!(node.create("x"), async {
        hangs.reached().await;
        node.create("z").await.unwrap();
        node.set("http://a").await.unwrap();
        node.delete_filesystem(&name("z")).await.unwrap();
        assert!(node.finish_removals().await.unwrap(), "what is being made is no leftover");
        assert!(matches!(node.delete_filesystem(&name("x")).await, Err(Error::AtWork { .. })));
        drop(hangs);
    });
    made.unwrap();
    node.key(&name("x")).await.unwrap();

    let mut hangs = world.headers.hang();
    let (deleted, ()) = tokio::join!(async { node.delete_filesystem(&name("x")).await }, async {
        hangs.reached().await;
        node.create("z").await.unwrap();
        assert!(node.key(&name("x")).await.is_err());
        drop(hangs);
    });
    deleted.unwrap();
}

#[tokio::test]
async fn a_lock_waits_for_no_kms() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let mut asked = world.kms.server("http://a").hold("wrap");
    let (made, ()) = tokio::join!(node.create("slow"), async {
        asked.reached().await;
        node.lock(&name("x")).await.unwrap();
        assert_eq!(keys_in_memory(&node), 0);
        drop(asked);
    });
    made.unwrap();
    assert_eq!(keys_in_memory(&node), 1);
}

/// As the manager's own `Debug` shows them.
fn keys_in_memory(node: &KeyManager) -> usize {
    format!("{node:?}").matches("FilesystemKey(").count()
}

#[tokio::test]
async fn what_is_locked_or_deleted_while_its_key_is_unwrapped_stays_shut() {
    for delete in [false, true] {
        let world = World::new();
        let node = world.node().await;
        node.set("http://a").await.unwrap();
        for fs in ["x", "y"] {
            node.create(fs).await.unwrap();
        }
        drop(node);
        let node = world.node().await;
        let mut late = world.kms.server("http://a").hold("unwrap");
        let (unlocked, ()) = tokio::join!(node.unlock_all(), async {
            late.reached().await;
            if delete {
                node.delete_filesystem(&name("x")).await.unwrap();
            } else {
                node.lock(&name("x")).await.unwrap();
            }
            drop(late);
        });
        unlocked.unwrap();
        assert!(node.key(&name("x")).await.is_err());
        node.key(&name("y")).await.unwrap();
        assert_eq!(keys_in_memory(&node), 1);
    }
}

#[tokio::test]
async fn an_unlock_that_is_overtaken_by_a_lock_says_so() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    node.lock(&name("x")).await.unwrap();
    let server = world.kms.server("http://a");
    // The first answer shows the KMS's own words, the second is kept.
    let mut first = server.hold("unwrap");
    let (unlocked, ()) = tokio::join!(async { node.unlock(&name("x")).await }, async {
        first.reached().await;
        let mut second = server.hold("unwrap");
        drop(first);
        second.reached().await;
        node.lock(&name("x")).await.unwrap();
        drop(second);
    });
    assert!(matches!(unlocked, Err(Error::Locked { .. })), "{unlocked:?}");
    assert!(matches!(node.state("x").await, KeyState::Locked(r) if r.code == "locked-by-admin"));
    assert_eq!(keys_in_memory(&node), 0);
}

#[tokio::test]
async fn an_older_store_put_back_is_noticed() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let id = node.create("x").await.unwrap();
    let key = format!("key/{id}");
    let old = world.store.get(&key).await.unwrap().unwrap();
    world.kms.server("http://a").rotate();
    node.rewrap().await.unwrap();
    drop(node);
    world.store.commit(Commit::new().put(key, old.value)).await.unwrap();
    let locked = world.node().await.unlock_all().await.unwrap();
    assert_eq!(locked.len(), 1);
    assert!(locked[0].1.why.contains("older store"), "{}", locked[0].1.why);
    assert!(locked[0].1.cure.as_ref().unwrap().contains("coffer recover"));
}

#[tokio::test]
async fn a_record_of_a_newer_program_is_refused_and_kept() {
    let world = World::new();
    let node = world.node().await;
    let id = node.create("x").await.unwrap();
    drop(node);
    let key = format!("key/{id}");
    let record = world.store.get(&key).await.unwrap().unwrap();
    let mut value: serde_json::Value = serde_json::from_slice(&record.value).unwrap();
    value["format"] = 99.into();
    let newer = serde_json::to_vec(&value).unwrap();
    world.store.commit(Commit::new().put(key.clone(), newer.clone())).await.unwrap();
    let node = world.node().await;
    let locked = node.unlock_all().await.unwrap();
    assert!(locked[0].1.why.contains("newer than this program"), "{}", locked[0].1.why);
    assert_eq!(world.store.get(&key).await.unwrap().unwrap().value, newer);
}

#[tokio::test]
async fn two_nodes_on_one_store_lose_cleanly() {
    let world = World::new();
    let (a, b) = (world.node().await, world.node().await);
    a.set("http://a").await.unwrap();
    a.create("seed").await.unwrap();
    for round in 0..20 {
        let fs = format!("fs{round}");
        let (made, unset) = tokio::join!(a.create(&fs), b.unset_kms(true, &Expected::Whatever));
        if let (Err(error), true) = (&made, unset.is_ok()) {
            assert!(matches!(error, Error::Changed { .. } | Error::NoKms), "{error}");
        }
        if let Ok(Some(job)) = unset {
            b.run(job).await.unwrap();
            a.set_kms(vault("http://a")).await.unwrap();
            let job = a.unfinished_move().await.unwrap().unwrap().id;
            a.run(job).await.unwrap();
        }
        let fresh = world.node().await;
        assert!(fresh.unlock_all().await.unwrap().is_empty(), "round {round}");
    }
}

#[tokio::test]
async fn no_debug_shows_the_token() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let shown = format!("{node:?} {:?} {:?}", vault("http://a"), world.audit.events());
    assert!(!shown.contains("the-token"));
}

#[tokio::test]
async fn many_locked_filesystems_are_tried_with_one_key_and_opened_together() {
    const MANY: u64 = 100;
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for n in 0..MANY {
        node.create(&format!("fs{n}")).await.unwrap();
    }
    drop(node);
    let kms = world.kms.server("http://a");
    kms.set_down(Some(KmsErrorKind::Unreachable));
    let node = world.node().await;
    let locked = node.unlock_all().await.unwrap();
    assert_eq!(locked.len() as u64, MANY);
    let asked = kms.asked("unwrap");
    for _ in 0..5 {
        assert_eq!(node.unlock_all().await.unwrap().len() as u64, MANY);
    }
    assert_eq!(kms.asked("unwrap") - asked, 5);

    kms.set_down(None);
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(kms.asked("unwrap") - asked, 5 + 1 + MANY, "one more to see that it is back");
}

/// A proof of one key alone tells whose it is, as every other use does.
#[tokio::test]
async fn each_use_of_a_filesystems_key_has_its_name() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let x = node.create("x").await.unwrap();
    node.create_under("y", "own").await.unwrap();
    node.lock(&name("x")).await.unwrap();
    node.unlock(&name("x")).await.unwrap();
    world.kms.server("http://a").rotate();
    node.rewrap().await.unwrap();
    let events = world.audit.events();
    let of_x = events.iter().filter(|event| event.key.is_some_and(|key| key.id == x));
    let of_x: Vec<_> = of_x.map(|it| (it.action.as_str(), it.subject.as_str())).collect();
    let uses = ["key.wrap", "key.prove", "key.prove", "key.unwrap", "key.rewrap", "key.prove"];
    assert_eq!(of_x, uses.map(|action| (action, "x")));
    let config = node.kms_glance(0).await.unwrap().config.unwrap().0.id.to_string();
    let canary = format!("canary of {config}");
    assert!(events.iter().any(|it| it.action == "key.prove" && it.subject == canary));
}

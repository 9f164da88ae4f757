//! KMSs and disks that take their time, or hang: who waits for them, and who does not; and what has changed by then.

use std::time::Duration;

use key_manager::{Error, KeyState};
use kms_core::{Commit, KeyStore as _, KmsErrorKind};
use tokio::time::timeout;

use crate::world::{Acts as _, World, name};

#[tokio::test]
async fn a_kms_that_hangs_holds_up_who_asked_it_alone() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let mut asked = world.kms.server("http://a").hold("wrap");
    let (made, ()) = tokio::join!(node.create("slow"), async {
        asked.reached().await;
        node.create("y").await.unwrap();
        node.delete_filesystem(&name("y")).await.unwrap();
        node.settle_copies().await.unwrap();
        // The cure too: another KMS. What was about to be wrapped by the old one is not recorded any more.
        node.set("http://b").await.unwrap();
        drop(asked);
    });
    assert!(matches!(made, Err(Error::Changed { .. })), "{made:?}");
    assert_eq!(node.filesystems().await.unwrap().len(), 1);
    assert_eq!(world.headers.files.lock().unwrap().len(), 1);
    node.create("slow").await.unwrap();
}

#[tokio::test]
async fn a_kms_that_is_being_set_meets_what_was_made_meanwhile() {
    let world = World::new();
    let node = world.node().await;
    let mut asked = world.kms.server("http://a").hold("wrap");
    let (set, ()) = tokio::join!(node.set("http://a"), async {
        asked.reached().await;
        // Under local wrapping, since no KMS is set yet.
        node.create("x").await.unwrap();
        drop(asked);
    });
    assert!(matches!(set, Err(Error::Changed { .. })), "{set:?}");
    node.set("http://a").await.unwrap();
    assert_eq!(world.headers.at("/backing/x").kms.address, "http://a");
    assert_eq!(world.local.keys(), 0);
}

#[tokio::test]
async fn an_unlock_that_fails_changes_nothing_and_is_told() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["locked", "shut"] {
        node.create(fs).await.unwrap();
    }
    node.lock(&name("locked")).await.unwrap();
    let node = world.node().await;
    let server = world.kms.server("http://a");
    server.set_down(Some(KmsErrorKind::Denied));
    for (fs, code) in [("locked", "locked-by-admin"), ("shut", "kms-denied")] {
        assert!(matches!(node.unlock(&name(fs)).await, Err(Error::Kms(_))));
        let state = node.state(fs).await;
        assert!(matches!(&state, KeyState::Locked(why) if why.code == code), "{state:?}");
    }
    server.set_down(None);
    node.unlock_all().await.unwrap();
    node.key(&name("shut")).await.unwrap();
    node.key(&name("locked")).await.unwrap_err();
    node.unlock(&name("locked")).await.unwrap();
    node.key(&name("locked")).await.unwrap();
}

#[tokio::test]
async fn a_disk_that_is_silent_keeps_no_other_filesystem_shut_and_no_act_waiting() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    for fs in ["a", "b", "c", "z"] {
        node.create(fs).await.unwrap();
    }
    let node = world.node().await;
    for backing in ["/backing/a", "/backing/b", "/backing/c"] {
        world.headers.set_silent(backing);
    }
    let opened = async {
        while node.state("z").await != KeyState::Unlocked {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        node.create("new").await.unwrap();
    };
    let waits = async { tokio::join!(node.unlock_all(), node.settle_copies()) };
    tokio::select! {
        _ = waits => panic!("a silent disk has answered"),
        opened = timeout(Duration::from_secs(10), opened) => opened.unwrap(),
    }
}

/// As where a KMS is set, or the last filesystem of a master key goes, beside a look at the KMS.
#[tokio::test]
async fn a_configuration_that_is_forgotten_meanwhile_is_no_damage() {
    let world = World::new();
    for master_key in ["http://a", "http://a/own", "http://b"] {
        world.kms.server(master_key);
    }
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create_under("x", "own").await.unwrap();
    let mut asked = world.kms.server("http://a").hold("unwrap");
    let (checked, ()) = tokio::join!(node.check_kms(), async {
        asked.reached().await;
        node.delete_filesystem(&name("x")).await.unwrap();
        drop(asked);
    });
    let checked = checked.unwrap();
    assert!(checked.iter().all(|item| item.failure.is_none()), "{checked:?}");

    node.create_under("x", "own").await.unwrap();
    let set = node.kms_recorded().await.unwrap().config.unwrap().0;
    let mut read = world.store.hold(&format!("kms/credential/{}", set.id));
    let (recorded, ()) = tokio::join!(node.kms_recorded(), async {
        read.reached().await;
        node.delete_filesystem(&name("x")).await.unwrap();
        drop(read);
    });
    assert_eq!(recorded.unwrap().own.len(), 0);

    let mut read = world.store.hold("kms/current");
    let (recorded, ()) = tokio::join!(node.kms_recorded(), async {
        read.reached().await;
        node.set("http://b").await.unwrap();
        drop(read);
    });
    assert_eq!(recorded.unwrap().config.unwrap().0.address, "http://b");
}

/// What is not there and named all the same is.
#[tokio::test]
async fn a_configuration_or_a_key_that_is_missing_is_damage() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let key = node.create("x").await.unwrap();
    let set = node.kms_recorded().await.unwrap().config.unwrap().0;
    drop(node);
    let node = world.node().await;
    for record in [format!("key/{key}"), format!("kms/config/{}", set.id)] {
        let kept = world.store.get(&record).await.unwrap().unwrap();
        world.store.commit(Commit::new().delete(&record)).await.unwrap();
        let missing = node.unlock(&name("x")).await;
        assert!(
            matches!(&missing, Err(Error::Record { key, .. }) if *key == record),
            "{missing:?}"
        );
        world.store.commit(Commit::new().put(&record, kept.value)).await.unwrap();
    }
    node.unlock(&name("x")).await.unwrap();
}

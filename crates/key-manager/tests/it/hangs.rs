//! KMSs and disks that take their time, or hang: who waits for them, and who does not.

use std::time::Duration;

use key_manager::{Error, KeyState};
use kms_core::KmsErrorKind;
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

//! Requests that are repeated.

use std::time::Duration;

use key_manager::{CreateRequest, Created, Error, KeyManager};
use kms_core::KeyStore as _;

use crate::world::{Acts as _, World, name};

async fn once(node: &KeyManager, key: &str, fs: &str) -> Result<Created, Error> {
    let request = CreateRequest { key: key.to_owned(), digest: format!("make {fs}") };
    let backing = format!("/backing/{fs}").into();
    node.create_filesystem_once(request, name(fs), backing, None, true).await
}

#[tokio::test]
async fn a_request_that_is_repeated_makes_no_second_filesystem() {
    let world = World::new();
    let node = world.node().await;
    let first = once(&node, "k", "x").await.unwrap();
    assert!(first.exposed);
    let again = once(&node, "k", "x").await.unwrap();
    assert_eq!((&again.filesystem, again.exposed), (&first.filesystem, true));
    drop(node);
    let node = world.node().await;
    assert_eq!(once(&node, "k", "x").await.unwrap().filesystem, first.filesystem);
    assert_eq!(node.filesystems().await.unwrap().len(), 1);

    let other = once(&node, "k", "y").await;
    assert!(matches!(other, Err(Error::RequestReused { .. })), "{other:?}");
    let without = node.create("x").await;
    assert!(matches!(without, Err(Error::Exists { .. })), "{without:?}");
    let another = once(&node, "another", "x").await;
    assert!(matches!(another, Err(Error::Exists { .. })), "{another:?}");

    node.delete_filesystem(&name("x")).await.unwrap();
    assert_ne!(once(&node, "k", "x").await.unwrap().filesystem.key_id, first.filesystem.key_id);
}

#[tokio::test]
async fn after_a_stop_at_any_step_the_repeated_request_makes_one() {
    let mut stopped = 0;
    for commits in 0..20 {
        let world = World::new();
        let made = once(&world.manager(commits, u64::MAX), "k", "x").await;
        stopped += u64::from(made.is_err());
        let node = world.node().await;
        let repeated = once(&node, "k", "x").await.unwrap();
        if let Ok(made) = &made {
            assert_eq!(repeated.filesystem, made.filesystem);
        }
        assert_eq!(node.filesystems().await.unwrap(), [repeated.filesystem]);
        assert_eq!(world.store.list("key/", None, 10).await.unwrap().records.len(), 1);
        assert_eq!(world.headers.files.lock().unwrap().len(), 1);
    }
    assert!((2..20).contains(&stopped), "{stopped}");
}

#[tokio::test]
async fn a_repeat_while_the_first_is_under_way_waits_for_it_but_not_for_ever() {
    let world = World::new();
    let node = world.node().await;
    let mut hangs = world.headers.hang();
    let (first, repeated) = tokio::join!(once(&node, "k", "x"), async {
        hangs.reached().await;
        let at_work = once(&node, "k", "x").await;
        assert!(matches!(at_work, Err(Error::AtWork { .. })), "{at_work:?}");
        let other = once(&node, "k", "y").await;
        assert!(matches!(other, Err(Error::RequestReused { .. })), "{other:?}");
        let (repeated, ()) = tokio::join!(once(&node, "k", "x"), async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            drop(hangs);
        });
        repeated
    });
    assert_eq!(first.unwrap().filesystem, repeated.unwrap().filesystem);
}

#[tokio::test]
async fn of_two_requests_with_one_key_at_the_same_moment_one_is_refused() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let mut asked = world.kms.server("http://a").hold("wrap");
    let (slow, fast) = tokio::join!(once(&node, "k", "slow"), async {
        asked.reached().await;
        let fast = once(&node, "k", "fast").await;
        drop(asked);
        fast
    });
    fast.unwrap();
    assert!(matches!(slow, Err(Error::RequestReused { .. })), "{slow:?}");
    assert_eq!(node.filesystems().await.unwrap().len(), 1);
}

//! A stop at every durable step: each commit of the store and each write of a header is made the last one, then a new
//! node starts on what lies there. Nothing acknowledged is lost, nothing is half done, every key opens.

use key_manager::{FilesystemState, JobState, KeyManager, KeyState, NewKms};
use kms_core::{KeyStore as _, KmsErrorKind};

use crate::world::{Acts, World, name, vault};

/// Runs `act` with a stop after each possible number of commits and header writes, and `check` on the node
/// that starts afterwards. Answers how many points there were.
async fn at_every_stop(
    prepare: impl AsyncFn(&World),
    act: impl AsyncFn(&KeyManager) -> bool,
    check: impl AsyncFn(&World, &KeyManager, bool),
) -> usize {
    let mut points = 0;
    for by_commits in [true, false] {
        for stop_after in 0.. {
            let world = World::new();
            prepare(&world).await;
            let (commits, writes) =
                if by_commits { (stop_after, u64::MAX) } else { (u64::MAX, stop_after) };
            let dying = world.manager(commits, writes);
            dying.settle().await.unwrap();
            assert!(dying.unlock_all().await.unwrap().is_empty());
            let done = act(&dying).await;
            drop(dying);

            let node = world.manager(u64::MAX, u64::MAX);
            node.settle().await.unwrap();
            if let Some(job) = node.unfinished_move().await.unwrap() {
                node.run(job.id).await.unwrap();
            }
            assert_eq!(node.settle_copies().await.unwrap(), Vec::<String>::new());
            let locked = node.unlock_all().await.unwrap();
            assert!(locked.is_empty(), "stop {stop_after} (commits: {by_commits}): {locked:?}");
            for fs in node.filesystems().await.unwrap() {
                assert_eq!(fs.state, FilesystemState::Ready);
                let copy = world.headers.at(fs.backing.to_str().unwrap());
                assert_eq!(copy.wrapped.key_id, fs.key_id);
            }
            check(&world, &node, done).await;
            points += 1;
            if done {
                break;
            }
        }
    }
    points
}

async fn with_kms_and_two(world: &World) {
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("a").await.unwrap();
    node.create("b").await.unwrap();
    world.kms.server("http://a").rotate();
}

#[tokio::test]
async fn create() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.create("new").await.is_ok(),
        async |world, node, done| {
            let there = node.filesystem(&name("new")).await.is_ok();
            assert!(there || !done, "an acknowledged create is lost");
            let headers = world.headers.files.lock().unwrap().len();
            assert_eq!(headers, if there { 3 } else { 2 });
        },
    )
    .await;
    assert!(points >= 5, "{points}");
}

#[tokio::test]
async fn delete() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.delete_filesystem(&name("a")).await.is_ok(),
        async |world, node, done| {
            let there = node.filesystem(&name("a")).await.is_ok();
            assert!(!(there && done), "a deleted filesystem is back");
            let headers = world.headers.files.lock().unwrap().len();
            assert_eq!(headers, if there { 2 } else { 1 });
        },
    )
    .await;
    assert!(points >= 5, "{points}");
}

#[tokio::test]
async fn rewrap() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.rewrap().await.is_ok_and(|report| report.failed.is_empty()),
        async |world, node, done| {
            // A stop before the job was recorded leaves everything as it was; after it, all of it moves.
            let versions: Vec<u64> =
                node.filesystem_statuses().await.unwrap().iter().map(|s| s.version.0).collect();
            assert!(versions == [2, 2] || (!done && versions == [1, 1]), "{versions:?}");
            for fs in ["/backing/a", "/backing/b"] {
                assert_eq!(world.headers.at(fs).wrapped.ciphertext.version.0, versions[0]);
            }
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn downgrade() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.downgrade().await.is_ok_and(|report| report.failed.is_empty()),
        async |world, node, done| {
            let set = node.kms_overview().await.unwrap().config.is_some();
            assert!(!(set && done));
            let local = node.filesystem_statuses().await.unwrap();
            let kinds: Vec<_> =
                local.iter().map(|s| s.wrapped_by.as_ref().unwrap().kind.clone()).collect();
            if set {
                assert_eq!(kinds, ["fake", "fake"]);
                assert_eq!(world.local.keys(), 0, "an unused local key is erased");
            } else {
                assert_eq!(kinds, ["local", "local"]);
                assert!(local.iter().all(|s| s.exposed));
                world.kms.server("http://a").set_down(Some(KmsErrorKind::Unreachable));
                let again = world.node().await;
                assert!(again.unlock_all().await.unwrap().is_empty());
            }
        },
    )
    .await;
    assert!(points >= 8, "{points}");
}

#[tokio::test]
async fn rekey() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| {
            let Ok(job) = node.begin_rekey_of("a").await else { return false };
            node.end_rekey_of("a", job).await.is_ok()
        },
        async |world, node, done| {
            let fs = node.filesystem(&name("a")).await.unwrap();
            let keys = node.keys(&name("a")).await.unwrap();
            let jobs = node.jobs().await.unwrap();
            let wrapped = world.store.list("key/", None, 9).await.unwrap().records.len();
            let copies = world.headers.previous.lock().unwrap().len();
            assert_eq!(keys.key.id(), fs.key_id);
            assert!(!done || (fs.previous_key.is_none() && jobs.len() == 1));
            if fs.previous_key.is_none() {
                // Not begun, or at its end.
                assert_eq!((wrapped, copies), (2, 0));
                assert!(jobs.iter().all(|job| job.state == JobState::Done));
                return;
            }
            assert_eq!((wrapped, copies), (3, 1));
            let job = jobs.into_iter().next().unwrap();
            assert_eq!(job.state, JobState::Running, "it is taken up");
            node.end_rekey_of("a", job).await.unwrap();
            let again = world.node().await;
            assert!(again.unlock_all().await.unwrap().is_empty());
            assert_eq!(again.key(&name("a")).await.unwrap().id(), fs.key_id);
            assert_eq!(world.store.list("key/", None, 9).await.unwrap().records.len(), 2);
            assert!(world.headers.previous.lock().unwrap().is_empty());
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn a_move_in_the_middle_of_a_rekey() {
    let points = at_every_stop(
        async |world| {
            with_kms_and_two(world).await;
            let node = world.node().await;
            node.unlock_all().await.unwrap();
            node.begin_rekey_of("a").await.unwrap();
        },
        async |node| node.set("http://b").await.is_ok(),
        async |world, node, _| {
            let address = node.kms_overview().await.unwrap().config.unwrap().0.address;
            let other = if address == "http://a" { "http://b" } else { "http://a" };
            world.kms.server(other).set_down(Some(KmsErrorKind::Unreachable));
            let again = world.node().await;
            assert!(again.unlock_all().await.unwrap().is_empty(), "all keys hang on {address}");
            let previous = world.headers.previous.lock().unwrap().clone();
            let [(_, previous)] = &previous.into_iter().collect::<Vec<_>>()[..] else { panic!() };
            assert_eq!(previous.kms.address, address);
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn move_to_another_kms() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.set("http://b").await.is_ok(),
        async |world, node, _| {
            let overview = node.kms_overview().await.unwrap();
            let address = overview.config.unwrap().0.address;
            let other = if address == "http://a" { "http://b" } else { "http://a" };
            world.kms.server(other).set_down(Some(KmsErrorKind::Unreachable));
            let again = world.node().await;
            assert!(again.unlock_all().await.unwrap().is_empty(), "all keys hang on {address}");
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn a_move_that_takes_the_place_of_another() {
    let points = at_every_stop(
        async |world| {
            with_kms_and_two(world).await;
            let node = world.node().await;
            node.set_kms(vault("http://b")).await.unwrap().job.unwrap();
            node.create("c").await.unwrap();
        },
        async |node| node.set("http://c").await.is_ok(),
        async |world, node, done| {
            let address = node.kms_overview().await.unwrap().config.unwrap().0.address;
            assert!(!done || address == "http://c");
            for other in ["http://a", "http://b", "http://c"].iter().filter(|a| **a != address) {
                world.kms.server(other).set_down(Some(KmsErrorKind::Unreachable));
            }
            let again = world.node().await;
            assert!(again.unlock_all().await.unwrap().is_empty(), "all keys hang on {address}");
            assert!(again.unfinished_move().await.unwrap().is_none());
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn from_local_to_a_kms() {
    let points = at_every_stop(
        async |world| {
            world.node().await.create("a").await.unwrap();
        },
        async |node| node.set("http://a").await.is_ok(),
        async |world, node, _| {
            let set = node.kms_overview().await.unwrap().config.is_some();
            let keys = world.local.keys();
            assert_eq!(
                keys,
                usize::from(!set),
                "the local key lives exactly as long as it is needed"
            );
            assert!(world.headers.at("/backing/a").exposed);
        },
    )
    .await;
    assert!(points >= 5, "{points}");
}

#[tokio::test]
async fn unset_without_filesystems() {
    at_every_stop(
        async |world| {
            world.node().await.set("http://a").await.unwrap();
        },
        async |node| node.unset_kms(false).await.is_ok(),
        async |world, node, done| {
            let set = node.kms_overview().await.unwrap().config.is_some();
            assert!(!(set && done));
            let records = world.store.list("kms/", None, 10).await.unwrap().records;
            assert_eq!(records.len(), if set { 3 } else { 0 }, "{records:?}");
        },
    )
    .await;
}

#[tokio::test]
async fn lock() {
    at_every_stop(
        with_kms_and_two,
        async |node| node.lock(&name("a")).await.is_ok(),
        async |_, node, done| {
            let locked = matches!(node.state("a").await, KeyState::Locked(_));
            assert!(locked || !done);
        },
    )
    .await;
}

/// As [`with_kms_and_two`], and one under a master key of its own, which both KMSs have.
async fn with_an_own_key(world: &World) {
    for server in ["http://a", "http://a/own", "http://b", "http://b/own"] {
        world.kms.server(server);
    }
    with_kms_and_two(world).await;
    world.node().await.create_under("x", "own").await.unwrap();
    world.kms.server("http://a/own").rotate();
}

/// Whether every key hangs on the master key that it should.
async fn each_on_its_own(node: &KeyManager) {
    for fs in node.filesystem_statuses().await.unwrap() {
        let expected = fs.own_master_key.unwrap_or_else(|| "key".to_owned());
        let by = fs.wrapped_by.unwrap();
        assert!(by.kind == "local" || by.master_key == expected, "{by:?}");
    }
}

/// How many records of configurations and of what names them there are.
async fn kms_records(world: &World) -> [usize; 3] {
    let mut counts = [0; 3];
    for (count, prefix) in counts.iter_mut().zip(["kms/own/", "kms/config/", "kms/credential/"]) {
        *count = world.store.list(prefix, None, 10).await.unwrap().records.len();
    }
    counts
}

#[tokio::test]
async fn create_under_a_master_key_of_its_own() {
    let points = at_every_stop(
        async |world| {
            with_kms_and_two(world).await;
            world.kms.server("http://a/own");
        },
        async |node| node.create_under("new", "own").await.is_ok(),
        async |world, node, done| {
            let there = node.filesystem(&name("new")).await.is_ok();
            assert!(there || !done, "an acknowledged create is lost");
            each_on_its_own(node).await;
            let expected = if there { [1, 2, 2] } else { [0, 1, 1] };
            assert_eq!(kms_records(world).await, expected, "a configuration lies about");
        },
    )
    .await;
    assert!(points >= 5, "{points}");
}

#[tokio::test]
async fn delete_the_last_one_under_a_master_key() {
    let points = at_every_stop(
        with_an_own_key,
        async |node| node.delete_filesystem(&name("x")).await.is_ok(),
        async |world, node, _| {
            let there = node.filesystem(&name("x")).await.is_ok();
            let expected = if there { [1, 2, 2] } else { [0, 1, 1] };
            assert_eq!(kms_records(world).await, expected);
        },
    )
    .await;
    assert!(points >= 5, "{points}");
}

#[tokio::test]
async fn rewrap_under_several_master_keys() {
    let points = at_every_stop(
        with_an_own_key,
        async |node| node.rewrap().await.is_ok_and(|report| report.failed.is_empty()),
        async |_, node, done| {
            each_on_its_own(node).await;
            let versions: Vec<u64> =
                node.filesystem_statuses().await.unwrap().iter().map(|s| s.version.0).collect();
            assert!(versions == [2, 2, 2] || (!done && versions == [1, 1, 1]), "{versions:?}");
        },
    )
    .await;
    assert!(points >= 8, "{points}");
}

#[tokio::test]
async fn move_of_several_master_keys_to_another_kms() {
    let points = at_every_stop(
        with_an_own_key,
        async |node| node.set("http://b").await.is_ok(),
        async |world, node, _| {
            each_on_its_own(node).await;
            assert_eq!(kms_records(world).await, [1, 2, 2]);
            let address = node.kms_overview().await.unwrap().config.unwrap().0.address;
            let gone = if address == "http://a" { "http://b" } else { "http://a" };
            for key in ["", "/own"] {
                let server = world.kms.server(&format!("{gone}{key}"));
                server.set_down(Some(KmsErrorKind::Unreachable));
            }
            let again = world.node().await;
            assert!(again.unlock_all().await.unwrap().is_empty(), "all keys hang on {address}");
        },
    )
    .await;
    assert!(points >= 8, "{points}");
}

#[tokio::test]
async fn another_master_key_for_all_beside_an_own_one() {
    let points = at_every_stop(
        async |world| {
            with_an_own_key(world).await;
            world.kms.server("http://a/other");
        },
        async |node| {
            let other = NewKms { master_key: "other".to_owned(), ..vault("http://a") };
            match node.set_kms(other).await {
                Ok(set) => node.run(set.job.unwrap()).await.is_ok(),
                Err(_) => false,
            }
        },
        async |world, node, _| {
            let current = node.kms_overview().await.unwrap().config.unwrap().0.master_key;
            for fs in node.filesystem_statuses().await.unwrap() {
                let expected = fs.own_master_key.as_ref().unwrap_or(&current);
                assert_eq!(fs.wrapped_by.unwrap().master_key, *expected);
            }
            assert_eq!(kms_records(world).await, [1, 2, 2]);
        },
    )
    .await;
    assert!(points >= 6, "{points}");
}

#[tokio::test]
async fn downgrade_of_several_master_keys() {
    let points = at_every_stop(
        with_an_own_key,
        async |node| node.downgrade().await.is_ok_and(|report| report.failed.is_empty()),
        async |world, node, done| {
            let set = node.kms_overview().await.unwrap().config.is_some();
            assert!(!(set && done));
            each_on_its_own(node).await;
            let expected = if set { [1, 2, 2] } else { [0, 1, 0] };
            assert_eq!(kms_records(world).await, expected);
        },
    )
    .await;
    assert!(points >= 8, "{points}");
}

//! A stop at every durable step: each commit of the store and each write of a header is made the last one, then a new
//! node starts on what lies there. Nothing acknowledged is lost, nothing is half done, every key opens.

use std::sync::Arc;

use key_manager::{Expected, FilesystemState, JobState, KeyManager, KeyState, NewKms};
use kms_core::{KeyStore as _, KmsErrorKind};

use crate::world::{Acts, World, name, vault};

/// Runs `act` unbroken, and then with a stop after each number of commits and of header writes that the unbroken run takes; each time
/// `check` looks at the node that starts afterwards. Answers how many steps were the last one.
async fn at_every_stop(
    prepare: impl AsyncFn(&World),
    act: impl AsyncFn(&KeyManager) -> bool,
    check: impl AsyncFn(&World, &KeyManager, bool),
) -> usize {
    let run = async |commits: u64, writes: u64| {
        let world = World::new();
        prepare(&world).await;
        let store = Arc::new(world.store.stopping_after(commits));
        let dying = world.manager_over(Arc::clone(&store), writes);
        dying.settle().await.unwrap();
        assert!(dying.unlock_all().await.unwrap().is_empty());
        let done = act(&dying).await;
        drop(dying);
        let left = (store.commits_left(), world.headers.writes_left());

        let node = world.manager(u64::MAX, u64::MAX);
        node.settle().await.unwrap();
        if let Some(job) = node.unfinished_move().await.unwrap() {
            node.run(job.id).await.unwrap();
        }
        assert_eq!(node.settle_copies().await.unwrap(), Vec::<String>::new());
        let locked = node.unlock_all().await.unwrap();
        assert!(locked.is_empty(), "stop after {commits} commits, {writes} writes: {locked:?}");
        for fs in node.filesystems().await.unwrap() {
            assert_eq!(fs.state, FilesystemState::Ready);
            let copy = world.headers.at(fs.backing.to_str().unwrap());
            assert_eq!(copy.wrapped.key_id, fs.key_id);
        }
        check(&world, &node, done).await;
        (done, left)
    };
    let (done, (commits_left, writes_left)) = run(u64::MAX, u64::MAX).await;
    assert!(done, "it fails without a stop");
    let (commits, writes) = (u64::MAX - commits_left, u64::MAX - writes_left);
    let mut covered = 0;
    for stop_after in 0..commits {
        let (_, (left, _)) = run(stop_after, u64::MAX).await;
        assert_eq!(left, 0, "it takes {commits} commits, and not so many as {stop_after}");
        covered += 1;
    }
    for stop_after in 0..writes {
        let (_, (_, left)) = run(u64::MAX, stop_after).await;
        assert_eq!(left, 0, "it takes {writes} writes, and not so many as {stop_after}");
        covered += 1;
    }
    covered
}

/// Tells how many steps were the last one, and requires that they were at least so many.
fn assert_covered(act: &str, points: usize, least: usize) {
    println!("crash: {act}: stopped at {points} commits and writes");
    assert!(points >= least, "{act}: {points}");
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
    assert_covered("create", points, 3);
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
    assert_covered("delete", points, 3);
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
    assert_covered("rewrap", points, 6);
}

#[tokio::test]
async fn rewrap_of_one() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| {
            let Ok(job) = node.start_rewrap(Some(name("a"))).await else { return false };
            node.run(job).await.is_ok_and(|report| report.failed.is_empty())
        },
        async |world, node, done| {
            let versions: Vec<u64> =
                node.filesystem_statuses().await.unwrap().iter().map(|s| s.version.0).collect();
            assert!(versions == [2, 1] || (!done && versions == [1, 1]), "{versions:?}");
            let copy = world.headers.at("/backing/a").wrapped.ciphertext;
            assert_eq!(copy.version.0, versions[0]);
        },
    )
    .await;
    assert_covered("rewrap_of_one", points, 4);
}

#[tokio::test]
async fn take_over_at_another_address() {
    let points = at_every_stop(
        async |world| {
            with_kms_and_two(world).await;
            world.kms.alias("http://new", &world.kms.server("http://a"));
        },
        async |node| node.set("http://new").await.is_ok(),
        async |world, node, done| {
            let address = node.kms_overview().await.unwrap().config.unwrap().0.address;
            assert!(!done || address == "http://new");
            for fs in ["/backing/a", "/backing/b"] {
                assert_eq!(world.headers.at(fs).kms.address, address);
            }
        },
    )
    .await;
    assert_covered("take_over_at_another_address", points, 6);
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
    assert_covered("downgrade", points, 7);
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
                // Not begun, and maybe prepared, or at its end.
                assert_eq!(wrapped, 2);
                let second = world.headers.previous.lock().unwrap().clone();
                assert!(second.values().all(|copy| !done && copy.wrapped.key_id == fs.key_id));
                if !done {
                    let job = node.begin_rekey_of("a").await.unwrap();
                    node.end_rekey_of("a", job).await.unwrap();
                    assert!(world.headers.previous.lock().unwrap().is_empty());
                    return;
                }
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
    assert_covered("rekey", points, 5);
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
    assert_covered("a_move_in_the_middle_of_a_rekey", points, 8);
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
    assert_covered("move_to_another_kms", points, 7);
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
    assert_covered("a_move_that_takes_the_place_of_another", points, 9);
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
    assert_covered("from_local_to_a_kms", points, 6);
}

#[tokio::test]
async fn unset_without_filesystems() {
    let points = at_every_stop(
        async |world| {
            world.node().await.set("http://a").await.unwrap();
        },
        async |node| node.unset_kms(false, &Expected::Whatever).await.is_ok(),
        async |world, node, done| {
            let set = node.kms_overview().await.unwrap().config.is_some();
            assert!(!(set && done));
            let records = world.store.list("kms/", None, 10).await.unwrap().records;
            assert_eq!(records.len(), if set { 3 } else { 0 }, "{records:?}");
        },
    )
    .await;
    assert_covered("unset_without_filesystems", points, 2);
}

#[tokio::test]
async fn lock() {
    let points = at_every_stop(
        with_kms_and_two,
        async |node| node.lock(&name("a")).await.is_ok(),
        async |_, node, done| {
            let locked = matches!(node.state("a").await, KeyState::Locked(_));
            assert!(locked || !done);
        },
    )
    .await;
    assert_covered("lock", points, 1);
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
    assert_covered("create_under_a_master_key_of_its_own", points, 3);
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
    assert_covered("delete_the_last_one_under_a_master_key", points, 4);
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
    assert_covered("rewrap_under_several_master_keys", points, 9);
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
    assert_covered("move_of_several_master_keys_to_another_kms", points, 11);
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
    assert_covered("another_master_key_for_all_beside_an_own_one", points, 10);
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
    assert_covered("downgrade_of_several_master_keys", points, 9);
}

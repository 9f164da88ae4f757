//! The canary: it keeps no old version alive, and what stands in for it where its version was cut off.

use key_manager::{Error, VersionCount};
use kms_core::KmsErrorKind;

use crate::world::{Acts, World, name};

/// What hangs on each version: filesystem keys, and the canary.
async fn in_use(node: &key_manager::KeyManager) -> Vec<(u64, u64, bool)> {
    let of = |v: VersionCount| (v.version.0, v.keys, v.canary);
    node.in_use().await.unwrap().versions.into_iter().map(of).collect()
}

fn refused_as(error: &Error, kind: KmsErrorKind) -> bool {
    matches!(error, Error::Kms(e) if e.kind() == kind && e.how_to_mend().is_some())
}

#[tokio::test]
async fn it_follows_the_first_key_to_a_new_version() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    assert_eq!(in_use(&node).await, [(1, 0, true)], "it is shown");
    node.create("x").await.unwrap();
    assert_eq!(in_use(&node).await, [(2, 1, true)]);
    server.set_minimum(2);
    node.create("y").await.unwrap();
    assert_eq!(node.rewrap().await.unwrap().already, 2);
    assert_eq!(node.jobs().await.unwrap()[0].already(), 2);
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    node.create("z").await.unwrap();
}

#[tokio::test]
async fn a_rewrap_renews_it_where_no_filesystem_needs_it() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    assert_eq!(node.rewrap().await.unwrap().moved, 0);
    assert_eq!(in_use(&node).await, [(2, 0, true)]);
    server.set_minimum(2);
    node.create("x").await.unwrap();
}

/// A node whose one filesystem is beyond the canary's version, which the KMS no longer decrypts.
async fn cut_off(world: &World) -> key_manager::KeyManager {
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    let job = node.start_rewrap(Some(name("x"))).await.unwrap();
    node.run(job).await.unwrap();
    assert_eq!(in_use(&node).await, [(1, 0, true), (2, 1, false)]);
    server.set_minimum(2);
    node
}

#[tokio::test]
async fn where_it_is_cut_off_a_filesystem_key_answers_for_it() {
    for by_create in [true, false] {
        let world = World::new();
        let node = cut_off(&world).await;
        if by_create {
            node.create("y").await.unwrap();
            assert_eq!(in_use(&node).await, [(2, 2, true)]);
        } else {
            node.rewrap().await.unwrap();
            assert_eq!(in_use(&node).await, [(2, 1, true)]);
        }
    }
}

#[tokio::test]
async fn where_it_is_cut_off_a_new_token_is_taken_as_ever() {
    let world = World::new();
    let node = cut_off(&world).await;
    drop(node);
    let node = world.node().await;
    let set = node.set("http://a").await.unwrap();
    assert!(set.updated && set.job.is_none());
    assert_eq!(in_use(&node).await, [(2, 1, true)]);
}

#[tokio::test]
async fn where_it_is_cut_off_another_master_key_is_noticed() {
    let world = World::new();
    let node = cut_off(&world).await;
    let server = world.kms.server("http://a");
    server.recreate();
    server.rotate();
    let wraps = server.asked("wrap");
    for error in [node.create("y").await.unwrap_err(), node.rewrap().await.unwrap_err()] {
        assert!(refused_as(&error, KmsErrorKind::KeyReplaced), "{error}");
    }
    assert_eq!(server.asked("wrap"), wraps);
}

#[tokio::test]
async fn where_nothing_can_prove_the_key_the_cure_is_told_and_works() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    server.set_minimum(2);
    let wraps = server.asked("wrap");
    for error in [node.create("x").await.unwrap_err(), node.rewrap().await.unwrap_err()] {
        assert!(refused_as(&error, KmsErrorKind::VersionTooOld), "{error}");
        assert!(error.cure().unwrap().contains("set-vault"));
    }
    assert_eq!(server.asked("wrap"), wraps);
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
}

#[tokio::test]
async fn a_rewrap_taken_up_again_does_not_trust_another_master_key() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    let job = node.start_rewrap(None).await.unwrap();
    drop(node);
    server.recreate();
    let node = world.node().await;
    let error = node.run(job).await.unwrap_err();
    assert!(refused_as(&error, KmsErrorKind::KeyReplaced), "{error}");
    let error = node.create("y").await.unwrap_err();
    assert!(refused_as(&error, KmsErrorKind::KeyReplaced), "{error}");
}

#[tokio::test]
async fn a_master_key_made_again_is_told_while_the_keys_are_in_memory() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    assert_eq!(node.kms_overview().await.unwrap().live.unwrap().unwrap().findings, []);
    world.kms.server("http://a").recreate();
    let [finding] = &node.kms_overview().await.unwrap().live.unwrap().unwrap().findings[..] else {
        panic!("one finding");
    };
    assert_eq!(finding.code, KmsErrorKind::KeyReplaced.code());
    assert!(finding.cure.contains("set-vault"), "{finding:?}");
}

#[tokio::test]
async fn keys_that_the_kms_no_longer_decrypts_are_told_and_rewrapped_from_memory() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("old").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    node.create("new").await.unwrap();
    let findings = async || node.kms_overview().await.unwrap().live.unwrap().unwrap().findings;
    assert_eq!(findings().await, []);
    server.set_minimum(2);
    let [finding] = &findings().await[..] else { panic!("one finding") };
    assert_eq!(finding.code, "keys-cut-off");
    assert!(finding.what.contains("old: min_decryption_version of key is 2"), "{finding:?}");

    let before = node.bytes("old").await;
    let report = node.rewrap().await.unwrap();
    assert_eq!((report.moved, report.failed.len()), (1, 0), "{report:?}");
    assert_eq!(findings().await, []);
    drop(node);
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("old").await, before);
}

#[tokio::test]
async fn where_nothing_is_left_to_prove_the_master_key_by_what_is_advised_saves_the_keys() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let before = node.bytes("x").await;
    let server = world.kms.server("http://a");
    server.rotate();
    server.set_minimum(2);
    let findings = node.kms_overview().await.unwrap().live.unwrap().unwrap().findings;
    assert_eq!(
        findings.iter().map(|f| f.code.as_str()).collect::<Vec<_>>(),
        [KmsErrorKind::VersionTooOld.code(), "keys-cut-off"]
    );
    assert!(findings.iter().all(|f| f.cure.contains("set-vault")), "{findings:?}");
    assert!(!findings[1].cure.contains("give coffer fs kms rewrap"), "{findings:?}");
    node.rewrap().await.unwrap_err();
    node.set("http://a").await.unwrap();
    let node = world.node().await;
    assert!(node.unlock_all().await.unwrap().is_empty());
    assert_eq!(node.bytes("x").await, before);
}

#[tokio::test]
async fn a_master_key_made_again_in_the_middle_of_a_rewrap_gets_no_key() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    node.create("x").await.unwrap();
    let server = world.kms.server("http://a");
    server.rotate();
    let job = node.start_rewrap(None).await.unwrap();
    let mut begun = server.hold("rewrap");
    let (ran, ()) = tokio::join!(node.run(job), async {
        begun.reached().await;
        server.recreate();
        drop(begun);
    });
    assert!(refused_as(&ran.unwrap_err(), KmsErrorKind::KeyReplaced));
    assert_eq!(in_use(&node).await, [(1, 1, true)], "the record is as it was");
}

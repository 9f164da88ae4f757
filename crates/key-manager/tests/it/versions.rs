//! Two administrators at once, and a credential that is kept.

use key_manager::{Error, Expected, KeyManager, KmsVersion, NewCredential, NewKms};
use kms_core::{Auth, ClientIdentity, Credential, KeyStore as _, Login};

use crate::world::{Acts, World, vault};

async fn version(node: &KeyManager) -> KmsVersion {
    node.kms_recorded().await.unwrap().version
}

fn meant_for(version: &KmsVersion, address: &str) -> NewKms {
    NewKms { expected: Expected::OneOf(vec![version.clone()]), ..vault(address) }
}

#[tokio::test]
async fn the_version_changes_with_each_change_of_the_configuration_and_with_nothing_else() {
    let world = World::new();
    let node = world.node().await;
    let none = version(&node).await;
    node.set("http://a").await.unwrap();
    let first = version(&node).await;
    assert_ne!(first, none);

    let server = world.kms.server("http://a");
    world.kms.server("http://a/own").rotate();
    node.create("x").await.unwrap();
    node.create_under("y", "own").await.unwrap();
    server.rotate();
    node.rewrap().await.unwrap();
    node.renew_credential().await.unwrap();
    node.check_kms().await.unwrap();
    node.kms_overview().await.unwrap();
    assert_eq!(version(&node).await, first);
    drop(node);
    let node = world.node().await;
    assert_eq!(version(&node).await, first);
    assert_eq!(node.kms_overview().await.unwrap().version, first);

    node.set("http://a").await.unwrap();
    let again = version(&node).await;
    assert_ne!(again, first, "the token is another one, for all that anybody knows");
    node.downgrade().await.unwrap();
    assert_eq!(version(&node).await, none);
    node.set("http://a").await.unwrap();
    assert!(![none, first, again].contains(&version(&node).await));
}

#[tokio::test]
async fn of_two_administrators_with_one_version_the_second_is_told() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let seen = version(&node).await;
    node.set_kms(meant_for(&seen, "http://b")).await.unwrap();
    let set = version(&node).await;

    let proved = world.kms.server("http://c").asked("lookup");
    let second = node.set_kms(meant_for(&seen, "http://c")).await;
    assert!(matches!(second, Err(Error::KmsChanged)), "{second:?}");
    let expected = Expected::OneOf(vec![seen.clone()]);
    let unset = node.unset_kms(true, &expected).await;
    assert!(matches!(unset, Err(Error::KmsChanged)), "{unset:?}");
    assert_eq!(version(&node).await, set);
    assert_eq!(node.kms_recorded().await.unwrap().config.unwrap().0.address, "http://b");
    assert_eq!(world.kms.server("http://c").asked("lookup"), proved, "its KMS was not asked");

    // One of several will do.
    let expected = Expected::OneOf(vec![seen, set]);
    node.unset_kms(false, &expected).await.unwrap();
    assert!(matches!(node.unset_kms(false, &expected).await, Err(Error::KmsChanged)));
}

#[tokio::test]
async fn of_two_at_the_same_moment_one_is_told_at_the_end() {
    let world = World::new();
    let node = world.node().await;
    node.set("http://a").await.unwrap();
    let seen = version(&node).await;
    let mut late = world.kms.server("http://slow").hold("wrap");
    let (slow, ()) = tokio::join!(node.set_kms(meant_for(&seen, "http://slow")), async {
        late.reached().await;
        node.set_kms(meant_for(&seen, "http://fast")).await.unwrap();
        drop(late);
    });
    assert!(matches!(slow, Err(Error::KmsChanged)), "{slow:?}");
    assert_eq!(node.kms_recorded().await.unwrap().config.unwrap().0.address, "http://fast");

    let seen = version(&node).await;
    node.create("x").await.unwrap();
    node.lock(&crate::world::name("x")).await.unwrap();
    let mut late = world.kms.server("http://fast").hold("unwrap");
    let expected = Expected::OneOf(vec![seen.clone()]);
    let (unset, ()) = tokio::join!(node.unset_kms(true, &expected), async {
        late.reached().await;
        node.set_kms(meant_for(&seen, "http://fast")).await.unwrap();
        drop(late);
    });
    assert!(matches!(unset, Err(Error::KmsChanged)), "{unset:?}");
    assert!(node.kms_recorded().await.unwrap().config.is_some());
}

/// What is stored for the KMS that is set.
async fn stored(world: &World, node: &KeyManager) -> String {
    let id = node.kms_recorded().await.unwrap().config.unwrap().0.id;
    let record = world.store.get(&format!("kms/credential/{id}")).await.unwrap().unwrap();
    String::from_utf8(record.value).unwrap()
}

fn kept(address: &str) -> NewKms {
    NewKms { credential: NewCredential::Kept { identity: None }, ..vault(address) }
}

#[tokio::test]
async fn a_credential_is_kept_at_the_same_origin() {
    let identity = |certificate: &str| ClientIdentity {
        certificate: certificate.to_owned(),
        key: "its key".into(),
    };
    let login = Login { path: String::new(), id: "role".into(), secret: "its secret".into() };
    for auth in
        [Auth::Token("the-token".into()), Auth::TokenFile("/run/token".into()), Auth::Login(login)]
    {
        let world = World::new();
        let node = world.node().await;
        let credential = Credential { auth, identity: Some(identity("a certificate")) };
        let given = NewKms { credential: NewCredential::Given(credential), ..vault("http://a") };
        node.set_kms(given).await.unwrap();
        let before = stored(&world, &node).await;

        let server = world.kms.server("http://a");
        world.kms.alias("http://a/base", &server);
        node.set_kms(NewKms { master_key: "other".into(), ..kept("http://a") }).await.unwrap();
        assert_eq!(stored(&world, &node).await, before);
        node.set_kms(kept("http://a/base")).await.unwrap();
        assert_eq!(stored(&world, &node).await, before);

        let identity = Some(identity("a newer one"));
        let renewed =
            NewKms { credential: NewCredential::Kept { identity }, ..kept("http://a/base") };
        node.set_kms(renewed).await.unwrap();
        let after = stored(&world, &node).await;
        assert_eq!(after, before.replace("a certificate", "a newer one"));
    }
}

#[tokio::test]
async fn a_credential_goes_to_no_other_origin() {
    let world = World::new();
    let node = world.node().await;
    let refused = async |new: NewKms, why: &str| {
        let error = node.set_kms(new).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{error}");
        assert!(error.to_string().contains(why), "{error}");
        assert!(error.cure().unwrap().contains("give a token"));
    };
    refused(kept("http://a"), "no KMS is set").await;
    node.set("http://a").await.unwrap();
    for elsewhere in ["https://a", "http://a:1", "http://b", "http://a.b"] {
        refused(kept(elsewhere), "sent only to the origin").await;
        for operation in ["lookup", "read", "wrap"] {
            assert_eq!(world.kms.server(elsewhere).asked(operation), 0, "{elsewhere}");
        }
    }
    // As after a recovery.
    let id = node.kms_recorded().await.unwrap().config.unwrap().0.id;
    let forget = kms_core::Commit::new().delete(format!("kms/credential/{id}"));
    world.store.commit(forget).await.unwrap();
    refused(kept("http://a"), "none is stored").await;
}

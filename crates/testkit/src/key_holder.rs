//! What every [`KeyHolder`] promises, as a suite that each implementation runs.

use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{
    Ciphertext, ENVELOPE_FORMAT, FilesystemSite, KeyCopy, KeyEnvelope, KeyHolder, KeyId,
    KeyVersion, KmsConfig, KmsConfigId, WrappedKey,
};

/// What the suite needs of an implementation.
#[async_trait]
pub trait KeyHolderFixture: Sync {
    /// A filesystem in a place of its own, whose only copy here is `envelope`. As long as the test runs it may be
    /// open, as in a node.
    async fn make(&self, envelope: &KeyEnvelope) -> FilesystemSite;

    /// A holder that remembers nothing: all that it knows lies where the copies lie.
    fn holder(&self) -> Arc<dyn KeyHolder>;

    /// Writes rubbish over the copy at `location`.
    async fn spoil(&self, site: &FilesystemSite, location: &str);
}

/// Holds an implementation to the trait's words. Panics at the first promise that is broken. Run it on a
/// multi-threaded runtime: it reads while it replaces.
pub async fn key_holder_contract(fixture: &dyn KeyHolderFixture) {
    the_list_is_what_is_there(fixture).await;
    what_is_replaced_is_there_for_others(fixture).await;
    replacing_twice_does_no_harm(fixture).await;
    another_key_is_refused(fixture).await;
    a_place_with_another_key_is_refused(fixture).await;
    another_location_is_refused(fixture).await;
    a_copy_that_cannot_be_read_is_listed_with_its_error(fixture).await;
    readers_see_the_old_or_the_new_copy(fixture).await;
}

/// What the suite needs of an implementation that holds copies of both keys of a filesystem that is between two.
#[async_trait]
pub trait TwoKeysFixture: KeyHolderFixture {
    /// A filesystem in a place of its own that is being re-encrypted, whose copies here are `from` and `to`.
    async fn make_between(&self, from: &KeyEnvelope, to: &KeyEnvelope) -> FilesystemSite;
}

/// Holds such an implementation to the trait's words. Panics at the first promise that is broken.
pub async fn two_keys_contract(fixture: &dyn TwoKeysFixture) {
    let (from, to) = (envelope(KeyId::random()), envelope(KeyId::random()));
    let site = fixture.make_between(&from, &to).await;
    assert_eq!((site.key_id, site.previous), (to.wrapped.key_id, Some(from.wrapped.key_id)));
    let mut expected = [from, to];
    let location = copy_of(fixture, &site, &expected[0]).await;
    let other = copy_of(fixture, &site, &expected[1]).await;
    assert_ne!(location, other);
    // Each is replaced by one of its own key, and no other.
    for (n, at) in [(0, &location), (1, &other), (0, &location)] {
        let next = rewrapped(&expected[n], expected[n].revision + 1);
        let elsewhere = if n == 0 { &other } else { &location };
        assert_refused(fixture, &site, elsewhere, &next).await;
        assert_refused(fixture, &site, at, &envelope(KeyId::random())).await;
        fixture.holder().replace(&site, at, &next).await.unwrap();
        expected[n] = next;
        for envelope in &expected {
            copy_of(fixture, &site, envelope).await;
        }
    }
    // One that can't be read is listed, and is mended by one of the key that belongs there.
    fixture.spoil(&site, &location).await;
    let copies = fixture.holder().list(&site).await.unwrap();
    let spoiled: Vec<_> = copies.iter().filter(|copy| copy.envelope.is_err()).collect();
    assert_eq!((copies.len(), spoiled.len()), (2, 1), "{copies:?}");
    assert_eq!(spoiled[0].location, location);
    assert_refused(fixture, &site, &location, &expected[1]).await;
    fixture.holder().replace(&site, &location, &expected[0]).await.unwrap();
    copy_of(fixture, &site, &expected[0]).await;
}

/// Where this one of two copies lies.
async fn copy_of(
    fixture: &dyn TwoKeysFixture,
    site: &FilesystemSite,
    envelope: &KeyEnvelope,
) -> String {
    let copies = fixture.holder().list(site).await.unwrap();
    assert_eq!(copies.len(), 2, "{copies:?}");
    let is_it = |copy: &&KeyCopy| copy.envelope.as_ref().is_ok_and(|there| there == envelope);
    copies.iter().find(is_it).unwrap().location.clone()
}

/// An envelope of this key, in its first version.
pub fn envelope(key_id: KeyId) -> KeyEnvelope {
    let config_id = KmsConfigId::random();
    KeyEnvelope {
        format: ENVELOPE_FORMAT,
        filesystem: "home".to_owned(),
        revision: 1,
        wrapped: WrappedKey {
            key_id,
            config_id,
            ciphertext: Ciphertext {
                text: "vault:v1:of-a-test".to_owned(),
                version: KeyVersion(1),
            },
        },
        kms: KmsConfig {
            id: config_id,
            kind: "vault".to_owned(),
            address: "https://vault.example:8200".to_owned(),
            master_key: "coffer".to_owned(),
            settings: Default::default(),
        },
        exposed: false,
        own_master_key: None,
    }
}

/// What a rewrap makes of it.
fn rewrapped(envelope: &KeyEnvelope, version: u64) -> KeyEnvelope {
    let mut next = envelope.clone();
    next.revision = version;
    next.wrapped.ciphertext = Ciphertext {
        // Long enough that half of it would show.
        text: format!("vault:v{version}:{}", "x".repeat(usize::try_from(version).unwrap() * 997)),
        version: KeyVersion(version),
    };
    next
}

async fn only_copy(fixture: &dyn KeyHolderFixture, site: &FilesystemSite) -> KeyCopy {
    let mut copies = fixture.holder().list(site).await.unwrap();
    assert_eq!(copies.len(), 1, "{copies:?}");
    copies.remove(0)
}

/// A filesystem with its envelope, and where the copy lies.
async fn made(fixture: &dyn KeyHolderFixture) -> (FilesystemSite, KeyEnvelope, String) {
    let envelope = envelope(KeyId::random());
    let site = fixture.make(&envelope).await;
    assert_eq!(site.key_id, envelope.wrapped.key_id);
    let location = only_copy(fixture, &site).await.location;
    (site, envelope, location)
}

async fn assert_there(
    fixture: &dyn KeyHolderFixture,
    site: &FilesystemSite,
    envelope: &KeyEnvelope,
) {
    assert_eq!(&only_copy(fixture, site).await.envelope.unwrap(), envelope);
}

async fn the_list_is_what_is_there(fixture: &dyn KeyHolderFixture) {
    let (site, envelope, location) = made(fixture).await;
    let (other_site, other_envelope, other_location) = made(fixture).await;
    assert!(!location.is_empty() && location != other_location);
    let copy = only_copy(fixture, &site).await;
    assert!(!copy.uploaded, "it lies here");
    assert_eq!(copy.envelope.unwrap(), envelope);
    assert_there(fixture, &other_site, &other_envelope).await;
}

async fn what_is_replaced_is_there_for_others(fixture: &dyn KeyHolderFixture) {
    let (site, envelope, location) = made(fixture).await;
    let (neighbour, untouched, _) = made(fixture).await;
    let mut next = rewrapped(&envelope, 2);
    // A downgrade changes all of it but the key.
    next.kms = KmsConfig { id: KmsConfigId::random(), kind: "local".to_owned(), ..next.kms };
    next.wrapped.config_id = next.kms.id;
    next.exposed = true;
    fixture.holder().replace(&site, &location, &next).await.unwrap();
    assert_there(fixture, &site, &next).await;
    assert_eq!(only_copy(fixture, &site).await.location, location);
    assert_there(fixture, &neighbour, &untouched).await;
}

async fn replacing_twice_does_no_harm(fixture: &dyn KeyHolderFixture) {
    let (site, envelope, location) = made(fixture).await;
    let next = rewrapped(&envelope, 2);
    for envelope in [&next, &next, &envelope, &envelope] {
        fixture.holder().replace(&site, &location, envelope).await.unwrap();
        assert_there(fixture, &site, envelope).await;
    }
}

async fn assert_refused<F: KeyHolderFixture + ?Sized>(
    fixture: &F,
    site: &FilesystemSite,
    location: &str,
    envelope: &KeyEnvelope,
) {
    let refused = fixture.holder().replace(site, location, envelope).await.unwrap_err();
    assert_eq!(refused.doing, "replaced");
}

async fn another_key_is_refused(fixture: &dyn KeyHolderFixture) {
    let (site, there, location) = made(fixture).await;
    let mut of_another = rewrapped(&there, 2);
    of_another.wrapped.key_id = KeyId::random();
    assert_refused(fixture, &site, &location, &of_another).await;
    assert_there(fixture, &site, &there).await;
}

async fn a_place_with_another_key_is_refused(fixture: &dyn KeyHolderFixture) {
    let (site, there, location) = made(fixture).await;
    let another = envelope(KeyId::random());
    let mistaken = FilesystemSite { key_id: another.wrapped.key_id, ..site.clone() };
    assert_refused(fixture, &mistaken, &location, &another).await;
    assert_there(fixture, &site, &there).await;
}

async fn another_location_is_refused(fixture: &dyn KeyHolderFixture) {
    let (site, there, _) = made(fixture).await;
    let (neighbour, its_own, its_location) = made(fixture).await;
    let next = rewrapped(&there, 2);
    for elsewhere in ["", "/", "/nowhere/at-all", &its_location] {
        assert_refused(fixture, &site, elsewhere, &next).await;
    }
    assert_there(fixture, &site, &there).await;
    assert_there(fixture, &neighbour, &its_own).await;
}

async fn a_copy_that_cannot_be_read_is_listed_with_its_error(fixture: &dyn KeyHolderFixture) {
    let (site, _, location) = made(fixture).await;
    let (neighbour, whole, _) = made(fixture).await;
    fixture.spoil(&site, &location).await;
    let copy = only_copy(fixture, &site).await;
    assert_eq!(copy.location, location);
    assert_eq!(copy.envelope.unwrap_err().doing, "read");
    assert_there(fixture, &neighbour, &whole).await;
}

async fn readers_see_the_old_or_the_new_copy(fixture: &dyn KeyHolderFixture) {
    let (site, first, location) = made(fixture).await;
    let versions: Vec<_> = (1..=20).map(|version| rewrapped(&first, version)).collect();
    fixture.holder().replace(&site, &location, &versions[0]).await.unwrap();
    let writer = tokio::spawn({
        let (holder, site, versions) = (fixture.holder(), site.clone(), versions.clone());
        async move {
            for envelope in &versions {
                holder.replace(&site, &location, envelope).await.unwrap();
            }
        }
    });
    let mut newest = 1;
    while !writer.is_finished() {
        let seen = only_copy(fixture, &site).await.envelope.unwrap();
        assert!(seen.revision >= newest, "{} came after {newest}", seen.revision);
        newest = seen.revision;
        let written = &versions[usize::try_from(newest).unwrap() - 1];
        assert!(&seen == written, "neither the old nor the new copy: {seen:?}");
        tokio::task::yield_now().await;
    }
    writer.await.unwrap();
    assert_there(fixture, &site, versions.last().unwrap()).await;
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;
    use std::sync::{Mutex, MutexGuard};

    use kms_core::HolderError;

    use super::*;

    /// Copies in memory, each under its location.
    #[derive(Debug, Default)]
    struct InMemory(Mutex<BTreeMap<String, Option<KeyEnvelope>>>);

    impl InMemory {
        fn copies(&self) -> MutexGuard<'_, BTreeMap<String, Option<KeyEnvelope>>> {
            self.0.lock().unwrap()
        }
    }

    fn location(site: &FilesystemSite) -> String {
        site.backing.display().to_string()
    }

    fn error(location: &str, doing: &'static str) -> HolderError {
        HolderError {
            location: location.to_owned(),
            doing,
            source: "it is not as it should".into(),
        }
    }

    #[async_trait]
    impl KeyHolder for InMemory {
        async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
            let location = location(site);
            let there = self.copies().get(&location).cloned();
            let copy = |envelope: Option<KeyEnvelope>| KeyCopy {
                envelope: envelope.ok_or_else(|| error(&location, "read")),
                location: location.clone(),
                uploaded: false,
            };
            Ok(there.map(copy).into_iter().collect())
        }

        async fn replace(
            &self,
            site: &FilesystemSite,
            at: &str,
            envelope: &KeyEnvelope,
        ) -> Result<(), HolderError> {
            let mut copies = self.copies();
            let there = copies.get_mut(at).filter(|_| at == location(site));
            let fits = |there: &KeyEnvelope| there.wrapped.key_id == site.key_id;
            match there {
                Some(there) if fits(envelope) && there.as_ref().is_none_or(fits) => {
                    *there = Some(envelope.clone());
                    Ok(())
                }
                _ => Err(error(at, "replaced")),
            }
        }
    }

    #[derive(Default)]
    struct Fixture(Arc<InMemory>);

    #[async_trait]
    impl KeyHolderFixture for Fixture {
        async fn make(&self, envelope: &KeyEnvelope) -> FilesystemSite {
            let mut copies = self.0.copies();
            let backing = PathBuf::from(format!("/backing/{}", copies.len()));
            copies.insert(backing.display().to_string(), Some(envelope.clone()));
            FilesystemSite {
                name: "home".to_owned(),
                key_id: envelope.wrapped.key_id,
                previous: None,
                backing,
            }
        }

        fn holder(&self) -> Arc<dyn KeyHolder> {
            Arc::clone(&self.0) as _
        }

        async fn spoil(&self, _: &FilesystemSite, location: &str) {
            self.0.copies().insert(location.to_owned(), None);
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_holder_in_memory_keeps_the_promises() {
        key_holder_contract(&Fixture::default()).await;
    }
}

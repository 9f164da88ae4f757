//! What every [`Kms`] promises, as a suite that each implementation runs.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use kms_core::{
    Ciphertext, Clock as _, FilesystemKey, Items, KeyRecord, KeyVersion, Kms, KmsConfig, KmsError,
    KmsErrorKind, KmsExt as _, SystemClock, WrappedKey,
};

/// What the suite needs of an implementation.
#[async_trait]
pub trait KmsFixture: Sync {
    /// A [`Kms`] over a new master key of its own, in its first version.
    async fn make(&self) -> Arc<dyn Kms>;

    /// What may be done to master keys; `None` where nothing can be.
    fn admin(&self) -> Option<&dyn MasterKeyAdmin>;

    /// Texts that must show nowhere, such as the token.
    fn secrets(&self) -> Vec<String>;
}

/// What the administrator of a KMS does to a master key, without Coffer.
#[async_trait]
pub trait MasterKeyAdmin: Sync {
    /// Makes a new version.
    async fn rotate(&self, config: &KmsConfig);

    /// Forbids decryption with older versions.
    async fn set_min_decryption_version(&self, config: &KmsConfig, version: KeyVersion);

    /// Deletes it.
    async fn delete(&self, config: &KmsConfig);

    /// Makes a key of that name anew.
    async fn create(&self, config: &KmsConfig);
}

/// Holds an implementation to the trait's words. Panics at the first promise that is broken. Run it on a
/// multi-threaded runtime: it calls from several tasks at once.
pub async fn kms_contract(fixture: &dyn KmsFixture) {
    nothing_in_nothing_out(&*fixture.make().await).await;
    the_master_key_is_described(&*fixture.make().await).await;
    keys_come_back_in_order(&*fixture.make().await, 3_000).await;
    no_two_ciphertexts_are_alike(&*fixture.make().await).await;
    what_is_altered_is_not_authentic(&*fixture.make().await).await;
    what_another_key_made_is_not_authentic(&*fixture.make().await, &*fixture.make().await).await;
    a_bad_item_spoils_no_other(&*fixture.make().await).await;
    swapped_keys_are_noticed(&*fixture.make().await).await;
    a_rewrapped_key_is_the_same_key(&*fixture.make().await).await;
    many_may_call_at_once(fixture.make().await).await;
    the_credential_tells_its_life(&*fixture.make().await).await;
    no_secret_shows(&*fixture.make().await, &fixture.secrets()).await;
    if let Some(admin) = fixture.admin() {
        versions_live_until_they_are_forbidden(&*fixture.make().await, admin).await;
        a_missing_master_key_is_not_made(&*fixture.make().await, admin).await;
        a_master_key_made_anew_opens_nothing(&*fixture.make().await, admin).await;
    }
}

fn some_keys(count: usize) -> Vec<Arc<FilesystemKey>> {
    (0..count).map(|_| Arc::new(FilesystemKey::generate().unwrap())).collect()
}

async fn wrap(kms: &dyn Kms, keys: &[Arc<FilesystemKey>]) -> Vec<WrappedKey> {
    kms.wrap_keys(keys).await.unwrap().into_iter().map(Result::unwrap).collect()
}

async fn wrap_one(kms: &dyn Kms) -> (Arc<FilesystemKey>, WrappedKey) {
    let key = some_keys(1).remove(0);
    let wrapped = wrap(kms, std::slice::from_ref(&key)).await.remove(0);
    (key, wrapped)
}

/// Each wrapped key opens to the key that belongs to it.
async fn assert_opens(kms: &dyn Kms, wrapped: &[WrappedKey], keys: &[Arc<FilesystemKey>]) {
    let opened = kms.unwrap_keys(wrapped).await.unwrap();
    assert_eq!(opened.len(), keys.len());
    for (opened, key) in opened.into_iter().zip(keys) {
        assert_same(&opened.unwrap(), key);
    }
}

fn assert_same(a: &FilesystemKey, b: &FilesystemKey) {
    assert_eq!(a.id(), b.id());
    a.expose(|a| b.expose(|b| assert!(a == b, "another key came back")));
}

/// Fails of one item, whether the KMS says so for the item or, of what concerns all, for the batch.
fn kind_of<T>(answer: Result<Items<T>, KmsError>) -> Option<KmsErrorKind> {
    match answer {
        Err(e) => Some(e.kind()),
        Ok(items) => {
            assert_eq!(items.len(), 1);
            items.only().err().map(|e| e.kind())
        }
    }
}

/// The text with the character at `at`, counted from the end, replaced by another one of base64.
fn altered(ciphertext: &Ciphertext, from_end: usize) -> Ciphertext {
    let mut text = ciphertext.text.clone().into_bytes();
    let at = text.len() - 1 - from_end;
    text[at] = if text[at] == b'A' { b'B' } else { b'A' };
    Ciphertext { text: String::from_utf8(text).unwrap(), version: ciphertext.version }
}

/// Texts that no KMS ever answered.
fn junk() -> Vec<Ciphertext> {
    let texts = [
        "".to_owned(),
        "nonsense".to_owned(),
        "vault:v1:".to_owned(),
        "vault:v1:AAAA".to_owned(),
        "vault:v1:not base64".to_owned(),
        "vault:v99999999999999999999:AAAA".to_owned(),
        "vault:v-1:AAAA".to_owned(),
        "local:v1:AAAA".to_owned(),
        "ü\0\n\"\\".to_owned(),
        format!("vault:v1:{}", "A".repeat(60_000)),
    ];
    texts.into_iter().map(|text| Ciphertext { text, version: KeyVersion(1) }).collect()
}

async fn nothing_in_nothing_out(kms: &dyn Kms) {
    assert!(kms.wrap(&[]).await.unwrap().is_empty());
    assert!(kms.unwrap(&[]).await.unwrap().is_empty());
    assert!(kms.rewrap(&[]).await.unwrap().is_empty());
}

async fn the_master_key_is_described(kms: &dyn Kms) {
    let key = kms.master_key().await.unwrap();
    assert_eq!(key.name, kms.config().master_key);
    assert_eq!(key.latest_version, KeyVersion(1));
    let made = key.created[&KeyVersion(1)];
    // To the second, and within an hour of now if the clocks agree.
    assert!(SystemClock.now().plus(Duration::from_secs(1)).since(made) < Duration::from_secs(3600));
}

async fn keys_come_back_in_order(kms: &dyn Kms, count: usize) {
    let keys = some_keys(count);
    let wrapped = wrap(kms, &keys).await;
    for (wrapped, key) in wrapped.iter().zip(&keys) {
        assert_eq!(wrapped.key_id, key.id());
        assert_eq!(wrapped.config_id, kms.config().id);
        assert_eq!(wrapped.ciphertext.version, KeyVersion(1));
    }
    assert_opens(kms, &wrapped, &keys).await;
    let rewrapped: Vec<_> =
        kms.rewrap_keys(&wrapped).await.unwrap().into_iter().map(Result::unwrap).collect();
    assert_opens(kms, &rewrapped, &keys).await;
}

async fn no_two_ciphertexts_are_alike(kms: &dyn Kms) {
    let key = some_keys(1).remove(0);
    let wrapped = wrap(kms, &[Arc::clone(&key), key]).await;
    assert_ne!(wrapped[0].ciphertext.text, wrapped[1].ciphertext.text);
}

async fn what_is_altered_is_not_authentic(kms: &dyn Kms) {
    let (_, wrapped) = wrap_one(kms).await;
    // The tag, the middle, and the nonce. The last group may have bits that mean nothing.
    let payload = wrapped.ciphertext.text.rsplit(':').next().unwrap().len();
    for from_end in [5, 15, payload / 2, payload - 1] {
        let altered = [altered(&wrapped.ciphertext, from_end)];
        assert_eq!(kind_of(kms.unwrap(&altered).await), Some(KmsErrorKind::NotAuthentic));
        assert_eq!(kind_of(kms.rewrap(&altered).await), Some(KmsErrorKind::NotAuthentic));
    }
    for junk in junk() {
        let junk = [junk];
        assert_eq!(kind_of(kms.unwrap(&junk).await), Some(KmsErrorKind::NotAuthentic), "{junk:?}");
        assert_eq!(kind_of(kms.rewrap(&junk).await), Some(KmsErrorKind::NotAuthentic), "{junk:?}");
    }
}

async fn what_another_key_made_is_not_authentic(kms: &dyn Kms, other: &dyn Kms) {
    let (_, foreign) = wrap_one(other).await;
    let foreign = [foreign.ciphertext];
    assert_eq!(kind_of(kms.unwrap(&foreign).await), Some(KmsErrorKind::NotAuthentic));
    assert_eq!(kind_of(kms.rewrap(&foreign).await), Some(KmsErrorKind::NotAuthentic));
}

async fn a_bad_item_spoils_no_other(kms: &dyn Kms) {
    let keys = some_keys(20);
    let mut wrapped = wrap(kms, &keys).await;
    let bad = [0, 7, 19];
    for at in bad {
        wrapped[at].ciphertext = altered(&wrapped[at].ciphertext, 10);
    }
    let opened = kms.unwrap_keys(&wrapped).await.unwrap();
    let rewrapped = kms.rewrap_keys(&wrapped).await.unwrap();
    for (at, (opened, rewrapped)) in opened.into_iter().zip(rewrapped).enumerate() {
        if bad.contains(&at) {
            assert_eq!(opened.unwrap_err().kind(), KmsErrorKind::NotAuthentic);
            assert_eq!(rewrapped.unwrap_err().kind(), KmsErrorKind::NotAuthentic);
        } else {
            assert_same(&opened.unwrap(), &keys[at]);
            assert_opens(kms, &[rewrapped.unwrap()], &keys[at..=at]).await;
        }
    }
}

async fn swapped_keys_are_noticed(kms: &dyn Kms) {
    let keys = some_keys(3);
    let mut wrapped = wrap(kms, &keys).await;
    let first = wrapped[0].ciphertext.clone();
    wrapped[0].ciphertext = std::mem::replace(&mut wrapped[1].ciphertext, first);
    let mut opened: Vec<_> = kms.unwrap_keys(&wrapped).await.unwrap().into_iter().collect();
    assert_same(&opened.remove(2).unwrap(), &keys[2]);
    for swapped in opened {
        assert_eq!(swapped.unwrap_err().kind(), KmsErrorKind::WrongIdentity);
    }
}

async fn a_rewrapped_key_is_the_same_key(kms: &dyn Kms) {
    let (key, wrapped) = wrap_one(kms).await;
    let rewrapped = kms.rewrap_keys(std::slice::from_ref(&wrapped)).await.unwrap().only().unwrap();
    assert_eq!(rewrapped.key_id, wrapped.key_id);
    assert_ne!(rewrapped.ciphertext.text, wrapped.ciphertext.text);
    assert_opens(kms, &[wrapped, rewrapped], &[Arc::clone(&key), key]).await;
}

async fn many_may_call_at_once(kms: Arc<dyn Kms>) {
    let tasks: Vec<_> = (0..16)
        .map(|_| {
            let kms = Arc::clone(&kms);
            tokio::spawn(async move {
                keys_come_back_in_order(&*kms, 50).await;
                kms.master_key().await.unwrap();
                kms.credential().await.unwrap();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
}

async fn the_credential_tells_its_life(kms: &dyn Kms) {
    let status = kms.credential().await.unwrap();
    let renewed = kms.renew().await.unwrap();
    assert_eq!(renewed.renewable, status.renewable);
    assert_eq!(renewed.periodic, status.periodic);
    assert_eq!(renewed.time_left.is_some(), status.time_left.is_some());
    assert!(renewed.time_left >= status.time_left);
}

async fn no_secret_shows(kms: &dyn Kms, secrets: &[String]) {
    let (key, wrapped) = wrap_one(kms).await;
    let record = KeyRecord::of(&key);
    let mut shown = format!("{kms:?} {record:?} {wrapped:?} {:?}", kms.config());
    for bad in [altered(&wrapped.ciphertext, 10), junk().remove(1)] {
        let error = kms.unwrap(&[bad]).await.unwrap().only().unwrap_err();
        shown.push_str(&format!("{error:?} {error} {} {:?}", error.chain(), error.how_to_mend()));
    }
    for secret in secrets {
        assert!(!shown.contains(secret.as_str()), "a secret shows in {shown}");
    }
}

async fn versions_live_until_they_are_forbidden(kms: &dyn Kms, admin: &dyn MasterKeyAdmin) {
    let (key, first) = wrap_one(kms).await;
    admin.rotate(kms.config()).await;
    let described = kms.master_key().await.unwrap();
    assert_eq!(described.latest_version, KeyVersion(2));
    assert_eq!(
        described.created.keys().copied().collect::<Vec<_>>(),
        [KeyVersion(1), KeyVersion(2)]
    );

    // The newest version wraps; both open.
    let (second_key, second) = wrap_one(kms).await;
    assert_eq!(second.ciphertext.version, KeyVersion(2));
    let moved = kms.rewrap_keys(std::slice::from_ref(&first)).await.unwrap().only().unwrap();
    assert_eq!(moved.ciphertext.version, KeyVersion(2));
    assert_opens(
        kms,
        &[first.clone(), second.clone(), moved.clone()],
        &[Arc::clone(&key), Arc::clone(&second_key), Arc::clone(&key)],
    )
    .await;

    admin.set_min_decryption_version(kms.config(), KeyVersion(2)).await;
    assert_eq!(kms.master_key().await.unwrap().min_decryption_version, KeyVersion(2));
    let old = [first.ciphertext.clone()];
    assert_eq!(kind_of(kms.unwrap(&old).await), Some(KmsErrorKind::VersionTooOld));
    assert_eq!(kind_of(kms.rewrap(&old).await), Some(KmsErrorKind::VersionTooOld));
    let mixed = kms.unwrap_keys(&[second, first, moved]).await.unwrap();
    let mut mixed: Vec<_> = mixed.into_iter().collect();
    assert_same(&mixed.remove(2).unwrap(), &key);
    assert_eq!(mixed.remove(1).unwrap_err().kind(), KmsErrorKind::VersionTooOld);
    assert_same(&mixed.remove(0).unwrap(), &second_key);
}

async fn a_missing_master_key_is_not_made(kms: &dyn Kms, admin: &dyn MasterKeyAdmin) {
    let (key, wrapped) = wrap_one(kms).await;
    let wrapped = [wrapped.ciphertext];
    admin.delete(kms.config()).await;
    let missing = Some(KmsErrorKind::KeyMissing);
    assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::KeyMissing);
    assert_eq!(kind_of(kms.wrap(&[KeyRecord::of(&key)]).await), missing);
    assert_eq!(kind_of(kms.unwrap(&wrapped).await), missing);
    assert_eq!(kind_of(kms.rewrap(&wrapped).await), missing);
    assert_eq!(kms.master_key().await.unwrap_err().kind(), KmsErrorKind::KeyMissing);
}

async fn a_master_key_made_anew_opens_nothing(kms: &dyn Kms, admin: &dyn MasterKeyAdmin) {
    let (_, wrapped) = wrap_one(kms).await;
    admin.rotate(kms.config()).await;
    let (_, second) = wrap_one(kms).await;
    admin.delete(kms.config()).await;
    admin.create(kms.config()).await;
    for lost in [wrapped.ciphertext, second.ciphertext] {
        let lost = [lost];
        assert_eq!(kind_of(kms.unwrap(&lost).await), Some(KmsErrorKind::NotAuthentic));
        assert_eq!(kind_of(kms.rewrap(&lost).await), Some(KmsErrorKind::NotAuthentic));
    }
}

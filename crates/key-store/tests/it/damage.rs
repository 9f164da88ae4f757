//! Damage, and older copies: noticed and refused, or without any effect.

use std::fs;
use std::path::{Path, PathBuf};

use key_store::SledStore;
use kms_core::StoreError;
use walkdir::WalkDir;

use crate::history::{assert_whole, write_up_to};

const GENERATION: u64 = 60;

/// A store with a history, closed; its tests damage copies of it.
async fn store_of(generation: u64) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for opened in [generation / 2, generation] {
        write_up_to(&SledStore::open(dir.path()).unwrap(), opened).await;
    }
    dir
}

pub(crate) fn copy(from: &Path, to: &Path) {
    for entry in WalkDir::new(from) {
        let entry = entry.unwrap();
        let to = to.join(entry.path().strip_prefix(from).unwrap());
        if entry.file_type().is_dir() {
            fs::create_dir_all(to).unwrap();
        } else {
            fs::copy(entry.path(), to).unwrap();
        }
    }
}

fn files(dir: &Path) -> Vec<PathBuf> {
    let files = WalkDir::new(dir).sort_by_file_name().into_iter().map(Result::unwrap);
    files
        .filter(|entry| entry.file_type().is_file() && entry.file_name() != "lock")
        .map(|entry| entry.path().strip_prefix(dir).unwrap().to_owned())
        .collect()
}

/// Whether damage was noticed; if it was not, nothing may be different.
async fn noticed(dir: &Path, what: &str) -> bool {
    match SledStore::open(dir) {
        Ok(store) => {
            assert_eq!(store.generation().0, GENERATION, "{what}: an older store is taken");
            assert_whole(&store).await;
            false
        }
        Err(StoreError::Damaged { why, .. }) => {
            assert!(why.contains("coffer recover"), "{what}: no way to recover: {why}");
            true
        }
        Err(other) => panic!("{what}: {other:?}"),
    }
}

/// Damages a copy of `whole` and opens it twice: what is noticed once must not be forgotten, though sled mends
/// its files in its own way when it opens them.
async fn damage(whole: &Path, what: &str, how: impl FnOnce(&Path)) -> bool {
    let dir = tempfile::tempdir().unwrap();
    copy(whole, dir.path());
    how(dir.path());
    let first = noticed(dir.path(), what).await;
    let again = tempfile::tempdir().unwrap();
    copy(dir.path(), again.path());
    let second = noticed(again.path(), what).await;
    assert!(second || !first, "{what}: noticed once, then forgotten");
    first
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_gone_or_empty() {
    let whole = store_of(GENERATION).await;
    for file in files(whole.path()) {
        let name = file.display();
        let gone = damage(whole.path(), &format!("{name} gone"), |dir| {
            fs::remove_file(dir.join(&file)).unwrap();
        })
        .await;
        let emptied = damage(whole.path(), &format!("{name} emptied"), |dir| {
            fs::write(dir.join(&file), b"").unwrap();
        })
        .await;
        if ["generation", "sled/db"].contains(&file.to_str().unwrap()) {
            assert!(gone && emptied, "{name}");
        }
    }
    let all = damage(whole.path(), "all of sled's files gone", |dir| {
        fs::remove_dir_all(dir.join("sled")).unwrap();
    });
    assert!(all.await);
    let emptied = damage(whole.path(), "sled's files replaced by an empty store's", |dir| {
        fs::remove_dir_all(dir.join("sled")).unwrap();
        let empty = tempfile::tempdir().unwrap();
        drop(SledStore::open(empty.path()).unwrap());
        copy(&empty.path().join("sled"), &dir.join("sled"));
    });
    assert!(emptied.await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_cut() {
    let whole = store_of(GENERATION).await;
    let mut cuts_noticed = 0;
    for file in files(whole.path()) {
        let length = fs::metadata(whole.path().join(&file)).unwrap().len();
        for part in 0..16 {
            let keep = length * part / 16;
            let what = format!("{} cut to {keep} of {length}", file.display());
            let noticed = damage(whole.path(), &what, |dir| {
                let open = fs::OpenOptions::new().write(true).open(dir.join(&file)).unwrap();
                open.set_len(keep).unwrap();
            });
            cuts_noticed += u32::from(noticed.await);
        }
    }
    assert!(cuts_noticed >= 16, "{cuts_noticed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_bit() {
    let whole = store_of(GENERATION).await;
    let mut flips_noticed = 0;
    for file in files(whole.path()) {
        let bytes = fs::read(whole.path().join(&file)).unwrap();
        // Most of sled's log is filler; what is not is worth a look.
        let full: Vec<_> = (0..bytes.len()).filter(|at| bytes[*at] > 8).collect();
        for round in 0..60 {
            let at = full[round * (full.len() - 1) / 59];
            let what = format!("{} flipped at {at}", file.display());
            let noticed = damage(whole.path(), &what, |dir| {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << (round % 8);
                fs::write(dir.join(&file), bytes).unwrap();
            });
            flips_noticed += u32::from(noticed.await);
        }
    }
    assert!(flips_noticed >= 60, "{flips_noticed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_zeroed_stretch() {
    let whole = store_of(GENERATION).await;
    let db = fs::read(whole.path().join("sled/db")).unwrap();
    for part in 0..32 {
        let at = db.len() * part / 32;
        damage(whole.path(), &format!("db zeroed at {at}"), |dir| {
            let mut db = db.clone();
            let end = db.len().min(at + 4096);
            db[at..end].fill(0);
            fs::write(dir.join("sled/db"), db).unwrap();
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_older_copy() {
    let (older, newer) = (store_of(GENERATION - 2).await, store_of(GENERATION).await);
    let put_back = |file: &'static str| {
        let from = older.path().join(file);
        move |dir: &Path| {
            if from.is_dir() {
                fs::remove_dir_all(dir.join(file)).unwrap();
                copy(&from, &dir.join(file));
            } else {
                fs::copy(from, dir.join(file)).unwrap();
            }
        }
    };
    let whole = newer.path();
    assert!(damage(whole, "older records", put_back("sled")).await);
    assert!(damage(whole, "older log", put_back("sled/db")).await);
    assert!(damage(whole, "older generation file", put_back("generation")).await);

    let before = store_of(GENERATION - 1).await;
    assert!(
        damage(whole, "records one commit behind", |dir| {
            fs::remove_dir_all(dir.join("sled")).unwrap();
            copy(&before.path().join("sled"), &dir.join("sled"));
        })
        .await
    );
}

/// What can't be seen from inside; the number shows it to who knows better.
#[tokio::test]
async fn a_whole_older_directory_shows_in_the_generation() {
    let store = store_of(GENERATION - 2).await;
    assert_eq!(SledStore::open(store.path()).unwrap().generation().0, GENERATION - 2);
}

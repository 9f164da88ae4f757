//! Create, open, lock, remove, and the copy of the wrapped key.

use std::fs;
use std::future::Future;
use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use filesystem::{
    Backend, BackingHeaders, BackingLocks, ErrorKind, Filesystem, is_open, read_envelope,
};
use kms_core::{FilesystemKey, FilesystemSite, KeyEnvelope, KeyHolder, KeyVersion};

use crate::support::{Home, Watch, done, envelope, export, files_below, import};

#[test]
fn a_second_opening_is_refused_until_the_first_is_closed() {
    let home = Home::new();
    let first = home.create();
    let again = || Filesystem::open(&home.backing(), Arc::clone(&home.key), Backend::default());
    let refused = again().unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::InUse);
    assert!(refused.to_string().contains("another process or node"), "{refused}");
    assert!(is_open(&home.backing()));
    assert_eq!(
        Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None)
            .unwrap_err()
            .kind(),
        ErrorKind::InUse
    );
    drop(first);
    assert!(!is_open(&home.backing()));
    again().unwrap();
}

#[test]
fn a_node_shares_its_lock_with_itself_and_with_no_other() {
    let home = Home::new();
    let backing = home.backing();
    let (node, other) = (BackingLocks::default(), BackingLocks::default());
    assert_eq!(node.take(&backing, home.key.id(), None).unwrap_err().kind(), ErrorKind::Io);
    fs::create_dir(&backing).unwrap();
    let none = node.take(&backing, home.key.id(), None).unwrap_err();
    assert_eq!(none.kind(), ErrorKind::Invalid, "{none}");
    assert!(!backing.join("coffer.lock").exists(), "where no disk is mounted nothing is made");

    drop(home.create());
    let stranger = FilesystemKey::generate().unwrap();
    assert_eq!(node.take(&backing, stranger.id(), None).unwrap_err().kind(), ErrorKind::Invalid);
    let held = node.take(&backing, home.key.id(), None).unwrap();
    let open = |locks: &BackingLocks| {
        Filesystem::open_sharing(locks, &backing, Arc::clone(&home.key), None, Backend::default())
    };
    assert_eq!(open(&other).unwrap_err().kind(), ErrorKind::InUse);
    drop(open(&node).unwrap());
    assert!(is_open(&backing), "the lock outlives what was opened with it");
    let last = open(&node).unwrap();
    drop(held);
    assert!(is_open(&backing), "and what was opened with it outlives the lock's own handle");
    drop(node.take(&backing, home.key.id(), None).unwrap());
    drop(last);
    assert!(!is_open(&backing));
    open(&other).unwrap();
}

#[test]
fn the_lock_of_a_directory_that_was_replaced_is_another() {
    let home = Home::new();
    drop(home.create());
    let (backing, moved) = (home.backing(), home.path("moved"));
    let (node, other) = (BackingLocks::default(), BackingLocks::default());
    let held = node.take(&backing, home.key.id(), None).unwrap();
    assert!(held.is_at(&backing));
    fs::rename(&backing, &moved).unwrap();
    assert!(!held.is_at(&backing));
    drop(home.create());
    assert!(!held.is_at(&backing) && held.is_at(&moved));
    let elsewhere = other.take(&backing, home.key.id(), None).unwrap();
    assert_eq!(node.take(&backing, home.key.id(), None).unwrap_err().kind(), ErrorKind::InUse);
    drop(elsewhere);
    assert!(node.take(&backing, home.key.id(), None).unwrap().is_at(&backing));
}

#[test]
fn many_threads_of_a_node_get_one_lock() {
    let home = Home::new();
    drop(home.create());
    let node = BackingLocks::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                for _ in 0..200 {
                    let lock = node.take(&home.backing(), home.key.id(), None).unwrap();
                    assert!(lock.is_at(&home.backing()));
                }
            });
        }
    });
    assert!(!is_open(&home.backing()));
}

#[test]
fn what_another_node_has_is_neither_removed_nor_given_another_key() {
    let home = Home::new();
    drop(home.create());
    let backing = home.backing();
    let (node, other) = (BackingLocks::default(), BackingLocks::default());
    let site = FilesystemSite {
        name: "test".into(),
        key_id: home.key.id(),
        previous: None,
        backing: home.backing(),
    };
    let held = other.take(&backing, home.key.id(), None).unwrap();
    let before = read_envelope(&backing).unwrap();
    let newer = KeyEnvelope { revision: before.revision + 1, ..before.clone() };
    let location = backing.join("coffer.key").display().to_string();
    let headers = BackingHeaders::new(node.clone());
    let refused = ready(headers.replace(&site, &location, &newer)).unwrap_err();
    assert!(refused.to_string().contains("another process or node"), "{refused}");
    assert_eq!(read_envelope(&backing).unwrap(), before);
    let remove = |locks: &BackingLocks| Filesystem::remove(locks, &backing, home.key.id(), None);
    assert_eq!(remove(&node).unwrap_err().kind(), ErrorKind::InUse);
    // Nor by its own node while that works with it.
    assert_eq!(remove(&other).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(read_envelope(&backing).unwrap(), before);
    ready(BackingHeaders::new(other.clone()).replace(&site, &location, &newer)).unwrap();
    drop(held);
    assert!(remove(&other).unwrap());
    ready(BackingHeaders::new(other).replace(&site, &location, &newer)).unwrap_err();
    assert!(!backing.exists());
}

#[test]
fn another_key_does_not_open_it() {
    let home = Home::new();
    drop(home.create());
    let other = Arc::new(FilesystemKey::generate().unwrap());
    let open = |key: &Arc<FilesystemKey>| {
        Filesystem::open(&home.backing(), Arc::clone(key), Backend::default())
    };
    let refused = open(&other).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid);
    assert!(refused.to_string().contains("belongs to the key"), "{refused}");
    // Without the header the root's record tells.
    fs::remove_file(home.backing().join("coffer.key")).unwrap();
    assert_eq!(open(&other).unwrap_err().kind(), ErrorKind::Damaged);
    // The right bytes under the right id only.
    let forged = home.key.expose(|bytes| {
        let mut bytes = *bytes;
        bytes[31] ^= 1;
        Arc::new(FilesystemKey::from_bytes(home.key.id(), &bytes).unwrap())
    });
    assert_eq!(open(&forged).unwrap_err().kind(), ErrorKind::Damaged);
    open(&home.key).unwrap();
}

#[test]
fn a_header_that_lies_by_the_data_of_another_key_is_damage() {
    let (home, other) = (Home::new(), Home::new());
    drop((home.create(), other.create()));
    read_envelope(&home.backing()).unwrap();
    fs::copy(other.backing().join("coffer.key"), home.backing().join("coffer.key")).unwrap();
    let damage = read_envelope(&home.backing()).unwrap_err();
    assert_eq!(damage.kind(), ErrorKind::Damaged);
    assert!(damage.to_string().contains(&home.key.id().to_string()), "{damage}");
    // Without the lock file nobody can tell, but by the key.
    fs::remove_file(home.backing().join("coffer.lock")).unwrap();
    read_envelope(&home.backing()).unwrap();
}

#[test]
fn create_takes_only_what_is_empty() {
    let home = Home::new();
    let create = |backing: &Path| {
        let envelope = envelope(home.key.id());
        Filesystem::create(backing, Arc::clone(&home.key), &envelope, Backend::default())
    };
    let full = home.path("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("mine"), "precious").unwrap();
    assert_eq!(create(&full).unwrap_err().kind(), ErrorKind::Invalid);
    assert_eq!(fs::read_dir(&full).unwrap().count(), 1, "nothing was added");

    drop(create(&home.backing()).unwrap());
    let refused = create(&home.backing()).unwrap_err().to_string();
    assert!(refused.contains("encrypted filesystem in it already"), "{refused}");

    let other = FilesystemKey::generate().unwrap();
    let place = home.path("new");
    let key = Arc::clone(&home.key);
    let swapped = Filesystem::create(&place, key, &envelope(other.id()), Backend::default());
    assert_eq!(swapped.unwrap_err().kind(), ErrorKind::Invalid);
    assert!(!place.exists());
}

#[test]
fn what_an_interrupted_create_left_is_taken_over_and_data_is_not() {
    let home = Home::new();
    drop(home.create());
    // Everything but the header, which is written last, and made under a key that is lost.
    fs::remove_file(home.backing().join("coffer.key")).unwrap();
    fs::write(home.backing().join("coffer.key.half"), "{").unwrap();
    let retry = Home { dir: home.dir, ..Home::new() };
    let filesystem = retry.create();
    fs::write(retry.path("file"), "x").unwrap();
    fs::create_dir(retry.path("source")).unwrap();
    fs::write(retry.path("source/file"), "x").unwrap();
    import(&filesystem, &retry.path("source"));
    drop(filesystem);
    export(&retry.open(), &retry.path("target"));

    fs::remove_file(retry.backing().join("coffer.key")).unwrap();
    let envelope = envelope(retry.key.id());
    let key = Arc::clone(&retry.key);
    let refused = Filesystem::create(&retry.backing(), key, &envelope, Backend::default());
    assert!(refused.unwrap_err().to_string().contains("coffer.key is missing"));
    // And it still opens with the key from the store.
    done(retry.open().import(&retry.path("source"), None, &Watch::default()).unwrap());
}

#[test]
fn opening_empties_the_stage_and_half_written_headers() {
    let home = Home::new();
    drop(home.create());
    let stage = home.backing().join("coffer.tmp");
    fs::write(stage.join("17"), "half").unwrap();
    fs::create_dir_all(stage.join("18/deeper/still")).unwrap();
    fs::write(home.backing().join("coffer.key.half"), "{").unwrap();
    drop(home.open());
    let names: Vec<_> =
        fs::read_dir(&stage).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["resume"]);
    assert!(!home.backing().join("coffer.key.half").exists());
    assert!(home.backing().join("coffer.key").exists());
}

#[test]
fn remove_takes_ours_and_leaves_what_is_not() {
    let home = Home::new();
    fs::create_dir(home.path("source")).unwrap();
    fs::write(home.path("source/file"), "x").unwrap();
    let filesystem = home.create();
    import(&filesystem, &home.path("source"));
    drop(filesystem);
    Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None).unwrap();
    assert!(!home.backing().exists());
    Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None).unwrap();

    drop(home.create());
    fs::write(home.backing().join("mine"), "precious").unwrap();
    Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None).unwrap();
    let left: Vec<_> =
        fs::read_dir(home.backing()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["mine"]);
    // No filesystem: not ours to remove.
    Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None).unwrap();
    assert!(home.backing().join("mine").exists());
}

#[test]
fn remove_refuses_what_another_key_owns_or_nobody_is_known_to() {
    let home = Home::new();
    fs::create_dir(home.path("source")).unwrap();
    fs::write(home.path("source/file"), "x").unwrap();
    import(&home.create(), &home.path("source"));
    let (ours, other) = (home.key.id(), kms_core::KeyId::random());
    let lock = home.backing().join("coffer.lock");
    assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{ours}\n"));
    let refuses = |key, why: &str| {
        let before = files_below(&home.backing());
        let error =
            Filesystem::remove(&BackingLocks::default(), &home.backing(), key, None).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Invalid);
        assert!(error.to_string().contains(why), "{error}");
        assert_eq!(files_below(&home.backing()), before);
    };
    refuses(other, &ours.to_string());

    // Without a header the lock file tells.
    let header = home.backing().join("coffer.key");
    let envelope = fs::read(&header).unwrap();
    fs::remove_file(&header).unwrap();
    refuses(other, &ours.to_string());
    fs::write(&lock, format!("{other}\n")).unwrap();
    refuses(ours, &other.to_string());

    // What names nobody goes only where there is nothing: here is data, or a header that can't be read.
    for torn in ["", "\0\0\0", &ours.to_string()[..20]] {
        fs::write(&lock, torn).unwrap();
        refuses(ours, "data of an encrypted filesystem");
        fs::write(&header, "{").unwrap();
        refuses(ours, "an encrypted filesystem in it");
        fs::remove_file(&header).unwrap();
    }
    // Opening shows whose it is, and the lock file says so again.
    drop(home.open());
    assert_eq!(fs::read_to_string(&lock).unwrap(), format!("{ours}\n"));
    fs::write(&lock, "").unwrap();
    fs::write(&header, envelope).unwrap();
    Filesystem::remove(&BackingLocks::default(), &home.backing(), ours, None).unwrap();
    assert!(!home.backing().exists());
}

#[test]
fn remove_takes_what_an_interrupted_creation_left() {
    let home = Home::new();
    for lock in ["", &format!("{}\n", home.key.id())] {
        drop(home.create());
        fs::remove_file(home.backing().join("coffer.key")).unwrap();
        fs::write(home.backing().join("coffer.lock"), lock).unwrap();
        Filesystem::remove(&BackingLocks::default(), &home.backing(), home.key.id(), None).unwrap();
        assert!(!home.backing().exists());
    }
}

#[test]
fn the_holder_lists_replaces_and_refuses() {
    let home = Home::new();
    let (locks, cipher) = (BackingLocks::default(), Backend::default());
    let headers = BackingHeaders::new(locks.clone());
    drop(home.create());
    let key = Arc::clone(&home.key);
    let filesystem = Filesystem::open_sharing(&locks, &home.backing(), key, None, cipher).unwrap();
    let site = FilesystemSite {
        name: "test".into(),
        key_id: home.key.id(),
        previous: None,
        backing: home.backing(),
    };
    let copies = ready(headers.list(&site)).unwrap();
    let [copy] = &copies[..] else { panic!("{copies:?}") };
    assert!(copy.location.ends_with("backing/coffer.key") && !copy.uploaded);
    let mut envelope = copy.envelope.as_ref().unwrap().clone();

    envelope.wrapped.ciphertext.version = KeyVersion(2);
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap();
    assert_eq!(read_envelope(&home.backing()).unwrap(), envelope);

    // Another key, another place, a copy that somebody else's filesystem has.
    let other = crate::support::envelope(kms_core::KeyId::random());
    ready(headers.replace(&site, &copy.location, &other)).unwrap_err();
    ready(headers.replace(&site, "/elsewhere/coffer.key", &envelope)).unwrap_err();
    let foreign = FilesystemSite { key_id: other.wrapped.key_id, ..site.clone() };
    ready(headers.replace(&foreign, &copy.location, &other)).unwrap_err();
    assert_eq!(read_envelope(&home.backing()).unwrap(), envelope);

    // A damaged copy is listed with its error, and mended; a newer one is left alone.
    let path = home.backing().join("coffer.key");
    fs::write(&path, "{\"format\": 1, \"filesystem\"").unwrap();
    assert!(ready(headers.list(&site)).unwrap()[0].envelope.is_err());
    assert_eq!(read_envelope(&home.backing()).unwrap_err().kind(), ErrorKind::Damaged);
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap();
    let forged = KeyEnvelope { revision: u64::MAX, ..envelope.clone() };
    fs::write(&path, serde_json::to_vec(&forged).unwrap()).unwrap();
    assert_eq!(read_envelope(&home.backing()).unwrap_err().kind(), ErrorKind::Damaged);
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap();
    assert_eq!(read_envelope(&home.backing()).unwrap(), envelope);
    fs::write(&path, "{\"format\": 2}").unwrap();
    assert_eq!(read_envelope(&home.backing()).unwrap_err().kind(), ErrorKind::Invalid);
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap_err();

    // One that is gone is put back where the tree is, and not where nothing is mounted.
    fs::remove_file(&path).unwrap();
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap();
    assert_eq!(read_envelope(&home.backing()).unwrap(), envelope);
    drop(filesystem);
    fs::rename(home.backing(), home.backing().with_file_name("not mounted")).unwrap();
    fs::create_dir(home.backing()).unwrap();
    ready(headers.replace(&site, &copy.location, &envelope)).unwrap_err();
    assert_eq!(fs::read_dir(home.backing()).unwrap().count(), 0);
}

/// The answer of a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(answer) => answer,
        Poll::Pending => panic!("it waits"),
    }
}

#[test]
fn a_note_opens_in_its_own_filesystem_and_context_alone() {
    let (home, other) = (Home::new(), Home::new());
    let (ours, theirs) = (home.create(), other.create());
    let sealed = ours.seal_note(b"job 1", b"letters/plan").unwrap();
    assert_eq!(ours.open_note(b"job 1", &sealed).unwrap(), b"letters/plan");
    drop(ours);
    assert_eq!(home.open().open_note(b"job 1", &sealed).unwrap(), b"letters/plan");
    assert_eq!(home.open().open_note(b"job 2", &sealed).unwrap_err().kind(), ErrorKind::Damaged);
    assert_eq!(theirs.open_note(b"job 1", &sealed).unwrap_err().kind(), ErrorKind::Damaged);
}

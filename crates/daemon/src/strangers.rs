//! Filesystems that lie in the state directory and that the key store does not know: they were forgotten, or an older store
//! was put back, from before they were made, together with all that tells how far it was.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use filesystem::read_envelope;
use key_manager::{FilesystemRecord, FilesystemStatus};

use crate::disks::Disks;
use crate::mutex::lock;

/// Those that were found at the start and are still there.
#[derive(Debug, Default)]
pub(crate) struct Strangers {
    found: Mutex<Vec<Stranger>>,
    disks: Disks,
}

impl Strangers {
    pub(crate) fn new(found: Vec<Stranger>) -> Self {
        Self { found: Mutex::new(found), disks: Disks::default() }
    }

    /// But for those whose place a filesystem has taken since.
    pub(crate) fn unknown(&self, known: &[FilesystemStatus]) -> Vec<Stranger> {
        let taken: HashSet<&Path> =
            known.iter().map(|fs| fs.filesystem.backing.as_path()).collect();
        let found = lock(&self.found);
        found
            .iter()
            .filter(|stranger| !taken.contains(stranger.backing.as_path()))
            .cloned()
            .collect()
    }

    /// Forgets those that are gone by now.
    pub(crate) async fn look_again(&self) {
        let found = lock(&self.found).clone();
        for Stranger { backing, .. } in found {
            let copy = backing.join("coffer.key");
            if self.disks.ask(&backing, move || copy.exists()).await == Ok(false) {
                lock(&self.found).retain(|stranger| stranger.backing != backing);
            }
        }
    }
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// As the copy of its wrapped key says.
    pub(crate) name: String,
    pub(crate) backing: PathBuf,
}

/// Those in this directory. What a known filesystem has there is not looked into.
pub(crate) fn find(directory: &Path, known: &[FilesystemRecord]) -> Vec<Stranger> {
    let backings: HashSet<&Path> = known.iter().map(|fs| fs.backing.as_path()).collect();
    let entries = std::fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
    let mut strangers: Vec<_> = entries
        .map(|entry| entry.path())
        .filter(|path| !backings.contains(path.as_path()))
        .filter_map(|backing| {
            let envelope = read_envelope(&backing).ok()?;
            // One whose key is known was moved, or copied.
            let id = Some(envelope.wrapped.key_id);
            let moved = known.iter().any(|fs| [Some(fs.key_id), fs.previous_key].contains(&id));
            (!moved).then_some(Stranger { name: envelope.filesystem, backing })
        })
        .collect();
    strangers.sort_by(|one, other| one.backing.cmp(&other.backing));
    strangers
}

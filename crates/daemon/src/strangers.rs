//! Filesystems that lie in the state directory and that the key store does not know: they were forgotten, or an older store
//! was put back, from before they were made, together with all that tells how far it was.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use filesystem::read_envelope;
use key_manager::FilesystemRecord;

/// One of them.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Stranger {
    /// As the copy of its wrapped key says.
    pub(crate) name: String,
    pub(crate) backing: PathBuf,
}

impl Stranger {
    /// Whether it still lies there.
    pub(crate) fn is_there(&self) -> bool {
        self.backing.join("coffer.key").exists()
    }
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
            let moved = known.iter().any(|fs| fs.key_id == envelope.wrapped.key_id);
            (!moved).then_some(Stranger { name: envelope.filesystem, backing })
        })
        .collect();
    strangers.sort_by(|one, other| one.backing.cmp(&other.backing));
    strangers
}

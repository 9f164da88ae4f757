//! What `verify` with repair changes: it sets aside in `coffer.lost` what can't be read, and writes
//! again what has a second source.
//!
//! Each act answers how it went, in words that end the sentence of the problem that it mends.

use std::os::fd::OwnedFd;

use data_path::BackingEntry;

use crate::error::{Doing, Fault, shown};
use crate::filesystem::LOST;
use crate::sealed::SealedTree;
use crate::sealed_file::SealedFile;
use crate::sys::{self, Inode, Stat, Xattr};

/// Where things are set aside: `coffer.lost`.
pub(crate) struct Repair {
    lost: OwnedFd,
}

impl Repair {
    pub(crate) const fn new(lost: OwnedFd) -> Self {
        Self { lost }
    }

    /// Moves an entry away, and with it the side file of its name.
    pub(crate) fn set_aside(&self, dir: &OwnedFd, raw: &[u8], path: &[u8], reason: &str) -> String {
        self.told(|id| {
            self.write_note(id, &format!("ciphertext path: {}", shown(path)), reason)?;
            sys::rename(dir, raw, &self.lost, id.as_bytes())?;
            if let BackingEntry::Long { side } = BackingEntry::classify(raw) {
                let aside = format!("{id}.name");
                match sys::rename(dir, side.as_bytes(), &self.lost, aside.as_bytes()) {
                    Ok(()) | Err(sys::Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            Ok(())
        })
    }

    /// Moves an attribute's value into a file of its own.
    pub(crate) fn set_xattr_aside(
        &self,
        of: Inode<'_>,
        (name, value): &Xattr,
        path: &[u8],
        reason: &str,
    ) -> String {
        self.told(|id| {
            let place = format!("ciphertext path: {}\nattribute: {}", shown(path), shown(name));
            self.write_note(id, &place, reason)?;
            let file = sys::create(&self.lost, id.as_bytes(), 0o600)?;
            sys::write_at(&file, value, 0)?;
            // Its only other place is about to go.
            sys::sync_file(&file)?;
            sys::sync_file(&self.lost)?;
            sys::remove_xattr(of, name)
        })
    }

    fn told(&self, act: impl FnOnce(&str) -> sys::Result<()>) -> String {
        let id = kms_core::KeyId::random().to_string();
        match act(&id) {
            Ok(()) => format!("; set aside as {}/{id}", shown(LOST)),
            Err(errno) => format!("; it can't be set aside: {}", std::io::Error::from(errno)),
        }
    }

    /// Comes first: nothing lies in `coffer.lost` without a note. The plain path is for the report
    /// alone: nothing readable lies in a backing directory.
    fn write_note(&self, id: &str, place: &str, reason: &str) -> sys::Result<()> {
        let file = sys::create(&self.lost, format!("{id}.note").as_bytes(), 0o600)?;
        sys::write_at(file, format!("{place}\nset aside because {reason}\n").as_bytes(), 0)
    }
}

/// Writes the root's record.
pub(crate) fn write_root_record(tree: &SealedTree) -> String {
    written_again(tree.open_root().and_then(|root| tree.write_record(&root)))
}

/// Writes the damaged one of a header's two sealed copies from the other one.
pub(crate) fn mend_header(
    tree: &SealedTree,
    dir: &OwnedFd,
    raw: &[u8],
    stat: &Stat,
    file: &SealedFile,
) -> String {
    let mend = || {
        let page = file.mended_header(&tree.keys)?;
        let file = sys::open_to_write(dir, raw).doing("opened")?;
        // One write within one sector: the other copy lies in it too, and stays as it is.
        sys::write_at(&file, &page[..SECTOR], 0).doing("written")?;
        sys::set_times(&file, stat).doing("given its times")?;
        sys::sync_file(&file).doing("made durable")
    };
    written_again(mend())
}

const SECTOR: usize = 512;

fn written_again(done: Result<(), Fault>) -> String {
    match done {
        Ok(()) => "; written again".to_owned(),
        Err(fault) => format!("; it can't be written again: {fault}"),
    }
}

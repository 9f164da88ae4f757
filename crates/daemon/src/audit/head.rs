//! The head of the audit log, in a file of its own: the last line that is known to be on disk, so that a tail that was cut off is
//! noticed. It is written behind the sync of the lines, so it is never ahead of them; it always has the same length and is written
//! over where it lies, so that it is the old or the new one whatever happens, and takes no room on a full disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use super::chain::Place;
use super::files::{open_private, open_to_read};
use crate::mutex::lock;

/// A number of 20 digits, a blank, a hash of 64, and the end of the line.
const LENGTH: usize = 86;

#[derive(Debug)]
pub(super) struct Head {
    path: PathBuf,
    pub(super) file: File,
    /// What it was last made to say, and held while it is; `None` where that is not known.
    said: Mutex<Option<Place>>,
}

impl Head {
    /// Opens the head, or makes it, and answers what it says: `Ok(None)` if it was not there.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Result<Option<Place>, String>)> {
        let file = open_private(path, OpenOptions::new().write(true).truncate(false))?;
        let place = read(path, &file)?;
        Ok((Self { path: path.to_owned(), file, said: Mutex::default() }, place))
    }

    /// Puts a place there, durably.
    pub(super) fn put(&self, place: &Place) -> io::Result<()> {
        let mut said = lock(&self.said);
        *said = None;
        let text = format!("{:020} {:>64}\n", place.seq, place.hash);
        self.file.write_all_at(text.as_bytes(), 0)?;
        self.file.sync_data()?;
        *said = Some(place.clone());
        Ok(())
    }

    /// What is wrong with it: what lies there does not say what it was made to.
    pub(super) fn trouble(&self) -> io::Result<Option<String>> {
        let said = lock(&self.said);
        let Some(said) = said.as_ref() else { return Ok(None) };
        let there = match open_to_read(&self.path) {
            Ok(file) => read(&self.path, &file)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("{} can't be read: {error}", self.path.display())),
        };
        Ok(match there {
            Ok(Some(there)) if there == *said => None,
            Ok(Some(Place { seq, .. })) => Some(format!(
                "the head of the audit log tells of line {seq}, and was made to tell of line {}: it was changed",
                said.seq
            )),
            Ok(None) => Some("the head of the audit log is gone".to_owned()),
            Err(why) => Some(why),
        })
    }
}

/// What the file says; `Ok(None)` if it is empty.
fn read(path: &Path, file: &File) -> io::Result<Result<Option<Place>, String>> {
    let mut text = Vec::new();
    file.take(LENGTH as u64 + 1).read_to_end(&mut text)?;
    Ok(match text.as_slice() {
        [] => Ok(None),
        text => parse(text).map(Some).ok_or_else(|| format!("{} can't be read", path.display())),
    })
}

fn parse(text: &[u8]) -> Option<Place> {
    let line = std::str::from_utf8(text).ok().filter(|text| text.len() == LENGTH)?;
    let (seq, hash) = line.strip_suffix('\n')?.split_once(' ')?;
    Some(Place { seq: seq.parse().ok()?, hash: hash.trim_start().to_owned() })
}

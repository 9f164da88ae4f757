//! The head of the audit log, in a file of its own: the last line that is known to be on disk, so that a tail that was cut off is
//! noticed. It is written behind the sync of the lines, so it is never ahead of them; it always has the same length and is written
//! over where it lies, so that it is the old or the new one whatever happens, and takes no room on a full disk.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::chain::Place;
use super::files::open_private;

/// A number of 20 digits, a blank, a hash of 64, and the end of the line.
const LENGTH: usize = 86;

#[derive(Debug)]
pub(super) struct Head(pub(super) File);

impl Head {
    /// Opens the head, or makes it, and answers what it says: `Ok(None)` if it was not there.
    pub(super) fn open(path: &Path) -> io::Result<(Self, Result<Option<Place>, String>)> {
        let mut file = open_private(path, OpenOptions::new().write(true).truncate(false))?;
        let mut text = Vec::new();
        (&mut file).take(LENGTH as u64 + 1).read_to_end(&mut text)?;
        let place = match text.as_slice() {
            [] => Ok(None),
            text => {
                parse(text).map(Some).ok_or_else(|| format!("{} can't be read", path.display()))
            }
        };
        Ok((Self(file), place))
    }

    /// Puts a place there, durably.
    pub(super) fn put(&self, place: &Place) -> io::Result<()> {
        self.0.write_all_at(format!("{:020} {:>64}\n", place.seq, place.hash).as_bytes(), 0)?;
        self.0.sync_data()
    }
}

fn parse(text: &[u8]) -> Option<Place> {
    let line = std::str::from_utf8(text).ok().filter(|text| text.len() == LENGTH)?;
    let (seq, hash) = line.strip_suffix('\n')?.split_once(' ')?;
    Some(Place { seq: seq.parse().ok()?, hash: hash.trim_start().to_owned() })
}

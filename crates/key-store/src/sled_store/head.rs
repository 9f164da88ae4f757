//! The state of a whole store in five lines, kept twice: among the records, and in the file
//! `generation` beside them.
//!
//! ```text
//! coffer key store
//! format 1
//! generation 17
//! previous <64 hex digits: the digest at generation 16>
//! digest <64 hex digits: over all records>
//! check <64 hex digits: SHA-256 of the lines above>
//! ```
//!
//! A commit writes the head among the records, in the same batch, and then the file. Stopped in
//! between, the records are one generation ahead of the file, and their `previous` is the file's
//! `digest`. Nothing else can come of a commit, so everything else is damage.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use kms_core::Version;
use sha2::{Digest as _, Sha256};

/// The format of a whole store that this program writes and reads.
pub(crate) const FORMAT: u64 = 1;

const MAGIC: &str = "coffer key store";
const FILE: &str = "generation";
const FILE_BEFORE: &str = "generation.new";

/// The XOR of the seals of all records: it follows a commit without reading the others, and says
/// whether one is missing, old or not ours. It is no defence against somebody who can write here.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Digest([u8; 32]);

impl Digest {
    /// Adds a record, or takes it out again.
    pub(crate) fn toggle(&mut self, seal: &[u8; 32]) {
        for (byte, other) in self.0.iter_mut().zip(seal) {
            *byte ^= other;
        }
    }
}

/// Which state a store is in.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Head {
    /// The number of the last commit.
    pub(crate) generation: Version,
    /// Over all records before that commit.
    pub(crate) previous: Digest,
    /// Over all records.
    pub(crate) digest: Digest,
}

/// Why a head can't be read.
pub(crate) enum HeadError {
    /// A newer program wrote it, in this format.
    Newer(u64),
    Damaged,
}

impl Head {
    /// The head after one more commit.
    pub(crate) fn next(&self, digest: Digest) -> Self {
        Self { generation: Version(self.generation.0 + 1), previous: self.digest, digest }
    }

    /// Whether this follows from `earlier` by one commit.
    pub(crate) fn follows(&self, earlier: &Self) -> bool {
        self.generation.0 == earlier.generation.0 + 1 && self.previous == earlier.digest
    }

    pub(crate) fn encode(&self) -> String {
        let lines = format!(
            "{MAGIC}\nformat {FORMAT}\ngeneration {}\nprevious {}\ndigest {}\n",
            self.generation.0,
            hex::encode(self.previous.0),
            hex::encode(self.digest.0)
        );
        let check = hex::encode(Sha256::digest(&lines));
        format!("{lines}check {check}\n")
    }

    /// Every format keeps the first two lines and the last, so that damage and a newer program are told apart.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Self, HeadError> {
        let text = std::str::from_utf8(bytes).map_err(|_| HeadError::Damaged)?;
        let (lines, check) = text.rsplit_once("check ").ok_or(HeadError::Damaged)?;
        if check != format!("{}\n", hex::encode(Sha256::digest(lines))) {
            return Err(HeadError::Damaged);
        }
        let mut lines = lines.lines();
        if lines.next() != Some(MAGIC) {
            return Err(HeadError::Damaged);
        }
        let mut field = |name: &str| {
            let value = lines.next()?.strip_prefix(name)?.strip_prefix(' ')?;
            Some(value.to_owned())
        };
        let number = |text: Option<String>| text?.parse().ok();
        match number(field("format")) {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => return Err(HeadError::Newer(newer)),
            _ => return Err(HeadError::Damaged),
        }
        let digest = |text: Option<String>| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(text?, &mut bytes).ok()?;
            Some(Digest(bytes))
        };
        let head = (|| {
            Some(Self {
                generation: Version(number(field("generation"))?),
                previous: digest(field("previous"))?,
                digest: digest(field("digest"))?,
            })
        })();
        head.ok_or(HeadError::Damaged)
    }

    /// The text of the file in `dir`, if there is one.
    pub(crate) fn read_file(dir: &Path) -> io::Result<Option<Vec<u8>>> {
        match fs::read(dir.join(FILE)) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// What a head is written with, opened before a commit begins: a process that may open no more files is told so while nothing
/// is done yet.
pub(crate) struct HeadFile {
    dir: File,
    path: PathBuf,
    before: PathBuf,
    file: File,
}

impl HeadFile {
    pub(crate) fn open(dir: &Path) -> io::Result<Self> {
        let (path, before) = (dir.join(FILE), dir.join(FILE_BEFORE));
        let mut options = OpenOptions::new();
        let file = options.write(true).create(true).truncate(true).mode(0o600).open(&before)?;
        Ok(Self { dir: File::open(dir)?, path, before, file })
    }

    /// Puts a head into the file. Afterwards the file is the old or the new one, whatever happened; on `Ok` the new one
    /// survives a power cut.
    pub(crate) fn write(mut self, head: &Head) -> io::Result<()> {
        self.file.write_all(head.encode().as_bytes())?;
        self.file.sync_all()?;
        fs::rename(&self.before, &self.path)?;
        self.dir.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> Head {
        let mut digest = Digest::default();
        digest.toggle(&[0xab; 32]);
        Head { generation: Version(17), previous: Digest([0x11; 32]), digest }
    }

    #[test]
    fn round_trip() {
        assert!(matches!(Head::decode(head().encode().as_bytes()), Ok(read) if read == head()));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_noticed() {
        let text = head().encode().into_bytes();
        for at in 0..text.len() {
            assert!(matches!(Head::decode(&text[..at]), Err(HeadError::Damaged)), "cut at {at}");
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[at] ^= 1 << bit;
                assert!(matches!(Head::decode(&flipped), Err(HeadError::Damaged)), "{at}.{bit}");
            }
        }
    }

    #[test]
    fn a_newer_format_is_told_apart() {
        let lines = "coffer key store\nformat 2\nwhatever comes then\n";
        let text = format!("{lines}check {}\n", hex::encode(Sha256::digest(lines)));
        assert!(matches!(Head::decode(text.as_bytes()), Err(HeadError::Newer(2))));
    }
}

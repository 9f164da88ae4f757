//! Where the lines of the audit log lie: in the file that is written, and in those before it, each named by its first line.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags, RenameFlags, renameat_with};

#[derive(Debug)]
pub(super) struct Files {
    /// `audit.jsonl`
    current: PathBuf,
    /// `audit/`, with `<first line>.jsonl`
    ended: PathBuf,
}

impl Files {
    pub(super) fn of(current: &Path) -> Self {
        Self { current: current.to_owned(), ended: current.with_extension("") }
    }

    /// Opens the file that is written, or makes it.
    pub(super) fn open_current(&self) -> io::Result<File> {
        open_private(&self.current, OpenOptions::new().append(true))
    }

    /// Opens what lies where the file that is written should lie, to read it; nothing is made.
    pub(super) fn read_current(&self) -> io::Result<File> {
        open_to_read(&self.current)
    }

    /// Whether `written` lies where it should: a file that was removed or replaced takes lines that nobody finds.
    ///
    /// # Errors
    /// It does not, or that can't be told.
    pub(super) fn check_current(&self, written: &File) -> io::Result<()> {
        let (there, written) = (fs::symlink_metadata(&self.current)?, written.metadata()?);
        if (there.dev(), there.ino()) == (written.dev(), written.ino()) {
            return Ok(());
        }
        Err(io::Error::other("another file was put in its place"))
    }

    /// The ended files with their first lines, the oldest first.
    pub(super) fn ended(&self) -> io::Result<Vec<(u64, PathBuf)>> {
        let entries = match fs::read_dir(&self.ended) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut ended = Vec::new();
        for entry in entries {
            let path = entry?.path();
            let first = path.file_name().and_then(|name| name.to_str()?.strip_suffix(".jsonl"));
            ended.extend(first.and_then(|first| first.parse().ok()).map(|first| (first, path)));
        }
        ended.sort();
        Ok(ended)
    }

    /// Ends the file that is written, whose lines are on disk and begin with `first`, and begins another one. Stopped at any
    /// point, each line lies in one of them; on an error the lines go on where they were.
    pub(super) fn turn(&self, first: u64) -> io::Result<File> {
        DirBuilder::new().mode(0o700).recursive(true).create(&self.ended)?;
        // Opened before anything is renamed: a process that may open no more files goes on with the old one.
        let new = self.current.with_extension("new");
        let begun = open_private(&new, OpenOptions::new().append(true))?;
        begun.set_len(0)?;
        let ended = self.ended.join(format!("{first:020}.jsonl"));
        rename_beside(&self.current, &ended)?;
        if let Err(error) = rename_beside(&new, &self.current) {
            rename_beside(&ended, &self.current)?;
            return Err(error);
        }
        Ok(begun)
    }

    /// Makes a turn durable, and removes the oldest files beyond `kept`.
    pub(super) fn tidy(&self, kept: usize) -> io::Result<()> {
        File::open(&self.ended)?.sync_all()?;
        if let Some(parent) = self.current.parent() {
            File::open(parent)?.sync_all()?;
        }
        let ended = self.ended()?;
        for (_, oldest) in ended.iter().take(ended.len().saturating_sub(kept)) {
            fs::remove_file(oldest)?;
        }
        Ok(())
    }
}

/// Renames, and never over another file.
fn rename_beside(from: &Path, to: &Path) -> io::Result<()> {
    Ok(renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE)?)
}

/// Opens a file to read it, as [`open_private`] does; nothing is made.
pub(super) fn open_to_read(path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)
}

/// Opens a file for its owner alone, or makes it; neither through a link, nor into a pipe, which would hold the start.
pub(super) fn open_private(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let options = options.read(true).create(true).mode(0o600);
    let file = options.custom_flags(flags.bits().cast_signed()).open(path)?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::Error::other("it is no regular file")),
    }
}

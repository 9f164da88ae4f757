//! Files that somebody names: they may be anything, and have no end.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use admin_api::{Exit, Problem};

/// A path of this process as another one has to be told it, or a later one: they have other working directories.
///
/// # Errors
/// It is empty, or this process has no working directory.
pub fn absolute(path: &Path) -> Result<PathBuf, Problem> {
    std::path::absolute(path).map_err(|e| {
        let title = format!("\"{}\" is no path", path.display());
        Problem::new(Exit::Usage, "path", title, e.to_string())
            .cure("name a file or a directory, by an absolute path if need be")
    })
}

/// Reads a text of fewer than `limit` bytes.
///
/// # Errors
/// It can't be read, is longer ([`io::ErrorKind::FileTooLarge`]), or is no UTF-8.
pub fn read_text(path: &Path, limit: u64) -> io::Result<String> {
    let mut text = String::new();
    if File::open(path)?.take(limit).read_to_string(&mut text)? as u64 == limit {
        let why = format!("it has {limit} bytes or more");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, why));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_refused_and_not_cut() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("text");
        std::fs::write(&path, "12345").unwrap();
        assert_eq!(read_text(&path, 6).unwrap(), "12345");
        assert!(read_text(&path, 5).unwrap_err().to_string().contains("5 bytes"));
        read_text(Path::new("/dev/zero"), 100).unwrap_err();
    }
}

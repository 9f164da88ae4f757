//! Are two trees equal? Names, kinds, contents, link targets, modes, owners, times of modification,
//! extended attributes and hard links.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use walkdir::WalkDir;

/// How much there is.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) files: u64,
    directories: u64,
    others: u64,
    bytes: u64,
}

/// Counts a tree.
pub(super) fn count(tree: &Path) -> Result<Size> {
    let mut size = Size::default();
    for entry in entries(tree)?.values() {
        size.add(entry);
    }
    Ok(size)
}

/// Compares two trees; the first difference is the error.
pub(super) fn trees(one: &Path, two: &Path) -> Result<Size> {
    let (left, right) = (entries(one)?, entries(two)?);
    let names = |side: &BTreeMap<PathBuf, Metadata>| side.keys().cloned().collect::<BTreeSet<_>>();
    let (left_names, right_names) = (names(&left), names(&right));
    if let Some(only) = left_names.symmetric_difference(&right_names).next() {
        bail!("{} is in only one of the trees", only.display());
    }
    let mut size = Size::default();
    let mut links = HashMap::new();
    for (name, (mine, other)) in left.iter().map(|(name, mine)| (name, (mine, &right[name]))) {
        let (a, b) = (one.join(name), two.join(name));
        let differ = difference(&a, mine, &b, other)?.or_else(|| {
            // The same inodes of the one side must be the same inodes of the other.
            let twin = links.entry((mine.dev(), mine.ino())).or_insert(other.ino());
            (*twin != other.ino()).then_some("hard links")
        });
        if let Some(differ) = differ {
            bail!("{} and {} differ in their {differ}", a.display(), b.display());
        }
        size.add(mine);
    }
    ensure!(size.files > 0, "{} holds no file: nothing was compared", one.display());
    Ok(size)
}

fn entries(tree: &Path) -> Result<BTreeMap<PathBuf, Metadata>> {
    let mut found = BTreeMap::new();
    for entry in WalkDir::new(tree).min_depth(1) {
        let entry = entry?;
        found.insert(entry.path().strip_prefix(tree)?.to_owned(), entry.metadata()?);
    }
    Ok(found)
}

fn difference(
    a: &Path,
    mine: &Metadata,
    b: &Path,
    other: &Metadata,
) -> Result<Option<&'static str>> {
    // The mode holds the kind too.
    if mine.mode() != other.mode() {
        return Ok(Some("kind or mode"));
    }
    if (mine.uid(), mine.gid()) != (other.uid(), other.gid()) {
        return Ok(Some("owner"));
    }
    if (mine.mtime(), mine.mtime_nsec()) != (other.mtime(), other.mtime_nsec()) {
        return Ok(Some("modification time"));
    }
    if mine.is_symlink() && fs::read_link(a)? != fs::read_link(b)? {
        return Ok(Some("link target"));
    }
    if mine.is_file() && (mine.len() != other.len() || fs::read(a)? != fs::read(b)?) {
        return Ok(Some("content"));
    }
    if attributes(a)? != attributes(b)? {
        return Ok(Some("extended attributes"));
    }
    Ok(None)
}

fn attributes(path: &Path) -> Result<BTreeMap<OsString, Option<Vec<u8>>>> {
    let names = match xattr::list(path) {
        Err(error) if error.kind() == std::io::ErrorKind::Unsupported => return Ok(BTreeMap::new()),
        names => names.with_context(|| format!("extended attributes of {}", path.display()))?,
    };
    names.map(|name| Ok((name.clone(), xattr::get(path, name)?))).collect()
}

impl Size {
    fn add(&mut self, metadata: &Metadata) {
        if metadata.is_file() {
            self.files += 1;
            self.bytes += metadata.len();
        } else if metadata.is_dir() {
            self.directories += 1;
        } else {
            self.others += 1;
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} files, {} directories", self.files, self.directories)?;
        if self.others > 0 {
            write!(f, ", {} links and others", self.others)?;
        }
        // As `coffer` shows amounts.
        let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
        match units.into_iter().find(|(shift, _)| self.bytes >> shift > 0) {
            Some((shift, unit)) => {
                write!(f, ", {:.2} {unit}", self.bytes as f64 / (1_u64 << shift) as f64)
            }
            None => write!(f, ", {} B", self.bytes),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, utimensat};

    use super::*;

    /// Gives everything in a tree the same times.
    fn stamp(root: &Path) {
        let past = Timespec { tv_sec: 1_000_000_000, tv_nsec: 5 };
        let times = Timestamps { last_access: past, last_modification: past };
        for entry in WalkDir::new(root) {
            utimensat(CWD, entry.unwrap().path(), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
    }

    fn tree() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path();
        fs::create_dir(root.join("folder")).unwrap();
        fs::write(root.join("folder/file"), "content").unwrap();
        fs::hard_link(root.join("folder/file"), root.join("twin")).unwrap();
        symlink("folder/file", root.join("link")).unwrap();
        stamp(root);
        folder
    }

    #[test]
    fn equal_trees_are_equal() {
        let size = trees(tree().path(), tree().path()).unwrap();
        assert_eq!(size, Size { files: 2, directories: 1, others: 1, bytes: 14 });
    }

    #[test]
    fn every_difference_has_its_name() {
        type Change = fn(&Path);
        let changes: [(&str, Change); 6] = [
            ("only one", |root| fs::write(root.join("more"), "").unwrap()),
            ("content", |root| fs::write(root.join("folder/file"), "CONTENT").unwrap()),
            ("mode", |root| {
                let mode = fs::Permissions::from_mode(0o600);
                fs::set_permissions(root.join("folder/file"), mode).unwrap();
            }),
            ("link target", |root| {
                fs::remove_file(root.join("link")).unwrap();
                symlink("folder", root.join("link")).unwrap();
            }),
            ("extended attributes", |root| xattr::set(root.join("twin"), "user.x", b"1").unwrap()),
            ("hard links", |root| {
                fs::remove_file(root.join("twin")).unwrap();
                fs::write(root.join("twin"), "content").unwrap();
            }),
        ];
        for (name, change) in changes {
            let (one, two) = (tree(), tree());
            change(two.path());
            stamp(two.path());
            let said = trees(one.path(), two.path()).unwrap_err().to_string();
            assert!(said.contains(name), "{name}: {said}");
        }

        let (one, two) = (tree(), tree());
        fs::write(two.path().join("twin"), "content").unwrap();
        let said = trees(one.path(), two.path()).unwrap_err().to_string();
        assert!(said.contains("modification time"), "{said}");
    }
}

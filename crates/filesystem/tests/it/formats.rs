//! A backing directory as this crate writes it, read by somebody who knows `docs/formats.md` and nothing else.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, lgetxattr, llistxattr, lsetxattr, mknodat};
use testkit::tree::noise;

use crate::reader::{self, Keys};
use crate::support::{Home, import};

#[test]
fn a_whole_tree_lies_as_the_specification_says() {
    let home = Home::new();
    let source = home.path("source");
    make(&source);
    import(&home.create(), &source);
    let reader = Reader::of(&home);
    let root = home.backing().join("root");
    assert_eq!(reader.id_of(&root), reader.keys.root_directory());
    let mut found = BTreeSet::new();
    reader.read(&root, &source, &mut found);
    let expected = walk(&source);
    assert!(found == expected, "{:?}", found.symmetric_difference(&expected).collect::<Vec<_>>());
    assert_eq!(fs::read_dir(home.backing().join("coffer.links")).unwrap().count(), 2);
    let envelope = fs::read(home.backing().join("coffer.key")).unwrap();
    let envelope: serde_json::Value = serde_json::from_slice(&envelope).unwrap();
    assert_eq!(envelope["wrapped"]["key_id"], home.key.id().to_string());
    let lock = fs::read_to_string(home.backing().join("coffer.lock")).unwrap();
    assert_eq!(lock, format!("{}\n", home.key.id()));
}

/// Each kind of thing, on both sides of each length at which the format changes.
fn make(source: &Path) {
    fs::create_dir_all(source.join("dir/empty")).unwrap();
    for len in [0, 1, 71, 72, 73, 4095, 4096, 4097, 253_952, 253_953, 258_048, 258_049, 5_000_001] {
        fs::write(source.join(format!("{len} bytes")), noise(len as u64, len)).unwrap();
    }
    for len in [1, 174, 175, 255] {
        fs::write(source.join("dir").join("n".repeat(len)), "named").unwrap();
    }
    fs::create_dir(source.join("d".repeat(255))).unwrap();
    fs::write(source.join("d".repeat(255)).join("file"), "below a long name").unwrap();
    for len in [1, 734, 735, 4095] {
        symlink("t".repeat(len), source.join(format!("link of {len}"))).unwrap();
    }
    make_sparse(&source.join("holes in a group"), 300_000, &[0, 65_536]);
    make_sparse(&source.join("holes of groups"), 9 << 20, &[1 << 20, 6 << 20]);
    make_sparse(&source.join("one hole"), 3 << 20, &[]);
    fs::hard_link(source.join("4097 bytes"), source.join("dir/hard link")).unwrap();
    mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o640), 0).unwrap();
    for place in ["4097 bytes", "dir"] {
        for (name, value) in [("user.note", &b"sealed"[..]), ("user.empty", b"")] {
            lsetxattr(source.join(place), name, value, XattrFlags::empty()).unwrap();
        }
    }
}

fn make_sparse(path: &Path, len: u64, islands: &[u64]) {
    let file = File::create(path).unwrap();
    file.set_len(len).unwrap();
    for at in islands {
        file.write_all_at(&noise(*at, 5000), *at).unwrap();
    }
}

/// All paths below.
fn walk(dir: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.is_symlink() {
            found.extend(walk(&path));
        }
        found.insert(path);
    }
    found
}

struct Reader {
    keys: Keys,
    links: PathBuf,
}

impl Reader {
    fn of(home: &Home) -> Self {
        let id = hex::decode(home.key.id().to_string().replace('-', "")).unwrap();
        let keys = Keys { key: home.key.expose(|bytes| bytes.to_vec()), id };
        Self { keys, links: home.backing().join("coffer.links") }
    }

    fn id_of(&self, directory: &Path) -> Vec<u8> {
        self.keys.directory(&fs::read(directory.join("coffer.dir")).unwrap())
    }

    /// Compares all that lies in a directory with what it was made from.
    fn read(&self, directory: &Path, source: &Path, found: &mut BTreeSet<PathBuf>) {
        let id = self.id_of(directory);
        self.compare_attributes(&[b"d", &id[..]].concat(), directory, source);
        let mut sides = BTreeSet::from(["coffer.dir".to_owned()]);
        let mut others = BTreeSet::new();
        for entry in fs::read_dir(directory).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            if name.contains('.') {
                others.insert(name);
                continue;
            }
            let side = |side: &str| {
                sides.insert(side.to_owned());
                fs::read(directory.join(side)).unwrap()
            };
            let plain = self.keys.name(&id, &name, side);
            let plain = source.join(std::ffi::OsString::from_vec(plain));
            self.compare(&directory.join(name), &plain, found);
            found.insert(plain);
        }
        assert_eq!(others, sides, "in {source:?}");
    }

    fn compare(&self, backing: &Path, source: &Path, found: &mut BTreeSet<PathBuf>) {
        let (is, was) = (backing.symlink_metadata().unwrap(), source.symlink_metadata().unwrap());
        let open = |it: &fs::Metadata| (it.mode() & 0o7777, it.uid(), it.gid(), it.nlink());
        assert_eq!((open(&is), is.modified().unwrap()), (open(&was), was.modified().unwrap()));
        if is.is_dir() {
            return self.read(backing, source, found);
        }
        if is.is_symlink() {
            let record = |name: &str| fs::read(self.links.join(name)).unwrap();
            let target =
                self.keys.target(fs::read_link(backing).unwrap().to_str().unwrap(), record);
            return assert_eq!(target, fs::read_link(source).unwrap().as_os_str().as_bytes());
        }
        let image = fs::read(backing).unwrap();
        if image.len() == 72 {
            assert_eq!(self.keys.node(&image), (b'p', 0, 0));
            return assert!(std::os::unix::fs::FileTypeExt::is_fifo(&was.file_type()));
        }
        let plain = reader::File::open(&self.keys, &image).plain();
        assert!(plain == fs::read(source).unwrap(), "{source:?}");
        self.compare_attributes(&[b"f", &image[8..24]].concat(), backing, source);
    }

    fn compare_attributes(&self, owner: &[u8], backing: &Path, source: &Path) {
        let sealed = attributes(backing).into_iter();
        let opened: BTreeSet<_> = sealed
            .map(|(name, value)| {
                self.keys.attribute(owner, std::str::from_utf8(&name).unwrap(), &value)
            })
            .collect();
        assert_eq!(opened, attributes(source), "of {source:?}");
    }
}

fn attributes(path: &Path) -> BTreeSet<(Vec<u8>, Vec<u8>)> {
    let mut list = [0; 1000];
    let len = llistxattr(path, &mut list[..]).unwrap();
    let names = list[..len].split(|byte| *byte == 0).filter(|name| name.starts_with(b"user."));
    names
        .map(|name| {
            let mut value = [0; 1000];
            let len = lgetxattr(path, name, &mut value[..]).unwrap();
            (name.to_vec(), value[..len].to_vec())
        })
        .collect()
}

//! What is imported: little of each kind that is written in its own way.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr};
use testkit::tree;

/// Makes it in a directory that does not exist.
pub(crate) fn make(source: &Path) {
    fs::create_dir_all(source.join("sub")).unwrap();
    fs::write(source.join("sub/small"), b"small").unwrap();
    fs::write(source.join("medium"), tree::noise(1, 700_000)).unwrap();
    fs::hard_link(source.join("medium"), source.join("sub/link")).unwrap();
    symlink("medium", source.join("symlink")).unwrap();
    symlink("x".repeat(1000), source.join("long symlink")).unwrap();
    fs::write(source.join("x".repeat(255)), b"a long name").unwrap();
    make_sparse(&source.join("sparse"));
    let set = |name: &str, attribute: &str, value: &[u8]| {
        setxattr(source.join(name), attribute, value, XattrFlags::empty()).unwrap();
    };
    set("sub/small", "user.note", b"sealed");
    set("sub", "user.note", b"sealed");
    set("medium", "system.posix_acl_access", &acl());
}

/// Several segments and few data: two islands, around which groups are holes that the hole map tells of.
fn make_sparse(path: &Path) {
    const MIB: u64 = 1 << 20;
    let file = File::create(path).unwrap();
    file.set_len(9 * MIB).unwrap();
    for (seed, at) in [(2, MIB), (3, 6 * MIB)] {
        file.write_all_at(&tree::noise(seed, 10_000), at).unwrap();
    }
}

/// `u::rw-,u:1234:r--,g::r--,m::r--,o::---` in the kernel's form (`linux/posix_acl_xattr.h`).
fn acl() -> Vec<u8> {
    const NONE: u32 = u32::MAX;
    let entries: [(u16, u16, u32); 5] =
        [(0x01, 6, NONE), (0x02, 4, 1234), (0x04, 4, NONE), (0x10, 4, NONE), (0x20, 0, NONE)];
    let mut bytes = 2_u32.to_le_bytes().to_vec();
    for (tag, permissions, id) in entries {
        bytes.extend([tag.to_le_bytes(), permissions.to_le_bytes()].concat());
        bytes.extend(id.to_le_bytes());
    }
    bytes
}

//! An import into what an earlier one left.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use filesystem::{Outcome, ProblemKind};
use testkit::tree;

use crate::support::{
    ACCESS_ACL, DEFAULT_ACL, Home, Watch, acl, assert_equal_trees, done, export, import, set_xattr,
};

/// An ACL that stayed would let somebody in whom the source lets in no more.
#[test]
fn a_directory_keeps_no_acl_and_no_attribute_that_the_source_has_no_more() {
    let home = Home::new();
    let (first, second, target) = (home.path("first"), home.path("second"), home.path("target"));
    for source in [&first, &second] {
        for dir in ["stricter", "other", "same"] {
            fs::create_dir_all(source.join(dir)).unwrap();
            set_xattr(&source.join(dir), "user.same", b"value");
        }
        set_xattr(&source.join("same"), DEFAULT_ACL, &acl(7));
    }
    for dir in [first.clone(), first.join("stricter"), second.join("other")] {
        set_xattr(&dir, ACCESS_ACL, &acl(7));
        set_xattr(&dir, DEFAULT_ACL, &acl(7));
        set_xattr(&dir, "user.of one", b"value");
    }
    for (source, value) in [(&first, "old"), (&second, "new")] {
        set_xattr(&source.join("other"), "user.changed", value.as_bytes());
    }
    let filesystem = home.create();
    import(&filesystem, &first);
    import(&filesystem, &second);
    done(filesystem.verify(false, &Watch::default()).unwrap());
    export(&filesystem, &target);
    assert_equal_trees(&second, &target);
}

#[test]
fn what_has_several_names_is_imported_when_the_first_meets_a_directory() {
    let home = Home::new();
    let (first, second, target) = (home.path("first"), home.path("second"), home.path("target"));
    for name in ["a small", "a large"] {
        fs::create_dir_all(first.join(name)).unwrap();
    }
    fs::create_dir(&second).unwrap();
    fs::write(second.join("a small"), "content").unwrap();
    fs::write(second.join("a large"), tree::noise(1, 9_000_000)).unwrap();
    for (old, new) in [("small", "b"), ("small", "c"), ("large", "b"), ("large", "c")] {
        fs::hard_link(second.join(format!("a {old}")), second.join(format!("{new} {old}")))
            .unwrap();
    }
    let filesystem = home.create();
    import(&filesystem, &first);
    let report = filesystem.import(&second, None, &Watch::default()).unwrap();
    assert_eq!(report.outcome, Outcome::PartlyDone);
    let mut problems: Vec<_> = report.problems.iter().map(|p| (&*p.path, p.kind)).collect();
    problems.sort_by_key(|(path, _)| *path);
    let conflicts = ["a large", "a small"].map(|name| (Path::new(name), ProblemKind::Conflict));
    assert_eq!(problems, conflicts);
    export(&filesystem, &target);
    for name in ["small", "large"] {
        let [b, c] = ["b", "c"].map(|link| target.join(format!("{link} {name}")));
        assert!(fs::read(&b).unwrap() == fs::read(second.join(format!("a {name}"))).unwrap());
        let [b, c] = [b, c].map(|link| fs::metadata(link).unwrap());
        assert_eq!((b.ino(), b.nlink()), (c.ino(), 2), "{name}");
    }
}

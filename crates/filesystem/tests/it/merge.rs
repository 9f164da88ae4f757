//! An import into what an earlier one left.

use std::fs;

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

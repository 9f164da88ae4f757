//! What lies in a directory, by pages.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use filesystem::{Filesystem, ProblemKind};

use crate::support::{Home, files_below, import};

/// All pages: the names in each, which follow each other without a gap.
fn pages(filesystem: &Filesystem, path: &Path, limit: usize) -> Vec<Vec<String>> {
    let (mut pages, mut after) = (Vec::new(), None);
    loop {
        let page = filesystem.list_page(path, after.as_deref(), limit).unwrap();
        assert_eq!(page.unreadable, []);
        let name = |entry: filesystem::Entry| entry.name.into_string().unwrap();
        pages.push(page.entries.into_iter().map(name).collect());
        after = page.next;
        if after.is_none() {
            return pages;
        }
    }
}

#[test]
fn pages_follow_each_other_by_name() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    // Some are too long to lie under a name of their own.
    let mut names: Vec<String> =
        (0..500_u32).map(|n| "n".repeat(n as usize % 250) + &n.to_string()).collect();
    for name in &names {
        fs::write(source.join("dir").join(name), "").unwrap();
    }
    names.sort();
    let filesystem = home.create();
    import(&filesystem, &source);
    for limit in [1, 7, 499, 500, 501, usize::MAX] {
        let pages = pages(&filesystem, Path::new("dir"), limit);
        let (last, others) = pages.split_last().unwrap();
        assert!(others.iter().all(|page| page.len() == limit) && last.len() <= limit);
        assert_eq!(pages.len(), 500_usize.div_ceil(limit));
        assert!(pages.concat() == names, "{limit}");
    }
    let beyond = filesystem.list_page(Path::new("dir"), Some("o".as_ref()), 10).unwrap();
    assert_eq!((beyond.entries, beyond.next), (Vec::new(), None));
    assert_eq!(pages(&filesystem, Path::new("/"), 1), [["dir"]]);
}

#[test]
fn a_page_ends_where_names_and_targets_take_much_room() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    for n in 0..1200 {
        symlink("x".repeat(4000), source.join(format!("{n:04}"))).unwrap();
    }
    let filesystem = home.create();
    import(&filesystem, &source);
    let pages = pages(&filesystem, Path::new("/"), usize::MAX);
    assert_eq!(pages.iter().map(Vec::len).collect::<Vec<_>>(), [1048, 152]);
}

/// What is on other pages is not even looked at, which is what makes a large directory's pages cheap.
#[test]
fn each_page_tells_what_is_wrong_with_its_own_names() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    for name in ["a", "m", "z"] {
        fs::write(source.join(name), name).unwrap();
    }
    symlink("y".repeat(3000), source.join("y")).unwrap();
    let filesystem = home.create();
    import(&filesystem, &source);
    let record = files_below(&home.backing().join("coffer.links")).remove(0);
    fs::write(record, "altered").unwrap();
    fs::write(home.backing().join("root/eAAAA"), "no name").unwrap();
    let page = |after: Option<&str>| {
        let page = filesystem.list_page(Path::new("/"), after.map(AsRef::as_ref), 2).unwrap();
        let entries = page.entries.iter().map(|entry| entry.name.to_str().unwrap().to_owned());
        let unread = page.unreadable.iter().map(|it| {
            assert_eq!(it.kind, ProblemKind::Damaged);
            it.path.to_str().unwrap().to_owned()
        });
        (entries.collect::<Vec<_>>().concat(), unread.collect::<Vec<_>>(), page.next)
    };
    assert_eq!(page(None), ("am".into(), vec![String::new()], Some("m".into())));
    assert_eq!(page(Some("m")), ("z".into(), vec!["y".into()], None));
}

#[test]
fn what_has_no_name_that_can_be_read_is_counted_when_it_is_too_much_to_name() {
    let home = Home::new();
    let source = home.path("source");
    fs::create_dir_all(source.join("dir")).unwrap();
    for n in 0..1100 {
        fs::write(source.join("dir").join(n.to_string()), "").unwrap();
    }
    let filesystem = home.create();
    import(&filesystem, &source);
    let root = home.backing().join("root");
    let entries = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path());
    let dir = entries.into_iter().find(|path| path.is_dir()).unwrap();
    fs::copy(root.join("coffer.dir"), dir.join("coffer.dir")).unwrap();
    let listing = filesystem.list_page(Path::new("dir"), None, 10).unwrap();
    assert_eq!((listing.unreadable.len(), listing.unreadable_omitted), (1000, 100));
    assert_eq!((listing.entries, listing.next), (Vec::new(), None));
}

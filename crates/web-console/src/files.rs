//! What lies in a filesystem.

use admin_api::{BytePath, EntryKind, Listing};
use maud::{Markup, html};

use crate::page::Viewer;
use crate::parts::{Row, ago, table};

/// A page of a directory.
#[derive(Debug)]
pub struct FilesView<'a> {
    /// The filesystem.
    pub filesystem: &'a str,
    /// The directory, from the filesystem's root.
    pub path: &'a BytePath,
    /// Its entries.
    pub listing: &'a Listing,
}

/// The entries of a directory.
pub fn files(view: &FilesView<'_>, viewer: &Viewer<'_>) -> Markup {
    let FilesView { filesystem, path, listing } = view;
    let rows: Vec<Row<'_>> = listing
        .entries
        .iter()
        .map(|entry| {
            let name = entry.name.to_string();
            let modified = u64::try_from(entry.modified_at).unwrap_or_default();
            let cells = vec![
                html! {
                    @if entry.kind == EntryKind::Directory { (turn(view, &inside(path, &entry.name), None, &name)) }
                    @else { (name) }
                    @if let Some(target) = &entry.target { " → " (target) }
                },
                html! { (kind(entry.kind)) },
                html! { @if entry.kind == EntryKind::File { (words::bytes(entry.size)) } },
                ago(modified, viewer),
                html! { code { (format!("{:04o}", entry.mode)) } },
                html! { (entry.uid) ":" (entry.gid) },
            ];
            ("", cells)
        })
        .collect();
    let head = ["Name", "Kind", "Size", "Changed", "Mode", "Owner"];
    html! {
        p { a href={ "/filesystems/" (filesystem) } { (filesystem) } }
        p.path { (shown(path)) }
        @if let Some(above) = above(path) { (turn(view, &above, None, "Up")) }
        @if rows.is_empty() { p { "It is empty." } } @else { (table("Files", &head, &rows)) }
        @for thing in &listing.unreadable {
            div.alert.error { p { (thing.kind) ": " (thing.what) } }
        }
        @if listing.unreadable_omitted > 0 { p { "and " (listing.unreadable_omitted) " more" } }
        @if let Some(next) = &listing.next { (turn(view, path, Some(next), "Next")) }
    }
}

/// A button to a directory: names can have any bytes, and stand in a form as they do in the API.
fn turn(view: &FilesView<'_>, path: &BytePath, after: Option<&BytePath>, label: &str) -> Markup {
    html! {
        form method="get" action={ "/filesystems/" (view.filesystem) "/files" } {
            input type="hidden" name="path" value=(path.encode());
            @if let Some(after) = after { input type="hidden" name="after" value=(after.encode()); }
            button.link type="submit" { (label) }
        }
    }
}

fn shown(path: &BytePath) -> String {
    if path.as_bytes().is_empty() { "/".to_owned() } else { path.to_string() }
}

fn inside(path: &BytePath, name: &BytePath) -> BytePath {
    let mut bytes = path.as_bytes().to_vec();
    if bytes.last() != Some(&b'/') {
        bytes.push(b'/');
    }
    bytes.extend_from_slice(name.as_bytes());
    BytePath::new(bytes)
}

/// The directory that holds this one; none holds the root.
fn above(path: &BytePath) -> Option<BytePath> {
    let bytes = path.as_bytes();
    let trimmed = &bytes[..bytes.len() - usize::from(bytes.last() == Some(&b'/'))];
    let end = trimmed.iter().rposition(|byte| *byte == b'/')?;
    Some(BytePath::new(&trimmed[..end.max(1)]))
}

const fn kind(kind: EntryKind) -> &'static str {
    match kind {
        EntryKind::File => "file",
        EntryKind::Directory => "directory",
        EntryKind::Symlink => "link",
        EntryKind::Fifo => "FIFO",
        EntryKind::CharacterDevice => "character device",
        EntryKind::BlockDevice => "block device",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_gone_into_and_left_again() {
        let path = |text: &str| BytePath::new(text);
        assert_eq!(inside(&path("/"), &path("a")), path("/a"));
        assert_eq!(inside(&path(""), &path("a")), path("/a"));
        assert_eq!(inside(&path("/a"), &path("b")), path("/a/b"));
        assert_eq!(above(&path("/a/b")), Some(path("/a")));
        assert_eq!(above(&path("/a")), Some(path("/")));
        assert_eq!((above(&path("/")), above(&path(""))), (None, None));
    }
}

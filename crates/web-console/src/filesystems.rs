//! Filesystems: the list, and one.

use admin_api::{Filesystem, FilesystemState, Filesystems, Jobs};
use maud::{Markup, html};

use crate::form::{Forms, Input, act, decide, decide_with_care, dialog, opener, post, tick};
use crate::jobs::progress;
use crate::page::Viewer;
use crate::parts::{Row, ago, fields, findings, lines, live, mark, problem, table};

/// What the list is made of.
#[derive(Debug)]
pub struct FilesystemsView<'a> {
    /// A page of them.
    pub page: &'a Filesystems,
    /// What was looked for in names.
    pub search: &'a str,
    /// The state that they are in, if only those are wanted.
    pub state: &'a str,
    /// Whether this is not the first page.
    pub is_later: bool,
    /// Where the list is found as it is shown: its search goes along with what is asked of it.
    pub address: &'a str,
    /// Whether a KMS would wrap the key of a new one.
    pub has_kms: bool,
    /// What was typed.
    pub forms: &'a Forms,
}

/// The list of filesystems.
pub fn filesystems(view: &FilesystemsView<'_>, viewer: &Viewer<'_>) -> Markup {
    let FilesystemsView { page, search, state, is_later, .. } = view;
    let rows: Vec<Row<'_>> =
        page.filesystems.iter().map(|fs| (&*fs.name, row(fs, viewer))).collect();
    let head = ["Name", "State", "Key wrapped by", "Exposed", "Made", "Backing"];
    let is_all = search.is_empty() && state.is_empty() && !is_later;
    let list = html! {
        @if rows.is_empty() && is_all {
            p { "There is no filesystem yet." }
        } @else if rows.is_empty() {
            p { "None fits." }
        } @else {
            (table("Filesystems", &head, &rows))
        }
        div.pages {
            @if *is_later { (turn(view, None, "First")) }
            @if let Some(next) = &page.next { (turn(view, Some(next), "Next")) }
        }
    };
    html! {
        @if viewer.may_change {
            div.acts { (opener("create", "Create filesystem", "main")) }
            (create(view, viewer))
        }
        form.search method="get" action="/filesystems" role="search" {
            div.input {
                label for="search" { "Name contains" }
                input #search name="search" value=(search) autocomplete="off" spellcheck="false";
            }
            div.input {
                label for="state" { "State" }
                select #state name="state" {
                    @for (value, name) in [("", "any"), ("unlocked", "unlocked"), ("locked", "locked"), ("exposed", "exposed")] {
                        option value=(value) selected[value == *state] { (name) }
                    }
                }
            }
            button type="submit" { "Search" }
        }
        (live("filesystems", &list))
    }
}

/// A button to another page of the same search.
fn turn(view: &FilesystemsView<'_>, after: Option<&str>, label: &str) -> Markup {
    html! {
        form method="get" action="/filesystems" {
            input type="hidden" name="search" value=(view.search);
            input type="hidden" name="state" value=(view.state);
            @if let Some(after) = after { input type="hidden" name="after" value=(after); }
            button.quiet type="submit" { (label) }
        }
    }
}

fn row(fs: &Filesystem, viewer: &Viewer<'_>) -> Vec<Markup> {
    vec![
        html! { a href={ "/filesystems/" (fs.name) } { (fs.name) } },
        html! {
            (state(fs))
            @if let Some(why) = &fs.problem { p.why { (why.detail) } }
        },
        html! { (words::wrapped_by(&fs.wrapped_by)) },
        html! { @if fs.exposed { (mark("bad", "exposed")) } @else { "no" } },
        ago(fs.created_at, viewer),
        html! { span.path { (fs.backing) } },
    ]
}

fn state(fs: &Filesystem) -> Markup {
    let kind = match fs.state {
        FilesystemState::Unlocked => "good",
        FilesystemState::Unlocking | FilesystemState::Deleting => "poor",
        FilesystemState::Locked => "bad",
    };
    mark(kind, words::filesystem_state(fs.state))
}

/// The id of the dialog that makes a filesystem.
const CREATE: &str = "create";

fn create(view: &FilesystemsView<'_>, viewer: &Viewer<'_>) -> Markup {
    let has_kms = view.has_kms;
    let (form, open) = view.forms.get(CREATE);
    let more = ["backing", "kms_key"].iter().any(|name| !form.value(name).is_empty());
    let body = html! {
        (form.problem())
        (Input::new("name", "Name", "1 to 64 letters, digits, dots, dashes and underscores").required().show(CREATE, &form))
        @if !has_kms {
            p.alert.warning { "No KMS is set: the key would be wrapped locally, beside the data, and be exposed." }
            (tick(CREATE, "allow_no_kms", "Make it without a KMS all the same", &form))
        }
        details open[more] {
            summary { "More" }
            (Input::new("backing", "Backing directory", "An absolute path on the node; empty: a place of the node's own").show(CREATE, &form))
            @if has_kms {
                (Input::new("kms_key", "Key name", "A master key of its own in the KMS; empty: the one that is set for all").show(CREATE, &form))
            }
        }
        (decide("Cancel", "Create", "main"))
    };
    dialog(CREATE, "Create filesystem", open, &post(view.address, viewer, &body))
}

/// One filesystem, and what can be done with it.
pub fn filesystem(fs: &Filesystem, jobs: &Jobs, forms: &Forms, viewer: &Viewer<'_>) -> Markup {
    let of_this = |job: &&admin_api::Job| job.filesystem.as_deref() == Some(&fs.name);
    let path = |act: &str| format!("/filesystems/{}/{act}", fs.name);
    let body = html! {
        p { (state(fs)) @if fs.exposed { " " (mark("bad", "exposed")) } }
        @if let Some(why) = &fs.problem { (problem(why)) }
        (findings(&fs.findings))
        @if viewer.may_change {
            div.acts data-key="acts" {
                @match fs.state {
                    FilesystemState::Unlocked => {
                        (opener(LOCK, "Lock", ""))
                        (opener(VERIFY, "Verify", ""))
                        (opener(REKEY, "Re-encrypt", ""))
                        (opener(IMPORT, "Import", ""))
                        (opener(EXPORT, "Export", ""))
                    }
                    FilesystemState::Locked | FilesystemState::Unlocking => (act(&path("unlock"), "Unlock", "main", viewer)),
                    FilesystemState::Deleting => {}
                }
                (act(&path("rewrap"), "Rewrap key", "", viewer))
                (opener(DELETE, "Delete", "danger"))
            }
        }
        @if fs.state == FilesystemState::Unlocked {
            p { a href=(path("files")) { "Files" } }
        }
        (fields(&words::filesystem(fs), viewer))
        section aria-labelledby="jobs" {
            h2 #jobs { "Jobs" }
            @let mut of_this = jobs.jobs.iter().filter(of_this).take(10).peekable();
            @if of_this.peek().is_none() { p { "none" } }
            @for job in of_this { (progress(job, viewer)) }
        }
    };
    html! {
        p { a href="/filesystems" { "All filesystems" } }
        (live("filesystem", &body))
        @if viewer.may_change { (dialogs(fs, forms, viewer)) }
    }
}

const LOCK: &str = "lock";
const VERIFY: &str = "verify";
const REKEY: &str = "rekey";
const IMPORT: &str = "import";
const EXPORT: &str = "export";
const DELETE: &str = "delete";

fn dialogs(fs: &Filesystem, forms: &Forms, viewer: &Viewer<'_>) -> Markup {
    let ask = |id: &'static str,
               title: &str,
               body: &dyn Fn(&crate::form::Form) -> Markup,
               last: Markup| {
        let (form, open) = forms.get(id);
        let body = html! { (form.problem()) (body(&form)) (last) };
        dialog(id, title, open, &post(&format!("/filesystems/{}/{id}", fs.name), viewer, &body))
    };
    html! {
        (ask(LOCK, &format!("Lock {}", fs.name), &|form| html! {
            p { "Its key leaves the memory. It stays locked over restarts, until it is unlocked here." }
            (tick(LOCK, "force", "Stop jobs that use it", form))
        }, decide_with_care("Cancel", "Lock", "main")))
        (ask(VERIFY, &format!("Verify {}", fs.name), &|form| html! {
            p { "Everything in it is read and authenticated; what is damaged is named." }
            (tick(VERIFY, "repair", "Set aside what can't be read, so that the rest can be used", form))
        }, decide_with_care("Cancel", "Verify", "main")))
        (ask(REKEY, &format!("Re-encrypt {}", fs.name), &|_| html! {
            p { "It gets a new key, and all of its data is encrypted anew under that. It goes on being used meanwhile, and no data is lost if it is stopped." }
        }, decide("Cancel", "Re-encrypt", "main")))
        (ask(IMPORT, &format!("Import into {}", fs.name), &|form| html! {
            (Input::new("source", "Directory", "An absolute path on the node, whose content is copied in").required().show(IMPORT, form))
        }, decide("Cancel", "Import", "main")))
        (ask(EXPORT, &format!("Export from {}", fs.name), &|form| html! {
            p.alert.warning { "What is exported is readable by whoever can read that directory." }
            (Input::new("target", "Directory", "An absolute path on the node, which receives the files in plain").required().show(EXPORT, form))
        }, decide("Cancel", "Export", "danger")))
        (ask(DELETE, &format!("Delete {}", fs.name), &|form| html! {
            p { "All data in " span.path { (lines(&fs.backing.to_string())) } " and every copy of its wrapped key here are lost." }
            (tick(DELETE, "forget", "Only forget it: its record goes, and what lies in the backing directory stays", form))
            (Input::new("name", &format!("Type {} to delete it", fs.name), "").required().first().show(DELETE, form))
        }, decide("Cancel", "Delete", "danger")))
    }
}

//! What several pages are made of.

use admin_api::{Finding, Problem};
use maud::{Markup, html};
use words::{Fields, Value};

use crate::page::Viewer;

/// Something, and when it was so.
#[derive(Debug, Clone)]
pub struct At<T> {
    /// In Unix milliseconds.
    pub at: u64,
    /// What.
    pub it: T,
}

/// Names and values.
pub(crate) fn fields(fields: &Fields, viewer: &Viewer<'_>) -> Markup {
    html! {
        dl.fields {
            @for (name, value) in fields.iter() {
                div {
                    dt { (name) }
                    dd {
                        @match value {
                            Value::Text(text) => (lines(text)),
                            Value::Moment(at) => (ago(*at, viewer)),
                        }
                    }
                }
            }
        }
    }
}

/// A text of several lines.
pub(crate) fn lines(text: &str) -> Markup {
    html! {
        @for (at, line) in text.trim_end().lines().enumerate() {
            @if at > 0 { br; }
            (line)
        }
    }
}

/// What should be changed, each with what to do.
pub(crate) fn findings<'a>(findings: impl IntoIterator<Item = &'a Finding>) -> Markup {
    html! {
        @for finding in findings {
            div.alert.warning data-code=(finding.code) data-key={ (finding.code) (finding.what) } {
                p { strong { "Warning: " } (lines(&finding.what)) }
                (cure(&finding.cure))
            }
        }
    }
}

/// What failed, why, what to do.
pub fn problem(problem: &Problem) -> Markup {
    html! {
        div.alert.error role="alert" tabindex="-1" data-code=(problem.code) data-key=(problem.code) {
            p { strong { (problem.title) ": " } (lines(&problem.detail)) }
            @if let Some(text) = &problem.cure { (cure(text)) }
        }
    }
}

/// What to do, in the words that the command line has for it, and where in the console that is done.
pub(crate) fn cure(text: &str) -> Markup {
    let mut here = HERE.iter().filter(|(command, ..)| text.contains(command)).peekable();
    html! {
        p.cure { strong { "Do: " } (lines(text)) }
        @if here.peek().is_some() {
            p.here {
                "In this console: "
                @for (at, (_, place, name)) in here.enumerate() {
                    @if at > 0 { "; " }
                    @if place.is_empty() { (name) } @else { a href=(place) { (name) } }
                }
            }
        }
    }
}

/// Commands and options that cures name, where in the console that is, and what it is called there. Without a place it stands in the
/// same dialog.
const HERE: [(&str, &str, &str); 23] = [
    ("coffer fs kms set-vault", "/kms", "KMS Configuration, Configure or Update KMS"),
    ("coffer fs kms rewrap", "/kms", "KMS Configuration, Rewrap keys"),
    ("coffer fs kms unset", "/kms", "KMS Configuration, Reset KMS"),
    ("coffer fs kms check", "/kms#check", "KMS Configuration, Check now"),
    ("coffer fs kms policy", "/kms#policy", "KMS Configuration, Policy"),
    ("(coffer fs kms)", "/kms", "KMS Configuration"),
    ("coffer fs list", "/filesystems", "Filesystems"),
    ("coffer fs unlock", "/filesystems?state=locked", "the filesystem's page, Unlock"),
    ("coffer fs rekey", "/filesystems?state=exposed", "the filesystem's page, Re-encrypt"),
    ("coffer fs delete", "/filesystems", "the filesystem's page, Delete"),
    ("coffer job", "/jobs", "Jobs"),
    ("coffer audit", "/audit", "Audit"),
    ("--allow-http", "", "Allow plain http beyond this machine, under More"),
    ("--ca-cert", "", "CA certificate, under More"),
    ("--client-cert", "", "Client certificate, under More"),
    ("--transit-path", "", "Transit path, under More"),
    ("--auth-path", "", "Auth path, under More"),
    ("--role-id", "", "AppRole, under More"),
    ("--token-stdin", "", "API token"),
    ("--allow-no-kms", "", "Make it without a KMS all the same"),
    ("--backing", "", "Backing directory, under More"),
    ("--forget", "", "Only forget it"),
    ("--allow-downgrade", "/kms", "Reset KMS, Downgrade to local wrapping"),
];

/// What failed, with the way back.
pub fn back(failed: &Problem, to: &str, label: &str) -> Markup {
    html! { (problem(failed)) p { a href=(to) { (label) } } }
}

/// A moment as so long ago, with the exact one in its title.
pub(crate) fn ago(moment: u64, viewer: &Viewer<'_>) -> Markup {
    let exact = words::moment(moment);
    let seconds = viewer.now.saturating_sub(moment) / 1000;
    html! {
        time datetime=(exact) title=(exact) {
            @if seconds < 2 { "just now" } @else { (words::span(seconds)) " ago" }
        }
    }
}

/// A word with a colour, which says nothing that the word does not.
pub(crate) fn mark(kind: &str, word: &str) -> Markup {
    html! { span class={ "mark " (kind) } { (word) } }
}

/// A region that the script renews when the node has news.
pub(crate) fn live(id: &str, body: &Markup) -> Markup {
    html! { div id=(id) data-live { (body) } }
}

/// A row of a table: what it is known by when the table is renewed, and its cells.
pub(crate) type Row<'a> = (&'a str, Vec<Markup>);

/// A table that can be scrolled sideways, also by the keyboard, where it is too narrow.
pub(crate) fn table(caption: &str, head: &[&str], rows: &[Row<'_>]) -> Markup {
    html! {
        div.scroll role="region" aria-label=(caption) tabindex="0" {
            table {
                caption.unseen { (caption) }
                thead { tr { @for name in head { th scope="col" { (name) } } } }
                tbody {
                    @for (key, row) in rows {
                        tr data-key=[(!key.is_empty()).then_some(key)] {
                            @for (at, cell) in row.iter().enumerate() {
                                @if at == 0 { th scope="row" { (cell) } }
                                @else { td data-name=(head.get(at).copied().unwrap_or_default()) { (cell) } }
                            }
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_is_told_as_so_long_ago_with_the_exact_one_in_its_title() {
        let viewer = Viewer { csrf: "", may_change: true, now: 3_600_000 };
        let told = ago(0, &viewer).into_string();
        assert_eq!(
            told,
            "<time datetime=\"1970-01-01T00:00:00Z\" title=\"1970-01-01T00:00:00Z\">60 minutes ago</time>"
        );
        assert!(ago(3_600_000, &viewer).into_string().contains("just now"));
        assert!(ago(9_999_999, &viewer).into_string().contains("just now"), "clocks may differ");
    }

    #[test]
    fn a_cure_says_where_in_the_console_it_is_done() {
        let told = cure("set one: coffer fs kms set-vault").into_string();
        assert!(told.contains("<a href=\"/kms\">KMS Configuration, Configure or Update KMS</a>"));
        let told = cure("give it with --ca-cert or --client-cert").into_string();
        assert!(told.contains("CA certificate, under More; Client certificate, under More"));
        assert!(!cure("unseal it: vault operator unseal").into_string().contains("console"));
    }

    #[test]
    fn what_others_wrote_is_text_and_no_markup() {
        let script = "<script>alert(1)</script>\nline";
        let told =
            problem(&Problem::new(admin_api::Exit::Failed, script, script, script).cure(script));
        let told = told.into_string();
        assert!(
            !told.contains("<script>") && told.contains("&lt;script&gt;") && told.contains("<br>")
        );
    }
}

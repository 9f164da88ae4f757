//! What every page has.

use maud::{DOCTYPE, Markup, html};

use crate::assets::{ICON, SCRIPT, STYLE};
use crate::parts::lines;

/// Who looks at a page, and when.
#[derive(Debug, Clone, Copy)]
pub struct Viewer<'a> {
    /// What a form of this session has to carry.
    pub csrf: &'a str,
    /// Whether the session may change anything; if not, no page offers it.
    pub may_change: bool,
    /// Now, in Unix milliseconds: times are shown as so long ago.
    pub now: u64,
}

/// A part of the console, as the sidebar names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Section {
    /// Whether all is well.
    Overview,
    /// The KMS.
    Kms,
    /// Filesystems.
    Filesystems,
    /// Long work.
    Jobs,
    /// The audit log.
    Audit,
}

impl Section {
    const ALL: [(Self, &str, &str); 5] = [
        (Self::Overview, "/", "Overview"),
        (Self::Kms, "/kms", "KMS Configuration"),
        (Self::Filesystems, "/filesystems", "Filesystems"),
        (Self::Jobs, "/jobs", "Jobs"),
        (Self::Audit, "/audit", "Audit"),
    ];

    /// Where it is.
    pub fn path(self) -> &'static str {
        Self::ALL[self as usize].1
    }

    /// What it is called.
    pub fn name(self) -> &'static str {
        Self::ALL[self as usize].2
    }
}

/// A page.
#[derive(Debug)]
pub struct Page<'a> {
    section: Option<Section>,
    title: &'a str,
    viewer: Option<&'a Viewer<'a>>,
    notice: Option<&'a str>,
    at: Option<&'a str>,
}

impl<'a> Page<'a> {
    /// One of a section.
    pub const fn new(section: Section, title: &'a str, viewer: &'a Viewer<'a>) -> Self {
        Self { section: Some(section), title, viewer: Some(viewer), notice: None, at: None }
    }

    /// One for somebody who is not known.
    pub const fn outside(title: &'a str) -> Self {
        Self { section: None, title, viewer: None, notice: None, at: None }
    }

    /// One of no section, for somebody who is known.
    pub const fn aside(title: &'a str, viewer: &'a Viewer<'a>) -> Self {
        Self { section: None, title, viewer: Some(viewer), notice: None, at: None }
    }

    /// With the news of what was just done.
    #[must_use]
    pub const fn notice(mut self, notice: Option<&'a str>) -> Self {
        self.notice = notice;
        self
    }

    /// Which is found at another address than that of the form that it answers.
    #[must_use]
    pub const fn at(mut self, path: &'a str) -> Self {
        self.at = Some(path);
        self
    }

    /// The whole document.
    pub fn render(&self, body: &Markup) -> String {
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    meta name="color-scheme" content="light dark";
                    title { (self.title) " – Coffer" }
                    link rel="icon" href=(ICON.url()) type="image/svg+xml";
                    link rel="stylesheet" href=(STYLE.url());
                    script type="module" src=(SCRIPT.url()) {}
                }
                body data-live-from=[self.viewer.map(|_| "/v1/events")] data-at=[self.at] {
                    a.skip href="#main" { "Skip to the content" }
                    (self.sidebar())
                    main #main tabindex="-1" {
                        h1 { (self.title) }
                        // It is there from the beginning, so that what comes into it is read out.
                        div.notices role="status" {
                            @if let Some(notice) = self.notice { p.notice { (lines(notice)) } }
                        }
                        p.of-page role="status" {}
                        noscript {
                            p.alert.warning { "This console needs JavaScript for its dialogs and for live figures." }
                        }
                        (body)
                    }
                }
            }
        }
        .into_string()
    }

    fn sidebar(&self) -> Markup {
        html! {
            header.sidebar {
                p.brand { img src=(ICON.url()) alt="" width="28" height="28"; "Coffer" }
                @if let Some(viewer) = self.viewer {
                    nav aria-label="Sections" {
                        ul {
                            @for (section, path, name) in Section::ALL {
                                li {
                                    a href=(path) aria-current=[(self.section == Some(section)).then_some("page")] { (name) }
                                }
                            }
                        }
                    }
                    form.leave method="post" action="/logout" {
                        input type="hidden" name="csrf" value=(viewer.csrf);
                        @if !viewer.may_change { p.role { "This session may only look." } }
                        button.quiet type="submit" { "Log out" }
                    }
                }
            }
        }
    }
}

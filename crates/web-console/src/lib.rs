//! The pages of the web console: the admin API's answers in, HTML out.
//!
//! Nothing here listens, asks or decides who may see what. The node gathers answers of its own API, says who looks at them
//! ([`Viewer`]), and sends what [`Page::render`] makes of it. All text is escaped by maud; no page has a script or a style in it, so that
//! the strictest content security policy holds.
//!
//! | module | its part |
//! |---|---|
//! | `page` | what every page has: sidebar, notices, the viewer |
//! | `parts` | what several pages are made of: fields, findings, problems, times |
//! | `form` | dialogs and their inputs: what was typed is kept, what is wrong stands beside it |
//! | `picture` | figures, in SVG |
//! | `overview`, `kms`, `filesystems`, `files`, `jobs`, `audit`, `login` | the screens |
//! | `assets` | the style sheet, the script, the icon |
//!
//! ```
//! use web_console::{Page, Section, Viewer};
//!
//! let viewer = Viewer { csrf: "token", may_change: true, now: 0 };
//! let page = admin_api::Jobs { jobs: Vec::new(), next: None };
//! let page = Page::new(Section::Jobs, "Jobs", &viewer).render(&web_console::jobs(&web_console::JobsView { page: &page, is_later: false }, &viewer));
//! assert!(page.contains("<h1>Jobs</h1>") && !page.contains("<script>"));
//! ```

mod assets;
mod audit;
mod files;
mod filesystems;
mod form;
mod jobs;
mod kms;
mod login;
mod overview;
mod page;
mod parts;
mod picture;

pub use assets::{Asset, asset};
pub use audit::{AuditQuery, audit};
pub use files::{FilesView, files};
pub use filesystems::{FilesystemsView, filesystem, filesystems};
pub use form::{Form, Forms};
pub use jobs::{JobsView, job, jobs};
pub use kms::{ImpactQuery, KMS_INPUTS, KmsView, kms};
pub use login::login;
pub use overview::overview;
pub use page::{Page, Section, Viewer};
pub use parts::{At, back, problem};

//! What is looked at.

use admin_api::{
    AuditPage, BytePath, Exit, Filesystem, Filesystems, Job, JobKind, Jobs, Kms, KmsImpact,
    KmsPolicy, Listing, Problem, Status, paths,
};
use axum::Extension;
use axum::extract::{Path, Query, State};
use axum::http::uri::PathAndQuery;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::{Html, IntoResponse, Response};
use serde::Deserialize;
use web_console::{
    AuditQuery, FilesView, FilesystemsView, Forms, ImpactQuery, JobsView, KmsView, Page, Section,
    Viewer,
};

use super::access::Session;
use super::{Console, LIVE, OfKms};
use crate::api::status_of;
use crate::mutex::lock;
use crate::problem;

/// Filesystems on a page.
const ROWS: usize = 100;

/// Entries of a directory on a page: many, for each page costs a look at all of them.
const ENTRIES: usize = 1000;

/// How long a move of keys that has ended is shown where the KMS is, in milliseconds.
const NEWS_FOR: u64 = 10 * 60 * 1000;

/// Lines of the audit log on a page.
const LINES: u64 = 100;

/// What was wanted by somebody who had to log in first.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Next {
    #[serde(default)]
    next: String,
}

pub(super) async fn login(Query(Next { next }): Query<Next>) -> Html<String> {
    Html(Page::outside("Log in").render(&web_console::login(None, &next)))
}

pub(super) async fn overview(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    headers: HeaderMap,
) -> Response {
    let shown = async {
        let api = console.api(&session);
        let status: Status = api.get(paths::STATUS).await?;
        Ok((status, api.get::<Jobs>(paths::JOBS).await?))
    };
    let show = |(status, jobs): (Status, Jobs), viewer: &Viewer<'_>, notice: Option<&str>| {
        let body = web_console::overview(&status, &jobs, viewer);
        Page::new(Section::Overview, "Overview", viewer).notice(notice).render(&body)
    };
    console.shows(&session, &headers, Section::Overview, shown.await, show)
}

/// What the KMS screen can be asked to show besides.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Besides {
    #[serde(default)]
    impact: String,
    #[serde(default)]
    below: String,
    /// Of which master key that is asked.
    #[serde(default)]
    key: String,
    /// Master keys, with commas between them, whose policy is asked for.
    #[serde(default)]
    policy: String,
    /// Where transit is mounted for that.
    #[serde(default)]
    mount: String,
}

pub(super) async fn kms(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Query(besides): Query<Besides>,
    headers: HeaderMap,
) -> Response {
    if !headers.contains_key(LIVE) {
        // What it says comes with the next renewal: a KMS that hangs does not hold the page.
        console.shared.health.look_soon();
    }
    let shown = kms_shown(&console, &session, &besides).await;
    console.shows(&session, &headers, Section::Kms, shown, |shown, viewer, notice| {
        kms_page(&console, &shown, &Forms::default(), viewer, notice)
    })
}

/// All that the KMS screen shows.
pub(super) struct KmsShown {
    kms: Kms,
    filesystems: u64,
    jobs: Vec<Job>,
    impact: Option<Result<KmsImpact, Problem>>,
    asked: ImpactQuery,
    policy: Option<Result<KmsPolicy, Problem>>,
    policy_of: (String, String),
}

pub(super) async fn kms_shown(
    console: &Console,
    session: &Session,
    besides: &Besides,
) -> Result<KmsShown, Problem> {
    let api = console.api(session);
    // What is known of the KMS: a page that renews itself asks it nothing.
    let status: Status = api.get(paths::STATUS).await?;
    let jobs: Jobs = api.get(paths::JOBS).await?;
    let now = console.shared.clock.now().0;
    let moves = |job: &Job| {
        use JobKind::{Downgrade, Move, Renew, Rewrap};
        let is_news = job.ended_at.is_none_or(|ended| now.saturating_sub(ended) < NEWS_FOR);
        is_news && matches!(job.kind, Downgrade | Move | Renew | Rewrap)
    };
    let configured = status.kms.configured.as_ref();
    let asked: Vec<String> = match configured {
        _ if !besides.policy.trim().is_empty() => vec![besides.policy.trim().to_owned()],
        Some(kms) => {
            let own = kms.own_keys.iter().map(|own| own.master_key.clone());
            [kms.master_key.clone()].into_iter().chain(own).collect()
        }
        None => Vec::new(),
    };
    let mount = match besides.mount.trim() {
        "" => configured.map(|kms| &*kms.transit_path).filter(|path| *path != "transit"),
        mount => Some(mount),
    };
    let policy = match asked.is_empty() {
        false => Some(api.get(&paths::policy(&asked, mount)).await),
        true => None,
    };
    let asked = ImpactQuery {
        of: besides.impact.clone(),
        below: besides.below.trim().to_owned(),
        master_key: besides.key.trim().to_owned(),
    };
    let master_key = Some(&*asked.master_key).filter(|key| !key.is_empty());
    let impact = match &*asked.of {
        "token" => Some(api.get(&paths::impact("token", None, None)).await),
        "key" => Some(api.get(&paths::impact("key", None, master_key)).await),
        "versions" => match asked.below.parse::<u64>() {
            Ok(_) => {
                let path = paths::impact("versions", Some(&asked.below), master_key);
                Some(api.get(&path).await)
            }
            Err(_) => Some(Err(Problem::new(
                Exit::Usage,
                "invalid",
                "it can't be told what would fail",
                "a version is a number",
            )
            .cure("give the version that min_decryption_version would be raised to"))),
        },
        _ => None,
    };
    Ok(KmsShown {
        filesystems: status.filesystems.total,
        kms: status.kms,
        jobs: jobs.jobs.into_iter().filter(moves).take(1).collect(),
        impact,
        asked,
        policy,
        policy_of: (besides.policy.clone(), besides.mount.clone()),
    })
}

pub(super) fn kms_page(
    console: &Console,
    shown: &KmsShown,
    forms: &Forms,
    viewer: &Viewer<'_>,
    notice: Option<&str>,
) -> String {
    let found = &console.shared.found;
    let (check, rehearsal) = (lock(&found.check), lock(&found.rehearsal));
    let body = web_console::kms(
        &KmsView {
            kms: &shown.kms,
            filesystems: shown.filesystems,
            jobs: &shown.jobs,
            check: OfKms::of(&check, &shown.kms.version),
            rehearsal: OfKms::of(&rehearsal, &shown.kms.version),
            impact: shown.impact.as_ref(),
            asked: &shown.asked,
            policy: shown.policy.as_ref(),
            policy_of: (&shown.policy_of.0, &shown.policy_of.1),
            forms,
        },
        viewer,
    );
    Page::new(Section::Kms, "KMS Configuration", viewer).at("/kms").notice(notice).render(&body)
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Wanted {
    #[serde(default)]
    search: String,
    #[serde(default)]
    state: String,
    #[serde(default)]
    after: Option<String>,
}

pub(super) async fn filesystems(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Query(wanted): Query<Wanted>,
    uri: Uri,
    headers: HeaderMap,
) -> Response {
    let shown = filesystems_shown(&console, &session, &wanted).await;
    console.shows(&session, &headers, Section::Filesystems, shown, |shown, viewer, notice| {
        filesystems_page(&shown, &wanted, &uri, &Forms::default(), viewer, notice)
    })
}

/// A page of the list, and whether a KMS is set. The node's whole state would cost as much again as the list.
pub(super) async fn filesystems_shown(
    console: &Console,
    session: &Session,
    Wanted { search, state, after }: &Wanted,
) -> Result<(Filesystems, bool), Problem> {
    let page = paths::filesystems(search, state, after.as_deref(), Some(ROWS));
    let page: Filesystems = console.api(session).get(&page).await?;
    let seen = console.shared.health.seen().await;
    let seen = seen.map_err(|e| problem::of_keys("filesystems can't be listed", &e))?;
    Ok((page, seen.config.is_some()))
}

pub(super) fn filesystems_page(
    (page, has_kms): &(Filesystems, bool),
    Wanted { search, state, after }: &Wanted,
    uri: &Uri,
    forms: &Forms,
    viewer: &Viewer<'_>,
    notice: Option<&str>,
) -> String {
    let is_later = after.is_some();
    let has_kms = *has_kms;
    let address = uri.path_and_query().map_or("/filesystems", PathAndQuery::as_str);
    let view = FilesystemsView { page, search, state, is_later, address, has_kms, forms };
    let body = web_console::filesystems(&view, viewer);
    Page::new(Section::Filesystems, "Filesystems", viewer).at(address).notice(notice).render(&body)
}

pub(super) async fn filesystem(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Response {
    let shown = filesystem_shown(&console, &session, &name).await;
    console.shows(&session, &headers, Section::Filesystems, shown, |shown, viewer, notice| {
        filesystem_page(&shown, &Forms::default(), viewer, notice)
    })
}

pub(super) async fn filesystem_shown(
    console: &Console,
    session: &Session,
    name: &str,
) -> Result<(Filesystem, Jobs), Problem> {
    let api = console.api(session);
    Ok((api.get(&paths::filesystem(name)).await?, api.get(paths::JOBS).await?))
}

pub(super) fn filesystem_page(
    (fs, jobs): &(Filesystem, Jobs),
    forms: &Forms,
    viewer: &Viewer<'_>,
    notice: Option<&str>,
) -> String {
    let body = web_console::filesystem(fs, jobs, forms, viewer);
    let path = format!("/filesystems/{}", fs.name);
    Page::new(Section::Filesystems, &fs.name, viewer).at(&path).notice(notice).render(&body)
}

/// Where a page of a list begins.
#[derive(Debug, Default, Deserialize)]
pub(super) struct From {
    after: Option<String>,
}

pub(super) async fn jobs(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Query(From { after }): Query<From>,
    headers: HeaderMap,
) -> Response {
    let path = paths::jobs(after.as_deref(), Some(ROWS));
    let shown = console.api(&session).get::<Jobs>(&path).await;
    console.shows(&session, &headers, Section::Jobs, shown, |page, viewer, notice| {
        let view = JobsView { page: &page, is_later: after.is_some() };
        let body = web_console::jobs(&view, viewer);
        Page::new(Section::Jobs, "Jobs", viewer).notice(notice).render(&body)
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct Damage {
    #[serde(default)]
    damage_after: u64,
}

pub(super) async fn job(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Path(id): Path<String>,
    Query(Damage { damage_after }): Query<Damage>,
    headers: HeaderMap,
) -> Response {
    let shown = console.api(&session).get::<Job>(&paths::job_damage(&id, damage_after)).await;
    console.shows(&session, &headers, Section::Jobs, shown, |job, viewer, notice| {
        let body = web_console::job(&job, viewer);
        Page::new(Section::Jobs, words::job_noun(job.kind), viewer).notice(notice).render(&body)
    })
}

#[derive(Debug, Default, Deserialize)]
pub(super) struct Lines {
    #[serde(default)]
    action: String,
    #[serde(default)]
    subject: String,
    #[serde(default)]
    failed: bool,
    before: Option<u64>,
}

pub(super) async fn audit(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Query(Lines { action, subject, failed, before }): Query<Lines>,
    headers: HeaderMap,
) -> Response {
    let query = AuditQuery { action, subject, failed, before };
    let shown = async {
        let api = console.api(&session);
        let AuditQuery { action, subject, failed, before } = &query;
        api.get::<AuditPage>(&paths::audit(action, subject, *failed, *before, LINES)).await
    };
    let shown = shown.await;
    console.shows(&session, &headers, Section::Audit, shown, |page, viewer, notice| {
        let chain = lock(&console.shared.found.chain);
        let body = web_console::audit(&page, chain.as_ref(), &query, viewer);
        Page::new(Section::Audit, "Audit", viewer).notice(notice).render(&body)
    })
}

#[derive(Debug, Deserialize)]
pub(super) struct Directory {
    #[serde(default)]
    path: BytePath,
    after: Option<BytePath>,
}

pub(super) async fn files(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    Path(name): Path<String>,
    Query(Directory { path, after }): Query<Directory>,
    headers: HeaderMap,
) -> Response {
    let wanted = paths::ls(&name, &path, after.as_ref(), Some(ENTRIES));
    let shown = console.api(&session).get::<Listing>(&wanted).await;
    console.shows(&session, &headers, Section::Filesystems, shown, |listing, viewer, notice| {
        let view = FilesView { filesystem: &name, path: &path, listing: &listing };
        let title = format!("Files in {name}");
        let body = web_console::files(&view, viewer);
        Page::new(Section::Filesystems, &title, viewer).notice(notice).render(&body)
    })
}

pub(super) async fn nowhere(
    State(console): State<Console>,
    Extension(session): Extension<Session>,
    uri: Uri,
) -> Response {
    let why = format!("the console has no page {}", uri.path());
    let problem =
        Problem::new(admin_api::Exit::Usage, "no-such-page", "there is no such page", why);
    let problem = problem.cure("choose a section at the side").with_status(404);
    let page = console.page(&session, |viewer| {
        Page::aside("No such page", viewer).render(&web_console::problem(&problem))
    });
    (StatusCode::NOT_FOUND, page).into_response()
}

impl Console {
    /// A page of a section, or why it can't be shown, in its place.
    fn shows<T>(
        &self,
        session: &Session,
        headers: &HeaderMap,
        section: Section,
        shown: Result<T, Problem>,
        show: impl FnOnce(T, &Viewer<'_>, Option<&str>) -> String,
    ) -> Response {
        match shown {
            Ok(shown) => {
                // News are for who looks, not for a page that renews a part of itself.
                let looks = !headers.contains_key(LIVE);
                let notice = looks.then(|| self.shared.access.told(&session.id)).flatten();
                self.page(session, |viewer| show(shown, viewer, notice.as_deref())).into_response()
            }
            Err(problem) => {
                let page = self.page(session, |viewer| {
                    Page::new(section, &problem.title, viewer)
                        .render(&web_console::problem(&problem))
                });
                (status_of(&problem), page).into_response()
            }
        }
    }
}

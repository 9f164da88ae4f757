//! What is sent by forms. What was done is told on the page that follows; what was refused is told in the form, which keeps what was typed.

use std::collections::HashMap;

use admin_api::{
    AuditChain, BytePath, CreateFilesystem, Deleted, Exit, Export, Filesystem, Import, Job,
    KmsChange, KmsCheck, KmsDetails, KmsRehearsal, Lock, Problem, Rewrap, SetVault, Status, Token,
    Verify, paths,
};
use axum::Extension;
use axum::Form as Urlencoded;
use axum::extract::{Path, Query, State};
use axum::http::Uri;
use axum::http::header::SET_COOKIE;
use axum::response::{Html, IntoResponse, Redirect, Response};
use kms_core::Outcome;
use serde::Deserialize;
use web_console::{At, Form, Forms, KMS_INPUTS, Page, Viewer};
use zeroize::Zeroizing;

use super::access::Session;
use super::pages::{self, Besides, Wanted};
use super::{Console, OfKms, Submitted, no_entry};
use crate::api::status_of;
use crate::mutex::lock;
use crate::problem;

#[derive(Deserialize)]
pub(super) struct Code {
    #[serde(default)]
    code: String,
    /// The page that was wanted.
    #[serde(default)]
    next: String,
}

pub(super) async fn log_in(
    State(console): State<Console>,
    Urlencoded(Code { code, next }): Urlencoded<Code>,
) -> Response {
    let shared = &console.shared;
    let entered = shared.access.log_in(code.trim(), shared.clock.now());
    let entered = entered.map_err(|e| problem::internal("no session is opened", e));
    let (problem, who) = match entered {
        Ok(Ok((secret, session))) => {
            let event = shared.of_session(Outcome::Done, Some((&session, &session.by)), "opened");
            if let Err(why) = shared.audit.try_record(&event) {
                shared.access.end(&session.id);
                return log_in_refused(&crate::api::unrecorded(why), &next);
            }
            let cookie = [(SET_COOKIE, console.set_cookie(&secret))];
            let next = if is_page(&next) { &*next } else { "/" };
            return (cookie, Redirect::to(next)).into_response();
        }
        Ok(Err(why)) => (no_entry(&why), "a wrong code"),
        Err(problem) => (problem, "no random bytes"),
    };
    // A thousand guesses are not a thousand lines.
    if problem.status != 429 {
        console.shared.record_session(Outcome::Refused, None, who);
    }
    log_in_refused(&problem, &next)
}

/// Whether this is a path on this host, and not what browsers take for another host.
fn is_page(next: &str) -> bool {
    let is_other = next.starts_with("//") || next.contains('\\');
    next.starts_with('/') && !is_other && next.bytes().all(|b| b.is_ascii_graphic())
}

fn log_in_refused(problem: &Problem, next: &str) -> Response {
    let page = Page::outside("Log in").render(&web_console::login(Some(problem), next));
    (status_of(problem), Html(page)).into_response()
}

pub(super) async fn log_out(
    State(console): State<Console>,
    Submitted { session, .. }: Submitted,
) -> Response {
    console.shared.access.end(&session.id);
    let who = super::caller(&session).0;
    console.shared.record_session(Outcome::Done, Some((&session, &who)), "logged out");
    ([(SET_COOKIE, console.set_cookie(""))], Redirect::to("/login")).into_response()
}

/// Sets or changes the KMS.
pub(super) async fn configure(
    State(console): State<Console>,
    Submitted { session, typed }: Submitted,
) -> Response {
    let api = console.api(&session);
    let done = async {
        let status: Status = api.get(paths::STATUS).await?;
        let request = set_vault(&typed, status.kms.configured.as_ref())?;
        let version = typed.get("version").map(String::as_str).unwrap_or_default();
        api.put::<KmsChange>(paths::KMS, version, &request).await
    };
    match done.await {
        Ok(change) => console.told(&session, "/kms", words::change(&change)),
        Err(problem) => {
            console.kms_refused(&session, "configure", typed, problem, &KMS_INPUTS).await
        }
    }
}

/// What was typed there; what is empty is not given.
fn given(typed: &HashMap<String, String>, name: &str) -> Option<String> {
    typed.get(name).map(|text| text.trim()).filter(|text| !text.is_empty()).map(str::to_owned)
}

/// What the form says. What is left as it is of the way to show who we are is not sent, so that the node keeps it.
fn set_vault(
    typed: &HashMap<String, String>,
    now: Option<&KmsDetails>,
) -> Result<SetVault, Problem> {
    let given = |name: &str| given(typed, name);
    let secret = |name: &str| given(name).map(|text| Token::new(Zeroizing::new(text)));
    let (token, secret_id) = (secret("token"), secret("secret_id"));
    let token_file = given("token_file").map(|path| BytePath::new(path.as_str()));
    let (role_id, auth_path) = (given("role_id"), given("auth_path"));
    let as_it_is = now.is_some_and(|now| {
        (&now.role_id, &now.auth_path, &now.token_file) == (&role_id, &auth_path, &token_file)
    });
    let keeps = as_it_is && token.is_none() && secret_id.is_none();
    let again = |name: &str| given(&format!("again-{name}")).is_some();
    if keeps && let Some(secret) = ["token", "secret_id"].into_iter().find(|name| again(name)) {
        let why = "what was typed before is not kept in a page, and nothing was typed now";
        let problem = Problem::new(Exit::Usage, "token-missing", "the KMS can't be set", why);
        return Err(problem.field(secret).cure(
            "type it again; where the stored one is to be kept, Cancel, and open the dialog again",
        ));
    }
    // A token takes the place of whatever was set before.
    let replaces = as_it_is && token.is_some();
    let other = !(keeps || replaces);
    if now.is_none() && token.is_none() && token_file.is_none() && role_id.is_none() {
        let why = "it takes an API token, or another way to show Vault who the node is";
        return Err(Problem::new(Exit::Usage, "token-missing", "the KMS can't be set", why)
            .field("token")
            .cure("give the token, or an AppRole or a token file under More"));
    }
    Ok(SetVault {
        base_url: given("base_url").unwrap_or_default(),
        master_key: given("master_key").unwrap_or_default(),
        token,
        token_file: token_file.filter(|_| other),
        role_id: role_id.filter(|_| other),
        secret_id,
        auth_path: auth_path.filter(|_| other),
        client_cert: given("client_cert"),
        client_key: secret("client_key"),
        namespace: given("namespace"),
        transit_path: given("transit_path"),
        ca_cert: given("ca_cert"),
        allow_http: typed.contains_key("allow_http"),
    })
}

/// What of the request the node says is the cause, if the form has an input for it.
fn field_among(inputs: &[&'static str], problem: &Problem) -> Option<&'static str> {
    let named = problem.field.as_deref()?;
    inputs.iter().copied().find(|input| *input == named)
}

/// Removes the KMS; with the word typed, by a downgrade.
pub(super) async fn reset(
    State(console): State<Console>,
    Submitted { session, typed }: Submitted,
) -> Response {
    let word = typed.get("word").map(|word| word.trim());
    let refused = |why: &str| {
        let problem = Problem::new(Exit::Usage, "not-confirmed", "nothing was done", why);
        problem.field("word").cure("type downgrade")
    };
    let done = match word {
        Some("downgrade") | None => {
            let version = typed.get("version").map(String::as_str).unwrap_or_default();
            let path = format!("{}?allow_downgrade={}", paths::KMS, word.is_some());
            console.api(&session).delete::<KmsChange>(&path, version).await
        }
        Some(_) => Err(refused("another word was typed")),
    };
    match done {
        Ok(change) => console.told(&session, "/kms", words::change(&change)),
        Err(problem) => console.kms_refused(&session, "reset", typed, problem, &["word"]).await,
    }
}

pub(super) async fn rewrap(
    State(console): State<Console>,
    Submitted { session, .. }: Submitted,
) -> Response {
    let begun = console.api(&session).post::<Job>(paths::REWRAP, &Rewrap::default()).await;
    console.begun(&session, "/kms", begun)
}

pub(super) async fn check(
    State(console): State<Console>,
    Submitted { session, .. }: Submitted,
) -> Response {
    let version = console.kms_version().await;
    match console.api(&session).post::<KmsCheck>(paths::CHECK, &()).await {
        Ok(it) => {
            let told = words::check_sum(&it);
            let found = At { at: console.shared.clock.now().0, it };
            *lock(&console.shared.found.check) = Some(OfKms { version, found });
            console.told(&session, "/kms#check", told)
        }
        Err(problem) => console.failed(&session, "/kms", &problem),
    }
}

pub(super) async fn rehearse(
    State(console): State<Console>,
    Submitted { session, .. }: Submitted,
) -> Response {
    let version = console.kms_version().await;
    match console.api(&session).post::<KmsRehearsal>(paths::REHEARSE, &()).await {
        Ok(it) => {
            let told = words::rehearsal(&it).into_iter().next().unwrap_or_default();
            let at = console.shared.clock.now().0;
            *lock(&console.shared.found.rehearsal) = Some(OfKms { version, found: At { at, it } });
            console.told(&session, "/kms#rehearsal", told)
        }
        Err(problem) => console.failed(&session, "/kms", &problem),
    }
}

pub(super) async fn create(
    State(console): State<Console>,
    Query(wanted): Query<Wanted>,
    uri: Uri,
    Submitted { session, typed }: Submitted,
) -> Response {
    let given = |name: &str| given(&typed, name);
    let request = CreateFilesystem {
        name: given("name").unwrap_or_default(),
        backing: given("backing").map(|path| BytePath::new(path.as_str())),
        allow_no_kms: typed.contains_key("allow_no_kms"),
        kms_key: given("kms_key"),
    };
    let api = console.api(&session);
    let problem = match api.post::<Filesystem>(paths::FILESYSTEMS, &request).await {
        Ok(fs) => {
            let wrapped = words::wrapped_by(&fs.wrapped_by);
            let told = format!("{} is made; its key is wrapped by {wrapped}", fs.name);
            return console.told(&session, &format!("/filesystems/{}", fs.name), told);
        }
        Err(problem) => problem,
    };
    let field = field_among(&["name", "backing", "kms_key", "allow_no_kms"], &problem);
    match pages::filesystems_shown(&console, &session, &wanted).await {
        Ok(shown) => {
            let forms = Forms::open("create", Form::with(typed).refused(problem.clone(), field));
            console.again(&session, &problem, |viewer| {
                pages::filesystems_page(&shown, &wanted, &uri, &forms, viewer, None)
            })
        }
        Err(_) => console.failed(&session, "/filesystems", &problem),
    }
}

/// What is done with one filesystem.
pub(super) async fn of_filesystem(
    State(console): State<Console>,
    Path((name, act)): Path<(String, String)>,
    Submitted { session, typed }: Submitted,
) -> Response {
    let (api, at) = (console.api(&session), format!("/filesystems/{name}"));
    let path = |route: &str| paths::of_filesystem(route, &name);
    let directory =
        |field: &str| BytePath::new(typed.get(field).map(|it| it.trim()).unwrap_or_default());
    let begun = |begun: Result<Job, Problem>| begun.map(|job| (at.clone(), begun_text(&job)));
    // The dialog that it was asked for in, and what came of it.
    let (dialog, done) = match act.as_str() {
        "lock" => {
            let force = typed.contains_key("force");
            let locked = api.post::<Filesystem>(&path(paths::LOCK), &Lock { force }).await;
            ("lock", locked.map(|_| (at.clone(), format!("{name} is locked"))))
        }
        "unlock" => {
            let unlocked = api.post::<Filesystem>(&path(paths::UNLOCK), &()).await;
            ("", unlocked.map(|_| (at.clone(), format!("{name} is unlocked"))))
        }
        "verify" => {
            let request = Verify { repair: typed.contains_key("repair") };
            ("verify", begun(api.post(&path(paths::VERIFY), &request).await))
        }
        "rewrap" => {
            let request = Rewrap { filesystem: Some(name.clone()) };
            ("", begun(api.post(paths::REWRAP, &request).await))
        }
        "rekey" => ("rekey", begun(api.post(&path(paths::REKEY), &()).await)),
        "import" => {
            let request = Import { source: directory("source") };
            ("import", begun(api.post(&path(paths::IMPORT), &request).await))
        }
        "export" => {
            let request = Export { target: directory("target") };
            ("export", begun(api.post(&path(paths::EXPORT), &request).await))
        }
        "delete" if typed.get("name").is_some_and(|typed| typed.trim() == name) => {
            let forget = typed.contains_key("forget");
            let done = if forget { "forgotten" } else { "deleted" };
            let deleted = api.delete::<Deleted>(&paths::deletion(&name, forget), "").await;
            let next = "/filesystems".to_owned();
            ("delete", deleted.map(|_| (next, format!("{name} is {done}"))))
        }
        "delete" => {
            let (title, why) = ("nothing was deleted", "another name was typed");
            let problem = Problem::new(Exit::Usage, "not-confirmed", title, why).field("name");
            ("delete", Err(problem.cure(format!("type {name}"))))
        }
        _ => {
            return pages::nowhere(
                State(console),
                Extension(session),
                (&*at).try_into().unwrap_or_default(),
            )
            .await;
        }
    };
    let problem = match done {
        Ok((next, told)) => return console.told(&session, &next, told),
        Err(problem) => problem,
    };
    let shown = match pages::filesystem_shown(&console, &session, &name).await {
        Ok(shown) if !dialog.is_empty() => shown,
        _ => return console.failed(&session, &at, &problem),
    };
    let inputs: &[_] = match dialog {
        "import" => &["source"],
        "export" => &["target"],
        "delete" => &["name"],
        _ => &[],
    };
    let field = field_among(inputs, &problem);
    let forms = Forms::open(dialog, Form::with(typed).refused(problem.clone(), field));
    console.again(&session, &problem, |viewer| pages::filesystem_page(&shown, &forms, viewer, None))
}

pub(super) async fn stop(
    State(console): State<Console>,
    Path(id): Path<String>,
    Submitted { session, .. }: Submitted,
) -> Response {
    let stopped = console.api(&session).post::<Job>(&paths::of_job(paths::STOP, &id), &()).await;
    match stopped {
        Ok(job) => {
            let told = format!("the {} {}", words::job_noun(job.kind), words::job_state(job.state));
            console.told(&session, &paths::of_job("/jobs/{id}", &job.id), told)
        }
        Err(problem) => console.failed(&session, "/jobs", &problem),
    }
}

pub(super) async fn verify_audit(
    State(console): State<Console>,
    Submitted { session, .. }: Submitted,
) -> Response {
    match console.api(&session).get::<AuditChain>(paths::AUDIT_VERIFY).await {
        Ok(it) => {
            let at = console.shared.clock.now().0;
            *lock(&console.shared.found.chain) = Some(At { at, it });
            Redirect::to("/audit").into_response()
        }
        Err(problem) => console.failed(&session, "/audit", &problem),
    }
}

fn begun_text(job: &Job) -> String {
    let noun = words::job_noun(job.kind);
    if job.resumed { format!("the {noun} goes on") } else { format!("the {noun} has begun") }
}

impl Console {
    /// The version of the KMS that is set, as it is known here.
    async fn kms_version(&self) -> String {
        let seen = self.shared.health.seen().await;
        seen.map(|seen| seen.version.to_string()).unwrap_or_default()
    }

    /// The next page, with the news of what was done.
    fn told(&self, session: &Session, next: &str, told: String) -> Response {
        self.shared.access.tell(&session.id, told);
        Redirect::to(next).into_response()
    }

    fn begun(&self, session: &Session, next: &str, begun: Result<Job, Problem>) -> Response {
        match begun {
            Ok(job) => self.told(session, next, begun_text(&job)),
            Err(problem) => self.failed(session, next, &problem),
        }
    }

    /// A page of its own for what failed and has no form to stand in.
    fn failed(&self, session: &Session, at: &str, problem: &Problem) -> Response {
        self.again(session, problem, |viewer| {
            Page::aside(&problem.title, viewer)
                .at(at)
                .render(&web_console::back(problem, at, "Back"))
        })
    }

    /// The page that a form was sent from, with what came of it.
    fn again(
        &self,
        session: &Session,
        problem: &Problem,
        show: impl FnOnce(&Viewer<'_>) -> String,
    ) -> Response {
        (status_of(problem), self.page(session, show)).into_response()
    }

    async fn kms_refused(
        &self,
        session: &Session,
        dialog: &'static str,
        typed: HashMap<String, String>,
        problem: Problem,
        inputs: &[&'static str],
    ) -> Response {
        let Ok(shown) = pages::kms_shown(self, session, &Besides::default()).await else {
            return self.failed(session, "/kms", &problem);
        };
        let field = field_among(inputs, &problem);
        let forms = Forms::open(dialog, Form::with(typed).refused(problem.clone(), field));
        self.again(session, &problem, |viewer| pages::kms_page(self, &shown, &forms, viewer, None))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_login_leads_to_no_other_host() {
        for page in ["/", "/kms?impact=key&key=a%26b", "/filesystems/a.b/files?path=%2Fx"] {
            assert!(is_page(page), "{page}");
        }
        for other in [
            "",
            "kms",
            "//evil.example",
            "/\\evil.example",
            "https://evil.example",
            "/a\nb",
            "/\t/evil.example",
            "/é",
        ] {
            assert!(!is_page(other), "{other:?}");
        }
    }
}

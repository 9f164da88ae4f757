//! The KMS: the screen and the dialogs of the page on KMS management.

use admin_api::{
    CheckItem, CheckOutcome, Job, Kms, KmsCheck, KmsDetails, KmsImpact, KmsPolicy, KmsRehearsal,
    Problem,
};
use maud::{Markup, html};

use crate::form::{Form, Forms, Input, Kind, act, decide, dialog, opener, post, tick};
use crate::jobs::progress;
use crate::page::Viewer;
use crate::parts::{At, ago, fields, findings, lines, live, mark, problem};
use crate::picture;

/// What the screen is made of.
#[derive(Debug)]
pub struct KmsView<'a> {
    /// The KMS.
    pub kms: &'a Kms,
    /// How many filesystems there are: they keep the KMS from being removed.
    pub filesystems: u64,
    /// The newest move of keys, until some time after its end.
    pub jobs: &'a [Job],
    /// The last check.
    pub check: Option<&'a At<KmsCheck>>,
    /// The last rehearsal.
    pub rehearsal: Option<&'a At<KmsRehearsal>>,
    /// What would fail, if that was asked.
    pub impact: Option<&'a Result<KmsImpact, Problem>>,
    /// What was asked for that.
    pub asked: &'a ImpactQuery,
    /// The policy that was asked for, or that for the master key that is set.
    pub policy: Option<&'a Result<KmsPolicy, Problem>>,
    /// The master keys and the transit path for which it was asked for, as they were typed.
    pub policy_of: (&'a str, &'a str),
    /// What was typed.
    pub forms: &'a Forms,
}

/// What is asked that would fail. What is empty is not given.
#[derive(Debug, Clone, Default)]
pub struct ImpactQuery {
    /// What would be taken away: `token`, `key` or `versions`.
    pub of: String,
    /// The version below which.
    pub below: String,
    /// Of which master key, if not of the one that is set for all.
    pub master_key: String,
}

/// The KMS Configuration screen.
pub fn kms(view: &KmsView<'_>, viewer: &Viewer<'_>) -> Markup {
    let configured = view.kms.configured.as_ref();
    html! {
        (live("kms", &seen(view, configured, viewer)))
        @if viewer.may_change {
            (configure(configured, view.kms, view.forms, viewer))
            @if let Some(details) = configured { (reset(details, view, viewer)) }
        }
        @if let Some(details) = configured {
            (proofs(view, viewer))
            (foretold(view, viewer))
            (rotation(details))
        }
        (policies(view))
    }
}

fn seen(view: &KmsView<'_>, configured: Option<&KmsDetails>, viewer: &Viewer<'_>) -> Markup {
    let kms = view.kms;
    html! {
        @match configured {
            None => {
                p { "KMS is not set." }
                p { "A filesystem made now would have its key wrapped locally, beside its data." }
                @if viewer.may_change { div.acts { (opener(CONFIGURE, "Configure KMS", "main")) } }
            }
            Some(details) => {
                @if let Some(wrong) = &details.problem { (problem(wrong)) }
                @if viewer.may_change {
                    div.acts data-key="acts" {
                        (opener(CONFIGURE, "Update KMS", "main"))
                        (act("/kms/rewrap", "Rewrap keys", "", viewer))
                        (opener(RESET, "Reset KMS", "danger"))
                    }
                }
            }
        }
        // A move under way is at it.
        @if view.jobs.iter().all(|job| job.state.is_ended()) {
            @if let Some(behind) = behind(kms) { (behind) }
        }
        (findings(&kms.findings))
        @for job in view.jobs { (progress(job, viewer)) }
        (fields(&words::kms(kms), viewer))
        @if let Some(life) = configured.and_then(|details| details.credential.as_ref()) {
            h2 { "Life of the token" }
            (picture::life(life))
        }
        @if kms.keys.iter().any(|version| version.keys > 0) {
            h2 { "Keys by version" }
            (picture::versions(&kms.keys))
        }
    }
}

/// The id of the dialog that sets or changes the KMS.
const CONFIGURE: &str = "configure";

fn configure(
    configured: Option<&KmsDetails>,
    kms: &Kms,
    forms: &Forms,
    viewer: &Viewer<'_>,
) -> Markup {
    let (form, open) = forms.get(CONFIGURE);
    let form = match configured {
        Some(details) if !open => prefilled(details),
        _ => form,
    };
    // Who is told that it was changed meanwhile decides anew, on what is shown now.
    let again = !open || form.is_refused_as("kms-changed");
    let version = if again { &kms.version } else { form.value("version") };
    let more =
        KMS_INPUTS[3..].iter().any(|name| !form.value(name).is_empty()) || form.takes_an_option();
    let token = match configured {
        Some(_) => {
            "Left empty, the stored one is kept, if the URL keeps its scheme, host and port. It is never shown."
        }
        None => "It is never shown again.",
    };
    let input = |input: Input<'_>| input.show(CONFIGURE, &form);
    let body = html! {
        (form.problem())
        @if let (true, Some(now)) = (open && again, configured) {
            p { "Now it is " (now.base_url) " with the master key " (now.master_key) ". Update takes what stands below in its place." }
        }
        input type="hidden" name="version" value=(version);
        (input(Input::new("base_url", "URL", "Vault's base URL, such as https://vault.example:8200").required()))
        (input(Input::new("master_key", "Key name", "The master key in Vault's transit engine").required()))
        (input(Input::new("token", "API token", token).kind(Kind::Secret)))
        details open[more] {
            summary { "More" }
            (input(Input::new("namespace", "Namespace", "Of Vault Enterprise")))
            (input(Input::new("transit_path", "Transit path", "Where the engine is mounted, if not at transit")))
            (input(Input::new("ca_cert", "CA certificate", "PEM; trusted instead of the system's").kind(Kind::Text)))
            fieldset {
                legend { "AppRole, instead of a token" }
                (input(Input::new("role_id", "Role id", "")))
                (input(Input::new("secret_id", "Secret id", "").kind(Kind::Secret)))
                (input(Input::new("auth_path", "Auth path", "Where AppRole is mounted, if not at approle")))
            }
            fieldset {
                legend { "Client certificate, where Vault asks for one" }
                (input(Input::new("client_cert", "Certificate", "PEM; with the stored token the one before goes on without this").kind(Kind::Text)))
                (input(Input::new("client_key", "Private key", "PEM; it is never shown again").kind(Kind::SecretText)))
            }
            (input(Input::new("token_file", "Token file", "An absolute path on the node, read again when it changes (Vault Agent)")))
            (tick(CONFIGURE, "allow_http", "Allow plain http beyond this machine", &form))
        }
        (decide("Cancel", "Update", "main"))
    };
    dialog(CONFIGURE, "Configure KMS", open, &post("/kms", viewer, &body))
}

/// The inputs of the dialog that sets the KMS, as the admin API calls what they give. All but the first three lie under a fold.
pub const KMS_INPUTS: [&str; 12] = [
    "base_url",
    "master_key",
    "token",
    "namespace",
    "transit_path",
    "ca_cert",
    "role_id",
    "secret_id",
    "auth_path",
    "client_cert",
    "client_key",
    "token_file",
];

/// What is set, to be changed. What the node does not tell of it has to be given again.
fn prefilled(details: &KmsDetails) -> Form {
    let path = details.token_file.as_ref().map(ToString::to_string).unwrap_or_default();
    let transit = if details.transit_path == "transit" { "" } else { &details.transit_path };
    let form = Form::default()
        .or("base_url", &details.base_url)
        .or("master_key", &details.master_key)
        .or("namespace", details.namespace.as_deref().unwrap_or_default())
        .or("transit_path", transit)
        .or("role_id", details.role_id.as_deref().unwrap_or_default())
        .or("auth_path", details.auth_path.as_deref().unwrap_or_default())
        .or("token_file", &path)
        .or("ca_cert", details.ca_cert.as_deref().unwrap_or_default());
    // It was allowed, or it would not be set.
    if details.base_url.starts_with("http://") { form.or("allow_http", "yes") } else { form }
}

/// The id of the dialog that removes the KMS.
const RESET: &str = "reset";

fn reset(details: &KmsDetails, view: &KmsView<'_>, viewer: &Viewer<'_>) -> Markup {
    let (form, open) = view.forms.get(RESET);
    let version = html! { input type="hidden" name="version" value=(view.kms.version); };
    let body = if view.filesystems == 0 {
        post(
            "/kms/reset",
            viewer,
            &html! {
                (form.problem())
                (version)
                p { "Remove the KMS configuration, " (details.base_url) " with the master key " (details.master_key) "?" }
                (decide("No", "Yes", "danger"))
            },
        )
    } else {
        html! {
            (form.problem())
            div.alert.error {
                p {
                    strong { "The KMS can't be removed: " }
                    (words::count(view.filesystems, "encrypted filesystem"))
                    @if view.filesystems == 1 { " needs it." } @else { " need it." }
                }
                p.cure { strong { "Do: " } "delete them first, or downgrade below" }
            }
            details open[open] {
                summary { "Downgrade to local wrapping" }
                (post("/kms/reset", viewer, &html! {
                    (version)
                    p { "The keys of all filesystems are then wrapped with local ones that lie beside them on disk, and may be compromised." }
                    (Input::new("word", "Type downgrade to do it all the same", "").required().show(RESET, &form))
                    div.buttons { button.danger type="submit" { "Downgrade" } }
                }))
            }
            div.buttons { button type="button" data-closes { "No" } }
        }
    };
    dialog(RESET, "KMS Reset", open, &body)
}

fn proofs(view: &KmsView<'_>, viewer: &Viewer<'_>) -> Markup {
    html! {
        section #check data-live aria-labelledby="check-title" {
            h2 #check-title { "Check" }
            p { "Tries every permission by use, and looks at the master key, the token, and the certificate." }
            @if viewer.may_change { (act("/kms/check", "Check now", "", viewer)) }
            @if let Some(At { at, it }) = view.check { (checked(*at, it, viewer)) }
        }
        section #rehearsal data-live aria-labelledby="rehearsal-title" {
            h2 #rehearsal-title { "Rehearsal of a start" }
            p { "Opens every key in another process, from what lies on disk: would a restart now succeed?" }
            @if viewer.may_change { (act("/kms/rehearse", "Rehearse now", "", viewer)) }
            @if let Some(At { at, it }) = view.rehearsal { (rehearsed(*at, it, viewer)) }
        }
    }
}

fn checked(at: u64, check: &KmsCheck, viewer: &Viewer<'_>) -> Markup {
    html! {
        p { (words::check_sum(check)) ", " (ago(at, viewer)) }
        ul.checklist {
            @for item in &check.items { (checked_item(item)) }
        }
    }
}

fn checked_item(item: &CheckItem) -> Markup {
    let kind = match item.outcome {
        CheckOutcome::Passed => "good",
        CheckOutcome::Warning | CheckOutcome::Unknown => "poor",
        CheckOutcome::Failed => "bad",
    };
    html! {
        li data-code=(item.code) {
            (mark(kind, words::check_outcome(item.outcome)))
            div {
                p { (lines(&item.what)) @if !item.found.is_empty() { ": " (lines(&item.found)) } }
                @if let Some(cure) = &item.cure { p.cure { strong { "Do: " } (lines(cure)) } }
            }
        }
    }
}

fn rehearsed(at: u64, rehearsal: &KmsRehearsal, viewer: &Viewer<'_>) -> Markup {
    let good = rehearsal.shut.is_empty() && rehearsal.starts_left != Some(0);
    html! {
        p {
            @if good { (mark("good", "ok")) } @else { (mark("bad", "FAILED")) }
            ", " (ago(at, viewer))
        }
        ul.checklist {
            @for shut in &rehearsal.shut {
                li {
                    (mark("bad", "FAILED"))
                    div {
                        p { (shut.name) " would stay locked: " (lines(&shut.why)) }
                        @if let Some(cure) = &shut.cure { p.cure { strong { "Do: " } (lines(cure)) } }
                    }
                }
            }
            @for line in words::rehearsal(rehearsal) { li { div { p { (line) } } } }
            @for warning in &rehearsal.warnings {
                li { (mark("poor", "warning")) div { p { (lines(warning)) } } }
            }
        }
    }
}

/// What can be taken away in the KMS, in the API's words and in ours.
const LOSSES: [(&str, &str); 3] = [
    ("token", "the token is revoked"),
    ("key", "the master key is deleted"),
    ("versions", "min_decryption_version is raised"),
];

fn foretold(view: &KmsView<'_>, viewer: &Viewer<'_>) -> Markup {
    html! {
        section #impact aria-labelledby="impact-title" {
            h2 #impact-title { "What would fail" }
            form.search method="get" action="/kms#impact" {
                div.input {
                    label for="impact-of" { "If" }
                    select #impact-of name="impact" {
                        @for (of, what) in LOSSES {
                            option value=(of) selected[of == view.asked.of] { (what) }
                        }
                    }
                }
                div.input {
                    label for="impact-below" { "To version" }
                    input #impact-below name="below" value=(view.asked.below) inputmode="numeric" autocomplete="off";
                }
                div.input {
                    label for="impact-key" { "Of the key" }
                    input #impact-key name="key" value=(view.asked.master_key) autocomplete="off" autocapitalize="off" spellcheck="false" aria-describedby="impact-key-hint";
                    p.hint #impact-key-hint { "Empty: the one that is set for all" }
                }
                button type="submit" { "Foretell" }
            }
            @match view.impact {
                Some(Ok(impact)) => (fields(&words::impact(impact), viewer)),
                Some(Err(why)) => (problem(why)),
                None => {}
            }
        }
    }
}

/// How the master key is rotated, which Coffer may not do.
fn rotation(details: &KmsDetails) -> Markup {
    let command =
        format!("vault write -f {}/keys/{}/rotate", details.transit_path, details.master_key);
    html! {
        section #rotation aria-labelledby="rotation-title" {
            h2 #rotation-title { "Rotation" }
            p { "In Vault, by who may rotate the master key; then Rewrap keys brings the filesystems' keys to the new version:" }
            pre tabindex="0" { code #rotation-command { (command) } }
            button.quiet type="button" data-copies="rotation-command" { "Copy the command" }
        }
    }
}

fn policies(view: &KmsView<'_>) -> Markup {
    let (keys, mount) = view.policy_of;
    html! {
        section #policy aria-labelledby="policy-title" {
            h2 #policy-title { "Policy" }
            p { "What the token needs in Vault, and no more." }
            form.search method="get" action="/kms#policy" {
                div.input {
                    label for="policy-of" { "For the key" }
                    input #policy-of name="policy" value=(keys) autocomplete="off" autocapitalize="off" spellcheck="false" aria-describedby="policy-hint";
                    p.hint #policy-hint { "Several with commas between them" }
                }
                div.input {
                    label for="policy-mount" { "Transit path" }
                    input #policy-mount name="mount" value=(mount) autocomplete="off" autocapitalize="off" spellcheck="false" aria-describedby="policy-mount-hint";
                    p.hint #policy-mount-hint { "Empty: transit, or that of the KMS that is set" }
                }
                button type="submit" { "Show the policy" }
            }
            @match view.policy {
                Some(Ok(policy)) => (policy_text(policy)),
                Some(Err(why)) => (problem(why)),
                None => {}
            }
        }
    }
}

fn policy_text(policy: &KmsPolicy) -> Markup {
    html! {
        pre tabindex="0" { code #policy-text { (policy.policy) } }
        button.quiet type="button" data-copies="policy-text" { "Copy the policy" }
        p { "To apply it, and to make a token under it:" }
        pre tabindex="0" { code #policy-commands { (policy.commands.join("\n")) } }
        button.quiet type="button" data-copies="policy-commands" { "Copy the commands" }
    }
}

/// That a rewrap is due: how many keys hang on older versions than the newest that the KMS told.
pub(crate) fn behind(kms: &Kms) -> Option<Markup> {
    let details = kms.configured.as_ref()?;
    let newest = details.latest_version?;
    let of_this = |count: &&admin_api::VersionCount| {
        count.master_key == details.master_key && count.base_url == details.base_url
    };
    let older = kms.keys.iter().filter(of_this).filter(|count| count.version < newest);
    let keys: u64 = older.map(|count| count.keys).sum();
    (keys > 0).then(|| {
        html! {
            div.alert.warning data-code="keys-behind" data-key="keys-behind" {
                p {
                    strong { "Warning: " }
                    (words::count(keys, "key")) " on an older version of " (details.master_key) " than " (newest) ", its newest"
                }
                p.cure { strong { "Do: " } "Rewrap keys, under " a href="/kms" { "KMS Configuration" } }
            }
        }
    })
}

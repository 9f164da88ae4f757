//! `coffer fs kms`, `set-vault`, `unset`, `rewrap`, `check`, `impact`

use std::io;
use std::path::Path;
use std::time::Duration;

use admin_api::{
    Change, CheckItem, CheckOutcome, CredentialLife, Ending, Exit, Job, Kms, KmsChange, KmsCheck,
    KmsDetails, KmsImpact, KmsRehearsal, OwnKey, Problem, Rewrap, ShutFilesystem, VersionCount,
    paths,
};
use url::form_urlencoded;

use super::job::outcome;
use super::{Context, FALLS_SHORT, findings_text};
use crate::console::Output;
use crate::files::read_text;
use crate::grammar::{Impact, KmsCommand, SetVault};
use crate::secret;
use crate::show::{count, fields, span, under};

/// Longest list of certificates, in bytes: the node stores it with every wrapped key. A bundle of all public authorities has some
/// 200 KiB.
const CERTIFICATES_MAX: u64 = 32 * 1024;

pub(super) async fn run(
    command: Option<KmsCommand>,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    match command {
        None => {
            let kms: Kms = context.client.get(paths::KMS).await?;
            Ok(context.answer(&kms, text))
        }
        Some(KmsCommand::SetVault(arguments)) => set_vault(*arguments, context).await,
        Some(KmsCommand::Unset { allow_downgrade, patience }) => {
            context.patience = Duration::from_secs(patience.seconds);
            unset(allow_downgrade, context).await
        }
        Some(KmsCommand::Rewrap { filesystem, patience }) => {
            context.patience = Duration::from_secs(patience.seconds);
            let job: Job = context.client.post(paths::REWRAP, &Rewrap { filesystem }).await?;
            context.finish(job).await
        }
        Some(KmsCommand::Check) => {
            let check: KmsCheck = context.client.post(paths::CHECK, &()).await?;
            context.answer(&check, check_text);
            check_outcome(check)
        }
        Some(KmsCommand::Rehearse) => {
            let rehearsal: KmsRehearsal = context.client.post(paths::REHEARSE, &()).await?;
            context.answer(&rehearsal, rehearsal_text);
            rehearsal_outcome(rehearsal)
        }
        Some(KmsCommand::Impact { of, kms_key }) => {
            let below = of.min_version.map(|below| below.to_string());
            let lost = match of {
                Impact { min_version: Some(_), .. } => "versions",
                Impact { delete_key: true, .. } => "key",
                Impact { .. } => "token",
            };
            let mut query = form_urlencoded::Serializer::new(String::new());
            query.append_pair("of", lost);
            query.extend_pairs(below.map(|below| ("below", below)));
            query.extend_pairs(kms_key.map(|key| ("master_key", key)));
            let path = format!("{}?{}", paths::IMPACT, query.finish());
            let impact: KmsImpact = context.client.get(&path).await?;
            Ok(context.answer(&impact, impact_text))
        }
        // The binary does it: only it knows Vault.
        Some(KmsCommand::Policy(_)) => Ok(Exit::Done),
    }
}

async fn set_vault(
    mut arguments: SetVault,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    if arguments.token.is_some() {
        context.note(
            "a token given as an argument shows in the process list; \
             --token-file and --token-stdin keep it out",
        );
    }
    context.patience = Duration::from_secs(arguments.patience.seconds);
    let auth = secret::auth(&mut arguments, context.console)?;
    let ca_cert = arguments.ca_cert.as_deref();
    let ca_cert =
        ca_cert.map(|path| certificates(path, "that of the CA that signs Vault's certificate"));
    let client_cert = arguments.client_cert.as_deref();
    let client_cert =
        client_cert.map(|path| certificates(path, "the client's and those between it and its CA"));
    let request = admin_api::SetVault {
        base_url: arguments.base_url,
        master_key: arguments.master_key_name,
        token: auth.token,
        token_file: auth.token_file,
        role_id: arguments.role_id,
        secret_id: auth.secret_id,
        auth_path: arguments.auth_path,
        client_cert: client_cert.transpose()?,
        client_key: arguments.client_key.as_deref().map(secret::key).transpose()?,
        namespace: arguments.namespace,
        transit_path: arguments.transit_path,
        ca_cert: ca_cert.transpose()?,
        allow_http: arguments.allow_http,
    };
    let change: KmsChange = context.client.put(paths::KMS, &request).await?;
    finish_change(change, context).await
}

fn certificates(path: &Path, only: &str) -> Result<String, Problem> {
    let refused = |why: String, cure: &str| {
        let what = format!("the certificates in {} can't be taken", path.display());
        Problem::new(Exit::Usage, "certificate-unreadable", what, why).cure(cure)
    };
    match read_text(path, CERTIFICATES_MAX + 1) {
        Ok(text) => Ok(text),
        Err(error) if error.kind() == io::ErrorKind::FileTooLarge => Err(refused(
            format!("they take more than {} KiB", CERTIFICATES_MAX >> 10),
            &format!("give only {only}, not a bundle of all authorities"),
        )),
        Err(error) => {
            Err(refused(error.to_string(), "name a file with one or more certificates in PEM"))
        }
    }
}

async fn unset(allow_downgrade: bool, context: &mut Context<'_, '_>) -> Result<Exit, Problem> {
    if allow_downgrade {
        context.confirm(
            "removing the KMS",
            "the keys of all filesystems are then wrapped with local ones that lie beside them on \
             disk, and may be compromised",
            "downgrade",
        )?;
    }
    let path = format!("{}?allow_downgrade={allow_downgrade}", paths::KMS);
    let change: KmsChange = context.client.delete(&path).await?;
    finish_change(change, context).await
}

/// Shows what became of a change; for programs, one that moves keys when they have moved.
async fn finish_change(
    mut change: KmsChange,
    context: &mut Context<'_, '_>,
) -> Result<Exit, Problem> {
    let Some(job) = change.job.take() else { return Ok(context.answer(&change, change_text)) };
    match context.output {
        Output::Text => {
            context.answer(&change, change_text);
            context.finish(job).await
        }
        Output::Json => {
            let ended = context.ended(job).await?;
            let outcome = outcome(&ended);
            change.job = Some(ended);
            context.answer(&change, change_text);
            outcome
        }
    }
}

/// A line for each thing, the worst word first in it.
fn check_text(check: &KmsCheck) -> String {
    let mut text = String::new();
    for item in &check.items {
        let word = match item.outcome {
            CheckOutcome::Passed => "ok",
            CheckOutcome::Warning => "warning",
            CheckOutcome::Failed => "FAILED",
            CheckOutcome::Unknown => "unknown",
        };
        let found = if item.found.is_empty() { String::new() } else { format!(": {}", item.found) };
        text.push_str(&format!("{word:7}  {}\n", under(&format!("{}{found}", item.what), 9)));
        if let Some(cure) = &item.cure {
            text.push_str(&format!("           do:  {}\n", under(cure, 16)));
        }
    }
    let of = |outcome| check.items.iter().filter(|item| item.outcome == outcome).count() as u64;
    let (failed, warnings) = (of(CheckOutcome::Failed), of(CheckOutcome::Warning));
    let unknown = of(CheckOutcome::Unknown);
    text.push_str(&match (failed, warnings) {
        (0, 0) if unknown > 0 => "what could be looked at is well".to_owned(),
        (0, 0) => "all is well".to_owned(),
        (0, _) => format!("it works, with {}", count(warnings, "warning")),
        _ => format!("{}, {}", count(failed, "failure"), count(warnings, "warning")),
    });
    text.push_str(&match unknown {
        0 => "\n".to_owned(),
        1 => "; 1 thing is unknown, and so not proved\n".to_owned(),
        n => format!("; {n} things are unknown, and so not proved\n"),
    });
    text
}

/// What failed first is the cause of the others, as a rule.
fn check_outcome(check: KmsCheck) -> Result<Exit, Problem> {
    let failed = |item: &CheckItem| item.outcome == CheckOutcome::Failed;
    let failures = check.items.iter().filter(|item| failed(item)).count() as u64;
    match check.items.into_iter().find(failed) {
        Some(CheckItem { code, what, found, cure, .. }) if check.exit != Exit::Done => {
            let title = "the KMS does not do all that Coffer needs";
            let why = format!("{}, the first: {what}: {found}", count(failures, "failure"));
            let problem = Problem::new(check.exit, &code, title, why);
            Err(problem
                .cure(cure.unwrap_or_else(|| "mend what failed, and check again".to_owned())))
        }
        _ => Ok(check.exit),
    }
}

fn rehearsal_outcome(rehearsal: KmsRehearsal) -> Result<Exit, Problem> {
    let shut = rehearsal.shut.len() as u64;
    if shut == 0 && rehearsal.starts_left == Some(0) {
        return Err(Problem::new(
            rehearsal.exit,
            "start-would-fail",
            "a start now would be refused",
            "the secret id is good for no login any more; the rehearsal may have taken the last",
        )
        .cure("make a new secret id, without secret_id_num_uses, and give it with coffer fs kms set-vault; what is open goes on"));
    }
    match rehearsal.shut.into_iter().next() {
        Some(ShutFilesystem { name, why, cure }) if rehearsal.exit != Exit::Done => {
            let title = "a start now would not open everything";
            let why = format!("{}, the first: {name}: {why}", count(shut, "filesystem"));
            let problem = Problem::new(rehearsal.exit, "start-would-fail", title, why);
            Err(problem.cure(cure.unwrap_or_else(|| {
                "do not restart the node before that is mended; what is open goes on".to_owned()
            })))
        }
        _ => Ok(rehearsal.exit),
    }
}

fn rehearsal_text(rehearsal: &KmsRehearsal) -> String {
    let KmsRehearsal { open, shut, held, stopped_seconds_left, until, warnings, .. } = rehearsal;
    let mut text = String::new();
    for ShutFilesystem { name, why, cure } in shut {
        text.push_str(&format!("FAILED  {name} would stay locked: {}\n", under(why, 8)));
        if let Some(cure) = cure {
            text.push_str(&format!("          do:  {}\n", under(cure, 15)));
        }
    }
    let opens = count(*open, "filesystem");
    text.push_str(&match shut.len() {
        0 if rehearsal.starts_left == Some(0) => {
            format!("{opens} can be opened, but a start now would be refused its login\n")
        }
        0 => format!("a start now would succeed: {opens} can be opened\n"),
        n => format!("a start now would fail for {n}; {opens} can be opened\n"),
    });
    if !held.is_empty() {
        text.push_str(&format!(
            "locked by an administrator, and would stay so: {}\n",
            held.join(", ")
        ));
    }
    if let Some(Ending { what, seconds_left }) = until {
        text.push_str(&format!("until {what} ends, in {}\n", span(*seconds_left)));
    }
    if let Some(left) = stopped_seconds_left {
        text.push_str(&format!(
            "a node that is stopped meanwhile has to be back within {}: then the token ends, which only a running one renews\n",
            span(*left)
        ));
    }
    for warning in warnings {
        text.push_str(&format!("warning: {}\n", under(warning, 9)));
    }
    match rehearsal.starts_left {
        Some(left) if left > 0 => text.push_str(&format!(
            "this took a login, and the secret id is good for {left} more: each start takes one\n"
        )),
        None if rehearsal.logs_in && rehearsal.open > 0 => text.push_str(
            "this took a login: of a secret id with a limited number of uses that took one, perhaps the last, which Vault tells only to a \
             token that may ask\n",
        ),
        _ => {}
    }
    text
}

fn impact_text(impact: &KmsImpact) -> String {
    const NAMED: usize = 20;
    let listed = |names: &[String]| {
        let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match names.len() {
            0 => "none".to_owned(),
            n if n > NAMED => format!("{n}: {shown}, …"),
            n => format!("{n}: {shown}"),
        }
    };
    let mut lines = vec![
        ("if", impact.what.clone()),
        ("go on while the node runs", listed(&impact.go_on)),
        ("can't be unlocked now", listed(&impact.shut_now)),
        ("can't be unlocked at a start", listed(&impact.shut_at_start)),
        ("not touched", listed(&impact.untouched)),
    ];
    if !impact.unknown.is_empty() {
        lines.push((
            "not known",
            format!("{} (a copy of the key is out of reach)", listed(&impact.unknown)),
        ));
    }
    if impact.stops_wrapping {
        lines.push(("besides", "no filesystem can be made, no key rewrapped".to_owned()));
    }
    lines.push(("do", impact.cure.clone()));
    fields(&lines)
}

fn change_text(change: &KmsChange) -> String {
    let place = || match &change.kms.configured {
        Some(kms) => format!("{} with the master key {}", kms.base_url, kms.master_key),
        None => "none".to_owned(),
    };
    let mut text = match change.change {
        Change::Added => format!("the KMS is {}\n", place()),
        Change::Updated => format!(
            "the KMS is now {}; it has the same master key, under which the keys stay\n",
            place()
        ),
        Change::Moving if has_own(&change.kms) => format!(
            "the KMS is now {}; every key moves there that is not there already, those with a master key of their own to that one\n",
            place()
        ),
        Change::Moving => format!("the KMS is now {}; every key moves to it\n", place()),
        Change::Removed => format!("the KMS is removed\n{REVOKE}"),
        Change::Downgrading => format!("every key moves under local wrapping\n{REVOKE}"),
    };
    text.push_str(&findings_text(&change.kms.findings));
    text
}

/// The store's files keep what was deleted until the space is used again, and a store that `recover` set aside keeps it for good.
const REVOKE: &str = "the token or secret id is not used any more, and may still lie on this node's disk; end it in Vault: \
                      vault token revoke -accessor <its accessor>, or vault write auth/approle/role/<role>/secret-id-accessor/destroy \
                      secret_id_accessor=<its accessor>\n";

fn text(kms: &Kms) -> String {
    let mut lines = kms.configured.as_ref().map(details).unwrap_or_default();
    let mut text = match &kms.configured {
        None => "KMS is not set\n\
                 A filesystem made now would have its key wrapped locally, beside its data, and only \
                 with --allow-no-kms.\n  \
                 do:  coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE\n"
            .to_owned(),
        Some(_) => String::new(),
    };
    let exposed = match kms.exposed_keys {
        0 => "none".to_owned(),
        n => format!("{n}; they have lain under local wrapping and may be compromised"),
    };
    lines.extend([("filesystem keys", versions(&kms.keys)), ("exposed keys", exposed)]);
    lines.extend(canaries_alone(&kms.keys).map(|canary| ("canary", canary)));
    text.push_str(&fields(&lines));
    text.push_str(&findings_text(&kms.findings));
    text
}

fn has_own(kms: &Kms) -> bool {
    kms.configured.as_ref().is_some_and(|details| !details.own_keys.is_empty())
}

fn own_key(key: &OwnKey) -> String {
    let mut text = format!("{}, of {}", key.master_key, count(key.filesystems, "filesystem"));
    for (what, version) in [
        ("newest version", key.latest_version),
        ("lowest version", key.min_decryption_version),
        ("lowest needed", key.lowest_needed),
    ] {
        match version {
            Some(version) => text.push_str(&format!(", {what} {version}")),
            None => text.push_str(&format!(", {what} not known now")),
        }
    }
    if !key.held_back_by.is_empty() {
        text.push_str(&format!(", held back by {}", held_back(&key.held_back_by)));
    }
    if key.does_all == Some(false) {
        text.push_str(", does not do all that Coffer needs (the state or a warning says why)");
    }
    text
}

/// What keeps the lowest needed version from being a newer one; a program gets all of it.
fn held_back(by: &[String]) -> String {
    const SHOWN: usize = 10;
    let more = match by.len().saturating_sub(SHOWN) {
        0 => String::new(),
        more => format!(" and {more} more (--json names all)"),
    };
    format!("{}{more}", by.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", "))
}

fn details(details: &KmsDetails) -> Vec<(&'static str, String)> {
    let mut lines = vec![
        ("KMS", details.kind.clone()),
        ("base URL", details.base_url.clone()),
        ("master key", details.master_key.clone()),
    ];
    if let Some(latest) = details.latest_version {
        lines.push(("newest version", latest.to_string()));
    }
    if let Some(lowest) = details.min_decryption_version {
        lines.push(("lowest version", format!("{lowest} (min_decryption_version)")));
    }
    lines.push((
        "lowest needed",
        match details.lowest_needed {
            Some(needed)
                if details.min_decryption_version.is_none_or(|lowest| lowest <= needed) =>
            {
                format!("{needed} (min_decryption_version can go up to it)")
            }
            Some(needed) => format!("{needed} (it is not decrypted any more)"),
            None => "not known now".to_owned(),
        },
    ));
    if !details.held_back_by.is_empty() {
        lines.push(("held back by", held_back(&details.held_back_by)));
    }
    lines.push(("transit path", details.transit_path.clone()));
    if let Some(namespace) = &details.namespace {
        lines.push(("namespace", namespace.clone()));
    }
    if details.own_ca {
        lines.push(("certificates", "those given with --ca-cert, and no others".to_owned()));
    }
    if details.client_cert {
        lines.push(("connects with", "the certificate given with --client-cert".to_owned()));
    }
    lines.push(("authentication", authentication(details)));
    lines.extend(details.own_keys.iter().map(|key| ("also in use", own_key(key))));
    match &details.problem {
        None if details.does_all => lines.push(("state", "answers".to_owned())),
        None => lines.push(("state", format!("{FALLS_SHORT} (a warning says why)"))),
        Some(problem) => {
            lines.push(("state", format!("{}: {}", problem.title, problem.detail)));
            if let Some(cure) = &problem.cure {
                lines.push(("do", cure.clone()));
            }
        }
    }
    lines
}

fn authentication(details: &KmsDetails) -> String {
    let mut text = match (&details.token_file, &details.role_id) {
        (Some(file), _) => format!("the token in {file}, read again when it changes"),
        (_, Some(role)) => {
            let mount = details.auth_path.as_deref().unwrap_or("approle");
            format!("{mount}, role id {role}")
        }
        _ => details.auth_method.clone(),
    };
    text.push_str(if details.credential_set { ", set" } else { ", not set" });
    if let Some(CredentialLife { seconds_left, renewable, periodic, told_seconds_ago }) =
        details.credential
    {
        match seconds_left {
            Some(seconds) => text.push_str(&format!(", {} left", span(seconds))),
            None => text.push_str(", never ends"),
        }
        text.push_str(match (seconds_left, renewable, periodic) {
            (None, ..) => "",
            (.., true) if details.role_id.is_some() => ", then it logs in again",
            _ if details.role_id.is_some() => ", then no login is granted",
            (_, true, true) => ", periodic: renewed for ever",
            (_, true, false) => ", renewable up to its maximum",
            (_, false, _) => ", not renewable",
        });
        if details.problem.is_some() {
            let ago = span(told_seconds_ago);
            text.push_str(&format!(" (as it told {ago} ago, counted down since)"));
        }
    }
    text
}

fn versions(counts: &[VersionCount]) -> String {
    let parts: Vec<_> = counts
        .iter()
        .filter(|n| n.keys > 0)
        .map(|n| match n.kind.as_str() {
            "local" => format!("{} wrapped locally", n.keys),
            _ => format!("{} on version {} of {}", n.keys, n.version, key_of(n, counts)),
        })
        .collect();
    if parts.is_empty() {
        return "none".to_owned();
    }
    let total = count(counts.iter().map(|n| n.keys).sum(), "key");
    format!("{total}: {}", parts.join(", "))
}

/// The master key, and where it is if not all are in one place.
fn key_of(count: &VersionCount, all: &[VersionCount]) -> String {
    fn place(count: &VersionCount) -> (&str, &str, Option<&str>) {
        (&count.base_url, &count.transit_path, count.namespace.as_deref())
    }
    let mut places = all.iter().filter(|other| other.kind == count.kind).map(place);
    if places.all(|other| other == place(count)) {
        return count.master_key.clone();
    }
    let (url, path, namespace) = place(count);
    let mut text = format!("{} at {url}", count.master_key);
    if path != "transit" {
        text.push_str(&format!(" in {path}"));
    }
    if let Some(namespace) = namespace {
        text.push_str(&format!(" in the namespace {namespace}"));
    }
    text
}

/// Where a canary hangs on a version that no key needs. Beside keys it needs nothing that they do not need too.
fn canaries_alone(counts: &[VersionCount]) -> impl Iterator<Item = String> {
    counts.iter().filter(|n| n.canary && n.keys == 0).map(|alone| {
        format!(
            "on version {} of {}; a rewrap renews what shows that it is still the same key",
            alone.version,
            key_of(alone, counts)
        )
    })
}

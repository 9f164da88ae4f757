//! `coffer fs kms`, `set-vault`, `unset`, `rewrap`, `check`, `impact`

use std::io;
use std::path::Path;
use std::time::Duration;

use admin_api::{
    CheckItem, CheckOutcome, Exit, Job, Kms, KmsChange, KmsCheck, KmsImpact, KmsRehearsal, Problem,
    Rewrap, ShutFilesystem, paths,
};

use super::job::outcome;
use super::{Context, findings_text};
use crate::console::Output;
use crate::files::read_text;
use crate::grammar::{Impact, KmsCommand, SetVault};
use crate::secret;
use crate::show::{fields, under};

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
            let path = paths::impact(lost, below.as_deref(), kms_key.as_deref());
            let impact: KmsImpact = context.client.get(&path).await?;
            Ok(context.answer(&impact, |impact| fields(&words::impact(impact))))
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
        let word = words::check_outcome(item.outcome);
        let found = if item.found.is_empty() { String::new() } else { format!(": {}", item.found) };
        text.push_str(&format!("{word:7}  {}\n", under(&format!("{}{found}", item.what), 9)));
        if let Some(cure) = &item.cure {
            text.push_str(&format!("           do:  {}\n", under(cure, 16)));
        }
    }
    text.push_str(&format!("{}\n", words::check_sum(check)));
    text
}

/// What failed first is the cause of the others, as a rule.
fn check_outcome(check: KmsCheck) -> Result<Exit, Problem> {
    let failed = |item: &CheckItem| item.outcome == CheckOutcome::Failed;
    let failures = check.items.iter().filter(|item| failed(item)).count() as u64;
    match check.items.into_iter().find(failed) {
        Some(CheckItem { code, what, found, cure, .. }) if check.exit != Exit::Done => {
            let title = "the KMS does not do all that Coffer needs";
            let why = format!("{}, the first: {what}: {found}", words::count(failures, "failure"));
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
            let why = format!("{}, the first: {name}: {why}", words::count(shut, "filesystem"));
            let problem = Problem::new(rehearsal.exit, "start-would-fail", title, why);
            Err(problem.cure(cure.unwrap_or_else(|| {
                "do not restart the node before that is mended; what is open goes on".to_owned()
            })))
        }
        _ => Ok(rehearsal.exit),
    }
}

fn rehearsal_text(rehearsal: &KmsRehearsal) -> String {
    let KmsRehearsal { shut, warnings, .. } = rehearsal;
    let mut text = String::new();
    for ShutFilesystem { name, why, cure } in shut {
        text.push_str(&format!("FAILED  {name} would stay locked: {}\n", under(why, 8)));
        if let Some(cure) = cure {
            text.push_str(&format!("          do:  {}\n", under(cure, 15)));
        }
    }
    for line in words::rehearsal(rehearsal) {
        text.push_str(&format!("{line}\n"));
    }
    for warning in warnings {
        text.push_str(&format!("warning: {}\n", under(warning, 9)));
    }
    text
}

fn change_text(change: &KmsChange) -> String {
    words::change(change) + &findings_text(&change.kms.findings)
}

fn text(kms: &Kms) -> String {
    let mut text = match &kms.configured {
        None => "KMS is not set\n\
                 A filesystem made now would have its key wrapped locally, beside its data, and only \
                 with --allow-no-kms.\n  \
                 do:  coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE\n"
            .to_owned(),
        Some(_) => String::new(),
    };
    text.push_str(&fields(&words::kms(kms)));
    text.push_str(&findings_text(&kms.findings));
    text
}

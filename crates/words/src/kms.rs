//! The KMS: its configuration, and what was found of it.

use admin_api::{
    Change, CheckOutcome, CredentialLife, Ending, Kms, KmsChange, KmsCheck, KmsDetails, KmsImpact,
    KmsRehearsal, OwnKey, VersionCount,
};

use crate::Fields;
use crate::quantity::{count, span};

/// Of a KMS that is there and fails at something, which a warning names.
pub(crate) const FALLS_SHORT: &str = "answers, but does not do all that Coffer needs";

/// The KMS, the keys that hang on it, and those that are exposed. What should be changed is in its findings.
pub fn kms(kms: &Kms) -> Fields {
    let mut fields = kms.configured.as_ref().map(details).unwrap_or_default();
    let exposed = match kms.exposed_keys {
        0 => "none".to_owned(),
        n => format!("{n}; they have lain under local wrapping and may be compromised"),
    };
    fields.add("filesystem keys", versions(&kms.keys));
    fields.add("exposed keys", exposed);
    for canary in canaries_alone(&kms.keys) {
        fields.add("canary", canary);
    }
    fields
}

/// What became of a change of the configuration: lines.
pub fn change(changed: &KmsChange) -> String {
    let place = || match &changed.kms.configured {
        Some(kms) => format!("{} with the master key {}", kms.base_url, kms.master_key),
        None => "none".to_owned(),
    };
    match changed.change {
        Change::Added => format!("the KMS is {}\n", place()),
        Change::Updated => format!(
            "the KMS is now {}; it has the same master key, under which the keys stay\n",
            place()
        ),
        Change::Moving if has_own(&changed.kms) => format!(
            "the KMS is now {}; every key moves there that is not there already, those with a master key of their own to that one\n",
            place()
        ),
        Change::Moving => format!("the KMS is now {}; every key moves to it\n", place()),
        Change::Removed => format!("the KMS is removed\n{REVOKE}"),
        Change::Downgrading => format!("every key moves under local wrapping\n{REVOKE}"),
    }
}

/// The store's files keep what was deleted until the space is used again, and a store that `recover` set aside keeps it for good.
const REVOKE: &str = "the token or secret id is not used any more, and may still lie on this node's disk; end it in Vault: \
                      vault token revoke -accessor <its accessor>, or vault write auth/approle/role/<role>/secret-id-accessor/destroy \
                      secret_id_accessor=<its accessor>\n";

fn has_own(kms: &Kms) -> bool {
    kms.configured.as_ref().is_some_and(|details| !details.own_keys.is_empty())
}

/// Whether a thing holds.
pub const fn check_outcome(outcome: CheckOutcome) -> &'static str {
    match outcome {
        CheckOutcome::Passed => "ok",
        CheckOutcome::Warning => "warning",
        CheckOutcome::Failed => "FAILED",
        CheckOutcome::Unknown => "unknown",
    }
}

/// All of a check in a few words.
pub fn check_sum(check: &KmsCheck) -> String {
    let of = |outcome| check.items.iter().filter(|item| item.outcome == outcome).count() as u64;
    let (failed, warnings) = (of(CheckOutcome::Failed), of(CheckOutcome::Warning));
    let unknown = of(CheckOutcome::Unknown);
    let known = match (failed, warnings) {
        (0, 0) if unknown > 0 => "what could be looked at is well".to_owned(),
        (0, 0) => "all is well".to_owned(),
        (0, _) => format!("it works, with {}", count(warnings, "warning")),
        _ => format!("{}, {}", count(failed, "failure"), count(warnings, "warning")),
    };
    match unknown {
        0 => known,
        1 => format!("{known}; 1 thing is unknown, and so not proved"),
        n => format!("{known}; {n} things are unknown, and so not proved"),
    }
}

/// What came of a rehearsal, a line each, beside the filesystems that would stay locked and the warnings.
pub fn rehearsal(rehearsal: &KmsRehearsal) -> Vec<String> {
    let KmsRehearsal { open, shut, held, stopped_seconds_left, until, .. } = rehearsal;
    let opens = count(*open, "filesystem");
    let mut lines = vec![match shut.len() {
        0 if rehearsal.starts_left == Some(0) => {
            format!("{opens} can be opened, but a start now would be refused its login")
        }
        0 => format!("a start now would succeed: {opens} can be opened"),
        n => format!("a start now would fail for {n}; {opens} can be opened"),
    }];
    if !held.is_empty() {
        lines.push(format!("locked by an administrator, and would stay so: {}", held.join(", ")));
    }
    if let Some(Ending { what, seconds_left }) = until {
        lines.push(format!("until {what} ends, in {}", span(*seconds_left)));
    }
    if let Some(left) = stopped_seconds_left {
        lines.push(format!(
            "a node that is stopped meanwhile has to be back within {}: then the token ends, which only a running one renews",
            span(*left)
        ));
    }
    match rehearsal.starts_left {
        Some(left) if left > 0 => lines.push(format!(
            "this took a login, and the secret id is good for {left} more: each start takes one"
        )),
        None if rehearsal.logs_in && rehearsal.open > 0 => lines.push(
            "this took a login: of a secret id with a limited number of uses that took one, perhaps the last, which Vault tells only to a \
             token that may ask".to_owned(),
        ),
        _ => {}
    }
    lines
}

/// What would fail.
pub fn impact(impact: &KmsImpact) -> Fields {
    const NAMED: usize = 20;
    let listed = |names: &[String]| {
        let shown = names.iter().take(NAMED).map(String::as_str).collect::<Vec<_>>().join(", ");
        match names.len() {
            0 => "none".to_owned(),
            n if n > NAMED => format!("{n}: {shown}, …"),
            n => format!("{n}: {shown}"),
        }
    };
    let mut fields = Fields::default();
    fields.add("if", impact.what.clone());
    fields.add("go on while the node runs", listed(&impact.go_on));
    fields.add("can't be unlocked now", listed(&impact.shut_now));
    fields.add("can't be unlocked at a start", listed(&impact.shut_at_start));
    fields.add("not touched", listed(&impact.untouched));
    if !impact.unknown.is_empty() {
        let unknown = listed(&impact.unknown);
        fields.add("not known", format!("{unknown} (a copy of the key is out of reach)"));
    }
    if impact.stops_wrapping {
        fields.add("besides", "no filesystem can be made, no key rewrapped");
    }
    fields.add("do", impact.cure.clone());
    fields
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

/// The configuration, and what the KMS says of it.
fn details(details: &KmsDetails) -> Fields {
    let mut fields = Fields::default();
    fields.add("KMS", details.kind.clone());
    fields.add("base URL", details.base_url.clone());
    fields.add("master key", details.master_key.clone());
    if let Some(latest) = details.latest_version {
        fields.add("newest version", latest.to_string());
    }
    if let Some(lowest) = details.min_decryption_version {
        fields.add("lowest version", format!("{lowest} (min_decryption_version)"));
    }
    fields.add(
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
    );
    if !details.held_back_by.is_empty() {
        fields.add("held back by", held_back(&details.held_back_by));
    }
    fields.add("transit path", details.transit_path.clone());
    if let Some(namespace) = &details.namespace {
        fields.add("namespace", namespace.clone());
    }
    if details.ca_cert.is_some() {
        fields.add("certificates", "those given with --ca-cert, and no others");
    }
    if details.client_cert {
        fields.add("connects with", "the certificate given with --client-cert");
    }
    fields.add("authentication", authentication(details));
    for key in &details.own_keys {
        fields.add("also in use", own_key(key));
    }
    match &details.problem {
        None if details.does_all => fields.add("state", "answers"),
        None => fields.add("state", format!("{FALLS_SHORT} (a warning says why)")),
        Some(problem) => {
            fields.add("state", format!("{}: {}", problem.title, problem.detail));
            if let Some(cure) = &problem.cure {
                fields.add("do", cure.clone());
            }
        }
    }
    fields
}

/// How the node shows the KMS who it is, and for how long it can.
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

/// How many keys hang on which version of which master key.
pub fn versions(counts: &[VersionCount]) -> String {
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

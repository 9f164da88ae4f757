//! `coffer recover`

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::{BytePath, Exit, Problem};
use cli::{Console, Output};
use filesystem::{is_open, read_envelope, read_previous_envelope};
use key_manager::{FilesystemRecord, FoundCopy, Recovered, rebuild, recorded_filesystems};
use key_store::SledStore;
use kms_core::{
    AuditEvent, AuditSink as _, Clock as _, KeyEnvelope, KeyId, Outcome, StoreError, SystemClock,
};
use local_kms::LocalProvider;
use rustix::process::geteuid;
use serde::Serialize;

use crate::config::Settings;
use crate::parts;
use crate::store::{self, Refused};

const TITLE: &str = "the key store can't be rebuilt";

/// What was rebuilt, as it is answered.
#[derive(Debug, Serialize)]
struct Answer {
    filesystems: Vec<Found>,
    /// Names that were taken or not valid, and what they are now.
    renamed: Vec<[String; 2]>,
    /// The KMS that opens them; its token is given with set-vault.
    kms: Option<Kms>,
    /// Others that some of them need.
    other_kms: Vec<Kms>,
    /// Directories that --from names and that could not be taken.
    left_out: Vec<LeftOut>,
    /// What the store had that was there, or what lies in the state directory if that store can't be read, and --from does not name.
    not_named: Vec<Found>,
    /// Where the store lies now that was there before.
    set_aside: Option<BytePath>,
    /// Why it does not tell what it had.
    unreadable: Option<String>,
    /// The keys of local wrapping that lie here, and stay.
    local_keys: Vec<BytePath>,
}

#[derive(Debug, Serialize)]
struct Found {
    name: String,
    backing: BytePath,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
struct Kms {
    base_url: String,
    master_key: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    transit_path: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    namespace: Option<String>,
}

#[derive(Debug, Serialize)]
struct LeftOut {
    path: BytePath,
    why: String,
}

/// Sets a store that is still there aside and rebuilds one from the copies in backing directories.
pub(crate) fn run(
    arguments: cli::Recover,
    console: &mut Console<'_>,
    output: Output,
) -> Result<Exit, Problem> {
    let cli::Recover { from, config, state_dir } = arguments;
    let settings = Settings::of(cli::Serve { config, state_dir, ..cli::Serve::default() })?;
    let state_dir = settings.state_dir;
    daemon::harden().map_err(|e| {
        Problem::new(Exit::Failed, "start", TITLE, format!("core dumps can't be turned off: {e}"))
            .cure("let this user lower its own limits, and try again")
    })?;
    let Copies { found, mut left_out } = Copies::search(&from)?;
    if found.is_empty() {
        return Err(nothing_found(&left_out));
    }
    parts::make_state_dir(&state_dir)?;
    let local = LocalProvider::new(&state_dir);
    let local_keys = local.keys().map_err(|e| daemon::of_keys(TITLE, &e.into()))?;
    let replaced = crate::runtime()?.block_on(replace_store(&state_dir, found))?;
    let Replaced { recovered, set_aside, before } = replaced;
    left_out.extend(
        recovered
            .left_out
            .iter()
            .map(|(path, why)| LeftOut { path: path.as_path().into(), why: why.clone() }),
    );
    let (before, unreadable) = match before {
        Some(Ok(before)) => (before, None),
        Some(Err(why)) => (in_state_dir(&state_dir), Some(why)),
        None => (in_state_dir(&state_dir), None),
    };
    let not_named = not_named(before, &recovered.filesystems, &left_out);
    let kms = recovered.kms.map(kms);
    let mut other_kms: Vec<Kms> = Vec::new();
    for other in recovered.others.into_iter().map(self::kms) {
        if kms.as_ref() != Some(&other) && !other_kms.contains(&other) {
            other_kms.push(other);
        }
    }
    let answer = Answer {
        filesystems: recovered
            .filesystems
            .into_iter()
            .map(|fs| Found { name: fs.name.to_string(), backing: fs.backing.into() })
            .collect(),
        renamed: recovered.renamed.into_iter().map(|(old, new)| [old, new.to_string()]).collect(),
        kms,
        other_kms,
        left_out,
        not_named,
        set_aside: set_aside.map(BytePath::from),
        unreadable,
        local_keys: local_keys.into_iter().map(|id| local.key_file(id).into()).collect(),
    };
    console.answer(&answer, output, text);
    match (answer.left_out.len(), answer.not_named.len()) {
        (0, 0) => Ok(Exit::Done),
        (left_out, not_named) => Err(not_all(left_out, not_named)),
    }
}

fn not_all(left_out: usize, not_named: usize) -> Problem {
    let (mut why, mut cure) = (Vec::new(), Vec::new());
    if left_out > 0 {
        why.push(format!("{left_out} of the directories could not be read"));
        cure.push("mend what was left out, or leave it out of --from");
    }
    if not_named > 0 {
        why.push(format!(
            "{not_named} filesystem(s) that were here are not among what --from names"
        ));
        cure.push("name the others with --from too, beside those that are recovered");
    }
    Problem::new(Exit::Partly, "partly-done", "the key store is rebuilt in part", why.join("; "))
        .cure(format!("{}; then give the command again", cure.join("; ")))
}

fn kms(config: kms_core::KmsConfig) -> Kms {
    let mut settings = config.settings;
    Kms {
        base_url: config.address,
        master_key: config.master_key,
        transit_path: settings.remove("transit_path"),
        namespace: settings.remove("namespace"),
    }
}

/// A filesystem that was here: its name, its key, its backing directory.
type Here = (String, KeyId, PathBuf);

/// Those in the place where backing directories lie that were given no other.
fn in_state_dir(state_dir: &Path) -> Vec<Here> {
    let entries = fs::read_dir(state_dir.join("filesystems")).into_iter().flatten().flatten();
    let mut here: Vec<Here> = entries
        .filter_map(|entry| {
            let KeyEnvelope { filesystem, wrapped, .. } = read_envelope(&entry.path()).ok()?;
            Some((filesystem, wrapped.key_id, entry.path()))
        })
        .collect();
    here.sort();
    here
}

/// Those whose directories are not among these. One that was moved is, by its key, unless a copy of that still lies at the old place.
fn not_named(here: Vec<Here>, recovered: &[FilesystemRecord], left_out: &[LeftOut]) -> Vec<Found> {
    let taken = |(_, key_id, backing): &Here| {
        let path = backing.canonicalize().unwrap_or_else(|_| backing.clone());
        recovered.iter().any(|fs| fs.backing == path)
            || left_out.iter().any(|left_out| left_out.path.as_path() == path)
            || recovered.iter().any(|fs| fs.key_id == *key_id) && read_envelope(&path).is_err()
    };
    let missed = here.into_iter().filter(|here| !taken(here));
    missed.map(|(name, _, backing)| Found { name, backing: backing.into() }).collect()
}

/// What became of the store.
struct Replaced {
    recovered: Recovered,
    /// Where the one from before lies now.
    set_aside: Option<PathBuf>,
    /// The filesystems that it had, or why it can't be read; `None`: there was none.
    before: Option<Result<Vec<Here>, String>>,
}

/// Rebuilds a store beside the one that is there, which it then replaces: at no moment does an empty one lie in its place.
async fn replace_store(state_dir: &Path, found: Vec<FoundCopy>) -> Result<Replaced, Problem> {
    let of_keys = |e| daemon::of_keys(TITLE, &e);
    let failed = |e: std::io::Error| {
        Problem::new(Exit::Failed, "set-aside", TITLE, e.to_string()).cure(
            "check the state directory: its room, its mount, who may write to it; then try again",
        )
    };
    // Sound or not it is set aside, unless a node has it open.
    let there = parts::store_dir(state_dir).exists();
    let before = match there.then(|| store::open(state_dir)) {
        None => None,
        Some(Ok(sound)) => Some(match recorded_filesystems(&sound).await {
            Ok(had) => {
                Ok(had.into_iter().map(|fs| (fs.name.to_string(), fs.key_id, fs.backing)).collect())
            }
            Err(error) => Err(error.to_string()),
        }),
        Some(Err(Refused::Store(in_use @ StoreError::InUse { .. }))) => {
            return Err(of_keys(key_manager::Error::from(in_use))
                .cure("stop the node that has it open first"));
        }
        Some(Err(refused)) => Some(Err(refused.to_string())),
    };
    let new = state_dir.join("store.new");
    match fs::remove_dir_all(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let rebuilt = SledStore::open(&new).map_err(|e| of_keys(key_manager::Error::from(e)))?;
    let recovered = rebuild(&rebuilt, &SystemClock, found).await.map_err(of_keys)?;
    let generation = rebuilt.generation();
    drop(rebuilt);

    // Begun here where there is none, so that it is missed when it is gone later.
    let audit = parts::audit_log(state_dir, store::was_used(state_dir)).map_err(failed)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let set_aside = there.then(|| state_dir.join(format!("store.set-aside-{now}")));
    store::replace(state_dir, &new, generation, set_aside.as_deref()).map_err(failed)?;
    audit.record(&AuditEvent {
        at: SystemClock.now(),
        action: "store.recover".to_owned(),
        subject: state_dir.display().to_string(),
        outcome: Outcome::Done,
        who: Some(format!("uid {}, process {}", geteuid().as_raw(), std::process::id())),
        key: None,
        requests: Vec::new(),
        detail: format!(
            "filesystems found in backing directories: {}",
            recovered.filesystems.len()
        ),
    });
    Ok(Replaced { recovered, set_aside, before })
}

/// Copies of wrapped keys.
#[derive(Default)]
struct Copies {
    found: Vec<FoundCopy>,
    left_out: Vec<LeftOut>,
}

impl Copies {
    /// Those in these directories, or one level below them.
    fn search(from: &[PathBuf]) -> Result<Self, Problem> {
        let mut copies = Self::default();
        for directory in from {
            let unreadable = |e: std::io::Error| {
                let why = format!("{}: {e}", directory.display());
                Problem::new(Exit::Usage, "from", TITLE, why)
                    .cure("name backing directories with --from DIR")
            };
            let directory = directory.canonicalize().map_err(unreadable)?;
            if read_envelope(&directory).is_ok() {
                copies.read(directory);
                continue;
            }
            let mut below: Vec<PathBuf> = fs::read_dir(&directory)
                .map_err(unreadable)?
                .filter_map(|entry| Some(entry.ok()?.path()))
                .filter(|path| path.is_dir())
                .collect();
            below.sort();
            below.into_iter().for_each(|path| copies.read(path));
        }
        Ok(copies)
    }

    fn read(&mut self, path: PathBuf) {
        let why = match read_envelope(&path) {
            // Two nodes that renew the wrapped key in its copy would lock each other out.
            Ok(_) if is_open(&path) => {
                "a node has it open, so its records are not lost; stop that one first".to_owned()
            }
            // Without the copy of the key that some of the data lies under, that would be lost.
            Ok(envelope) => match read_previous_envelope(&path) {
                Ok(previous) => {
                    return self.found.push(FoundCopy { backing: path, envelope, previous });
                }
                Err(error) => error.to_string(),
            },
            Err(error) => error.to_string(),
        };
        self.left_out.push(LeftOut { path: path.into(), why });
    }
}

fn nothing_found(left_out: &[LeftOut]) -> Problem {
    let why = match left_out.first() {
        Some(first) => format!("none of the directories can be read; the first: {}", first.why),
        None => "there is no backing directory in what --from names".to_owned(),
    };
    Problem::new(Exit::State, "nothing-found", TITLE, why).cure(
        "name the backing directories, each of which holds a file coffer.key, with --from DIR",
    )
}

/// Whoever could write a backing directory chose the words in its copy: none of them may look like a line of ours, and no command is made
/// of them.
fn text(answer: &Answer) -> String {
    let shown = |text: &str| BytePath::new(text);
    let mut text = String::new();
    if let Some(aside) = &answer.set_aside {
        text.push_str(&format!(
            "the store that was there is now {aside}\n  do:  remove it when all is well again: its wrapped keys lie in it, and its KMS's token\n"
        ));
    }
    if let Some(why) = &answer.unreadable {
        text.push_str(&format!(
            "that store can't be read, so what it had beside this is not known: {}\n",
            shown(why)
        ));
    }
    for fs in &answer.filesystems {
        text.push_str(&format!("recovered {} in {}\n", fs.name, fs.backing));
    }
    for [old, new] in &answer.renamed {
        text.push_str(&format!("  {} is now called {new}\n", shown(old)));
    }
    for LeftOut { path, why } in &answer.left_out {
        text.push_str(&format!("left out {path}: {}\n", shown(why)));
    }
    for Found { name, backing } in &answer.not_named {
        let name = shown(name);
        text.push_str(&format!("not recovered: {name} in {backing}, which --from does not name\n"));
    }
    if let Some(kms) = &answer.kms {
        text.push_str(&format!(
            "their keys say that {} wrapped them with {}\n  do:  start the node and, if this is your KMS, \
             give it a token: coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE\n",
            shown(&kms.base_url),
            master_key(kms)
        ));
    }
    for kms in &answer.other_kms {
        let base_url = shown(&kms.base_url);
        text.push_str(&format!("some need another too: {base_url} with {}\n", master_key(kms)));
    }
    for key in &answer.local_keys {
        text.push_str(&format!(
            "{key} stays, whatever KMS is set: what is not recovered may open under it\n  \
             do:  erase it yourself once you know that nothing needs it\n"
        ));
    }
    text
}

fn master_key(kms: &Kms) -> String {
    let mut text = format!("the master key {}", BytePath::new(kms.master_key.as_str()));
    for (what, setting) in [("transit path", &kms.transit_path), ("namespace", &kms.namespace)] {
        if let Some(setting) = setting {
            text.push_str(&format!(", {what} {}", BytePath::new(setting.as_str())));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_a_copy_upsets_a_terminal_or_looks_like_ours() {
        const EVIL: &str = "\x1b[2J\u{202e}\nrecovered nothing";
        let kms = || Kms {
            base_url: EVIL.to_owned(),
            master_key: EVIL.to_owned(),
            transit_path: Some(EVIL.to_owned()),
            namespace: Some(EVIL.to_owned()),
        };
        let answer = Answer {
            filesystems: vec![Found { name: "home".to_owned(), backing: BytePath::new(EVIL) }],
            renamed: vec![[EVIL.to_owned(), "recovered-1".to_owned()]],
            kms: Some(kms()),
            other_kms: vec![kms()],
            left_out: vec![LeftOut { path: BytePath::new(EVIL), why: EVIL.to_owned() }],
            not_named: vec![Found { name: EVIL.to_owned(), backing: BytePath::new(EVIL) }],
            set_aside: Some(BytePath::new(EVIL)),
            unreadable: Some(EVIL.to_owned()),
            local_keys: vec![BytePath::new(EVIL)],
        };
        let shown = text(&answer);
        assert_eq!(
            shown.matches("\\x1B[2J\\xE2\\x80\\xAE\\x0Arecovered nothing").count(),
            17,
            "{shown}"
        );
        assert!(shown.lines().all(|line| !line.chars().any(char::is_control)), "{shown}");
        assert_eq!(shown.lines().count(), 12, "{shown}");
    }
}

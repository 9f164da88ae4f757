//! `coffer recover`

use std::collections::HashSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use admin_api::{BytePath, Exit, Problem};
use cli::{Console, Output};
use filesystem::{is_open, read_envelope};
use key_manager::{FilesystemName, Recovered, recorded_filesystems};
use key_store::SledStore;
use kms_core::{KeyEnvelope, StoreError, SystemClock};
use serde::Serialize;

use crate::config::Settings;
use crate::parts::{self, Generation};

const TITLE: &str = "the key store can't be rebuilt";
const MISSED: &str = "which the store had that was there, is not among what --from names";

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
    left_out: Vec<LeftOut>,
    /// Where the store lies now that was there before.
    set_aside: Option<BytePath>,
}

#[derive(Debug, Serialize)]
struct Found {
    name: String,
    backing: BytePath,
}

#[derive(Debug, Serialize)]
struct Kms {
    base_url: String,
    master_key: String,
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
    let settings = Settings::of(config.as_deref(), state_dir, None)?;
    let state_dir = settings.state_dir;
    daemon::harden().map_err(|e| Problem::new(Exit::Failed, "start", TITLE, e.to_string()))?;
    let Copies { found, mut left_out } = Copies::search(&from)?;
    if found.is_empty() {
        return Err(nothing_found(&left_out));
    }
    parts::make_state_dir(&state_dir)?;
    let replaced = crate::runtime()?.block_on(replace_store(&state_dir, found))?;
    let Replaced { recovered, set_aside, before } = replaced;
    left_out.extend(
        recovered.left_out.into_iter().map(|(path, why)| LeftOut { path: path.into(), why }),
    );
    let known: HashSet<&Path> = recovered
        .filesystems
        .iter()
        .map(|(_, backing)| backing.as_path())
        .chain(left_out.iter().map(|left_out| left_out.path.as_path()))
        .collect();
    let missed: Vec<LeftOut> = before
        .into_iter()
        .filter(|(_, backing)| !known.contains(backing.as_path()))
        .map(|(name, backing)| LeftOut { path: backing.into(), why: format!("{name}, {MISSED}") })
        .collect();
    left_out.extend(missed);
    let kms = |config: kms_core::KmsConfig| Kms {
        base_url: config.address,
        master_key: config.master_key,
    };
    let answer = Answer {
        filesystems: recovered
            .filesystems
            .into_iter()
            .map(|(name, backing)| Found { name: name.to_string(), backing: backing.into() })
            .collect(),
        renamed: recovered.renamed.into_iter().map(|(old, new)| [old, new.to_string()]).collect(),
        kms: recovered.kms.map(kms),
        other_kms: recovered.others.into_iter().map(kms).collect(),
        left_out,
        set_aside: set_aside.map(BytePath::from),
    };
    console.answer(&answer, output, text);
    match answer.left_out.len() {
        0 => Ok(Exit::Done),
        left_out => Err(not_all(left_out)),
    }
}

fn not_all(left_out: usize) -> Problem {
    let why = format!("{left_out} of the directories could not be read; the others are in it");
    Problem::new(Exit::Partly, "partly-done", "the key store is rebuilt in part", why)
        .cure("mend what is named above, or leave it out of --from, and give the command again")
}

/// What became of the store.
struct Replaced {
    recovered: Recovered,
    /// Where the one from before lies now.
    set_aside: Option<PathBuf>,
    /// The filesystems that it had, as far as it can be read.
    before: Vec<(FilesystemName, PathBuf)>,
}

/// Rebuilds a store beside the one that is there, which it then replaces: at no moment does an empty one lie in its place.
async fn replace_store(
    state_dir: &Path,
    found: Vec<(PathBuf, KeyEnvelope)>,
) -> Result<Replaced, Problem> {
    let of_keys = |e| daemon::of_keys(TITLE, &e);
    let failed = |e: std::io::Error| Problem::new(Exit::Failed, "set-aside", TITLE, e.to_string());
    let store = parts::store_dir(state_dir);
    // Sound or not it is set aside, unless a node has it open.
    let there = store.exists();
    let before = match there.then(|| SledStore::open(&store)) {
        Some(Ok(sound)) => recorded_filesystems(&sound).await.unwrap_or_default(),
        Some(Err(in_use @ StoreError::InUse { .. })) => {
            return Err(of_keys(key_manager::Error::from(in_use))
                .cure("stop the node that has it open first"));
        }
        Some(Err(_)) | None => Vec::new(),
    };
    let new = state_dir.join("store.new");
    match fs::remove_dir_all(&new) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(failed(e)),
        _ => {}
    }
    let rebuilt = SledStore::open(&new).map_err(|e| of_keys(key_manager::Error::from(e)))?;
    let recovered = key_manager::rebuild(&rebuilt, &SystemClock, found).await.map_err(of_keys)?;
    drop(rebuilt);

    let put_in_place = || {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let aside = there.then(|| state_dir.join(format!("store.set-aside-{now}")));
        if let Some(aside) = &aside {
            fs::rename(&store, aside)?;
        }
        Generation::of(state_dir).forget()?;
        fs::rename(&new, &store)?;
        fs::File::open(state_dir)?.sync_all()?;
        Ok(aside)
    };
    Ok(Replaced { recovered, set_aside: put_in_place().map_err(failed)?, before })
}

/// Copies of wrapped keys.
#[derive(Default)]
struct Copies {
    found: Vec<(PathBuf, KeyEnvelope)>,
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
            Ok(envelope) => return self.found.push((path, envelope)),
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
        text.push_str(&format!("the store that was there is now {aside}\n"));
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
    if let Some(Kms { base_url, master_key }) = &answer.kms {
        text.push_str(&format!(
            "their keys say that {} wrapped them with the master key {}\n  do:  start the node and, if this is your KMS, \
             give it a token: coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE\n",
            shown(base_url),
            shown(master_key)
        ));
    }
    for Kms { base_url, master_key } in &answer.other_kms {
        text.push_str(&format!(
            "some need another KMS too: {} with the master key {}\n",
            shown(base_url),
            shown(master_key)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_word_of_a_copy_upsets_a_terminal_or_looks_like_ours() {
        const EVIL: &str = "\x1b[2J\u{202e}\nrecovered nothing";
        let kms = || Kms { base_url: EVIL.to_owned(), master_key: EVIL.to_owned() };
        let answer = Answer {
            filesystems: vec![Found { name: "home".to_owned(), backing: BytePath::new(EVIL) }],
            renamed: vec![[EVIL.to_owned(), "recovered-1".to_owned()]],
            kms: Some(kms()),
            other_kms: vec![kms()],
            left_out: vec![LeftOut { path: BytePath::new(EVIL), why: EVIL.to_owned() }],
            set_aside: Some(BytePath::new(EVIL)),
        };
        let shown = text(&answer);
        assert_eq!(
            shown.matches("\\x1B[2J\\xE2\\x80\\xAE\\x0Arecovered nothing").count(),
            9,
            "{shown}"
        );
        assert!(shown.lines().all(|line| !line.chars().any(char::is_control)), "{shown}");
        assert_eq!(shown.lines().count(), 7, "{shown}");
    }
}

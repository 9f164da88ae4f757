//! `coffer serve`

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, Problem};
use daemon::{AuditLog, Node};
use filesystem::{Backend, BackingLocks, read_envelope};
use key_store::SledStore;
use kms_core::{Clock, StoreError, SystemClock};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Settings};
use crate::parts::{self, Generation};
use crate::rehearse::{self, Rehearsals};

/// How long an ended node waits for what still reads or writes. Its jobs have ended before.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// Is the node, until it is asked to end.
pub(crate) fn run(arguments: cli::Serve) -> Result<Exit, Problem> {
    let cli::Serve { config, state_dir, socket } = arguments;
    let settings = Settings::of(config.as_deref(), state_dir, socket)?;
    daemon::harden().map_err(|e| cannot_start("core dumps can't be turned off", &e))?;
    log_to_stderr(settings.log_format);
    parts::make_state_dir(&settings.state_dir)?;
    let runtime = crate::runtime()?;
    let ended = runtime.block_on(serve(settings));
    // A disk that does not answer holds its thread, and the process would wait for it.
    runtime.shutdown_timeout(SHUTDOWN_WITHIN);
    ended
}

async fn serve(settings: Settings) -> Result<Exit, Problem> {
    let Settings { state_dir, socket, log_format: _ } = settings;
    let store_dir = parts::store_dir(&state_dir);
    refuse_lost_store(&store_dir, &state_dir)?;
    let store = SledStore::open(&store_dir).map_err(|error| {
        let in_use = matches!(error, StoreError::InUse { .. });
        let problem = daemon::of_keys("the node can't start", &key_manager::Error::from(error));
        if in_use {
            problem.cure("stop the other node, or give this one another place with --state-dir DIR")
        } else {
            problem
        }
    })?;
    let store = Arc::new(store);
    let generation = Generation::of(&state_dir);
    generation.check(&store)?;
    note(&generation, &store);

    let audit = AuditLog::open(&state_dir.join("audit.jsonl"))
        .map_err(|e| cannot_start("the audit log can't be opened", &e))?;
    let audit = Arc::new(audit);
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (cipher, locks) = (Backend::default(), BackingLocks::default());
    let (kept, recorded) = (Arc::clone(&store), Arc::clone(&audit) as _);
    let manager = Arc::new(parts::key_manager(&state_dir, kept, &locks, recorded));
    rehearse::remove_leftovers(&state_dir);
    let rehearse = Arc::new(Rehearsals { store: Arc::clone(&store), state_dir: state_dir.clone() });
    let parts = daemon::Parts { manager, cipher, locks, audit, rehearse, clock, state_dir, socket };
    let ended = Node::start(parts).await?.run(crate::asked_to_end()).await;
    note(&generation, &store);
    ended.map(|()| Exit::Done)
}

/// A note that can't be written leaves the one before, which is behind and does no harm.
fn note(generation: &Generation, store: &SledStore) {
    if let Err(error) = generation.note(store) {
        tracing::warn!(%error, "the generation of the key store can't be noted beside it");
    }
}

/// What an earlier node left and no store: it was lost, and an empty one must not take its place.
fn refuse_lost_store(store_dir: &Path, state_dir: &Path) -> Result<(), Problem> {
    if store_dir.exists() {
        return Ok(());
    }
    let filesystems = state_dir.join("filesystems");
    let orphan = std::fs::read_dir(&filesystems).ok().and_then(|entries| {
        entries.filter_map(Result::ok).map(|e| e.path()).find(|path| read_envelope(path).is_ok())
    });
    let left = match orphan {
        Some(found) => format!("there is a filesystem in {}", found.display()),
        None if state_dir.join("audit.jsonl").exists() => {
            "the audit log tells that a node had its state here".to_owned()
        }
        None => return Ok(()),
    };
    Err(Problem::new(
        Exit::NotAuthentic,
        "store-lost",
        "the node can't start",
        format!("the key store {} is gone, and {left}", store_dir.display()),
    )
    .cure(format!(
        "put a backup of it back, or rebuild it: coffer recover --from {} (and the backing directories elsewhere); a node that \
         begins anew takes an empty directory (--state-dir DIR)",
        filesystems.display()
    )))
}

fn cannot_start(what: &str, error: &std::io::Error) -> Problem {
    Problem::new(Exit::State, "start", "the node can't start", format!("{what}: {error}"))
}

fn log_to_stderr(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("info"));
    // A line that can't be written is lost; told to stderr, which takes nothing, it would be a panic of whoever writes it.
    let log = tracing_subscriber::fmt().log_internal_errors(false);
    let log = log.with_writer(std::io::stderr).with_env_filter(filter);
    match format {
        LogFormat::Text => log.with_ansi(false).init(),
        LogFormat::Json => log.json().init(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_that_is_gone_is_not_begun_anew() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        refuse_lost_store(&store, dir.path()).unwrap();
        std::fs::write(dir.path().join("audit.jsonl"), "").unwrap();
        let refused = refuse_lost_store(&store, dir.path()).unwrap_err();
        assert!(refused.detail.contains("audit log") && refused.cure.is_some(), "{refused}");
        std::fs::create_dir(&store).unwrap();
        refuse_lost_store(&store, dir.path()).unwrap();
    }
}

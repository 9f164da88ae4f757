//! `coffer serve`

use std::sync::Arc;
use std::time::Duration;

use admin_api::{Exit, Problem};
use daemon::{Meters, Node};
use filesystem::{Backend, BackingLocks};
use kms_core::{Clock, SystemClock};
use tracing_subscriber::EnvFilter;

use crate::config::{LogFormat, Settings};
use crate::parts;
use crate::rehearse::{self, Rehearsals};
use crate::store::NotedStore;

/// How long an ended node waits for what still reads or writes. Its jobs have ended before.
const SHUTDOWN_WITHIN: Duration = Duration::from_secs(5);

/// Is the node, until it is asked to end.
pub(crate) fn run(arguments: cli::Serve) -> Result<Exit, Problem> {
    let settings = Settings::of(arguments)?;
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
    let Settings { state_dir, socket, log_format: _, kms_deadline, console } = settings;
    let store = Arc::new(NotedStore::open(&state_dir)?);

    // Nothing is recorded in the store before there is a log.
    let audit = parts::audit_log(&state_dir, store.is_used())
        .map_err(|e| cannot_start("the audit log can't be opened", &e))?;
    let audit = Arc::new(audit);
    let meters = Meters::install()
        .map_err(|e| cannot_start("nothing can be counted", &std::io::Error::other(e)))?;
    vault_transit::describe_metrics();
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    let (cipher, locks) = (Backend::default(), BackingLocks::default());
    let (kept, recorded) = (Arc::clone(&store) as _, Arc::clone(&audit) as _);
    let manager = parts::key_manager(&state_dir, kept, &locks, recorded, kms_deadline);
    let manager = Arc::new(manager);
    rehearse::remove_leftovers(&state_dir);
    let rehearse = Arc::new(Rehearsals {
        store: Arc::clone(&store),
        audit: Arc::clone(&audit),
        state_dir: state_dir.clone(),
        kms_deadline,
    });
    let parts = daemon::Parts {
        manager,
        cipher,
        locks,
        audit,
        meters,
        rehearse,
        clock,
        state_dir,
        socket,
        console,
    };
    // Before anybody can see that it is up: who then has it end is not to find a process that a signal kills.
    let asked = crate::asked_to_end();
    let stop = async move {
        tokio::select! {
            () = asked => Ok(()),
            broken = store.broke() => Err(broken),
        }
    };
    Node::start(parts).await?.run(stop).await?;
    Ok(Exit::Done)
}

fn cannot_start(what: &str, error: &std::io::Error) -> Problem {
    Problem::new(Exit::State, "start", "the node can't start", format!("{what}: {error}"))
        .cure("let the node's user do that (its limits, and owner, room and mount of the state directory), and start it again")
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

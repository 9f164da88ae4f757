//! The node: one process that holds the keys of its filesystems and does what administrators ask for.
//!
//! A [`Node`] serves the admin API of [`admin_api`] over a unix socket, opens filesystems as soon as
//! the KMS unwraps their keys, runs jobs, and keeps an audit log. It is given its parts ([`Parts`]); it
//! knows neither Vault nor the store.
//!
//! | module | its part |
//! |---|---|
//! | `api` | routes and handlers: requests in, answers or problems out |
//! | `socket` | who gets through to it |
//! | `console` | the web console: sessions, pages, a listener of its own |
//! | `keeper` | the loop that opens filesystems and lets jobs go on |
//! | `health` | the KMS as last seen; the token, renewed in time |
//! | `changes` | tells those who show the node when to look again |
//! | `jobs` | long work, and what it could not do |
//! | `disks` | disks that may not answer |
//! | `patience` | copies of wrapped keys that lie on such |
//! | `volumes` | backing directories: made, removed |
//! | `strangers` | filesystems that lie here and are not known
//! | `open` | what is unlocked: held against other nodes, opened once |
//! | `meters` | what the process counts, for Prometheus |
//! | `audit` | the chained log of acts on keys and of requests: written, shown, verified |
//! | `hardening` | no core dumps, private files |
//! | `mutex` | locks that no panic elsewhere closes |
//! | `problem` | failures of the parts as problems for the one who asked |
//!
//! At its start a node answers before it has asked any KMS. At its end it stops jobs at a checkpoint, closes filesystems and
//! wipes keys; after kill -9 the next one does what is left to do.
//!
//! ```no_run
//! use std::sync::Arc;
//! use daemon::{Node, Parts};
//!
//! # async fn example(parts: Parts) -> Result<(), admin_api::Problem> {
//! let node = Node::start(parts).await?;
//! let asked = async {
//!     tokio::signal::ctrl_c().await.unwrap_or_default();
//!     Ok(())
//! };
//! node.run(asked).await
//! # }
//! ```

mod api;
mod audit;
mod changes;
mod console;
mod disks;
mod hardening;
mod health;
mod jobs;
mod keeper;
mod meters;
mod mutex;
mod open;
mod patience;
mod problem;
mod seen;
mod socket;
mod strangers;
mod volumes;
mod warnings;

use std::convert::Infallible;
use std::fmt;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use admin_api::{Exit, Problem};
use async_trait::async_trait;
use filesystem::{Backend, BackingLocks};
use key_manager::{Class, Error, KeyManager, Rehearsal};
use kms_core::{AuditEvent, AuditSink as _, Clock, Outcome, UnixMillis};
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

pub use audit::{AuditLog, SYNC_WITHIN};
pub use console::{Listen, Tls};
pub use hardening::harden;
pub use meters::Meters;
pub use patience::Patience;
pub use problem::of_keys;
pub use volumes::BackingVolumes;

use crate::changes::Changes;
use crate::console::{Access, Door, Found};
use crate::health::Health;
use crate::jobs::{Jobs, Notes};
use crate::keeper::Keeper;
use crate::mutex::lock;
use crate::open::OpenFilesystems;
use crate::socket::{Peer, SocketFile};
use crate::strangers::{Stranger, Strangers};

/// How long the start waits for what an earlier node left half done. Beyond that it goes on beside the
/// requests: a large filesystem that was being deleted takes its time.
const SETTLE_WITHIN: Duration = Duration::from_secs(5);

/// Between two rounds of what has to be done now and then.
const KEEP_HOUSE_EVERY: Duration = Duration::from_secs(60);

/// Opens every key in a process of its own that starts with nothing but what lies on disk.
#[async_trait]
pub trait Rehearse: fmt::Debug + Send + Sync {
    /// What came of it.
    ///
    /// # Errors
    /// It could not be tried, or a node could not even start.
    async fn rehearse(&self) -> Result<Rehearsal, Problem>;
}

/// What a node is made of.
pub struct Parts {
    /// Manages the keys.
    pub manager: Arc<KeyManager>,
    /// The cipher for data in filesystems.
    pub cipher: Backend,
    /// The locks that the manager's volumes and holders share with what is open.
    pub locks: BackingLocks,
    /// Keeps a record of every act; the manager's own sink too.
    pub audit: Arc<AuditLog>,
    /// What the process counts.
    pub meters: Meters,
    /// Tries a start.
    pub rehearse: Arc<dyn Rehearse>,
    /// Tells the time.
    pub clock: Arc<dyn Clock>,
    /// Where notes of jobs and backing directories lie that were given no other place.
    pub state_dir: PathBuf,
    /// Where the admin API is served.
    pub socket: PathBuf,
    /// Where the web console is served; `None`: on loopback, once somebody asks for it.
    pub console: Option<Listen>,
}

impl fmt::Debug for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parts")
            .field("state_dir", &self.state_dir)
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// What the handlers share.
pub(crate) struct Shared {
    pub(crate) manager: Arc<KeyManager>,
    pub(crate) filesystems: Arc<OpenFilesystems>,
    pub(crate) jobs: Arc<Jobs>,
    pub(crate) keeper: Arc<Keeper>,
    pub(crate) changes: Changes,
    pub(crate) health: Arc<Health>,
    pub(crate) audit: Arc<AuditLog>,
    pub(crate) meters: Meters,
    pub(crate) rehearse: Arc<dyn Rehearse>,
    /// Held while a start is rehearsed: one at a time.
    pub(crate) rehearsing: tokio::sync::Mutex<()>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) state_dir: PathBuf,
    pub(crate) started_at: UnixMillis,
    /// Who may use the console.
    pub(crate) access: Access,
    /// Where it is served.
    pub(crate) door: Door,
    /// What it found last.
    pub(crate) found: Found,
    /// Filesystems that lay here at the start and that the store did not know.
    pub(crate) strangers: Strangers,
    settling_failed: Mutex<Option<String>>,
}

impl Shared {
    /// Another configuration, another token: what was locked may open now.
    pub(crate) fn kms_changed(&self) {
        self.health.changed();
        self.keeper.wake();
    }

    /// The KMS did not do what was asked of it: what was seen of it before may not hold any more.
    pub(crate) fn noted(&self, error: Error) -> Error {
        if matches!(error.class(), Class::KmsRefused | Class::KmsUnreachable) {
            self.health.look_soon();
        }
        error
    }

    /// Why what an earlier node left half done could not be finished or undone.
    pub(crate) fn settling_failed(&self) -> Option<String> {
        lock(&self.settling_failed).clone()
    }

    /// Does what has to be done now and then, whether or not anybody asks.
    async fn keep_house(&self) -> Infallible {
        loop {
            tokio::time::sleep(KEEP_HOUSE_EVERY).await;
            self.strangers.look_again().await;
            self.meters.sum_up();
        }
    }

    async fn settle(&self) {
        let failed = self.manager.settle().await.err().map(|error| {
            tracing::error!(%error, "what an earlier node left half done can't be finished or undone");
            error.to_string()
        });
        *lock(&self.settling_failed) = failed;
    }

    fn record(&self, action: &str) {
        self.audit.record(&AuditEvent {
            at: self.clock.now(),
            action: action.to_owned(),
            subject: self.state_dir.display().to_string(),
            outcome: Outcome::Done,
            who: None,
            key: None,
            requests: Vec::new(),
            detail: format!("process {}", std::process::id()),
        });
    }
}

/// A node that listens.
pub struct Node {
    shared: Arc<Shared>,
    listener: UnixListener,
    _socket: SocketFile,
}

impl Node {
    /// Finishes or undoes what an earlier node left half done, and listens. Asks no KMS.
    ///
    /// # Errors
    /// With [`Exit::State`]: the socket or the state directory can't be used.
    pub async fn start(parts: Parts) -> Result<Self, Problem> {
        let Parts {
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
        } = parts;
        let listens = console.is_some();
        for name in ["jobs", "filesystems"] {
            make_private(&state_dir.join(name))?;
        }
        let strangers = find_strangers(&manager, state_dir.join("filesystems")).await;
        let strangers = Strangers::new(strangers);
        let filesystems = Arc::new(OpenFilesystems::new(Arc::clone(&manager), cipher, locks));
        let jobs = Arc::new(Jobs::new(
            Arc::clone(&manager),
            Arc::clone(&filesystems),
            Notes::new(state_dir.join("jobs")),
            Arc::clone(&clock),
        ));
        let shared = Arc::new(Shared {
            keeper: Arc::new(Keeper::new(
                Arc::clone(&manager),
                Arc::clone(&jobs),
                Arc::clone(&filesystems),
            )),
            health: Arc::new(Health::new(
                Arc::clone(&manager),
                Arc::clone(&audit),
                Arc::clone(&clock),
            )),
            changes: Changes::new(),
            started_at: clock.now(),
            manager,
            filesystems,
            jobs,
            audit,
            meters,
            rehearse,
            rehearsing: tokio::sync::Mutex::default(),
            clock,
            state_dir,
            access: Access::default(),
            door: Door::new(console.unwrap_or_else(Listen::loopback)),
            found: Found::default(),
            strangers,
            settling_failed: Mutex::default(),
        });
        let (listener, socket) = socket::listen(&socket)?;
        if listens {
            console::open(&shared).await?;
        }
        let settling = tokio::spawn({
            let shared = Arc::clone(&shared);
            async move { shared.settle().await }
        });
        if tokio::time::timeout(SETTLE_WITHIN, settling).await.is_err() {
            tracing::warn!("what an earlier node left half done is still being finished");
        }
        Ok(Self { shared, listener, _socket: socket })
    }

    /// Serves until `stop` completes, because somebody asked or with why the node can't go on; then stops jobs at a checkpoint, closes
    /// filesystems and wipes keys.
    ///
    /// # Errors
    /// What `stop` said; the socket or another part of the node failed.
    pub async fn run(
        self,
        stop: impl Future<Output = Result<(), Problem>> + Send + 'static,
    ) -> Result<(), Problem> {
        let Self { shared, listener, _socket } = self;
        shared.record("node.start");
        tracing::info!(state_dir = %shared.state_dir.display(), "the node is up");
        let mut loops = JoinSet::new();
        let both = || (Arc::clone(&shared.keeper), Arc::clone(&shared.health));
        let (keeper, health) = both();
        loops.spawn(async move { keeper.keep(&health).await });
        let health = Arc::clone(&shared.health);
        loops.spawn(async move { health.watch().await });
        let (keeper, health) = both();
        loops.spawn(async move { health.watch_here(&keeper).await });
        let filesystems = Arc::clone(&shared.filesystems);
        loops.spawn(async move { filesystems.keep_holding().await });
        let house = Arc::clone(&shared);
        loops.spawn(async move { house.keep_house().await });
        let shown = Arc::clone(&shared);
        loops.spawn(async move { shown.changes.watch(|| api::digest(&shown)).await });
        let seen = Arc::clone(&shared);
        loops.spawn(async move { console::see_sessions_out(&seen).await });
        let service =
            api::over_socket(Arc::clone(&shared)).into_make_service_with_connect_info::<Peer>();
        let ending = Arc::clone(&shared);
        let (failing, mut failed) = oneshot::channel();
        let stop = async move {
            if let Err(problem) = until_stopped(stop, loops).await {
                tracing::error!(%problem, "the node can't go on");
                let _ = failing.send(problem);
            }
            // Requests that wait for a job, or follow what happens, would hold the node.
            ending.jobs.begin_close();
            ending.changes.close();
            ending.door.close().await;
            console::end_sessions(&ending);
        };
        let served = axum::serve(listener, service).with_graceful_shutdown(stop).await;

        tracing::info!("the node ends");
        shared.jobs.close().await;
        shared.filesystems.close_all();
        shared.manager.forget_keys();
        shared.manager.leave().await;
        shared.record("node.stop");
        if let Ok(problem) = failed.try_recv() {
            return Err(problem);
        }
        served.map_err(|e| {
            Problem::new(Exit::Failed, "socket-failed", "the node can't serve", e.to_string())
                .cure("start the node again, and report this with the node's log")
        })
    }
}

impl fmt::Debug for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Node").field("state_dir", &self.shared.state_dir).finish_non_exhaustive()
    }
}

/// Waits until the node is to stop. Its loops go on for ever; without one of them it would look alive and do nothing.
async fn until_stopped(
    stop: impl Future<Output = Result<(), Problem>>,
    mut loops: JoinSet<Infallible>,
) -> Result<(), Problem> {
    let ended = tokio::select! {
        stopped = stop => return stopped,
        Some(ended) = loops.join_next() => ended,
    };
    let why = ended.map_or_else(|e| e.to_string(), |never| match never {});
    Err(Problem::new(Exit::Failed, "internal", "a part of the node broke", why)
        .cure("start the node again, and report this with the node's log"))
}

/// As far as the disk answers: nothing waits for this.
async fn find_strangers(manager: &KeyManager, directory: PathBuf) -> Vec<Stranger> {
    // What keeps the records from being read shows when the node settles.
    let Ok(known) = manager.filesystems().await else { return Vec::new() };
    let found = tokio::task::spawn_blocking(move || strangers::find(&directory, &known));
    let found = tokio::time::timeout(SETTLE_WITHIN, found).await;
    let found = found.ok().and_then(Result::ok).unwrap_or_default();
    for Stranger { name, backing } in &found {
        tracing::warn!(name, backing = %backing.display(), "a filesystem lies here that the key store does not know");
    }
    found
}

fn make_private(directory: &Path) -> Result<(), Problem> {
    DirBuilder::new().mode(0o700).recursive(true).create(directory).map_err(|e| {
        let title = format!("the directory {} can't be made", directory.display());
        Problem::new(Exit::State, "state-dir", title, e.to_string())
            .cure("give a state directory that this user may write to with --state-dir DIR")
    })
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use super::*;

    #[tokio::test]
    async fn a_loop_that_breaks_ends_the_node() {
        let mut loops = JoinSet::new();
        loops.spawn(pending());
        assert_eq!(until_stopped(ready(Ok(())), loops).await, Ok(()));

        let mut loops = JoinSet::new();
        loops.spawn(pending());
        loops.spawn(async { panic!("it broke") });
        let problem = until_stopped(pending(), loops).await.unwrap_err();
        assert!(problem.detail.contains("panicked") && problem.cure.is_some(), "{problem}");
    }
}

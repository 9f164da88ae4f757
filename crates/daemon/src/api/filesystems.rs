//! `/v1/filesystems`

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use admin_api::{
    BytePath, CreateFilesystem, Deleted, Entry, EntryKind, Exit, Export, Filesystem,
    FilesystemState, Filesystems, Import, Job, Listing, Lock, Problem, Verify, WrappedBy, paths,
};
use axum::Json;
use axum::extract::State;
use filesystem::real_place;
use key_manager::{CreateRequest, Error, FilesystemName, FilesystemStatus, JobKind, KeyState};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::task::spawn_blocking;
use utoipa::{IntoParams, ToSchema};

use super::extract::{IdempotencyKey, Limit, Path as Segment, Query};
use super::{Answer, Body, Nothing, name};
use crate::jobs::{Spec, damage};
use crate::{Shared, problem};

/// Which filesystems are wanted.
#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wanted {
    /// Only those whose names contain this, in these cases.
    #[serde(default)]
    search: String,
    /// Only those that are `unlocked`, `locked` (or not unlocked for another reason), or `exposed`.
    #[param(inline)]
    state: Option<Standing>,
    /// Only those after this one: the last page's `next`.
    #[serde(default)]
    after: String,
    /// How many, at most 1000.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 1000)]
    limit: Option<Limit<{ paths::PAGE_LIMIT }>>,
}

/// How filesystems stand.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
enum Standing {
    Unlocked,
    /// Those that are not, whatever the reason.
    Locked,
    Exposed,
}

impl Wanted {
    fn stands(&self, fs: &FilesystemStatus) -> bool {
        match self.state {
            None => true,
            Some(Standing::Unlocked) => fs.key == KeyState::Unlocked,
            Some(Standing::Locked) => fs.key != KeyState::Unlocked,
            Some(Standing::Exposed) => fs.exposed,
        }
    }
}

/// Lists filesystems by name.
#[utoipa::path(
    get,
    path = paths::FILESYSTEMS,
    operation_id = "listFilesystems",
    tag = "filesystems",
    params(Wanted),
    responses((status = 200, description = "A page of them", body = Filesystems)),
)]
pub(crate) async fn list(
    State(shared): State<Arc<Shared>>,
    Query(wanted): Query<Wanted>,
) -> Answer<Filesystems> {
    let Wanted { search, after, limit, .. } = &wanted;
    let limit = limit.map_or(paths::PAGE_LIMIT, Limit::get);
    let stands = |fs: &FilesystemStatus| wanted.stands(fs);
    let found = shared.manager.filesystem_page(after, limit, search, stands).await;
    let (found, more) = found.map_err(|e| problem::of_keys("filesystems can't be listed", &e))?;
    let filesystems: Vec<_> = found.iter().map(view).collect();
    let next = filesystems.last().filter(|_| more).map(|fs| fs.name.clone());
    Ok(Json(Filesystems { filesystems, next }))
}

/// Makes a filesystem.
///
/// With an `Idempotency-Key` a request whose answer was lost can be repeated: it is answered with the filesystem that it made, as long
/// as that exists, also after a restart. Another request with the same key is refused (422), and a repeat while the first is under way waits
/// some seconds and is refused then (409).
#[utoipa::path(
    post,
    path = paths::FILESYSTEMS,
    operation_id = "createFilesystem",
    tag = "filesystems",
    params(("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters: the same request with the same key makes no second filesystem")),
    request_body = CreateFilesystem,
    responses((status = 200, description = "The filesystem", body = Filesystem)),
)]
pub(crate) async fn create(
    State(shared): State<Arc<Shared>>,
    IdempotencyKey(key): IdempotencyKey,
    Body(request): Body<CreateFilesystem>,
) -> Answer<Filesystem> {
    let title = "the filesystem can't be made";
    let name = name(&request.name, title)?;
    let title = format!("the filesystem {name} can't be made");
    let backing = match &request.backing {
        Some(path) => path.as_path().to_owned(),
        None => shared.state_dir.join("filesystems").join(name.as_str()),
    };
    refuse_state_dir(&shared, &backing, &title)?;
    let (manager, kms_key, allow_no_kms) =
        (&shared.manager, request.kms_key.clone(), request.allow_no_kms);
    let created = match (key, kms_key) {
        (Some(key), kms_key) => {
            let once = CreateRequest { key, digest: digest(&request, &title)? };
            manager.create_filesystem_once(once, name.clone(), backing, kms_key, allow_no_kms).await
        }
        (None, Some(key)) => manager.create_filesystem_under(name.clone(), backing, key).await,
        (None, None) => manager.create_filesystem(name.clone(), backing, allow_no_kms).await,
    };
    created.map_err(|e| not_made(&request, &title, &shared.noted(e)))?;
    if let Some(key) = &request.kms_key {
        shared.health.has_own(key);
    }
    shared.filesystems.hold(&name).await;
    Ok(Json(one(&shared, &name, &title).await?))
}

/// Why it was not made, and what of the request is the cause.
fn not_made(request: &CreateFilesystem, title: &str, error: &Error) -> Problem {
    let problem = problem::of_request(title, error);
    match error {
        Error::Exists { .. } => problem.field("name"),
        Error::NoKms => problem.field("allow_no_kms"),
        Error::Volume { .. } if request.backing.is_some() => problem.field("backing"),
        // Whatever the KMS says against it, it says against what was asked for beside the usual.
        Error::Kms(e) if request.kms_key.is_some() && !e.kind().is_transient() => {
            problem.field("kms_key")
        }
        _ => problem,
    }
}

/// Shows a filesystem.
#[utoipa::path(
    get,
    path = paths::FILESYSTEM,
    operation_id = "getFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    responses((status = 200, description = "The filesystem", body = Filesystem)),
)]
pub(crate) async fn show(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
) -> Answer<Filesystem> {
    let title = "the filesystem can't be shown";
    Ok(Json(one(&shared, &name(&fs, title)?, title).await?))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// The record alone; what lies in the backing directory stays.
    #[serde(default)]
    forget: bool,
}

/// Deletes a filesystem.
#[utoipa::path(
    delete,
    path = paths::FILESYSTEM,
    operation_id = "deleteFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name"), Delete),
    responses((status = 200, description = "What became of its key", body = Deleted)),
)]
pub(crate) async fn delete(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Query(Delete { forget }): Query<Delete>,
    _: Body<Option<Nothing>>,
) -> Answer<Deleted> {
    let name = name(&fs, "the filesystem can't be deleted")?;
    let title = format!("the filesystem {name} can't be deleted");
    shared.jobs.clear(&name, false, &title).await?;
    let leaving = shared.filesystems.close_for_good(&name);
    // One that began in between is stopped; what begins from here on keeps the data from being removed, or fails.
    shared.jobs.clear(&name, true, &title).await?;
    let deleted = match forget {
        false => shared.manager.delete_filesystem(&name).await,
        true => shared.manager.forget_filesystem(&name).await,
    };
    drop(leaving);
    if deleted.is_ok()
        && let Err(error) = shared.jobs.fail_orphans().await
    {
        tracing::warn!(%error, "the stopped jobs of a deleted filesystem can't be ended yet");
    }
    // A copy that is out of reach keeps other things waiting, until it is gone; one that is damaged is mended.
    shared.keeper.wake();
    let deleted = deleted.map_err(|e| problem::of_keys(&title, &e))?;
    Ok(Json(Deleted {
        name: name.to_string(),
        key_id: deleted.key_id.to_string(),
        removed: deleted.removed,
        remaining: deleted.remaining,
    }))
}

/// Closes a filesystem and forgets its key, until it is unlocked.
#[utoipa::path(
    post,
    path = paths::LOCK,
    operation_id = "lockFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    request_body = Lock,
    responses((status = 200, description = "The filesystem", body = Filesystem)),
)]
pub(crate) async fn lock(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Body(Lock { force }): Body<Lock>,
) -> Answer<Filesystem> {
    let name = name(&fs, "the filesystem can't be locked")?;
    let title = format!("the filesystem {name} can't be locked");
    shared.jobs.clear(&name, force, &title).await?;
    shared.manager.lock(&name).await.map_err(|e| problem::of_keys(&title, &e))?;
    shared.filesystems.close(&name);
    // No job gets at it from here on; one that did in between is stopped.
    shared.jobs.clear(&name, true, &title).await?;
    Ok(Json(one(&shared, &name, &title).await?))
}

/// Opens a filesystem.
#[utoipa::path(
    post,
    path = paths::UNLOCK,
    operation_id = "unlockFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    responses((status = 200, description = "The filesystem", body = Filesystem)),
)]
pub(crate) async fn unlock(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    _: Body<Option<Nothing>>,
) -> Answer<Filesystem> {
    let name = name(&fs, "the filesystem can't be unlocked")?;
    let title = format!("the filesystem {name} can't be unlocked");
    let unlocked = shared.manager.unlock(&name).await;
    // One that failed is tried again as soon as those that nobody asked for.
    shared.keeper.wake();
    unlocked.map_err(|e| problem::of_keys(&title, &shared.noted(e)))?;
    Ok(Json(one(&shared, &name, &title).await?))
}

/// Authenticates everything in a filesystem.
#[utoipa::path(
    post,
    path = paths::VERIFY,
    operation_id = "verifyFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    request_body = Verify,
    responses((status = 200, description = "The job that does it", body = Job)),
)]
pub(crate) async fn verify(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Body(Verify { repair }): Body<Verify>,
) -> Answer<Job> {
    start(&shared, JobKind::Verify, &fs, Spec { repair, ..Spec::default() }).await
}

/// Gives a filesystem a new key, and re-encrypts its data under that.
#[utoipa::path(
    post,
    path = paths::REKEY,
    operation_id = "rekeyFilesystem",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    responses((status = 200, description = "The job that does it", body = Job)),
)]
pub(crate) async fn rekey(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    _: Body<Option<Nothing>>,
) -> Answer<Job> {
    let name = name(&fs, "the re-encryption can't start")?;
    let title = format!("{name} can't be given a new key");
    // The KMS takes its time: other jobs start and stop meanwhile.
    let new = shared.manager.new_key(&name).await;
    let new = new.map_err(|e| problem::of_keys(&title, &shared.noted(e)))?;
    Ok(Json(shared.jobs.rekey(&name, new).await?))
}

/// Copies a plain tree into a filesystem.
#[utoipa::path(
    post,
    path = paths::IMPORT,
    operation_id = "importTree",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    request_body = Import,
    responses((status = 200, description = "The job that does it", body = Job)),
)]
pub(crate) async fn import(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Body(Import { source }): Body<Import>,
) -> Answer<Job> {
    let source = absolute("source", source)?;
    refuse_no_directory(source.clone()).await?;
    let spec = Spec { path: Some(source), ..Spec::default() };
    start(&shared, JobKind::Import, &fs, spec).await
}

/// Copies a filesystem's tree out in plain.
#[utoipa::path(
    post,
    path = paths::EXPORT,
    operation_id = "exportTree",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name")),
    request_body = Export,
    responses((status = 200, description = "The job that does it", body = Job)),
)]
pub(crate) async fn export(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Body(Export { target }): Body<Export>,
) -> Answer<Job> {
    let target = absolute("target", target)?;
    refuse_ciphertext(&shared, target.as_path()).await?;
    let spec = Spec { path: Some(target), ..Spec::default() };
    start(&shared, JobKind::Export, &fs, spec).await
}

/// Names what is asked.
fn digest(request: &CreateFilesystem, title: &str) -> Result<String, Problem> {
    let request = serde_json::to_vec(request).map_err(|e| problem::internal(title, e))?;
    Ok(hex::encode(Sha256::digest(request)))
}

/// Keeps backing directories out of what the node keeps for itself.
fn refuse_state_dir(shared: &Shared, backing: &Path, title: &str) -> Result<(), Problem> {
    let (place, state) = (real_place(backing), real_place(&shared.state_dir));
    let own = place.starts_with(&state) && !place.starts_with(state.join("filesystems"));
    if !own && !state.starts_with(&place) {
        return Ok(());
    }
    let why = format!("{} is, or holds, the node's own state directory", backing.display());
    let problem = Problem::new(Exit::Usage, "invalid", title, why).field("backing");
    Err(problem.cure("name a directory outside it"))
}

/// Keeps plain data out of every place that holds ciphertext or keys.
async fn refuse_ciphertext(shared: &Shared, target: &Path) -> Result<(), Problem> {
    let title = "the export can't start";
    let filesystems = shared.manager.filesystems().await;
    let filesystems = filesystems.map_err(|e| problem::of_keys(title, &e))?;
    let place = real_place(target);
    let backings = filesystems.iter().map(|fs| &fs.backing);
    let inside = backings.chain([&shared.state_dir]).find(|dir| place.starts_with(real_place(dir)));
    match inside {
        None => Ok(()),
        Some(dir) => {
            let why = format!(
                "{} lies in {}, where nothing readable may lie",
                target.display(),
                dir.display()
            );
            Err(Problem::new(Exit::State, "invalid-target", title, why)
                .field("target")
                .cure("name a directory outside the backing directories and the state directory"))
        }
    }
}

async fn start(shared: &Shared, kind: JobKind, fs: &str, spec: Spec) -> Answer<Job> {
    let name = name(fs, "the job can't start")?;
    Ok(Json(shared.jobs.start(kind, &name, spec).await?))
}

fn absolute(field: &str, path: BytePath) -> Result<BytePath, Problem> {
    if path.as_path().is_absolute() {
        // With a slash at its end it is the same one, whose job goes on.
        let plain: PathBuf = path.as_path().components().collect();
        return Ok(plain.as_path().into());
    }
    let why = format!("{path} is relative, and the node has another working directory");
    Err(Problem::new(Exit::Usage, "invalid", "the job can't start", why)
        .field(field)
        .cure("give an absolute path"))
}

/// Refuses at once what can be no source. What else keeps it from being read is the job's to tell.
async fn refuse_no_directory(source: BytePath) -> Result<(), Problem> {
    let title = "the import can't start";
    let asked = source.clone();
    let found = spawn_blocking(move || std::fs::metadata(asked.as_path())).await;
    let found = found.map_err(|e| problem::internal(title, io::Error::from(e)))?;
    let why = match found {
        Ok(found) if !found.is_dir() => format!("{source} is no directory"),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            format!("{source} does not exist where the node runs")
        }
        _ => return Ok(()),
    };
    let problem = Problem::new(Exit::Usage, "invalid", title, why).field("source");
    Err(problem.cure("name a directory"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub(crate) struct LsQuery {
    /// Which directory, from the root of the filesystem on.
    #[serde(default)]
    path: BytePath,
    /// Only what comes after this name: the last page's `next`.
    after: Option<BytePath>,
    /// How many, at most 50000.
    #[param(value_type = Option<usize>, minimum = 1, maximum = 50000)]
    limit: Option<Limit<{ paths::LS_LIMIT }>>,
}

/// Lists a directory in a filesystem.
#[utoipa::path(
    get,
    path = paths::LS,
    operation_id = "listDirectory",
    tag = "filesystems",
    params(("name" = String, Path, description = "The filesystem's name"), LsQuery),
    responses((status = 200, description = "A page of it", body = Listing)),
)]
pub(crate) async fn ls(
    State(shared): State<Arc<Shared>>,
    Segment(fs): Segment<String>,
    Query(LsQuery { path, after, limit }): Query<LsQuery>,
) -> Answer<Listing> {
    let name = name(&fs, "the directory can't be listed")?;
    let title = format!("{path} in {name} can't be listed");
    if path.as_bytes().split(|b| *b == b'/').any(|part| matches!(part, b"." | b"..")) {
        let why = "a path in a filesystem begins at its root and has no . or .. in it";
        return Err(Problem::new(Exit::Usage, "invalid", title, why)
            .field("path")
            .cure("name the directory from the root on")
            .into());
    }
    let filesystem = shared.filesystems.get(&name, &title).await?;
    let asked = path.as_path().to_owned();
    let limit = limit.map_or(paths::LS_LIMIT, Limit::get);
    let list = move || {
        let after = after.as_ref().map(|after| after.as_path().as_os_str());
        filesystem.list_page(&asked, after, limit)
    };
    let listing = spawn_blocking(list)
        .await
        .map_err(|e| problem::internal(&title, io::Error::from(e)))?
        .map_err(|e| problem::of_filesystem(&title, &e))?;
    Ok(Json(Listing {
        entries: listing.entries.into_iter().map(entry).collect(),
        unreadable: listing.unreadable.iter().map(damage).collect(),
        unreadable_omitted: listing.unreadable_omitted,
        next: listing.next.map(BytePath::from),
    }))
}

fn entry(entry: filesystem::Entry) -> Entry {
    Entry {
        name: entry.name.into(),
        kind: match entry.kind {
            filesystem::EntryKind::File => EntryKind::File,
            filesystem::EntryKind::Directory => EntryKind::Directory,
            filesystem::EntryKind::Symlink => EntryKind::Symlink,
            filesystem::EntryKind::Fifo => EntryKind::Fifo,
            filesystem::EntryKind::CharacterDevice => EntryKind::CharacterDevice,
            filesystem::EntryKind::BlockDevice => EntryKind::BlockDevice,
        },
        size: entry.size,
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        modified_at: entry.modified_ms,
        target: entry.target.map(BytePath::from),
    }
}

async fn one(shared: &Shared, name: &FilesystemName, title: &str) -> Result<Filesystem, Problem> {
    let found = shared.manager.filesystem_status(name).await;
    found.map(|fs| view(&fs)).map_err(|e| problem::of_keys(title, &e))
}

/// Whether its key has not been asked for yet.
pub(super) fn is_unlocking(key: &KeyState) -> bool {
    matches!(key, KeyState::Locked(reason) if reason.code == "not-tried")
}

fn view(status: &FilesystemStatus) -> Filesystem {
    let fs = &status.filesystem;
    let (state, problem) = match &status.key {
        KeyState::Unlocked => (FilesystemState::Unlocked, None),
        KeyState::Locked(reason) if is_unlocking(&status.key) => {
            let title = format!("{} is being unlocked", fs.name);
            (FilesystemState::Unlocking, Some(problem::of_lock(title, reason)))
        }
        KeyState::Locked(reason) => {
            let title = format!("{} is locked", fs.name);
            (FilesystemState::Locked, Some(problem::of_lock(title, reason)))
        }
        KeyState::Deleting(reason) => {
            let title = format!("{} is being deleted", fs.name);
            (FilesystemState::Deleting, Some(problem::of_lock(title, reason)))
        }
    };
    let wrapped_by = match &status.wrapped_by {
        Some(config) => WrappedBy {
            kind: config.kind.clone(),
            master_key: config.master_key.clone(),
            version: status.version.0,
        },
        None => WrappedBy { kind: "unknown".to_owned(), master_key: String::new(), version: 0 },
    };
    Filesystem {
        name: fs.name.to_string(),
        created_at: fs.created.0,
        backing: fs.backing.as_path().into(),
        state,
        problem,
        key_id: fs.key_id.to_string(),
        previous_key_id: fs.previous_key.map(|id| id.to_string()),
        wrapped_by,
        own_master_key: status.own_master_key.clone(),
        exposed: status.exposed,
        findings: status
            .copies_behind
            .iter()
            .map(|why| super::kms::copy_out_of_reach(&fs.name, why))
            .collect(),
    }
}

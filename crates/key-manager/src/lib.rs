//! The life of filesystem keys.
//!
//! A [`KeyManager`] ties a [`kms_core::KeyStore`], the [`kms_core::KmsProvider`]s and the
//! [`kms_core::KeyHolder`]s together and is the only one that changes key records:
//!
//! | act | where | durable steps, in order |
//! |---|---|---|
//! | configure a KMS | `configure` | prove; open everything; one commit; move the keys as a job |
//! | remove it | `configure` | one commit that no filesystem may race; or a job to local wrapping |
//! | prove the master key | `identity` | none; its canary goes with what uses it |
//! | know a master key that filesystems have of their own | `own_key` | none; with the filesystem, or with the KMS that is set |
//! | create, delete a filesystem | `filesystems` | an intent, the backing directory, the record |
//! | unlock | `unlock` | none: unwrapped keys live in memory only |
//! | rewrap, move, downgrade | `moving` | by batch: wrap, open, commit, then the copies |
//! | give a filesystem a new key | `rekey` | one commit; the backing directory; its data; the directory again; one commit |
//! | use a key | `uses` | none: each use is a line of the audit log |
//! | tell how it stands | `status`, `in_use`, `impact` | none |
//! | rebuild a lost store | `recover` | one record after the other from the copies |
//!
//! Every durable step can be the last one before a crash. [`KeyManager::settle`] runs at start and
//! finishes or undoes what was under way; unfinished moves are jobs that [`KeyManager::run_move`] takes
//! up again. Nothing here knows Vault, sled, HTTP or a file.
//!
//! Concurrency: every method may be called at any time from any task. Acts that change records are
//! serialised inside one manager, and their commits carry preconditions, so that a second manager
//! on the same store loses cleanly with [`Error::Changed`].

mod configure;
mod error;
mod filesystems;
mod identity;
mod impact;
mod in_use;
mod jobs;
mod manager;
mod moving;
mod name;
mod new_kms;
mod own_key;
mod records;
mod recover;
mod rehearsal;
mod rekey;
mod repeat;
mod status;
mod unlock;
mod uses;

pub use configure::Configured;
pub use error::{Class, Error, Input, listed};
pub use filesystems::{Created, Deleted, Removal, Volumes};
pub use impact::{Impact, Loss};
pub use in_use::{InUse, LeftBehind, VersionCount};
pub use jobs::{JobControl, JobId, JobKind, JobRecord, JobState, Progress};
pub use manager::{KeyManager, OpenKeys, Parts};
pub use moving::{MoveReport, MoveSpec, Purpose};
pub use name::FilesystemName;
pub use new_kms::{Expected, KmsVersion, NewCredential, NewKms};
pub use records::{AuthKind, CredentialKind, FilesystemRecord, FilesystemState};
pub use recover::{FoundCopy, Recovered, rebuild, recorded_filesystems};
pub use rehearsal::Rehearsal;
pub use rekey::NewKey;
pub use repeat::CreateRequest;
pub use status::{FilesystemStatus, KmsOverview, LiveKey, LiveKms, OwnMasterKey, PreviousKey};
pub use unlock::{KeyState, LockReason};

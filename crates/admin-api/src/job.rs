//! Long work.

use serde::{Deserialize, Serialize};

use crate::{BytePath, Problem};

/// One piece of long work. It goes on in the node, whoever watches.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Job {
    /// Its id.
    pub id: String,
    /// What it does.
    pub kind: JobKind,
    /// The filesystem that it works on; `None` if it works on all keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filesystem: Option<String>,
    /// The directory that an import reads or an export fills.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<BytePath>,
    /// How far it is.
    pub state: JobState,
    /// Whether it took up where an earlier run was stopped or killed.
    pub resumed: bool,
    /// How much is done.
    pub progress: Progress,
    /// When it was asked for, in Unix milliseconds.
    pub created_at: u64,
    /// When it ended, in Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<u64>,
    /// Files, directories, links and nodes that an import or export copied without their owner or group, since the node
    /// is not root's or the disk does not let it.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub owners_lost: u64,
    /// Keys that a move took from the node's memory: the KMS that had wrapped them was not asked, or did not open them any more.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keys_from_memory: u64,
    /// Keys that a move which has ended found where they should be.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keys_already: u64,
    /// Why it failed, or did only a part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<Problem>,
    /// What was damaged or could not be done: a page of it, when one job is asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub damage: Vec<Damage>,
    /// There is more of it: ask again with `?damage_after=` this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_damage: Option<u64>,
    /// Whether `damage`, or the reason in `problem`, is left out: it names files, and the filesystem is not unlocked.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub names_sealed: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
pub(crate) const fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What a job does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JobKind {
    /// Copies a plain tree in.
    Import,
    /// Copies the tree out in plain.
    Export,
    /// Authenticates everything.
    Verify,
    /// Re-encrypts a filesystem under its new key.
    Rekey,
    /// Moves every key to the newest version of its master key.
    Rewrap,
    /// Moves every key to another KMS configuration.
    Move,
    /// Brings the copies of the wrapped keys to a new way to the same KMS.
    Renew,
    /// Puts every key under local wrapping and removes the configuration.
    Downgrade,
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum JobState {
    /// It runs, or is about to.
    Running,
    /// It waits until its filesystem is unlocked or the KMS answers.
    Waiting,
    /// It was asked to stop and comes to its next checkpoint.
    Stopping,
    /// It was stopped; the same command takes it up again.
    Stopped,
    /// All of it is done.
    Done,
    /// It came to its end, and a part could not be done.
    Partly,
    /// It failed.
    Failed,
}

impl JobState {
    /// Whether nothing more happens by itself.
    pub const fn is_ended(self) -> bool {
        matches!(self, Self::Stopped | Self::Done | Self::Partly | Self::Failed)
    }
}

/// How much is done. A total that is not known yet is `None`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Progress {
    /// Files or keys that are done.
    pub items: u64,
    /// All of them.
    pub total_items: Option<u64>,
    /// Files or keys that could not be done.
    pub failed_items: u64,
    /// Bytes that are done.
    pub bytes: u64,
    /// All of them.
    pub total_bytes: Option<u64>,
    /// How fast it goes, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<Pace>,
}

/// How fast a job goes: what was done since the node began it or took it up, by the time since.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Pace {
    /// Files or keys in a second.
    pub items_per_second: u64,
    /// Bytes in a second.
    pub bytes_per_second: u64,
    /// How long the rest takes at that pace; `None` while the total is not known, or nothing is done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seconds_left: Option<u64>,
}

/// One thing that is damaged or could not be done.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Damage {
    /// Its path in the filesystem; empty if that can't be known, or if it is about a key.
    pub path: BytePath,
    /// Where its ciphertext lies, from the backing directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ciphertext: Option<BytePath>,
    /// What sort of problem it is: `damaged`, `changed`, `io`, `conflict`, `attribute`, `skipped`,
    /// `leftover`, `key`.
    pub kind: String,
    /// What is wrong.
    pub what: String,
}

/// A page of the jobs that the node remembers, the newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Jobs {
    /// They.
    pub jobs: Vec<Job>,
    /// There are more: ask again with `?after=` this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

//! The node at a glance.

use serde::{Deserialize, Serialize};

use crate::{BytePath, Finding, Kms};

/// The node's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Status {
    /// Coffer's version.
    pub version: String,
    /// The node's process id.
    pub pid: u32,
    /// When it started, in Unix milliseconds.
    pub started_at: u64,
    /// Where its store lies.
    pub state_dir: BytePath,
    /// How many filesystems, in which state.
    pub filesystems: FilesystemCounts,
    /// Jobs that are running or waiting.
    pub jobs_running: u64,
    /// Its KMS.
    pub kms: Kms,
    /// What works today and should be changed, of the node itself; those of the KMS are in `kms`.
    pub findings: Vec<Finding>,
}

/// How many filesystems there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct FilesystemCounts {
    /// All of them.
    pub total: u64,
    /// Those that are open.
    pub unlocked: u64,
    /// Those that are not, and that the node has tried to open.
    pub locked: u64,
    /// Those that the node is about to open.
    #[serde(default)]
    pub unlocking: u64,
    /// Those whose deletion has not come to its end.
    #[serde(default)]
    pub deleting: u64,
    /// Those whose key has lain under local wrapping.
    pub exposed: u64,
}

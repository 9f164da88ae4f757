//! An encrypted directory tree on a backing directory.
mod copy;
mod error;
mod filesystem;
mod header;
mod names;
mod plain;
mod report;
mod sealed;
mod side;
mod stage;
mod sys;
mod verify;
mod work;

pub use data_path::Backend;
pub use error::{Error, ErrorKind};
pub use filesystem::{Entry, EntryKind, Filesystem, Listing, Usage};
pub use header::{BackingHeaders, read_envelope};
pub use report::{Checkpoint, Control, Outcome, Problem, ProblemKind, Progress, Report};

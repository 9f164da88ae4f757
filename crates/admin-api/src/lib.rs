//! The words that Coffer's node and its command line share.
//!
//! The admin API is HTTP with JSON over a unix socket. [`paths`] names its resources; the other
//! modules hold what is sent and answered there. An error is a [`Problem`] (RFC 9457): what
//! failed, why, what to do, and the exit code that a command line ends with. No answer contains a
//! secret; the one secret that a request carries is a [`Token`], which wipes itself.
//!
//! What is asked and answered where, a node describes itself at [`paths::OPENAPI`]; with the feature `openapi` these types describe
//! themselves for that, in the words of their documentation.
//!
//! Times are Unix milliseconds, sizes are bytes, paths are [`BytePath`]s. Unknown fields in a request are refused;
//! a reader of answers ignores those that it does not know.
//!
//! ```
//! use admin_api::{Exit, Problem, paths};
//!
//! assert_eq!(paths::filesystem("home"), "/v1/filesystems/home");
//! let problem = Problem::new(Exit::State, "filesystem-locked", "home can't be listed", "it is locked")
//!     .cure("unlock it: coffer fs unlock home");
//! assert_eq!((problem.status, problem.exit.code()), (409, 5));
//! ```

mod audit;
mod bytes;
mod code;
mod console;
mod filesystem;
mod job;
mod kms;
pub mod paths;
mod problem;
#[cfg(feature = "openapi")]
mod schema;
mod status;
mod token;

pub use audit::{AuditChain, AuditLine, AuditPage};
pub use bytes::{BytePath, BytePathError};
pub use code::{CODES, Code};
pub use console::{ConsoleLink, ConsoleSession, ConsoleSessions, OpenConsole};
pub use filesystem::{
    CreateFilesystem, Deleted, Entry, EntryKind, Export, Filesystem, FilesystemState, Filesystems,
    Import, Listing, Lock, Verify, WrappedBy,
};
pub use job::{Damage, Job, JobKind, JobState, Jobs, Pace, Progress};
pub use kms::{
    Change, CheckItem, CheckOutcome, CredentialLife, Ending, Finding, Kms, KmsChange, KmsCheck,
    KmsDetails, KmsImpact, KmsPolicy, KmsRehearsal, OwnKey, Rewrap, SetVault, ShutFilesystem,
    VersionCount,
};
pub use problem::{Exit, MEDIA_TYPE, Problem};
pub use status::{FilesystemCounts, Status};
pub use token::Token;

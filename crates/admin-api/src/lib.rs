//! The words that Coffer's node and its command line share.
//!
//! The admin API is HTTP with JSON over a unix socket. [`paths`] names its resources; the other
//! modules hold what is sent and answered there. An error is a [`Problem`] (RFC 9457): what
//! failed, why, what to do, and the exit code that a command line ends with. No answer contains a
//! secret; the one secret that a request carries is a [`Token`], which wipes itself.
//!
//! | resource | methods | request → answer |
//! |---|---|---|
//! | `/v1/status` | GET | → [`Status`] |
//! | `/v1/kms` | GET, PUT, DELETE `?allow_downgrade=` | [`SetVault`] → [`Kms`], [`KmsChange`] |
//! | `/v1/kms/rewrap` | POST | [`Rewrap`] or nothing → [`Job`] |
//! | `/v1/kms/check` | POST | → [`KmsCheck`] |
//! | `/v1/kms/rehearse` | POST | → [`KmsRehearsal`] |
//! | `/v1/kms/policy` | GET `?master_key=&transit_path=` | → [`KmsPolicy`]; several names stand with commas between them |
//! | `/v1/kms/impact` | GET `?of=token`, `?of=key`, `?of=versions&below=` | → [`KmsImpact`] |
//! | `/v1/filesystems` | GET `?after=&limit=&search=&state=`, POST | [`CreateFilesystem`] → [`Filesystems`], [`Filesystem`] |
//! | `/v1/filesystems/{name}` | GET, DELETE `?forget=` | → [`Filesystem`], [`Deleted`] |
//! | `/v1/filesystems/{name}/lock`, `/unlock` | POST | [`Lock`] → [`Filesystem`] |
//! | `/v1/filesystems/{name}/verify`, `/import`, `/export` | POST | [`Verify`], [`Import`], [`Export`] → [`Job`] |
//! | `/v1/filesystems/{name}/rekey` | POST | → [`Job`] |
//! | `/v1/filesystems/{name}/ls` | GET `?path=&after=&limit=` | → [`Listing`] |
//! | `/v1/jobs` | GET | → [`Jobs`] |
//! | `/v1/jobs/{id}` | GET `?wait_ms=&damage_after=` | → [`Job`], when it has ended or after that time |
//! | `/v1/jobs/{id}/stop` | POST | → [`Job`] |
//! | `/v1/jobs/{id}/events` | GET | → server-sent events: `progress` with the [`Job`] whenever it has changed, `end` with it when it has ended |
//! | `/v1/events` | GET | → server-sent events: `changed` whenever something has changed that the status or the jobs show |
//! | `/v1/audit` | GET `?limit=&before=&action=&subject=&failed=` | → [`AuditPage`], the newest lines that fit |
//! | `/v1/audit/verify` | GET | → [`AuditChain`] |
//! | `/v1/console/links` | POST | [`OpenConsole`] → [`ConsoleLink`] |
//! | `/v1/console/sessions` | GET, DELETE | → [`ConsoleSessions`]; ends all |
//! | `/v1/console/sessions/{id}` | DELETE | → [`ConsoleSessions`], those that are left |
//! | `/metrics` | GET | → Prometheus' text format |
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
mod console;
mod filesystem;
mod job;
mod kms;
pub mod paths;
mod problem;
mod status;
mod token;

pub use audit::{AuditChain, AuditLine, AuditPage};
pub use bytes::{BytePath, BytePathError};
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

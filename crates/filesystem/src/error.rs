//! What can go wrong, said so that an administrator can act on it.

use std::path::Path;

use data_path::FormatError;

use crate::report::{Problem, ProblemKind};
use crate::sys::Errno;

/// A failure. `Display` is what could not be done to which path, and why; [`Error::how_to_mend`] what to do about it.
#[derive(Debug, thiserror::Error)]
#[error("{path} can't be {}: {fault}", fault.doing())]
pub struct Error {
    path: String,
    #[source]
    fault: Fault,
}

/// What sort of failure it is, for exit codes and for deciding what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ErrorKind {
    /// Another process or node has the filesystem open, or it runs another job.
    InUse,
    /// Something in the backing directory failed authentication, or is missing.
    Damaged,
    /// The disk or the quota is full.
    Full,
    /// There is no such entry in the filesystem.
    NotFound,
    /// The operating system refused, for another reason.
    Io,
    /// The request makes no sense: not a filesystem, not empty, another key, a newer format.
    Invalid,
}

impl Error {
    /// What to do about it.
    pub const fn how_to_mend(&self) -> &'static str {
        self.fault.cure()
    }

    /// What sort of failure it is.
    pub const fn kind(&self) -> ErrorKind {
        match &self.fault {
            Fault::InUse(_) => ErrorKind::InUse,
            Fault::Damaged { .. } | Fault::Foreign => ErrorKind::Damaged,
            Fault::System { errno: Errno::NOSPC | Errno::DQUOT, .. } => ErrorKind::Full,
            Fault::NotFound => ErrorKind::NotFound,
            Fault::System { .. } | Fault::Changed | Fault::NoRandom => ErrorKind::Io,
            Fault::Conflict(_) | Fault::Refused { .. } => ErrorKind::Invalid,
        }
    }
}

/// The failure without the path, which the caller of the failing part knows.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("{}", std::io::Error::from(*errno))]
    System { doing: &'static str, errno: Errno },
    #[error("{why}")]
    Damaged { doing: &'static str, why: String },
    #[error("it is nothing that Coffer put there")]
    Foreign,
    #[error("there is no such entry")]
    NotFound,
    #[error("it changed while it was being read")]
    Changed,
    #[error("{0}")]
    Conflict(&'static str),
    #[error("{0}")]
    InUse(&'static str),
    #[error("{why}")]
    Refused { doing: &'static str, why: String, cure: &'static str },
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl Fault {
    /// What the data path refused.
    pub(crate) fn format(doing: &'static str, error: &FormatError) -> Self {
        match error {
            FormatError::Library(_) => Self::NoRandom,
            error if error.is_damage() => Self::damaged(doing, error.to_string()),
            FormatError::Newer(_) => {
                Self::Refused { doing, why: error.to_string(), cure: "update Coffer" }
            }
            _ => {
                Self::Refused { doing, why: error.to_string(), cure: "leave it out, or shorten it" }
            }
        }
    }

    pub(crate) fn damaged(doing: &'static str, why: impl Into<String>) -> Self {
        Self::Damaged { doing, why: why.into() }
    }

    pub(crate) fn at(self, path: &[u8]) -> Error {
        Error { path: shown(path), fault: self }
    }

    pub(crate) fn at_path(self, path: &Path) -> Error {
        self.at(path.as_os_str().as_encoded_bytes())
    }

    /// Whether the next file would meet the same.
    pub(crate) const fn is_final(&self) -> bool {
        matches!(
            self,
            Self::NoRandom
                | Self::System {
                    errno: Errno::NOSPC | Errno::DQUOT | Errno::ROFS | Errno::STALE,
                    ..
                }
        )
    }

    pub(crate) fn problem(&self, path: &[u8], ciphertext: Option<&[u8]>) -> Problem {
        let reason = format!("can't be {}: {self}", self.doing());
        Problem::new(path, ciphertext, self.kind(), reason)
    }

    pub(crate) const fn kind(&self) -> ProblemKind {
        match self {
            Self::Damaged { .. } => ProblemKind::Damaged,
            Self::Foreign => ProblemKind::Leftover,
            Self::Changed => ProblemKind::Changed,
            Self::Conflict(_) => ProblemKind::Conflict,
            _ => ProblemKind::Io,
        }
    }

    /// Its kind where it costs an attribute alone.
    pub(crate) const fn kind_of_attribute(&self) -> ProblemKind {
        match self {
            Self::Damaged { .. } | Self::Foreign => self.kind(),
            _ => ProblemKind::Attribute,
        }
    }

    const fn doing(&self) -> &'static str {
        match self {
            Self::System { doing, .. }
            | Self::Damaged { doing, .. }
            | Self::Refused { doing, .. } => doing,
            Self::Foreign => "read",
            Self::NotFound => "found",
            Self::Changed => "copied",
            Self::Conflict(_) => "replaced",
            Self::InUse(_) => "used",
            Self::NoRandom => "encrypted",
        }
    }

    const fn cure(&self) -> &'static str {
        match self {
            Self::System { errno, .. } => match *errno {
                Errno::NOSPC | Errno::DQUOT => {
                    "make room and start the job again: it takes up where it was stopped"
                }
                Errno::MFILE | Errno::NFILE => {
                    "raise the limit on open files (LimitNOFILE in the unit, or ulimit -n)"
                }
                Errno::ROFS => "mount it for writing",
                Errno::XDEV => "unmount what is mounted below it",
                Errno::ACCESS | Errno::PERM => {
                    "give the node's user the right to it, or run the node as root"
                }
                Errno::NOENT | Errno::NOTDIR => "check the path",
                _ => "check the disk, the mount and the system's log, then try again",
            },
            Self::Damaged { .. } => {
                "bring it back from a copy; `fs verify` lists all that is damaged"
            }
            Self::Foreign => "move it away, unless something else needs it",
            Self::NotFound => "check the path; it begins at the filesystem's root",
            Self::Changed => "copy it again when nothing writes to it",
            Self::Conflict(_) => "remove or rename one of the two",
            Self::InUse(_) => "wait for the other, or stop it first",
            Self::Refused { cure, .. } => cure,
            Self::NoRandom => "try again when the system's random generator is ready",
        }
    }
}

/// Adds to an error of the system or the data path what was being done.
pub(crate) trait Doing<T> {
    /// `doing` completes "can't be …".
    fn doing(self, doing: &'static str) -> Result<T, Fault>;
}

impl<T> Doing<T> for Result<T, Errno> {
    fn doing(self, doing: &'static str) -> Result<T, Fault> {
        self.map_err(|errno| Fault::System { doing, errno })
    }
}

impl<T> Doing<T> for Result<T, FormatError> {
    fn doing(self, doing: &'static str) -> Result<T, Fault> {
        self.map_err(|error| Fault::format(doing, &error))
    }
}

/// A path as people read it: as it is where it is printable UTF-8, else with `\xNN` escapes.
pub(crate) fn shown(path: &[u8]) -> String {
    match std::str::from_utf8(path) {
        Ok(text) if !text.chars().any(|c| c.is_control() || c == '\\') => text.to_owned(),
        _ => path.escape_ascii().to_string(),
    }
}

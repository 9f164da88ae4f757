//! What can go wrong with keys, in words for an administrator.

use kms_core::{HolderError, KmsError, KmsErrorKind, KmsInput, StoreError};

/// Why an act on keys was not done. `Display` is what failed and why; [`Error::cure`] what to do.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The KMS, or what was asked of it.
    #[error(transparent)]
    Kms(#[from] KmsError),
    /// The key store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A copy of a wrapped key outside the store.
    #[error(transparent)]
    Holder(#[from] HolderError),
    /// The backing directory could not be made or removed.
    #[error("the backing directory of {name}: {source}")]
    Volume {
        /// The filesystem.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The backing directory can't be reached, and with it the only wrapped key beside the store's.
    #[error("the backing directory of {name} is out of reach: {why}")]
    BackingAway {
        /// The filesystem.
        name: String,
        /// Why.
        why: String,
    },
    /// An input is not valid.
    #[error("{what} is not valid: {why}")]
    Invalid {
        /// What was asked for with it, if that has several inputs.
        input: Option<Input>,
        /// The input.
        what: String,
        /// What is wrong with it.
        why: String,
        /// What would be right.
        cure: &'static str,
    },
    /// There is one already.
    #[error("{what} exists already")]
    Exists {
        /// What exists.
        what: String,
    },
    /// Another request has the key of this one.
    #[error("the idempotency key {key:?} is that of another request, which made something else")]
    RequestReused {
        /// The key.
        key: String,
    },
    /// There is none.
    #[error("there is no {what}")]
    Unknown {
        /// What was asked for.
        what: String,
    },
    /// A master key that filesystems have of their own can't be used where the others go.
    #[error("{names} must have the master key {master_key:?} of their own there too: {}", source.chain())]
    OwnKey {
        /// The filesystems.
        names: String,
        /// The master key.
        master_key: String,
        /// Why it can't be used.
        source: Box<KmsError>,
    },
    /// An encrypted filesystem needs a KMS and none is set.
    #[error("no KMS is configured, so the filesystem's key would only be wrapped locally")]
    NoKms,
    /// There is no KMS to do this with.
    #[error("no KMS is configured")]
    NotConfigured,
    /// The KMS can't be removed.
    #[error("the KMS can't be removed: {count} encrypted filesystem(s) need it ({names})")]
    Encrypted {
        /// How many.
        count: usize,
        /// The first of them.
        names: String,
    },
    /// The filesystem is locked.
    #[error("the filesystem {name} is locked: {why}")]
    Locked {
        /// The filesystem.
        name: String,
        /// Why it is locked.
        why: String,
        /// What to do, if that is known.
        cure: Option<String>,
    },
    /// The filesystem is being deleted, and that has not come to its end.
    #[error("the filesystem {name} is being deleted: {why}")]
    Deleting {
        /// The filesystem.
        name: String,
        /// How that stands.
        why: String,
        /// What to do, if that is known.
        cure: Option<String>,
    },
    /// Its backing directory is being made, removed or given another key at this moment.
    #[error("the filesystem {name} is being made, deleted or given another key")]
    AtWork {
        /// Its name.
        name: String,
    },
    /// Something of which there is one at a time.
    #[error("{what} is under way")]
    Busy {
        /// What.
        what: String,
    },
    /// Some keys can't be taken along, so nothing was changed.
    #[error(
        "{act}: {failed} of {total} filesystem keys can't be opened, so nothing was changed: {why}"
    )]
    NotAll {
        /// What was asked.
        act: &'static str,
        /// How many keys are in the way.
        failed: usize,
        /// How many there are.
        total: usize,
        /// Which filesystems, what wraps their keys, and why that does not open them.
        why: String,
    },
    /// Somebody else changed the same thing at the same time; nothing was done.
    #[error("{what} was changed by somebody else at the same moment, so nothing was done")]
    Changed {
        /// What.
        what: String,
    },
    /// Another KMS configuration is set than the one that a change was meant for; nothing was done.
    #[error("the KMS configuration was changed since it was looked at, so nothing was done")]
    KmsChanged,
    /// A record in the store can't be read.
    #[error("the record {key} in the key store can't be read: {why}")]
    Record {
        /// Its key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

/// What an act is asked with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Input {
    /// The filesystem's name.
    Name,
    /// Its backing directory.
    Backing,
    /// A part of a KMS's configuration.
    Kms(KmsInput),
}

/// What kind of failure it is; exit codes and HTTP statuses follow from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Coffer or its machine failed.
    Failed,
    /// The input is wrong.
    Usage,
    /// There is no such thing.
    Unknown,
    /// The KMS can't be reached, or is sealed.
    KmsUnreachable,
    /// The KMS refused.
    KmsRefused,
    /// The state does not allow it.
    State,
    /// Something failed authentication.
    NotAuthentic,
}

impl Class {
    /// What a failure of the KMS is to the one who asked.
    pub const fn of_kms(kind: KmsErrorKind) -> Self {
        match kind {
            KmsErrorKind::Unreachable | KmsErrorKind::Sealed => Class::KmsUnreachable,
            KmsErrorKind::Denied
            | KmsErrorKind::KeyMissing
            | KmsErrorKind::KeyUnfit
            | KmsErrorKind::KeyReplaced
            | KmsErrorKind::VersionTooOld => Class::KmsRefused,
            KmsErrorKind::NotAuthentic | KmsErrorKind::WrongIdentity => Class::NotAuthentic,
            KmsErrorKind::Invalid => Class::Usage,
            _ => Class::Failed,
        }
    }
}

impl Error {
    /// Whether trying again later can succeed by itself.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Kms(e) => e.kind().is_transient(),
            Self::OwnKey { source: e, .. } => e.kind().is_transient(),
            _ => false,
        }
    }

    /// What kind of failure this is.
    pub fn class(&self) -> Class {
        match self {
            Self::Kms(e) => Class::of_kms(e.kind()),
            Self::OwnKey { source: e, .. } => Class::of_kms(e.kind()),
            Self::Store(StoreError::Damaged { .. }) => Class::NotAuthentic,
            Self::Store(StoreError::InUse { .. } | StoreError::Newer { .. }) => Class::State,
            Self::Store(_) | Self::Holder(_) | Self::Volume { .. } | Self::Record { .. } => {
                Class::Failed
            }
            Self::Invalid { .. } | Self::RequestReused { .. } => Class::Usage,
            Self::Unknown { .. } => Class::Unknown,
            Self::BackingAway { .. }
            | Self::Exists { .. }
            | Self::NoKms
            | Self::NotConfigured
            | Self::Encrypted { .. }
            | Self::Locked { .. }
            | Self::Deleting { .. }
            | Self::AtWork { .. }
            | Self::Busy { .. }
            | Self::NotAll { .. }
            | Self::Changed { .. }
            | Self::KmsChanged => Class::State,
        }
    }

    /// Which input is the cause, if it is one.
    pub fn input(&self) -> Option<Input> {
        match self {
            Self::Kms(e) => e.input().map(Input::Kms),
            Self::Invalid { input, .. } => *input,
            _ => None,
        }
    }

    /// What to do about it, if that is known.
    pub fn cure(&self) -> Option<String> {
        match self {
            Self::Kms(e) => e.how_to_mend().map(str::to_owned),
            Self::OwnKey { source: e, .. } => e.how_to_mend().map(str::to_owned),
            Self::Invalid { cure, .. } => Some((*cure).to_owned()),
            Self::Unknown { what } => Some(format!("see what there is: {}", listing(what))),
            Self::RequestReused { .. } => Some("give each request a key of its own".into()),
            Self::Exists { what } => {
                Some(format!("take another name; what there is: {}", listing(what)))
            }
            Self::NoKms => Some(
                "set a KMS first (coffer fs kms set-vault), or accept local wrapping with --allow-no-kms".into(),
            ),
            Self::BackingAway { .. } => Some(
                "bring it back (is it mounted?) and try again: a copy that is damaged is mended meanwhile; if it is lost, or what lies there is to stay, --forget removes the record alone".into(),
            ),
            Self::NotConfigured => Some("set one: coffer fs kms set-vault".into()),
            Self::Encrypted { .. } => Some(
                "delete these filesystems first, or re-encrypt their keys locally, where they may be compromised, with --allow-downgrade".into(),
            ),
            Self::Locked { name, cure, .. } | Self::Deleting { name, cure, .. } => {
                Some(cure.clone().unwrap_or_else(|| format!("see how it stands: coffer fs show {name}")))
            }
            Self::AtWork { .. } => Some("wait for it; a disk that does not answer holds it up: check the disk and its mount".into()),
            Self::Busy { .. } => Some("wait for it (coffer job list), or take it up if it was stopped (coffer fs kms rewrap); where its KMS is gone for good, coffer fs kms set-vault with another one takes its place".into()),
            Self::NotAll { .. } => Some(
                "bring the KMS that is named back, with its master key, until their keys have moved (a new KMS at its address does not open them); or take these filesystems out with coffer fs delete --forget, which leaves their data for the day when that KMS is back (without --forget it is gone); and try again".into(),
            ),
            Self::Changed { .. } => Some("look at the new state and try again".into()),
            Self::KmsChanged => Some("look at it again (coffer fs kms), and decide anew".into()),
            Self::Store(StoreError::Damaged { .. }) | Self::Record { .. } => Some(
                "rebuild the store from the backing directories: coffer recover --from DIR…".into(),
            ),
            Self::Store(error) => Some(of_store(error).to_owned()),
            Self::Holder(_) | Self::Volume { .. } => Some(
                "check the backing directory: its disk, its mount, who may write to it; then try again".into(),
            ),
        }
    }

    /// A stable word for APIs and logs.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Kms(e) => e.kind().code(),
            Self::OwnKey { source: e, .. } => e.kind().code(),
            Self::Store(StoreError::Damaged { .. }) => "store-damaged",
            Self::Store(_) => "store-failed",
            Self::Holder(_) => "key-copy-failed",
            Self::Volume { .. } => "backing-failed",
            Self::BackingAway { .. } => "backing-away",
            Self::Invalid { .. } => "invalid",
            Self::RequestReused { .. } => "idempotency-key-reused",
            Self::Exists { .. } => "exists",
            Self::Unknown { .. } => "unknown",
            Self::NoKms | Self::NotConfigured => "no-kms",
            Self::Encrypted { .. } => "encrypted-filesystems-exist",
            Self::Locked { .. } => "locked",
            Self::Deleting { .. } => "deleting",
            Self::AtWork { .. } | Self::Busy { .. } => "busy",
            Self::NotAll { .. } => "keys-cannot-be-opened",
            Self::Changed { .. } => "changed",
            Self::KmsChanged => "kms-changed",
            Self::Record { .. } => "record-damaged",
        }
    }
}

/// The command that lists what there is of this kind.
fn listing(what: &str) -> &'static str {
    if what.starts_with("job") { "coffer job list" } else { "coffer fs list" }
}

const fn of_store(error: &StoreError) -> &'static str {
    match error {
        StoreError::InUse { .. } => "stop the process that has it open",
        StoreError::Newer { .. } => "start the program that wrote it, or a newer one",
        StoreError::Conflict { .. } => "look at the new state and try again",
        StoreError::Invalid { .. } => "report this: Coffer asked for a record that can't be",
        StoreError::Unknown { .. } => "the node ends; start it again: what is stored is read back",
        _ => "check the disk of the state directory: its room, its mount, who may write to it",
    }
}

/// The first `shown` of these names, and how many more there are.
pub fn listed(names: &[&str], shown: usize) -> String {
    let mut text = names.iter().take(shown).copied().collect::<Vec<_>>().join(", ");
    if names.len() > shown {
        text.push_str(&format!(" and {} more", names.len() - shown));
    }
    text
}

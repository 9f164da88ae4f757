//! What can go wrong between Coffer and a KMS.

use std::error::Error;
use std::fmt;
use std::sync::Arc;

use crate::RequestId;

/// What a caller can act on. Each implementation of [`crate::Kms`] maps its own errors here once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum KmsErrorKind {
    /// No answer, or one that no KMS gives: connection, TLS, deadline, an HTML page, a cut-off reply.
    Unreachable,
    /// The KMS is there and sealed, or not initialised.
    Sealed,
    /// Nothing here shows the KMS who we are, so it was not asked: the file that has the token can't be read yet, or any more.
    NoCredential,
    /// The credential is unknown, expired, or lacks a permission.
    Denied,
    /// The KMS has no such master key, or no such mount.
    KeyMissing,
    /// The master key can't do this: its type does not encrypt, a flag forbids it.
    KeyUnfit,
    /// The master key of this name is another than the one that was configured.
    KeyReplaced,
    /// The master key's minimum version forbids this old ciphertext.
    VersionTooOld,
    /// The ciphertext was altered, or another key made it.
    NotAuthentic,
    /// It opened, and what is inside is another key than the record claims.
    WrongIdentity,
    /// The configuration or an input is not valid.
    Invalid,
    /// Coffer's own machine failed: memory, random bytes, a file beside the store.
    Internal,
}

impl KmsErrorKind {
    /// Whether trying again later can succeed, with nothing changed here but by who writes the token.
    pub const fn is_transient(self) -> bool {
        matches!(self, Self::Unreachable | Self::Sealed | Self::NoCredential)
    }

    /// A stable word for logs and APIs.
    pub const fn code(self) -> &'static str {
        match self {
            Self::Unreachable => "kms-unreachable",
            Self::Sealed => "kms-sealed",
            Self::NoCredential => "credential-missing",
            Self::Denied => "kms-denied",
            Self::KeyMissing => "master-key-missing",
            Self::KeyUnfit => "master-key-unfit",
            Self::KeyReplaced => "master-key-replaced",
            Self::VersionTooOld => "key-version-too-old",
            Self::NotAuthentic => "wrapped-key-not-authentic",
            Self::WrongIdentity => "wrapped-key-of-another",
            Self::Invalid => "invalid",
            Self::Internal => "internal",
        }
    }
}

/// What of a configuration, or of its credential, a failure is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KmsInput {
    /// [`crate::KmsConfig::address`].
    Address,
    /// [`crate::KmsConfig::master_key`].
    MasterKey,
    /// The setting with this key in [`crate::KmsConfig::settings`].
    Setting(&'static str),
    /// What shows the KMS who we are: [`crate::Auth`].
    Auth,
    /// [`crate::Login::path`].
    LoginPath,
    /// [`crate::ClientIdentity`].
    Identity,
}

/// A failure with its cause and its cure, in words for an administrator. Carries no secret.
///
/// `Display` is what failed and why; [`KmsError::how_to_mend`] is what to do about it.
#[derive(Clone)]
pub struct KmsError {
    kind: KmsErrorKind,
    what: String,
    cure: Option<String>,
    input: Option<KmsInput>,
    request: Option<RequestId>,
    source: Option<Arc<dyn Error + Send + Sync>>,
}

impl KmsError {
    /// `what` says what failed and, as far as it is known, why: "the token may not update transit/encrypt/k".
    pub fn new(kind: KmsErrorKind, what: impl Into<String>) -> Self {
        Self { kind, what: what.into(), cure: None, input: None, request: None, source: None }
    }

    /// Adds what the administrator can do.
    #[must_use]
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure = Some(cure.into());
        self
    }

    /// Adds what of the configuration is the cause.
    #[must_use]
    pub const fn of_input(mut self, input: KmsInput) -> Self {
        self.input = Some(input);
        self
    }

    /// Adds the request that failed, where the KMS named it. (Vault names it where items of a batch fail, and not where it refuses
    /// all of a request.)
    #[must_use]
    pub fn of_request(mut self, request: Option<RequestId>) -> Self {
        self.request = request;
        self
    }

    /// Adds the error below this one. It must show no secret: no URL with a token, no body.
    #[must_use]
    pub fn because(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(Arc::from(source.into()));
        self
    }

    /// What a caller can act on.
    pub const fn kind(&self) -> KmsErrorKind {
        self.kind
    }

    /// What to do, if that is known.
    pub fn how_to_mend(&self) -> Option<&str> {
        self.cure.as_deref()
    }

    /// What of the configuration is the cause, if it is one thing.
    pub const fn input(&self) -> Option<KmsInput> {
        self.input
    }

    /// The request that failed, where the KMS named it.
    pub const fn request(&self) -> Option<&RequestId> {
        self.request.as_ref()
    }

    /// The whole chain of causes on one line.
    pub fn chain(&self) -> String {
        let mut text = self.what.clone();
        let mut next = self.source();
        while let Some(error) = next {
            let _ = fmt::Write::write_fmt(&mut text, format_args!(": {error}"));
            next = error.source();
        }
        text
    }
}

impl fmt::Display for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

impl fmt::Debug for KmsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KmsError({:?}: {})", self.kind, self.chain())
    }
}

impl Error for KmsError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_deref().map(|e| e as &(dyn Error + 'static))
    }
}

//! What shows a KMS who we are, and how long that lasts.

use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;
use serde::{Deserialize, Serialize};

use crate::Finding;

/// What shows a KMS who we are. The default shows nothing, which is enough for local wrapping.
#[derive(Debug, Clone, Default)]
pub struct Credential {
    /// What each request is sent with.
    pub auth: Auth,
    /// What the connection is made with, where the KMS asks its clients for a certificate.
    pub identity: Option<ClientIdentity>,
}

impl Credential {
    /// A token, and nothing for the connection.
    pub fn token(token: impl Into<SecretString>) -> Self {
        Auth::Token(token.into()).into()
    }
}

impl From<Auth> for Credential {
    fn from(auth: Auth) -> Self {
        Self { auth, identity: None }
    }
}

/// What requests are sent with.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub enum Auth {
    /// Nothing.
    #[default]
    None,
    /// A bearer token.
    Token(SecretString),
    /// The bearer token that this file holds at the moment. Somebody else writes it anew before the token ends (the sink
    /// of an agent).
    TokenFile(PathBuf),
    /// What is exchanged for a token, again and again.
    Login(Login),
}

/// An id and its secret, which a login exchanges for a token (Vault's AppRole: role id and secret id).
#[derive(Debug, Clone)]
pub struct Login {
    /// Which of the KMS's ways to log in; empty for the usual one.
    pub path: String,
    /// Who we are. No secret.
    pub id: String,
    /// What shows that we are.
    pub secret: SecretString,
}

/// A certificate for TLS clients.
#[derive(Debug, Clone)]
pub struct ClientIdentity {
    /// The certificate, and those between it and the authority, in PEM.
    pub certificate: String,
    /// Its private key in PEM.
    pub key: SecretString,
}

/// What a look at where our credential lies on this machine shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CredentialHere {
    /// What keeps it from being read (a token file that is gone).
    pub findings: Vec<Finding>,
    /// How many were read there, one after the other: with another number it is another credential.
    pub number: u64,
}

/// What comes to an end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ending {
    /// What, in words, such as `the client certificate`.
    pub what: String,
    /// How long until then; zero once it is over.
    pub left: Duration,
}

/// How long a credential lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct CredentialStatus {
    /// Time left from now; `None` if it never ends.
    pub time_left: Option<Duration>,
    /// Whether it can be renewed.
    pub renewable: bool,
    /// Whether renewing can go on for ever (a periodic token).
    pub periodic: bool,
}

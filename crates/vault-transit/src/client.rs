//! A client of one Vault: what it asks is sent with a token that its session has or gets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kms_core::{Credential, ExposeSecret, KmsError, KmsErrorKind, Login};
use reqwest::StatusCode;

use crate::Limits;
use crate::answer::Answer;
use crate::config::{VaultConfig, valid_name};
use crate::http::{Call, Failure, Http};
use crate::operation::Operation;
use crate::pauses::Pauses;
use crate::secret_id::SecretId;
use crate::session::{Session, Sessions, Source, Token};
use crate::{refusal, wire};

/// How long the end of a token may take that is not needed any more.
const TO_REVOKE: Duration = Duration::from_secs(2);

/// The way to one Vault, with a session that others may share.
///
/// The token lies in this client and in the headers of the requests under way, and what Vault decrypts passes through
/// the buffers of the HTTP and TLS libraries: none of these can be locked or wiped from here. Each connection ends with its request
/// and gives them back, and the program's allocator wipes what is given back.
pub(crate) struct Client {
    http: Arc<Http>,
    session: Arc<Session>,
}

impl Client {
    pub(crate) fn new(
        config: VaultConfig,
        credential: &Credential,
        limits: Limits,
        pauses: Pauses,
        sessions: &Sessions,
    ) -> Result<Self, KmsError> {
        let session = sessions.of(credential, &config)?;
        let http = Http::new(config, credential.identity.as_ref(), limits, pauses)?;
        Ok(Self { http: Arc::new(http), session })
    }

    /// Uses from now on what a login of the other got, and ends the token of before.
    pub(crate) async fn adopt(&self, other: &Self) {
        if let Some(before) = self.session.take(&other.session) {
            self.revoke(&before).await;
        }
    }

    /// How Vault is reached.
    pub(crate) fn http(&self) -> &Http {
        &self.http
    }

    /// Where the tokens come from.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// Sends a request with the token of this moment, and once more with another one if Vault does not know that one any
    /// more and there is another.
    ///
    /// # Errors
    /// [`KmsErrorKind::Unreachable`] and [`KmsErrorKind::Sealed`], [`KmsErrorKind::Invalid`] for an address that is
    /// refused, [`KmsErrorKind::Denied`] for a login. What Vault answers to this request in particular, 4xx included, is an
    /// [`Answer`].
    pub(crate) async fn send(&self, operation: Operation, body: Bytes) -> Result<Answer, KmsError> {
        let call = Call::of(operation, self.http.config());
        let token = self.token().await?;
        let answer = self.http.exchange(&call, body.clone(), Some(&token)).await?;
        if !answer.refuses_token() {
            return Ok(answer);
        }
        match self.other_token(&token).await? {
            Some(other) => self.http.exchange(&call, body, Some(&other)).await,
            None => self.send_anew(&call, body, answer).await,
        }
    }

    /// A live token may not do this. It is sent once more with the token of another login if it is time for that, and if it is allowed
    /// with that one, that takes the place of the old one.
    async fn send_anew(
        &self,
        call: &Call,
        body: Bytes,
        refused: Answer,
    ) -> Result<Answer, KmsError> {
        if !self.session.may_try_anew() {
            return Ok(refused);
        }
        let Ok(Some(other)) = self.log_in_apart().await else { return Ok(refused) };
        match self.http.exchange(call, body, other.session.current().as_ref()).await {
            Ok(answer) if !answer.refuses_token() => {
                self.adopt(&other).await;
                Ok(answer)
            }
            _ => {
                other.log_out().await;
                Ok(refused)
            }
        }
    }

    /// One with a session of its own, for what another login gets: see [`Session::apart`]. `None`: this does not log in.
    pub(crate) async fn log_in_apart(&self) -> Result<Option<Self>, KmsError> {
        let (Source::Login { mount, login }, Some(apart)) =
            (self.session.source(), self.session.apart())
        else {
            return Ok(None);
        };
        self.session.may_log_in()?;
        let other = Self { http: Arc::clone(&self.http), session: Arc::new(apart) };
        match other.log_in(mount, login).await {
            Ok(_) => Ok(Some(other)),
            Err(error) => {
                self.session.note_refusal(&error);
                Err(error)
            }
        }
    }

    /// Gets another token than this by a login, whether or not it still lives, and ends it; unless somebody else has meanwhile. Answers
    /// whether it was.
    pub(crate) async fn replace(&self, token: Option<&Token>) -> Result<bool, KmsError> {
        let Source::Login { mount, login } = self.session.source() else { return Ok(false) };
        let change = self.session.change().await?;
        if token.is_some_and(|token| self.session.other_than(token).is_some()) {
            return Ok(false);
        }
        let before = self.session.current();
        let logged_in = self.log_in(mount, login).await;
        logged_in.inspect_err(|error| self.session.change_failed(error))?;
        drop(change);
        if let Some(before) = before {
            self.revoke(&before).await;
        }
        Ok(true)
    }

    /// Ends what a login got if nobody else uses it, so that Vault does not keep it until its time is up.
    pub(crate) async fn log_out(&self) {
        if let (1, Source::Login { .. }, Some(token)) =
            (Arc::strong_count(&self.session), self.session.source(), self.session.current())
        {
            self.revoke(&token).await;
        }
    }

    /// Tries once to end a token of ours. One that outlives this ends by itself.
    async fn revoke(&self, token: &Token) {
        let path = "auth/token/revoke-self".to_owned();
        let call = Call { operation: "revoke-self", path, is_read: false };
        let deadline = Instant::now() + self.http.limits().attempt.min(TO_REVOKE);
        if let Err(Failure { error, .. }) =
            self.http.attempt(&call, Bytes::new(), Some(token), deadline).await
        {
            tracing::debug!(%error, "a token that is not needed any more can't be revoked");
        }
    }

    /// Looks at the file that tokens are read from, if there is one: what came of it is the session's [`Session::unread`].
    pub(crate) async fn read_token_file(&self) {
        if let Source::File(file) = self.session.source() {
            // Without a token of before it is an error too, which says the same.
            let _ = self.session.read(file, self.http.limits().connect).await;
        }
    }

    /// What is left of the secret id: [`SecretId::Untold`] to who may not ask. `None`: it can't be asked for.
    ///
    /// # Errors
    /// Vault does not answer, and is to be asked again.
    pub(crate) async fn look_up_secret_id(&self) -> Result<Option<SecretId>, KmsError> {
        let Source::Login { mount, login } = self.session.source() else { return Ok(None) };
        let Some(token) = self.session.current() else { return Ok(None) };
        let Some(role) = self.session.role() else { return Ok(None) };
        let body = wire::secret_id_body(login.secret.expose_secret()).map_err(unencodable)?;
        let path = format!("auth/{mount}/role/{role}/secret-id/lookup");
        let call = Call { operation: "lookup-secret-id", path, is_read: false };
        Ok(Some(SecretId::told(&self.http.exchange(&call, body, Some(&token)).await?)))
    }

    /// Sees that Vault answers, whatever it says, where that takes no login. A login that it carries out after we have given it up counts too.
    ///
    /// # Errors
    /// It does not.
    pub(crate) async fn meet(&self) -> Result<(), KmsError> {
        let (Source::Login { .. }, Some(token)) = (self.session.source(), self.session.current())
        else {
            return Ok(());
        };
        let call = Call::of(Operation::LookupSelf, self.http.config());
        self.http.exchange(&call, Bytes::new(), Some(&token)).await.map(drop)
    }

    async fn token(&self) -> Result<Token, KmsError> {
        if let Source::File(file) = self.session.source() {
            return self.session.read(file, self.http.limits().connect).await;
        }
        if let Some(token) = self.session.current() {
            return Ok(token);
        }
        let token = match self.session.source() {
            Source::Login { mount, login } => self.log_in_instead_of(None, mount, login).await?,
            _ => None,
        };
        token.ok_or_else(|| KmsError::new(KmsErrorKind::Internal, "no token"))
    }

    /// A token to try instead of one that was refused, if that one may be the reason.
    async fn other_token(&self, refused: &Token) -> Result<Option<Token>, KmsError> {
        match self.session.source() {
            Source::Given => Ok(None),
            Source::File(file) => {
                self.session.read(file, self.http.limits().connect).await?;
                Ok(self.session.other_than(refused))
            }
            Source::Login { mount, login } => {
                self.log_in_instead_of(Some(refused), mount, login).await
            }
        }
    }

    /// The token that somebody else has got meanwhile, or one by a login; `None` if the one that was refused is alive.
    async fn log_in_instead_of(
        &self,
        refused: Option<&Token>,
        mount: &str,
        login: &Login,
    ) -> Result<Option<Token>, KmsError> {
        let _change = self.session.change().await?;
        let got = async {
            let other = match refused {
                Some(refused) => self.session.other_than(refused),
                None => self.session.current(),
            };
            match (other, refused) {
                (Some(other), _) => Ok(Some(other)),
                (None, Some(refused)) if self.is_alive(refused, None).await? => Ok(None),
                (None, _) => self.log_in(mount, login).await.map(Some),
            }
        };
        got.await.inspect_err(|error| self.session.change_failed(error))
    }

    /// Tells a token that lacks a permission from one that Vault does not know: to both, Vault says "permission denied".
    /// Whatever else than this the token may do shows that it is alive.
    pub(crate) async fn may_more_than(&self, denied: Operation) -> Result<bool, KmsError> {
        let token = self.token().await?;
        self.is_alive(&token, Some(denied)).await
    }

    async fn is_alive(&self, token: &Token, denied: Option<Operation>) -> Result<bool, KmsError> {
        for other in [Operation::LookupSelf, Operation::ReadKey] {
            if denied == Some(other) {
                continue;
            }
            let call = Call::of(other, self.http.config());
            let answer = self.http.exchange(&call, Bytes::new(), Some(token)).await?;
            // A web page with status 200 says nothing of the token.
            if !answer.is_vaults() && !answer.is_refusal() {
                return Err(self.http.foreign("not what Vault's API answers"));
            }
            let status = answer.status;
            if status.is_success() || status == StatusCode::NOT_FOUND {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The caller has the right to change the token. One that was refused is not sent again for a while: see [`Session::may_log_in`].
    async fn log_in(&self, mount: &str, login: &Login) -> Result<Token, KmsError> {
        self.session.may_log_in()?;
        let body =
            wire::login_body(&login.id, login.secret.expose_secret()).map_err(unencodable)?;
        let call = Call { operation: "login", path: format!("auth/{mount}/login"), is_read: false };
        let answer = self.http.exchange(&call, body, None).await?;
        if !answer.status.is_success() {
            let refused = refusal::login(mount, answer.status.as_u16(), &answer.errors());
            if [StatusCode::BAD_REQUEST, StatusCode::FORBIDDEN].contains(&answer.status) {
                self.session.note_refusal(&refused);
            }
            return Err(refused);
        }
        let Some(wire::LoggedIn { auth }) = answer.parse() else {
            return Err(self.http.foreign("not what Vault's API answers"));
        };
        tracing::info!(mount, "logged in to Vault");
        let role = auth.metadata.and_then(|metadata| metadata.role_name);
        self.session.login_granted(role.filter(|role| valid_name(role)));
        self.session.replace(&auth.client_token)
    }
}

fn unencodable(error: serde_json::Error) -> KmsError {
    KmsError::new(KmsErrorKind::Internal, "no login can be made").because(error)
}

//! One request to Vault and its answer: retries, deadlines, redirects and sizes.
//!
//! What is tried again: connections that fail or break, 412 (a standby that lags behind), 429 (a
//! quota) and 5xx. What is not: other refusals, TLS failures, and a sealed Vault, which takes a person to
//! open. A Vault that says when to ask again (Retry-After) is not asked before: see [`crate::pauses`]. Every operation
//! that Coffer sends may be repeated without harm.

use std::error::Error;
use std::fmt;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use kms_core::{ClientIdentity, KmsError, KmsErrorKind, KmsInput, full_jitter};
use reqwest::header::{DATE, HeaderMap, LOCATION};
use reqwest::tls::TlsInfo;
use reqwest::{Method, Response, StatusCode, Url};
use tracing::instrument;
use zeroize::Zeroizing;

use crate::Limits;
use crate::address::RefusedAddress;
use crate::answer::Answer;
use crate::config::VaultConfig;
use crate::operation::Operation;
use crate::pauses::{self, Pauses};
use crate::session::Token;
use crate::{certificate, connector, measure};

/// How one Vault is reached.
pub(crate) struct Http {
    http: reqwest::Client,
    config: VaultConfig,
    /// When Vault's certificate ends, in seconds since 1970; 0 while that is not known.
    certificate_ends: AtomicU64,
    /// When the certificate that Vault is shown ends, since 1970.
    identity_ends: Option<Duration>,
    limits: Limits,
    pauses: Pauses,
}

impl Http {
    pub(crate) fn new(
        config: VaultConfig,
        identity: Option<&ClientIdentity>,
        limits: Limits,
        pauses: Pauses,
    ) -> Result<Self, KmsError> {
        let http = connector::client(&config, identity, limits)?;
        // Plain http shows none.
        let identity = identity.filter(|_| config.url("").scheme() == "https");
        let identity_ends =
            identity.and_then(|identity| certificate::first_end(&identity.certificate));
        let certificate_ends = AtomicU64::new(0);
        Ok(Self { http, config, certificate_ends, identity_ends, limits, pauses })
    }

    pub(crate) const fn config(&self) -> &VaultConfig {
        &self.config
    }

    pub(crate) const fn limits(&self) -> Limits {
        self.limits
    }

    /// When the certificate of the last connection ends, since 1970.
    pub(crate) fn certificate_ends(&self) -> Option<Duration> {
        let seconds = self.certificate_ends.load(Ordering::Relaxed);
        (seconds > 0).then(|| Duration::from_secs(seconds))
    }

    /// When the certificate that Vault is shown ends, since 1970.
    pub(crate) const fn identity_ends(&self) -> Option<Duration> {
        self.identity_ends
    }

    /// Sends a request until it is answered, refused for good, or out of time.
    #[instrument(name = "vault", level = "error", skip_all, fields(vault = self.config.origin(), operation = call.operation))]
    pub(crate) async fn exchange(
        &self,
        call: &Call,
        body: Bytes,
        token: Option<&Token>,
    ) -> Result<Answer, KmsError> {
        let deadline = Instant::now() + self.limits.deadline;
        let mut tries = 1;
        loop {
            if let Some((left, asked_for)) = self.pauses.left(&self.config.origin()) {
                if Instant::now() + left >= deadline {
                    return Err(asked_for);
                }
                // Not all that wait at once.
                tokio::time::sleep(left + full_jitter(self.limits.pause)).await;
                continue;
            }
            let asked = Instant::now();
            let outcome = self.attempt(call, body.clone(), token, deadline).await;
            measure::asked(call.operation, asked.elapsed(), &outcome);
            let failure = match outcome {
                Ok(answer) => return Ok(answer),
                Err(failure) => failure,
            };
            let pause = full_jitter(longest_pause(self.limits.pause, tries));
            let too_late = Instant::now() + pause >= deadline;
            if !failure.passes || tries >= self.limits.tries || too_late {
                return Err(failure.error);
            }
            tracing::debug!(path = call.path, tries, ?pause, reason = %failure.error, "asking Vault again");
            tokio::time::sleep(pause).await;
            measure::asks_again(call.operation);
            tries += 1;
        }
    }

    /// One try, with at most one redirect.
    pub(crate) async fn attempt(
        &self,
        call: &Call,
        body: Bytes,
        token: Option<&Token>,
        deadline: Instant,
    ) -> Result<Answer, Failure> {
        let url = self.config.url(&call.path);
        let mut response = self.request(call, url.clone(), body.clone(), token, deadline).await?;
        if response.status().is_redirection() {
            let target = self.redirect_target(&url, &response)?;
            response = self.request(call, target, body, token, deadline).await?;
            if response.status().is_redirection() {
                return Err(self.foreign("a second redirect").into());
            }
        }
        if let Some(ends) = not_after(&response) {
            self.certificate_ends.store(ends.as_secs(), Ordering::Relaxed);
        }
        let status = response.status();
        let at = answered_at(response.headers());
        let pause = pauses::wanted(response.headers(), at);
        let body = self.read(response).await?;
        let answer = Answer { status, at, body };
        match status.as_u16() {
            412 | 429 | 500.. => {
                let failure = self.passing_refusal(&answer);
                if let Some(pause) = pause {
                    self.pauses.begin(&self.config.origin(), pause, &failure.error);
                }
                Err(failure)
            }
            _ => Ok(answer),
        }
    }

    async fn request(
        &self,
        call: &Call,
        url: Url,
        body: Bytes,
        token: Option<&Token>,
        deadline: Instant,
    ) -> Result<Response, Failure> {
        let mut request = if call.is_read {
            self.http.request(Method::GET, url)
        } else {
            self.http.request(Method::POST, url).body(body)
        };
        if let Some(token) = token {
            request = request.header("x-vault-token", token.header.clone());
        }
        // Covers the whole exchange, so a body that trickles ends too.
        let left = deadline.saturating_duration_since(Instant::now());
        let sent = request.timeout(self.limits.attempt.min(left)).send().await;
        sent.map_err(|e| self.transport(e))
    }

    /// Where a redirect may lead: Vault's standby nodes send 307 to the active one, which is followed
    /// if it is at the origin that the token was given for.
    fn redirect_target(&self, from: &Url, response: &Response) -> Result<Url, Failure> {
        let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
        let target = location.and_then(|l| from.join(l).ok());
        let (307 | 308, Some(target)) = (response.status().as_u16(), target) else {
            return Err(self
                .foreign(format!("a redirect with status {}", response.status().as_u16()))
                .into());
        };
        if target.origin() == from.origin() {
            return Ok(target);
        }
        let target = target.origin().ascii_serialization();
        Err(KmsError::new(
            KmsErrorKind::Unreachable,
            format!(
                "{} redirects to {target}, and the token is for the former only",
                self.config.origin()
            ),
        )
        .cure(format!(
            "if {target} is the Vault that is meant, set it as the URL; a Vault that stands by should forward requests \
             instead of redirecting them"
        ))
        .into())
    }

    /// Reads an answer up to the size limit, into memory that is wiped.
    async fn read(&self, mut response: Response) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let limit = self.limits.reply_bytes;
        let announced =
            response.content_length().and_then(|n| usize::try_from(n).ok()).unwrap_or(0);
        let mut body = Zeroizing::new(Vec::with_capacity(announced.min(limit)));
        let mut too_long = announced > limit;
        while !too_long {
            let Some(chunk) = response.chunk().await.map_err(|e| self.transport(e))? else {
                return Ok(body);
            };
            too_long = chunk.len() > limit - body.len();
            if !too_long {
                append_wiped(&mut body, &chunk);
            }
        }
        Err(self.foreign(format!("more than {limit} bytes")).into())
    }

    /// Maps what failed on the way.
    fn transport(&self, error: reqwest::Error) -> Failure {
        let error = error.without_url();
        let at = self.config.origin();
        let refused = causes(&error).find_map(|e| e.downcast_ref::<RefusedAddress>());
        if let Some(refused) = refused {
            return KmsError::new(
                KmsErrorKind::Invalid,
                format!("{at} is not connected to: {refused}"),
            )
            .of_input(KmsInput::Address)
            .cure("give the address that clients of Vault use")
            .into();
        }
        let cause = root_cause(&error);
        // rustls' errors come as io errors of this kind (tokio-rustls).
        let is_tls = |e: &(dyn Error + 'static)| {
            e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::InvalidData)
        };
        // A server that wants another client certificate says so when the connection is made (TLS 1.3).
        let alert = cause.contains("fatal alert");
        let tls = (error.is_connect() || alert) && causes(&error).any(is_tls);
        // Some servers say no more than that the certificate is bad, and some just hang up.
        let broke = !error.is_connect() && !error.is_timeout();
        if let Some(ends) = self.identity_ends
            && (cause.contains("CertificateExpired")
                || (certificate::left(ends).is_zero() && (alert || broke)))
        {
            return self.identity_ended(ends, &cause).into();
        }
        if tls && (cause.contains("certificate expired") || cause.contains("not valid yet")) {
            return KmsError::new(
                KmsErrorKind::Unreachable,
                format!("no secure connection to {at}"),
            )
            .because(cause)
            .cure("renew Vault's certificate and let Vault load it (SIGHUP), or set the clock that is wrong: this machine's, or that of who made the certificate")
            .into();
        }
        if tls {
            return KmsError::new(
                KmsErrorKind::Unreachable,
                format!("no secure connection to {at}"),
            )
            .because(cause)
            .cure(
                "check that the URL has the host name of Vault's certificate and that the port speaks TLS; \
                 for a private CA give its certificate with --ca-cert; where Vault asks its clients for a certificate, give \
                 one with --client-cert and --client-key",
            )
            .into();
        }
        let what = if error.is_timeout() {
            format!("no answer from {at} in time")
        } else if error.is_connect() {
            format!("no connection to {at}")
        } else {
            format!("the connection to {at} broke")
        };
        let error = KmsError::new(KmsErrorKind::Unreachable, what).because(cause).cure(
            "check that Vault runs, and that the URL, the name service and the firewall are right",
        );
        Failure { error, passes: true }
    }

    /// No connection comes about because the certificate that Vault is shown is over.
    fn identity_ended(&self, ends: Duration, cause: &str) -> KmsError {
        let (at, moment) = (self.config.origin(), certificate::moment(ends));
        let ended = match certificate::left(ends).is_zero() {
            true => format!("it ended at {moment}"),
            false => format!("by this machine's clock it ends at {moment}"),
        };
        KmsError::new(
            KmsErrorKind::Unreachable,
            format!("{at} does not take the client certificate any more: {ended}"),
        )
        .because(cause)
        .cure(
            "get a new one from its authority, and give it with the other values of now: coffer fs kms set-vault … --client-cert FILE \
             --client-key FILE; if it is not over, set the clock that is wrong",
        )
    }

    /// Maps the answers that have nothing to do with the request.
    fn passing_refusal(&self, answer: &Answer) -> Failure {
        let at = self.config.origin();
        let said = answer.errors();
        // 503 of a sealed Vault, and of one that nobody has initialised.
        if said.iter().any(|e| e.contains("sealed") || e.contains("not initialized")) {
            return KmsError::new(KmsErrorKind::Sealed, format!("the Vault at {at} is sealed"))
                .cure("unseal it: vault operator unseal")
                .into();
        }
        let mut what = format!("{at} answers {}", answer.status.as_u16());
        if !said.is_empty() {
            what = format!("{what}: {}", said.join("; "));
        }
        let cure = match answer.status {
            StatusCode::TOO_MANY_REQUESTS => {
                "wait (where it said how long, it is not asked before that), or raise the limit: vault list sys/quotas/rate-limit shows Vault's own, and a proxy before it may have another"
            }
            _ => "look at Vault's log, and at the proxy's if there is one before it",
        };
        let error = KmsError::new(KmsErrorKind::Unreachable, what).cure(cure);
        Failure { error, passes: true }
    }

    /// An answer that no Vault gives.
    pub(crate) fn foreign(&self, what: impl fmt::Display) -> KmsError {
        KmsError::new(
            KmsErrorKind::Unreachable,
            format!("something else than Vault answered at {}: {what}", self.config.origin()),
        )
        .cure("check the URL: host, port and base path; no login page or proxy may stand before Vault's API")
    }
}

/// What is asked of Vault: a path of its API, read or written to.
pub(crate) struct Call {
    /// Its name in metrics.
    pub(crate) operation: &'static str,
    pub(crate) path: String,
    pub(crate) is_read: bool,
}

impl Call {
    pub(crate) fn of(operation: Operation, config: &VaultConfig) -> Self {
        let (path, is_read) = (operation.path(config), operation.is_read());
        Self { operation: operation.name(), path, is_read }
    }
}

/// A try that came to nothing.
pub(crate) struct Failure {
    pub(crate) error: KmsError,
    /// Whether another try makes sense.
    passes: bool,
}

impl From<KmsError> for Failure {
    fn from(error: KmsError) -> Self {
        Self { error, passes: false }
    }
}

fn answered_at(headers: &HeaderMap) -> SystemTime {
    let told =
        headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    told.unwrap_or_else(SystemTime::now)
}

/// When the certificate of this connection ends, since 1970.
fn not_after(response: &Response) -> Option<Duration> {
    certificate::end(response.extensions().get::<TlsInfo>()?.peer_certificate()?)
}

/// Appends without leaving a copy behind where the buffer was before it grew.
fn append_wiped(body: &mut Zeroizing<Vec<u8>>, chunk: &[u8]) {
    let needed = body.len() + chunk.len();
    if needed > body.capacity() {
        let mut larger = Zeroizing::new(Vec::with_capacity(needed.max(2 * body.capacity())));
        larger.extend_from_slice(body);
        *body = larger;
    }
    body.extend_from_slice(chunk);
}

/// The longest pause after so many tries.
fn longest_pause(first: Duration, tries: u32) -> Duration {
    const LONGEST: Duration = Duration::from_secs(5);
    first.saturating_mul(1 << (tries - 1).min(16)).min(LONGEST)
}

/// An error and those below it. `source` leaves out the error inside an `io::Error`.
fn causes<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&error| {
        let inside = error.downcast_ref::<io::Error>().and_then(|e| e.get_ref());
        inside.map(|e| e as &(dyn Error + 'static)).or_else(|| error.source())
    })
}

/// The words of the innermost error. They hold no URL and no header.
pub(crate) fn root_cause(error: &(dyn Error + 'static)) -> String {
    causes(error).last().map(ToString::to_string).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest() {
        let first = Duration::from_millis(100);
        let pauses = [1, 2, 3, 7, u32::MAX].map(|tries| longest_pause(first, tries).as_millis());
        assert_eq!(pauses, [100, 200, 400, 5000, 5000]);
    }

    #[test]
    fn bodies_grow_whole() {
        let mut body = Zeroizing::new(Vec::new());
        for n in 0..100_u8 {
            append_wiped(&mut body, &[n; 7]);
        }
        assert_eq!(body.len(), 700);
        assert!(body.chunks(7).zip(0..).all(|(chunk, n)| chunk == [n; 7]));
    }
}

//! [`Kms`] over one transit key with one token.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use kms_core::{
    CheckItem, Ciphertext, CredentialHere, CredentialStatus, Ending, Finding, Items, KeyRecord,
    KeyVersion, Kms, KmsConfig, KmsError, KmsErrorKind, MasterKey, RecordError, RequestId,
    UnixMillis,
};
use reqwest::StatusCode;

use crate::Limits;
use crate::answer::{Answer, printable};
use crate::client::Client;
use crate::config::VaultConfig;
use crate::operation::Operation;
use crate::session::{Session, Source};
use crate::wire::{self, Batch, BatchItem, Envelope, KeyData, Renewal, TokenData};
use crate::{certificate, check, findings, refusal};

const NO_API: &str = "not what Vault's API answers";

pub(crate) struct VaultKms {
    config: KmsConfig,
    client: Client,
    limits: Limits,
    token: Mutex<TokenSeen>,
}

/// What earlier answers told of the token.
#[derive(Default, Clone, Copy)]
pub(crate) struct TokenSeen {
    /// Whether it is periodic, once a renewal has shown it: see [`VaultKms::renew_token`].
    periodic: Option<bool>,
    /// Whether its last renewal was refused for lack of the permission.
    pub(crate) may_not_renew: bool,
    /// How long it was first given for.
    creation_ttl: u64,
    /// When it ends for good, however often it is renewed, since 1970, if Vault tells that.
    pub(crate) ends: Option<Duration>,
    /// How often it may still be used; 0 for any number.
    pub(crate) num_uses: i64,
    /// Whether it lives on without the token that made it.
    pub(crate) orphan: bool,
}

impl VaultKms {
    pub(crate) fn new(config: KmsConfig, client: Client, limits: Limits) -> Self {
        Self { config, client, limits, token: Mutex::default() }
    }

    pub(crate) fn target(&self) -> &VaultConfig {
        self.client.http().config()
    }

    /// Whether tokens are got by a login, so that none has to last.
    pub(crate) fn logs_in(&self) -> bool {
        matches!(self.client.session().source(), Source::Login { .. })
    }

    /// As the next start will be: with a login of its own, beside the token that there is, which stays as it is.
    ///
    /// # Errors
    /// The login is refused, or Vault does not answer.
    pub(crate) async fn log_in_apart(&self) -> Result<Option<Self>, KmsError> {
        let Some(client) = self.client.log_in_apart().await? else { return Ok(None) };
        let (config, limits, token) = (self.config.clone(), self.limits, Mutex::default());
        let apart = Self { config, client, limits, token };
        apart.look_up_secret_id().await;
        self.client.session().secret_id_told(apart.client.session().secret_id());
        Ok(Some(apart))
    }

    /// Uses from now on what the login of `apart` got.
    pub(crate) async fn adopt(&self, apart: &Self) {
        self.client.adopt(&apart.client).await;
    }

    /// Where the tokens come from.
    pub(crate) fn session(&self) -> &Session {
        self.client.session()
    }

    /// Asks for what is left of the secret id. That it can't be told is no failure, and where Vault did not answer what was told
    /// before stands until the next look.
    pub(crate) async fn look_up_secret_id(&self) {
        match self.client.look_up_secret_id().await {
            Ok(Some(told)) => self.client.session().secret_id_told(told),
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "what is left of the secret id is not known"),
        }
    }

    /// What keeps a later login from being granted.
    pub(crate) fn login_findings(&self, status: &CredentialStatus) -> Vec<Finding> {
        match self.client.session().source() {
            Source::Login { mount, .. } => {
                self.client.session().secret_id().findings(mount, status)
            }
            _ => Vec::new(),
        }
    }

    /// The file that tokens are read from, and how long the one of now was first given for.
    pub(crate) fn token_file(&self) -> Option<(&Path, Duration)> {
        let file = self.client.session().file()?;
        Some((file, Duration::from_secs(self.seen().creation_ttl)))
    }

    /// Why that file could not be read last, and whether there is a token of before.
    pub(crate) fn unread_token_file(&self) -> Option<(String, bool)> {
        let session = self.client.session();
        Some((session.unread()?, session.current().is_some()))
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, TokenSeen> {
        self.token.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The key, if Coffer can use it.
    pub(crate) async fn read_key(&self) -> Result<KeyData, KmsError> {
        let answer = self.ask(Operation::ReadKey, Bytes::new()).await?;
        let Some(key) = answer.parse::<Envelope<KeyData>>() else {
            // A key-value store has something of that name.
            return Err(if answer.is_vaults() {
                refusal::other_engine(self.target())
            } else {
                self.client.http().foreign(NO_API)
            });
        };
        check_fitness(self.target(), &key.data)?;
        Ok(key.data)
    }

    pub(crate) async fn look_up_token(&self) -> Result<TokenData, KmsError> {
        let answer = self.ask(Operation::LookupSelf, Bytes::new()).await?;
        let token: Envelope<TokenData> = self.understand(&answer)?;
        // After the last use of what a login got there is another login.
        if token.data.num_uses < 0 && !self.logs_in() {
            return Err(refusal::used_up());
        }
        let TokenData { creation_ttl, creation_time, explicit_max_ttl, num_uses, orphan, .. } =
            token.data;
        let ends = (explicit_max_ttl > 0 && creation_time > 0)
            .then(|| Duration::from_secs(creation_time.saturating_add(explicit_max_ttl)));
        let mut seen = self.seen();
        *seen = TokenSeen { creation_ttl, ends, num_uses, orphan, ..*seen };
        drop(seen);
        Ok(token.data)
    }

    /// Renews the token for as long as it was first given, and learns whether it is periodic.
    ///
    /// No version of Vault tells in `lookup-self` that a *role* made a token periodic; `period` is there only for
    /// `vault token create -period`. A renewal shows it: it asks for one second more than the token was first given, and
    /// Vault grants a periodic token its period whatever is asked, and any other token what is asked or, with a warning,
    /// what is left until the maximum (`framework.CalculateTTL`, from 1.1.5 to 1.21.4).
    pub(crate) async fn renew_token(
        &self,
        token: &TokenData,
    ) -> Result<CredentialStatus, KmsError> {
        let asked = token.creation_ttl.saturating_add(1);
        let body = wire::renew_body(asked).map_err(unencodable)?;
        let answer = self.ask(Operation::RenewSelf, body).await;
        self.seen().may_not_renew =
            answer.as_ref().is_err_and(|error| error.kind() == KmsErrorKind::Denied);
        let answer = answer?;
        let renewal: Renewal = self.understand(&answer)?;
        let granted = renewal.auth.lease_duration;
        let capped = renewal.warnings.iter().flatten().any(|w| w.starts_with("TTL of"));
        let periodic =
            token.explicit_max_ttl == 0 && (token.period > 0 || (granted != asked && !capped));
        self.seen().periodic = Some(periodic);
        Ok(CredentialStatus {
            time_left: Some(Duration::from_secs(granted)),
            renewable: renewal.auth.renewable,
            periodic,
        })
    }

    pub(crate) fn status(&self, token: &TokenData) -> CredentialStatus {
        let ends = token.expire_time.is_some() || token.ttl > 0;
        let TokenSeen { periodic, may_not_renew, .. } = *self.seen();
        let periodic = periodic.unwrap_or(token.period > 0 && token.explicit_max_ttl == 0);
        let is_replaced = self.client.session().can_log_in();
        CredentialStatus {
            time_left: ends.then(|| Duration::from_secs(token.ttl.max(0).unsigned_abs())),
            renewable: (token.renewable && !may_not_renew) || is_replaced,
            periodic: periodic || is_replaced,
        }
    }

    /// What the token may do at each of these paths.
    pub(crate) async fn capabilities(
        &self,
        paths: &[String],
    ) -> Result<BTreeMap<String, Vec<String>>, KmsError> {
        let body = wire::paths_body(paths).map_err(unencodable)?;
        let answer = self.ask(Operation::CapabilitiesSelf, body).await?;
        // With one path there is a `capabilities` beside it; from 1.1.5 to 1.21.4 the paths stand in `data` too.
        let found: Envelope<BTreeMap<String, Vec<String>>> = self.understand(&answer)?;
        Ok(found.data)
    }

    /// When the certificate of the last connection ends, since 1970.
    pub(crate) fn certificate_ends(&self) -> Option<Duration> {
        self.client.http().certificate_ends()
    }

    /// When the certificate that Vault is shown ends, since 1970.
    pub(crate) fn identity_ends(&self) -> Option<Duration> {
        self.client.http().identity_ends()
    }

    /// Encrypts, without a look at the key first. Vault makes no key by it: see the crate's documentation.
    pub(crate) async fn encrypt(
        &self,
        records: &[KeyRecord],
    ) -> Result<Items<Ciphertext>, KmsError> {
        self.in_batches(
            Operation::Encrypt,
            records,
            |_| wire::WRAP_ITEM_LEN,
            wire::encrypt_body,
            |_, answer| self.decode_ciphertext(None, answer),
        )
        .await
    }

    /// Sends a request whose answer concerns all of it.
    async fn ask(&self, operation: Operation, body: Bytes) -> Result<Answer, KmsError> {
        let answer = self.client.send(operation, body).await?;
        if answer.status.is_success() {
            Ok(answer)
        } else {
            Err(self.refused(operation, &answer).await)
        }
    }

    fn understand<'a, T: serde::Deserialize<'a>>(&self, answer: &'a Answer) -> Result<T, KmsError> {
        answer.parse().ok_or_else(|| self.client.http().foreign(NO_API))
    }

    async fn refused(&self, operation: Operation, answer: &Answer) -> KmsError {
        let status = answer.status.as_u16();
        // A versioned key-value store says in a warning, without an error, that it has no such path.
        if answer.status == StatusCode::NOT_FOUND && operation.is_of_transit() && answer.is_vaults()
        {
            return refusal::other_engine(self.target());
        }
        if !answer.is_refusal() {
            return self.client.http().foreign(format!("status {status} without Vault's words"));
        }
        let errors = answer.errors();
        if !answer.refuses_token() {
            return refusal::refused(self.target(), operation, status, &errors);
        }
        // OpenBao and 1.1.5 don't say that much.
        let known = !errors.iter().any(|e| e.contains("invalid token"));
        match if known { self.client.may_more_than(operation).await } else { Ok(false) } {
            Ok(true) => self.not_permitted(operation),
            Ok(false) => refusal::bad_token(self.target(), operation),
            Err(e) => e,
        }
    }

    fn not_permitted(&self, operation: Operation) -> KmsError {
        let refused = refusal::not_permitted(self.target(), operation);
        if !self.logs_in() {
            return refused;
        }
        let grant = refused.how_to_mend().unwrap_or_default();
        let cure = format!(
            "{grant}; a policy that the role did not have needs another login, as coffer fs kms check takes it at once"
        );
        refused.cure(cure)
    }

    /// Sends `items` in batches, several at once, and puts the answers together in order.
    async fn in_batches<I: Sync, T: Send>(
        &self,
        operation: Operation,
        items: &[I],
        size: impl Fn(&I) -> usize,
        encode: impl Fn(&[I]) -> serde_json::Result<Bytes> + Sync,
        decode: impl Fn(&I, &BatchItem<'_>) -> Result<T, KmsError> + Sync,
    ) -> Result<Items<T>, KmsError> {
        let (encode, decode) = (&encode, &decode);
        let requests: Vec<_> = split(items, size, self.limits.batch_items, self.limits.batch_bytes)
            .into_iter()
            .map(|batch| async move {
                let body = encode(batch).map_err(unencodable)?;
                let answer = self.client.send(operation, body).await?;
                let (request, answers) =
                    self.batch_answers(operation, &answer, batch.len()).await?;
                let answers = batch.iter().zip(&answers).map(|(i, a)| decode(i, a));
                Ok(Items::of_request(answers, request.as_ref()))
            })
            .collect();
        let mut answers = Items::default();
        let mut parts = stream::iter(requests).buffered(self.limits.in_flight.max(1));
        while let Some(part) = parts.next().await {
            answers.extend([part?]);
        }
        Ok(answers)
    }

    /// What Vault calls the request, and the answers to each of `asked` items, whatever the status: see [`Batch`].
    async fn batch_answers<'a>(
        &self,
        operation: Operation,
        answer: &'a Answer,
        asked: usize,
    ) -> Result<(Option<RequestId>, Vec<BatchItem<'a>>), KmsError> {
        let Some(Envelope { request_id, data: Batch { batch_results } }) = answer.parse() else {
            return Err(if answer.status.is_success() {
                self.client.http().foreign(NO_API)
            } else {
                self.refused(operation, answer).await
            });
        };
        if batch_results.len() == asked {
            return Ok((RequestId::parse(&request_id), batch_results));
        }
        let count = format!("{} items where {asked} were asked", batch_results.len());
        Err(self.client.http().foreign(count))
    }

    fn decode_ciphertext(
        &self,
        asked: Option<&Ciphertext>,
        answer: &BatchItem<'_>,
    ) -> Result<Ciphertext, KmsError> {
        if !answer.error.is_empty() {
            return Err(refusal::item(self.target(), asked, &printable(&answer.error)));
        }
        wire::parse_ciphertext(&answer.ciphertext)
            .ok_or_else(|| self.client.http().foreign("a ciphertext that is not Vault's"))
    }

    fn decode_record(
        &self,
        asked: &Ciphertext,
        answer: &BatchItem<'_>,
    ) -> Result<KeyRecord, KmsError> {
        if !answer.error.is_empty() {
            return Err(refusal::item(self.target(), Some(asked), &printable(&answer.error)));
        }
        wire::decode_record(&answer.plaintext).map_err(|e| match e {
            RecordError::Newer(_) => KmsError::new(KmsErrorKind::Invalid, e.to_string()),
            RecordError::NotARecord => KmsError::new(KmsErrorKind::NotAuthentic, e.to_string())
                .cure("restore the wrapped key from one of its copies"),
        })
    }
}

#[async_trait]
impl Kms for VaultKms {
    fn config(&self) -> &KmsConfig {
        &self.config
    }

    async fn master_key(&self) -> Result<MasterKey, KmsError> {
        self.read_key().await.map(describe)
    }

    /// Looks the token up. The first call renews it, to learn whether it may be renewed and is periodic: see
    /// [`VaultKms::renew_token`]. Where that is refused each further call tries it again, for the permission may come.
    async fn credential(&self) -> Result<CredentialStatus, KmsError> {
        let token = self.look_up_token().await?;
        self.look_up_secret_id().await;
        let TokenSeen { periodic, may_not_renew, .. } = *self.seen();
        let known = periodic.is_some() && !may_not_renew;
        if known || !token.renewable || self.logs_in() {
            return Ok(self.status(&token));
        }
        match self.renew_token(&token).await {
            // A token that may not renew itself can't be renewed from here.
            Err(e) if e.kind() == KmsErrorKind::Denied => Ok(self.status(&token)),
            status => status,
        }
    }

    /// One that can't be renewed stays as it is; the answer says so. Where tokens are got by a login, one that has most of its life
    /// before it stays, too, and one that can't be renewed for its whole life again is replaced by another.
    async fn renew(&self) -> Result<CredentialStatus, KmsError> {
        let before = self.client.session().current();
        let token = self.look_up_token().await?;
        if !self.logs_in() {
            let renewed =
                if token.renewable { self.renew_token(&token).await? } else { self.status(&token) };
            return Ok(renewed);
        }
        let (whole, left) = (token.creation_ttl, token.ttl.max(0).unsigned_abs());
        if left.saturating_mul(3) > whole.saturating_mul(2) {
            return Ok(self.status(&token));
        }
        let can_log_in = self.client.session().can_log_in();
        if token.renewable
            && let Ok(renewed) = self.renew_token(&token).await
            && (renewed.time_left >= Some(Duration::from_secs(whole)) || !can_log_in)
        {
            return Ok(CredentialStatus { periodic: renewed.periodic || can_log_in, ..renewed });
        }
        if self.client.replace(before.as_ref()).await? {
            self.look_up_secret_id().await;
        }
        Ok(self.status(&self.look_up_token().await?))
    }

    fn findings(&self, key: &MasterKey, credential: &CredentialStatus) -> Vec<Finding> {
        findings::later(self, key, credential)
    }

    fn key_findings(&self, key: &MasterKey) -> Vec<Finding> {
        findings::of_key(self.target(), key)
    }

    fn ends(&self) -> Vec<Ending> {
        let ending =
            |what: &str, end| Ending { what: what.to_owned(), left: certificate::left(end) };
        let ours = self.identity_ends().map(|end| ending("the client certificate", end));
        let vaults = self.certificate_ends().map(|end| ending("Vault's certificate", end));
        let secret_id = self.client.session().secret_id().time_left();
        let login = secret_id.map(|left| Ending { what: "the secret id".to_owned(), left });
        ours.into_iter().chain(vaults).chain(login).collect()
    }

    async fn starts_left(&self) -> Result<Option<u64>, KmsError> {
        if let Some(told) = self.client.look_up_secret_id().await? {
            self.client.session().secret_id_told(told);
        } else {
            self.client.meet().await?;
        }
        Ok(self.client.session().secret_id().logins_left())
    }

    async fn leave(&self) {
        self.client.log_out().await;
    }

    async fn credential_here(&self) -> CredentialHere {
        self.client.read_token_file().await;
        let findings = findings::unread_file(self).into_iter().collect();
        CredentialHere { findings, number: self.client.session().read_so_far() }
    }

    async fn check(&self, sample: Option<&Ciphertext>) -> Vec<CheckItem> {
        check::run(self, sample).await
    }

    async fn check_key(&self, sample: Option<&Ciphertext>) -> Vec<CheckItem> {
        check::key_alone(self, sample).await
    }

    async fn wrap(&self, records: &[KeyRecord]) -> Result<Items<Ciphertext>, KmsError> {
        if records.is_empty() {
            return Ok(Items::default());
        }
        self.read_key().await?;
        self.encrypt(records).await
    }

    async fn unwrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<KeyRecord>, KmsError> {
        self.in_batches(
            Operation::Decrypt,
            ciphertexts,
            |c| c.text.len(),
            wire::ciphertext_body,
            |asked, answer| self.decode_record(asked, answer),
        )
        .await
    }

    async fn rewrap(&self, ciphertexts: &[Ciphertext]) -> Result<Items<Ciphertext>, KmsError> {
        self.in_batches(
            Operation::Rewrap,
            ciphertexts,
            |c| c.text.len(),
            wire::ciphertext_body,
            |asked, answer| self.decode_ciphertext(Some(asked), answer),
        )
        .await
    }
}

impl fmt::Debug for VaultKms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let target = self.target();
        write!(f, "VaultKms({} {}/{})", target.origin(), target.transit_path(), target.master_key())
    }
}

/// Refuses a key that can't encrypt, or not as K1 needs it: what comes back must be known to be what went in, so only
/// authenticated encryption will do. (RSA encrypts for anybody who can read the key; CBC notices no change.)
fn check_fitness(config: &VaultConfig, key: &KeyData) -> Result<(), KmsError> {
    let authenticated = key.kind.ends_with("-gcm96") || key.kind.ends_with("-poly1305");
    let why = if key.soft_deleted {
        "is marked as deleted".to_owned()
    } else if !authenticated {
        format!("is of type {}, which does not encrypt with authentication", key.kind)
    } else if key.derived {
        "is derived: it needs a context with every request".to_owned()
    } else {
        return Ok(());
    };
    Err(KmsError::new(
        KmsErrorKind::KeyUnfit,
        format!("the master key {} {why}", config.master_key()),
    )
    .cure(format!(
        "use a key of type aes256-gcm96, such as this makes: vault write -f {}/keys/<name>",
        config.transit_path()
    )))
}

pub(crate) fn describe(key: KeyData) -> MasterKey {
    let created: BTreeMap<_, _> = key
        .keys
        .iter()
        .filter_map(|(version, seconds)| {
            let millis = seconds.as_u64()?.saturating_mul(1000);
            Some((KeyVersion(version.parse().ok()?), UnixMillis(millis)))
        })
        .collect();
    MasterKey {
        name: key.name,
        latest_version: KeyVersion(key.latest_version),
        min_decryption_version: KeyVersion(key.min_decryption_version),
        created,
        deletion_allowed: key.deletion_allowed,
        exportable: key.exportable,
        backup_in_clear: key.allow_plaintext_backup,
    }
}

/// Cuts a slice so that no part has more than `most` items, or more than `bytes` bytes unless it is one item.
fn split<I>(items: &[I], size: impl Fn(&I) -> usize, most: usize, bytes: usize) -> Vec<&[I]> {
    let (mut parts, mut from, mut sum) = (Vec::new(), 0, 0);
    for (at, item) in items.iter().enumerate() {
        let size = size(item);
        if at > from && (at - from >= most || sum + size > bytes) {
            parts.push(&items[from..at]);
            (from, sum) = (at, 0);
        }
        sum += size;
    }
    if from < items.len() {
        parts.push(&items[from..]);
    }
    parts
}

fn unencodable(error: serde_json::Error) -> KmsError {
    KmsError::new(KmsErrorKind::Internal, "a request to Vault can't be made").because(error)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn split_keeps_all_in_order_within_bounds(
            sizes in proptest::collection::vec(0_usize..50, 0..60), most in 1_usize..9, bytes in 1_usize..120,
        ) {
            let parts = split(&sizes, |s| *s, most, bytes);
            prop_assert_eq!(&parts.concat(), &sizes);
            for part in parts {
                prop_assert!(!part.is_empty() && part.len() <= most);
                prop_assert!(part.len() == 1 || part.iter().sum::<usize>() <= bytes);
            }
        }
    }
}

//! The token that requests are sent with: given once, read from a file, or got by a login.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime};

use kms_core::{
    Auth, ClientIdentity, Credential, ExposeSecret, KmsError, KmsErrorKind, KmsInput, Login,
};
use reqwest::header::HeaderValue;
use time::OffsetDateTime;
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::{Instant, timeout};
use zeroize::Zeroizing;

use crate::config::{VaultConfig, parse_mount};
use crate::secret_id::SecretId;

/// Longest token that is read from a file. Service tokens have about a hundred bytes, batch tokens a few hundred.
const TOKEN_MAX: u64 = 16 * 1024;

/// Where logins go when nothing else is said.
const APP_ROLE: &str = "approle";

/// How long a login that was refused is not sent again, and how long one that was refused again.
///
/// A newer Vault locks a role out of all logins for a quarter of an hour at the fifth that it refuses, if each came within a quarter of
/// an hour after the one before (`failedUserLoginProcess`, from 1.13 to 1.21.4). So no more than two of ours do, and the others are
/// left to administrators and other clients of the role.
const PAUSE_AFTER_REFUSAL: [Duration; 2] =
    [Duration::from_secs(5 * 60), Duration::from_secs(16 * 60)];

/// So many refusals are counted together, each within that time of the one before, that Vault would lock the role out at the next: an
/// administrator does not get that one either.
const LAST_BUT_ONE: usize = 4;
const COUNTED_FOR: Duration = Duration::from_secs(15 * 60);

/// How old the first login of a process may be that shows what another one would.
const JUST_NOW: Duration = Duration::from_secs(10);

/// How long what a live token may not do is not tried with another login, and how long at most, when that has not helped again and again.
const ANEW_AFTER: Duration = Duration::from_secs(5 * 60);
const ANEW_AT_MOST: Duration = Duration::from_secs(6 * 60 * 60);

/// A token in the form in which it is sent. Another one is told by its number.
#[derive(Clone)]
pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    number: u64,
}

/// The logins of now, shared by all that one provider opens. Whoever goes to the same Vault with the same login shares one
/// session, so that what one gets or renews serves all, and a secret id is used no more often than it has to be.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sessions(Arc<Mutex<Vec<Weak<Session>>>>);

impl Sessions {
    /// The one for this credential. Asks nobody and reads no file.
    ///
    /// # Errors
    /// Those of [`Session::new`].
    pub(crate) fn of(
        &self,
        credential: &Credential,
        config: &VaultConfig,
    ) -> Result<Arc<Session>, KmsError> {
        let new = Session::new(credential, config)?;
        if !matches!(new.source, Source::Login { .. }) {
            return Ok(Arc::new(new));
        }
        let mut sessions = lock(&self.0);
        sessions.retain(|session| session.strong_count() > 0);
        if let Some(same) = sessions.iter().filter_map(Weak::upgrade).find(|s| s.is_as(&new)) {
            return Ok(same);
        }
        let new = Arc::new(new);
        sessions.push(Arc::downgrade(&new));
        Ok(new)
    }
}

/// Where tokens come from, and the one of this moment.
pub(crate) struct Session {
    source: Source,
    /// The Vault that the tokens are of.
    config: VaultConfig,
    identity: Option<ClientIdentity>,
    current: Mutex<Option<Token>>,
    /// The role of the last login, for asking what is left of its secret id; `None`: the token may not ask.
    role: Mutex<Option<String>>,
    /// What was told last of what is left of it.
    secret_id: Mutex<SecretId>,
    refusals: Mutex<Refusals>,
    /// When the last login was granted.
    logged_in: Mutex<Option<Instant>>,
    /// When another login may be tried for what a live token may not do, and the pause after that.
    anew: Mutex<Option<(Instant, Duration)>>,
    /// Held by who gets another one, so that many requests that were refused at once make one login.
    changing: tokio::sync::Mutex<()>,
    /// When the last of those who held it had failed, and how.
    failed: Mutex<Option<(Instant, KmsError)>>,
}

/// The logins that Vault has refused since it granted one.
#[derive(Default)]
struct Refusals {
    count: usize,
    /// How many of them Vault counts together, with the time of the last.
    in_a_row: Option<(usize, Instant)>,
    last: Option<Refused>,
}

/// A login that was refused is not sent again until then.
struct Refused {
    until: Instant,
    /// What those are told who need a login before.
    what: String,
    cure: String,
}

pub(crate) enum Source {
    /// An administrator, once.
    Given,
    File(TokenFile),
    Login {
        mount: String,
        login: Login,
    },
}

pub(crate) struct TokenFile {
    path: PathBuf,
    /// What was read last.
    read: Mutex<Option<Stamp>>,
    /// Why the last try to read it failed.
    unread: Mutex<Option<String>>,
    /// A try that its disk has not answered. It holds a thread, so no other is begun meanwhile.
    stuck: Mutex<Option<JoinHandle<io::Result<Found>>>>,
}

/// What tells a file from the one that was written in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Stamp {
    inode: (u64, u64),
    changed: (i64, i64),
    len: u64,
}

impl Refusals {
    /// How many Vault counts together now.
    fn in_a_row(&self) -> Option<usize> {
        self.in_a_row.filter(|(_, at)| at.elapsed() < COUNTED_FOR).map(|(count, _)| count)
    }
}

impl Session {
    /// One for this credential. Asks nobody and reads no file.
    ///
    /// # Errors
    /// [`KmsErrorKind::Denied`]: there is none, as after a recovery. [`KmsErrorKind::Invalid`]: it can't be one.
    fn new(credential: &Credential, config: &VaultConfig) -> Result<Self, KmsError> {
        let mut current = None;
        let source = match &credential.auth {
            Auth::Token(token) => {
                let header = header(token.expose_secret())?;
                current = Some(Token { header, number: 0 });
                Source::Given
            }
            Auth::TokenFile(path) => {
                let (read, unread, stuck) = Default::default();
                Source::File(TokenFile { path: path.clone(), read, unread, stuck })
            }
            Auth::Login(login) => {
                let mount = if login.path.is_empty() { APP_ROLE } else { &login.path };
                Source::Login { mount: parse_mount(mount)?, login: login.clone() }
            }
            _ => {
                return Err(no_token(config));
            }
        };
        Ok(Self::with(source, config, credential.identity.as_ref(), current))
    }

    fn with(
        source: Source,
        config: &VaultConfig,
        identity: Option<&ClientIdentity>,
        current: Option<Token>,
    ) -> Self {
        let (role, secret_id, refusals, logged_in, anew, changing, failed) = Default::default();
        let (config, identity) = (config.clone(), identity.cloned());
        let current = Mutex::new(current);
        Self {
            source,
            config,
            identity,
            current,
            role,
            secret_id,
            refusals,
            logged_in,
            anew,
            changing,
            failed,
        }
    }

    /// One that logs in as this does and shares nothing with it, so that what another login gets is seen before it takes the place of
    /// what there is. `None`: this does not log in.
    pub(crate) fn apart(&self) -> Option<Self> {
        let Source::Login { mount, login } = &self.source else { return None };
        let source = Source::Login { mount: mount.clone(), login: login.clone() };
        Some(Self::with(source, &self.config, self.identity.as_ref(), None))
    }

    /// Uses from now on what a login of the other got. Answers the token of before.
    pub(crate) fn take(&self, other: &Self) -> Option<Token> {
        let new = other.current()?;
        let mut current = lock(&self.current);
        let number = current.as_ref().map_or(0, |before| before.number + 1);
        let before = current.replace(Token { header: new.header, number });
        drop(current);
        self.login_granted(lock(&other.role).clone());
        *lock(&self.secret_id) = other.secret_id();
        *lock(&self.anew) = None;
        before
    }

    /// Whether both log in to the same Vault, reached in the same way, as the same.
    fn is_as(&self, other: &Self) -> bool {
        let (
            Source::Login { mount, login },
            Source::Login { mount: other_mount, login: other_login },
        ) = (&self.source, &other.source)
        else {
            return false;
        };
        let same_identity = match (&self.identity, &other.identity) {
            (Some(one), Some(other)) => {
                one.certificate == other.certificate
                    && one.key.expose_secret() == other.key.expose_secret()
            }
            (None, None) => true,
            _ => false,
        };
        self.config.is_reached_as(&other.config)
            && same_identity
            && mount == other_mount
            && login.id == other_login.id
            && login.secret.expose_secret() == other_login.secret.expose_secret()
    }

    pub(crate) const fn source(&self) -> &Source {
        &self.source
    }

    /// The file that tokens are read from.
    pub(crate) fn file(&self) -> Option<&Path> {
        match &self.source {
            Source::File(file) => Some(&file.path),
            _ => None,
        }
    }

    /// How many tokens were read from the file so far.
    pub(crate) fn read_so_far(&self) -> u64 {
        match (&self.source, self.current()) {
            (Source::File(_), Some(token)) => token.number + 1,
            _ => 0,
        }
    }

    /// Why the file that tokens are read from could not be read last.
    pub(crate) fn unread(&self) -> Option<String> {
        match &self.source {
            Source::File(file) => lock(&file.unread).clone(),
            _ => None,
        }
    }

    /// What is left of the secret id, as far as it was told.
    pub(crate) fn secret_id(&self) -> SecretId {
        lock(&self.secret_id).clone()
    }

    /// Nobody asks again with a token that may not, or a Vault that does not tell it.
    pub(crate) fn secret_id_told(&self, told: SecretId) {
        if told == SecretId::Untold {
            *lock(&self.role) = None;
        }
        *lock(&self.secret_id) = told;
    }

    /// The role under which what is left of the secret id can be asked for.
    pub(crate) fn role(&self) -> Option<String> {
        lock(&self.role).clone()
    }

    /// Whether a login may be sent now.
    ///
    /// # Errors
    /// [`KmsErrorKind::Denied`]: one was refused not long ago; as it was told then, and until when none is sent.
    pub(crate) fn may_log_in(&self) -> Result<(), KmsError> {
        match &lock(&self.refusals).last {
            Some(Refused { until, what, cure }) if Instant::now() < *until => {
                Err(KmsError::new(KmsErrorKind::Denied, what).cure(cure))
            }
            _ => Ok(()),
        }
    }

    /// An administrator wants to know whether a login is granted: the next may be sent at once, unless Vault would lock the role out if
    /// it refused that too.
    pub(crate) fn let_log_in(&self) {
        let mut refusals = lock(&self.refusals);
        if refusals.in_a_row().is_none_or(|count| count < LAST_BUT_ONE) {
            refusals.last = None;
        }
    }

    /// Whether to try with another login what a live token may not do: it gets no policy that its role was given since. Each leave is
    /// for one, and the next is later and later. Where the secret id is good for some logins only, none is spent on that.
    pub(crate) fn may_try_anew(&self) -> bool {
        if !matches!(self.source, Source::Login { .. }) {
            return false;
        }
        let now = Instant::now();
        let is_limited = lock(&self.secret_id).logins_left().is_some();
        if is_limited || self.has_logged_in_within(ANEW_AFTER) || self.may_log_in().is_err() {
            return false;
        }
        let mut anew = lock(&self.anew);
        let pause = match *anew {
            Some((at, _)) if now < at => return false,
            Some((_, pause)) => pause,
            None => ANEW_AFTER,
        };
        *anew = Some((now + pause, (pause * 2).min(ANEW_AT_MOST)));
        true
    }

    /// If Vault has refused a login it is not sent again for a while.
    pub(crate) fn note_refusal(&self, error: &KmsError) {
        if error.kind() != KmsErrorKind::Denied {
            return;
        }
        let mut refusals = lock(&self.refusals);
        let pause = PAUSE_AFTER_REFUSAL[refusals.count.min(PAUSE_AFTER_REFUSAL.len() - 1)];
        let again = OffsetDateTime::from(SystemTime::now() + pause);
        let (hour, minute) = (again.hour(), again.minute());
        refusals.count += 1;
        let in_a_row = refusals.in_a_row().unwrap_or_default() + 1;
        refusals.in_a_row = Some((in_a_row, Instant::now()));
        let cure = error.how_to_mend().unwrap_or_default();
        let cure = match in_a_row {
            LAST_BUT_ONE.. => format!(
                "{cure}, where that is another; a check does not try this one before either"
            ),
            _ => format!("{cure}; coffer fs kms check tries it at once"),
        };
        refusals.last = Some(Refused {
            until: Instant::now() + pause,
            what: format!(
                "{error}; so that Vault does not lock the role out, the node tries that again after {hour:02}:{minute:02} UTC only"
            ),
            cure,
        });
    }

    /// Vault has granted a login, under this role if it said so.
    pub(crate) fn login_granted(&self, role: Option<String>) {
        *lock(&self.refusals) = Refusals::default();
        *lock(&self.logged_in) = Some(Instant::now());
        *lock(&self.role) = role;
    }

    /// Whether another login would be granted, as far as was told.
    pub(crate) fn can_log_in(&self) -> bool {
        matches!(self.source, Source::Login { .. })
            && lock(&self.secret_id).logins_left() != Some(0)
    }

    /// Whether it is a moment old: there was one login, just now.
    pub(crate) fn is_new(&self) -> bool {
        self.current().is_some_and(|token| token.number == 0) && self.has_logged_in_within(JUST_NOW)
    }

    /// Whether a login was granted since then.
    pub(crate) fn has_logged_in_since(&self, then: Instant) -> bool {
        lock(&self.logged_in).is_some_and(|at| at >= then)
    }

    /// Whether a login was granted within so long a time.
    pub(crate) fn has_logged_in_within(&self, time: Duration) -> bool {
        lock(&self.logged_in).is_some_and(|at| at.elapsed() < time)
    }

    /// The right to get another token, once who is at it has done.
    ///
    /// # Errors
    /// Those of whom this has waited for: it would meet the same, and all who wait would meet it one after the other.
    pub(crate) async fn change(&self) -> Result<tokio::sync::MutexGuard<'_, ()>, KmsError> {
        let asked = Instant::now();
        let change = self.changing.lock().await;
        match &*lock(&self.failed) {
            Some((at, error)) if *at >= asked => Err(error.clone()),
            _ => Ok(change),
        }
    }

    /// Who has the right to get another token got none.
    pub(crate) fn change_failed(&self, error: &KmsError) {
        *lock(&self.failed) = Some((Instant::now(), error.clone()));
    }

    pub(crate) fn current(&self) -> Option<Token> {
        lock(&self.current).clone()
    }

    /// The one of this moment, if it is another than the one that was refused.
    pub(crate) fn other_than(&self, refused: &Token) -> Option<Token> {
        self.current().filter(|token| token.number != refused.number)
    }

    pub(crate) fn replace(&self, text: &str) -> Result<Token, KmsError> {
        let header = header(text)?;
        let mut current = lock(&self.current);
        let number = match &*current {
            Some(token) if token.header == header => token.number,
            Some(token) => token.number + 1,
            None => 0,
        };
        let token = Token { header, number };
        *current = Some(token.clone());
        Ok(token)
    }

    /// The token that the file holds now. While it can't be read the last one goes on.
    ///
    /// # Errors
    /// [`KmsErrorKind::NoCredential`]: none was ever read.
    pub(crate) async fn read(&self, file: &TokenFile, within: Duration) -> Result<Token, KmsError> {
        let (path, last) = (file.path.clone(), *lock(&file.read));
        let no_answer = || Err("its disk does not answer".to_owned());
        let stuck = lock(&file.stuck).as_ref().is_some_and(|stuck| !stuck.is_finished());
        let found = if stuck {
            no_answer()
        } else {
            let mut found = spawn_blocking(move || read_if_changed(&path, last));
            match timeout(within, &mut found).await {
                Ok(Ok(found)) => found.map_err(|e| e.to_string()),
                Ok(Err(broken)) => Err(broken.to_string()),
                Err(_) => {
                    *lock(&file.stuck) = Some(found);
                    no_answer()
                }
            }
        };
        let taken = found.and_then(|found| match found {
            None => Ok(()),
            Some((stamp, text)) => {
                self.replace(&text).map_err(|e| e.to_string())?;
                *lock(&file.read) = Some(stamp);
                Ok(())
            }
        });
        lock(&file.unread).clone_from(&taken.as_ref().err().cloned());
        if let Some(token) = self.current() {
            return Ok(token);
        }
        let path = file.path.display();
        let why = taken.err().unwrap_or_default();
        Err(KmsError::new(
            KmsErrorKind::NoCredential,
            format!("no token can be read from {path}: {why}"),
        )
        .cure("look at the agent that writes the file, and at whether the node's user may read it; or give a token with coffer fs kms set-vault"))
    }
}

/// The cure names no address: after a recovery whoever could write a backing directory chose it, and no command is made of that.
fn no_token(config: &VaultConfig) -> KmsError {
    let key = config.master_key();
    KmsError::new(
        KmsErrorKind::Denied,
        format!("no token is known for the master key {key:?} in {config}"),
    )
    .cure(
        "if this is your KMS, give it its token (vault token create -role=<role>): \
         coffer fs kms set-vault <base-url> <master-key-name> --token-file FILE",
    )
}

/// Each of these is replaced whole, so a panic leaves it whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a token file holds now; `None` while it is the one that was read last.
type Found = Option<(Stamp, Zeroizing<String>)>;

pub(crate) fn read_if_changed(path: &Path, last: Option<Stamp>) -> io::Result<Found> {
    let found = fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    if last == Some(Stamp::of(&found)) {
        return Ok(None);
    }
    let file = File::open(path)?;
    let stamp = Stamp::of(&file.metadata()?);
    // Room for all of it from the start, so that growing leaves no copy behind.
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_MAX as usize + 1));
    file.take(TOKEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > TOKEN_MAX {
        return Err(io::Error::other("it is longer than any token"));
    }
    Ok(Some((stamp, Zeroizing::new(text.trim().to_owned()))))
}

impl Stamp {
    fn of(found: &fs::Metadata) -> Self {
        Self {
            inode: (found.dev(), found.ino()),
            changed: (found.ctime(), found.ctime_nsec()),
            len: found.len(),
        }
    }
}

/// A token in the form in which it is sent.
fn header(text: &str) -> Result<HeaderValue, KmsError> {
    let graphic = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let mut token = HeaderValue::from_str(text).ok().filter(|_| graphic).ok_or_else(|| {
        KmsError::new(
            KmsErrorKind::Invalid,
            "the token is empty or holds characters that no token has",
        )
        .of_input(KmsInput::Auth)
        .cure("give the token alone, without spaces or a line end")
    })?;
    token.set_sensitive(true);
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_read_when_it_has_changed() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("token");
        assert_eq!(read_if_changed(&path, None).unwrap_err().kind(), io::ErrorKind::NotFound);
        fs::write(&path, "hvs.one\n").unwrap();
        let (stamp, text) = read_if_changed(&path, None).unwrap().unwrap();
        assert_eq!(text.as_str(), "hvs.one");
        assert!(read_if_changed(&path, Some(stamp)).unwrap().is_none());
        // As agents write it: a new file in the place of the old one.
        fs::write(home.path().join("new"), "hvs.two").unwrap();
        fs::rename(home.path().join("new"), &path).unwrap();
        let (_, text) = read_if_changed(&path, Some(stamp)).unwrap().unwrap();
        assert_eq!(text.as_str(), "hvs.two");
        fs::write(&path, "x".repeat(TOKEN_MAX as usize + 1)).unwrap();
        assert!(read_if_changed(&path, None).is_err());
        assert!(read_if_changed(home.path(), None).is_err());
    }
}

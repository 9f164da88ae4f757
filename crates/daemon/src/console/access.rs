//! Who may use the console: one-time codes, and the sessions that they open.
//!
//! Whoever may speak over the unix socket may have a code made. It opens one session within a minute. Codes and the secrets of
//! sessions are 256 random bits, and only their digests are kept. All of it is in memory: a node that starts knows no session.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::mem;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use kms_core::UnixMillis;
use sha2::{Digest as _, Sha256};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::mutex::lock;

/// How long a code can be used.
pub(crate) const CODE_LIVES: Duration = Duration::from_secs(60);

/// How long a session lasts at most, and without anything being done in it.
pub(crate) const SESSION_LIVES: Duration = Duration::from_secs(12 * 3600);
pub(crate) const SESSION_IDLES: Duration = Duration::from_secs(30 * 60);

/// How many wrong codes are heard out in [`WRONG_WITHIN`]; then none is looked at until some of them are older than that.
const WRONG_MOST: usize = 10;
const WRONG_WITHIN: Duration = Duration::from_secs(60);

/// How soon it is seen that a session has ended by itself.
pub(crate) const LOOK_EVERY: Duration = Duration::from_secs(15);

/// Most codes and sessions at once; the oldest give way.
const CODES_MOST: usize = 16;
const SESSIONS_MOST: usize = 64;

type Digest = [u8; 32];

/// What a session may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Role {
    /// All that the command line can.
    Administrator,
    /// Look.
    Viewer,
}

/// A session.
#[derive(Debug, Clone)]
pub(crate) struct Session {
    /// Names it, to people and in the audit log; opens nothing.
    pub(crate) id: String,
    pub(crate) role: Role,
    /// Who had its code made.
    pub(crate) by: String,
    pub(crate) opened: UnixMillis,
    /// When something was last done in it.
    pub(crate) used: UnixMillis,
    /// What each of its forms carries, so that no other site's form does.
    pub(crate) csrf: String,
    /// The news that the next page shows.
    notice: Option<String>,
}

impl Session {
    fn lives(&self, now: UnixMillis) -> bool {
        self.ended_by(now).is_none()
    }

    /// What has ended it by now, if nobody did.
    fn ended_by(&self, now: UnixMillis) -> Option<&'static str> {
        if passed(self.used, SESSION_IDLES, now) {
            Some("ended, for nothing was done in it")
        } else if passed(self.opened, SESSION_LIVES, now) {
            Some("ended, at its greatest age")
        } else {
            None
        }
    }
}

/// Why no session is opened.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum NoEntry {
    /// The code is not known, too old, or used.
    Wrong,
    /// Too many were wrong: none is looked at for so long.
    TooMany(Duration),
}

struct Code {
    role: Role,
    by: String,
    made: UnixMillis,
}

#[derive(Default)]
struct State {
    codes: HashMap<Digest, Code>,
    sessions: HashMap<Digest, Session>,
    wrong: VecDeque<UnixMillis>,
    /// Sessions that ended and that nobody ended, and why they did.
    gone: Vec<(Session, &'static str)>,
}

impl State {
    /// Takes out the sessions that have ended by themselves.
    fn let_go(&mut self, now: UnixMillis) {
        let gone = &mut self.gone;
        self.sessions.retain(|_, session| match session.ended_by(now) {
            None => true,
            Some(why) => {
                gone.push((session.clone(), why));
                false
            }
        });
    }
}

/// The codes and sessions of a node.
#[derive(Default)]
pub(crate) struct Access {
    state: Mutex<State>,
    endings: watch::Sender<u64>,
}

impl Access {
    /// Makes a code that opens one session.
    pub(crate) fn invite(&self, role: Role, by: &str, now: UnixMillis) -> io::Result<String> {
        let code = secret()?;
        let mut state = lock(&self.state);
        state.codes.retain(|_, code| !passed(code.made, CODE_LIVES, now));
        while state.codes.len() >= CODES_MOST {
            let oldest = state.codes.iter().min_by_key(|(_, code)| code.made.0);
            let Some(oldest) = oldest.map(|(digest, _)| *digest) else { break };
            state.codes.remove(&oldest);
        }
        state.codes.insert(digest(&code), Code { role, by: by.to_owned(), made: now });
        Ok(code)
    }

    /// Opens a session with a code, which is used up. Answers the secret that shows whose session it is.
    pub(crate) fn log_in(
        &self,
        code: &str,
        now: UnixMillis,
    ) -> io::Result<Result<(String, Session), NoEntry>> {
        let (secret, csrf, id) = (secret()?, secret()?, hex::encode(random::<4>()?));
        let mut state = lock(&self.state);
        while state.wrong.front().is_some_and(|at| passed(*at, WRONG_WITHIN, now)) {
            state.wrong.pop_front();
        }
        if state.wrong.len() >= WRONG_MOST
            && let Some(first) = state.wrong.front()
        {
            let waited = Duration::from_millis(now.0.saturating_sub(first.0));
            return Ok(Err(NoEntry::TooMany(WRONG_WITHIN.saturating_sub(waited))));
        }
        let known = state.codes.remove(&digest(code));
        let Some(Code { role, by, .. }) = known.filter(|it| !passed(it.made, CODE_LIVES, now))
        else {
            state.wrong.push_back(now);
            return Ok(Err(NoEntry::Wrong));
        };
        state.let_go(now);
        while state.sessions.len() >= SESSIONS_MOST {
            let oldest = state.sessions.iter().min_by_key(|(_, session)| session.used.0);
            let oldest = oldest.map(|(digest, _)| *digest);
            let Some(oldest) = oldest.and_then(|it| state.sessions.remove(&it)) else { break };
            state.gone.push((oldest, "ended, for too many were open"));
        }
        let session = Session { id, role, by, opened: now, used: now, csrf, notice: None };
        state.sessions.insert(digest(&secret), session.clone());
        Ok(Ok((secret, session)))
    }

    /// The session with this secret, if it lives. What `acts` keeps it alive; what the page asks by itself does not.
    pub(crate) fn session(&self, secret: &str, acts: bool, now: UnixMillis) -> Option<Session> {
        let mut state = lock(&self.state);
        let session = state.sessions.get_mut(&digest(secret)).filter(|it| it.lives(now))?;
        if acts {
            session.used = now;
        }
        Some(session.clone())
    }

    /// All that live, the oldest first.
    pub(crate) fn sessions(&self, now: UnixMillis) -> Vec<Session> {
        let state = lock(&self.state);
        let mut all: Vec<Session> =
            state.sessions.values().filter(|session| session.lives(now)).cloned().collect();
        all.sort_by_key(|session| session.opened.0);
        all
    }

    /// The sessions that have ended since this was asked last, but for those that somebody ended, and why.
    pub(crate) fn gone(&self, now: UnixMillis) -> Vec<(Session, &'static str)> {
        let mut state = lock(&self.state);
        state.let_go(now);
        mem::take(&mut state.gone)
    }

    /// Ends the session with this id. Answers whether there was one.
    pub(crate) fn end(&self, id: &str) -> bool {
        let mut state = lock(&self.state);
        let before = state.sessions.len();
        state.sessions.retain(|_, session| session.id != id);
        let ended = state.sessions.len() < before;
        drop(state);
        self.endings.send_modify(|count| *count += 1);
        ended
    }

    /// Ends all of them, and the codes that could open others.
    pub(crate) fn end_all(&self) {
        let mut state = lock(&self.state);
        let gone = mem::take(&mut state.gone);
        *state = State { gone, ..State::default() };
        drop(state);
        self.endings.send_modify(|count| *count += 1);
    }

    /// Waits until the session with this id has ended.
    pub(crate) async fn ended(&self, id: &str, now: impl Fn() -> UnixMillis) {
        let mut endings = self.endings.subscribe();
        while self.sessions(now()).iter().any(|session| session.id == id) {
            // One that nobody uses ends by itself.
            let _ = timeout(LOOK_EVERY, endings.changed()).await;
        }
    }

    /// Leaves news for the next page of this session.
    pub(crate) fn tell(&self, id: &str, notice: String) {
        if let Some(session) = lock(&self.state).sessions.values_mut().find(|it| it.id == id) {
            session.notice = Some(notice);
        }
    }

    /// The news that were left, once.
    pub(crate) fn told(&self, id: &str) -> Option<String> {
        lock(&self.state).sessions.values_mut().find(|it| it.id == id)?.notice.take()
    }
}

fn passed(since: UnixMillis, life: Duration, now: UnixMillis) -> bool {
    u128::from(now.0.saturating_sub(since.0)) >= life.as_millis()
}

fn digest(secret: &str) -> Digest {
    Sha256::digest(secret.as_bytes()).into()
}

fn secret() -> io::Result<String> {
    Ok(URL_SAFE_NO_PAD.encode(random::<32>()?))
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: u64 = 1_000_000_000;

    fn at(seconds: u64) -> UnixMillis {
        UnixMillis(START + seconds * 1000)
    }

    fn logged_in(access: &Access, role: Role, now: UnixMillis) -> (String, Session) {
        let code = access.invite(role, "uid 0", now).unwrap();
        access.log_in(&code, now).unwrap().unwrap()
    }

    /// Why sessions have ended by themselves, in the order of the words.
    fn gone(access: &Access, now: UnixMillis) -> Vec<&'static str> {
        let mut whys: Vec<_> = access.gone(now).into_iter().map(|(_, why)| why).collect();
        whys.sort_unstable_by(|one, other| other.cmp(one));
        whys
    }

    #[test]
    fn a_code_opens_one_session_within_a_minute() {
        let access = Access::default();
        let code = access.invite(Role::Viewer, "uid 7", at(0)).unwrap();
        let (secret, session) = access.log_in(&code, at(59)).unwrap().unwrap();
        assert_eq!((session.role, session.by.as_str()), (Role::Viewer, "uid 7"));
        assert_eq!(access.session(&secret, true, at(60)).unwrap().id, session.id);
        assert_eq!(access.log_in(&code, at(59)).unwrap().unwrap_err(), NoEntry::Wrong, "twice");

        let late = access.invite(Role::Viewer, "uid 7", at(0)).unwrap();
        assert_eq!(access.log_in(&late, at(60)).unwrap().unwrap_err(), NoEntry::Wrong);
    }

    #[test]
    fn wrong_codes_are_heard_out_ten_times_a_minute() {
        let access = Access::default();
        let code = access.invite(Role::Viewer, "", at(0)).unwrap();
        for _ in 0..10 {
            assert_eq!(access.log_in("guess", at(1)).unwrap().unwrap_err(), NoEntry::Wrong);
        }
        let refused = NoEntry::TooMany(Duration::from_secs(59));
        for _ in 0..1000 {
            assert_eq!(access.log_in("guess", at(2)).unwrap().unwrap_err(), refused);
        }
        assert_eq!(access.log_in(&code, at(2)).unwrap().unwrap_err(), refused, "no hint either");
        let (code, later) = (access.invite(Role::Viewer, "", at(61)).unwrap(), at(61));
        assert!(access.log_in(&code, later).unwrap().is_ok());
    }

    #[test]
    fn a_session_ends_when_nothing_is_done_in_it_and_at_last() {
        let access = Access::default();
        let (idle, _) = logged_in(&access, Role::Administrator, at(0));
        assert!(access.session(&idle, false, at(1799)).is_some(), "this does not count");
        assert!(access.session(&idle, true, at(1800)).is_none());

        let (busy, _) = logged_in(&access, Role::Administrator, at(0));
        for minute in (0..12 * 60).step_by(20) {
            assert!(access.session(&busy, true, at(minute * 60)).is_some());
        }
        assert!(access.session(&busy, true, at(12 * 3600)).is_none());
        assert!(access.sessions(at(12 * 3600)).is_empty());
        let idle = "ended, for nothing was done in it";
        assert_eq!(gone(&access, at(12 * 3600)), [idle, "ended, at its greatest age"]);
        assert!(gone(&access, at(12 * 3600)).is_empty(), "each is told once");
    }

    #[test]
    fn a_session_that_was_ended_is_known_no_more() {
        let access = Access::default();
        let (secret, session) = logged_in(&access, Role::Administrator, at(0));
        let (other, _) = logged_in(&access, Role::Viewer, at(0));
        assert!(access.end(&session.id) && !access.end(&session.id));
        assert!(access.session(&secret, true, at(0)).is_none());
        assert!(access.session(&other, true, at(0)).is_some());
        access.end_all();
        assert!(access.session(&other, true, at(0)).is_none());
        assert!(gone(&access, at(0)).is_empty(), "whoever ended them records it");
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_for_the_end_of_a_session_sees_it_whoever_ends_it() {
        let access = Access::default();
        let began = tokio::time::Instant::now();
        let now = || UnixMillis(at(0).0 + began.elapsed().as_millis() as u64);
        for all in [false, true] {
            let (_, session) = logged_in(&access, Role::Viewer, now());
            let (_, other) = logged_in(&access, Role::Viewer, now());
            let ended = access.ended(&session.id, now);
            tokio::pin!(ended);
            timeout(Duration::from_secs(60), &mut ended).await.unwrap_err();
            access.end(&other.id);
            timeout(Duration::from_secs(60), &mut ended).await.unwrap_err();
            if all {
                access.end_all()
            } else {
                assert!(access.end(&session.id))
            }
            timeout(Duration::from_millis(1), &mut ended).await.unwrap();
        }
        let (_, session) = logged_in(&access, Role::Viewer, now());
        timeout(SESSION_IDLES + LOOK_EVERY, access.ended(&session.id, now)).await.unwrap();
    }

    #[test]
    fn the_oldest_give_way() {
        let access = Access::default();
        let first = access.invite(Role::Viewer, "", at(0)).unwrap();
        let codes: Vec<_> =
            (0..CODES_MOST).map(|_| access.invite(Role::Viewer, "", at(1)).unwrap()).collect();
        assert!(access.log_in(&first, at(2)).unwrap().is_err());
        assert!(access.log_in(&codes[0], at(2)).unwrap().is_ok());

        let (oldest, _) = logged_in(&access, Role::Viewer, at(1));
        for _ in 0..SESSIONS_MOST {
            logged_in(&access, Role::Viewer, at(3));
        }
        assert!(access.session(&oldest, true, at(4)).is_none());
        assert_eq!(access.sessions(at(4)).len(), SESSIONS_MOST);
        assert_eq!(gone(&access, at(4)), ["ended, for too many were open"; 2]);
    }

    #[test]
    fn news_are_told_once() {
        let access = Access::default();
        let (_, session) = logged_in(&access, Role::Viewer, at(0));
        access.tell(&session.id, "done".into());
        assert_eq!(access.told(&session.id).as_deref(), Some("done"));
        assert_eq!(access.told(&session.id), None);
    }
}

//! The KMS as it was last seen, and the life of our token, which is renewed in time.
//!
//! A look takes three requests, and one more where a secret id can be asked for, so it is taken every fifth minute: with the
//! renewals of a token that lives for a quarter of an hour or longer, a node at rest asks its KMS no more than once a minute. What
//! changes the configuration asks for a look at once. Of the master keys that filesystems have of their own each look at rest asks for
//! one, in turn, by two requests more, and the next look is so much later. A token that can be renewed is renewed when a third of what
//! was last granted is left, and when it is first seen, because how much of its life had passed before is not known.
//!
//! Where the credential lies on this machine (a token file) is looked at every few seconds, which asks no KMS. One that somebody put
//! there is used at once: by a look, and for what is locked.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use admin_api::{Exit, Problem};
use key_manager::{Error, KeyManager, KmsOverview, OwnMasterKey};
use kms_core::{
    CheckItem, CheckOutcome, Clock, CredentialStatus, Finding, KmsConfig, KmsErrorKind,
};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use tracing::Instrument as _;

use crate::audit::AuditLog;
use crate::keeper::Keeper;
use crate::mutex::lock;
use crate::problem;
use crate::seen::{Answered, OwnSeen, Seen, not_asked_yet};
use crate::warnings::Warnings;

/// Between two looks while all is well.
const LOOK_EVERY: Duration = Duration::from_secs(300);
/// As [`LOOK_EVERY`], for five requests.
const LOOK_EVERY_WITH_OWN: Duration = Duration::from_secs(600);
/// Between two looks when the KMS does not answer as it should. What waits for it asks by itself.
const LOOK_AGAIN: Duration = Duration::from_secs(60);
/// Between two looks at where the credential lies on this machine.
const LOOK_HERE_EVERY: Duration = Duration::from_secs(5);
/// What a check tries and no look does. That all else is well again a look shows.
const CHECKED_ALONE: [&str; 3] = ["may-encrypt", "may-rewrap", RENEWAL];
const RENEWAL: &str = "may-renew-self";
/// Shortest pause between two looks at a token that nothing renews and that ends.
const ENDING: Duration = Duration::from_secs(1);

/// Shortest pause, for tokens that live for seconds.
const SHORTEST: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Health {
    manager: Arc<KeyManager>,
    seen: Mutex<Option<Seen>>,
    /// When a look last showed all to be as it should, under the configuration of now.
    succeeded: Mutex<Option<Instant>>,
    /// Why the token could not be renewed.
    not_renewed: Mutex<Option<Problem>>,
    /// What checks found to fail that no look tries, and none has found to hold since.
    check_failed: Mutex<Vec<CheckItem>>,
    /// What keeps the credential from being read on this machine.
    unread: Mutex<Vec<Finding>>,
    /// Which of the credentials that lay there was read last; `None`: nobody has looked since the configuration was set.
    read: Mutex<Option<u64>>,
    /// What ends the way back to keys that hang on a KMS which is not set any more.
    others: Mutex<Vec<(Instant, Finding)>>,
    warnings: Warnings,
    /// When the first round had opened all filesystems.
    opened: Mutex<Option<Instant>>,
    wake: Notify,
}

impl Health {
    pub(crate) fn new(
        manager: Arc<KeyManager>,
        audit: Arc<AuditLog>,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let (seen, succeeded, not_renewed, check_failed, unread, read, others, opened) =
            Default::default();
        let (warnings, wake) = (Warnings::new(audit, clock), Notify::new());
        Self {
            manager,
            seen,
            succeeded,
            not_renewed,
            check_failed,
            unread,
            read,
            others,
            warnings,
            opened,
            wake,
        }
    }

    /// The last look; before there was one, what is recorded. Asks no KMS.
    pub(crate) async fn seen(&self) -> Result<Seen, Error> {
        let last = lock(&self.seen).clone();
        match last {
            Some(seen) => Ok(seen),
            None => Ok(not_asked_yet(self.manager.kms_recorded().await?)),
        }
    }

    /// How long ago a look last showed all to be as it should.
    pub(crate) fn since_success(&self) -> Option<Duration> {
        lock(&self.succeeded).map(|at| at.elapsed())
    }

    /// Whether the KMS did all that is needed of it when it was last looked at and checked.
    pub(crate) fn does_all(&self, seen: &Seen) -> bool {
        seen.answered().is_some_and(|answered| answered.kms.opens)
            && lock(&self.check_failed).is_empty()
    }

    /// Keeps what a check found to fail until one finds it to hold: the looks meanwhile do not try it.
    pub(crate) fn checked(&self, items: &[CheckItem]) {
        if is_refused_whole(items) {
            return;
        }
        let mut kept = lock(&self.check_failed);
        kept.retain(|before| {
            let again = items.iter().find(|item| is_same(item, before));
            again.map_or(!is_whole(items), |again| {
                again.outcome == CheckOutcome::Unknown || is_transient(again)
            })
        });
        let fails = |item: &&CheckItem| {
            CHECKED_ALONE.contains(&item.code.as_str())
                && item.failure.is_some_and(|kind| !kind.is_transient())
        };
        kept.extend(items.iter().filter(fails).cloned());
        drop(kept);
        self.tell_last();
    }

    /// What works today and will hurt later, as it was seen, with the time that the token has left.
    pub(crate) fn warnings(&self, seen: &Seen) -> Vec<Finding> {
        let told = seen.told();
        let ends_in = told.and_then(|told| told.credential().time_left);
        let mut found: Vec<_> = told.iter().flat_map(|told| told.findings()).collect();
        let unread = lock(&self.unread);
        found.extend(unread.iter().map(|unread| Finding { ends_in, ..unread.clone() }));
        if let (Some(problem), Some(_)) = (&*lock(&self.not_renewed), &seen.config) {
            let cure = problem.cure.as_deref().unwrap_or_default();
            let not_renewed = Finding::new("token-not-renewed", problem.to_string(), cure);
            found.push(Finding { ends_in, ..not_renewed });
        }
        found.extend(check_failed(&lock(&self.check_failed)));
        let others = lock(&self.others);
        found.extend(others.iter().map(|(at, finding)| finding.clone().after(at.elapsed())));
        found
    }

    /// Has each warning in the log and in the audit log when it begins and when it ends. What can't be told while the KMS does
    /// not answer goes on, but for what is `over` for all that is seen here.
    fn tell(&self, seen: &Seen, over: &[Finding]) {
        let id = |config: &KmsConfig| config.id.to_string();
        let subject = seen.config.as_ref().map(id).unwrap_or_default();
        let mut found: Vec<_> =
            self.warnings(seen).into_iter().map(|found| (subject.clone(), found)).collect();
        found.extend(failure(&seen.live).map(|failed| (subject, failed)));
        for own in &seen.own {
            let findings = own.live.iter().flatten().flat_map(|live| live.findings.clone());
            let all = findings.chain(failure(&own.live));
            found.extend(all.map(|found| (id(&own.config), found)));
        }
        let fails = seen.fails();
        let untold = |code: &str| fails && !over.iter().any(|over| over.code == code);
        self.warnings.tell(&found, untold);
    }

    /// As it was last seen, after something else has changed.
    fn tell_last(&self) {
        let seen = lock(&self.seen).clone();
        seen.iter().for_each(|seen| self.tell(seen, &[]));
    }

    /// Looks now. Takes as long as the KMS's deadline while it is away.
    pub(crate) async fn look(&self) -> Result<Seen, Error> {
        self.keep(self.manager.kms_overview().await?)
    }

    /// As [`Self::look`], at one of the master keys that filesystems have of their own.
    async fn glance(&self, turn: usize) -> Result<Seen, Error> {
        self.keep(self.manager.kms_glance(turn).await?)
    }

    fn keep(&self, overview: KmsOverview) -> Result<Seen, Error> {
        // The others were not asked then.
        let own_away = matches!(&overview.live, Some(Err(error)) if error.is_transient());
        let live = overview.live.map(|live| match live {
            Ok(kms) => Ok(Answered { kms, at: Instant::now() }),
            Err(error) => Err(problem::of_keys("the KMS does not answer as it should", &error)),
        });
        let config = overview.config.map(|(config, _)| config);
        let mut last = lock(&self.seen);
        let before = |id| {
            let mut before = last.iter().flat_map(|seen| &seen.own);
            before.find(|own| own.config.id == id).and_then(|own| own.live.clone())
        };
        let own = overview.own.into_iter().map(|OwnMasterKey { config, live }| {
            let title =
                format!("the master key {} does not answer as it should", config.master_key);
            let live = live.map(|live| live.map_err(|error| problem::of_keys(title, &error)));
            OwnSeen { live: live.or_else(|| before(config.id)), config, away: own_away }
        });
        let own = own.collect();
        let away = matches!(&live, Some(Err(problem)) if problem.exit == Exit::KmsUnreachable);
        let same = |seen: &&Seen| {
            let id = |config: &Option<KmsConfig>| config.as_ref().map(|config| config.id);
            away && id(&seen.config) == id(&config)
        };
        let before = last.as_ref().filter(same).and_then(|seen| seen.told().cloned());
        let (version, credential) = (overview.version, overview.credential);
        let seen = Seen { version, config, credential, live, before, own };
        if let Some(answered) = seen.answered().filter(|_| self.does_all(&seen)) {
            *lock(&self.succeeded) = Some(answered.at);
        }
        *last = Some(seen.clone());
        drop(last);
        self.tell(&seen, &[]);
        Ok(seen)
    }

    /// A filesystem has this master key of its own: if that is new, has a look taken.
    pub(crate) fn has_own(&self, master_key: &str) {
        let is = |own: &OwnSeen| own.config.master_key == master_key;
        if !lock(&self.seen).as_ref().is_some_and(|seen| seen.own.iter().any(is)) {
            self.look_soon();
        }
    }

    /// The configuration was changed: what was seen before counts no more.
    pub(crate) fn changed(&self) {
        *lock(&self.seen) = None;
        *lock(&self.succeeded) = None;
        *lock(&self.not_renewed) = None;
        lock(&self.check_failed).clear();
        lock(&self.unread).clear();
        *lock(&self.read) = None;
        self.wake.notify_one();
    }

    /// The first round has opened all filesystems: a look that failed at the same time was too early.
    pub(crate) fn all_open(&self) {
        *lock(&self.opened) = Some(Instant::now());
        if lock(&self.seen).as_ref().is_some_and(Seen::fails) {
            self.look_soon();
        }
    }

    /// Has a look taken beside whoever asks.
    pub(crate) fn look_soon(&self) {
        self.wake.notify_one();
    }

    /// Looks at where the credential lies on this machine, for ever. What was refused is tried anew with another one at once.
    pub(crate) async fn watch_here(&self, keeper: &Keeper) -> Infallible {
        loop {
            sleep(LOOK_HERE_EVERY).await;
            if self.look_here().await {
                self.look_soon();
                keeper.wake();
            }
        }
    }

    /// Answers whether there is another credential than before.
    async fn look_here(&self) -> bool {
        let seen = lock(&self.seen).clone();
        let Some(seen @ Seen { config: Some(KmsConfig { id, .. }), .. }) = &seen else {
            return false;
        };
        // Why there is none that could be used is what a look tells.
        let here = self.manager.credential_here(*id).await;
        let replaced = here.as_ref().is_ok_and(|here| {
            // What was read before the first look here was the first one.
            let before = lock(&self.read).replace(here.number);
            before.map_or(here.number > 1, |before| before != here.number)
        });
        self.tell_unread(seen, here.unwrap_or_default().findings);
        replaced
    }

    fn tell_unread(&self, seen: &Seen, found: Vec<Finding>) {
        let mut unread = lock(&self.unread);
        if *unread == found {
            return;
        }
        let over = std::mem::replace(&mut *unread, found);
        let can_be_read = unread.is_empty();
        drop(unread);
        self.tell(seen, &over);
        if can_be_read && seen.answered().is_none() {
            self.look_soon();
        }
    }

    /// Looks and renews, for ever.
    pub(crate) async fn watch(&self) -> Infallible {
        let mut granted: Option<Duration> = None;
        let (mut turn, mut woken) = (0, true);
        loop {
            let begun = Instant::now();
            let seen = if woken { self.look().await } else { self.glance(turn).await };
            turn = turn.wrapping_add(1);
            let pause = match seen {
                Ok(Seen { config: Some(config), live: Some(Ok(answered)), own, .. }) => {
                    let fails =
                        !answered.kms.opens || own.iter().any(|own| own.does_all() == Some(false));
                    let every = match own.is_empty() {
                        _ if fails => LOOK_AGAIN,
                        true => LOOK_EVERY,
                        false => LOOK_EVERY_WITH_OWN,
                    };
                    let span = tracing::error_span!("kms", kms = %config.id, master_key = config.master_key);
                    let renewed = self.renew_in_time(answered.credential(), &mut granted, every);
                    renewed.instrument(span).await
                }
                Ok(seen) if seen.fails() => {
                    let too_early = lock(&self.opened).is_some_and(|at| at >= begun);
                    if too_early { SHORTEST } else { LOOK_AGAIN }
                }
                Ok(_) => LOOK_EVERY,
                Err(error) => {
                    tracing::error!(%error, "the KMS configuration can't be read");
                    LOOK_AGAIN
                }
            };
            let pause = pause.min(self.renew_others().await);
            woken = tokio::select! {
                () = sleep(pause.max(SHORTEST)) => false,
                () = self.wake.notified() => true,
            };
            if woken {
                granted = None;
            }
        }
    }

    /// Keeps the way open to keys that hang on a KMS which is not set any more, and answers how long to wait at most until that is due
    /// again.
    async fn renew_others(&self) -> Duration {
        let renewed = match self.manager.renew_others().await {
            Ok(renewed) => renewed,
            Err(error) => {
                tracing::error!(%error, "what keys hang on can't be read");
                return LOOK_AGAIN;
            }
        };
        let (mut found, mut pause) = (Vec::new(), Duration::MAX);
        for (config, answer) in renewed {
            match answer {
                Ok(CredentialStatus { time_left, renewable, .. }) => {
                    pause = pause.min(time_left.map_or(Duration::MAX, |left| left / 3));
                    if time_left.is_some() && !renewable {
                        let ends = other_ends(&config, "its token can't be renewed");
                        found.push(Finding { ends_in: time_left, ..ends });
                    }
                }
                Err(error) => {
                    pause = pause.min(LOOK_AGAIN);
                    found.push(other_ends(&config, &error.to_string()));
                }
            }
        }
        let now = Instant::now();
        let found = found.into_iter().map(|finding| (now, finding)).collect();
        let before = std::mem::replace(&mut *lock(&self.others), found);
        let changed = lock(&self.others).iter().map(|(_, f)| f).ne(before.iter().map(|(_, f)| f));
        if changed {
            self.tell_last();
        }
        pause
    }

    /// Renews if it is time, and answers how long to wait until the next look.
    async fn renew_in_time(
        &self,
        credential: CredentialStatus,
        granted: &mut Option<Duration>,
        every: Duration,
    ) -> Duration {
        let (Some(left), true) = (credential.time_left, credential.renewable) else {
            // The look has told why.
            if lock(&self.not_renewed).take().is_some() {
                self.tell_last();
            }
            // What is told of a life that comes to its end is not much older than that.
            return credential.time_left.map_or(every, |left| every.min((left / 10).max(ENDING)));
        };
        if let Some(pause) = until_renewal(left, *granted) {
            return pause.min(every);
        }
        match self.manager.renew_credential().await {
            Ok(renewed) => {
                *lock(&self.not_renewed) = None;
                *granted = renewed.time_left;
                if let Some(Seen { live: Some(Ok(answered)), .. }) = &mut *lock(&self.seen) {
                    answered.renewed(renewed);
                }
                self.tell_last();
                if renewed.time_left > Some(left) {
                    let seconds_left = renewed.time_left.map(|t| t.as_secs());
                    tracing::info!(seconds_left, "the token was renewed");
                }
                let left = renewed.time_left.unwrap_or(every);
                until_renewal(left, *granted).unwrap_or(SHORTEST).min(every)
            }
            Err(error) => {
                tracing::warn!(%error, "the token can't be renewed");
                let failed = problem::of_keys("the token can't be renewed", &error);
                *lock(&self.not_renewed) = Some(failed);
                // One that is refused has an end from now on.
                if let (Error::Kms(refused), Some(Seen { live: Some(Ok(answered)), .. })) =
                    (&error, &mut *lock(&self.seen))
                    && !refused.kind().is_transient()
                {
                    answered.kms.credential.renewable = false;
                }
                *granted = Some(left);
                self.tell_last();
                (left / 10).min(LOOK_AGAIN)
            }
        }
    }
}

/// Whether both tell of the same thing. How a renewal is tried depends on what there is to renew.
fn is_same(one: &CheckItem, other: &CheckItem) -> bool {
    one.code == other.code && (one.what == other.what || one.code == RENEWAL)
}

fn is_transient(item: &CheckItem) -> bool {
    item.failure.is_some_and(KmsErrorKind::is_transient)
}

/// Whether the check came to its end. In one that did not, what is missing was not tried.
fn is_whole(items: &[CheckItem]) -> bool {
    !items
        .iter()
        .any(|item| is_transient(item) || (item.code == "answers" && item.failure.is_some()))
}

/// Whether it was the credential that was refused, and no permission: the looks see that, and that it is over.
fn is_refused_whole(items: &[CheckItem]) -> bool {
    items.iter().any(|item| item.code == "may-lookup-self" && item.failure.is_some())
        && !items
            .iter()
            .any(|item| item.code.starts_with("may-") && item.outcome == CheckOutcome::Passed)
}

/// What checks found to fail, as a warning.
fn check_failed(failed: &[CheckItem]) -> Option<Finding> {
    let each = failed.iter().map(|item| format!("{}: {}", item.what, item.found));
    let what = format!(
        "a check found this to fail, and none has found it to hold since: {}",
        each.collect::<Vec<_>>().join("; ")
    );
    let cure = failed.first()?.cure.as_deref().unwrap_or("mend what failed");
    Some(Finding::new("check-failed", what, format!("{cure}; then give coffer fs kms check")))
}

fn other_ends(config: &KmsConfig, why: &str) -> Finding {
    Finding::new(
        "old-kms-ends",
        format!(
            "keys hang still on the master key {} at {}, which is not the KMS that is set, and that will not open them for long: {why}",
            config.master_key, config.address
        ),
        "bring them along while their filesystems are unlocked: mend what the job names that moved the others (coffer job list), then give coffer fs kms rewrap",
    )
}

/// That a KMS does not answer as it should, as a warning.
fn failure<T>(live: &Option<Result<T, Problem>>) -> Option<Finding> {
    let problem = live.as_ref()?.as_ref().err()?;
    let cure = problem.cure.as_deref().unwrap_or_default();
    Some(Finding::new(problem.code.as_str(), problem.to_string(), cure))
}

/// How long until a renewal is due; `None` if it is. At two thirds of what was granted, and at first sight.
fn until_renewal(left: Duration, granted: Option<Duration>) -> Option<Duration> {
    left.checked_sub(granted? / 3).filter(|pause| !pause.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_renewed_at_two_thirds_of_its_life() {
        let hours = |n: u64| Duration::from_secs(n * 3600);
        assert_eq!(until_renewal(hours(768), None), None);
        assert_eq!(until_renewal(hours(768), Some(hours(768))), Some(hours(512)));
        assert_eq!(until_renewal(hours(257), Some(hours(768))), Some(hours(1)));
        assert_eq!(until_renewal(hours(256), Some(hours(768))), None);
        assert_eq!(until_renewal(hours(0), Some(hours(768))), None);
    }
}

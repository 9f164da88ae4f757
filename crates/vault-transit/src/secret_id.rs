//! What is left of the secret id that a node logs in with, as Vault tells it to who may ask: the token whose policy allows
//! `auth/<mount>/role/<role>/secret-id/lookup`. Vault tells it neither at the login nor of the token.

use std::time::{Duration, SystemTime};

use kms_core::{CredentialStatus, Finding};
use reqwest::StatusCode;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::answer::Answer;
use crate::findings::finding;
use crate::wire::{Envelope, SecretIdData};

/// What a look-up told.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum SecretId {
    /// Nothing: it was not asked for, or the token may not ask.
    #[default]
    Untold,
    /// Vault knows it no more: the login took its last use, or it was destroyed.
    Gone,
    /// It is good for logins.
    Good {
        /// How many; `None` for any number.
        logins: Option<u64>,
        /// Until when, by this machine's clock; `None` for ever.
        until: Option<SystemTime>,
    },
}

impl SecretId {
    /// Of an answer to the look-up that was given with the leave of Vault, or without.
    pub(crate) fn told(answer: &Answer) -> Self {
        // Vault has no words for one that it does not know.
        if answer.status == StatusCode::NO_CONTENT {
            return Self::Gone;
        }
        let told = answer.parse().filter(|_| answer.status.is_success());
        let Some(Envelope::<SecretIdData> { data, .. }) = told else { return Self::Untold };
        let Some(until) = expiration(&data.expiration_time, answer.at) else { return Self::Untold };
        let logins = Some(data.secret_id_num_uses).filter(|uses| *uses > 0);
        Self::Good { logins, until: until.map(|left| SystemTime::now() + left) }
    }

    /// How long it is good for logins, if that comes to an end.
    pub(crate) fn time_left(&self) -> Option<Duration> {
        let Self::Good { until: Some(until), .. } = self else { return None };
        Some(until.duration_since(SystemTime::now()).unwrap_or_default())
    }

    /// For how many logins it is good; `None` for any number, or if that is not known.
    pub(crate) fn logins_left(&self) -> Option<u64> {
        match self {
            Self::Untold => None,
            Self::Gone => Some(0),
            Self::Good { .. } if self.time_left() == Some(Duration::ZERO) => Some(0),
            Self::Good { logins, .. } => *logins,
        }
    }

    /// What keeps a later login from being granted. `mount` is where the logins go.
    pub(crate) fn findings(&self, mount: &str, token: &CredentialStatus) -> Vec<Finding> {
        let cure = format!(
            "make a new secret id, without secret_id_num_uses and secret_id_ttl (vault write -f auth/{mount}/role/<role>/secret-id), and \
             give it with coffer fs kms set-vault"
        );
        let mut found = Vec::new();
        match self {
            Self::Untold => {}
            Self::Gone => {
                let gone = finding(
                    "secret-id-gone",
                    "Vault knows the secret id no more: it is used up or was destroyed, the next login is refused, and after the \
                     token, which is renewed as long as that goes, no filesystem opens",
                    &cure,
                );
                found.push(Finding { ends_in: token.time_left, ..gone });
            }
            Self::Good { logins, .. } => {
                if let Some(logins) = logins {
                    let count = if *logins == 1 { "login" } else { "logins" };
                    found.push(finding(
                        "secret-id-uses-limited",
                        format!(
                            "the secret id was good for {logins} more {count} when the node last asked; each start takes one"
                        ),
                        &cure,
                    ));
                }
                if let Some(left) = self.time_left() {
                    let ends = finding(
                        "secret-id-expires",
                        "after the secret id's end no login is granted",
                        &cure,
                    );
                    found.push(Finding { ends_in: Some(left), ..ends });
                }
            }
        }
        found
    }
}

/// How long it is from `now` until then: `Some(None)` for one that never comes, `None` for a text that tells no time.
fn expiration(text: &str, now: SystemTime) -> Option<Option<Duration>> {
    let at = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    // Go's first moment stands for never.
    if at.year() <= 1 {
        return Some(None);
    }
    Some(Some(SystemTime::from(at).duration_since(now).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    #[test]
    fn ends_are_told_in_any_zone() {
        let now = UNIX_EPOCH + Duration::from_secs(1_795_912_421);
        let left = |text| expiration(text, now).map(|left| left.map(|left| left.as_secs()));
        assert_eq!(left("2026-11-29T01:33:42.917337917Z"), Some(Some(3_601)));
        assert_eq!(left("2026-11-29T07:03:42.5+05:30"), Some(Some(3_601)));
        assert_eq!(left("2026-11-28T23:33:42-01:00"), Some(Some(1)));
        assert_eq!(left("2026-11-28T00:00:00Z"), Some(Some(0)));
        assert_eq!(left("0001-01-01T00:00:00Z"), Some(None));
        for no_time in ["", "soon", "2026-11-29"] {
            assert_eq!(left(no_time), None, "{no_time}");
        }
    }

    #[test]
    fn what_ends_with_the_token_tells_its_life() {
        let hour = Some(Duration::from_secs(3600));
        let token = CredentialStatus { time_left: hour, renewable: true, periodic: true };
        let told = |secret_id: SecretId| {
            let found = secret_id.findings("approle", &token);
            found.into_iter().map(|finding| (finding.code, finding.ends_in)).collect::<Vec<_>>()
        };
        let over = SecretId::Good { logins: Some(1), until: Some(UNIX_EPOCH) };
        let expired = ("secret-id-expires".to_owned(), Some(Duration::ZERO));
        assert_eq!(told(over), [("secret-id-uses-limited".to_owned(), None), expired]);
        assert_eq!(told(SecretId::Gone), [("secret-id-gone".to_owned(), hour)]);
        assert_eq!(told(SecretId::Good { logins: None, until: None }), []);
        assert_eq!(told(SecretId::Untold), []);
    }
}

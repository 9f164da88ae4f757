//! The KMS as it was last seen.

use std::time::Duration;

use admin_api::{Exit, Problem};
use key_manager::{CredentialKind, KmsOverview, KmsVersion, LiveKey, LiveKms};
use kms_core::{CredentialStatus, Finding, KmsConfig};
use tokio::time::Instant;

/// What stands in the place of an answer before the first look.
pub(crate) const NOT_ASKED: &str = "kms-not-asked";

/// What is known of the KMS.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    /// Names the configuration, or that none is set.
    pub(crate) version: KmsVersion,
    /// The configuration; `None`: none is set.
    pub(crate) config: Option<KmsConfig>,
    /// What shows it who we are, as it is stored.
    pub(crate) credential: Option<CredentialKind>,
    /// What the KMS answered; `None` while none is set.
    pub(crate) live: Option<Result<Answered, Problem>>,
    /// What it answered before, while it can't be reached.
    pub(crate) before: Option<Answered>,
    /// The master keys that filesystems have of their own.
    pub(crate) own: Vec<OwnSeen>,
}

impl Seen {
    /// What the KMS answered, if it did at the last look.
    pub(crate) fn answered(&self) -> Option<&Answered> {
        self.live.as_ref()?.as_ref().ok()
    }

    /// Whether the KMS did not answer as it should at the last look.
    pub(crate) fn fails(&self) -> bool {
        matches!(self.live, Some(Err(_)))
    }

    /// What the KMS answered last.
    pub(crate) fn told(&self) -> Option<&Answered> {
        self.answered().or(self.before.as_ref())
    }
}

/// A master key that filesystems have of their own.
#[derive(Debug, Clone)]
pub(crate) struct OwnSeen {
    pub(crate) config: KmsConfig,
    /// What the KMS answered when it was last asked; `None`: it was not yet.
    pub(crate) live: Option<Result<LiveKey, Problem>>,
    /// The KMS was away at the last look, so that it could not be asked.
    pub(crate) away: bool,
}

impl OwnSeen {
    /// Whether the KMS did all that is needed of it; `None`: it was not asked yet.
    pub(crate) fn does_all(&self) -> Option<bool> {
        let live = self.live.as_ref()?;
        Some(!self.away && live.as_ref().is_ok_and(|live| live.opens))
    }
}

/// What a KMS answered.
#[derive(Debug, Clone)]
pub(crate) struct Answered {
    pub(crate) kms: LiveKms,
    pub(crate) at: Instant,
}

impl Answered {
    /// The credential with the time that it has left now.
    pub(crate) fn credential(&self) -> CredentialStatus {
        let passed = self.age();
        let credential = self.kms.credential;
        let time_left = credential.time_left.map(|left| left.saturating_sub(passed));
        CredentialStatus { time_left, ..credential }
    }

    /// The credential was renewed, and lives so long from now. What has an end of its own (a secret id) keeps that.
    pub(crate) fn renewed(&mut self, credential: CredentialStatus) {
        let (before, passed) = (self.kms.credential.time_left, self.age());
        (self.kms.credential, self.at) = (credential, Instant::now());
        for finding in &mut self.kms.findings {
            let Some(left) = finding.ends_in else { continue };
            let ends_with_it = before == Some(left);
            finding.ends_in = Some(match ends_with_it {
                true => credential.time_left.unwrap_or(Duration::MAX),
                false => left.saturating_sub(passed),
            });
        }
    }

    /// How long ago it was told.
    pub(crate) fn age(&self) -> Duration {
        self.at.elapsed()
    }

    /// What works today and will hurt later, with the time that is left now.
    pub(crate) fn findings(&self) -> impl Iterator<Item = Finding> {
        self.kms.findings.iter().cloned().map(|finding| finding.after(self.age()))
    }
}

/// Before the first look: what is recorded.
pub(crate) fn not_asked_yet(recorded: KmsOverview) -> Seen {
    let config = recorded.config.map(|(config, _)| config);
    let waits = Problem::new(
        Exit::KmsUnreachable,
        NOT_ASKED,
        "the KMS has not answered yet",
        "the node has just started, or its KMS was just changed",
    )
    .cure("look again in a moment; coffer fs kms waits for its answer");
    let live = config.is_some().then_some(Err(waits));
    let own = recorded.own.into_iter();
    let own = own.map(|own| OwnSeen { config: own.config, live: None, away: false });
    let (version, credential) = (recorded.version, recorded.credential);
    Seen { version, config, credential, live, before: None, own: own.collect() }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use kms_core::{KeyVersion, MasterKey};

    use super::*;

    #[test]
    fn a_renewal_lengthens_what_ends_with_the_credential() {
        let seconds = |n| Some(Duration::from_secs(n));
        let credential =
            |left| CredentialStatus { time_left: left, renewable: true, periodic: false };
        let ends = |code: &str, ends_in| Finding { ends_in, ..Finding::new(code, "", "") };
        let kms = LiveKms {
            master_key: MasterKey {
                name: "k".to_owned(),
                latest_version: KeyVersion(1),
                min_decryption_version: KeyVersion(1),
                created: BTreeMap::new(),
                deletion_allowed: false,
                exportable: false,
                backup_in_clear: false,
            },
            credential: credential(seconds(100)),
            opens: true,
            findings: vec![
                ends("the token's", seconds(100)),
                ends("its own", seconds(500)),
                ends("none", None),
            ],
        };
        let mut answered = Answered { kms, at: Instant::now() };
        answered.renewed(credential(seconds(1000)));
        let left: Vec<_> = answered.kms.findings.iter().map(|finding| finding.ends_in).collect();
        assert!(
            left[0] == seconds(1000) && left[1] <= seconds(500) && left[2].is_none(),
            "{left:?}"
        );
        assert!(left[1] > seconds(400), "{left:?}");
    }
}

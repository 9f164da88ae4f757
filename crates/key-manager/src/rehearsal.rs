//! Whether a start would succeed: every key opened from what is recorded, by a manager that has just been made.

use std::time::Duration;

use kms_core::{CheckItem, CheckOutcome, CredentialStatus, Ending};
use serde::{Deserialize, Serialize};
use tokio::sync::RwLockReadGuard;

use crate::status::FilesystemStatus;
use crate::unlock::{KeyState, LockReason};
use crate::{AuthKind, Error, FilesystemName, KeyManager, KmsOverview};

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rehearsal {
    /// Filesystems that open.
    pub open: u64,
    /// Filesystems that would stay locked, and why.
    pub shut: Vec<(FilesystemName, LockReason)>,
    /// Filesystems that an administrator locked, and that would stay so. Their keys were opened too.
    pub held: Vec<FilesystemName>,
    /// How long the credential lasts; `None`: it never ends, is renewed, or could not be asked.
    pub credential_left: Option<Duration>,
    /// How long a node can stay stopped: the life of a credential that only a running one renews.
    pub stopped_left: Option<Duration>,
    /// How often yet a node that starts is let in, as far as the KMS told, after this rehearsal: see [`kms_core::Kms::starts_left`].
    pub starts_left: Option<u64>,
    /// What ends first of all that a start needs and that ends: the credential, a certificate.
    pub until: Option<Ending>,
    /// Filesystems whose backing directory is out of reach or changed, and how. They may open all the same.
    pub out_of_reach: Vec<(FilesystemName, String)>,
    /// What else works today and will hurt later.
    pub warnings: Vec<String>,
}

impl KeyManager {
    /// Has moves wait before they record anything, as long as the answer lives. With a copy of the store that is made meanwhile the
    /// copies of wrapped keys agree then: none becomes newer, which would look as if an older store had been put back.
    pub async fn hold_still(&self) -> RwLockReadGuard<'_, ()> {
        self.still.read().await
    }

    /// Opens every key that is recorded, also those of filesystems that an administrator locked, and forgets them.
    /// For a manager over a copy of the store: that they were locked is undone in it.
    ///
    /// # Errors
    /// The store can't be read or written.
    pub async fn rehearse(&self) -> Result<Rehearsal, Error> {
        let mut held = Vec::new();
        for status in self.filesystem_statuses().await? {
            if status.filesystem.held && !matches!(status.key, KeyState::Deleting(_)) {
                held.push(status.filesystem.name.clone());
            }
        }
        for name in &held {
            self.release(name).await?;
        }
        // Before the keys are opened, which can take long: what logs in does so once for all of this.
        let KmsOverview { live, credential, .. } = self.kms_glance(0).await?;
        let live = live.and_then(Result::ok);
        let checked = match live {
            Some(_) => self.check_kms().await?,
            None => Vec::new(),
        };
        let shut = self.unlock_all().await?;
        let statuses = self.filesystem_statuses().await?;
        let open = statuses.iter().filter(|status| status.key == KeyState::Unlocked).count() as u64;
        // It opens, and what it is for can't be had.
        let out_of_reach = statuses.into_iter().filter_map(|status| {
            let FilesystemStatus { filesystem, copies_behind, .. } = status;
            Some((filesystem.name, copies_behind?))
        });
        let out_of_reach = out_of_reach.collect();
        self.forget_keys();

        let lasting = live.as_ref().map(|kms| kms.credential);
        let is_renewed = |c: &CredentialStatus| c.renewable && c.periodic;
        let credential_left = lasting.filter(|c| !is_renewed(c)).and_then(|c| c.time_left);
        // A file has a newer one by then, and who logs in gets another.
        let auth = credential.and_then(|credential| credential.auth);
        let stopped = lasting.filter(|c| is_renewed(c) && auth == Some(AuthKind::Token));
        let stopped_left = stopped.and_then(|c| c.time_left);
        let token = credential_left.map(|left| Ending { what: "the token".to_owned(), left });
        let (ends, starts_left) = match (&live, self.targets().await?) {
            (Some(_), Some(targets)) => {
                let kms = self.kms(targets.current.config.id).await?;
                (kms.ends(), kms.starts_left().await.unwrap_or(None))
            }
            _ => (Vec::new(), None),
        };
        // What is over and was not missed is not needed.
        let lasts = ends.into_iter().filter(|ending| !ending.left.is_zero());
        let until = token.into_iter().chain(lasts).min_by_key(|ending| ending.left);
        // What fails though all opens, as the renewal of the token, hurts later.
        let hurts = |item: &CheckItem| match item.outcome {
            CheckOutcome::Warning => true,
            CheckOutcome::Failed => shut.is_empty(),
            CheckOutcome::Passed | CheckOutcome::Unknown => false,
        };
        let warnings = checked.into_iter().filter(hurts).map(|item| item.found).collect();
        Ok(Rehearsal {
            open,
            shut,
            held,
            credential_left,
            stopped_left,
            starts_left,
            until,
            out_of_reach,
            warnings,
        })
    }
}

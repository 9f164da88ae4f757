//! Requests that can be repeated: a filesystem knows which one made it, so that the same one makes no second, whatever became of its answer.

use serde::{Deserialize, Serialize};

use crate::filesystems::Created;
use crate::records::{FilesystemRecord, FilesystemState};
use crate::{Error, KeyManager};

/// A request to make a filesystem that its sender may repeat. It is recorded with the filesystem, and forgotten with it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CreateRequest {
    /// What its sender calls it.
    pub key: String,
    /// What was asked: another text for each other request.
    pub digest: String,
}

impl KeyManager {
    /// The filesystem that this request made before; `None`: it is the first one of its key.
    ///
    /// # Errors
    /// [`Error::RequestReused`]: another request has the key. [`Error::AtWork`], [`Error::Deleting`]: what it made is not there
    /// yet, or not any more.
    pub(crate) async fn made_by(&self, request: &CreateRequest) -> Result<Option<Created>, Error> {
        let of_key =
            |fs: &FilesystemRecord| fs.request.as_ref().is_some_and(|it| it.key == request.key);
        let Some(filesystem) = self.filesystems().await?.into_iter().find(of_key) else {
            return Ok(None);
        };
        if filesystem.request.as_ref() != Some(request) {
            return Err(Error::RequestReused { key: request.key.clone() });
        }
        if filesystem.state != FilesystemState::Ready {
            return match self.filesystem(&filesystem.name).await {
                Err(deleting @ Error::Deleting { .. }) => Err(deleting),
                // A node that ended left it half made, and it is about to be undone.
                _ => Err(Error::AtWork { name: filesystem.name.to_string() }),
            };
        }
        let (_, entry) = self.key_entry(filesystem.key_id).await?;
        Ok(Some(Created { filesystem, exposed: entry.exposed }))
    }
}

//! Copies of wrapped keys in places that may not answer.

use std::sync::Arc;

use async_trait::async_trait;
use kms_core::{FilesystemSite, HolderError, KeyCopy, KeyEnvelope, KeyHolder};
use tokio::runtime::Handle;

use crate::disks::Disks;

/// A [`KeyHolder`] over one whose work blocks: it does that beside the runtime, and gives a place up that does not answer.
#[derive(Debug)]
pub struct Patience<H> {
    holder: Arc<H>,
    disks: Disks,
}

impl<H: KeyHolder + 'static> Patience<H> {
    /// Asks `holder`, and waits for it as long as is reasonable.
    pub fn new(holder: H) -> Self {
        Self { holder: Arc::new(holder), disks: Disks::default() }
    }

    async fn ask<T: Send + 'static>(
        &self,
        site: &FilesystemSite,
        doing: &'static str,
        act: impl FnOnce(&Handle, &H, &FilesystemSite) -> T + Send + 'static,
    ) -> Result<T, HolderError> {
        let (holder, of, runtime) = (Arc::clone(&self.holder), site.clone(), Handle::current());
        let answer = self.disks.ask(&site.backing, move || act(&runtime, &holder, &of)).await;
        answer.map_err(|why| HolderError {
            location: site.backing.display().to_string(),
            doing,
            source: why.into(),
        })
    }
}

#[async_trait]
impl<H: KeyHolder + 'static> KeyHolder for Patience<H> {
    async fn list(&self, site: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
        let list = |runtime: &Handle, holder: &H, site: &FilesystemSite| {
            runtime.block_on(holder.list(site))
        };
        match self.ask(site, "read", list).await {
            Ok(listed) => listed,
            // There may be a copy.
            Err(silence) => {
                let location = site.backing.display().to_string();
                Ok(vec![KeyCopy { location, envelope: Err(silence), uploaded: false }])
            }
        }
    }

    async fn replace(
        &self,
        site: &FilesystemSite,
        location: &str,
        envelope: &KeyEnvelope,
    ) -> Result<(), HolderError> {
        let (location, envelope) = (location.to_owned(), envelope.clone());
        let replace = move |runtime: &Handle, holder: &H, site: &FilesystemSite| {
            runtime.block_on(holder.replace(site, &location, &envelope))
        };
        self.ask(site, "replaced", replace).await?
    }

    async fn renew(&self, site: &FilesystemSite, wanted: &KeyEnvelope) -> Result<u64, HolderError> {
        let wanted = wanted.clone();
        let renew = move |runtime: &Handle, holder: &H, site: &FilesystemSite| {
            runtime.block_on(holder.renew(site, &wanted))
        };
        self.ask(site, "replaced", renew).await?
    }
}

#[cfg(test)]
mod tests {
    use kms_core::KeyId;

    use super::*;

    /// Breaks when it is asked.
    #[derive(Debug)]
    struct Broken;

    #[async_trait]
    impl KeyHolder for Broken {
        async fn list(&self, _: &FilesystemSite) -> Result<Vec<KeyCopy>, HolderError> {
            panic!("it broke")
        }

        async fn replace(
            &self,
            _: &FilesystemSite,
            _: &str,
            _: &KeyEnvelope,
        ) -> Result<(), HolderError> {
            panic!("it broke")
        }
    }

    #[tokio::test]
    async fn a_place_without_an_answer_may_have_a_copy() {
        let site = FilesystemSite {
            name: "home".to_owned(),
            key_id: KeyId::random(),
            previous: None,
            backing: "/srv/home".into(),
        };
        let copies = Patience::new(Broken).list(&site).await.unwrap();
        let error = copies[0].envelope.as_ref().unwrap_err().to_string();
        assert!(error.contains("/srv/home"), "{error}");
        assert_eq!(copies.len(), 1);
    }
}

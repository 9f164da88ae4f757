//! What the server knows, and the file in which it outlives a restart.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    answer::Refusal,
    app_role::AppRole,
    policy::{DEFAULT_POLICY, Policy},
    token::Tokens,
    transit::Transit,
};

/// Everything that a request may change.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) root_token: String,
    pub(crate) unseal_key: String,
    pub(crate) seal: Seal,
    pub(crate) cluster_id: String,
    pub(crate) mounts: Mounts<Transit>,
    pub(crate) app_roles: Mounts<AppRole>,
    pub(crate) policies: BTreeMap<String, Policy>,
    pub(crate) tokens: Tokens,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Seal {
    #[default]
    NotInitialized,
    Sealed,
    Open,
}

impl State {
    /// Opens the seal under this root token and unseal key, in place of those of an earlier start.
    pub(crate) fn initialize(
        &mut self,
        root_token: String,
        unseal_key: String,
        now: u64,
    ) -> Result<(), Refusal> {
        if root_token != self.root_token {
            self.tokens.remove(&self.root_token);
            self.tokens.insert_root(&root_token, now)?;
            self.root_token = root_token;
        }
        if self.cluster_id.is_empty() {
            self.cluster_id = Uuid::new_v4().to_string();
        }
        self.unseal_key = unseal_key;
        self.seal = Seal::Open;
        if !self.policies.contains_key("default") {
            let default = Policy::parse(DEFAULT_POLICY).map_err(|e| Refusal::internal(&e))?;
            self.policies.insert("default".to_owned(), default);
        }
        Ok(())
    }

    pub(crate) fn is_sealed(&self) -> bool {
        self.seal != Seal::Open
    }

    /// Whether the thing at a path is there, for paths where that tells a creation from an update.
    pub(crate) fn exists(&self, path: &[&str]) -> Option<bool> {
        if let ["auth", "token", path @ ..] = path {
            return self.tokens.exists(path);
        }
        match (self.app_roles.get(path), self.mounts.get(path)) {
            (Some((app_role, path)), _) => app_role.exists(path),
            (None, Some((transit, path))) => transit.exists(path),
            (None, None) => None,
        }
    }
}

/// What is mounted where; paths without slashes at the ends.
#[derive(Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Mounts<T>(pub(crate) BTreeMap<String, T>);

impl<T> Default for Mounts<T> {
    fn default() -> Self {
        Self(BTreeMap::new())
    }
}

impl<T> Mounts<T> {
    /// What is mounted above a path, and the rest of the path.
    pub(crate) fn get<'p, 's>(&self, path: &'p [&'s str]) -> Option<(&T, &'p [&'s str])> {
        let depth = self.depth(path)?;
        let (mount, rest) = path.split_at(depth);
        Some((self.0.get(&mount.join("/"))?, rest))
    }

    /// As [`Self::get`], to change it.
    pub(crate) fn find<'p, 's>(&mut self, path: &'p [&'s str]) -> Option<(&mut T, &'p [&'s str])> {
        let depth = self.depth(path)?;
        let (mount, rest) = path.split_at(depth);
        Some((self.0.get_mut(&mount.join("/"))?, rest))
    }

    fn depth(&self, path: &[&str]) -> Option<usize> {
        (1..path.len()).find(|depth| self.0.contains_key(&path[..*depth].join("/")))
    }

    /// The mount that lies on this path, above it or below it.
    pub(crate) fn in_the_way(&self, path: &str) -> Option<&String> {
        let within = |inner: &str, outer: &str| {
            inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        };
        self.0.keys().find(|mount| within(mount, path) || within(path, mount))
    }
}

/// The state file: JSON with keys and tokens in the clear, for its owner alone.
pub(crate) struct Saved {
    path: PathBuf,
    /// What lies in the file, so that only changes are written.
    content: Vec<u8>,
}

impl Saved {
    /// Reads the file, if there is one.
    pub(crate) fn open(path: PathBuf) -> io::Result<(Self, Option<State>)> {
        let content = match fs::read(&path) {
            Ok(content) => content,
            Err(e) if e.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(e) => return Err(named(&path, "cannot be read", e)),
        };
        let state = if content.is_empty() {
            None
        } else {
            let damaged =
                |e| named(&path, "is no state of this server; move it away to start anew", e);
            Some(serde_json::from_slice(&content).map_err(|e| damaged(io::Error::from(e)))?)
        };
        Ok((Self { path, content }, state))
    }

    /// Writes the state if it has changed. The file is the old or the new one at any moment.
    pub(crate) fn save(&mut self, state: &State) -> io::Result<()> {
        let content = serde_json::to_vec_pretty(state)?;
        if content == self.content {
            return Ok(());
        }
        let directory = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        let directory = directory.unwrap_or(Path::new("."));
        let write = || -> io::Result<()> {
            // tempfile creates with mode 0600.
            let mut file = tempfile::NamedTempFile::new_in(directory)?;
            file.write_all(&content)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            fs::File::open(directory)?.sync_all()
        };
        write().map_err(|e| named(&self.path, "cannot be written", e))?;
        self.content = content;
        Ok(())
    }
}

fn named(path: &Path, what: &str, e: io::Error) -> io::Error {
    io::Error::new(e.kind(), format!("the state file {} {what}: {e}", path.display()))
}

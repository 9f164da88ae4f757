//! What happens to the server itself: what administrators, operators and clocks do.

use serde::{Deserialize, Serialize};

use crate::{
    answer::Refusal,
    clock::Clock,
    state::{Seal, State},
    transit::Transit,
};

/// Something that happens to the server. Keys are named by their paths, such as `transit/keys/coffer`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum Event {
    /// It is sealed.
    Seal,
    /// Its seal is opened, without a key.
    Unseal,
    /// The clock by which tokens live jumps, backwards if this is negative.
    ClockJump {
        /// How far.
        seconds: i64,
    },
    /// The key gets a new version.
    RotateKey {
        /// Which.
        key: String,
    },
    /// The key is deleted, whether or not that is allowed.
    DeleteKey {
        /// Which.
        key: String,
    },
    /// The key is deleted, if it is there, and another one made under its name.
    RecreateKey {
        /// Which.
        key: String,
    },
}

impl Event {
    /// Fails if there is no such mount or key, or nothing that could be sealed.
    pub(crate) fn happen(&self, state: &mut State, clock: &Clock) -> Result<(), Refusal> {
        let now = clock.now();
        match self {
            Self::Seal | Self::Unseal if state.seal == Seal::NotInitialized => {
                return Err(Refusal::invalid("Vault is not initialized"));
            }
            Self::Seal => state.seal = Seal::Sealed,
            Self::Unseal => state.seal = Seal::Open,
            Self::ClockJump { seconds } => clock.jump(*seconds),
            Self::RotateKey { key } => {
                let (transit, name) = find(state, key)?;
                transit.rotate(name, now)?;
            }
            Self::DeleteKey { key } => {
                let (transit, name) = find(state, key)?;
                if !transit.remove(name) {
                    return Err(Refusal::invalid(format!("there is no {key}")));
                }
            }
            Self::RecreateKey { key } => {
                let (transit, name) = find(state, key)?;
                transit.remove(name);
                transit.make(name, now)?;
            }
        }
        Ok(())
    }
}

/// The engine that a key is in, and its name there.
fn find<'a>(state: &'a mut State, key: &'a str) -> Result<(&'a mut Transit, &'a str), Refusal> {
    let segments: Vec<_> = key.split('/').collect();
    match state.mounts.find(&segments) {
        Some((transit, ["keys", name])) => Ok((transit, *name)),
        _ => Err(Refusal::invalid(format!("{key} is no path of a key, such as transit/keys/k"))),
    }
}

//! Where a node keeps its state, for `serve` and for those who talk to it: one answer for both.

use std::env;
use std::path::{Path, PathBuf};

/// `/var/lib/coffer` as root, else `coffer` under the XDG state directory (`$XDG_STATE_HOME`, or
/// `~/.local/state`; XDG Base Directory Specification 0.8, which ignores relative paths).
/// Without a home it is the system's place again, where the first write says what is missing.
pub fn default_state_dir() -> PathBuf {
    let system = PathBuf::from("/var/lib/coffer");
    if is_root() {
        return system;
    }
    let absolute = |name| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    absolute("XDG_STATE_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
        .map_or(system, |state| state.join("coffer"))
}

/// The admin socket of the node with this state directory, unless it was told another place.
pub fn socket_in(state_dir: &Path) -> PathBuf {
    state_dir.join("coffer.sock")
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

//! Filesystems.

use admin_api::{Filesystem, FilesystemState, WrappedBy};

use crate::Fields;
use crate::quantity::moment;

/// A filesystem.
pub fn filesystem(fs: &Filesystem) -> Fields {
    let exposed = if fs.exposed {
        format!(
            "yes; its key has lain under local wrapping and may be compromised\nwith a KMS set, coffer fs rekey {} gives it a new one",
            fs.name
        )
    } else {
        "no".to_owned()
    };
    let mut lines =
        vec![("filesystem", fs.name.clone()), ("state", filesystem_state(fs.state).to_owned())];
    if let Some(problem) = &fs.problem {
        lines.push(("why", problem.detail.clone()));
        if let Some(cure) = &problem.cure {
            lines.push(("do", cure.clone()));
        }
    }
    lines.extend([("backing", fs.backing.to_string()), ("key", fs.key_id.clone())]);
    if let Some(previous) = &fs.previous_key_id {
        let stands = format!(
            "{previous}; the filesystem is being re-encrypted, and what is not done lies under this one"
        );
        lines.push(("old key", stands));
    }
    lines.extend([("wrapped by", wrapped_by(&fs.wrapped_by))]);
    lines.extend(fs.own_master_key.clone().map(|key| ("own master key", key)));
    lines.extend([("exposed", exposed), ("made", moment(fs.created_at))]);
    lines
}

/// What wraps its key.
pub fn wrapped_by(by: &WrappedBy) -> String {
    match by.kind.as_str() {
        "local" => "a local key".to_owned(),
        _ => format!("{} v{}", by.master_key, by.version),
    }
}

/// Whether it is open.
pub const fn filesystem_state(state: FilesystemState) -> &'static str {
    match state {
        FilesystemState::Unlocked => "unlocked",
        FilesystemState::Unlocking => "unlocking",
        FilesystemState::Locked => "locked",
        FilesystemState::Deleting => "deleting",
    }
}

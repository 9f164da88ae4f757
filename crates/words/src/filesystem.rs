//! Filesystems.

use admin_api::{Filesystem, FilesystemState, WrappedBy};

use crate::{Fields, Value};

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
    let mut fields = Fields::default();
    fields.add("filesystem", fs.name.clone());
    fields.add("state", filesystem_state(fs.state));
    if let Some(problem) = &fs.problem {
        fields.add("why", problem.detail.clone());
        if let Some(cure) = &problem.cure {
            fields.add("do", cure.clone());
        }
    }
    fields.add("backing", fs.backing.to_string());
    fields.add("key", fs.key_id.clone());
    if let Some(previous) = &fs.previous_key_id {
        let stands = format!(
            "{previous}; the filesystem is being re-encrypted, and what is not done lies under this one"
        );
        fields.add("old key", stands);
    }
    fields.add("wrapped by", wrapped_by(&fs.wrapped_by));
    if let Some(key) = &fs.own_master_key {
        fields.add("own master key", key.clone());
    }
    fields.add("exposed", exposed);
    fields.add("made", Value::Moment(fs.created_at));
    fields
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

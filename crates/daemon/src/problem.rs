//! Failures of the parts as problems for the one who asked.

use std::path::Path;

use admin_api::{Exit, Problem};
use key_manager::{Class, Error, Input, LockReason};
use kms_core::KmsErrorKind::{
    self, Denied, KeyMissing, KeyReplaced, KeyUnfit, NoCredential, VersionTooOld,
};
use kms_core::KmsInput;

/// A filesystem that another process or node has unlocked.
pub(crate) const IN_USE: &str = "filesystem-in-use";

/// What failed, with the key manager's reason.
pub fn of_keys(title: impl Into<String>, error: &Error) -> Problem {
    let title = title.into();
    let detail = match error {
        Error::Kms(error) => error.chain(),
        other => other.to_string(),
    };
    // Some reasons begin with what failed.
    let detail = match detail.strip_prefix(&format!("{title}: ")) {
        Some(why) => why.to_owned(),
        None => detail,
    };
    if let Error::Volume { source, .. } = error
        && let Some(reason) = source.downcast_ref::<filesystem::Error>()
    {
        return of_filesystem(title, reason);
    }
    let problem = Problem::new(exit(error.class()), error.code(), title, detail);
    let problem = match error.class() {
        Class::Unknown => problem.with_status(404),
        _ if matches!(error, Error::KmsChanged) => problem.with_status(412),
        _ if matches!(error, Error::RequestReused { .. }) => problem.with_status(422),
        _ => problem,
    };
    match error.cure() {
        Some(cure) => problem.cure(cure),
        None => problem,
    }
}

/// As [`of_keys`], with what of the request is the cause.
pub(crate) fn of_request(title: impl Into<String>, error: &Error) -> Problem {
    let problem = of_keys(title, error);
    match error.input() {
        Some(input) => problem.field(field(input)),
        None => problem,
    }
}

/// What requests call it.
const fn field(input: Input) -> &'static str {
    match input {
        Input::Name => "name",
        Input::Backing => "backing",
        Input::Kms(KmsInput::Address) => "base_url",
        Input::Kms(KmsInput::MasterKey) => "master_key",
        Input::Kms(KmsInput::Setting(setting)) => setting,
        Input::Kms(KmsInput::LoginPath) => "auth_path",
        Input::Kms(KmsInput::Identity) => "client_cert",
        Input::Kms(_) => "token",
    }
}

/// What failed, with the filesystem's reason.
pub(crate) fn of_filesystem(title: impl Into<String>, error: &filesystem::Error) -> Problem {
    use filesystem::ErrorKind;
    let (exit, code) = match error.kind() {
        ErrorKind::InUse => (Exit::State, IN_USE),
        ErrorKind::Damaged => (Exit::NotAuthentic, "filesystem-damaged"),
        ErrorKind::Full => (Exit::Failed, "disk-full"),
        ErrorKind::Invalid => (Exit::State, "filesystem-unfit"),
        ErrorKind::NotFound => (Exit::State, "unknown"),
        _ => (Exit::Failed, "filesystem-io"),
    };
    let problem = Problem::new(exit, code, title, error.to_string()).cure(error.how_to_mend());
    if error.kind() == ErrorKind::NotFound { problem.with_status(404) } else { problem }
}

/// A disk that does not answer.
pub(crate) fn of_silence(title: impl Into<String>, place: &Path, why: &str) -> Problem {
    Problem::new(Exit::Failed, "filesystem-io", title, format!("{}: {why}", place.display()))
        .cure("check the disk and its mount")
}

/// Why a filesystem is not open.
pub(crate) fn of_lock(title: impl Into<String>, reason: &LockReason) -> Problem {
    let exit = match reason.transient {
        true if reason.code == NoCredential.code() => Exit::Failed,
        true => Exit::KmsUnreachable,
        false => Exit::State,
    };
    let problem = Problem::new(exit, &reason.code, title, reason.why.clone());
    match &reason.cure {
        Some(cure) => problem.cure(cure.clone()),
        None => problem,
    }
}

/// How a command ends that tells of a filesystem that would stay locked for this reason.
pub(crate) fn exit_of_lock(reason: &LockReason) -> Exit {
    let refusals = [Denied, KeyMissing, KeyReplaced, KeyUnfit, VersionTooOld];
    match refusals.iter().any(|kind| kind.code() == reason.code) {
        true => Exit::KmsRefused,
        false => of_lock("", reason).exit,
    }
}

/// Something that Coffer itself did wrong.
pub(crate) fn internal(title: impl Into<String>, why: impl ToString) -> Problem {
    Problem::new(Exit::Failed, "internal", title, why.to_string())
        .cure("see the node's log, and report this with it")
}

/// How a command ends that meets this failure of the KMS.
pub(crate) const fn exit_of_kms(kind: KmsErrorKind) -> Exit {
    exit(Class::of_kms(kind))
}

const fn exit(class: Class) -> Exit {
    match class {
        Class::Failed => Exit::Failed,
        Class::Usage => Exit::Usage,
        Class::KmsUnreachable => Exit::KmsUnreachable,
        Class::KmsRefused => Exit::KmsRefused,
        Class::State | Class::Unknown => Exit::State,
        Class::NotAuthentic => Exit::NotAuthentic,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_failed_is_said_once() {
        let error = Error::Encrypted { count: 1, names: "home".into() };
        let problem = of_keys("the KMS can't be removed", &error);
        assert_eq!(problem.detail, "1 encrypted filesystem(s) need it (home)");
        assert_eq!((problem.exit, problem.status), (Exit::State, 409));
    }

    #[test]
    fn a_token_that_is_missing_here_is_no_kms_that_is_away() {
        for (kind, exit) in [(NoCredential, Exit::Failed), (Denied, Exit::KmsRefused)] {
            let error = Error::Kms(kms_core::KmsError::new(kind, "it is gone"));
            let reason = LockReason::from(&error);
            assert_eq!((exit_of_lock(&reason), of_keys("", &error).exit), (exit, exit));
            assert_eq!(reason.transient, kind == NoCredential, "it is tried again by itself");
        }
    }

    #[test]
    fn what_was_changed_since_it_was_looked_at_is_412() {
        let problem = of_keys("the KMS can't be set", &Error::KmsChanged);
        assert_eq!(
            (&*problem.code, problem.exit, problem.status),
            ("kms-changed", Exit::State, 412)
        );
    }

    #[test]
    fn what_does_not_exist_is_404() {
        let problem = of_keys("it can't be shown", &Error::Unknown { what: "filesystem x".into() });
        assert_eq!((problem.exit, problem.status), (Exit::State, 404));
    }
}

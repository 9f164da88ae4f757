//! The codes of problems: words that stay, for programs.

use crate::Exit::{self, Failed, KmsRefused, KmsUnreachable, NotAuthentic, Partly, State, Usage};

/// What a code means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Code {
    /// The word.
    pub code: &'static str,
    /// How a command line ends that meets it as the answer to what it asked.
    pub exit: Exit,
    /// The HTTP status of that answer; `None`: it stands only inside of what is shown, as why a filesystem is locked or a job
    /// waits or has failed.
    pub status: Option<u16>,
    /// What it says.
    pub what: &'static str,
}

/// All that a node answers. More can come; none changes its meaning.
pub const CODES: &[Code] = &[
    answer(
        "bad-request",
        Usage,
        400,
        "the request is not understood: its path, query, headers or body",
    ),
    answer("invalid", Usage, 400, "something in the request can't be so"),
    answer("not-allowed", State, 403, "the request comes from another user"),
    answer("no-such-resource", Usage, 404, "there is no such path; 405: it has no such method"),
    answer("unknown", State, 404, "there is no such filesystem, job or file"),
    answer("foreign-host", Usage, 421, "the request to the console names another host"),
    answer("foreign-origin", State, 403, "the request to the console comes from another page"),
    answer("content-type", Usage, 415, "the console does not take content of this type there"),
    answer("no-session", State, 401, "no session of the console is open, or it has ended"),
    answer("csrf", State, 403, "the request does not carry the session's token"),
    answer("read-only", State, 403, "the session may only look"),
    answer("code-wrong", State, 403, "the code that opens a session of the console is not good"),
    answer(
        "too-many-codes",
        State,
        429,
        "too many codes were wrong: none is looked at for a while",
    ),
    answer("not-confirmed", Usage, 400, "what was typed in the console is not what was asked for"),
    answer("token-missing", Usage, 400, "nothing was typed that shows Vault who the node is"),
    answer("no-such-page", Usage, 404, "the console has no such page"),
    answer("console-plain", Usage, 400, "beyond loopback the console takes a certificate"),
    answer("console-address", State, 409, "the console's address can't be listened on"),
    answer("console-certificate", State, 409, "the console's certificate or key can't be used"),
    answer("kms-changed", State, 412, "another KMS configuration is set than If-Match names"),
    answer("too-slow", Usage, 408, "the body of a request to the console takes too long"),
    answer("console-host", Usage, 400, "no browser can have this for a name of the console's host"),
    answer("too-large", Usage, 413, "the body has more than 1 MiB"),
    answer("unsupported-media-type", Usage, 415, "the body is not said to be application/json"),
    answer("idempotency-key-reused", Usage, 422, "another request has this Idempotency-Key"),
    answer("backing-away", State, 409, "a backing directory is out of reach"),
    answer("busy", State, 409, "a job, or another request, is at it"),
    answer("changed", State, 409, "somebody else changed the same thing at the same moment"),
    answer("deleting", State, 409, "the filesystem is being deleted"),
    answer(
        "encrypted-filesystems-exist",
        State,
        409,
        "filesystems need the KMS that was to be removed",
    ),
    answer("exists", State, 409, "the name is taken"),
    answer("filesystem-in-use", State, 409, "another process or node has the filesystem"),
    answer("filesystem-unfit", State, 409, "what lies there can't be used as it is asked"),
    answer("invalid-target", State, 409, "an export would lie among ciphertext or keys"),
    answer("job-ended", State, 409, "the job has ended already"),
    answer("keys-cannot-be-opened", State, 409, "some keys can't go along, so nothing was changed"),
    answer("last-login", State, 409, "a rehearsal would take the last use of a token or secret id"),
    answer("locked", State, 409, "the filesystem is locked"),
    answer("no-kms", State, 409, "no KMS is set"),
    answer("audit-failed", Failed, 503, "the request can't be recorded, so it is not done"),
    answer("audit-unreadable", Failed, 500, "the audit log can't be read"),
    answer("backing-failed", Failed, 500, "a backing directory could not be made or removed"),
    answer("credential-missing", Failed, 500, "the token file can't be read, or no token is known"),
    answer("disk-full", Failed, 500, "a disk has no room"),
    answer("filesystem-io", Failed, 500, "a disk does not read, write or answer"),
    answer("internal", Failed, 500, "Coffer itself failed: report it"),
    answer("key-copy-failed", Failed, 500, "a copy of a wrapped key can't be read or written"),
    answer("record-damaged", Failed, 500, "a record of the key store can't be read"),
    answer("rehearsal-failed", Failed, 500, "a start could not be rehearsed"),
    answer("store-failed", Failed, 500, "the key store can't be read or written"),
    answer("filesystem-damaged", NotAuthentic, 500, "data failed authentication"),
    answer("store-damaged", NotAuthentic, 500, "the key store is damaged"),
    answer("wrapped-key-not-authentic", NotAuthentic, 500, "a wrapped key was changed"),
    answer(
        "wrapped-key-of-another",
        NotAuthentic,
        500,
        "a wrapped key holds another key than its record says",
    ),
    answer("key-version-too-old", KmsRefused, 502, "the KMS decrypts this version no more"),
    answer("kms-denied", KmsRefused, 502, "the KMS refuses the token, or what is asked with it"),
    answer(
        "start-would-fail",
        KmsRefused,
        502,
        "a start would be refused by the KMS, so none is rehearsed",
    ),
    answer("master-key-missing", KmsRefused, 502, "the KMS has no master key of this name"),
    answer("master-key-replaced", KmsRefused, 502, "the master key was deleted and made again"),
    answer("master-key-unfit", KmsRefused, 502, "the master key can't do what is needed"),
    answer("kms-sealed", KmsUnreachable, 503, "the KMS is sealed"),
    answer("kms-unreachable", KmsUnreachable, 503, "the KMS does not answer"),
    answer("under-way", Partly, 504, "it takes too long to be waited for, and goes on by itself"),
    shown("half-deleted", State, "the deletion of the filesystem failed, and is tried again"),
    shown("job-failed", Failed, "the job broke"),
    shown("kms-not-asked", KmsUnreachable, "the KMS has not answered yet"),
    shown("locked-by-admin", State, "an administrator locked the filesystem"),
    shown("not-tried", KmsUnreachable, "the filesystem is about to be unlocked"),
    shown("partly-done", Partly, "the job came to its end, and a part could not be done"),
    shown("superseded", State, "another change took the place of the job"),
];

const fn answer(code: &'static str, exit: Exit, status: u16, what: &'static str) -> Code {
    Code { code, exit, status: Some(status), what }
}

const fn shown(code: &'static str, exit: Exit, what: &'static str) -> Code {
    Code { code, exit, status: None, what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_follows_from_the_exit_unless_it_says_more() {
        let mut seen = std::collections::BTreeSet::new();
        for Code { code, exit, status, what } in CODES {
            assert!(seen.insert(code) && !what.is_empty(), "{code}");
            let usual = crate::Problem::new(*exit, code, "", "").status;
            let more = [401, 403, 404, 408, 412, 413, 415, 421, 422, 429, 503, 504];
            assert!(
                status.is_none_or(|status| status == usual || more.contains(&status)),
                "{code}"
            );
        }
    }
}

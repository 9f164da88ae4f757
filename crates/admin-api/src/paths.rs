//! Where the resources are. The constants are routes with `{name}` and `{id}` in them; the functions fill those in.

use std::fmt::Write as _;

/// The node's state.
pub const STATUS: &str = "/v1/status";
/// The KMS configuration.
pub const KMS: &str = "/v1/kms";
/// Rewraps every key, or one.
pub const REWRAP: &str = "/v1/kms/rewrap";
/// Looks at all that the KMS has to do.
pub const CHECK: &str = "/v1/kms/check";
/// Opens every key in another process, from what lies on disk.
pub const REHEARSE: &str = "/v1/kms/rehearse";
/// What would fail if something were taken away in the KMS (`?of=token`, `?of=key`, `?of=versions&below=N`).
pub const IMPACT: &str = "/v1/kms/impact";
/// All filesystems.
pub const FILESYSTEMS: &str = "/v1/filesystems";
/// One filesystem.
pub const FILESYSTEM: &str = "/v1/filesystems/{name}";
/// Closes it and forgets its key.
pub const LOCK: &str = "/v1/filesystems/{name}/lock";
/// Opens it.
pub const UNLOCK: &str = "/v1/filesystems/{name}/unlock";
/// Authenticates everything in it.
pub const VERIFY: &str = "/v1/filesystems/{name}/verify";
/// Gives it a new key, and re-encrypts its data under that.
pub const REKEY: &str = "/v1/filesystems/{name}/rekey";
/// Copies a plain tree in.
pub const IMPORT: &str = "/v1/filesystems/{name}/import";
/// Copies the tree out.
pub const EXPORT: &str = "/v1/filesystems/{name}/export";
/// Lists a directory.
pub const LS: &str = "/v1/filesystems/{name}/ls";
/// All jobs.
pub const JOBS: &str = "/v1/jobs";
/// One job.
pub const JOB: &str = "/v1/jobs/{id}";
/// Stops it.
pub const STOP: &str = "/v1/jobs/{id}/stop";

/// Metrics, in Prometheus' text format and where it looks for them.
pub const METRICS: &str = "/metrics";
/// Lines of the audit log (`?limit=`, `?before=`, `?action=`, `?subject=`, `?failed=`).
pub const AUDIT: &str = "/v1/audit";
/// Follows its whole chain.
pub const AUDIT_VERIFY: &str = "/v1/audit/verify";

/// Longest time for which a request waits for the end of a job, in milliseconds.
pub const WAIT_LIMIT_MS: u64 = 10_000;

/// Most items in one page of a list.
pub const PAGE_LIMIT: usize = 1000;

/// Most entries in one page of a directory: many, for the names lie in no order, and each page costs a look at all of them.
pub const LS_LIMIT: usize = 50_000;

/// Where the filesystem with this name is.
pub fn filesystem(name: &str) -> String {
    fill(FILESYSTEM, "{name}", name)
}

/// Where something of the filesystem with this name is; `route` is one of the constants with `{name}`.
pub fn of_filesystem(route: &str, name: &str) -> String {
    fill(route, "{name}", name)
}

/// Where something of the job with this id is; `route` is [`JOB`] or [`STOP`].
pub fn of_job(route: &str, id: &str) -> String {
    fill(route, "{id}", id)
}

/// Where the job with this id is, answered when it has ended or after `wait_ms` (at most [`WAIT_LIMIT_MS`]).
pub fn job_within(id: &str, wait_ms: u64) -> String {
    format!("{}?wait_ms={wait_ms}", of_job(JOB, id))
}

/// Where the job with this id is, with the page of its damage that begins there: [`Job::next_damage`](crate::Job::next_damage).
pub fn job_damage(id: &str, after: u64) -> String {
    format!("{}?damage_after={after}", of_job(JOB, id))
}

fn fill(route: &str, place: &str, value: &str) -> String {
    route.replacen(place, &segment(value), 1)
}

/// One segment of a path: RFC 3986's unreserved characters as they are, the other bytes as `%XX`.
/// A URL can't have the segments `.` and `..` (WHATWG URL, "double-dot path segment"): no name is either.
fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte as char);
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stay_in_their_segment() {
        assert_eq!(of_filesystem(LOCK, "a/b?c d"), "/v1/filesystems/a%2Fb%3Fc%20d/lock");
        assert_eq!(of_job(STOP, "{name}"), "/v1/jobs/%7Bname%7D/stop");
    }
}

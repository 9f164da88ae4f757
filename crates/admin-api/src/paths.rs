//! Where the resources are. The constants are routes with `{name}` and `{id}` in them; the functions fill those in.

use std::fmt::Write as _;

use crate::BytePath;

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
/// The policy that a token for master keys needs.
pub const POLICY: &str = "/v1/kms/policy";
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
/// Its progress, as server-sent events.
pub const JOB_EVENTS: &str = "/v1/jobs/{id}/events";

/// That something of the node has changed, as server-sent events.
pub const EVENTS: &str = "/v1/events";

/// The description of all of this, in OpenAPI 3.1.
pub const OPENAPI: &str = "/v1/openapi.json";

/// Metrics, in Prometheus' text format and where it looks for them.
pub const METRICS: &str = "/metrics";
/// Lines of the audit log (`?limit=`, `?before=`, `?action=`, `?subject=`, `?failed=`).
pub const AUDIT: &str = "/v1/audit";
/// Follows its whole chain.
pub const AUDIT_VERIFY: &str = "/v1/audit/verify";

/// Makes a link that opens a session of the web console.
pub const CONSOLE_LINKS: &str = "/v1/console/links";
/// Sessions of the web console.
pub const CONSOLE_SESSIONS: &str = "/v1/console/sessions";
/// One of them.
pub const CONSOLE_SESSION: &str = "/v1/console/sessions/{id}";

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

/// A page of filesystems: those whose names contain `search` and that are in this state, if that is not empty, after this one.
pub fn filesystems(search: &str, state: &str, after: Option<&str>, limit: Option<usize>) -> String {
    let limit = limit.map(|limit| limit.to_string());
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let wanted = [
        ("search", given(search)),
        ("state", given(state)),
        ("after", after.map(str::to_owned)),
        ("limit", limit),
    ];
    query(FILESYSTEMS, wanted)
}

/// What would fail without the `token`, the `key`, or its `versions` below one, of the master key that is set or this one.
pub fn impact(of: &str, below: Option<&str>, master_key: Option<&str>) -> String {
    let wanted = [("of", Some(of)), ("below", below), ("master_key", master_key)];
    query(IMPACT, wanted.map(|(name, value)| (name, value.map(str::to_owned))))
}

/// The policy that a token for these master keys needs, with the transit engine mounted there or at its usual place.
pub fn policy(master_keys: &[String], transit_path: Option<&str>) -> String {
    let path = transit_path.map(str::to_owned);
    query(POLICY, [("master_key", Some(master_keys.join(","))), ("transit_path", path)])
}

/// Lines of the audit log that fit, before this one.
pub fn audit(action: &str, subject: &str, failed: bool, before: Option<u64>, limit: u64) -> String {
    let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let wanted = [
        ("limit", Some(limit.to_string())),
        ("before", before.map(|before| before.to_string())),
        ("action", given(action)),
        ("subject", given(subject)),
        ("failed", failed.then(|| "true".to_owned())),
    ];
    query(AUDIT, wanted)
}

/// Where the filesystem with this name is deleted, or only forgotten.
pub fn deletion(name: &str, forget: bool) -> String {
    query(&filesystem(name), [("forget", Some(forget.to_string()))])
}

/// A page of a directory in the filesystem with this name, after this entry.
pub fn ls(name: &str, path: &BytePath, after: Option<&BytePath>, limit: Option<usize>) -> String {
    let wanted = [
        ("path", Some(path.encode())),
        ("after", after.map(BytePath::encode)),
        ("limit", limit.map(|limit| limit.to_string())),
    ];
    query(&of_filesystem(LS, name), wanted)
}

/// A page of the jobs, after this one.
pub fn jobs(after: Option<&str>, limit: Option<usize>) -> String {
    let wanted =
        [("after", after.map(str::to_owned)), ("limit", limit.map(|limit| limit.to_string()))];
    query(JOBS, wanted)
}

/// Where something of the filesystem with this name is; `route` is one of the constants with `{name}`.
pub fn of_filesystem(route: &str, name: &str) -> String {
    fill(route, "{name}", name)
}

/// Where the session of the console with this id is.
pub fn console_session(id: &str) -> String {
    fill(CONSOLE_SESSION, "{id}", id)
}

/// Where something of the job with this id is; `route` is one of the constants with `{id}`.
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

fn query<'a>(route: &str, pairs: impl IntoIterator<Item = (&'a str, Option<String>)>) -> String {
    let mut out = route.to_owned();
    let given = pairs.into_iter().filter_map(|(name, value)| Some((name, value?)));
    for (at, (name, value)) in given.enumerate() {
        let _ = write!(out, "{}{name}={}", if at == 0 { '?' } else { '&' }, segment(&value));
    }
    out
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

    #[test]
    fn values_stay_in_their_place_in_a_query() {
        assert_eq!(
            audit("a&b=c", "", true, None, 7),
            "/v1/audit?limit=7&action=a%26b%3Dc&failed=true"
        );
        assert_eq!(filesystems("", "", None, None), "/v1/filesystems");
    }
}

//! The audit log.

use admin_api::{AuditChain, AuditLine};

use crate::quantity::count;

/// What a line tells beside what was done to what: the key, the KMS's requests, who asked, and more.
pub fn audit_more(line: &AuditLine) -> String {
    let mut more = Vec::new();
    if let (Some(id), Some(version)) = (&line.key_id, line.key_version) {
        more.push(format!("key {id}, version {version} of the master key"));
    }
    if let [first, rest @ ..] = &line.requests[..] {
        let others =
            if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
        more.push(format!("request {first}{others}"));
    }
    more.extend(line.who.as_ref().map(|who| format!("by {who}")));
    more.extend(Some(line.detail.clone()).filter(|detail| !detail.is_empty()));
    more.join("; ")
}

/// How long the log is, and whether each line follows from the one before.
pub fn audit_chain(chain: &AuditChain) -> String {
    let Some(first) = chain.first else { return "the audit log has no lines\n".to_owned() };
    let lines = count(chain.last.saturating_sub(first) + 1, "line");
    let files = count(chain.files, "file");
    let how = match chain.trouble {
        None => "each follows from the one before",
        Some(_) => "NOT WHOLE",
    };
    format!("{lines}, {first} to {}, in {files}: {how}\nlast hash: {}\n", chain.last, chain.hash)
}

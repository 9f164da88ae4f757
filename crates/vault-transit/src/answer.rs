//! What Vault answers to a request, and what its form tells.

use std::time::SystemTime;

use reqwest::StatusCode;
use serde::Deserialize;
use zeroize::Zeroizing;

/// What Vault said about this very request.
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    /// When it was given, by the clock of who gave it; by ours if it does not say.
    pub(crate) at: SystemTime,
    pub(crate) body: Zeroizing<Vec<u8>>,
}

impl Answer {
    /// The body as `T`, which may borrow from it; `None` if it is anything else.
    pub(crate) fn parse<'a, T: Deserialize<'a>>(&'a self) -> Option<T> {
        serde_json::from_slice(&self.body).ok()
    }

    /// Vault's `errors`; empty if there are none.
    pub(crate) fn errors(&self) -> Vec<String> {
        let errors = self.parse::<Refusal>().map(|refusal| refusal.errors).unwrap_or_default();
        errors.iter().map(|e| printable(e)).collect()
    }

    /// Whether it may be for the token that this is a refusal: Vault says "permission denied" to one that it does not know, and
    /// `sys/capabilities-self` "invalid token" with status 400 where it was ended in that very moment.
    pub(crate) fn refuses_token(&self) -> bool {
        let names_it = || self.errors().iter().any(|error| error.contains("invalid token"));
        self.status == StatusCode::FORBIDDEN
            || (self.status == StatusCode::BAD_REQUEST && names_it())
    }

    /// Whether this has the form of Vault's refusals, `{"errors": […]}`.
    pub(crate) fn is_refusal(&self) -> bool {
        self.parse::<Refusal>().is_some()
    }

    /// Whether this has the form of what an engine of Vault's answers, whatever is in it.
    pub(crate) fn is_vaults(&self) -> bool {
        self.parse::<Reply>().is_some_and(|reply| !reply.request_id.is_empty())
    }
}

#[derive(Deserialize)]
struct Reply {
    request_id: String,
}

#[derive(Deserialize)]
struct Refusal {
    errors: Vec<String>,
}

/// Words from outside on one short line, fit for a terminal and a log.
pub(crate) fn printable(text: &str) -> String {
    const LONGEST: usize = 300;
    // Control characters move a terminal's cursor; formatting ones turn the direction of what follows (UAX #9).
    let turns = |c| matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let parts = text.split(|c: char| c.is_whitespace() || c.is_control() || turns(c));
    let words = parts.filter(|word| !word.is_empty());
    let mut line = words.collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = line.char_indices().nth(LONGEST) {
        line.truncate(end);
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_from_outside_are_tamed() {
        assert_eq!(
            printable("2 errors occurred:\n\t* permission denied\n\n"),
            "2 errors occurred: * permission denied"
        );
        assert_eq!(printable("\u{1b}[31mred\r\n"), "[31mred");
        assert_eq!(printable("all \u{202e}llew si\u{2069}"), "all llew si");
        assert_eq!(printable(&"ä".repeat(1000)).chars().count(), 301);
    }

    #[test]
    fn a_refusal_of_the_token_is_told_from_others() {
        let refuses = |status, error: &str| {
            let body = serde_json::json!({ "errors": [error] }).to_string().into_bytes().into();
            Answer { status, at: SystemTime::now(), body }.refuses_token()
        };
        assert!(refuses(StatusCode::FORBIDDEN, "permission denied"));
        assert!(refuses(StatusCode::BAD_REQUEST, "invalid token"));
        assert!(!refuses(StatusCode::BAD_REQUEST, "no such key"));
        assert!(!refuses(StatusCode::NOT_FOUND, "invalid token"));
    }
}

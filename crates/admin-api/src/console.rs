//! The way into the web console.

use serde::{Deserialize, Serialize};

/// Has a link made that opens a session of the console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct OpenConsole {
    /// Whether the session may look and change nothing.
    #[serde(default)]
    pub read_only: bool,
}

/// A link that opens one session. It is a secret until it was used.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsoleLink {
    /// To be opened in a browser. The code stands behind `#`, so that it is in no request.
    pub url: String,
    /// For so many seconds it can be used.
    pub seconds_left: u64,
}

impl std::fmt::Debug for ConsoleLink {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleLink")
            .field("seconds_left", &self.seconds_left)
            .finish_non_exhaustive()
    }
}

/// The sessions that are open, the oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsoleSessions {
    /// They.
    pub sessions: Vec<ConsoleSession>,
}

/// A session of the console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ConsoleSession {
    /// Its id, which opens nothing.
    pub id: String,
    /// Whether it may look and change nothing.
    pub read_only: bool,
    /// Who had its link made, as the kernel says.
    pub opened_by: String,
    /// When it was opened, in Unix milliseconds.
    pub opened_at: u64,
    /// When something was last done in it, in Unix milliseconds.
    pub used_at: u64,
    /// When it ends if nothing is done in it, in Unix milliseconds.
    pub ends_at: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_is_not_shown_in_debug() {
        let link = ConsoleLink { url: "http://h/login#canary".into(), seconds_left: 60 };
        assert!(!format!("{link:?}").contains("canary"));
    }
}

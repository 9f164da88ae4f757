//! Names of filesystems.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Input};

/// A filesystem's name: 1 to 64 of `A–Z a–z 0–9 . _ -`, starting with a letter or a digit.
///
/// It appears in paths, URLs and shells, so it needs no quoting anywhere.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct FilesystemName(String);

impl FilesystemName {
    /// Longest name, in bytes.
    pub const MAX: usize = 64;

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for FilesystemName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let why = if text.is_empty() {
            "it is empty"
        } else if text.len() > Self::MAX {
            "it is longer than 64 bytes"
        } else if !text.starts_with(|c: char| c.is_ascii_alphanumeric()) {
            "it must start with a letter or a digit"
        } else if !text.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c)) {
            "only letters, digits, '.', '_' and '-' are allowed"
        } else {
            return Ok(Self(text.to_owned()));
        };
        // The input may hold control bytes or be huge: show it escaped and cut.
        let shown: String = text.chars().take(Self::MAX).flat_map(char::escape_debug).collect();
        Err(Error::Invalid {
            input: Some(Input::Name),
            what: format!("the filesystem name \"{shown}\""),
            why: why.to_owned(),
            cure: "take 1 to 64 of A-Z a-z 0-9 . _ -, of which the first is a letter or a digit",
        })
    }
}

impl TryFrom<String> for FilesystemName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self, Error> {
        text.parse()
    }
}

impl From<FilesystemName> for String {
    fn from(name: FilesystemName) -> Self {
        name.0
    }
}

impl fmt::Display for FilesystemName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn good_and_bad_names() {
        for good in ["a", "home", "Home-2.old_x", "0", &"x".repeat(64)] {
            assert!(good.parse::<FilesystemName>().is_ok(), "{good}");
        }
        for bad in
            ["", ".", "..", "-rf", "a/b", "a b", "a\0b", "a\nb", "../x", "ä", &"x".repeat(300)]
        {
            let error = bad.parse::<FilesystemName>().unwrap_err();
            assert!(error.to_string().len() < 400 && !error.to_string().contains('\0'), "{error}");
        }
    }
}

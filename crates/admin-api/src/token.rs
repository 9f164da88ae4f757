//! The one secret that a request carries.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use zeroize::Zeroizing;

/// A token on its way to the node. Wiped on drop, redacted in `Debug`.
///
/// It is serialisable because requests carry it; no answer has a field of this type.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(Zeroizing<String>);

impl Token {
    /// Takes over `text`, which is wiped when the token is dropped.
    pub const fn new(text: Zeroizing<String>) -> Self {
        Self(text)
    }

    /// The text, for the one who gives it to the KMS.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token([redacted])")
    }
}

impl Serialize for Token {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for Token {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(Zeroizing::new(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_nothing_of_it() {
        let token = Token::new(Zeroizing::new("s.nRucA9".to_owned()));
        assert_eq!(format!("{token:?}"), "Token([redacted])");
        assert_eq!(token.expose(), "s.nRucA9");
    }
}

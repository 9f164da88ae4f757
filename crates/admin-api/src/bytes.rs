//! Paths and names of files in JSON, which has no bytes.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A Unix path or name: any bytes. In JSON it is a string in which `%`, control characters and bytes that are not
/// UTF-8 stand as `%XX`, and everything else as itself; so nothing is lost and nearly every name is readable.
///
/// `Display` is for people: what could upset a terminal stands as `\xXX`, and it is not meant to be read back.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct BytePath(Vec<u8>);

/// A text with a `%` that no two hexadecimal digits follow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BytePathError;

impl BytePath {
    /// The path with these bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Its bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// It as a path of this machine.
    pub fn as_path(&self) -> &Path {
        Path::new(OsStr::from_bytes(&self.0))
    }

    /// The text that stands for it in JSON and in queries.
    pub fn encode(&self) -> String {
        self.escaped(|text, byte| write!(text, "%{byte:02X}"), |c| c == '%' || c.is_control())
    }

    /// Reads what [`BytePath::encode`] wrote.
    ///
    /// # Errors
    /// [`BytePathError`].
    pub fn decode(text: &str) -> Result<Self, BytePathError> {
        let mut bytes = Vec::with_capacity(text.len());
        let mut rest = text.bytes();
        while let Some(byte) = rest.next() {
            if byte != b'%' {
                bytes.push(byte);
                continue;
            }
            let digit = |b: Option<u8>| b.and_then(|b| (b as char).to_digit(16));
            match (digit(rest.next()), digit(rest.next())) {
                // Two hexadecimal digits are at most 255.
                (Some(high), Some(low)) => bytes.push((high * 16 + low) as u8),
                _ => return Err(BytePathError),
            }
        }
        Ok(Self(bytes))
    }

    fn escaped(
        &self,
        escape: impl Fn(&mut String, u8) -> fmt::Result,
        must: impl Fn(char) -> bool,
    ) -> String {
        let mut text = String::with_capacity(self.0.len());
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                if must(c) {
                    for byte in c.encode_utf8(&mut [0; 4]).bytes() {
                        let _ = escape(&mut text, byte);
                    }
                } else {
                    text.push(c);
                }
            }
            for &byte in chunk.invalid() {
                let _ = escape(&mut text, byte);
            }
        }
        text
    }
}

impl From<PathBuf> for BytePath {
    fn from(path: PathBuf) -> Self {
        Self(path.into_os_string().into_vec())
    }
}

impl From<OsString> for BytePath {
    fn from(name: OsString) -> Self {
        Self(name.into_vec())
    }
}

impl From<&Path> for BytePath {
    fn from(path: &Path) -> Self {
        Self(path.as_os_str().as_bytes().to_vec())
    }
}

impl fmt::Display for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.escaped(|text, byte| write!(text, "\\x{byte:02X}"), is_unsafe_to_show))
    }
}

/// Control characters move a terminal's cursor; bidirectional overrides make a name look like another.
fn is_unsafe_to_show(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

impl fmt::Debug for BytePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.encode())
    }
}

impl Serialize for BytePath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.encode())
    }
}

impl<'de> Deserialize<'de> for BytePath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::decode(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}

impl fmt::Display for BytePathError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("in a path, % stands before two hexadecimal digits (a % itself is %25)")
    }
}

impl std::error::Error for BytePathError {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_json_can_say_stands_as_itself() {
        let path = BytePath::new("/tmp/größe 100%\n\u{85}".as_bytes());
        assert_eq!(path.encode(), "/tmp/größe 100%25%0A%C2%85");
        assert_eq!(path.to_string(), "/tmp/größe 100%\\x0A\\xC2\\x85");
        assert_eq!(BytePath::new(*b"a\xffb").encode(), "a%FFb");
        assert_eq!(BytePath::decode("%4"), Err(BytePathError));
        assert_eq!(BytePath::decode("%+1"), Err(BytePathError));
    }

    proptest! {
        #[test]
        fn nothing_is_lost(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            let path = BytePath::new(bytes);
            let json = serde_json::to_string(&path).unwrap();
            prop_assert_eq!(serde_json::from_str::<BytePath>(&json).unwrap(), path);
        }

        #[test]
        fn no_text_panics(text in ".*") {
            let _ = BytePath::decode(&text);
        }
    }
}

//! The random ids of files and directories.

use std::fmt;

use crate::{FormatError, nonce};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Hash)]
        pub struct $name([u8; 16]);

        impl $name {
            /// A new random id.
            ///
            /// # Errors
            /// [`FormatError::Library`] when the system gives no random bytes.
            pub fn random() -> Result<Self, FormatError> {
                nonce::random().map(Self)
            }

            /// The id with these bytes.
            pub const fn from_bytes(bytes: [u8; 16]) -> Self {
                Self(bytes)
            }

            /// Its 16 bytes.
            pub const fn as_bytes(&self) -> &[u8; 16] {
                &self.0
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}({:032x})", stringify!($name), u128::from_be_bytes(self.0))
            }
        }
    };
}

id! {
    /// Names a file for as long as it exists, whatever its path. Its blocks and attributes are
    /// bound to it.
    FileId
}
id! {
    /// Names a directory for as long as it exists, whatever its path. The names in it are bound to
    /// it.
    DirId
}
id! {
    /// Names a symlink's target that lies in a record of its own.
    LinkId
}

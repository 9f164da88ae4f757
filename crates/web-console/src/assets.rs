//! The style sheet, the script, the icon: in the program, and at addresses that change with their content.

use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

/// A file that pages use.
#[derive(Debug)]
pub struct Asset {
    name: &'static str,
    /// Its media type.
    pub kind: &'static str,
    /// Its content.
    pub content: &'static str,
}

pub(crate) const STYLE: Asset = Asset {
    name: "console.css",
    kind: "text/css; charset=utf-8",
    content: include_str!("../assets/console.css"),
};
pub(crate) const SCRIPT: Asset = Asset {
    name: "console.js",
    kind: "text/javascript; charset=utf-8",
    content: include_str!("../assets/console.js"),
};
pub(crate) const ICON: Asset =
    Asset { name: "icon.svg", kind: "image/svg+xml", content: include_str!("../assets/icon.svg") };

impl Asset {
    /// Its address. Another content has another one, so that a browser may keep it.
    pub(crate) fn url(&self) -> String {
        let mut hasher = DefaultHasher::new();
        self.content.hash(&mut hasher);
        format!("/assets/{}?{:016x}", self.name, hasher.finish())
    }
}

/// The file with this name.
pub fn asset(name: &str) -> Option<Asset> {
    [STYLE, SCRIPT, ICON].into_iter().find(|asset| asset.name == name)
}

//! Vault's ACL policies: their text, and which rule decides.
//!
//! Rules and precedence as in <https://developer.hashicorp.com/vault/docs/concepts/policies>: an exact
//! path beats patterns; among patterns the one whose first wildcard stands latest wins, then one
//! without a `*` at its end, then fewer `+`, then the longer one. Rules for one path add up over all
//! policies of a token, but `deny` beats everything.

use std::{cmp::Reverse, collections::BTreeMap};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::request::Operation;

/// What every token may do unless it was made without this policy: the part of Vault's own that
/// this server has paths for.
pub(crate) const DEFAULT_POLICY: &str = r#"
# Allow tokens to look up their own properties
path "auth/token/lookup-self" {
    capabilities = ["read"]
}

# Allow tokens to renew themselves
path "auth/token/renew-self" {
    capabilities = ["update"]
}

# Allow tokens to revoke themselves
path "auth/token/revoke-self" {
    capabilities = ["update"]
}

# Allow a token to look up its own capabilities on a path
path "sys/capabilities-self" {
    capabilities = ["update"]
}
"#;

/// A policy: its text, and the rules read from it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Policy {
    text: String,
    rules: Vec<Rule>,
}

#[derive(Clone, Debug)]
struct Rule {
    path: String,
    grants: Capabilities,
}

impl Policy {
    /// Reads HCL or JSON. The error is in words for the person who wrote the policy.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let document: Document = if text.trim_start().starts_with('{') {
            serde_json::from_str(text).map_err(|e| e.to_string())
        } else {
            hcl::from_str(text).map_err(|e| e.to_string())
        }
        .map_err(|e| format!("failed to parse policy: {e}"))?;
        let mut rules = Vec::new();
        for (path, blocks) in document.path {
            // Blocks for one path may be repeated.
            let blocks = match blocks {
                Value::Array(blocks) => blocks,
                block => vec![block],
            };
            for block in blocks {
                let block: Block = serde_json::from_value(block)
                    .map_err(|e| format!("failed to parse policy: path {path:?}: {e}"))?;
                rules.push(Rule::new(&path, &block.capabilities)?);
            }
        }
        Ok(Self { text: text.to_owned(), rules })
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

impl TryFrom<String> for Policy {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> Self {
        policy.text
    }
}

/// The shape that HCL and JSON share.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    #[serde(default)]
    path: BTreeMap<String, Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Block {
    #[serde(default)]
    capabilities: Vec<String>,
}

impl Rule {
    fn new(path: &str, capabilities: &[String]) -> Result<Self, String> {
        if path.contains("+*") {
            return Err(format!(
                "failed to parse policy: path {path:?}: invalid use of wildcards ('+*' is forbidden)"
            ));
        }
        let mut grants = Capabilities::default();
        for name in capabilities {
            grants = grants
                | Capabilities::named(name).ok_or(format!(
                    "failed to parse policy: path {path:?}: invalid capability {name:?}"
                ))?;
        }
        let path = path.strip_prefix('/').unwrap_or(path).to_owned();
        Ok(Self { path, grants: grants.settled() })
    }
}

/// A set of capabilities; `deny` stands alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities(u16);

/// In the order in which `sys/capabilities-self` names them.
const NAMES: [&str; 8] = ["create", "delete", "deny", "list", "patch", "read", "sudo", "update"];

impl Capabilities {
    fn named(name: &str) -> Option<Self> {
        NAMES.iter().position(|known| *known == name).map(|bit| Self(1 << bit))
    }

    fn has(self, name: &str) -> bool {
        Self::named(name).is_some_and(|wanted| self.0 & wanted.0 != 0)
    }

    fn settled(self) -> Self {
        if self.has("deny") { Self::named("deny").unwrap_or_default() } else { self }
    }

    pub(crate) fn allow(self, operation: Operation) -> bool {
        self.has(match operation {
            Operation::Create => "create",
            Operation::Read => "read",
            Operation::Update => "update",
            Operation::Delete => "delete",
            Operation::List => "list",
        })
    }

    pub(crate) fn allow_sudo(self) -> bool {
        self.has("sudo")
    }

    /// The names; nothing granted is `deny`.
    pub(crate) fn names(self) -> Vec<&'static str> {
        if self == Self::default() {
            return vec!["deny"];
        }
        NAMES.into_iter().filter(|name| self.has(name)).collect()
    }
}

impl std::ops::BitOr for Capabilities {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// What the policies of one token grant together.
#[derive(Debug)]
pub(crate) struct Acl<'a>(BTreeMap<&'a str, Capabilities>);

impl<'a> Acl<'a> {
    pub(crate) fn new(policies: impl IntoIterator<Item = &'a Policy>) -> Self {
        let mut granted = BTreeMap::<&str, Capabilities>::new();
        for rule in policies.into_iter().flat_map(|policy| &policy.rules) {
            let merged = granted.entry(&rule.path).or_default();
            *merged = (*merged | rule.grants).settled();
        }
        Self(granted)
    }

    pub(crate) fn allows(&self, operation: Operation, path: &str) -> bool {
        match operation {
            // A list is asked of `keys/`, and granted to it by rules for `keys` as well.
            Operation::List => self.capabilities(&format!("{path}/")),
            _ => self.capabilities(path),
        }
        .allow(operation)
    }

    /// What is granted on a path, with a slash at its end or without.
    pub(crate) fn capabilities(&self, path: &str) -> Capabilities {
        let bare = path.strip_suffix('/').unwrap_or(path);
        let exact = |path| self.0.get(path).filter(|_| !is_pattern(path)).copied();
        exact(path)
            .or_else(|| exact(bare))
            .or_else(|| self.by_pattern(bare))
            .or_else(|| self.by_pattern(path))
            .unwrap_or_default()
    }

    fn by_pattern(&self, path: &str) -> Option<Capabilities> {
        self.0
            .iter()
            .filter(|(pattern, _)| is_pattern(pattern) && matches(pattern, path))
            .max_by_key(|(pattern, _)| precedence(pattern))
            .map(|(_, grants)| *grants)
    }
}

fn has_plus_segment(path: &str) -> bool {
    path.split('/').any(|segment| segment == "+")
}

fn is_pattern(path: &str) -> bool {
    path.ends_with('*') || has_plus_segment(path)
}

fn matches(pattern: &str, path: &str) -> bool {
    let (pattern, is_prefix) = match pattern.strip_suffix('*') {
        Some(prefix) => (prefix, true),
        None => (pattern, false),
    };
    if !has_plus_segment(pattern) {
        return is_prefix && path.starts_with(pattern);
    }
    let wanted: Vec<_> = pattern.split('/').collect();
    let given: Vec<_> = path.split('/').collect();
    if given.len() < wanted.len() || (!is_prefix && given.len() != wanted.len()) {
        return false;
    }
    let last = wanted.len() - 1;
    wanted.iter().zip(&given).enumerate().all(|(i, (wanted, given))| {
        *wanted == "+" || wanted == given || (is_prefix && i == last && given.starts_with(wanted))
    })
}

/// The greater key wins.
fn precedence(pattern: &str) -> (usize, bool, Reverse<usize>, usize) {
    let bare = pattern.strip_suffix('*').unwrap_or(pattern);
    let plus_segments = bare.split('/').filter(|segment| *segment == "+").count();
    let first_wildcard = if plus_segments > 0 { bare.find('+').unwrap_or(0) } else { bare.len() };
    (first_wildcard, !pattern.ends_with('*'), Reverse(plus_segments), bare.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl_on(policies: &[&str], path: &str) -> Vec<&'static str> {
        let policies: Vec<_> = policies.iter().map(|text| Policy::parse(text).unwrap()).collect();
        Acl::new(&policies).capabilities(path).names()
    }

    #[test]
    fn reads_hcl_and_json_alike() {
        let hcl = r#"
            # the page's own
            path "transit/+/wekaio-key" {
            capabilities = ["read", "create", "update"]
            }
            // and another
            path "transit/keys/wekaio-key" { capabilities = ["read"] }
        "#;
        let json = r#"{"path": {
            "transit/+/wekaio-key": {"capabilities": ["read", "create", "update"]},
            "transit/keys/wekaio-key": {"capabilities": ["read"]}}}"#;
        for text in [hcl, json] {
            let seen = |path| acl_on(&[text], path);
            assert_eq!(seen("transit/encrypt/wekaio-key"), ["create", "read", "update"]);
            assert_eq!(seen("transit/keys/wekaio-key"), ["read"]);
            assert_eq!(seen("transit/encrypt/other"), ["deny"]);
            assert_eq!(seen("transit/encrypt/wekaio-key/more"), ["deny"]);
        }
    }

    #[test]
    fn says_what_is_wrong() {
        for (text, word) in [
            (r#"path "a" { capabilities = ["raed"] }"#, "invalid capability \"raed\""),
            (r#"path "a/+*" { capabilities = ["read"] }"#, "'+*' is forbidden"),
            (r#"path "a" { capabilitis = ["read"] }"#, "path \"a\": unknown field `capabilitis`"),
            (r#"path "a" { capabilities = "#, "failed to parse policy"),
            (r#"{"path": 3}"#, "failed to parse policy"),
        ] {
            let error = Policy::parse(text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn the_most_specific_rule_decides_alone() {
        let rule = |path: &str, capability: &str| {
            format!("path \"{path}\" {{ capabilities = [\"{capability}\"] }}\n")
        };
        // Each row: a rule, and one that beats it on the path.
        for (path, loser, winner) in [
            ("a/b/c", "a/*", "a/b/c"),
            ("a/b/c", "a/+/c", "a/b/c"),
            ("a/b/c", "a/*", "a/b/*"),
            ("a/b/c", "a/*", "a/+/c"),
            ("a/b/c", "a/+/c", "a/b/*"),
            ("a/b/c", "a/+/*", "a/+/c"),
            ("a/b/c", "a/+/+", "a/+/c"),
            ("a/b/c", "+/b/c", "a/+/c"),
            ("a/b/cde", "a/+/c*", "a/+/cd*"),
        ] {
            for text in [
                rule(loser, "read") + &rule(winner, "update"),
                rule(winner, "update") + &rule(loser, "read"),
            ] {
                assert_eq!(acl_on(&[&text], path), ["update"], "{winner} over {loser}");
            }
        }
    }

    #[test]
    fn rules_for_one_path_add_up_and_deny_wins() {
        let read = r#"path "a" { capabilities = ["read"] }"#;
        let update = r#"path "a" { capabilities = ["update"] }"#;
        let deny = r#"path "a" { capabilities = ["deny", "list"] }"#;
        assert_eq!(acl_on(&[read, update], "a"), ["read", "update"]);
        assert_eq!(acl_on(&[&format!("{read}\n{update}")], "a"), ["read", "update"]);
        assert_eq!(acl_on(&[read, deny, update], "a"), ["deny"]);
    }

    #[test]
    fn lists_are_granted_with_and_without_the_slash() {
        for path in ["transit/keys", "transit/keys/", "transit/key*", "transit/+"] {
            let policy =
                Policy::parse(&format!("path \"{path}\" {{ capabilities = [\"list\"] }}")).unwrap();
            assert!(Acl::new([&policy]).allows(Operation::List, "transit/keys"), "{path}");
        }
    }

    #[test]
    fn its_own_default_policy_is_valid() {
        assert_eq!(acl_on(&[DEFAULT_POLICY], "auth/token/renew-self"), ["update"]);
    }
}

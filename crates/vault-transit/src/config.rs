//! Which Vault, and which key in it: a [`KmsConfig`] whose every part has been checked.

use std::fmt::{self, Write as _};

use kms_core::{KmsConfig, KmsError, KmsErrorKind, KmsInput};
use url::{Host, Url};

use crate::address;
use crate::operation::Operation;

/// Where transit is mounted when nothing else is said.
const TRANSIT: &str = "transit";

/// The [`KmsConfig::kind`] that this crate serves.
pub const KIND: &str = "vault";

/// A configuration for Vault in which every part is valid, so that nothing in it can lead a
/// request, and the token with it, to another place than it says.
///
/// | part of [`KmsConfig`] | rule |
/// |---|---|
/// | `address` | `https://host[:port][/base/path]`; `http` to loopback, elsewhere with `allow_http`. No userinfo, query or fragment. Link-local, unspecified and multicast addresses are refused, here and again when a name is resolved |
/// | `master_key` | Vault's own rule for names, see [`valid_name`] |
/// | `settings["transit_path"]` | where transit is mounted, default `transit`; names joined by `/` |
/// | `settings["namespace"]` | Vault Enterprise and OpenBao: sent as `X-Vault-Namespace` |
/// | `settings["ca_cert"]` | PEM text of the CA certificates that are trusted, and no others; without it the system's |
/// | `settings["allow_http"]` | `true` allows `http` beyond loopback: the token and every key then cross the network readable |
///
/// A setting that is not in the table is refused: it may be one that a newer Coffer obeys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VaultConfig {
    base: Url,
    master_key: String,
    transit_path: String,
    namespace: Option<String>,
    ca_cert: Option<String>,
    allow_http: bool,
}

impl VaultConfig {
    /// Checks a configuration. Pure: it asks nobody, resolves nothing and reads no file.
    ///
    /// # Errors
    /// [`KmsErrorKind::Invalid`], with what is wrong and what would be right.
    pub fn parse(config: &KmsConfig) -> Result<Self, KmsError> {
        if config.kind != KIND {
            return Err(invalid(
                format!("a KMS of kind {:?} is not a Vault", config.kind),
                "use the kind vault",
            ));
        }
        let mut transit_path = TRANSIT.to_owned();
        let (mut namespace, mut ca_cert, mut allow_http) = (None, None, false);
        for (key, value) in &config.settings {
            match key.as_str() {
                "transit_path" => transit_path = parse_transit_path(value)?,
                "namespace" => namespace = Some(parse_namespace(value)?),
                "ca_cert" => ca_cert = Some(value.clone()),
                "allow_http" => allow_http = parse_flag(key, value)?,
                _ => {
                    return Err(invalid(
                        format!("a Vault has no setting {key:?}"),
                        "leave it out, or use a Coffer that knows it",
                    ));
                }
            }
        }
        if !valid_name(&config.master_key) {
            return Err(invalid(
                format!("{:?} is no name that a Vault key can have", config.master_key),
                NAME_RULE,
            )
            .of_input(KmsInput::MasterKey));
        }
        Ok(Self {
            base: parse_address(&config.address, allow_http)?,
            master_key: config.master_key.clone(),
            transit_path,
            namespace,
            ca_cert,
            allow_http,
        })
    }

    /// The policy that a token needs, and nothing beyond it, in Vault's policy language. Unlike a
    /// rule with `+` or `*` it does not reach `export`, `backup` or `restore`, and without
    /// `create` Vault makes no key.
    ///
    /// The last two paths are in Vault's `default` policy too; they stand here for tokens without it.
    pub fn policy(&self) -> String {
        let mut text = format!(
            "# Coffer: to wrap, unwrap and rewrap keys under the master key {}.\n",
            self.master_key
        );
        for operation in Operation::ALL {
            let _ = writeln!(text, "{}", operation.grant(self));
        }
        text
    }

    /// Scheme, host and port: where the token may be sent.
    pub fn origin(&self) -> String {
        self.base.origin().ascii_serialization()
    }

    /// Whether a token for the other one may be sent here: the same URL and namespace, with the same certificates trusted.
    pub(crate) fn is_reached_as(&self, other: &Self) -> bool {
        let transit_path = self.transit_path.clone();
        *self == Self { master_key: self.master_key.clone(), transit_path, ..other.clone() }
    }

    /// The master key's name.
    pub fn master_key(&self) -> &str {
        &self.master_key
    }

    /// Where transit is mounted, without slashes at its ends.
    pub fn transit_path(&self) -> &str {
        &self.transit_path
    }

    /// What `coffer fs kms policy` is given to print the policy for this.
    pub(crate) fn policy_arguments(&self) -> String {
        match self.transit_path.as_str() {
            TRANSIT => self.master_key.clone(),
            path => format!("{} --transit-path {path}", self.master_key),
        }
    }

    pub(crate) fn namespace(&self) -> Option<&str> {
        self.namespace.as_deref()
    }

    pub(crate) fn ca_cert(&self) -> Option<&str> {
        self.ca_cert.as_deref()
    }

    /// Whether tokens and keys cross a network in the clear.
    pub(crate) fn is_exposed(&self) -> bool {
        self.base.scheme() == "http" && self.allow_http && !names_loopback(&self.base)
    }

    /// Whether only loopback may be connected to, whatever a name resolves to.
    pub(crate) fn loopback_only(&self) -> bool {
        self.base.scheme() == "http" && !self.allow_http
    }

    /// The URL of an API path such as `transit/encrypt/k`; each segment is escaped.
    pub(crate) fn url(&self, path: &str) -> Url {
        let mut url = self.base.clone();
        // Fails for URLs that can't be a base only; http and https always can.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path.split('/'));
        }
        url
    }
}

/// Which Vault, for a message.
impl fmt::Display for VaultConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the Vault at {}", self.origin())?;
        match &self.namespace {
            Some(namespace) => write!(f, ", namespace {namespace}"),
            None => Ok(()),
        }
    }
}

const NAME_RULE: &str =
    "use letters, digits, `_`, and between them `-` and single dots: at most 254 in all";

/// Longest name in bytes. Vault's file storage keeps a key in a file named `_<name>`
/// (`physical/file`), and file systems end at 255.
const MAX_NAME: usize = 254;

/// Whether Vault can have a transit key of this name: `\w(([\w-.]+)?\w)?` with ASCII `\w`
/// (`framework.GenericNameRegex`, `sdk/framework/path.go`), without `..`, which Vault's storage
/// refuses (`logical.StorageView`).
pub fn valid_name(name: &str) -> bool {
    let word = |b: &u8| b.is_ascii_alphanumeric() || *b == b'_';
    let bytes = name.as_bytes();
    bytes.len() <= MAX_NAME
        && bytes.first().is_some_and(word)
        && bytes.last().is_some_and(word)
        && bytes.iter().all(|b| word(b) || matches!(b, b'-' | b'.'))
        && !name.contains("..")
}

fn parse_transit_path(text: &str) -> Result<String, KmsError> {
    parse_path(text).ok_or_else(|| {
        invalid(
            format!("{text:?} is not where a transit engine can be mounted"),
            "give the path that `vault secrets list` shows, such as transit or team/transit",
        )
        .of_input(KmsInput::Setting("transit_path"))
    })
}

/// Where an auth method is mounted, below `auth/`.
pub(crate) fn parse_mount(text: &str) -> Result<String, KmsError> {
    let path = text.trim_matches('/');
    parse_path(path.strip_prefix("auth/").unwrap_or(path)).ok_or_else(|| {
        invalid(
            format!("{text:?} is not where an auth method can be mounted"),
            "give the path that `vault auth list` shows, such as approle or team/approle",
        )
        .of_input(KmsInput::LoginPath)
    })
}

/// Names joined by `/`.
fn parse_path(text: &str) -> Option<String> {
    let path = text.trim_matches('/');
    (path.len() <= MAX_NAME && path.split('/').all(valid_name)).then(|| path.to_owned())
}

fn parse_namespace(text: &str) -> Result<String, KmsError> {
    let path = text.trim_matches('/');
    let segment =
        |s: &str| !s.is_empty() && s != "." && s != ".." && s.bytes().all(|b| b.is_ascii_graphic());
    if path.len() <= MAX_NAME && path.split('/').all(segment) {
        return Ok(path.to_owned());
    }
    Err(invalid(
        format!("{text:?} is not a namespace"),
        "give the path that `vault namespace list` shows, such as admin/storage",
    )
    .of_input(KmsInput::Setting("namespace")))
}

fn parse_flag(key: &str, value: &str) -> Result<bool, KmsError> {
    match value {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(invalid(format!("{key} is {value:?}"), "write true or false")),
    }
}

/// The text is in no error: it may hold a password.
fn parse_address(text: &str, allow_http: bool) -> Result<Url, KmsError> {
    const EXAMPLE: &str = "give Vault's base URL, such as https://vault.example.com:8200";
    let wrong = |why: &str, cure: &str| {
        invalid(format!("the Vault URL {why}"), cure).of_input(KmsInput::Address)
    };
    let refuse = |why: &str, cure: &str| Err(wrong(why, cure));
    // The URL standard drops some of these characters, takes others for slashes, and does without slashes, or takes more than two;
    // what an administrator reads must be what is connected to.
    if text.contains(|c: char| c.is_control() || c.is_whitespace() || c == '\\') {
        return refuse("has characters that no URL has", EXAMPLE);
    }
    let Some(rest) = after_scheme(text) else {
        return refuse("does not begin with https://", EXAMPLE);
    };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    if authority.is_empty() {
        return refuse("names no host", EXAMPLE);
    }
    let parsed = Url::parse(text);
    let named = |url: &Url| !url.username().is_empty() || url.password().is_some();
    if authority.contains('@') || parsed.as_ref().is_ok_and(named) {
        return refuse("holds a user or a password", "leave them out: the token shows who we are");
    }
    let url = parsed.map_err(|e| wrong("is not a valid URL", EXAMPLE).because(e))?;
    if url.query().is_some() || url.fragment().is_some() {
        return refuse("has a query or a fragment", "end it before the ? or #");
    }
    if url.path().trim_end_matches('/').ends_with("/v1") {
        return refuse("ends in /v1", "leave /v1 out: it is added to every request");
    }
    let literal = match url.host() {
        None => return refuse("names no host", EXAMPLE),
        Some(Host::Domain(_)) => None,
        Some(Host::Ipv4(ip)) => Some(ip.into()),
        Some(Host::Ipv6(ip)) => Some(ip.into()),
    };
    if literal.is_some_and(address::is_refused) {
        return refuse(
            "names a link-local, unspecified or multicast address, where no Vault is",
            "give the address that clients of Vault use",
        );
    }
    if url.scheme() == "http" && !allow_http && !names_loopback(&url) {
        return refuse(
            "is plain http beyond this machine: the token and every key could be read on the way",
            "use https, or --allow-http if the network is trusted",
        );
    }
    Ok(url)
}

/// What follows `https://` or `http://`.
fn after_scheme(text: &str) -> Option<&str> {
    let (scheme, rest) = text.split_once("://")?;
    ["https", "http"].iter().any(|known| scheme.eq_ignore_ascii_case(known)).then_some(rest)
}

fn names_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
        Some(Host::Ipv4(ip)) => ip.is_loopback(),
        Some(Host::Ipv6(ip)) => ip.to_canonical().is_loopback(),
        None => false,
    }
}

fn invalid(what: impl Into<String>, cure: &str) -> KmsError {
    KmsError::new(KmsErrorKind::Invalid, what).cure(cure)
}

#[cfg(test)]
mod tests {
    use kms_core::KmsConfigId;
    use proptest::prelude::*;

    use super::*;

    fn config(address: &str, master_key: &str, settings: &[(&str, &str)]) -> KmsConfig {
        KmsConfig {
            id: KmsConfigId::random(),
            kind: KIND.to_owned(),
            address: address.to_owned(),
            master_key: master_key.to_owned(),
            settings: settings.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        }
    }

    fn parse(address: &str, settings: &[(&str, &str)]) -> Result<VaultConfig, KmsError> {
        VaultConfig::parse(&config(address, "k", settings))
    }

    #[test]
    fn what_is_reached_alike() {
        let parse = |address, key, settings| VaultConfig::parse(&config(address, key, settings));
        let one = parse("https://v:8200", "k", &[("namespace", "a")]).unwrap();
        let alike = parse("https://V:8200/", "l", &[("namespace", "/a/"), ("transit_path", "t")]);
        assert!(one.is_reached_as(&alike.unwrap()));
        for (address, settings) in [
            ("https://v:8201", &[("namespace", "a")][..]),
            ("https://v:8200/base", &[("namespace", "a")]),
            ("https://v:8200", &[]),
            ("https://v:8200", &[("namespace", "b")]),
            ("https://v:8200", &[("namespace", "a"), ("ca_cert", "pem")]),
            ("https://v:8200", &[("namespace", "a"), ("allow_http", "true")]),
        ] {
            let other = parse(address, "k", settings).unwrap();
            assert!(!one.is_reached_as(&other), "{address} {settings:?}");
        }
    }

    #[test]
    fn good_urls() {
        for (address, url) in [
            ("https://vault.example.com", "https://vault.example.com/v1/transit/encrypt/k"),
            (
                "https://vault.example.com:8200/",
                "https://vault.example.com:8200/v1/transit/encrypt/k",
            ),
            (
                "https://gate.example.com/vault",
                "https://gate.example.com/vault/v1/transit/encrypt/k",
            ),
            ("https://gate.example.com/a/b/", "https://gate.example.com/a/b/v1/transit/encrypt/k"),
            ("https://10.0.0.7:8200", "https://10.0.0.7:8200/v1/transit/encrypt/k"),
            ("https://[fd00::7]:8200", "https://[fd00::7]:8200/v1/transit/encrypt/k"),
            ("http://127.0.0.1:8200", "http://127.0.0.1:8200/v1/transit/encrypt/k"),
            ("http://[::1]:8200", "http://[::1]:8200/v1/transit/encrypt/k"),
            ("http://localhost:8200", "http://localhost:8200/v1/transit/encrypt/k"),
        ] {
            let parsed = parse(address, &[]).unwrap();
            assert_eq!(parsed.url("transit/encrypt/k").as_str(), url);
            assert!(!parsed.is_exposed());
        }
    }

    #[test]
    fn bad_urls() {
        for (address, word) in [
            ("", "https://"),
            ("vault.example.com", "https://"),
            ("vault.example.com:8200", "https://"),
            ("ftp://vault.example.com", "https://"),
            ("file:///etc/passwd", "https://"),
            ("unix:///run/vault.sock", "https://"),
            ("https:vault.example.com", "https://"),
            ("https:/vault.example.com", "https://"),
            ("https://", "no host"),
            ("https:///vault.example.com", "no host"),
            ("https://:8200", "valid URL"),
            ("https://vault.example.com:99999", "valid URL"),
            ("https:\\\\vault.example.com", "characters"),
            ("https://vault.example\n.com", "characters"),
            ("https://vault.example.com /", "characters"),
            ("https://user:secret@vault.example.com", "user"),
            ("HTTPS://user:secret@vault.example.com", "user"),
            ("https://user@vault.example.com", "user"),
            ("https://@vault.example.com", "user"),
            ("https://:secret@vault.example.com", "user"),
            ("https://user:secret@", "user"),
            ("http://user:secret@127.0.0.1:99999", "user"),
            ("http://user:secret%40127.0.0.1", "valid URL"),
            ("http:user:secret@127.0.0.1", "https://"),
            ("http:/user:secret@127.0.0.1", "https://"),
            ("http:///user:secret@127.0.0.1", "no host"),
            ("http:////user:secret@127.0.0.1", "no host"),
            ("http:\\user:secret@127.0.0.1", "characters"),
            ("ht\ntp://user:secret@127.0.0.1", "characters"),
            ("//user:secret@127.0.0.1", "https://"),
            ("user:secret@127.0.0.1", "https://"),
            ("https://127.0.0.1/?token=secret", "query"),
            ("https://vault.example.com/?x=1", "query"),
            ("https://vault.example.com/#x", "fragment"),
            ("https://vault.example.com/v1/", "/v1"),
            ("http://vault.example.com", "plain http"),
            ("http://10.0.0.7", "plain http"),
            ("http://localhost.example.com", "plain http"),
            ("https://169.254.169.254", "link-local"),
            ("https://0xA9FEA9FE", "link-local"),
            ("https://[fe80::1]", "link-local"),
            ("https://[febf::1]", "link-local"),
            ("https://[::ffff:169.254.169.254]", "link-local"),
            ("https://0.0.0.0", "unspecified"),
            ("http://0", "unspecified"),
            ("https://[::]", "unspecified"),
            ("https://224.0.0.1", "multicast"),
        ] {
            let error = parse(address, &[]).unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Invalid, "{address}");
            assert_eq!(error.input(), Some(KmsInput::Address), "{address}");
            assert!(error.to_string().contains(word), "{address}: {error}");
            assert!(error.how_to_mend().is_some(), "{address}");
            let shown = format!("{error:?} {}", error.chain());
            assert!(!shown.contains("secret"), "{shown}");
        }
    }

    #[test]
    fn http_beyond_loopback_takes_leave_and_is_never_link_local() {
        assert!(parse("http://vault.example.com", &[("allow_http", "true")]).unwrap().is_exposed());
        assert!(!parse("http://127.0.0.1", &[("allow_http", "true")]).unwrap().is_exposed());
        assert!(parse("http://vault.example.com", &[("allow_http", "false")]).is_err());
        assert!(parse("http://vault.example.com", &[("allow_http", "yes")]).is_err());
        assert!(parse("http://169.254.169.254", &[("allow_http", "true")]).is_err());
    }

    #[test]
    fn names_are_vaults_own() {
        let long = "k".repeat(254);
        for good in ["k", "wekaio-key", "a.b", "A_1", "_", "a--b", &long] {
            assert!(valid_name(good), "{good}");
        }
        let longer = "k".repeat(255);
        let issue = "k".repeat(300);
        for bad in [
            "",
            ".",
            "..",
            "a..b",
            "-a",
            "a-",
            ".a",
            "a.",
            "a/b",
            "../k",
            "a b",
            "a\0",
            "a\n",
            "a%2fb",
            "schlüssel",
            "a+b",
            "a*",
            &longer,
            &issue,
        ] {
            assert!(!valid_name(bad), "{bad:?}");
            let error = VaultConfig::parse(&config("https://v", bad, &[])).unwrap_err();
            assert_eq!(error.kind(), KmsErrorKind::Invalid);
            assert_eq!(error.input(), Some(KmsInput::MasterKey));
        }
    }

    #[test]
    fn settings() {
        let parsed = parse(
            "https://v",
            &[
                ("transit_path", "/team/transit/"),
                ("namespace", "admin/storage/"),
                ("ca_cert", "PEM"),
            ],
        )
        .unwrap();
        assert_eq!(parsed.transit_path(), "team/transit");
        assert_eq!(parsed.namespace(), Some("admin/storage"));
        assert_eq!(parsed.ca_cert(), Some("PEM"));
        for bad in [
            ("transit_path", ""),
            ("transit_path", "a//b"),
            ("transit_path", "../sys"),
            ("transit_path", "a/../b"),
            ("namespace", "a b"),
            ("namespace", "a\r\nX-Evil: 1"),
            ("namespace", ""),
            ("token", "x"),
        ] {
            assert_eq!(
                parse("https://v", &[bad]).unwrap_err().kind(),
                KmsErrorKind::Invalid,
                "{bad:?}"
            );
        }
    }

    #[test]
    fn the_policy_is_exact() {
        let policy = parse("https://v", &[("transit_path", "t/x")]).unwrap().policy();
        assert_eq!(
            policy,
            "# Coffer: to wrap, unwrap and rewrap keys under the master key k.\n\
             path \"t/x/keys/k\" { capabilities = [\"read\"] }\n\
             path \"t/x/encrypt/k\" { capabilities = [\"update\"] }\n\
             path \"t/x/decrypt/k\" { capabilities = [\"update\"] }\n\
             path \"t/x/rewrap/k\" { capabilities = [\"update\"] }\n\
             path \"auth/token/lookup-self\" { capabilities = [\"read\"] }\n\
             path \"auth/token/renew-self\" { capabilities = [\"update\"] }\n"
        );
    }

    proptest! {
        #[test]
        fn no_input_panics_or_leaves_its_host(address in "\\PC*", name in "\\PC*", path in "\\PC*") {
            let _ = VaultConfig::parse(&config(&address, &name, &[("transit_path", &path)]));
            if let Ok(parsed) = parse(&format!("https://v.example/{address}"), &[]) {
                prop_assert_eq!(parsed.origin(), "https://v.example");
            }
        }
    }
}

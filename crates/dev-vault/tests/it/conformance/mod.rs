//! The table of what Vault answers to every request that Coffer sends, and to those that go wrong: held against the
//! embedded server here, and against real Vaults by `tests/real_vault.rs`, so that the embedded one can't drift.
//!
//! A row gives the answer of the newest Vault, which is the embedded server's too; where Vault 1.1.5 answers otherwise,
//! the row says how.

mod rows;

use std::fmt::Write as _;

use reqwest::Method;
use serde_json::{Value, json};
use testkit::vault_server::VaultAdmin;

/// Whose answers are expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    /// Of the embedded server too.
    Newest,
    V1_1_5,
}

/// What a server answered to a row.
#[derive(Debug)]
pub(crate) struct Seen {
    pub(crate) row: String,
    /// `None` if it closed the connection instead.
    pub(crate) answer: Option<(u16, Value)>,
}

/// Asks the server for each row of the table, and gives what it answered.
///
/// # Panics
/// With every row whose answer is another one.
pub(crate) async fn conform(url: &str, root_token: &str, version: Version) -> Vec<Seen> {
    let stand = Stand::new(url, root_token);
    let mut seen = Vec::new();
    let mut wrong = String::new();
    for group in rows::GROUPS {
        for row in group(&stand) {
            let answer = stand.ask(&row).await;
            let name = format!("{} ({} {})", row.what, row.method, row.path);
            if let Err(why) = row.check(version, &answer) {
                writeln!(wrong, "{name}: {why}").unwrap();
            }
            seen.push(Seen { row: name, answer });
        }
    }
    assert!(wrong.is_empty(), "{url} does not answer as {version:?}:\n{wrong}");
    seen
}

// What stands for values that are not the same each time.
const TEXT: &str = "…";
const NUMBER: &str = "<number>";
const ABSENT: &str = "<absent>";

/// One request, and what is answered to it.
struct Row {
    what: &'static str,
    method: Method,
    path: String,
    token: Option<String>,
    namespace: Option<&'static str>,
    body: Vec<u8>,
    newest: Expected,
    oldest: Option<Expected>,
    may_close: bool,
}

#[derive(Clone)]
struct Expected {
    status: u16,
    /// What must be in the body: of objects the fields that stand here, of lists every item. A text that ends in `…` is the
    /// beginning of one.
    body: Value,
}

fn says(status: u16, errors: &[&str]) -> Expected {
    Expected { status, body: json!({ "errors": errors }) }
}

fn gives(status: u16, body: Value) -> Expected {
    Expected { status, body }
}

fn data(data: Value) -> Expected {
    gives(200, json!({ "data": data }))
}

/// A batch of the newest Vault: with 400 if an item failed, but for rewrap.
fn results(status: u16, items: Value) -> Expected {
    gives(status, json!({ "data": { "batch_results": items } }))
}

impl Row {
    fn new(
        what: &'static str,
        method: Method,
        path: &str,
        body: Vec<u8>,
        newest: Expected,
    ) -> Self {
        Self {
            what,
            method,
            path: path.to_owned(),
            token: None,
            namespace: None,
            body,
            newest,
            oldest: None,
            may_close: false,
        }
    }

    fn with(self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self }
    }

    /// What 1.1.5 answers instead.
    fn oldest(self, expected: Expected) -> Self {
        Self { oldest: Some(expected), ..self }
    }

    fn check(&self, version: Version, answer: &Option<(u16, Value)>) -> Result<(), String> {
        let Some((status, body)) = answer else {
            return if self.may_close { Ok(()) } else { Err("no answer".to_owned()) };
        };
        let expected = match (version, &self.oldest) {
            (Version::V1_1_5, Some(oldest)) => oldest,
            _ => &self.newest,
        };
        let mut differences = String::new();
        if *status != expected.status {
            write!(differences, "\n    status {status}, not {}", expected.status).unwrap();
        }
        compare("", &expected.body, body, &mut differences);
        if differences.is_empty() { Ok(()) } else { Err(format!("{body}{differences}")) }
    }
}

fn compare(at: &str, expected: &Value, found: &Value, differences: &mut String) {
    let matches = match (expected, found) {
        (Value::Object(expected), Value::Object(found)) => {
            for (name, expected) in expected {
                let at = format!("{at}.{name}");
                match found.get(name) {
                    Some(found) => compare(&at, expected, found, differences),
                    None if expected == ABSENT => {}
                    None => writeln_difference(differences, &at, expected, None),
                }
            }
            return;
        }
        (Value::Array(expected), Value::Array(found)) if expected.len() == found.len() => {
            for (n, (expected, found)) in expected.iter().zip(found).enumerate() {
                compare(&format!("{at}[{n}]"), expected, found, differences);
            }
            return;
        }
        (Value::String(expected), Value::Number(_)) => expected == NUMBER,
        (Value::String(expected), Value::String(found)) => match expected.strip_suffix(TEXT) {
            Some(begin) => found.len() > begin.len() && found.starts_with(begin),
            None => expected == found,
        },
        (expected, found) => expected == found,
    };
    if !matches {
        writeln_difference(differences, at, expected, Some(found));
    }
}

fn writeln_difference(differences: &mut String, at: &str, expected: &Value, found: Option<&Value>) {
    let found = found.map_or("nothing".to_owned(), Value::to_string);
    write!(differences, "\n    {at}: {found}, not {expected}").unwrap();
}

fn get(what: &'static str, path: &str, newest: Expected) -> Row {
    Row::new(what, Method::GET, path, Vec::new(), newest)
}

fn post(what: &'static str, path: &str, body: Value, newest: Expected) -> Row {
    Row::new(what, Method::POST, path, body.to_string().into_bytes(), newest)
}

/// A server with all that the table speaks of.
struct Stand {
    http: reqwest::Client,
    url: String,
    admin: VaultAdmin,
    root: String,
    /// May do with every key what Coffer does, and let Vault make keys.
    user: String,
    /// May do nothing but what the default policy allows.
    poor: String,
    /// Sealed by the key `k`, of which there are two versions, under the first and the second.
    old: String,
    new: String,
}

const USER: &str = r#"
    path "transit/keys/*" { capabilities = ["read"] }
    path "transit/encrypt/*" { capabilities = ["create", "update"] }
    path "transit/decrypt/*" { capabilities = ["update"] }
    path "transit/rewrap/*" { capabilities = ["update"] }
    path "transit/encrypt/unmakeable" { capabilities = ["update"] }
    path "nowhere/*" { capabilities = ["create", "read", "update"] }
"#;

/// `x` in base64.
const PLAIN: &str = "eA==";

impl Stand {
    fn new(url: &str, root_token: &str) -> Self {
        let admin = VaultAdmin::new(url, root_token);
        admin.mount_transit();
        for key in ["k", "narrow", "gone", "again"] {
            admin.write(&format!("transit/keys/{key}"), &json!({}));
        }
        admin.write("transit/keys/signing", &json!({ "type": "ed25519" }));
        let encrypt = |key: &str| {
            let answer =
                admin.write(&format!("transit/encrypt/{key}"), &json!({ "plaintext": PLAIN }));
            answer["data"]["ciphertext"].as_str().unwrap().to_owned()
        };
        let old = encrypt("k");
        for key in ["k", "narrow"] {
            admin.write(&format!("transit/keys/{key}/rotate"), &json!({}));
        }
        admin.write("transit/keys/narrow/config", &json!({ "min_decryption_version": 2 }));
        let new = encrypt("k");
        let user = admin.token("user", USER, &json!({ "period": "1h" }));
        let nothing = r#"path "none" { capabilities = ["read"] }"#;
        let poor = admin.token("poor", nothing, &json!({ "ttl": "1h" }));
        Self {
            http: reqwest::Client::builder().no_proxy().build().unwrap(),
            url: url.to_owned(),
            admin,
            root: root_token.to_owned(),
            user,
            poor,
            old,
            new,
        }
    }

    async fn ask(&self, row: &Row) -> Option<(u16, Value)> {
        let url = format!("{}/v1/{}", self.url, row.path);
        let mut request = self.http.request(row.method.clone(), url).body(row.body.clone());
        if let Some(token) = &row.token {
            request = request.header("x-vault-token", token);
        }
        if let Some(namespace) = row.namespace {
            request = request.header("x-vault-namespace", namespace);
        }
        let answer = request.send().await.ok()?;
        let status = answer.status().as_u16();
        let text = answer.text().await.ok()?;
        let no_json = |_| json!({ "no JSON": text });
        let body = if text.is_empty() { Ok(Value::Null) } else { serde_json::from_str(&text) };
        Some((status, body.unwrap_or_else(no_json)))
    }

    /// A token with settings of `auth/token/create`.
    fn token(&self, settings: Value) -> String {
        self.admin.token("user", USER, &settings)
    }
}

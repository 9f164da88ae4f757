//! The transit engine: keys with versions, and real AES-256-GCM under them.
//!
//! Paths and answers as in <https://developer.hashicorp.com/vault/api-docs/secret/transit>.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::{
    answer::{Answer, Outcome, Refusal},
    request::{Fields, Operation, Request},
    transit_key::{Failure, Key, Kind},
};

/// One mount of the engine.
#[derive(Default, Serialize, Deserialize)]
pub(crate) struct Transit {
    keys: BTreeMap<String, Key>,
    disable_upsert: bool,
}

impl Transit {
    /// For `encrypt/<name>`: whether the key is there, so that a write is a creation or an update.
    pub(crate) fn exists(&self, path: &[&str]) -> Option<bool> {
        match path {
            ["encrypt", name] => Some(self.keys.contains_key(*name)),
            _ => None,
        }
    }

    /// Answers below the mount.
    pub(crate) fn handle(&mut self, now: u64, path: &[&str], request: &Request) -> Outcome {
        use Operation::{Create, Delete, List, Read, Update};
        let fields = &request.fields;
        if let [_, name, ..] = path
            && !is_name(name)
        {
            return Err(Refusal::unsupported_path());
        }
        match (request.operation, path) {
            (List, ["keys"]) => Answer::list(self.keys.keys()),
            (Update, ["keys", name]) => self.create(name, now, fields),
            (Read, ["keys", name]) => match self.keys.get(*name) {
                Some(key) => Ok(Answer::data(key.show(name))),
                None => Err(Refusal::not_found()),
            },
            (Delete, ["keys", name]) => self.delete(name),
            (Update, ["keys", name, "config"]) => self.configure(name, fields),
            (Update, ["keys", name, "rotate"]) => {
                let key = self.rotate(name, now)?;
                Ok(Answer::data(key.show(name)))
            }
            (Update, ["config", "keys"]) => {
                self.disable_upsert = fields.flag("disable_upsert")?.unwrap_or(false);
                Ok(self.show_config())
            }
            (Read, ["config", "keys"]) => Ok(self.show_config()),
            (Create, ["encrypt", name]) => {
                if !self.disable_upsert {
                    self.upsert(name, now, fields)?;
                }
                self.encrypt(name, fields)
            }
            (Update, ["encrypt", name]) => self.encrypt(name, fields),
            (Update, ["decrypt", name]) => self.decrypt(name, fields),
            (Update, ["rewrap", name]) => self.rewrap(name, fields),
            (_, ["keys"] | ["keys" | "encrypt" | "decrypt" | "rewrap", _])
            | (_, ["keys", _, "config" | "rotate"] | ["config", "keys"]) => {
                Err(Refusal::unsupported_operation())
            }
            _ => Err(Refusal::unsupported_path()),
        }
    }

    /// Gives a key a new version.
    pub(crate) fn rotate(&mut self, name: &str, now: u64) -> Result<&Key, Refusal> {
        let key = self.keys.get_mut(name).ok_or_else(|| Refusal::invalid("key not found"))?;
        key.rotate(now)?;
        Ok(key)
    }

    /// Makes a key of the usual type, in place of one of its name.
    pub(crate) fn make(&mut self, name: &str, now: u64) -> Result<(), Refusal> {
        self.keys.insert(name.to_owned(), Key::new(Kind::Aes256Gcm96, false, false, now)?);
        Ok(())
    }

    /// Removes a key, and tells whether it was there.
    pub(crate) fn remove(&mut self, name: &str) -> bool {
        self.keys.remove(name).is_some()
    }

    fn create(&mut self, name: &str, now: u64, fields: &Fields) -> Outcome {
        fields.refuse(&["derived", "convergent_encryption", "auto_rotate_period"])?;
        let kind = Kind::named(fields)?;
        if let Some(key) = self.keys.get(name) {
            return Ok(Answer::data(key.show(name)));
        }
        let key = Key::new(
            kind,
            fields.flag("exportable")?.unwrap_or(false),
            fields.flag("allow_plaintext_backup")?.unwrap_or(false),
            now,
        )?;
        let answer = Answer::data(key.show(name));
        self.keys.insert(name.to_owned(), key);
        Ok(answer)
    }

    fn upsert(&mut self, name: &str, now: u64, fields: &Fields) -> Result<(), Refusal> {
        fields.refuse(&["convergent_encryption"])?;
        // What the request lacks must be known before the key is made.
        Batch::read(fields, Act::Encrypt)?;
        if let Some(kind @ ("ecdsa-p256" | "ecdsa-p384" | "ecdsa-p521")) =
            fields.string("type")?.as_deref()
        {
            let refused = format!("key type {kind} not supported for this operation");
            return Err(Refusal::invalid(refused));
        }
        match Kind::named(fields)? {
            Kind::Aes256Gcm96 => self.make(name, now),
            kind => Err(Refusal::invalid(format!("unknown key type {kind}"))),
        }
    }

    fn delete(&mut self, name: &str) -> Outcome {
        let refused = |why| Err(Refusal::invalid(format!("error deleting policy {name}: {why}")));
        match self.keys.get(name) {
            None => refused("could not delete key; not found"),
            Some(key) if !key.deletion_allowed => refused("deletion is not allowed for this key"),
            Some(_) => {
                self.remove(name);
                Ok(Answer::nothing())
            }
        }
    }

    fn configure(&mut self, name: &str, fields: &Fields) -> Outcome {
        fields.refuse(&["auto_rotate_period"])?;
        let key = self.keys.get_mut(name).ok_or_else(|| {
            Refusal::invalid(format!("no existing key named {name} could be found"))
        })?;
        let latest = i64::from(key.latest_version());
        let version = |field: &str, words: &str| match fields.integer(field)? {
            None => Ok(None),
            Some(n) if n < 0 => Err(Refusal::invalid(format!("{words} cannot be negative"))),
            Some(n) if n > latest => Err(Refusal::invalid(format!(
                "cannot set {words} of {n}, latest key version is {latest}"
            ))),
            Some(n) => Ok(u32::try_from(n).ok()),
        };
        let mut warnings = Vec::new();
        let decryption = match version("min_decryption_version", "min decryption version")? {
            Some(0) => {
                warnings.push(
                    "since Vault 0.3, transit key numbering starts at 1; forcing minimum to 1"
                        .to_owned(),
                );
                1
            }
            given => given.unwrap_or(key.min_decryption_version),
        };
        let encryption = version("min_encryption_version", "min encryption version")?
            .unwrap_or(key.min_encryption_version);
        if encryption > 0 && encryption < decryption {
            return Err(Refusal::invalid(format!(
                "cannot set min encryption/decryption values; min encryption version of {encryption} must be greater than or equal to min decryption version of {decryption}"
            )));
        }
        let deletion_allowed = fields.flag("deletion_allowed")?.unwrap_or(key.deletion_allowed);
        // These two can be set and never unset.
        let exportable = fields.flag("exportable")?.unwrap_or(false) || key.exportable;
        let backup =
            fields.flag("allow_plaintext_backup")?.unwrap_or(false) || key.allow_plaintext_backup;
        key.min_decryption_version = decryption;
        key.min_encryption_version = encryption;
        key.deletion_allowed = deletion_allowed;
        key.exportable = exportable;
        key.allow_plaintext_backup = backup;
        Ok(Answer::data(key.show(name)).with_warnings(warnings))
    }

    fn show_config(&self) -> Answer {
        Answer::data(json!({ "disable_upsert": self.disable_upsert }))
    }

    fn encrypt(&self, name: &str, fields: &Fields) -> Outcome {
        let batch = Batch::read(fields, Act::Encrypt)?;
        let key = self.key_for_data(name)?;
        batch.answer(fields, |item| {
            item.has_no_nonce()?;
            let (ciphertext, version) =
                key.encrypt(item.key_version, &item.text, &item.associated_data)?;
            Ok(json!({ "ciphertext": ciphertext, "key_version": version }))
        })
    }

    fn decrypt(&self, name: &str, fields: &Fields) -> Outcome {
        let batch = Batch::read(fields, Act::Decrypt)?;
        let key = self.key_for_data(name)?;
        batch.answer(fields, |item| {
            item.has_text()?;
            let plaintext = key.decrypt(&item.text, &item.associated_data)?;
            Ok(json!({ "plaintext": plaintext }))
        })
    }

    /// Vault's `rewrap` knows no associated data: what was sealed with some fails here.
    fn rewrap(&self, name: &str, fields: &Fields) -> Outcome {
        let batch = Batch::read(fields, Act::Rewrap)?;
        let key = self.key_for_data(name)?;
        batch.answer(fields, |item| {
            item.has_text()?;
            item.has_no_nonce()?;
            let plaintext = key.decrypt(&item.text, "")?;
            let (ciphertext, version) = key.encrypt(item.key_version, &plaintext, "")?;
            Ok(json!({ "ciphertext": ciphertext, "key_version": version }))
        })
    }

    fn key_for_data(&self, name: &str) -> Result<&Key, Refusal> {
        self.keys.get(name).ok_or_else(|| Refusal::invalid("encryption key not found"))
    }
}

/// What is done with the items of a request.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Encrypt,
    Decrypt,
    Rewrap,
}

impl Act {
    /// The field in which an item's text stands.
    fn field(self) -> &'static str {
        if self == Self::Encrypt { "plaintext" } else { "ciphertext" }
    }

    fn missing(self) -> String {
        let verb = if self == Self::Encrypt { "encrypt" } else { "decrypt" };
        format!("missing {} to {verb}", self.field())
    }
}

/// The items of one request, be it a `batch_input` or a single one.
struct Batch {
    act: Act,
    items: Vec<Item>,
    is_single: bool,
}

struct Item {
    /// What is to be encrypted or decrypted, as it came: base64 or ciphertext.
    text: String,
    key_version: i64,
    associated_data: String,
    nonce: String,
    reference: String,
}

impl Batch {
    fn read(fields: &Fields, act: Act) -> Result<Self, Refusal> {
        let Some(batch) = fields.raw("batch_input") else { return Self::read_single(fields, act) };
        let items =
            batch.as_array().ok_or_else(|| unreadable("source data must be an array or slice"))?;
        if items.is_empty() {
            return Err(Refusal::invalid("missing batch input to process"));
        }
        let mut read = Vec::with_capacity(items.len());
        let mut errors = Vec::new();
        for (i, item) in items.iter().enumerate() {
            let item =
                item.as_object().ok_or_else(|| unreadable(&format!("[{i}] expected a map")))?;
            if item
                .get("context")
                .and_then(Value::as_str)
                .is_some_and(|context| !context.is_empty())
            {
                return Err(Refusal::invalid(
                    "context is not supported by this development server; use a real Vault",
                ));
            }
            // Only `rewrap` takes an item without its text for one that fails by itself.
            if act != Act::Rewrap && !item.contains_key(act.field()) {
                errors.push(format!("'[{i}].{}' {}", act.field(), act.missing()));
            }
            read.push(Item::read(item, act, |name, kind| {
                errors
                    .push(format!("'[{i}].{name}' expected type '{kind}', got unconvertible type"));
            }));
        }
        if !errors.is_empty() {
            let lines: String = errors.iter().map(|error| format!("\n* {error}")).collect();
            return Err(unreadable(&format!("{} error(s) decoding:\n{lines}", errors.len())));
        }
        Ok(Self { act, items: read, is_single: false })
    }

    fn read_single(fields: &Fields, act: Act) -> Result<Self, Refusal> {
        fields.refuse(&["context"])?;
        let string = |name: &str| Ok(fields.string(name)?.unwrap_or_default());
        // The empty string can be encrypted, but it is no ciphertext.
        let text =
            fields.string(act.field())?.filter(|text| act == Act::Encrypt || !text.is_empty());
        let item = Item {
            text: text.ok_or_else(|| Refusal::invalid(act.missing()))?,
            key_version: fields.integer("key_version")?.unwrap_or(0),
            associated_data: string("associated_data")?,
            nonce: string("nonce")?,
            reference: String::new(),
        };
        Ok(Self { act, items: vec![item], is_single: true })
    }

    /// Does each item, and answers for all of them.
    fn answer(&self, fields: &Fields, each: impl Fn(&Item) -> Result<Value, Failure>) -> Outcome {
        if self.is_single {
            return match self.items.first().map(each) {
                Some(Ok(data)) => Ok(Answer::data(data)),
                Some(Err(failure)) => Err(failure.refusal()),
                None => Err(Refusal::invalid(self.act.missing())),
            };
        }
        let mut succeeded = 0;
        // 400 if any item failed by its sender's fault, 500 if some failed by Vault's own.
        let mut status = 200;
        let mut results = Vec::with_capacity(self.items.len());
        for item in &self.items {
            let mut result = match each(item) {
                Ok(result) => {
                    succeeded += 1;
                    result
                }
                Err(failure) => {
                    status = if status == 400 { 400 } else { failure.status() };
                    let mut result = json!({ "error": failure.to_string() });
                    if self.act == Act::Decrypt {
                        result["plaintext"] = json!("");
                    }
                    result
                }
            };
            result["reference"] = json!(item.reference);
            results.push(result);
        }
        let answer = Answer::data(json!({ "batch_results": results }));
        if status == 200 || self.act == Act::Rewrap {
            return Ok(answer);
        }
        match fields.integer("partial_failure_response_code")? {
            Some(code) if succeeded > 0 => match u16::try_from(code) {
                // Statuses below 200 are no final answer, so HTTP can't carry them here.
                Ok(code) if (200..=599).contains(&code) => Ok(answer.with_status(code)),
                _ => Ok(answer.with_status(status).with_warnings([format!(
                    "invalid HTTP response code override from partial_failure_response_code, reverting to {status}"
                )])),
            },
            _ => Ok(answer.with_status(status)),
        }
    }
}

impl Item {
    fn read(item: &Map<String, Value>, act: Act, mut wrong: impl FnMut(&str, &str)) -> Self {
        let mut string = |name: &str| match item.get(name) {
            Some(Value::String(text)) => text.clone(),
            None | Some(Value::Null) => String::new(),
            Some(_) => {
                wrong(name, "string");
                String::new()
            }
        };
        let (text, associated_data) = (string(act.field()), string("associated_data"));
        let (nonce, reference) = (string("nonce"), string("reference"));
        let key_version = match item.get("key_version") {
            None | Some(Value::Null) => 0,
            Some(version) => version.as_i64().unwrap_or_else(|| {
                wrong("key_version", "int");
                0
            }),
        };
        Self { text, key_version, associated_data, nonce, reference }
    }

    fn has_text(&self) -> Result<(), Failure> {
        if self.text.is_empty() {
            Err(Failure::new("missing ciphertext to decrypt"))
        } else {
            Ok(())
        }
    }

    fn has_no_nonce(&self) -> Result<(), Failure> {
        if self.nonce.is_empty() {
            Ok(())
        } else {
            Err(Failure::new("provided nonce not allowed for this key"))
        }
    }
}

/// A batch whose shape is wrong is an internal error to Vault.
fn unreadable(why: &str) -> Refusal {
    Refusal::internal(&format!("failed to parse batch input: {why}"))
}

/// Vault's `GenericNameRegex`: word characters, and dots and dashes between them.
pub(crate) fn is_name(name: &str) -> bool {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    name.starts_with(is_word)
        && name.ends_with(is_word)
        && name.chars().all(|c| is_word(c) || c == '.' || c == '-')
}

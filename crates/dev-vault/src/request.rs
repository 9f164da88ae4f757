//! What a request asks, freed from HTTP, and how Vault reads its fields.

use serde_json::{Map, Value};

use crate::answer::Refusal;

/// What Vault's access rules call the act. `POST` and `PUT` mean `Update` until the path's owner says
/// that the thing does not exist yet: then they mean `Create`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Operation {
    Create,
    Read,
    Update,
    Delete,
    List,
}

/// One request below `/v1/`.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) operation: Operation,
    /// Without `/v1/` and without slashes at the ends.
    pub(crate) path: String,
    pub(crate) token: Option<String>,
    pub(crate) fields: Fields,
}

/// The fields of a request, read as leniently as Vault does: its command line sends every value as a
/// string (`vault write … deletion_allowed=true`).
#[derive(Debug, Default)]
pub(crate) struct Fields(pub(crate) Map<String, Value>);

impl Fields {
    /// The field as it came; `null` counts as absent.
    pub(crate) fn raw(&self, name: &str) -> Option<&Value> {
        self.0.get(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&self, name: &str) -> Result<Option<String>, Refusal> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.clone())),
            Some(Value::Number(number)) => Ok(Some(number.to_string())),
            Some(Value::Bool(flag)) => Ok(Some(u8::from(*flag).to_string())),
            Some(_) => Err(not_a(name, "string")),
        }
    }

    pub(crate) fn integer(&self, name: &str) -> Result<Option<i64>, Refusal> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Number(number)) => number.as_i64().map(Some).ok_or(not_a(name, "int")),
            Some(Value::String(text)) if text.is_empty() => Ok(Some(0)),
            Some(Value::String(text)) => text.parse().map(Some).map_err(|_| not_a(name, "int")),
            Some(_) => Err(not_a(name, "int")),
        }
    }

    pub(crate) fn flag(&self, name: &str) -> Result<Option<bool>, Refusal> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(Value::Number(number)) => Ok(Some(number.as_f64() != Some(0.0))),
            Some(Value::String(text)) => match text.as_str() {
                "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(Some(true)),
                "" | "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(Some(false)),
                _ => Err(not_a(name, "bool")),
            },
            Some(_) => Err(not_a(name, "bool")),
        }
    }

    /// A duration in seconds: a number, or a string such as `768h` or `1h30m`.
    pub(crate) fn seconds(&self, name: &str) -> Result<Option<u64>, Refusal> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => duration(name, text).map(Some),
            Some(Value::Number(number)) => duration(name, &number.to_string()).map(Some),
            Some(_) => Err(not_a(name, "duration in seconds")),
        }
    }

    /// A list of strings; one string is a list of one.
    pub(crate) fn strings(&self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        match self.raw(name) {
            Some(Value::String(text)) => Ok(Some(vec![text.clone()])),
            _ => self.list(name),
        }
    }

    /// A list of strings, or one string with commas between them.
    pub(crate) fn list(&self, name: &str) -> Result<Option<Vec<String>>, Refusal> {
        match self.raw(name) {
            None => Ok(None),
            Some(Value::String(text)) => {
                let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
                Ok(Some(parts.map(str::to_owned).collect()))
            }
            Some(Value::Array(items)) => items
                .iter()
                .map(|item| item.as_str().map(str::to_owned).ok_or(not_a(name, "list of strings")))
                .collect::<Result<_, _>>()
                .map(Some),
            Some(_) => Err(not_a(name, "list of strings")),
        }
    }

    /// Refuses what real Vault would do and this server does not: better a clear "no" than an answer
    /// that a real Vault would not give.
    pub(crate) fn refuse(&self, unsupported: &[&str]) -> Result<(), Refusal> {
        let asked = |value: &Value| match value {
            Value::Bool(flag) => *flag,
            Value::String(text) => !matches!(text.as_str(), "" | "0" | "false"),
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::Array(items) => !items.is_empty(),
            _ => true,
        };
        match unsupported.iter().find(|name| self.raw(name).is_some_and(asked)) {
            Some(name) => Err(Refusal::invalid(format!(
                "{name} is not supported by this development server; use a real Vault"
            ))),
            None => Ok(()),
        }
    }
}

fn duration(name: &str, text: &str) -> Result<u64, Refusal> {
    /// A hundred years, so that no sum with a time of day can overflow.
    const LONGEST: u64 = 100 * 365 * 24 * 3600;
    if text.is_empty() {
        return Ok(0);
    }
    if text.starts_with('-') {
        return Err(Refusal::invalid(format!("{name} must be positive")));
    }
    text.parse()
        .ok()
        .or_else(|| humantime::parse_duration(text).ok().map(|duration| duration.as_secs()))
        .filter(|seconds| *seconds <= LONGEST)
        .ok_or_else(|| Refusal::invalid(format!("time: invalid duration {text:?}")))
}

fn not_a(name: &str, kind: &str) -> Refusal {
    Refusal::invalid(format!(
        "Field validation failed: error converting input for field {name:?}: expected {kind}"
    ))
}

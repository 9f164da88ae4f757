//! Vault's answers: the envelope, the bare answers of some `sys` paths, and refusals.

use serde_json::{Value, json};
use uuid::Uuid;

/// What a handled request gives.
pub(crate) type Outcome = Result<Answer, Refusal>;

/// A request that was done.
#[derive(Debug)]
pub(crate) struct Answer {
    status: u16,
    body: Body,
    warnings: Vec<String>,
    mount_type: &'static str,
}

#[derive(Debug)]
enum Body {
    Nothing,
    Data(Value),
    /// Old `sys` paths show their data in `data` and once more beside it.
    DataTwice(Value),
    Auth(Value),
    Bare(Value),
}

impl Answer {
    pub(crate) fn nothing() -> Self {
        Self::new(204, Body::Nothing)
    }

    pub(crate) fn data(data: Value) -> Self {
        Self::new(200, Body::Data(data))
    }

    pub(crate) fn data_twice(data: Value) -> Self {
        Self::new(200, Body::DataTwice(data))
    }

    pub(crate) fn auth(auth: Value) -> Self {
        Self::new(200, Body::Auth(auth))
    }

    /// Without the envelope: `sys/health`, `sys/seal-status` and their like.
    pub(crate) fn bare(status: u16, body: Value) -> Self {
        Self::new(status, Body::Bare(body))
    }

    /// A list of names. Vault has no empty lists: they are 404.
    pub(crate) fn list<'a>(names: impl IntoIterator<Item = &'a String>) -> Outcome {
        let names: Vec<_> = names.into_iter().collect();
        if names.is_empty() {
            Err(Refusal::not_found())
        } else {
            Ok(Self::data(json!({ "keys": names })))
        }
    }

    pub(crate) fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// Names the kind of mount that answered. Vault leaves it out where it overrode the status.
    pub(crate) fn of_mount(mut self, mount_type: &'static str) -> Self {
        if self.status == 200 {
            self.mount_type = mount_type;
        }
        self
    }

    /// A warning needs a body to stand in.
    pub(crate) fn with_warnings(mut self, warnings: impl IntoIterator<Item = String>) -> Self {
        self.warnings.extend(warnings);
        if !self.warnings.is_empty() && matches!(self.body, Body::Nothing) {
            self.status = 200;
            self.body = Body::Data(Value::Null);
        }
        self
    }

    fn new(status: u16, body: Body) -> Self {
        Self { status, body, warnings: Vec::new(), mount_type: "" }
    }

    /// The status and the JSON body, if there is one.
    pub(crate) fn render(self) -> (u16, Option<Value>) {
        let (data, auth, twice) = match self.body {
            Body::Nothing => return (self.status, None),
            Body::Bare(body) => return (self.status, Some(body)),
            Body::Data(data) => (data, Value::Null, Value::Null),
            Body::DataTwice(data) => (data.clone(), Value::Null, data),
            Body::Auth(auth) => (Value::Null, auth, Value::Null),
        };
        let mut body = json!({
            "request_id": Uuid::new_v4().to_string(),
            "lease_id": "",
            "renewable": false,
            "lease_duration": 0,
            "data": data,
            "wrap_info": null,
            "warnings": if self.warnings.is_empty() { Value::Null } else { json!(self.warnings) },
            "auth": auth,
            "mount_type": self.mount_type,
        });
        if let (Value::Object(body), Value::Object(twice)) = (&mut body, twice) {
            for (name, value) in twice {
                body.entry(name).or_insert(value);
            }
        }
        (self.status, Some(body))
    }
}

/// A request that was refused.
#[derive(Debug)]
pub(crate) struct Refusal {
    status: u16,
    errors: Vec<String>,
}

impl Refusal {
    pub(crate) fn new(status: u16, error: impl Into<String>) -> Self {
        Self { status, errors: vec![error.into()] }
    }

    /// 400
    pub(crate) fn invalid(error: impl Into<String>) -> Self {
        Self::new(400, error)
    }

    /// 403 to a request without a token.
    pub(crate) fn no_token() -> Self {
        Self::new(403, "permission denied")
    }

    /// 403 to a token that lives but may not.
    pub(crate) fn denied() -> Self {
        Self::multi(403, &["permission denied"])
    }

    /// 403 to a token that is none, or no more.
    pub(crate) fn bad_token() -> Self {
        Self::multi(403, &["permission denied", "invalid token"])
    }

    /// 404 of a thing that is not there: Vault gives no words with it.
    pub(crate) fn not_found() -> Self {
        Self { status: 404, errors: Vec::new() }
    }

    pub(crate) fn unsupported_path() -> Self {
        Self::multi(404, &["unsupported path"])
    }

    pub(crate) fn unsupported_operation() -> Self {
        Self::multi(405, &["unsupported operation"])
    }

    pub(crate) fn sealed() -> Self {
        Self::new(503, "Vault is sealed")
    }

    /// 500, in the form in which Vault reports what its handlers did not expect.
    pub(crate) fn internal(error: &str) -> Self {
        Self::multi(500, &[error])
    }

    /// Vault collects errors on the way out and prints them as one text.
    fn multi(status: u16, errors: &[&str]) -> Self {
        let count = match errors.len() {
            1 => "1 error occurred:".to_owned(),
            n => format!("{n} errors occurred:"),
        };
        let lines: String = errors.iter().map(|error| format!("\n\t* {error}")).collect();
        Self::new(status, format!("{count}{lines}\n\n"))
    }

    pub(crate) fn render(self) -> (u16, Value) {
        (self.status, json!({ "errors": self.errors }))
    }
}

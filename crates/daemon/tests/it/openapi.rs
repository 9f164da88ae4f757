//! The description of the API: it is held against what the node answers, field by field.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use key_manager::Rehearsal;
use serde_json::{Value, json};
use testkit::tree;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::world::{Running, World, set_vault};

/// Where the resources are, as the crate that node and clients share has it.
const PATHS: &str = include_str!("../../../admin-api/src/paths.rs");

const METHODS: [&str; 5] = ["get", "put", "post", "delete", "patch"];

/// The document, and what of it was asked.
struct Document {
    whole: Value,
    /// Its schemas, none of which lets a field through that it does not name.
    strict: Value,
    asked: BTreeSet<String>,
}

impl Document {
    async fn of(node: &Running) -> Self {
        let whole = node.get("/v1/openapi.json").await;
        let mut strict = whole["components"].clone();
        for schema in strict["schemas"].as_object_mut().unwrap().values_mut() {
            if schema.get("properties").is_some() {
                schema["additionalProperties"] = false.into();
            }
        }
        Self { whole, strict, asked: BTreeSet::new() }
    }

    fn operations(&self) -> impl Iterator<Item = (&str, &str, &Value)> {
        let paths = self.whole["paths"].as_object().unwrap().iter();
        paths.flat_map(|(path, methods)| {
            let methods = methods.as_object().unwrap().iter();
            let methods = methods.filter(|(method, _)| METHODS.contains(&method.as_str()));
            methods.map(|(method, operation)| (method.as_str(), path.as_str(), operation))
        })
    }

    /// The operation that serves this request.
    fn operation(&self, method: &str, path: &str) -> &Value {
        let path = path.split('?').next().unwrap();
        let fits = |template: &str| {
            let (template, path) = (template.split('/'), path.split('/'));
            template.clone().count() == path.clone().count()
                && template.zip(path).all(|(is, part)| is.starts_with('{') || is == part)
        };
        let mut all = self.operations();
        let found = all.find(|(of, template, _)| of.eq_ignore_ascii_case(method) && fits(template));
        found.unwrap_or_else(|| panic!("{method} {path} is not described")).2
    }

    fn assert_fits(&self, schema: &Value, value: &Value, of: &str) {
        let schema = json!({ "allOf": [schema], "components": self.strict });
        let validator = jsonschema::draft202012::new(&schema).unwrap();
        let errors: Vec<String> =
            validator.iter_errors(value).map(|e| format!("{e} at {}", e.instance_path())).collect();
        assert!(errors.is_empty(), "{of}: {errors:?}: {value:#}");
    }

    /// Asks, and holds request and answer against the document.
    async fn ask(&mut self, node: &Running, method: &str, path: &str, body: &Value) -> Value {
        let operation = self.operation(method, path);
        let id = operation["operationId"].as_str().unwrap().to_owned();
        let request = &operation["requestBody"]["content"]["application/json"]["schema"];
        if !body.is_null() {
            self.assert_fits(request, body, &id);
        }
        for (name, _) in query(path) {
            let parameters = operation["parameters"].as_array().unwrap();
            let is_there = parameters.iter().any(|it| it["name"] == *name && it["in"] == "query");
            assert!(is_there, "{id} has no {name}");
        }
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let answer = node.ask(method, path, &text).await;
        let response = match answer.status {
            200 => &operation["responses"]["200"],
            _ => &operation["responses"]["default"],
        };
        let kind = answer.kind.split(';').next().unwrap();
        let schema = &response["content"][kind]["schema"];
        assert!(schema.is_object(), "{id} answers {kind}: {answer:?}");
        self.assert_fits(schema, &answer.body, &id);
        if answer.status == 200 {
            self.asked.insert(id);
        }
        answer.body
    }

    /// As [`Self::ask`], of what must be done.
    async fn ok(&mut self, node: &Running, method: &str, path: &str, body: Value) -> Value {
        let answer = self.ask(node, method, path, &body).await;
        assert!(answer["type"].is_null(), "{method} {path}: {answer}");
        answer
    }

    /// Begins to read a stream of events.
    async fn follow(&mut self, node: &Running, path: &str, event: &str) {
        let operation = self.operation("get", path);
        assert!(operation["responses"]["200"]["content"]["text/event-stream"].is_object());
        self.asked.insert(operation["operationId"].as_str().unwrap().to_owned());
        let mut stream = node.send_with("", "GET", path, "").await;
        let (mut text, mut bytes) = (String::new(), vec![0; 1 << 16]);
        while !text.contains("data: ") {
            let read = timeout(Duration::from_secs(20), stream.read(&mut bytes)).await;
            text.push_str(str::from_utf8(&bytes[..read.unwrap().unwrap()]).unwrap());
        }
        assert!(text.contains(&format!("event: {event}")), "{text}");
        if let Some(job) = text.lines().find_map(|line| line.strip_prefix("data: {")) {
            let job: Value = serde_json::from_str(&format!("{{{job}")).unwrap();
            self.assert_fits(&json!({ "$ref": "#/components/schemas/Job" }), &job, path);
        }
    }
}

fn query(path: &str) -> Vec<(&str, &str)> {
    let query = path.split_once('?').map(|(_, query)| query).unwrap_or_default();
    query.split('&').filter_map(|pair| pair.split_once('=')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_resource_is_described_and_nothing_else() {
    let world = World::new();
    let node = world.start().await;
    let document = Document::of(&node).await;
    let constants = PATHS.lines().filter(|line| line.starts_with("pub const"));
    let paths: BTreeSet<&str> = constants.filter_map(|line| line.split('"').nth(1)).collect();
    let described: BTreeSet<&str> = document.operations().map(|(_, path, _)| path).collect();
    assert_eq!(described, paths);
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_description_is_whole() {
    let world = World::new();
    let node = world.start().await;
    let document = Document::of(&node).await;
    assert!(document.whole["openapi"].as_str().unwrap().starts_with("3.1."));
    assert!(document.whole["info"]["version"].is_string());
    let mut ids = BTreeSet::new();
    for (method, path, operation) in document.operations() {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{method} {path}");
        assert!(!operation["summary"].as_str().unwrap().is_empty(), "{method} {path}");
        assert!(operation["responses"]["200"]["description"].is_string(), "{method} {path}");
        let problem = &operation["responses"]["default"]["content"]["application/problem+json"];
        assert_eq!(problem["schema"]["$ref"], "#/components/schemas/Problem", "{method} {path}");
        let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
        for parameter in &parameters {
            let told = parameter["schema"].is_object() && parameter["description"].is_string();
            assert!(told, "{method} {path}: {parameter}");
        }
        for part in path.split('/').filter_map(|part| part.strip_prefix('{')) {
            let name = part.trim_end_matches('}');
            let is =
                |it: &Value| it["name"] == name && it["in"] == "path" && it["required"] == true;
            assert!(parameters.iter().any(is), "{method} {path} does not tell what {name} is");
        }
    }
    let mut followed = 0;
    each_value(&document.whole, &mut |value| {
        if let Some(Value::String(to)) = value.get("$ref") {
            let pointer = to.strip_prefix('#').unwrap();
            assert!(document.whole.pointer(pointer).is_some(), "{to} leads nowhere");
            followed += 1;
        }
        let described = value.get("properties").and_then(Value::as_object);
        for (name, field) in described.into_iter().flatten() {
            let text = field.to_string();
            assert!(text.contains("description") || text.contains("$ref"), "{name}: {field}");
        }
    });
    assert!(followed > 50, "{followed}");
    let codes =
        document.whole["components"]["schemas"]["Problem"]["properties"]["code"].to_string();
    assert!(codes.contains("`kms-changed` (412)"), "{codes}");
    let token = &document.whole["components"]["schemas"]["Token"];
    assert_eq!((&token["writeOnly"], &token["format"]), (&json!(true), &json!("password")));
    node.stop().await;
}

fn each_value(value: &Value, look: &mut impl FnMut(&Value)) {
    look(value);
    match value {
        Value::Object(fields) => fields.values().for_each(|value| each_value(value, look)),
        Value::Array(values) => values.iter().for_each(|value| each_value(value, look)),
        _ => {}
    }
}

fn nothing_found() -> Rehearsal {
    Rehearsal {
        open: 1,
        shut: Vec::new(),
        held: Vec::new(),
        credential_left: None,
        stopped_left: None,
        starts_left: None,
        until: None,
        out_of_reach: Vec::new(),
        warnings: vec!["one".to_owned()],
    }
}

/// Opens a session of the console with this link, as a browser does, and asks for this with it.
async fn through_the_console(link: &str, path: &str) -> String {
    let (page, code) = link.split_once('#').unwrap();
    let host = page.strip_prefix("http://").unwrap().strip_suffix("/login").unwrap();
    let ask = async |head: &str, body: &str| {
        let mut stream = TcpStream::connect(host).await.unwrap();
        let request = format!("{head}\r\nhost: {host}\r\nconnection: close\r\n\r\n{body}");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let body = format!("code={code}");
    let head = format!(
        "POST /login HTTP/1.1\r\norigin: http://{host}\r\ncontent-type: application/x-www-form-urlencoded\r\ncontent-length: {}",
        body.len()
    );
    let answer = ask(&head, &body).await;
    assert!(answer.starts_with("HTTP/1.1 303 "), "{answer}");
    let cookie = answer.split_once("set-cookie: ").unwrap().1.split_once(';').unwrap().0;
    ask(&format!("GET {path} HTTP/1.1\r\ncookie: {cookie}"), "").await
}

/// Changes a bit of the largest file below this one.
fn damage_some(backing: &Path) {
    let mut files = Vec::new();
    let mut directories = vec![backing.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap().map(Result::unwrap) {
            let of =
                if entry.file_type().unwrap().is_dir() { &mut directories } else { &mut files };
            of.push(entry.path());
        }
    }
    let largest =
        files.iter().max_by_key(|file| std::fs::symlink_metadata(file).unwrap().len()).unwrap();
    let mut bytes = std::fs::read(largest).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(largest, bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_node_answers_is_what_is_described() {
    let world = World::new();
    let node = world.start().await;
    let mut api = Document::of(&node).await;
    api.ok(&node, "GET", "/v1/openapi.json", Value::Null).await;
    for path in ["/v1/status", "/v1/kms", "/v1/filesystems", "/v1/jobs", "/metrics"] {
        api.ok(&node, "GET", path, Value::Null).await;
    }
    // Refusals too, and what is exposed.
    api.ask(&node, "POST", "/v1/filesystems", &json!({"name": "exposed"})).await;
    api.ask(&node, "POST", "/v1/kms/rewrap", &Value::Null).await;
    let exposed = json!({"name": "exposed", "allow_no_kms": true});
    api.ok(&node, "POST", "/v1/filesystems", exposed).await;
    api.ok(&node, "PUT", "/v1/kms", set_vault()).await;
    world.kms_at(&format!("{}/own", crate::world::KMS)).rotate();
    let own = json!({"name": "own", "kms_key": "own", "backing": world.path("own")});
    api.ok(&node, "POST", "/v1/filesystems", own).await;
    api.ok(&node, "POST", "/v1/filesystems", json!({"name": "home"})).await;
    let source = world.path("source");
    tree::small_files(&source, 3).unwrap();
    std::os::unix::fs::symlink("large", source.join("link")).unwrap();
    std::fs::write(source.join("large"), tree::noise(1, 4 << 20)).unwrap();
    let job = api.ok(&node, "POST", "/v1/filesystems/home/import", json!({"source": source})).await;
    let of_job = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    node.ended(&job).await;
    api.ok(&node, "GET", &format!("{of_job}?wait_ms=1&damage_after=0"), Value::Null).await;
    api.follow(&node, &format!("{of_job}/events"), "end").await;
    api.follow(&node, "/v1/events", "changed").await;
    api.ask(&node, "POST", &format!("{of_job}/stop"), &Value::Null).await;
    api.ok(&node, "GET", "/v1/filesystems/home/ls?path=/&limit=2", Value::Null).await;
    let target = json!({"target": world.path("target")});
    let job = api.ok(&node, "POST", "/v1/filesystems/home/export", target).await;
    node.ended(&job).await;
    let job = api.ok(&node, "POST", "/v1/filesystems/home/rekey", Value::Null).await;
    node.ended(&job).await;
    damage_some(&world.path("state/filesystems/home"));
    let job = api.ok(&node, "POST", "/v1/filesystems/home/verify", json!({"repair": false})).await;
    let ended = node.ended(&job).await;
    assert!(!ended["damage"].as_array().unwrap().is_empty(), "{ended}");
    let of_job = format!("/v1/jobs/{}", job["id"].as_str().unwrap());
    api.ok(&node, "GET", &of_job, Value::Null).await;

    world.kms().rotate();
    let mut begun = world.kms().hold("rewrap");
    let job = api.ok(&node, "POST", "/v1/kms/rewrap", Value::Null).await;
    begun.reached().await;
    let stop = format!("/v1/jobs/{}/stop", job["id"].as_str().unwrap());
    api.ok(&node, "POST", &stop, Value::Null).await;
    drop(begun);
    node.ended(&job).await;
    let job = api.ok(&node, "POST", "/v1/kms/rewrap", json!({"filesystem": "home"})).await;
    node.ended(&job).await;
    for path in [
        "/v1/status",
        "/v1/kms",
        "/v1/filesystems?limit=1",
        "/v1/filesystems/home",
        "/v1/jobs?limit=1",
        "/v1/kms/impact?of=token",
        "/v1/kms/impact?of=versions&below=2&master_key=own",
        "/v1/kms/policy?master_key=k,own&transit_path=transit",
        "/v1/audit?limit=5&action=key.",
        "/v1/audit/verify",
        "/metrics",
    ] {
        api.ok(&node, "GET", path, Value::Null).await;
    }
    let link = api.ok(&node, "POST", "/v1/console/links", json!({"read_only": true})).await;
    let shown = through_the_console(link["url"].as_str().unwrap(), "/v1/filesystems/home").await;
    assert!(shown.starts_with("HTTP/1.1 200 ") && shown.contains("\"name\":\"home\""), "{shown}");
    let open = api.ok(&node, "GET", "/v1/console/sessions", Value::Null).await;
    let session = format!("/v1/console/sessions/{}", open["sessions"][0]["id"].as_str().unwrap());
    api.ok(&node, "DELETE", &session, Value::Null).await;
    api.ask(&node, "DELETE", &session, &Value::Null).await;
    let left = api.ok(&node, "DELETE", "/v1/console/sessions", Value::Null).await;
    assert_eq!(left, json!({"sessions": []}));
    api.ok(&node, "POST", "/v1/kms/check", Value::Null).await;
    api.ask(&node, "POST", "/v1/kms/rehearse", &Value::Null).await;
    world.rehearsals_find(nothing_found());
    api.ok(&node, "POST", "/v1/kms/rehearse", Value::Null).await;
    api.ok(&node, "POST", "/v1/filesystems/home/lock", json!({})).await;
    api.ok(&node, "GET", "/v1/filesystems/home", Value::Null).await;
    api.ask(&node, "GET", "/v1/filesystems/home/ls", &Value::Null).await;
    world.kms().set_down(Some(kms_core::KmsErrorKind::Sealed));
    api.ask(&node, "POST", "/v1/filesystems/home/unlock", &Value::Null).await;
    api.ok(&node, "GET", "/v1/kms", Value::Null).await;
    world.kms().set_down(None);
    api.ok(&node, "POST", "/v1/filesystems/home/unlock", Value::Null).await;
    api.ok(&node, "DELETE", "/v1/filesystems/home?forget=false", Value::Null).await;
    let unset = api.ok(&node, "DELETE", "/v1/kms?allow_downgrade=true", Value::Null).await;
    node.ended(&unset["job"]).await;

    let all = api.operations().map(|(_, _, operation)| operation["operationId"].as_str().unwrap());
    let left: Vec<&str> = all.filter(|id| !api.asked.contains(*id)).collect();
    assert!(left.is_empty(), "never asked: {left:?}");
    node.stop().await;
}

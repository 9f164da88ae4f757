//! `/v1/openapi.json`: the API's own description, in OpenAPI 3.1.
//!
//! It is made of the routes themselves, of the types of `admin-api`, and of what their documentation says. What all operations have in
//! common is added here: that each can be answered with a problem.

use std::sync::LazyLock;

use admin_api::{CODES, MEDIA_TYPE, Problem, paths};
use axum::http::header;
use axum::response::IntoResponse;
use serde_json::{Value, json};
use utoipa::{PartialSchema as _, ToSchema as _};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// Describes this API.
#[utoipa::path(
    get,
    path = paths::OPENAPI,
    operation_id = "getOpenApi",
    tag = "node",
    responses((status = 200, description = "An OpenAPI document", body = Object)),
)]
pub(crate) async fn show() -> impl IntoResponse {
    ([(header::CONTENT_TYPE, "application/json")], DOCUMENT.as_str())
}

fn document() -> Value {
    let (_, described) = super::described().split_for_parts();
    // Plain structs with string keys: turning them into a value can't fail.
    let mut document = serde_json::to_value(described).unwrap_or_default();
    document["info"] = json!({
        "title": "Coffer's admin API",
        "description": INTRODUCTION,
        "version": env!("CARGO_PKG_VERSION"),
        "license": { "name": env!("CARGO_PKG_LICENSE") },
    });
    document["servers"] =
        json!([{ "url": "http://coffer", "description": "The node, over its unix socket" }]);
    let mut schemas = vec![(Problem::name().into_owned(), Problem::schema())];
    Problem::schemas(&mut schemas);
    for (name, schema) in schemas {
        document["components"]["schemas"][name] = serde_json::to_value(schema).unwrap_or_default();
    }
    document["components"]["schemas"]["Problem"]["properties"]["code"]["description"] =
        codes().into();
    let problem = json!({
        "description": "Why it was not done",
        "content": { MEDIA_TYPE: { "schema": { "$ref": "#/components/schemas/Problem" } } },
    });
    let paths = document["paths"].as_object_mut().into_iter().flatten();
    let operations = paths.filter_map(|(_, path)| path.as_object_mut()).flatten();
    for (_, operation) in operations {
        operation["responses"]["default"] = problem.clone();
    }
    in_plain_words(&mut document);
    document
}

const INTRODUCTION: &str = "HTTP with JSON over the unix socket of a node, for who may open that. \
    Times are Unix milliseconds, sizes are bytes. A request with a body says `content-type: application/json`; \
    unknown fields in a request are refused, and a reader of answers ignores those that it does not know: v1 only gains.";

fn codes() -> String {
    let codes = CODES.iter().map(|code| match code.status {
        Some(status) => format!("\n- `{}` ({status}): {}", code.code, code.what),
        None => format!("\n- `{}`: {}", code.code, code.what),
    });
    format!(
        "A stable word for programs. More can come; none changes its meaning.\n{}",
        codes.collect::<String>()
    )
}

/// Takes what is Rust's alone out of descriptions.
fn in_plain_words(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::String(text) if name == "description" || name == "summary" => {
                        *text =
                            text.replace("[`", "`").replace("`]", "`").replace("`None`", "`null`");
                    }
                    value => in_plain_words(value),
                }
            }
        }
        Value::Array(values) => values.iter_mut().for_each(in_plain_words),
        _ => {}
    }
}

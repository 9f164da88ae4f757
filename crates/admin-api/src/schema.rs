//! The schemas of types that are written to JSON by hand.

use utoipa::openapi::schema::{ObjectBuilder, Schema, SchemaFormat, Type};
use utoipa::openapi::{KnownFormat, RefOr};
use utoipa::{PartialSchema, ToSchema};

use crate::problem::Wire;
use crate::{BytePath, Exit, Problem, Token};

impl PartialSchema for BytePath {
    fn schema() -> RefOr<Schema> {
        let what = "A Unix path or name. `%`, control characters and bytes that are not UTF-8 stand as `%XX`, everything else as \
                    itself.";
        let text = ObjectBuilder::new().schema_type(Type::String).description(Some(what));
        text.pattern(Some("^([^%]|%[0-9A-Fa-f]{2})*$")).into()
    }
}

impl ToSchema for BytePath {}

impl PartialSchema for Token {
    fn schema() -> RefOr<Schema> {
        let secret = ObjectBuilder::new()
            .schema_type(Type::String)
            .format(Some(SchemaFormat::KnownFormat(KnownFormat::Password)))
            .write_only(true)
            .description(Some("A secret on its way to the node. No answer has one."));
        secret.into()
    }
}

impl ToSchema for Token {}

impl PartialSchema for Problem {
    fn schema() -> RefOr<Schema> {
        Wire::schema()
    }
}

impl ToSchema for Problem {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        schemas.push((Exit::name().into_owned(), Exit::schema()));
    }
}

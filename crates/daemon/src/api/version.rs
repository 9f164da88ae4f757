//! `ETag` and `If-Match` (RFC 9110, sections 8.8.3 and 13.1.1): which KMS configuration a change is meant for.

use admin_api::Kms;
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, header};
use key_manager::{Expected, KmsVersion};

use super::Refusal;
use super::extract::not_understood;

/// The header that names the version of what is shown.
pub(crate) fn etag(kms: &Kms) -> [(HeaderName, String); 1] {
    [(header::ETAG, format!("\"{}\"", kms.version))]
}

/// What a change of the configuration is meant for; without the header, and with `*`, whatever there is.
pub(crate) struct IfMatch(pub(crate) Expected);

impl<S: Sync> FromRequestParts<S> for IfMatch {
    type Rejection = Refusal;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Refusal> {
        let mut versions = Vec::new();
        let mut given = false;
        for value in parts.headers.get_all(header::IF_MATCH) {
            given = true;
            match value.to_str().ok().and_then(tags) {
                Some(Tags::Any) => return Ok(Self(Expected::Whatever)),
                Some(Tags::OneOf(tags)) => versions.extend(tags.into_iter().map(KmsVersion::from)),
                None => {
                    return Err(not_understood(
                        "its If-Match header is no list of entity tags: it takes the ETag of GET /v1/kms, in its quotes",
                    ));
                }
            }
        }
        Ok(Self(if given { Expected::OneOf(versions) } else { Expected::Whatever }))
    }
}

enum Tags {
    Any,
    OneOf(Vec<String>),
}

/// The strong tags of a list, without their quotes: a weak one matches nothing here.
fn tags(text: &str) -> Option<Tags> {
    let mut rest = text.trim();
    if rest == "*" {
        return Some(Tags::Any);
    }
    let mut found = Vec::new();
    loop {
        let (weak, quoted) = match rest.strip_prefix("W/") {
            Some(quoted) => (true, quoted),
            None => (false, rest),
        };
        let (tag, after) = quoted.strip_prefix('"')?.split_once('"')?;
        if !weak {
            found.push(tag.to_owned());
        }
        let after = after.trim_start();
        if after.is_empty() {
            return Some(Tags::OneOf(found));
        }
        rest = after.strip_prefix(',')?.trim_start();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_tags_is_read_as_rfc_9110_has_it() {
        let read = |text| match tags(text) {
            Some(Tags::OneOf(tags)) => Some(tags.join(" ")),
            Some(Tags::Any) => Some("*".to_owned()),
            None => None,
        };
        for (text, expected) in [
            ("*", Some("*")),
            (r#""a""#, Some("a")),
            (r#" "a" , "b,c""#, Some("a b,c")),
            (r#"W/"a""#, Some("")),
            (r#"W/"a", "b""#, Some("b")),
            ("a", None),
            (r#""a"#, None),
            (r#""a" "b""#, None),
            (r#""a","#, None),
            ("", None),
        ] {
            assert_eq!(read(text).as_deref(), expected, "{text}");
        }
    }
}

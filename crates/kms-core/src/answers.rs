//! The answers to a batch, and the requests that they came by.

use std::fmt;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::{KmsError, KmsErrorKind};

/// What a KMS calls a request of ours in its own audit log.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(Arc<str>);

impl RequestId {
    /// Longest one that is taken, in bytes. Vault's are UUIDs.
    pub const MAX_LEN: usize = 64;

    /// The id in an answer; `None` if it is empty, or nothing that belongs on a line of a log.
    pub fn parse(text: &str) -> Option<Self> {
        let tame = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
        (tame && !text.is_empty() && text.len() <= Self::MAX_LEN).then(|| Self(text.into()))
    }

    /// Its text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for RequestId {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        Self::parse(&text).ok_or("this is no id of a request")
    }
}

impl From<RequestId> for String {
    fn from(id: RequestId) -> Self {
        id.as_str().to_owned()
    }
}

/// The answers to a batch: one for each item, in the order of the items, each with the request that it came by. A batch may
/// take several requests, and a request answers many items. Otherwise it is a list of results.
#[derive(Debug)]
pub struct Items<T> {
    answers: Vec<Result<T, KmsError>>,
    /// Of each answer; `None` where the KMS names no requests.
    requests: Vec<Option<RequestId>>,
}

impl<T> Items<T> {
    /// What one request answered. Errors are told which it was.
    pub fn of_request(
        answers: impl IntoIterator<Item = Result<T, KmsError>>,
        request: Option<&RequestId>,
    ) -> Self {
        let answers: Vec<_> = answers.into_iter().map(|answer| told(answer, request)).collect();
        Self { requests: vec![request.cloned(); answers.len()], answers }
    }

    /// The request that the answer to this item came by.
    pub fn request_of(&self, index: usize) -> Option<&RequestId> {
        self.requests.get(index)?.as_ref()
    }

    /// The requests that answered, in their order, each once.
    pub fn requests(&self) -> Vec<RequestId> {
        let mut ids: Vec<_> = self.requests.iter().flatten().cloned().collect();
        ids.dedup();
        ids
    }

    /// How many items were done.
    pub fn done(&self) -> usize {
        self.answers.iter().filter(|answer| answer.is_ok()).count()
    }

    /// The answer to a batch of one.
    ///
    /// # Errors
    /// The item's own; [`KmsErrorKind::Unreachable`] if there is no answer.
    pub fn only(self) -> Result<T, KmsError> {
        let nothing = || KmsError::new(KmsErrorKind::Unreachable, "the KMS answered nothing");
        self.into_iter().next().unwrap_or_else(|| Err(nothing()))
    }

    /// Other answers, by the same requests: `asked` are the items that were asked for.
    pub fn map_each<I, U>(
        self,
        asked: impl IntoIterator<Item = I>,
        mut f: impl FnMut(I, Result<T, KmsError>) -> Result<U, KmsError>,
    ) -> Items<U> {
        let answers = asked.into_iter().zip(self.answers).zip(&self.requests);
        let answers = answers.map(|((item, answer), id)| told(f(item, answer), id.as_ref()));
        Items { answers: answers.collect(), requests: self.requests }
    }
}

/// An error knows its request.
fn told<T>(answer: Result<T, KmsError>, request: Option<&RequestId>) -> Result<T, KmsError> {
    answer.map_err(|error| error.of_request(request.cloned()))
}

impl<T> Default for Items<T> {
    fn default() -> Self {
        Self { answers: Vec::new(), requests: Vec::new() }
    }
}

impl<T> Extend<Items<T>> for Items<T> {
    fn extend<I: IntoIterator<Item = Items<T>>>(&mut self, more: I) {
        for items in more {
            self.answers.extend(items.answers);
            self.requests.extend(items.requests);
        }
    }
}

/// Answers of a KMS that names no requests.
impl<T> FromIterator<Result<T, KmsError>> for Items<T> {
    fn from_iter<I: IntoIterator<Item = Result<T, KmsError>>>(answers: I) -> Self {
        Self::of_request(answers, None)
    }
}

impl<T> Deref for Items<T> {
    type Target = [Result<T, KmsError>];

    fn deref(&self) -> &Self::Target {
        &self.answers
    }
}

impl<T> DerefMut for Items<T> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        &mut self.answers
    }
}

impl<T> IntoIterator for Items<T> {
    type Item = Result<T, KmsError>;
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.answers.into_iter()
    }
}

impl<'a, T> IntoIterator for &'a Items<T> {
    type Item = &'a Result<T, KmsError>;
    type IntoIter = std::slice::Iter<'a, Result<T, KmsError>>;

    fn into_iter(self) -> Self::IntoIter {
        self.answers.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_one_tame_word() {
        let id = RequestId::parse("b03840fb-a8f8-1ad6-50cb-2663bd39d2c6").unwrap();
        let text = serde_json::to_string(&id).unwrap();
        assert_eq!(serde_json::from_str::<RequestId>(&text).unwrap(), id);
        for wild in ["", "two words", "line\n", "\u{1b}[2J", "ü", &"x".repeat(65)] {
            assert_eq!(RequestId::parse(wild), None, "{wild:?}");
            assert!(serde_json::from_value::<RequestId>(wild.into()).is_err());
        }
    }

    #[test]
    fn each_answer_keeps_its_request() {
        let id = |text| RequestId::parse(text).unwrap();
        let failed = || KmsError::new(KmsErrorKind::NotAuthentic, "altered");
        let mut items = Items::of_request([Ok(1), Err(failed())], Some(&id("a")));
        items.extend([Items::of_request([Ok(3)], Some(&id("b")))]);
        items.extend([Items::from_iter([Ok(4)])]);
        assert_eq!((items.len(), items.done()), (4, 3));
        assert_eq!(items.requests(), [id("a"), id("b")]);
        assert_eq!(items.request_of(1), Some(&id("a")));
        assert_eq!(items[1].as_ref().unwrap_err().request(), Some(&id("a")));
        let doubled = items.map_each(1.., |n: i32, answer| answer.map(|value| n * value));
        assert_eq!((doubled[2].as_ref().unwrap(), doubled.request_of(2)), (&9, Some(&id("b"))));
        assert_eq!(doubled.request_of(3), None);
        assert_eq!(doubled.only().unwrap(), 1);
        assert!(Items::<()>::default().only().is_err());
    }
}

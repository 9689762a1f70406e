//! A further field that is sent along with a user.

use std::sync::Arc;

use http::{Extensions, HeaderName, HeaderValue};

use super::encoding::Encoding;
use crate::{
    error::{Error, ErrorKind},
    identity::ExpectedExtension,
    observe,
};

/// A further field of a [`RemoteUserLayer`](crate::RemoteUserLayer).
#[derive(Clone)]
pub(super) struct Field {
    pub(super) name: HeaderName,
    /// `None`: that of the layer.
    pub(super) encoding: Option<Encoding>,
    /// Between the members of a list.
    separator: Option<char>,
    read: Read,
}

/// Reads the values: at most one without a separator. `None` without the extension that has them.
type Read = Arc<dyn Fn(&Extensions) -> Option<Vec<String>> + Send + Sync>;

impl Field {
    pub(super) fn value<T>(name: HeaderName, value: impl Fn(&T) -> Option<String> + Send + Sync + 'static) -> Self
    where
        T: Send + Sync + 'static,
    {
        let expected = ExpectedExtension::new();
        let read = move |extensions: &Extensions| Some(value(expected.find(extensions)?).into_iter().collect());
        Self { name, encoding: None, separator: None, read: Arc::new(read) }
    }

    pub(super) fn list<T>(
        name: HeaderName,
        separator: char,
        members: impl Fn(&T) -> Vec<String> + Send + Sync + 'static,
    ) -> Self
    where
        T: Send + Sync + 'static,
    {
        let expected = ExpectedExtension::new();
        let read = move |extensions: &Extensions| Some(members(expected.find(extensions)?));
        Self { name, encoding: None, separator: Some(separator), read: Arc::new(read) }
    }

    /// Returns the field's value for a request, in the layer's encoding unless it has one of its own. `None` if it isn't
    /// sent.
    pub(super) fn of(
        &self,
        extensions: &Extensions,
        encoding: Encoding,
        required: bool,
    ) -> Result<Option<HeaderValue>, Error> {
        let Some(values) = (self.read)(extensions) else {
            // The warning names the type.
            return if required { Err(self.unknown()) } else { Ok(None) };
        };
        if values.is_empty() {
            return Ok(None);
        }
        match self.written(&values, self.encoding.unwrap_or(encoding)) {
            Ok(value) => Ok(Some(value)),
            Err(reason) => {
                observe::unrepresentable_value(&self.name, reason);
                Err(Error::with_source(ErrorKind::UnrepresentableUser, format!("{}: {reason}", self.name)))
            }
        }
    }

    fn written(&self, values: &[String], encoding: Encoding) -> Result<HeaderValue, &'static str> {
        let separator = self.separator.map(String::from).unwrap_or_default();
        if self.separator.is_some() && values.iter().any(|value| value.contains(&separator)) {
            return Err("a member of the list contains the separator");
        }
        // Each member by itself, so that a backend may decode before it splits the list, or after.
        let encoded: Option<Vec<_>> = values.iter().map(|value| encoding.encode(value)).collect();
        let value = encoded.map(|encoded| HeaderValue::from_bytes(encoded.join(&*separator).as_bytes()));
        match value {
            Some(Ok(value)) => Ok(value),
            _ => Err("a value is empty, or has control characters or surrounding whitespace"),
        }
    }

    /// The refusal of a request without the extension that the field is read from.
    fn unknown(&self) -> Error {
        let cause = format!("the request has no extension to read {} from", self.name);
        Error::with_source(ErrorKind::IdentityUnknown, cause)
    }
}

/// Whether a list can have this separator: no part of a member looks like it, whatever the encoding is.
pub(super) fn is_separator(c: char) -> bool {
    c.is_ascii_punctuation() && !Encoding::may_insert(c)
}

//! What it takes to send a request a second time, kept beside its connection: there it costs no allocation.

use axum_core::body::Body;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body::Body as _;

use crate::{error::MayBeProcessed, method::is_idempotent};

/// A request that is under way, if sending it twice is as good as once.
#[derive(Default)]
pub(in crate::client) struct Repeat {
    line: Option<(Method, Uri)>,
    /// Name, value and whether it's sensitive, field by field: bytes, for nearly every one is thrown away unread.
    fields: Vec<u8>,
}

/// What the longest of usual requests take, in bytes. A longer one doesn't leave its room behind.
const USUAL: usize = 4096;

impl Repeat {
    /// Keeps a request, if it may be sent again.
    pub(in crate::client) fn keep(&mut self, request: &Request<Body>) {
        if !is_harmless(request) {
            return;
        }
        self.line = Some((request.method().clone(), request.uri().clone()));
        for (name, value) in request.headers() {
            self.push(name.as_str().as_bytes());
            self.push(value.as_bytes());
            self.fields.push(value.is_sensitive().into());
        }
    }

    fn push(&mut self, part: &[u8]) {
        self.fields.extend_from_slice(&part.len().to_le_bytes());
        self.fields.extend_from_slice(part);
    }

    /// Forgets the request: it has been answered.
    pub(in crate::client) fn forget(&mut self) {
        self.line = None;
        self.fields.clear();
        self.fields.shrink_to(USUAL);
    }

    /// Takes the request, to be sent once more.
    pub(in crate::client) fn take(&mut self) -> Option<Request<Body>> {
        let (method, uri) = self.line.take()?;
        let mut request = Request::new(Body::empty());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        let mut fields = &*self.fields;
        while !fields.is_empty() {
            let name = HeaderName::from_bytes(part(&mut fields)?).ok()?;
            let mut value = HeaderValue::from_bytes(part(&mut fields)?).ok()?;
            value.set_sensitive(*fields.split_off_first()? == 1);
            request.headers_mut().append(name, value);
        }
        self.forget();
        request.extensions_mut().insert(MayBeProcessed);
        Some(request)
    }
}

fn part<'a>(fields: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = fields.split_first_chunk()?;
    *fields = rest;
    fields.split_off(..usize::from_le_bytes(*length))
}

/// Whether a request may be sent again: it does no harm, and there's no body, of which nothing would be left.
pub(in crate::client) fn is_harmless(request: &Request<Body>) -> bool {
    is_idempotent(request.method()) && request.body().is_end_stream()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, body: impl Into<Body>) -> Request<Body> {
        let builder =
            Request::builder().method(method).uri("/x?y").header("a", "1").header("b", "2").header("a", "\u{e9}");
        let mut request = builder.body(body.into()).unwrap();
        request.headers_mut().get_mut("b").unwrap().set_sensitive(true);
        request
    }

    #[test]
    fn a_replay_equals_the_original_request() {
        let mut repeat = Repeat::default();
        for method in [Method::GET, Method::PUT] {
            let request = request(method, "");
            repeat.keep(&request);
            let again = repeat.take().unwrap();
            assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
            assert_eq!(again.headers(), request.headers());
            assert!(again.headers()["b"].is_sensitive() && !again.headers()["a"].is_sensitive());
            assert!(repeat.take().is_none());
        }
    }

    #[test]
    fn requests_that_cannot_be_replayed_are_not_kept() {
        let mut repeat = Repeat::default();
        repeat.keep(&request(Method::POST, ""));
        repeat.keep(&request(Method::PUT, "body"));
        assert!(repeat.take().is_none());
        repeat.keep(&request(Method::GET, ""));
        repeat.forget();
        assert!(repeat.take().is_none() && repeat.fields.is_empty());
    }
}

//! What it takes to send a request a second time, kept beside its connection: there it costs no allocation.

use axum_core::body::Body;
use http::{HeaderName, HeaderValue, Method, Request, Uri};
use http_body::Body as _;

/// A request that is under way, if sending it twice is as good as once.
#[derive(Default)]
pub(super) struct Repeat {
    line: Option<(Method, Uri)>,
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Repeat {
    /// Keeps a request. One with a body isn't kept: nothing of that would be left.
    pub(super) fn keep(&mut self, request: &Request<Body>) {
        if is_idempotent(request.method()) && request.body().is_end_stream() {
            self.line = Some((request.method().clone(), request.uri().clone()));
            self.fields.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        }
    }

    /// Forgets the request: it has been answered.
    pub(super) fn forget(&mut self) {
        self.line = None;
        self.fields.clear();
    }

    /// Takes the request, to be sent once more.
    pub(super) fn take(&mut self) -> Option<Request<Body>> {
        let (method, uri) = self.line.take()?;
        let mut request = Request::new(Body::empty());
        (*request.method_mut(), *request.uri_mut()) = (method, uri);
        for (name, value) in self.fields.drain(..) {
            request.headers_mut().append(name, value);
        }
        Some(request)
    }
}

/// Whether sending the request twice is as good as once (RFC 9110, section 9.2.2).
pub(super) fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(method: Method, body: impl Into<Body>) -> Request<Body> {
        let builder = Request::builder().method(method).uri("/x?y").header("a", "1").header("b", "2").header("a", "3");
        builder.body(body.into()).unwrap()
    }

    #[test]
    fn it_comes_back_as_it_went() {
        let mut repeat = Repeat::default();
        for method in [Method::GET, Method::PUT] {
            let request = request(method, "");
            repeat.keep(&request);
            let again = repeat.take().unwrap();
            assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
            assert_eq!(again.headers(), request.headers());
            assert!(repeat.take().is_none());
        }
    }

    #[test]
    fn what_may_not_be_sent_twice_is_not_kept() {
        let mut repeat = Repeat::default();
        repeat.keep(&request(Method::POST, ""));
        repeat.keep(&request(Method::PUT, "body"));
        assert!(repeat.take().is_none());
        repeat.keep(&request(Method::GET, ""));
        repeat.forget();
        assert!(repeat.take().is_none() && repeat.fields.is_empty());
    }
}

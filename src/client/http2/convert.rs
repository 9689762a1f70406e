//! Converts requests from HTTP/1.1 to HTTP/2 and back, and copies those that may be resent.

use std::{error::Error as _, mem};

use axum_core::body::Body;
use h2::Reason;
use http::{
    HeaderName, HeaderValue, Method, Request, Uri, Version,
    header::{HOST, TRANSFER_ENCODING},
    uri::{Authority, Scheme},
};
use http_body::Body as _;

use super::super::reuse::authenticates_connection;
use crate::{
    error::{Error, ErrorKind, MayBeProcessed},
    expect::ContinueSignal,
    headers::framing,
    method::is_idempotent,
};

/// Makes an HTTP/2 request of one in HTTP/1.1's form.
///
/// # Errors
///
/// `Host` and the target don't make a URI.
pub(in super::super) fn as_http2(mut request: Request<Body>) -> Result<Request<Body>, Error> {
    *request.version_mut() = Version::HTTP_2;
    // hyper doesn't show a 100 over HTTP/2, so the request's body waits for none.
    if let Some(signal) = request.extensions_mut().remove::<ContinueSignal>() {
        signal.release();
    }
    // HTTP/2 has a framing of its own.
    request.headers_mut().remove(TRANSFER_ENCODING);
    // `:authority` replaces `Host` (RFC 9113, section 8.3.1).
    if let Some(host) = request.headers_mut().remove(HOST) {
        let mut parts = mem::take(request.uri_mut()).into_parts();
        parts.authority = Authority::try_from(host.as_bytes()).ok();
        parts.scheme.get_or_insert(Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ErrorKind::InvalidHost)?;
    }
    Ok(request)
}

/// Reverts [`as_http2`], except for the target: that becomes origin-form where the request is sent.
pub(in super::super) fn as_http1(mut request: Request<Body>) -> Request<Body> {
    *request.version_mut() = Version::HTTP_11;
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    let size = request.body().size_hint();
    // It can't fail, because the forwarder has refused requests with more than one length.
    let _ = framing::reconcile_request(request.headers_mut(), &size);
    request
}

/// A copy of a request without a body, for a resend.
///
/// The fields are a list, because a second `HeaderMap` costs each request more, and few are sent again.
pub(super) struct Copy {
    method: Method,
    uri: Uri,
    fields: Vec<(HeaderName, HeaderValue)>,
}

impl Copy {
    /// Copies a request that [`as_http2`] has made.
    ///
    /// `None` if it has a body, which can't be sent twice, or credentials that authenticate a connection, because their
    /// second use is a replay. An extended CONNECT isn't resent either, because its protocol is in the
    /// extensions.
    pub(super) fn of(request: &Request<Body>) -> Option<Self> {
        let is_connect = request.method() == Method::CONNECT;
        if is_connect || !request.body().is_end_stream() || authenticates_connection(request.headers()) {
            return None;
        }
        let mut fields = Vec::with_capacity(request.headers().len());
        fields.extend(request.headers().iter().map(|(name, value)| (name.clone(), value.clone())));
        Some(Self { method: request.method().clone(), uri: request.uri().clone(), fields })
    }

    /// Returns the request again after it failed, if it may be resent (RFC 9113, section 8.7).
    pub(super) fn resend(self, error: &hyper::Error) -> Option<Request<Body>> {
        let resend = resend(error.source()?.downcast_ref()?, &self.method)?;
        let mut request = self.into_request();
        if resend == Resend::MayBeProcessed {
            request.extensions_mut().insert(MayBeProcessed);
        }
        Some(request)
    }

    fn into_request(self) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = self.uri;
        *request.version_mut() = Version::HTTP_2;
        request.headers_mut().extend(self.fields);
        request
    }
}

/// Why a request may be resent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Resend {
    /// The backend hasn't processed it.
    Unprocessed,
    /// It's idempotent, and the backend may have processed it.
    MayBeProcessed,
}

/// Decides whether a request may be resent.
///
/// hyper doesn't distinguish a stream beyond the last one of a GOAWAY from one that was in progress when the connection
/// ended after it. Of these, only idempotent requests are resent.
fn resend(cause: &h2::Error, method: &Method) -> Option<Resend> {
    if !cause.is_remote() {
        return None;
    }
    if cause.is_reset() && cause.reason() == Some(Reason::REFUSED_STREAM) {
        return Some(Resend::Unprocessed);
    }
    (cause.is_go_away() && is_idempotent(method)).then_some(Resend::MayBeProcessed)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http::header::{AUTHORIZATION, CONTENT_LENGTH, COOKIE};
    use http_body_util::Channel;

    use super::*;

    fn request(method: &str, host: &str, body: impl Into<Body>) -> Request<Body> {
        Request::builder().method(method).uri("/x?y").header("host", host).body(body.into()).unwrap()
    }

    #[test]
    fn host_becomes_the_authority() {
        for (host, expected) in [
            ("front.example", Some("http://front.example/x?y")),
            ("front.example:8080", Some("http://front.example:8080/x?y")),
            ("[::1]:80", Some("http://[::1]:80/x?y")),
            ("not a host", None),
            ("", None),
        ] {
            let converted = as_http2(request("GET", host, ""));
            match expected {
                Some(uri) => {
                    let request = converted.unwrap();
                    assert_eq!((request.uri().to_string().as_str(), request.version()), (uri, Version::HTTP_2));
                    assert!(request.headers().is_empty(), "{:?}", request.headers());
                }
                None => assert_eq!(converted.unwrap_err().kind(), ErrorKind::InvalidHost, "{host:?}"),
            }
        }
    }

    #[test]
    fn a_request_that_comes_back_is_http1s_again() {
        let (_sender, body) = Channel::<Bytes>::new(1);
        let mut chunked = request("POST", "front.example", Body::new(body));
        chunked.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        let mut whole = request("POST", "front.example", "four");
        whole.headers_mut().insert(CONTENT_LENGTH, HeaderValue::from_static("4"));
        let empty = request("GET", "front.example", "");
        for (request, length, coding) in
            [(empty, None, None), (whole, Some("4"), None), (chunked, None, Some("chunked"))]
        {
            let request = as_http1(as_http2(request).unwrap());
            assert_eq!(request.version(), Version::HTTP_11);
            for (name, expected) in
                [(HOST, Some("front.example")), (CONTENT_LENGTH, length), (TRANSFER_ENCODING, coding)]
            {
                assert_eq!(request.headers().get(&name).map(|value| value.to_str().unwrap()), expected, "{name}");
            }
        }
    }

    #[test]
    fn bodiless_requests_are_copied() {
        for (method, body, credentials, is_copied) in [
            ("GET", "", "Basic YTpi", true),
            ("POST", "", "Basic YTpi", true),
            ("POST", "body", "Basic YTpi", false),
            ("CONNECT", "", "Basic YTpi", false),
            ("GET", "", "Negotiate YII=", false),
            ("GET", "", "NTLM TlRM", false),
        ] {
            let mut request = request(method, "front.example", body);
            request.headers_mut().insert(AUTHORIZATION, HeaderValue::from_static(credentials));
            for value in ["a=1", "b=2"] {
                request.headers_mut().append(COOKIE, HeaderValue::from_static(value));
            }
            *request.version_mut() = Version::HTTP_2;
            let copy = Copy::of(&request);
            assert_eq!(copy.is_some(), is_copied, "{method} {body:?} {credentials}");
            if let Some(copy) = copy.map(Copy::into_request) {
                assert_eq!((copy.method(), copy.uri()), (request.method(), request.uri()));
                assert_eq!((copy.headers(), copy.version()), (request.headers(), request.version()));
            }
        }
    }
}

//! A WebSocket over HTTP/2 (RFC 8441): HTTP/1.1's handshake as an extended CONNECT, and its answer as a 101.
//!
//! To those who asked, it's as if the backend spoke HTTP/1.1.

use axum_core::body::Body;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
};
use hyper::{body::Incoming, ext::Protocol};

use super::{super::body::ResponseBody, Stream};
use crate::{headers::websocket, tunnel_guard::TunnelGuard};

/// Whether the request opens a WebSocket. No specification defines other upgrades over HTTP/2.
pub(super) fn is_asked_for<B>(request: &Request<B>) -> bool {
    request.headers().get(UPGRADE).is_some_and(|token| token.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Makes an extended CONNECT of the handshake; returns what its sender wants for an answer.
pub(super) fn as_connect(request: &mut Request<Body>) -> Option<HeaderValue> {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    headers.remove(SEC_WEBSOCKET_KEY).map(|key| websocket::accept(&key))
}

/// Makes a 101 of the answer, if it opens the tunnel: the stream is in use as long as that.
pub(super) fn as_switch(
    response: Response<Incoming>,
    stream: Stream,
    accept: Option<HeaderValue>,
) -> Response<ResponseBody> {
    if response.status() != StatusCode::OK {
        return response.map(|body| ResponseBody::shared(body, stream));
    }
    let mut response = response.map(|_| ResponseBody::empty());
    response.extensions_mut().insert(TunnelGuard::new(stream));
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(accept) = accept {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

//! WebSockets over HTTP/2 (RFC 8441): HTTP/1.1's handshake as an extended CONNECT, and its response as a 101.
//!
//! The forwarder sees the same exchange as with a backend that speaks HTTP/1.1.

use axum_core::body::Body as RequestBody;
use http::{
    HeaderValue, Method, Request, Response, StatusCode,
    header::{CONNECTION, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, UPGRADE},
};
use hyper::{body::Incoming, ext::Protocol};

use super::{body::Body, convert, exchange, head::HeadSize, stream::Stream};
use crate::{
    error::Error,
    headers::websocket,
    tunnel_guard::{TunnelGuard, TunnelResource},
};

/// Returns whether a request opens a WebSocket. Other upgrades aren't defined over HTTP/2.
pub(in super::super) fn is_requested<B>(request: &Request<B>) -> bool {
    request.headers().get(UPGRADE).is_some_and(|token| token.as_bytes().eq_ignore_ascii_case(b"websocket"))
}

/// Sends the handshake of a WebSocket on a stream.
///
/// # Errors
///
/// The stream failed, or the handshake can't be sent over HTTP/2.
///
/// # Cancel safety
///
/// Dropping the future resets the stream.
pub(in super::super) async fn open(
    stream: Stream,
    mut request: Request<RequestBody>,
    head: HeadSize,
) -> Result<Response<Body>, Error> {
    let accept = as_connect(&mut request);
    let request = convert::as_http2(request)?;
    let (response, stream) = stream.exchange(request, head).await.map_err(|failed| failed.error)?;
    if response.status() == StatusCode::OK {
        Ok(as_switch(response, stream, accept))
    } else {
        Ok(exchange::read(response, stream).await)
    }
}

/// Makes an extended CONNECT of the handshake. Returns the `Sec-WebSocket-Accept` that its sender expects.
fn as_connect(request: &mut Request<RequestBody>) -> Option<HeaderValue> {
    *request.method_mut() = Method::CONNECT;
    request.extensions_mut().insert(Protocol::from_static("websocket"));
    let headers = request.headers_mut();
    headers.remove(CONNECTION);
    headers.remove(UPGRADE);
    headers.remove(SEC_WEBSOCKET_KEY).map(|key| websocket::accept(&key))
}

/// Makes a 101 of the response that opens the tunnel, which keeps the stream.
fn as_switch(response: Response<Incoming>, stream: Stream, accept: Option<HeaderValue>) -> Response<Body> {
    let mut response = response.map(|_| Body::empty());
    TunnelGuard::insert(response.extensions_mut(), stream);
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    if let Some(accept) = accept {
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}

impl TunnelResource for Stream {}

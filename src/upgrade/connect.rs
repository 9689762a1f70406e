//! Extended CONNECT (RFC 8441): how an HTTP/2 client opens a WebSocket.

use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY},
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};

use super::{Allowed, Offer};
use crate::{error::ErrorKind, headers::websocket};

/// What HTTP/1.1 has in its WebSocket handshake and HTTP/2 hasn't.
#[derive(Debug)]
pub(super) struct Handshake {
    key: HeaderValue,
}

pub(super) fn take<B>(
    request: &mut Request<B>,
    client: Option<OnUpgrade>,
    allowed: &Allowed,
) -> Result<Offer, ErrorKind> {
    let protocol = request.extensions_mut().remove::<Protocol>().ok_or(ErrorKind::UnsupportedMethod)?;
    let client = client.ok_or(ErrorKind::UnsupportedMethod)?;
    // Only of WebSocket is it known what it becomes in HTTP/1.1.
    if !protocol.as_str().eq_ignore_ascii_case("websocket") || !allowed.has(b"websocket") {
        return Err(ErrorKind::UnsupportedMethod);
    }
    let tokens = HeaderValue::from_static("websocket");
    Ok(Offer { client, tokens, handshake: Some(Handshake { key: websocket::new_key() }) })
}

impl Handshake {
    pub(super) fn make<B>(&self, request: &mut Request<B>) {
        *request.method_mut() = Method::GET;
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// Checks that the backend has read the handshake (RFC 6455, section 4.1), and takes its answer out.
    pub(super) fn finish(&self, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        let accept = headers.remove(SEC_WEBSOCKET_ACCEPT).ok_or(ErrorKind::UnexpectedUpgrade)?;
        if accept == websocket::accept(&self.key) { Ok(()) } else { Err(ErrorKind::UnexpectedUpgrade) }
    }
}

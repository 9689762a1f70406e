//! Extended CONNECT (RFC 8441), with which an HTTP/2 client opens a WebSocket.

use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY},
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};

use super::{AllowedUpgrades, UpgradeOffer};
use crate::{error::ErrorKind, headers::websocket};

/// The key of HTTP/1.1's WebSocket handshake, which HTTP/2 doesn't have.
#[derive(Debug)]
pub(super) struct Handshake {
    key: HeaderValue,
}

pub(super) fn take<B>(
    request: &mut Request<B>,
    client: Option<OnUpgrade>,
    allowed: &AllowedUpgrades,
) -> Result<UpgradeOffer, ErrorKind> {
    let protocol = request.extensions_mut().remove::<Protocol>().ok_or(ErrorKind::UnsupportedMethod)?;
    let client = client.ok_or(ErrorKind::UnsupportedMethod)?;
    // RFC 8441 defines the mapping to HTTP/1.1 for WebSocket only.
    if !protocol.as_str().eq_ignore_ascii_case("websocket") || !allowed.allows(b"websocket") {
        return Err(ErrorKind::UnsupportedMethod);
    }
    let tokens = HeaderValue::from_static("websocket");
    Ok(UpgradeOffer { client, tokens, handshake: Some(Handshake { key: websocket::new_key() }) })
}

impl Handshake {
    pub(super) fn apply_to<B>(&self, request: &mut Request<B>) {
        *request.method_mut() = Method::GET;
        request.headers_mut().insert(SEC_WEBSOCKET_KEY, self.key.clone());
    }

    /// Checks that the backend has accepted the handshake (RFC 6455, section 4.1), and removes its
    /// `Sec-WebSocket-Accept`.
    pub(super) fn verify(&self, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        let accept = headers.remove(SEC_WEBSOCKET_ACCEPT).ok_or(ErrorKind::UnexpectedUpgrade)?;
        if accept == websocket::accept(&self.key) { Ok(()) } else { Err(ErrorKind::UnexpectedUpgrade) }
    }
}

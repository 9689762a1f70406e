//! Extended CONNECT (RFC 8441): how an HTTP/2 client opens a WebSocket.

use std::hash::{BuildHasher, RandomState};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::{
    HeaderMap, HeaderValue, Method, Request,
    header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY},
};
use hyper::{ext::Protocol, upgrade::OnUpgrade};
use sha1::{Digest, Sha1};

use super::{Allowed, Offer};
use crate::error::ErrorKind;

/// What HTTP/1.1 has in its WebSocket handshake and HTTP/2 hasn't.
#[derive(Debug)]
pub(super) struct Handshake {
    key: String,
}

pub(super) fn take<B>(
    request: &mut Request<B>,
    client: Option<OnUpgrade>,
    allowed: &Allowed,
) -> Result<Offer, ErrorKind> {
    let protocol = request.extensions_mut().remove::<Protocol>().ok_or(ErrorKind::Method)?;
    let client = client.ok_or(ErrorKind::Method)?;
    // Only of WebSocket is it known what it becomes in HTTP/1.1.
    if !protocol.as_str().eq_ignore_ascii_case("websocket") || !allowed.has(b"websocket") {
        return Err(ErrorKind::Method);
    }
    Ok(Offer {
        client,
        tokens: HeaderValue::from_static("websocket"),
        handshake: Some(Handshake { key: BASE64_STANDARD.encode(random()) }),
    })
}

impl Handshake {
    pub(super) fn make<B>(&self, request: &mut Request<B>) {
        *request.method_mut() = Method::GET;
        if let Ok(key) = HeaderValue::from_str(&self.key) {
            request.headers_mut().insert(SEC_WEBSOCKET_KEY, key);
        }
    }

    /// Checks that the backend has read the handshake (RFC 6455, section 4.1), and takes its answer out.
    pub(super) fn finish(&self, headers: &mut HeaderMap) -> Result<(), ErrorKind> {
        let accept = headers.remove(SEC_WEBSOCKET_ACCEPT).ok_or(ErrorKind::Upgrade)?;
        if accept.as_bytes() == accept_of(&self.key).as_bytes() { Ok(()) } else { Err(ErrorKind::Upgrade) }
    }
}

/// RFC 6455, section 4.2.2.
fn accept_of(key: &str) -> String {
    let digest = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    BASE64_STANDARD.encode(digest)
}

/// A nonce: it protects nothing, it only has to differ (RFC 6455, section 1.3).
fn random() -> [u8; 16] {
    let state = RandomState::new();
    (u128::from(state.hash_one(0)) << 64 | u128::from(state.hash_one(1))).to_be_bytes()
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_example_of_the_rfc() {
        assert_eq!(super::accept_of("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_ne!(super::random(), super::random());
    }
}

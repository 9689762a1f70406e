//! The key and its answer in the WebSocket handshake of HTTP/1.1 (RFC 6455, section 4). HTTP/2 has neither (RFC 8441,
//! section 5).

use std::hash::{BuildHasher, RandomState};

use base64::{Engine, prelude::BASE64_STANDARD};
use http::HeaderValue;
use sha1::{Digest, Sha1};

/// Creates a key. It only has to be different each time, because it isn't a secret (RFC 6455, section 1.3).
pub(crate) fn new_key() -> HeaderValue {
    let state = RandomState::new();
    let nonce = (u128::from(state.hash_one(0)) << 64) | u128::from(state.hash_one(1));
    value(BASE64_STANDARD.encode(nonce.to_be_bytes()))
}

/// Returns the `Sec-WebSocket-Accept` for a key, with which a server confirms the handshake.
pub(crate) fn accept(key: &HeaderValue) -> HeaderValue {
    let digest = Sha1::new().chain_update(key).chain_update("258EAFA5-E914-47DA-95CA-C5AB0DC85B11").finalize();
    value(BASE64_STANDARD.encode(digest))
}

fn value(base64: String) -> HeaderValue {
    HeaderValue::try_from(base64).unwrap_or(HeaderValue::from_static(""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_rfc() {
        let key = HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(accept(&key), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(new_key().len(), key.len());
        assert_ne!(new_key(), new_key());
    }
}

//! Upgrades (RFC 9110, section 7.8; RFC 8441): an offer taken from a request, the backend's answer held against it, and the
//! tunnel between the two.
//!
//! Nothing passes before the backend has switched to what it was offered.

#[cfg(feature = "http2")]
mod connect;
mod tunnel;

use std::sync::Arc;

use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
};
use hyper::upgrade::OnUpgrade;

#[cfg(feature = "http2")]
use self::connect::Handshake;
pub use self::tunnel::Tunnels;
use crate::{error::ErrorKind, headers::members, identity::Held};

/// The protocols that a client may switch to.
#[derive(Clone, Debug)]
pub(crate) struct Allowed {
    tokens: Arc<[String]>,
}

impl Default for Allowed {
    fn default() -> Self {
        Self { tokens: ["websocket".to_owned()].into() }
    }
}

impl Allowed {
    /// Allows one more token; `None` for one that never is. `h2c` would be a tunnel around every rule that a proxy has.
    pub(crate) fn and(&self, token: &str) -> Option<Self> {
        // A name, and a version if it needs one.
        let is_token = token.splitn(2, '/').all(|part| HeaderName::from_bytes(part.as_bytes()).is_ok());
        let refused = token.to_ascii_lowercase().starts_with("h2c") || token.to_ascii_lowercase().starts_with("http/");
        (is_token && !refused).then(|| Self { tokens: self.tokens.iter().cloned().chain([token.to_owned()]).collect() })
    }

    fn has(&self, token: &[u8]) -> bool {
        self.tokens.iter().any(|allowed| token.eq_ignore_ascii_case(allowed.as_bytes()))
    }
}

/// A client's offer to switch protocols.
#[derive(Debug)]
pub(crate) struct Offer {
    client: OnUpgrade,
    /// What the backend is offered: the allowed ones of the client's tokens.
    tokens: HeaderValue,
    /// The handshake that we make in an HTTP/2 client's place.
    #[cfg(feature = "http2")]
    handshake: Option<Handshake>,
}

impl Offer {
    /// Takes the offer out of a request, if there is one that is allowed. What isn't is no offer.
    ///
    /// # Errors
    ///
    /// `CONNECT`, unless it's an extended one for an allowed protocol. An offer of a WebSocket with a body.
    pub(crate) fn take<B>(request: &mut Request<B>, allowed: &Allowed) -> Result<Option<Self>, ErrorKind>
    where
        B: http_body::Body,
    {
        let client = request.extensions_mut().remove::<OnUpgrade>();
        #[cfg(feature = "http2")]
        if request.method() == http::Method::CONNECT {
            return connect::take(request, client, allowed).map(Some);
        }
        if request.method() == http::Method::CONNECT {
            return Err(ErrorKind::UnsupportedMethod);
        }
        let Some(client) = client else { return Ok(None) };
        let tokens = tokens(request.headers(), allowed);
        if request.version() != Version::HTTP_11 || tokens.is_empty() || !asks_for_upgrade(request.headers()) {
            return Ok(None);
        }
        // hyper's server and client both come to the end of a body before they switch.
        if !request.body().is_end_stream() && has_member(&tokens, b"websocket") {
            return Err(ErrorKind::UpgradeBody);
        }
        let tokens = HeaderValue::try_from(tokens).map_err(|_| ErrorKind::UpgradeBody)?;
        Ok(Some(Self {
            client,
            tokens,
            #[cfg(feature = "http2")]
            handshake: None,
        }))
    }

    /// Makes the offer to the backend. Hop-by-hop fields have to be gone by now.
    pub(crate) fn make<B>(&self, request: &mut Request<B>) {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, self.tokens.clone());
        #[cfg(feature = "http2")]
        if let Some(handshake) = &self.handshake {
            handshake.make(request);
        }
    }

    /// Checks the backend's 101 and takes its side of the tunnel.
    ///
    /// # Errors
    ///
    /// A 101 that switches to something else than what was offered.
    pub(crate) fn accepted<B>(self, response: &mut Response<B>) -> Result<Switch, ErrorKind> {
        let chosen = self.chosen(response.headers()).ok_or(ErrorKind::UnexpectedUpgrade)?;
        let backend = response.extensions_mut().remove::<OnUpgrade>().ok_or(ErrorKind::UnexpectedUpgrade)?;
        let held = response.extensions_mut().remove();
        #[cfg(feature = "http2")]
        if let Some(handshake) = &self.handshake {
            handshake.finish(response.headers_mut())?;
            return Ok(Switch { client: self.client, backend, chosen: None, held });
        }
        Ok(Switch { client: self.client, backend, chosen: Some(chosen), held })
    }

    /// Whether a response that isn't a 101 would open the client's tunnel all the same.
    pub(crate) fn is_opened_by(&self, status: StatusCode) -> bool {
        #[cfg(feature = "http2")]
        return self.handshake.is_some() && status.is_success();
        #[cfg(not(feature = "http2"))]
        {
            let _ = status;
            false
        }
    }

    /// The one token that the backend has switched to, if it's one that was offered.
    fn chosen(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut chosen = members(headers, UPGRADE);
        let (token, None) = (chosen.next()?, chosen.next()) else { return None };
        if has_member(self.tokens.as_bytes(), token) && asks_for_upgrade(headers) {
            HeaderValue::from_bytes(token).ok()
        } else {
            None
        }
    }
}

/// Both sides of a tunnel that the backend has agreed to.
#[derive(Debug)]
pub(crate) struct Switch {
    client: OnUpgrade,
    backend: OnUpgrade,
    /// The protocol to name to an HTTP/1.1 client; an HTTP/2 client has named it itself.
    chosen: Option<HeaderValue>,
    held: Option<Held>,
}

impl Switch {
    /// Makes the response the one that opens the client's side, and starts the tunnel. Hop-by-hop fields have to be gone.
    pub(crate) fn start<B>(self, response: &mut Response<B>, tunnels: &Tunnels) {
        response.headers_mut().remove(CONTENT_LENGTH);
        match self.chosen {
            Some(chosen) => {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                response.headers_mut().insert(UPGRADE, chosen);
            }
            None => *response.status_mut() = StatusCode::OK,
        }
        tunnels.carry(self.client, self.backend, self.held);
    }
}

/// Whether any `Connection` line has the option: Firefox sends `keep-alive, Upgrade`.
fn asks_for_upgrade(headers: &HeaderMap) -> bool {
    members(headers, CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

fn has_member(tokens: &[u8], token: &[u8]) -> bool {
    tokens.split(|&b| b == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(token))
}

/// The allowed ones of the protocols that `Upgrade` names, as a list.
pub(crate) fn tokens(headers: &HeaderMap, allowed: &Allowed) -> Vec<u8> {
    members(headers, UPGRADE).filter(|token| allowed.has(token)).collect::<Vec<_>>().join(&b", "[..])
}

//! Upgrades (RFC 9110, section 7.8; RFC 8441): the offer in a request, the backend's response to it, and the tunnel.
//!
//! No byte is forwarded before the backend has switched to an offered protocol.

mod copy;
#[cfg(feature = "http2")]
mod extended_connect;
mod tunnel;

use std::sync::Arc;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, UPGRADE},
};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;

#[cfg(feature = "http2")]
use self::extended_connect::Handshake;
pub use self::tunnel::Tunnels;
use crate::{
    error::ErrorKind,
    headers::members,
    switched::{Switched, SwitchedConnection},
    tunnel_guard::TunnelGuard,
};

/// The protocols that a client may switch to.
#[derive(Clone, Debug)]
pub(crate) struct AllowedUpgrades {
    tokens: Arc<[String]>,
}

impl Default for AllowedUpgrades {
    fn default() -> Self {
        Self { tokens: ["websocket".to_owned()].into() }
    }
}

impl AllowedUpgrades {
    /// Allows one more token. `None` if it's invalid, or if it's a version of HTTP: `h2c` would bypass every rule of
    /// the proxy.
    pub(crate) fn with(&self, token: &str) -> Option<Self> {
        // A protocol name, and an optional version.
        let is_token = token.splitn(2, '/').all(|part| HeaderName::from_bytes(part.as_bytes()).is_ok());
        let refused = token.to_ascii_lowercase().starts_with("h2c") || token.to_ascii_lowercase().starts_with("http/");
        (is_token && !refused).then(|| Self { tokens: self.tokens.iter().cloned().chain([token.to_owned()]).collect() })
    }

    fn allows(&self, token: &[u8]) -> bool {
        self.tokens.iter().any(|allowed| token.eq_ignore_ascii_case(allowed.as_bytes()))
    }
}

/// A client's offer to switch protocols.
#[derive(Debug)]
pub(crate) struct UpgradeOffer {
    client: OnUpgrade,
    /// The tokens of the client that are allowed. They are sent to the backend.
    tokens: HeaderValue,
    /// The HTTP/1.1 handshake on behalf of an HTTP/2 client.
    #[cfg(feature = "http2")]
    handshake: Option<Handshake>,
}

impl UpgradeOffer {
    /// Takes the offer from a request. `None` if there is none, or if no offered protocol is allowed.
    ///
    /// # Errors
    ///
    /// If the method is `CONNECT`, except an extended one for an allowed protocol; or if a WebSocket is offered with a
    /// body.
    pub(crate) fn take<B>(request: &mut Request<B>, allowed: &AllowedUpgrades) -> Result<Option<Self>, ErrorKind>
    where
        B: http_body::Body,
    {
        let client = request.extensions_mut().remove::<OnUpgrade>();
        #[cfg(feature = "http2")]
        if request.method() == http::Method::CONNECT {
            return extended_connect::take(request, client, allowed).map(Some);
        }
        if request.method() == http::Method::CONNECT {
            return Err(ErrorKind::UnsupportedMethod);
        }
        let Some(client) = client else { return Ok(None) };
        let tokens = allowed_tokens(request.headers(), allowed);
        if request.version() != Version::HTTP_11 || tokens.is_empty() || !has_upgrade_option(request.headers()) {
            return Ok(None);
        }
        // hyper's server and client switch after the body. For a WebSocket, a body is an error.
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

    /// Adds the offer to the request for the backend. The client's hop-by-hop fields must have been removed before.
    pub(crate) fn apply_to<B>(&self, request: &mut Request<B>) {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
        request.headers_mut().insert(UPGRADE, self.tokens.clone());
        #[cfg(feature = "http2")]
        if let Some(handshake) = &self.handshake {
            handshake.apply_to(request);
        }
    }

    /// Checks the backend's 101 and takes its side of the tunnel.
    ///
    /// # Errors
    ///
    /// If the 101 switches to a protocol that wasn't offered.
    pub(crate) fn accept<B>(self, response: &mut Response<B>) -> Result<AcceptedUpgrade, ErrorKind> {
        let protocol = self.selected(response.headers()).ok_or(ErrorKind::UnexpectedUpgrade)?;
        let backend = BackendSide::take(response).ok_or(ErrorKind::UnexpectedUpgrade)?;
        #[cfg(feature = "http2")]
        if let Some(handshake) = &self.handshake {
            handshake.verify(response.headers_mut())?;
            let guard = response.extensions_mut().remove();
            return Ok(AcceptedUpgrade { client: self.client, backend, protocol: None, guard });
        }
        let guard = response.extensions_mut().remove();
        Ok(AcceptedUpgrade { client: self.client, backend, protocol: Some(protocol), guard })
    }

    /// Whether the client reads a response with this status as the start of the tunnel, although it isn't a 101.
    pub(crate) fn is_opened_by(&self, status: StatusCode) -> bool {
        #[cfg(feature = "http2")]
        return self.handshake.is_some() && status.is_success();
        #[cfg(not(feature = "http2"))]
        {
            let _ = status;
            false
        }
    }

    /// Returns the protocol that the backend has switched to, if it's a single one that was offered.
    fn selected(&self, headers: &HeaderMap) -> Option<HeaderValue> {
        let mut protocols = members(headers, UPGRADE);
        let (token, None) = (protocols.next()?, protocols.next()) else { return None };
        if has_member(self.tokens.as_bytes(), token) && has_upgrade_option(headers) {
            HeaderValue::from_bytes(token).ok()
        } else {
            None
        }
    }
}

/// Both sides of an upgrade that the backend has accepted.
#[derive(Debug)]
pub(crate) struct AcceptedUpgrade {
    client: OnUpgrade,
    backend: BackendSide,
    /// The protocol for the response to an HTTP/1.1 client. `None` for an HTTP/2 client, whose response doesn't name
    /// it.
    protocol: Option<HeaderValue>,
    guard: Option<TunnelGuard>,
}

impl AcceptedUpgrade {
    /// Turns the response into the one that opens the client's side, and starts the tunnel. Hop-by-hop fields must have
    /// been removed before.
    pub(crate) fn start_tunnel<B>(self, response: &mut Response<B>, tunnels: &Tunnels) {
        response.headers_mut().remove(CONTENT_LENGTH);
        match self.protocol {
            Some(protocol) => {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
                response.headers_mut().insert(UPGRADE, protocol);
            }
            None => *response.status_mut() = StatusCode::OK,
        }
        tunnels.spawn(self.client, self.backend, self.guard);
    }
}

/// The backend's side of a tunnel.
#[derive(Debug)]
enum BackendSide {
    /// Of an HTTP/1 connection of the crate's client.
    Switched(SwitchedConnection),
    /// Of an HTTP/2 stream, or of an upstream service with hyper's client.
    OnUpgrade(OnUpgrade),
}

impl BackendSide {
    fn take<B>(response: &mut Response<B>) -> Option<Self> {
        let extensions = response.extensions_mut();
        match extensions.remove::<Switched>() {
            Some(switched) => switched.take().map(Self::Switched),
            None => extensions.remove().map(Self::OnUpgrade),
        }
    }

    async fn connection(self) -> hyper::Result<SwitchedConnection> {
        match self {
            Self::Switched(connection) => Ok(connection),
            Self::OnUpgrade(upgrade) => {
                Ok(SwitchedConnection { io: Box::new(TokioIo::new(upgrade.await?)), leftover: Bytes::new() })
            }
        }
    }
}

/// Whether any `Connection` line has the option `upgrade`, also beside others: Firefox sends `keep-alive, Upgrade`.
fn has_upgrade_option(headers: &HeaderMap) -> bool {
    members(headers, CONNECTION).any(|option| option.eq_ignore_ascii_case(b"upgrade"))
}

fn has_member(tokens: &[u8], token: &[u8]) -> bool {
    tokens.split(|&b| b == b',').any(|member| member.trim_ascii().eq_ignore_ascii_case(token))
}

/// Returns the allowed members of `Upgrade` as a list.
pub(crate) fn allowed_tokens(headers: &HeaderMap, allowed: &AllowedUpgrades) -> Vec<u8> {
    members(headers, UPGRADE).filter(|token| allowed.allows(token)).collect::<Vec<_>>().join(&b", "[..])
}

#[cfg(test)]
mod tests {
    use std::{convert::Infallible, time::Duration};

    use axum_core::body::Body;
    use hyper::{header::HOST, server::conn::http1};
    use hyper_util::service::TowerToHyperService;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
        time::timeout,
    };
    use tower::service_fn;

    use super::*;
    use crate::ReverseProxy;

    /// A connection to a front whose upstream responds with a 101 and inserts `switched`.
    fn front(switched: Switched) -> DuplexStream {
        let proxy = ReverseProxy::with_upstream(service_fn(move |_: Request<Body>| {
            let mut response = Response::new(Body::empty());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("upgrade"));
            response.headers_mut().insert(UPGRADE, HeaderValue::from_static("websocket"));
            response.extensions_mut().insert(switched.clone());
            async { Ok::<_, Infallible>(response) }
        }));
        let (ours, theirs) = duplex(1024);
        let service = TowerToHyperService::new(proxy);
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(theirs), service).with_upgrades());
        ours
    }

    /// Offers an upgrade, and returns the head of the response.
    async fn offer(client: &mut DuplexStream) -> String {
        let offer = format!("GET / HTTP/1.1\r\n{HOST}: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n");
        client.write_all(offer.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(within(client.read_u8()).await.unwrap());
        }
        String::from_utf8(head).unwrap()
    }

    async fn within<T>(future: impl Future<Output = T>) -> T {
        timeout(Duration::from_secs(20), future).await.expect("it ends")
    }

    #[tokio::test]
    async fn a_switched_connection_is_tunnelled_after_its_leftover() {
        let (io, mut backend) = duplex(1024);
        let mut client = front(Switched::new(io, Bytes::from_static(b"first ")));
        assert!(offer(&mut client).await.starts_with("HTTP/1.1 101 "));
        backend.write_all(b"second").await.unwrap();
        let mut down = [0; 12];
        within(client.read_exact(&mut down)).await.unwrap();
        assert_eq!(&down, b"first second");
        client.write_all(b"up").await.unwrap();
        client.shutdown().await.unwrap();
        let mut up = Vec::new();
        within(backend.read_to_end(&mut up)).await.unwrap();
        assert_eq!(up, b"up");
    }

    #[tokio::test]
    async fn a_switched_connection_is_tunnelled_once() {
        let (io, _backend) = duplex(1024);
        let switched = Switched::new(io, Bytes::new());
        assert!(offer(&mut front(switched.clone())).await.starts_with("HTTP/1.1 101 "));
        assert!(offer(&mut front(switched)).await.starts_with("HTTP/1.1 502 "));
    }

    #[tokio::test]
    async fn a_switched_connection_that_no_upgrade_takes_is_closed() {
        let (io, mut backend) = duplex(1024);
        let mut response = Response::new(());
        response.extensions_mut().insert(Switched::new(io, Bytes::new()));
        let clone = response.clone();
        drop(response);
        backend.write_all(b"open").await.unwrap();
        drop(clone);
        assert_eq!(within(backend.read(&mut [0])).await.unwrap(), 0);
    }
}

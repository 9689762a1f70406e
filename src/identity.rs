//! Who asks: what an application writes into the request's extensions, and what the upstream side reads from them.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

/// The name of the signed-in user, as a request extension.
///
/// An application that knows its user inserts it; [`RemoteUserLayer`](crate::RemoteUserLayer) and
/// [`BasicAuthLayer::remote_user`](crate::BasicAuthLayer::remote_user) tell it to the backend. No request extension means
/// that nobody is signed in. A client can't set it: extensions don't cross the wire.
///
/// Any text can be in it. What can't be said in a header field is refused where it would be said.
///
/// ```
/// use axum::{extract::Request, middleware::Next, response::Response};
/// use tower_reverse_proxy::RemoteUser;
///
/// /// A middleware that signs users in, for axum's `from_fn`, added to the router after the proxy.
/// async fn sign_in(mut request: Request, next: Next) -> Response {
///     if let Some(name) = signed_in(&request) {
///         request.extensions_mut().insert(RemoteUser::new(name));
///     }
///     next.run(request).await
/// }
/// # fn signed_in(_: &Request) -> Option<&'static str> { None }
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteUser(Arc<str>);

impl RemoteUser {
    /// Makes the name of a user.
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUser;
    ///
    /// assert_eq!(RemoteUser::new("alice").as_str(), "alice");
    /// ```
    pub fn new(name: impl Into<Arc<str>>) -> Self {
        Self(name.into())
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a header field can say a name so that the backend reads the same one.
///
/// Control characters can't be in a field, outer blanks aren't part of its value (RFC 9110, section 5.5), and an empty
/// name would be nobody's. A name is never bent into another one: `alice ` isn't alice.
pub(crate) fn is_sayable(name: &str) -> bool {
    !name.is_empty() && name.trim() == name && !name.contains(char::is_control)
}

impl From<&str> for RemoteUser {
    fn from(name: &str) -> Self {
        Self::new(name)
    }
}

impl From<String> for RemoteUser {
    fn from(name: String) -> Self {
        Self::new(name)
    }
}

impl From<&String> for RemoteUser {
    fn from(name: &String) -> Self {
        Self::new(name.as_str())
    }
}

impl From<Arc<str>> for RemoteUser {
    fn from(name: Arc<str>) -> Self {
        Self(name)
    }
}

impl fmt::Display for RemoteUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The user whose credentials a layer has set, as a request extension: a layer that sets another user afterwards refuses the
/// request.
#[derive(Clone, Debug)]
pub(crate) struct CredentialsUser(pub(crate) Option<RemoteUser>);

/// The address of the peer that sent the request, as a request extension.
///
/// It becomes the backend's `X-Forwarded-For` and decides whether the peer is a [trusted
/// proxy](crate::Forwarded::trust). With the feature `axum`, axum's `ConnectInfo<SocketAddr>` is read when
/// this extension isn't there; a server that isn't `axum::serve`, or a listener with addresses of another type, inserts
/// this one.
///
/// ```
/// use std::net::SocketAddr;
/// use axum::http::Request;
/// use tower_reverse_proxy::ClientAddr;
///
/// /// What a server that isn't `axum::serve` does with each request.
/// fn with_address<B>(mut request: Request<B>, peer: SocketAddr) -> Request<B> {
///     request.extensions_mut().insert(ClientAddr::from(peer));
///     request
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(IpAddr);

impl ClientAddr {
    /// Takes the address. An IPv4 address that came mapped into IPv6 (`::ffff:192.0.2.1`) is the IPv4 address.
    ///
    /// ```
    /// use tower_reverse_proxy::ClientAddr;
    ///
    /// let addr = ClientAddr::new("::ffff:192.0.2.1".parse().unwrap());
    /// assert_eq!(addr.ip().to_string(), "192.0.2.1");
    /// ```
    pub fn new(addr: IpAddr) -> Self {
        Self(addr.to_canonical())
    }

    /// Returns the address.
    pub fn ip(&self) -> IpAddr {
        self.0
    }
}

impl From<IpAddr> for ClientAddr {
    fn from(addr: IpAddr) -> Self {
        Self::new(addr)
    }
}

impl From<SocketAddr> for ClientAddr {
    fn from(addr: SocketAddr) -> Self {
        Self::new(addr.ip())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn representable_user_names_are_recognised() {
        for name in ["alice", "CORP\\alice", "jörg", "a b", "a:b", "名"] {
            assert!(is_sayable(name), "{name:?}");
        }
        for name in ["", " ", "alice ", " alice", "a\r\nX: 1", "a\0", "\u{a0}a", "a\u{85}b", "\t"] {
            assert!(!is_sayable(name), "{name:?}");
        }
    }

    #[test]
    fn ipv4_mapped_addresses_are_canonical() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(ClientAddr::from(mapped).ip().to_string(), "192.0.2.1");
    }
}

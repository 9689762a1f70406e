//! Request extensions that describe the user and the client. The application or its server inserts them.

use std::{
    any::type_name,
    fmt,
    marker::PhantomData,
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
};

use http::Extensions;

use crate::observe;

/// The name of the signed-in user, as a request extension.
///
/// An application that signs users in inserts it. [`RemoteUserLayer`](crate::RemoteUserLayer) and
/// [`BasicAuthLayer::remote_user`](crate::BasicAuthLayer::remote_user) send it to the backend. Without the extension,
/// no user is signed in. A client can't set it, because extensions aren't part of the message.
///
/// It may contain any text. If a header field can't represent it, the layer that would send it refuses the request.
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
#[doc(alias("REMOTE_USER", "Remote-User", "LOGON_USER", "AUTH_USER", "X-Forwarded-User", "identity"))]
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RemoteUser(Arc<str>);

impl RemoteUser {
    /// Creates the name of a user.
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
    ///
    /// ```
    /// use tower_reverse_proxy::RemoteUser;
    ///
    /// assert_eq!(RemoteUser::from("CORP\\alice").as_str(), "CORP\\alice");
    /// ```
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a header field can represent a name so that the backend reads the same name.
///
/// A field can't contain control characters, and whitespace around a value isn't part of it (RFC 9110, section 5.5). An
/// empty name would be read as no name. A name is never changed into a representable one, because `alice ` isn't
/// `alice`.
pub(crate) fn is_representable(name: &str) -> bool {
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

/// The user whose credentials a layer has set, as a request extension. A later layer that sets another user refuses the
/// request.
#[derive(Clone, Debug)]
pub(crate) struct CredentialsUser(Option<RemoteUser>);

impl CredentialsUser {
    /// Records the signed-in user of a request, or that there is none.
    pub(crate) fn record(extensions: &mut Extensions) {
        let user = extensions.get::<RemoteUser>().cloned();
        match extensions.get_mut() {
            Some(Self(recorded)) => *recorded = user,
            None => drop(extensions.insert(Self(user))),
        }
    }

    /// Whether credentials have been set for another user than the signed-in one.
    pub(crate) fn is_another(extensions: &Extensions) -> bool {
        extensions.get().is_some_and(|Self(user)| user.as_ref() != extensions.get())
    }
}

/// The extension of a request that a closure of the application reads. A missing one is logged once, because a wrong
/// order of the layers looks like requests without users.
pub(crate) struct ExpectedExtension<T> {
    missed: AtomicBool,
    extension: PhantomData<fn() -> T>,
}

impl<T: Send + Sync + 'static> ExpectedExtension<T> {
    pub(crate) fn new() -> Self {
        Self { missed: AtomicBool::new(false), extension: PhantomData }
    }

    pub(crate) fn find<'a>(&self, extensions: &'a Extensions) -> Option<&'a T> {
        let found = extensions.get();
        // Loaded first, because all requests without users would write to one cache line.
        if found.is_none() && !self.missed.load(Relaxed) && !self.missed.swap(true, Relaxed) {
            observe::missing_extension(type_name::<T>());
        }
        found
    }
}

/// Whom a connection to the backend speaks for once the credentials of a request went over it, as a request extension.
///
/// A layer that sets `Authorization` inserts it, and [`Client`](crate::Client) reads it. Some credentials sign in the
/// connection and not the request: NTLM always, Negotiate with many backends (RFC 4559, section 6). The client keeps
/// the connections of each principal apart, so that no request of another principal and no request without an owner
/// goes over them. A layer of your own inserts it after it has established for whom the credentials are.
///
/// Without the extension, a connection that `Authorization: Negotiate` or `NTLM` went over is closed after its
/// response.
///
/// ```
/// use axum::http::{HeaderValue, Request, header::AUTHORIZATION};
/// use tower_reverse_proxy::Owner;
///
/// /// A layer of the upstream side calls it with a token that was made for the front's own account.
/// fn sign_in<B>(mut request: Request<B>, mut token: HeaderValue) -> Request<B> {
///     token.set_sensitive(true);
///     request.headers_mut().insert(AUTHORIZATION, token);
///     request.extensions_mut().insert(Owner::Principal("front@REALM.EXAMPLE".into()));
///     request
/// }
/// ```
///
/// # Security
///
/// Two requests with equal principals share connections. The name therefore is the one that the credentials were
/// established for, such as the source name of a Kerberos context, and not the user's input: `alice` and `ALICE` are
/// two owners. A layer that inserts the owner also sets `Authorization`, or removes it: the client's own credentials
/// would sign in a connection of the named principal.
#[doc(alias("connection pool", "Negotiate", "NTLM", "UnsafeAuthenticatedConnectionSharing", "Persistent-Auth"))]
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Owner {
    /// The credentials sign in their request only, as Basic and Bearer do: the request goes over any connection. It's
    /// the default, and has the same effect as no extension.
    #[default]
    Request,
    /// The credentials sign in the connection as this principal.
    ///
    /// The request goes over a connection of this principal or over a new one, never over HTTP/2. It isn't sent again
    /// once any of it may have been written, because the second use of a token is a replay.
    Principal(Arc<str>),
}

/// The address of the peer that sent the request, as a request extension.
///
/// It's sent to the backend in `X-Forwarded-For`, and determines whether the peer is
/// [trusted](crate::Forwarded::trust). Without the extension, axum's `ConnectInfo<SocketAddr>` is used, with the
/// feature `axum`. A server other than `axum::serve`, or one whose listener has addresses of another type, inserts this
/// extension.
///
/// ```
/// use std::net::SocketAddr;
/// use axum::http::Request;
/// use tower_reverse_proxy::ClientAddr;
///
/// /// A server other than `axum::serve` calls it for each request.
/// fn with_address<B>(mut request: Request<B>, peer: SocketAddr) -> Request<B> {
///     request.extensions_mut().insert(ClientAddr::from(peer));
///     request
/// }
/// ```
#[doc(alias("X-Forwarded-For", "X-Real-IP", "remote_addr", "REMOTE_ADDR", "client ip", "peer", "ConnectInfo"))]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ClientAddr(IpAddr);

impl ClientAddr {
    /// Creates it from an address. An IPv4-mapped IPv6 address (`::ffff:192.0.2.1`) becomes the IPv4 address.
    ///
    /// ```
    /// use tower_reverse_proxy::ClientAddr;
    ///
    /// let addr = ClientAddr::new("::ffff:192.0.2.1".parse().unwrap());
    /// assert_eq!(addr.ip().to_string(), "192.0.2.1");
    /// ```
    #[must_use]
    pub fn new(addr: IpAddr) -> Self {
        Self(addr.to_canonical())
    }

    /// Returns the address.
    ///
    /// ```
    /// use std::net::{IpAddr, Ipv4Addr};
    /// use tower_reverse_proxy::ClientAddr;
    ///
    /// assert_eq!(ClientAddr::from(IpAddr::from([192, 0, 2, 1])).ip(), Ipv4Addr::new(192, 0, 2, 1));
    /// ```
    #[must_use]
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
            assert!(is_representable(name), "{name:?}");
        }
        for name in ["", " ", "alice ", " alice", "a\r\nX: 1", "a\0", "\u{a0}a", "a\u{85}b", "\t"] {
            assert!(!is_representable(name), "{name:?}");
        }
    }

    #[test]
    fn ipv4_mapped_addresses_are_canonical() {
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        assert_eq!(ClientAddr::from(mapped).ip().to_string(), "192.0.2.1");
    }
}

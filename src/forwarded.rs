//! The forwarding fields of requests to the backend, and the peers whose own are trusted.

use std::{convert::Infallible, error, fmt, net::IpAddr};

use http::uri::Scheme;
use ipnet::IpNet;

use crate::headers::forwarded::ForwardedPolicy;

/// Which forwarding header fields are sent to the backend, and which peers' own are trusted.
///
/// Forwarding fields describe the client's side of the proxy: its address, the host and the scheme it used. By default,
/// `X-Forwarded-For`, `-Host` and `-Prefix` are sent, no peer is trusted, and what a client sends under such a name is
/// removed.
///
/// ```
/// use tower_reverse_proxy::{Forwarded, ReverseProxyLayer};
///
/// // Behind a load balancer in 10.0.0.0/8 that terminates TLS.
/// let forwarded = Forwarded::new().proto("https").trust(["10.0.0.0/8"]);
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").forwarded(forwarded);
/// # let _ = proxy;
/// ```
///
/// | field | sent | value |
/// |---|---|---|
/// | `X-Forwarded-For` | by default | the peer's address: [`ClientAddr`](crate::ClientAddr), or axum's `ConnectInfo<SocketAddr>` |
/// | `X-Forwarded-Host` | by default | the client's `Host` |
/// | `X-Forwarded-Proto` | with [`proto`](Self::proto) | that scheme |
/// | `X-Forwarded-Prefix` | where the prefix is [stripped](crate::ReverseProxyLayer::strip_prefix) or replaced | the public prefix |
/// | `Forwarded` (RFC 7239) | with [`rfc7239`](Self::rfc7239) | `for`, `host`, and `proto` if it's set |
/// | `X-Real-IP` | with [`x_real_ip`](Self::x_real_ip) | the peer's address |
///
/// axum inserts `ConnectInfo<SocketAddr>` if the application is served with
/// `into_make_service_with_connect_info::<SocketAddr>()`. Requests without an address get no `X-Forwarded-For`, and the
/// first one emits a warning.
#[derive(Clone, Debug, Default)]
#[must_use]
#[doc(alias = "X-Forwarded-For")]
#[doc(alias = "X-Forwarded-Proto")]
#[doc(alias = "set_real_ip_from")]
#[doc(alias = "trust proxy")]
pub struct Forwarded {
    policy: ForwardedPolicy,
}

impl Forwarded {
    /// Sends `X-Forwarded-For`, `-Host` and `-Prefix`, and trusts no peer.
    ///
    /// ```
    /// use tower_reverse_proxy::{Forwarded, ReverseProxyLayer};
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").forwarded(Forwarded::new());
    /// # let _ = proxy;
    /// ```
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether `X-Forwarded-For`, `-Host`, `-Proto` and `-Prefix` are sent. Default: `true`.
    ///
    /// ```
    /// use tower_reverse_proxy::Forwarded;
    ///
    /// // A backend that reads `Forwarded` only.
    /// let forwarded = Forwarded::new().x_forwarded(false).rfc7239(true);
    /// # let _ = forwarded;
    /// ```
    pub fn x_forwarded(mut self, send: bool) -> Self {
        self.policy.x_forwarded = send;
        self
    }

    /// Sets whether `Forwarded` (RFC 7239) is sent. Default: `false`.
    ///
    /// ```
    /// use tower_reverse_proxy::Forwarded;
    ///
    /// // `Forwarded: for=192.0.2.1;host=front.example;proto=https`
    /// let forwarded = Forwarded::new().rfc7239(true).proto("https");
    /// # let _ = forwarded;
    /// ```
    pub fn rfc7239(mut self, send: bool) -> Self {
        self.policy.forwarded = send;
        self
    }

    /// Sets whether `X-Real-IP` is sent. Default: `false`.
    ///
    /// ```
    /// use tower_reverse_proxy::Forwarded;
    ///
    /// let forwarded = Forwarded::new().x_real_ip(true);
    /// # let _ = forwarded;
    /// ```
    #[doc(alias = "X-Real-IP")]
    pub fn x_real_ip(mut self, send: bool) -> Self {
        self.policy.x_real_ip = send;
        self
    }

    /// Sets the scheme with which clients reach the front, as `"http"`, `"https"` or a [`Scheme`]. Default: none, and
    /// no `X-Forwarded-Proto` is sent.
    ///
    /// It can't be derived from a request, because an HTTP/1.1 request has no scheme, and HTTP/2's `:scheme` is chosen
    /// by the client.
    ///
    /// ```
    /// use tower_reverse_proxy::Forwarded;
    ///
    /// let forwarded = Forwarded::new().proto("https");
    /// # let _ = forwarded;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's neither `http` nor `https`.
    #[track_caller]
    pub fn proto(mut self, scheme: impl TryInto<Scheme>) -> Self {
        let scheme = scheme.try_into().ok().filter(|scheme| [Scheme::HTTP, Scheme::HTTPS].contains(scheme));
        let Some(scheme) = scheme else { panic!("invalid scheme of the front: write \"http\" or \"https\"") };
        self.policy.proto = Some(scheme);
        self
    }

    /// Adds peers whose forwarding fields are trusted: the proxies in front of the application, as CIDR blocks or
    /// addresses. Default: none.
    ///
    /// It takes an array or any other iterator, even for one peer: `trust(["10.0.0.0/8"])`. The host bits of a block
    /// are ignored: `10.1.2.3/8` is `10.0.0.0/8`.
    ///
    /// From such a peer, `X-Forwarded-For` and `Forwarded` are appended to, the other forwarding fields are kept, and
    /// so are [identity claims](crate::ReverseProxyLayer::keep_identity_claims) except `Remote-User`.
    ///
    /// ```
    /// use std::net::{IpAddr, Ipv6Addr};
    /// use tower_reverse_proxy::Forwarded;
    ///
    /// let forwarded = Forwarded::new().trust(["10.0.0.0/8", "192.0.2.7"]).trust([IpAddr::from(Ipv6Addr::LOCALHOST)]);
    /// # let _ = forwarded;
    /// ```
    ///
    /// # Panics
    ///
    /// If one isn't a block of addresses, with a message that names what to write. Parse a [`TrustedPeers`] to get the
    /// error.
    ///
    /// # Security
    ///
    /// A trusted proxy must set or remove these fields itself. nginx, for example, forwards the fields of its clients,
    /// such as `Remote-Groups` and `X-WEBAUTH-USER`, unless its configuration names each of them
    /// (`proxy_set_header Remote-Groups "";`). The guide [behind a proxy](crate::guide::behind_a_proxy) has the list,
    /// and a layer that removes the claims in the application.
    #[track_caller]
    #[doc(alias("trusted proxy", "trusted proxies", "set_real_ip_from"))]
    pub fn trust<T>(mut self, peers: impl IntoIterator<Item = T>) -> Self
    where
        T: TryInto<TrustedPeers, Error: Into<InvalidPeers>>,
    {
        for peers in peers {
            match peers.try_into().map_err(Into::into) {
                Ok(TrustedPeers(block)) => self.policy.trusted.push(block),
                Err(error) => panic!("{error}"),
            }
        }
        self
    }

    /// Sets whether peers without an address are [trusted](Self::trust): a proxy that reaches the application over a
    /// Unix socket. Default: `false`, and no block of addresses includes them.
    ///
    /// ```
    /// use tower_reverse_proxy::{Forwarded, ReverseProxyLayer};
    ///
    /// // The application listens on a Unix socket, and nginx in front of it sends `X-Forwarded-For`.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").forwarded(Forwarded::new().trust_unix_peers(true));
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// A peer has no address if the request's extensions contain neither a [`ClientAddr`](crate::ClientAddr) nor axum's
    /// `ConnectInfo<SocketAddr>`. Requests over TCP look the same if the application is served without connect info:
    /// then this option trusts every client. Set it only if each listener either is a Unix socket that only the proxy
    /// in front can open, or provides addresses.
    pub fn trust_unix_peers(mut self, trust: bool) -> Self {
        self.policy.trust_unix = trust;
        self
    }

    pub(crate) fn into_policy(self) -> ForwardedPolicy {
        self.policy
    }
}

/// A block of addresses whose peers can be [trusted](Forwarded::trust): a CIDR block, or one address.
///
/// ```
/// use tower_reverse_proxy::{Forwarded, TrustedPeers};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidPeers> {
/// let from_configuration = ["10.0.0.0/8", "fd00::/8", "192.0.2.7"];
/// let peers = from_configuration.into_iter().map(str::parse).collect::<Result<Vec<TrustedPeers>, _>>()?;
/// let forwarded = Forwarded::new().trust(peers);
/// # let _ = forwarded;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct TrustedPeers(IpNet);

impl std::str::FromStr for TrustedPeers {
    type Err = InvalidPeers;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = || text.parse::<IpAddr>().map(|address| IpNet::from(address.to_canonical()));
        text.parse::<IpNet>().or_else(|_| address()).map(Self).map_err(|_| InvalidPeers { given: text.to_owned() })
    }
}

impl TryFrom<&str> for TrustedPeers {
    type Error = InvalidPeers;

    fn try_from(text: &str) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<String> for TrustedPeers {
    type Error = InvalidPeers;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl TryFrom<&String> for TrustedPeers {
    type Error = InvalidPeers;

    fn try_from(text: &String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

impl From<IpAddr> for TrustedPeers {
    fn from(address: IpAddr) -> Self {
        Self(address.to_canonical().into())
    }
}

impl fmt::Display for TrustedPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The error returned when a text isn't a block of addresses.
///
/// ```
/// use tower_reverse_proxy::TrustedPeers;
///
/// let error = "10.0.0.0/33".parse::<TrustedPeers>().unwrap_err();
/// assert!(error.to_string().contains("10.0.0.0/8"));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidPeers {
    given: String,
}

impl fmt::Display for InvalidPeers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "invalid block of addresses {:?}: write a CIDR block such as \"10.0.0.0/8\" or an address such as \"192.0.2.7\"",
            self.given
        )
    }
}

impl error::Error for InvalidPeers {}

impl From<Infallible> for InvalidPeers {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

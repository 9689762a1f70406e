//! The options of the client-facing half, each with its default. Those of the backend are in `backend_options`.

use std::{sync::Arc, time::Duration};

use axum_core::response::IntoResponse;
use http::uri::Scheme;
use ipnet::IpNet;

use super::layer::ReverseProxyLayer;
use crate::{
    forward::{Failure, Rules},
    headers::{cookie::is_cookie_name, via::Pseudonym},
    path::{InvalidPrefix, PathPolicy, Prefix},
    upgrade::Tunnels,
};

/// # Paths
impl<U, P> ReverseProxyLayer<U, P> {
    /// Sets the directory that is the backend's. Default: `/`, everything.
    ///
    /// `/mydir` stands for `/mydir`, `/mydir/` and all below, not for `/mydirx`. In a nested router it's relative to the
    /// nest, as routes are.
    ///
    /// axum's `nest` takes over a router's routes and the fallback that was set for it, layers included, but not the default
    /// fallback. A router that is to be nested needs a `fallback` before this layer; or mount a
    /// [`ReverseProxy`](crate::ReverseProxy) in it with `nest_service`.
    ///
    /// The `Destination` of a `COPY` or `MOVE` has to be below the prefix too: one that isn't, or that names another server than
    /// the client's `Host`, is answered with 502 (RFC 4918, section 9.8.5), one with dot segments that leave the prefix with 400.
    /// The backend gets it as an absolute path, which it takes for its own whatever its scheme and `Host` are.
    ///
    /// # How many
    ///
    /// A request passes each layer that isn't its own. In axum that costs about 0.5 µs and 1.5 KiB of stack for each
    /// (8 KiB and more in a debug build). Up to a hundred layers are fine. Beyond that, mount a
    /// [`ReverseProxy`](crate::ReverseProxy) for each directory with `nest_service`: axum's router is a tree, in which
    /// thousands cost little more than one. The example `gateway`, whose mounts come from a file, holds them in a table of its
    /// own.
    ///
    /// # Panics
    ///
    /// If it isn't a plain path, with a message that says what to write instead. Parse a [`Prefix`] to get the error.
    #[track_caller]
    pub fn prefix(self, prefix: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Self {
        let prefix = parsed(prefix);
        self.rules(|rules| rules.prefix = prefix)
    }

    /// Takes the public prefix away on the way to the backend: `/mydir/x` becomes `/x`. Default: the path passes as it is.
    ///
    /// The public prefix is the directory as the client sees it, nests included. The backend gets it as
    /// `X-Forwarded-Prefix`. `Location`, `Content-Location`, `Refresh` and the `Path` of cookies are mapped back, also if the
    /// backend builds the reference from the scheme and the host that it was [forwarded](Self::forwarded_proto):
    /// `https://front.example/login` becomes `/mydir/login`. Links inside of pages are not: a backend that doesn't know its
    /// prefix will send visitors out of it.
    ///
    /// The `Destination` of WebDAV's `COPY` and `MOVE` (RFC 4918, section 10.3) is mapped as the target is; see
    /// [`prefix`](Self::prefix).
    pub fn strip_prefix(self) -> Self {
        self.rules(|rules| rules.path = PathPolicy::Replace(Prefix::root()))
    }

    /// Puts another directory in the public prefix's place: with `/other`, `/mydir/x` becomes `/other/x`. Default: the path
    /// passes as it is.
    ///
    /// Everything else is as with [`strip_prefix`](Self::strip_prefix).
    ///
    /// # Panics
    ///
    /// If it isn't a plain path, with a message that says what to write instead.
    #[track_caller]
    pub fn replace_prefix(self, with: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Self {
        let with = parsed(with);
        self.rules(|rules| rules.path = PathPolicy::Replace(with))
    }
}

/// # Forwarding fields
impl<U, P> ReverseProxyLayer<U, P> {
    /// Sets whether `X-Forwarded-For`, `-Host`, `-Proto` and `-Prefix` are sent. Default: `true`.
    ///
    /// `-For` is the peer's address: [`ClientAddr`](crate::ClientAddr), or axum's `ConnectInfo<SocketAddr>`, which is there if
    /// the application is served with `into_make_service_with_connect_info::<SocketAddr>()`. Without either there is none, and
    /// the first such request emits a warning. `-Host` is the client's. `-Proto` has to be [set](Self::forwarded_proto). `-Prefix` is sent where one
    /// was taken away. What the client sent under such a name is removed in any case.
    pub fn x_forwarded(self, send: bool) -> Self {
        self.rules(|rules| rules.forwarded.x_forwarded = send)
    }

    /// Sets the `X-Forwarded-Proto`: how clients reach the front. Default: none is sent.
    ///
    /// A request can't tell: an HTTP/1.1 one doesn't say, an HTTP/2 one says what the client likes.
    pub fn forwarded_proto(self, scheme: Scheme) -> Self {
        self.rules(|rules| rules.forwarded.proto = Some(scheme))
    }

    /// Sets whether `Forwarded` (RFC 7239) is sent, with `for`, `host` and `proto`. Default: `false`.
    pub fn forwarded(self, send: bool) -> Self {
        self.rules(|rules| rules.forwarded.forwarded = send)
    }

    /// Sets whether `X-Real-IP` is sent. Default: `false`.
    pub fn x_real_ip(self, send: bool) -> Self {
        self.rules(|rules| rules.forwarded.x_real_ip = send)
    }

    /// Sets whose forwarding fields are believed: the proxies in front of the application, as CIDR blocks. Default: nobody's.
    ///
    /// From such a peer, `X-Forwarded-For` and `Forwarded` are appended to, the others kept, and so are [claims of an
    /// identity](Self::keep_identity_claims) but for `Remote-User`. A peer on a Unix socket has no
    /// address: see [`trust_unix_peers`](Self::trust_unix_peers).
    ///
    /// # Security
    ///
    /// A trusted proxy must set or remove these fields itself. nginx, for one, passes on what its clients send, `Remote-Groups` and
    /// `X-WEBAUTH-USER` among it, unless its configuration names them (`proxy_set_header Remote-Groups "";`).
    pub fn trusted_proxies(self, blocks: impl IntoIterator<Item = IpNet>) -> Self {
        let trusted = blocks.into_iter().collect();
        self.rules(|rules| rules.forwarded.trusted = trusted)
    }

    /// Trusts peers that have no address, as [`trusted_proxies`](Self::trusted_proxies) trusts addresses: a proxy that reaches
    /// the application over a Unix socket. Default: they aren't trusted, and no block of addresses includes them.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // The application listens on a Unix socket, nginx in front of it sends `X-Forwarded-For`.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").trust_unix_peers();
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// A peer has no address if the request's extensions hold neither a [`ClientAddr`](crate::ClientAddr) nor axum's
    /// `ConnectInfo<SocketAddr>`. Requests over TCP look the same if the application is served without connect info: then
    /// this option trusts every client. Set it only if each listener either is a Unix socket that no one but the proxy in
    /// front can open, or provides addresses.
    #[doc(alias = "set_real_ip_from")]
    pub fn trust_unix_peers(self) -> Self {
        self.rules(|rules| rules.forwarded.trust_unix = true)
    }

    /// Sets the name that the proxy has in `Via` (RFC 9110, section 7.6.3). Default: `tower-reverse-proxy-` and a random
    /// number, made anew for each proxy. `None`: no `Via`, and no detection of loops.
    ///
    /// A request that has the name in its `Via` has come through here before and is answered with 508.
    ///
    /// # Panics
    ///
    /// If the name isn't a token or an authority.
    #[track_caller]
    pub fn via<'a>(self, name: impl Into<Option<&'a str>>) -> Self {
        let via = match name.into().map(|name| (name, Pseudonym::new(name))) {
            Some((name, None)) => {
                panic!("invalid name {name:?} for Via: write a token or host and port, such as \"front.example\"")
            }
            named => named.and_then(|(_, via)| via),
        };
        self.rules(|rules| rules.via = via)
    }

    /// Lets fields pass whose names have an underscore. Default: they are removed.
    ///
    /// WSGI and CGI servers read `Remote_User` as `Remote-User`, and `SCRIPT_NAME` as their own: with this, a client can say
    /// both to a backend that isn't careful.
    pub fn keep_underscores(self) -> Self {
        self.rules(|rules| rules.keep_underscores = true)
    }

    /// Lets fields pass that claim somebody's identity without a signature, whoever sends them. Default: they are removed, unless
    /// the peer is [trusted](Self::trusted_proxies).
    ///
    /// Backends believe such fields, because only proxies that sign users in set them: `Remote-*`, `X-Remote-User`, `-Group` and
    /// `-Extra-*`, `X-WEBAUTH-*`, `X-Auth-Request-*`, `X-Authenticated-*`, `X-Authentik-*`, `X-Goog-Authenticated-User-*`,
    /// `X-MS-CLIENT-PRINCIPAL*`, `Tailscale-User-*`, `OIDC-Claim-*`, `es-security-runas-user`, and certificates in `Client-Cert*`,
    /// `X-Client-Cert*`, `SSL-Client-*`, `X-SSL-*` and `X-ARR-ClientCert`; in every spelling that a server may fold into one of
    /// them. Each removal emits an event at debug level that names the field. As request trailers they are always removed.
    ///
    /// `Remote-User` is always removed, and set by a [`RemoteUserLayer`](crate::RemoteUserLayer) alone; `X-Forwarded-User`,
    /// `-Groups` and `-Email` are removed as every `X-Forwarded-*` is. A layer of the application's own that sets such a field
    /// belongs on the [upstream side](Self::upstream_layer), where nothing is removed.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // A layer outside of the proxy sets `X-WEBAUTH-USER`, and removes what clients send under its names itself.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").keep_identity_claims();
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// With this, any client can be anyone to a backend that believes one of these fields.
    pub fn keep_identity_claims(self) -> Self {
        self.rules(|rules| rules.keep_identity_claims = true)
    }

    /// Hides cookies from the backend: those of the application's own, by their exact names. Default: every cookie is sent.
    ///
    /// Removes these cookies from the request's `Cookie`, and `Set-Cookie` fields that would set one of them from the response:
    /// a backend at the same host could otherwise replace the application's session. Other cookies pass byte for byte; a
    /// `Cookie` field with no cookie left is removed. Names are compared with their case (RFC 6265, section 5.3).
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // The backend has no use for the session cookie of the application (tower-sessions names it `id`).
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").hide_cookies(["id"]);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If a name isn't a token (RFC 6265, section 4.1.1).
    #[track_caller]
    pub fn hide_cookies<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into).collect::<Box<[String]>>();
        for name in &names {
            assert!(
                is_cookie_name(name),
                "invalid cookie name {name:?}: write the name alone, without value, blanks and attributes, such as \"id\""
            );
        }
        self.rules(|rules| rules.hidden_cookies = names)
    }
}

/// # Upgrades
impl<U, P> ReverseProxyLayer<U, P> {
    /// Lets clients switch to one more protocol, by its token in `Upgrade`. Default: `websocket` alone.
    ///
    /// An offer of any other protocol is dropped, and the request goes on without it.
    ///
    /// An offer may come with a body, as the `POST` of `docker exec` does: the body goes to the backend first, and the tunnel
    /// begins behind it. An offer of `websocket` has no body (RFC 6455, section 4.1), and one with a body is answered with
    /// 400.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // `docker exec` and `podman attach`, to a daemon behind the proxy.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:2375").prefix("/v1.43").allow_upgrade("tcp");
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't a token, or is `h2c` or `HTTP/…`: a tunnel around every rule here.
    #[track_caller]
    pub fn allow_upgrade(self, token: &str) -> Self {
        let Some(upgrades) = self.proxy.rules.upgrades.and(token) else {
            panic!("invalid upgrade {token:?}: write a protocol's token, not HTTP's");
        };
        self.rules(|rules| rules.upgrades = upgrades)
    }

    /// Keeps account of the tunnels in `tunnels`, for an application that waits for them when it ends. Default: an account of
    /// the proxy's own.
    ///
    /// At its end, each tunnel emits an event with the target `tower_reverse_proxy::tunnel`: bytes `up` and `down`, `age_ms`,
    /// and what it was `ended_by`.
    pub fn tunnels(self, tunnels: Tunnels) -> Self {
        self.rules(|rules| rules.tunnels.tunnels = tunnels)
    }

    /// Sets how long a tunnel may carry nothing either way. Default: for ever.
    ///
    /// TCP keep-alive finds a backend that is gone: the crate's client sets it. On the client's side, it's the server's to
    /// set. Without it, the tunnels of clients that vanish without a FIN stay. With `axum::serve` and the crate socket2:
    ///
    /// ```no_run
    /// use axum::serve::ListenerExt;
    /// use socket2::{SockRef, TcpKeepalive};
    /// # use std::time::Duration;
    ///
    /// # async fn run(listener: tokio::net::TcpListener, app: axum::Router) -> std::io::Result<()> {
    /// let keep_alive = TcpKeepalive::new().with_time(Duration::from_secs(60)).with_interval(Duration::from_secs(15));
    /// let listener = listener.tap_io(move |stream| {
    ///     let _ = SockRef::from(&*stream).set_tcp_keepalive(&keep_alive);
    /// });
    /// axum::serve(listener, app).await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn tunnel_idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rules(|rules| rules.tunnels.idle_timeout = timeout)
    }

    /// Sets how long a tunnel may carry nothing after one side has ended. Default: 60 seconds. `None`: for ever.
    ///
    /// The end of one side is passed on, and the other direction goes on: a client may send a FIN and read the rest. A peer
    /// that ignores the FIN would keep the tunnel open for ever. Each byte starts the time anew. A tunnel that is ended for it has
    /// `half-closed timeout` for its `ended_by`.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").tunnel_half_closed_timeout(Duration::from_secs(10));
    /// # let _ = proxy;
    /// ```
    pub fn tunnel_half_closed_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rules(|rules| rules.tunnels.half_closed_timeout = timeout)
    }

    /// Sets how long a tunnel may be open. Default: for ever.
    pub fn tunnel_max_age(self, age: impl Into<Option<Duration>>) -> Self {
        let age = bounded(age.into());
        self.rules(|rules| rules.tunnels.max_age = age)
    }
}

/// # Time and failure
impl<U, P> ReverseProxyLayer<U, P> {
    /// Sets how long the backend may take for its response head, from the end of the request's body. Default: 60 seconds.
    /// `None`: for ever. Then: 504.
    pub fn header_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rules(|rules| rules.header_timeout = timeout)
    }

    /// Sets how long a request's `Expect: 100-continue` waits for the backend's `100 Continue`, before the client is told to go
    /// on all the same: not every backend knows it. Default: 1 second.
    ///
    /// A request that goes over HTTP/2 doesn't wait: there, a backend can refuse in the midst of a body.
    pub fn continue_timeout(self, timeout: Duration) -> Self {
        self.rules(|rules| rules.continue_timeout = timeout)
    }

    /// Sets how long either body may stand still. Default: 5 minutes. `None`: for ever.
    ///
    /// Each frame starts the time anew; a slow body isn't cut. Before the response head, a client that sends nothing more
    /// gets 408, and a backend that takes nothing more becomes 504. After the head, a frame in either direction starts the
    /// time anew for both: a client may listen to answers for hours, or send while the backend is silent. An exchange that
    /// is silent in both directions is aborted. A client that doesn't read is the server's to watch.
    pub fn body_idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout.into());
        self.rules(|rules| rules.body_idle_timeout = timeout)
    }

    /// Makes the response of a failure, in place of a short text. The [`Error`](crate::Error) is put into its extensions.
    ///
    /// The [`Failure`] is the error, and the method, target and fields of the request:
    ///
    /// ```
    /// use axum::{
    ///     http::{StatusCode, header::{ACCEPT, CONTENT_TYPE}},
    ///     response::{Html, IntoResponse, Response},
    /// };
    /// use tower_reverse_proxy::{Failure, ReverseProxyLayer};
    ///
    /// fn page(failure: &Failure) -> (StatusCode, Response) {
    ///     let accept = failure.headers().get(ACCEPT).and_then(|accept| accept.to_str().ok()).unwrap_or_default();
    ///     let page = if accept.contains("application/json") {
    ///         ([(CONTENT_TYPE, "application/json")], r#"{"error":"back in a minute"}"#).into_response()
    ///     } else {
    ///         Html("<h1>Back in a minute</h1>").into_response()
    ///     };
    ///     (failure.status(), page)
    /// }
    ///
    /// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(page);
    /// # let _ = legacy;
    /// ```
    ///
    /// gRPC requests get a gRPC status instead. With a hook, each request's method, target and fields are cloned, because the
    /// request is gone when it fails; without one, nothing is.
    ///
    /// # Security
    ///
    /// The error's text and source are for the log: they may hold addresses of the backend. The request's fields may hold
    /// credentials.
    pub fn on_error<R: IntoResponse>(self, respond: impl Fn(&Failure) -> R + Send + Sync + 'static) -> Self {
        self.rules(|rules| rules.on_error = Some(Arc::new(move |failure| respond(failure).into_response())))
    }

    fn rules(mut self, change: impl FnOnce(&mut Rules)) -> Self {
        change(Arc::make_mut(&mut self.proxy.rules));
        self
    }
}

/// `Duration::MAX` means for ever too, and can't be added to a point in time.
pub(super) fn bounded(timeout: Option<Duration>) -> Option<Duration> {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    timeout.filter(|&timeout| timeout < CENTURY)
}

#[track_caller]
fn parsed(prefix: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Prefix {
    match prefix.try_into().map_err(Into::into) {
        Ok(prefix) => prefix,
        Err(error) => panic!("{error}"),
    }
}

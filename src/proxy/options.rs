//! The options of a proxy, each with its default.

use std::{sync::Arc, time::Duration};

use axum_core::response::IntoResponse;

use super::layer::ReverseProxyLayer;
use crate::{
    forward::{Failure, ForwardConfig},
    forwarded::Forwarded,
    headers::{cookie::is_cookie_name, via::Pseudonym},
    path::{InvalidPrefix, PathPolicy, Prefix},
    timeout::bounded,
    upgrade::Tunnels,
};

/// # Paths
impl<U> ReverseProxyLayer<U> {
    /// Sets the directory that is forwarded, as `&str`, `String` or [`Prefix`]. Default: `/`, everything.
    ///
    /// `/mydir` includes `/mydir`, `/mydir/` and everything below it, and doesn't include `/mydirx`. In a nested router
    /// it's relative to the nest, as routes are.
    ///
    /// axum's `nest` takes over a router's routes and the fallback that was set for it, layers included, but not the
    /// default fallback. A router that is to be nested needs a `fallback` before this layer; or mount a
    /// [`ReverseProxy`](crate::ReverseProxy) in it with `nest_service`.
    ///
    /// The `Destination` of a `COPY` or `MOVE` must be below the prefix too. If it isn't, or if it names another server
    /// than the client's `Host`, the request is answered with 502 (RFC 4918, section 9.8.5); if its dot segments leave
    /// the prefix, with 400. The backend gets it as an absolute path, which is independent of the backend's scheme and
    /// `Host`.
    ///
    /// # Many prefixes
    ///
    /// A request passes through every layer, also through those of other prefixes. In axum, each costs about 0.5 µs and
    /// 1.5 KiB of stack (8 KiB and more in a debug build). Up to a hundred layers are fine. For more, mount a
    /// [`ReverseProxy`](crate::ReverseProxy) for each directory with `nest_service`, because axum's router is a tree,
    /// in which thousands of routes cost little more than one. The example [`gateway`], whose mounts come from a
    /// file, has them in a table.
    ///
    /// [`gateway`]: https://docs.rs/crate/tower-reverse-proxy/latest/source/examples/gateway/main.rs
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir");
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't a plain path, with a message that names what to write instead. Parse a [`Prefix`] to get the error.
    #[track_caller]
    #[doc(alias = "location")]
    pub fn prefix(self, prefix: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Self {
        let prefix = parsed(prefix);
        self.configure(|config| config.prefix = prefix)
    }

    /// Removes the public prefix on the way to the backend: `/mydir/x` becomes `/x`. Default: the path is kept.
    ///
    /// The public prefix is the directory as the client sees it, nests included. The backend gets it as
    /// `X-Forwarded-Prefix`. `Location`, `Content-Location`, `Refresh` and the `Path` of cookies are mapped back, also
    /// if the backend builds the reference from the scheme and the host that were [forwarded](Forwarded::proto) to it:
    /// `https://front.example/login` becomes `/mydir/login`. Links inside of pages aren't: a backend that doesn't know
    /// its prefix sends visitors out of it.
    ///
    /// The `Destination` of WebDAV's `COPY` and `MOVE` (RFC 4918, section 10.3) is mapped as the target is; see
    /// [`prefix`](Self::prefix).
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").strip_prefix();
    /// // Under a nest, the prefix is the nest's.
    /// let nested = ReverseProxyLayer::new("http://127.0.0.1:8001").strip_prefix().into_service();
    /// let app: Router = Router::new().nest_service("/other", nested).layer(proxy);
    /// ```
    #[doc(alias = "strip prefix")]
    #[doc(alias = "StripPrefix")]
    #[doc(alias = "X-Forwarded-Prefix")]
    #[doc(alias = "proxy_cookie_path")]
    pub fn strip_prefix(self) -> Self {
        self.configure(|config| config.path = PathPolicy::Replace(Prefix::root()))
    }

    /// Replaces the public prefix by another directory: with `/other`, `/mydir/x` becomes `/other/x`. Default: the path
    /// is kept.
    ///
    /// Everything else is as with [`strip_prefix`](Self::strip_prefix).
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/wiki").replace_prefix("/trac/wiki");
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't a plain path, with a message that names what to write instead.
    #[track_caller]
    #[doc(alias = "rewrite")]
    pub fn replace_prefix(self, with: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Self {
        let with = parsed(with);
        self.configure(|config| config.path = PathPolicy::Replace(with))
    }
}

/// # Header fields
impl<U> ReverseProxyLayer<U> {
    /// Sets which forwarding fields are sent (`X-Forwarded-*`, `Forwarded`, `X-Real-IP`), and which peers' own are
    /// trusted. Default: [`Forwarded::new`], which sends `X-Forwarded-For`, `-Host` and `-Prefix`, and trusts no peer.
    ///
    /// ```
    /// use tower_reverse_proxy::{Forwarded, ReverseProxyLayer};
    ///
    /// // Behind a load balancer in 10.0.0.0/8 that terminates TLS.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
    ///     .forwarded(Forwarded::new().proto("https").trust(["10.0.0.0/8"]));
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "X-Forwarded-For")]
    #[doc(alias = "set_real_ip_from")]
    #[doc(alias = "trusted proxies")]
    pub fn forwarded(self, forwarded: Forwarded) -> Self {
        self.configure(|config| config.forwarded = forwarded.into_policy())
    }

    /// Sets the name of the proxy in `Via` (RFC 9110, section 7.6.3). Default: `tower-reverse-proxy-` and a random
    /// number, which differs for each proxy. With `None`, no `Via` is sent, and loops aren't detected.
    ///
    /// A request whose `Via` contains the name has come through this proxy before, and is answered with 508.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let named = ReverseProxyLayer::new("http://127.0.0.1:8000").via("front.example");
    /// let silent = ReverseProxyLayer::new("http://127.0.0.1:8000").via(None);
    /// # let _ = (named, silent);
    /// ```
    ///
    /// # Panics
    ///
    /// If the name is neither a token nor an authority.
    #[track_caller]
    pub fn via<'a>(self, name: impl Into<Option<&'a str>>) -> Self {
        let via = match name.into().map(|name| (name, Pseudonym::new(name))) {
            Some((name, None)) => {
                panic!("invalid name {name:?} for Via: write a token or host and port, such as \"front.example\"")
            }
            named => named.and_then(|(_, via)| via),
        };
        self.configure(|config| config.via = via)
    }

    /// Sets whether header fields with an underscore in their name are forwarded. Default: `false`, they are removed.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").keep_underscores(true);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// WSGI and CGI servers read `Remote_User` as `Remote-User`, and `SCRIPT_NAME` as a variable of their own, so a
    /// client can set both at a backend that doesn't distinguish them.
    #[doc(alias = "underscores_in_headers")]
    pub fn keep_underscores(self, keep: bool) -> Self {
        self.configure(|config| config.keep_underscores = keep)
    }

    /// Sets whether header fields that claim an identity without a signature are forwarded from any peer. Default:
    /// `false`, they are removed unless the peer is [trusted](Forwarded::trust).
    ///
    /// Backends trust such fields, because only proxies that sign users in set them. The guide
    /// [lists them all](crate::guide::identity#what-is-removed-from-the-clients-request): `Remote-*`, `X-WEBAUTH-*`,
    /// `X-Auth-Request-*`, client certificates and others, in every spelling that a server may fold into one of them.
    /// Each removal emits an event at debug level with the name of the field. As request trailers they are always
    /// removed.
    ///
    /// `Remote-User` is always removed, and set by a [`RemoteUserLayer`](crate::RemoteUserLayer) only;
    /// `X-Forwarded-User`, `-Groups` and `-Email` are removed as every `X-Forwarded-*` is. A layer of the application's
    /// own that sets such a field belongs on the [upstream side](Self::upstream_layer), where no field is removed.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // A layer outside of the proxy sets `X-WEBAUTH-USER`, and removes what clients send under its names itself.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").keep_identity_claims(true);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// With `true`, any client can be any user for a backend that trusts one of these fields.
    pub fn keep_identity_claims(self, keep: bool) -> Self {
        self.configure(|config| config.keep_identity_claims = keep)
    }

    /// Sets the names of cookies that the backend neither gets nor sets: the application's own. Default: none.
    ///
    /// These cookies are removed from the request's `Cookie`, and `Set-Cookie` fields for them from the response,
    /// because a backend at the same host could otherwise read or replace the application's session. Other cookies pass
    /// byte for byte; a `Cookie` field without a cookie left is removed. Names are case-sensitive (RFC 6265, section
    /// 5.3).
    ///
    /// The cookie of a [`balanced`](Self::balanced) mount's [sessions](crate::balance::Sticky) is hidden from the
    /// backends in any case, and its name has no effect here.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // The session cookie of tower-sessions.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").hide_cookies(["id"]);
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If a name isn't a token (RFC 6265, section 4.1.1).
    #[track_caller]
    #[doc(alias = "session cookie")]
    pub fn hide_cookies<N: Into<String>>(self, names: impl IntoIterator<Item = N>) -> Self {
        let names = names.into_iter().map(Into::into).collect::<Box<[String]>>();
        for name in &names {
            assert!(
                is_cookie_name(name),
                "invalid cookie name {name:?}: write the name only, without value, whitespace and \
                 attributes, such as \"id\""
            );
        }
        self.configure(|config| {
            let upstream = config.upstream_cookie.as_deref();
            config.hidden_cookies = names.into_iter().filter(|name| Some(&**name) != upstream).collect();
        })
    }
}

/// # Upgrades
impl<U> ReverseProxyLayer<U> {
    /// Adds a protocol that clients may switch to, by its token in `Upgrade` (RFC 9110, section 7.8). Default:
    /// `websocket` only.
    ///
    /// An offer of any other protocol is removed, and the request is forwarded without it.
    ///
    /// An offer may have a body, as the `POST` of `docker exec` does: the body is sent to the backend first, and the
    /// tunnel begins after it. An offer of `websocket` has no body (RFC 6455, section 4.1); one with a body is answered
    /// with 400.
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
    /// If it isn't a token, or is `h2c` or `HTTP/…`, which would tunnel requests past every rule of the proxy.
    #[track_caller]
    #[doc(alias = "proxy_set_header Upgrade")]
    pub fn allow_upgrade(self, token: &str) -> Self {
        let Some(upgrades) = self.proxy.config.upgrades.with(token) else {
            panic!("invalid upgrade {token:?}: write a protocol's token, not HTTP's");
        };
        self.configure(|config| config.upgrades = upgrades)
    }

    /// Sets the [`Tunnels`] that the proxy's WebSockets and other upgraded connections belong to: their timeouts, and
    /// the set that an application waits for at shutdown. Default: a set of the proxy's own, without an idle timeout.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::{ReverseProxyLayer, Tunnels};
    ///
    /// let tunnels = Tunnels::new().idle_timeout(Duration::from_secs(3600));
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").tunnels(tunnels.clone());
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "websocket")]
    pub fn tunnels(self, tunnels: Tunnels) -> Self {
        self.configure(|config| config.tunnels = tunnels)
    }
}

/// # Timeouts and failures
impl<U> ReverseProxyLayer<U> {
    /// Sets how long the backend may take for its response head, from the end of the request's body. Default: 60
    /// seconds. `None` disables it.
    ///
    /// On expiry, the client gets 504 ([`ErrorKind::HeaderTimeout`](crate::ErrorKind::HeaderTimeout)).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // Reports that take minutes.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").header_timeout(Duration::from_secs(600));
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "proxy_read_timeout")]
    #[doc(alias = "ProxyTimeout")]
    pub fn header_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout);
        self.configure(|config| config.header_timeout = timeout)
    }

    /// Sets how long a request with `Expect: 100-continue` waits for the backend's `100 Continue` before the client is
    /// asked for the body anyway, because some backends never send one. Default: 1 second.
    ///
    /// A request over HTTP/2 doesn't wait, because an HTTP/2 backend can refuse it during the body.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").continue_timeout(Duration::from_millis(200));
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "Expect")]
    pub fn continue_timeout(self, timeout: Duration) -> Self {
        self.configure(|config| config.continue_timeout = timeout)
    }

    /// Sets how long the bodies of an exchange may be silent. Default: 5 minutes. `None` disables it.
    ///
    /// Each frame restarts it, so a slow body isn't cut. Before the response head, it applies to the request's body: a
    /// client that sends nothing more gets 408 ([`RequestBodyTimeout`](crate::ErrorKind::RequestBodyTimeout)), and a
    /// backend that reads nothing more becomes 504 ([`SendTimeout`](crate::ErrorKind::SendTimeout)). After the head, a
    /// frame in either direction restarts it for both, because a client may only listen for hours, or only send; an
    /// exchange that is silent in both directions is aborted
    /// ([`ResponseBodyTimeout`](crate::ErrorKind::ResponseBodyTimeout)). It doesn't apply to clients that don't read
    /// the response, which the server has to limit.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").body_idle_timeout(Duration::from_secs(30));
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "proxy_send_timeout")]
    #[doc(alias = "sse")]
    pub fn body_idle_timeout(self, timeout: impl Into<Option<Duration>>) -> Self {
        let timeout = bounded(timeout);
        self.configure(|config| config.body_idle_timeout = timeout)
    }

    /// Sets the function that creates the response to a failure. Default: the status and its reason as plain text. In
    /// either case, the [`Error`](crate::Error) is inserted into the response's extensions.
    ///
    /// The [`Failure`] has the error, and the method, target and header fields of the request:
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
    /// gRPC requests get a gRPC status instead. With a hook, the method, target and fields of every request are cloned,
    /// because the request has been sent when a failure occurs.
    ///
    /// # Security
    ///
    /// Don't send the text or the source of the error to clients, because they may contain addresses of the backend.
    /// The request's fields may contain credentials.
    #[doc(alias = "error page")]
    #[doc(alias = "error_page")]
    #[doc(alias = "fallback")]
    pub fn on_error<R: IntoResponse>(self, respond: impl Fn(&Failure) -> R + Send + Sync + 'static) -> Self {
        self.configure(|config| config.on_error = Some(Arc::new(move |failure| respond(failure).into_response())))
    }

    pub(super) fn configure(mut self, change: impl FnOnce(&mut ForwardConfig)) -> Self {
        change(Arc::make_mut(&mut self.proxy.config));
        self
    }
}

#[track_caller]
fn parsed(prefix: impl TryInto<Prefix, Error: Into<InvalidPrefix>>) -> Prefix {
    match prefix.try_into().map_err(Into::into) {
        Ok(prefix) => prefix,
        Err(error) => panic!("{error}"),
    }
}

//! Mount another web server as a directory of an axum app: a reverse proxy that is a tower layer.
//!
//! ```
//! use axum::{Router, routing::get};
//! use tower_reverse_proxy::ReverseProxyLayer;
//!
//! let app: Router = Router::new()
//!     .route("/", get(|| async { "home" }))
//!     .layer(ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir"));
//! ```
//!
//! `/mydir`, `/mydir/` and everything below is the other server's, next to the application's own routes. Both sides have the
//! same layout, so that no link has to be rewritten; every method, body, cookie and field passes through, and redirects to
//! the backend's own origin lead back to the front.
//!
//! - [`ReverseProxyLayer`] is the middleware, and where options are set.
//! - [`ReverseProxy`] is the proxy as a service of its own: for axum's `nest_service`, `fallback_service`, `route_service`.
//! - [`RemoteUserLayer`], [`BasicAuthLayer`], [`TraceRedirectLayer`] are layers for the upstream side.
//! - [`Upstream`] addresses requests to a [`Backend`]; any other tower service can be an upstream too.
//! - [`Error`] is what became a 502, in that response's extensions.
//!
//! # Tenets
//!
//! In this order. *Safe*: what a client sends can't impersonate, smuggle, escape the prefix, or take down local routes.
//! *Faithful*: what passes, passes unchanged, and a truncated response never looks whole. *Fast*. *Composable*: what an
//! operator may choose is a tower layer; what the RFC obliges is not up for choosing. *Plain*: one way to do each thing.
//!
//! # The life of a request
//!
//! ```text
//! the application's router → ReverseProxyService
//!  0  below the prefix, on a segment boundary of the raw path?  no → the wrapped service, nothing touched
//! request half
//!  1  trim values; refuse what must not be forwarded: TRACE, CONNECT but for a WebSocket, targets that are no path, dot segments that leave the prefix, a `%` without two hex digits,
//!     a Host missing, repeated or malformed, a Transfer-Encoding that isn't one `chunked`, a Content-Length that isn't one
//!     length, a Via loop, Max-Forwards: 0
//!  2  take the upgrade offer; drop one that isn't allowed
//!  3  remove hop-by-hop fields, then all that any Connection line names; keep TE: trailers and Trailer
//!  4  remove what isn't the client's to say: names with `_`, Remote-User and other claims of an identity, X-Forwarded-*,
//!     Forwarded, X-Real-IP, Proxy, trailers that would matter as fields
//!  5  target: path and query as they came, also under nest; or with the prefix stripped or replaced; Destination alike
//!  6  Host, forwarding fields, Via, cookie crumbs, hidden cookies
//!  7  framing: Content-Length as the body is, chunked for a GET with a body
//!  8  HTTP/1.1
//! upstream side
//!  9  Upstream: origin, Host policy
//! 10  upstream layers: Remote-User, Basic credentials, redirect traces, yours
//! 11  Client: pool, connect, TLS → backend
//! response half
//! 12  101? only to what was offered, then a tunnel.  Else remove hop-by-hop fields and Alt-Svc
//! 13  one framing, HTTP/1.1, Via
//! 14  Location, Content-Location, Refresh, Set-Cookie: the origin in Upstream, the path here; no hidden cookie
//! 15  body: frames as they come, without trailers that would matter as fields; an error stays an error
//!     a failure anywhere → a response, the Error in its extensions, one tracing event
//! ```
//!
//! # Runtime
//!
//! The proxy runs on tokio, with its I/O and its timers enabled. Without the latter, a request panics at the first timeout
//! that is set.
//!
//! # Features
//!
//! - `axum` (default): reads axum's `OriginalUri` and `ConnectInfo`. Without it, the crate needs axum-core only.
//! - `http2` (default): HTTP/2 to backends, and WebSockets of HTTP/2 clients. Their other requests need no feature.
//! - `tls`: TLS to `https` backends, on rustls, with a provider of cryptography of the application's own; see [`Tls`]. Without
//!   it, an `https` backend is an error.
//! - `tls-ring`, `tls-aws-lc-rs`: `tls` with that provider.
//!
//! # Limits
//!
#![doc = include_str!("docs/limits.md")]
#![cfg_attr(docsrs, feature(doc_cfg))]

mod authority;
mod backend;
mod error;
mod expect;
mod identity;
mod path;

#[cfg(feature = "axum")]
mod axum;
mod headers;

mod forwarded;
mod reject;
mod service;
mod timeout;
mod tunnel_guard;
mod upgrade;

pub mod basic_auth;
pub mod client;
pub mod guide;
pub mod remote_user;
pub mod trace_redirect;
pub mod upstream;

mod forward;
pub mod proxy;

#[cfg(any(fuzzing, test))]
pub mod fuzzing;

#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
#[doc(inline)]
pub use self::client::{InvalidTls, Tls};
#[doc(inline)]
pub use self::{
    backend::{Backend, InvalidBackend},
    basic_auth::BasicAuthLayer,
    client::{Client, ClientBuilder, InvalidClient},
    error::{Error, ErrorKind, Phase},
    forward::Failure,
    forwarded::{Forwarded, InvalidPeers, TrustedPeers},
    identity::{ClientAddr, RemoteUser},
    path::{InvalidPrefix, Prefix},
    proxy::{ReverseProxy, ReverseProxyLayer, ReverseProxyService},
    remote_user::RemoteUserLayer,
    service::HttpService,
    trace_redirect::TraceRedirectLayer,
    upgrade::Tunnels,
    upstream::{BoxUpstream, HostPolicy, InvalidHost, Upstream},
};
/// The version of rustls that [`Tls::with_config`] takes a configuration of.
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
#[doc(no_inline)]
pub use tokio_rustls::rustls;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

//! A reverse proxy that is a tower layer: it mounts another web server as a directory of an axum app.
//!
//! ```no_run
//! use std::net::SocketAddr;
//!
//! use axum::{Router, routing::get};
//! use tower_reverse_proxy::ReverseProxyLayer;
//!
//! #[tokio::main]
//! async fn main() -> std::io::Result<()> {
//!     let app = Router::new()
//!         .route("/", get(|| async { "home" }))
//!         // /mydir, /mydir/ and all below go to the backend.
//!         .layer(ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir"));
//!     let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
//!     // With connect info, the backend gets the client's address in X-Forwarded-For.
//!     axum::serve(listener, app.into_make_service_with_connect_info::<SocketAddr>()).await
//! }
//! ```
//!
//! A request that fails becomes a 502 or another status without details. Its cause is an event of `tracing`, which
//! `tracing_subscriber::fmt::init()` at the start of `main` shows on the terminal (`cargo add tracing-subscriber`):
//! see [telemetry](guide::telemetry).
//!
//! Both sides have the same layout: `/mydir/page` of the front is `/mydir/page` of the backend. Therefore no link in
//! any page has to be rewritten. Where the layouts differ, there are
//! [`strip_prefix`](ReverseProxyLayer::strip_prefix) and [`replace_prefix`](ReverseProxyLayer::replace_prefix).
//! Methods, bodies, cookies and header fields pass, WebSockets too; redirects to the backend's own origin lead back
//! to the front.
//!
//! # Where to start
//!
//! | you want | see |
//! |---|---|
//! | to mount a backend: prefix, nested router, fallback, handler | [mounting](guide::mounting) |
//! | `https` to the backend, your own CA, a Unix socket, HTTP/2 | [backends](guide::backends) |
//! | to choose the `Host` that the backend gets | [backends](guide::backends#which-host-the-backend-gets), [`Upstream::host`] |
//! | to set or remove header fields | [header fields](guide::not_included#header-fields-set-remove-rewrite) |
//! | an option and its default | the table of [all options](ReverseProxyLayer#all-options) |
//! | a timeout, the pool, retries | [timeouts](guide::timeouts), [pooling and retries](guide::pooling_and_retries) |
//! | your app's user to be the backend's | [identity](guide::identity): [`RemoteUserLayer`], [`AssertionLayer`] |
//! | to sign in to the backend | [identity](guide::identity): [`BasicAuthLayer`], [`BearerLayer`], [`NegotiateLayer`], [`AuthorizationLayer`] |
//! | to know which layer runs first | [layer order](guide::layer_order) |
//! | to know what a client can't do, and what you have to ensure | [security](guide::security), [limits](guide::limits) |
//! | an error page, or metrics of failures | [`Error`], [failures](guide::failures) |
//! | to know why a backend's responses become 502 | [what a backend may not send](guide::security#what-a-backend-may-not-send) |
//! | to see why a request failed: events, spans, request ids | [telemetry](guide::telemetry) |
//! | rate limits, layers of your own before the backend | [`upstream_layer`](ReverseProxyLayer::upstream_layer), [limits in production](guide::production#limits) |
//! | several backends: health, sticky sessions, retries, discovery, a deploy | [several backends](guide::several_backends), [`Backends`] |
//! | a target per request | [a target per request](guide::several_backends#a-target-per-request), [`Targets`] |
//! | several replicas of your app | [many replicas](guide::many_replicas) |
//! | WebSockets, event streams, gRPC, a graceful shutdown | [upgrades](guide::upgrades) |
//! | tests of your app, with a mock upstream | [testing](guide::testing) |
//! | nginx, Caddy or TLS in front of your app | [behind a proxy](guide::behind_a_proxy) |
//! | to go to production | the [checklist](guide::production) |
//! | to come from nginx or IIS | [from nginx](guide::from_nginx), [from IIS](guide::from_iis) |
//! | to come from axum-reverse-proxy | [item by item](guide::from_axum_reverse_proxy) |
//! | a cache, metrics | [not included](guide::not_included), and what to use instead |
//! | code to copy | the [examples](https://docs.rs/crate/tower-reverse-proxy/latest/source/examples/README.md) |
//!
//! # The parts
//!
//! - [`ReverseProxyLayer`] is the middleware: requests below its prefix go to the proxy, all others to your routes.
//! - [`ReverseProxy`] is the proxy as a service, for `nest_service`, `fallback_service`, `route_service` and handlers.
//! - [`Backends`] is a set of several backends; each request goes to one of them.
//! - [`Retry`] sends a failed request again: to another of several backends, or to the only one.
//! - [`Upstream`] addresses requests to a [`Backend`] and maps its references; [`Client`] is the connection pool
//!   behind it.
//! - [`Targets`] are the pools of a proxy whose requests have a [`Target`] each, which the application chooses.
//! - [`RemoteUserLayer`], [`BasicAuthLayer`] and [`TraceRedirectLayer`] are layers for the *upstream side*: between the
//!   proxy's own rules and the client, where no client of the app can undo what they add.
//! - [`Error`] describes a failure, such as the cause of a 502: in the response's extensions, and in
//!   [`on_error`](ReverseProxyLayer::on_error).
//!
//! # Tenets
//!
//! They are listed by their priority. *Safe*: a client can't impersonate a user, smuggle a request, escape the prefix,
//! or take down local routes. *Faithful*: messages are forwarded unchanged, except for the fields that an intermediary
//! has to change, and a truncated response never looks complete. *Fast*: a request costs as much as in a hand-tuned
//! proxy. *Composable*: choices of an operator are tower layers; duties of an intermediary aren't optional. *Plain*:
//! there is one way to do each thing.
//!
//! # The life of a request
//!
//! ```text
//! the application's router → ReverseProxyService
//!  0  below the prefix, on a segment boundary of the raw path?
//!     if not: the wrapped service gets the unchanged request
//! request half
//!  1  refuse what must not be forwarded: TRACE; CONNECT, unless it opens a WebSocket; a target that
//!     isn't a path, leaves the prefix by dot segments, or has a % without two hex digits; a Host that
//!     is missing, repeated or malformed; a Transfer-Encoding that isn't one `chunked`; a loop
//!     answer OPTIONS with Max-Forwards: 0
//!  2  take the upgrade offer; remove one that isn't allowed
//!  3  remove hop-by-hop fields, and all that any Connection line nominates; keep TE: trailers
//!     and Trailer
//!  4  remove fields that a client must not set: names with `_`, Remote-User and other identity claims,
//!     X-Forwarded-*, Forwarded, X-Real-IP, Proxy; trailers that have a meaning as fields
//!  5  target: the unchanged path and query, also under nest; or with the prefix stripped or replaced
//!  6  Host, forwarding fields, Via; join cookie crumbs, remove hidden cookies
//!  7  framing: the Content-Length of the body; chunked for a GET with a body of unknown length
//!  8  version: HTTP/1.1; the upgrade offer
//! upstream side
//!     with several backends: Retry, and Balance, which chooses the backend of each attempt
//!  9  Upstream: origin, Host policy
//! 10  upstream layers: Remote-User, assertions, credentials, redirect traces, yours
//! 11  Client: pool, connect, TLS → backend
//! response half
//!     upstream layers: challenges to the front's own credentials are removed, a 401 to them is a failure
//! 12  101: only to an offered protocol, then a tunnel
//! 13  one framing; remove hop-by-hop fields and Alt-Svc; Via; HTTP/1.1
//! 14  Location, Content-Location, Refresh, Set-Cookie: the origin in Upstream, the path here
//! 15  body: frame by frame; an error is passed to the server, so that the client sees an abort
//!
//! a failure anywhere: one response, the Error in its extensions, one tracing event
//! ```
//!
//! # Features
//!
//! | feature | default | what it adds |
//! |---|---|---|
//! | `axum` | yes | reads axum's `OriginalUri` and `ConnectInfo`; without it, the crate needs axum-core only |
//! | `http2` | yes | HTTP/2 to backends, and WebSockets of HTTP/2 clients; their other requests need no feature |
//! | `tls-ring`, `tls-aws-lc-rs` | no | `https` backends, on rustls with that provider of cryptography |
//! | `tls` | no | the same with a provider that the application installs; see [`Tls`] |
//! | `negotiate` | no | [Kerberos sign-in](authorize::negotiate) to backends, by the system's library; on Unix only |
//! | `assertion` | no | [signed assertions](assertion) of the user for the backend; needs a provider as `tls` does |
//! | `dns` | no | [backends by DNS records](balance::discover): their time to live, SRV, a name server of one's own |
//! | `simulation` | no | [simulated](simulation) members, clients and failures, for the tests of an application |
//!
//! Without a TLS feature, an `https` backend is an error when the client is built, never plaintext.
//!
//! # Runtime
//!
//! The crate runs on tokio, with its I/O and timers enabled. Without timers, a request panics at the first timeout
//! that is set.
//!
//! # Cancel safety
//!
//! Every future of this crate may be dropped at any point. Dropping the future of an exchange, or its response body
//! before the end, cancels the exchange at the backend: the HTTP/1.1 connection is closed, the HTTP/2 stream is
//! reset. A request that waits for a connection leaves the queue; a connection that is being opened for it goes to
//! another request or to the pool. Whether the backend has processed a cancelled request is unknown, as it is for a
//! request of any HTTP client. Tunnels outlive the exchange: [`Tunnels`] ends them.
//!
//! # Stability
//!
//! Versions follow [Semantic Versioning](https://semver.org); before 1.0, a breaking change raises the minor version.
//! Part of the contract are the public API, the defaults of options, the status that each [`ErrorKind`] becomes, and
//! the targets, levels and field names of tracing events. Not part of it are the texts of errors and events, the
//! types behind [`source()`](std::error::Error::source), except that of [`Error::rejected`], and the number and the
//! reuse of connections. New kinds, phases and options may be added at any time. The minimum supported Rust version,
//! 1.88 now, is raised in minor versions only.
//!
//! # Limits
//!
//! The [limits](guide::limits) are a page of the guide, and so is what is [not included](guide::not_included).
#![cfg_attr(docsrs, feature(doc_cfg))]

mod abandoned;
mod authority;
mod backend;
#[cfg(feature = "tls")]
mod crypto;
mod error;
mod expect;
mod identity;
mod method;
mod observe;
mod path;

#[cfg(feature = "axum")]
mod axum;
mod headers;

mod forwarded;
mod reject;
mod service;
mod switched;
mod timeout;
#[cfg_attr(not(test), allow(dead_code))] // the balancer's side
mod tried;
mod tunnel_guard;
mod upgrade;

#[cfg(feature = "assertion")]
#[cfg_attr(docsrs, doc(cfg(feature = "assertion")))]
pub mod assertion;
pub mod authorize;
pub mod client;
pub mod guide;
pub mod remote_user;
pub mod trace_redirect;
pub mod upstream;

pub mod balance;
pub mod retry;

mod forward;
pub mod proxy;
pub mod targets;

#[cfg(feature = "simulation")]
#[cfg_attr(docsrs, doc(cfg(feature = "simulation")))]
pub mod simulation;

#[cfg(any(fuzzing, test))]
pub mod fuzzing;

#[cfg(feature = "assertion")]
#[cfg_attr(docsrs, doc(cfg(feature = "assertion")))]
#[doc(inline)]
pub use self::assertion::{AssertionKeys, AssertionLayer, InvalidKey, Jwks};
#[cfg(all(unix, feature = "negotiate"))]
#[cfg_attr(docsrs, doc(cfg(feature = "negotiate")))]
#[doc(inline)]
pub use self::authorize::negotiate::{DelegatedCredential, InvalidNegotiate, Negotiate};
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
#[doc(inline)]
pub use self::client::{InvalidTls, Tls};
#[doc(inline)]
pub use self::{
    authorize::{AuthorizationLayer, BasicAuthLayer, BearerLayer},
    backend::{Backend, InvalidBackend},
    balance::Backends,
    client::{Client, ClientBuilder, InvalidClient},
    error::{Error, ErrorKind, Phase},
    forward::Failure,
    forwarded::{Forwarded, InvalidPeers, TrustedPeers},
    identity::{ClientAddr, Owner, RemoteUser},
    path::{InvalidPrefix, Prefix},
    proxy::{ReverseProxy, ReverseProxyLayer, ReverseProxyService},
    remote_user::RemoteUserLayer,
    retry::{Retry, RetryLayer, RetryPolicy},
    service::{FromRejection, HttpService},
    targets::{Target, Targets},
    trace_redirect::TraceRedirectLayer,
    upgrade::Tunnels,
    upstream::{BoxUpstream, HostPolicy, InvalidHost, Upstream},
};
/// The version of rustls that [`Tls::with_config`] takes a configuration of.
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
#[doc(no_inline)]
pub use tokio_rustls::rustls;

/// The layer that signs in to the backend by Kerberos: see [`authorize::negotiate`].
///
/// ```no_run
/// use tower_reverse_proxy::{Negotiate, NegotiateLayer};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidNegotiate> {
/// let layer: NegotiateLayer = NegotiateLayer::with_source(Negotiate::own("HTTP@backend.example")?);
/// # let _ = layer;
/// # Ok(())
/// # }
/// ```
#[cfg(all(unix, feature = "negotiate"))]
#[cfg_attr(docsrs, doc(cfg(feature = "negotiate")))]
pub type NegotiateLayer = AuthorizationLayer<Negotiate>;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

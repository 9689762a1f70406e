//! The HTTP client of one backend: a pool of connections behind a tower [`Service`].
//!
//! [`ReverseProxyLayer::new`](crate::ReverseProxyLayer::new) makes one with the default options; [`Client::builder`]
//! sets them.

// The response's future and body drive their HTTP/1.1 connection (`http1`). Requests share HTTP/2 connections, each of
// which has a task (`http2`). A dispatcher has both under one lock, with the one queue of requests that wait
// (`dispatch`).

mod body;
mod builder;
mod connect;
mod dispatch;
mod early;
mod future;
mod http1;
#[cfg(feature = "http2")]
mod http2;
#[cfg(not(feature = "http2"))]
#[path = "no_http2.rs"]
mod http2;
mod limit;
mod reuse;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::body::Body;
use http::{Request, Response};
use tower_service::Service;

pub(crate) use self::builder::PlatformRoots;
#[cfg(feature = "tls")]
#[cfg_attr(docsrs, doc(cfg(feature = "tls")))]
pub use self::connect::{InvalidTls, Tls};
#[cfg(any(test, fuzzing))]
pub(crate) use self::http1::codec::oracle;
pub(crate) use self::reuse::authenticates_connection;
pub use self::{
    body::ResponseBody,
    builder::{ClientBuilder, InvalidClient},
    connect::is_public,
    future::ResponseFuture,
};
use self::{connect::Connector, dispatch::Dispatcher, http1::codec::Limits, http2::ResponseHeadLimit};
use crate::{backend::Backend, error::Error};

/// The HTTP client of one backend.
///
/// It keeps connections open and reuses them. It follows no redirects, stores no cookies, decodes no bodies, reads no
/// proxy from the environment, and adds no header fields except those that HTTP requires. Clones share one pool.
///
/// [`Client::builder`] sets its options. With the defaults, an origin becomes a client by `TryFrom`, which is what
/// [`ReverseProxyLayer::new`](crate::ReverseProxyLayer::new) does.
///
/// It sends requests to its backend, whatever the authority in their URI is. An [`Upstream`](crate::Upstream) around it
/// sets `Host`, and maps references to the backend in the response.
///
/// # Retries
///
/// The client resends a request at most once, and only if
///
/// 1. nothing of it was written; or
/// 2. it's idempotent (RFC 9110, section 9.2.2) and has no body, and the backend closed a reused connection instead of
///    responding; or
/// 3. over HTTP/2, it has no body, and the backend refused its stream unprocessed, or it's idempotent, too, and the
///    backend ended the connection with a GOAWAY.
///
/// Other requests are never resent. Because they can't be, they avoid connections that the backend may be about to
/// close: those idle for more than a second, or for more than half the longest idle time observed with this backend.
/// Requests with NTLM or Negotiate credentials, and those with an [`Owner::Principal`](crate::Owner::Principal), are
/// resent in the first case only, because the second use of a token is a replay.
///
/// A request of which nothing was sent comes back in the error: see [`Error::take_request`].
///
/// ```
/// use axum::{body::Body, http::Request};
/// use tower::ServiceExt;
/// use tower_reverse_proxy::Client;
///
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// let client = Client::builder("http://127.0.0.1:8000").build()?;
/// let request = Request::get("/page").header("host", "backend.example").body(Body::empty())?;
/// let response = client.oneshot(request).await?;
/// # let _ = response;
/// # Ok(())
/// # }
/// ```
///
/// # Owners
///
/// A request with the extension [`Owner::Principal`](crate::Owner::Principal) goes over a connection of that principal
/// or over a new one, in HTTP/1.1. The connection is reused by requests of the same principal only:
///
/// - Up to four connections of a principal stay idle, for ten seconds, or as many and as long as `pool_max_idle` and
///   `pool_idle_timeout` allow, if that is less. Further ones are closed after one second.
/// - Up to 256 principals have idle connections. Those of the principal whose last exchange is the longest ago give
///   way.
/// - All of them count towards `max_connections`. At that limit, an idle connection is closed for a request that can't
///   use it.
/// - An upgrade keeps its connection.
///
/// Without the extension, a connection that `Authorization: Negotiate` or `NTLM` went over is closed after its
/// response.
///
/// ```
/// use axum::{body::Body, http::Request};
/// use tower::ServiceExt;
/// use tower_reverse_proxy::{Client, Owner};
///
/// # async fn run(client: Client, token: String) -> Result<(), Box<dyn std::error::Error>> {
/// let mut request = Request::get("/page").header("host", "backend.example").body(Body::empty())?;
/// request.headers_mut().insert("authorization", format!("Negotiate {token}").parse()?);
/// request.extensions_mut().insert(Owner::Principal("alice@REALM.EXAMPLE".into()));
/// let response = client.oneshot(request).await?;
/// # let _ = response;
/// # Ok(())
/// # }
/// ```
///
/// # Security
///
/// A client belongs behind a [`ReverseProxy`](crate::ReverseProxy) or a
/// [`ReverseProxyLayer`](crate::ReverseProxyLayer). It applies none of their rules: called directly with a request of
/// the front's client, as in a handler, it removes none of the header fields that a client must not set, such as
/// `Remote-User` and `X-Forwarded-For`, and none of those that are hop-by-hop, and adds no forwarding fields. A handler
/// calls a [`ReverseProxy`](crate::ReverseProxy).
///
/// # Cancel safety
///
/// Dropping the future, or the response's body before its end, closes its HTTP/1.1 connection, or resets its HTTP/2
/// stream.
#[doc(alias = "proxy_http_version")]
#[doc(alias = "connection pool")]
#[derive(Clone)]
pub struct Client {
    dispatcher: Arc<Dispatcher>,
}

/// The options of a [`Client`].
#[derive(Clone, Debug, Default)]
struct ClientOptions {
    connect: connect::Options,
    http1: http1::Options,
    http2: http2::Options,
    dispatch: dispatch::Options,
}

impl Client {
    fn new(backend: Backend, options: &ClientOptions) -> Result<Self, InvalidClient> {
        let ClientOptions { connect, http1, http2, dispatch } = options;
        let Limits { bytes, fields } = http1.limits;
        let http2 = http2.with_limits(dispatch.pool.idle_timeout, ResponseHeadLimit { bytes, fields });
        let connector = Connector::new(&backend, connect)?;
        Ok(Self { dispatcher: Dispatcher::new(backend, connector, *http1, http2::Pool::new(http2), *dispatch) })
    }

    /// Returns the backend.
    ///
    /// ```
    /// use tower_reverse_proxy::Client;
    ///
    /// let client = Client::try_from("http://127.0.0.1:8000").unwrap();
    /// assert_eq!(client.backend().to_string(), "http://127.0.0.1:8000");
    /// ```
    #[must_use]
    pub fn backend(&self) -> &Backend {
        &self.dispatcher.backend
    }

    /// Opens a connection, which goes to a request that waits for one, or to the pool.
    ///
    /// # Errors
    ///
    /// The backend can't be reached, or no connection was free within the queue timeout.
    ///
    /// # Cancel safety
    ///
    /// A connection that is being opened goes to another request or to the pool.
    pub(crate) async fn probe(&self) -> Result<(), Error> {
        dispatch::probe(&self.dispatcher).await
    }

    /// Closes the connections without an exchange. Those in exchanges return to the pool as before.
    pub(crate) fn close_idle(&self) {
        self.dispatcher.close_idle();
    }
}

impl Service<Request<Body>> for Client {
    type Response = Response<ResponseBody>;
    type Error = Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ResponseFuture::new(self.dispatcher.clone(), request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").field("backend", self.backend()).finish_non_exhaustive()
    }
}

//! The HTTP client of one backend: a pool of connections behind a tower [`Service`].
//!
//! HTTP/1.1 connections are driven by the very future and body that use them ([`http1`], through a [`gate`]) and rest in a
//! [`pool`]; HTTP/2 connections are shared ([`http2`]).

mod body;
mod connect;
mod future;
mod gate;
mod http1;
#[cfg(feature = "http2")]
mod http2;
mod pool;
#[cfg(feature = "tls")]
mod tls;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::body::Body;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION, uri::Scheme};
use http_body::Body as _;
use tower_service::Service;

#[cfg(feature = "tls")]
pub use self::tls::{InvalidTls, Tls};
pub use self::{body::ClientBody, future::ClientFuture};
use self::{
    connect::{Connector, Offer},
    http1::Connection,
    pool::Pool,
};
use crate::{
    backend::{Backend, InvalidBackend},
    error::Error,
};

/// The HTTP client of one backend.
///
/// It keeps connections open and reuses them. It follows no redirects, keeps no cookies, decodes no bodies, reads no proxy
/// from the environment and adds no field but those that HTTP obliges to. Clones share one pool.
///
/// A request is sent a second time only if nothing of the first was written, or if it is idempotent, has no body, and went
/// over a reused connection that the backend closed instead of an answer. Over HTTP/2, also if it has no body and the backend
/// refused its stream unprocessed. Never else.
///
/// # Cancel safety
///
/// Dropping the future, or the response's body, before its end closes the connection that it was on, or resets the stream.
#[derive(Clone)]
pub struct Client {
    shared: Arc<Shared>,
}

/// What can be chosen of a [`Client`].
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) pool_idle_timeout: Option<Duration>,
    pub(crate) pool_max_idle: usize,
    pub(crate) preserve_header_case: bool,
    #[cfg(feature = "http2")]
    pub(crate) http2: bool,
    #[cfg(feature = "http2")]
    pub(crate) http2_keep_alive: Option<Duration>,
    /// Made once, not with every option that is set: it reads the platform's roots. An error shows when it connects: by then
    /// it may have been replaced.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Result<Tls, InvalidTls>>,
}

impl ClientOptions {
    /// The defaults for a backend.
    pub(crate) fn new(backend: &Backend) -> Self {
        #[cfg(not(feature = "tls"))]
        let _ = backend;
        Self {
            connect_timeout: Some(Duration::from_secs(5)),
            // Below the keep-alive times that most servers have.
            pool_idle_timeout: Some(Duration::from_secs(30)),
            pool_max_idle: 64,
            preserve_header_case: false,
            #[cfg(feature = "http2")]
            http2: false,
            #[cfg(feature = "http2")]
            http2_keep_alive: None,
            #[cfg(feature = "tls")]
            tls: (*backend.scheme() == Scheme::HTTPS).then(Tls::new),
        }
    }
}

/// What the clones of a client share.
struct Shared {
    connector: Connector,
    pool: Arc<Pool>,
    preserve_header_case: bool,
    #[cfg(feature = "http2")]
    http2: bool,
    #[cfg(feature = "http2")]
    connections: http2::Connections,
}

/// Whether the client can speak to a backend.
///
/// # Errors
///
/// `https` without TLS: it's never answered with plaintext.
pub(crate) fn check(backend: &Backend) -> Result<(), InvalidBackend> {
    check_with(backend, cfg!(feature = "tls"))
}

fn check_with(backend: &Backend, has_tls: bool) -> Result<(), InvalidBackend> {
    if has_tls || *backend.scheme() == Scheme::HTTP { Ok(()) } else { Err(InvalidBackend::no_tls(backend)) }
}

impl Client {
    /// Makes a client of a backend that passed the [`check`].
    pub(crate) fn new(backend: &Backend, options: &ClientOptions) -> Self {
        Self {
            shared: Arc::new(Shared {
                connector: Connector::new(backend, options),
                pool: Pool::new(options.pool_idle_timeout, options.pool_max_idle),
                preserve_header_case: options.preserve_header_case,
                #[cfg(feature = "http2")]
                http2: options.http2,
                #[cfg(feature = "http2")]
                connections: http2::Connections::new(options.http2_keep_alive, options.pool_idle_timeout),
            }),
        }
    }
}

impl Shared {
    async fn connect_http1(&self) -> Result<Connection, Error> {
        self.connector.connect(Offer::Http1, |stream| Connection::handshake(stream, self.preserve_header_case)).await
    }

    /// Takes a place on an HTTP/2 connection, on a new one if the streams of those that are open have run out.
    #[cfg(feature = "http2")]
    async fn take_http2(&self) -> Result<http2::Taken, Error> {
        if let Some(stream) = self.connections.take() {
            return Ok(http2::Taken::Http2(stream));
        }
        let connecting = self.connector.in_time(self.connections.connecting.lock()).await?;
        loop {
            if let Some(stream) = self.connections.take() {
                return Ok(http2::Taken::Http2(stream));
            }
            // A connection that was just made may have room for more.
            if !self.connector.in_time(self.connections.settled()).await? {
                break;
            }
        }
        // Nobody waits for a connection that it can't share.
        let _connecting = (!self.connections.are_http1()).then_some(connecting);
        self.connector
            .connect(Offer::Http2, async |stream| {
                let chose_http1 = stream.has_chosen_http1();
                self.connections.set_http1(chose_http1);
                if chose_http1 {
                    let connection = Connection::handshake(stream, self.preserve_header_case).await?;
                    return Ok(http2::Taken::Http1(Box::new(connection)));
                }
                Ok(http2::Taken::Http2(self.connections.open(stream).await?))
            })
            .await
    }
}

impl Service<Request<Body>> for Client {
    type Response = Response<ClientBody>;
    type Error = Error;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        ClientFuture::new(self.shared.clone(), request)
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

/// The request once more, to be sent a second time. `None`: it has a body, and nothing of that would be left.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    if !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    Some(copy)
}

/// Whether the credentials sign in the connection, not the request (NTLM; Negotiate, RFC 4559, section 6).
///
/// What comes after them on the same connection would be answered as that user.
fn authenticates_connection(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let scheme = value.as_bytes().split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"NTLM") || scheme.eq_ignore_ascii_case(b"Negotiate")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn credentials_of_a_connection() {
        for (value, theirs) in [
            ("NTLM TlRM", true),
            ("ntlm", true),
            ("Negotiate YII=", true),
            ("Basic YTpi", false),
            ("Bearer ntlm", false),
            ("", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(authenticates_connection(&headers), theirs, "{value}");
        }
    }

    #[test]
    fn https_is_an_error_before_anything_is_sent() {
        let backend = "https://backend.example".parse().unwrap();
        let error = check_with(&backend, false).unwrap_err();
        assert!(error.to_string().contains("feature `tls-ring`"), "{error}");
        assert_eq!(check(&backend).is_ok(), cfg!(feature = "tls"));
    }
}

//! The HTTP client of one backend: a pool of connections behind a tower [`Service`].
//!
//! Nothing of the library underneath shows: it's a [`Service`] from a request to a response, and can be replaced.

mod connect;

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::body::Body;
use bytes::Bytes;
use http::{
    HeaderMap, Request, Response, Version,
    header::{AUTHORIZATION, TRANSFER_ENCODING},
    uri::Scheme,
};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper_util::{
    client::legacy,
    rt::{TokioExecutor, TokioTimer},
};
use pin_project_lite::pin_project;
use tower_service::Service;

use self::connect::Connector;
use crate::{
    backend::{Backend, InvalidBackend},
    error::{Error, ErrorKind, classify},
};

/// The HTTP client of one backend.
///
/// It keeps connections open and reuses them. It follows no redirects, keeps no cookies, decodes no bodies, reads no proxy
/// from the environment and adds no field but those that HTTP obliges to. Its requests need an absolute URI, whose origin is
/// the backend's. Clones share one pool.
///
/// A request is sent twice only if nothing of it was written the first time.
///
/// # Cancel safety
///
/// Dropping the future, or the response's body, before its end closes the connection that it was on.
#[derive(Clone)]
pub struct Client {
    pooled: legacy::Client<Connector, Body>,
    /// Every connection is closed after its one exchange.
    unpooled: legacy::Client<Connector, Body>,
    version: Version,
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
}

impl Default for ClientOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Some(Duration::from_secs(5)),
            // Below the keep-alive times that most servers have.
            pool_idle_timeout: Some(Duration::from_secs(30)),
            pool_max_idle: 64,
            preserve_header_case: false,
            #[cfg(feature = "http2")]
            http2: false,
        }
    }
}

/// Whether the client can speak to a backend.
///
/// # Errors
///
/// `https` without TLS: it's never answered with plaintext.
pub(crate) fn check(backend: &Backend) -> Result<(), InvalidBackend> {
    if *backend.scheme() == Scheme::HTTP { Ok(()) } else { Err(InvalidBackend::no_tls(backend)) }
}

impl Client {
    /// Makes a client of a backend that passed the [`check`].
    pub(crate) fn new(backend: &Backend, options: &ClientOptions) -> Self {
        let connector = Connector::new(backend, options.connect_timeout);
        let mut builder = legacy::Client::builder(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(options.pool_idle_timeout)
            .http1_preserve_header_case(options.preserve_header_case)
            .set_host(false);
        #[cfg(feature = "http2")]
        builder.http2_only(options.http2);
        let pooled = builder.pool_max_idle_per_host(options.pool_max_idle).build(connector.clone());
        let unpooled = builder.pool_max_idle_per_host(0).build(connector);
        #[cfg(feature = "http2")]
        let version = if options.http2 { Version::HTTP_2 } else { Version::HTTP_11 };
        #[cfg(not(feature = "http2"))]
        let version = Version::HTTP_11;
        Self { pooled, unpooled, version }
    }
}

impl Service<Request<Body>> for Client {
    type Response = Response<ClientBody>;
    type Error = Error;
    type Future = ClientFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        *request.version_mut() = self.version;
        if self.version == Version::HTTP_2 {
            request.headers_mut().remove(TRANSFER_ENCODING);
        }
        let client = if authenticates_connection(request.headers()) { &self.unpooled } else { &self.pooled };
        ClientFuture { inner: client.request(request) }
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
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

/// The future of a [`Client`]'s response.
#[derive(Debug)]
#[must_use = "futures do nothing unless polled"]
pub struct ClientFuture {
    inner: legacy::ResponseFuture,
}

impl Future for ClientFuture {
    type Output = Result<Response<ClientBody>, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match ready!(Pin::new(&mut self.inner).poll(cx)) {
            Ok(response) => Poll::Ready(Ok(response.map(|inner| ClientBody { inner }))),
            Err(error) => {
                let otherwise = if error.is_connect() { ErrorKind::Connect } else { ErrorKind::Closed };
                Poll::Ready(Err(classify(error.into(), otherwise)))
            }
        }
    }
}

pin_project! {
    /// The body of a [`Client`]'s response. Dropped before its end, it closes its connection.
    #[derive(Debug)]
    pub struct ClientBody {
        #[pin]
        inner: Incoming,
    }
}

impl http_body::Body for ClientBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        self.project().inner.poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
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
        let error = check(&backend).unwrap_err();
        assert!(error.to_string().contains("no TLS"), "{error}");
    }
}

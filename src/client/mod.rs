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
mod repeat;
mod resolve;
mod stream;
#[cfg(feature = "tls")]
mod tls;
mod upload;

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::body::Body;
use http::{HeaderMap, Request, Response, header::AUTHORIZATION, uri::Scheme};
use tower_service::Service;

pub(crate) use self::connect::boxed;
#[cfg(feature = "http2")]
use self::http2::{KeepAlive, Windows};
#[cfg(feature = "tls")]
use self::tls::PlatformTls;
#[cfg(feature = "tls")]
pub use self::tls::{InvalidTls, Tls};
pub use self::{body::ClientBody, future::ClientFuture};
use self::{connect::Dial, pool::Pool};
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
/// refused its stream unprocessed, or is idempotent besides and the backend ended the connection with a GOAWAY. Never else. What may not be sent twice goes over no connection that has been idle for a
/// second, or for half as long as the backend was seen to keep one: it may just be closing that.
///
/// # Cancel safety
///
/// Dropping the future, or the response's body, before its end closes the connection that it was on, or resets the stream.
#[derive(Clone)]
pub struct Client {
    pool: Arc<Pool>,
}

/// What can be chosen of a [`Client`].
#[derive(Clone, Debug)]
pub(crate) struct ClientOptions {
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) pool_idle_timeout: Option<Duration>,
    pub(crate) pool_max_idle: usize,
    pub(crate) max_connections: Option<usize>,
    pub(crate) queue_timeout: Option<Duration>,
    /// In place of TCP, Unix sockets and TLS.
    pub(crate) connector: Option<Dial>,
    pub(crate) preserve_header_case: bool,
    /// How many field lines a response head may have.
    pub(crate) max_response_fields: usize,
    /// How large a response head may be, in bytes.
    pub(crate) max_response_head: usize,
    #[cfg(feature = "http2")]
    pub(crate) http2: bool,
    #[cfg(feature = "http2")]
    pub(crate) http2_keep_alive: KeepAlive,
    #[cfg(feature = "http2")]
    pub(crate) http2_windows: Windows,
    #[cfg(feature = "http2")]
    pub(crate) http2_max_request_head: Option<usize>,
    /// Made once, not with every option that is set: it reads the platform's roots. An error shows when it connects: by then
    /// it may have been replaced.
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
    #[cfg(feature = "tls")]
    platform_tls: PlatformTls,
}

impl ClientOptions {
    pub(crate) fn new() -> Self {
        Self {
            connect_timeout: Some(Duration::from_secs(5)),
            // Below the keep-alive times that most servers have.
            pool_idle_timeout: Some(Duration::from_secs(30)),
            pool_max_idle: 64,
            max_connections: None,
            queue_timeout: Some(Duration::from_secs(5)),
            connector: None,
            preserve_header_case: false,
            max_response_fields: 256,
            max_response_head: 256 * 1024,
            #[cfg(feature = "http2")]
            http2: false,
            #[cfg(feature = "http2")]
            http2_keep_alive: KeepAlive::default(),
            #[cfg(feature = "http2")]
            http2_windows: Windows::default(),
            #[cfg(feature = "http2")]
            http2_max_request_head: None,
            #[cfg(feature = "tls")]
            tls: None,
            #[cfg(feature = "tls")]
            platform_tls: PlatformTls::default(),
        }
    }
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
        Self { pool: Pool::new(backend, options) }
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
        ClientFuture::new(self.pool.clone(), request)
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
///
/// Outer whitespace isn't part of a field value (RFC 9110, section 5.5), and not every HTTP stack removes it: h2 passes
/// `" Negotiate …"` on as it is.
fn authenticates_connection(headers: &HeaderMap) -> bool {
    headers.get_all(AUTHORIZATION).iter().any(|value| {
        let value = value.as_bytes().trim_ascii();
        let scheme = value.split(|b| b.is_ascii_whitespace()).next().unwrap_or_default();
        scheme.eq_ignore_ascii_case(b"NTLM") || scheme.eq_ignore_ascii_case(b"Negotiate")
    })
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn connection_based_credentials_are_recognised() {
        for (value, theirs) in [
            ("NTLM TlRM", true),
            ("ntlm", true),
            ("Negotiate YII=", true),
            (" Negotiate YII=", true),
            ("\tNTLM TlRM", true),
            (" \t negotiate\tYII=", true),
            ("\tNTLM ", true),
            ("Basic YTpi", false),
            ("Bearer ntlm", false),
            ("", false),
            (" ", false),
            (" Basic NTLM", false),
        ] {
            let headers = HeaderMap::from_iter([(AUTHORIZATION, HeaderValue::from_static(value))]);
            assert_eq!(authenticates_connection(&headers), theirs, "{value}");
        }
    }

    #[test]
    fn https_without_tls_is_an_error_before_connecting() {
        let backend = "https://backend.example".parse().unwrap();
        let error = check_with(&backend, false).unwrap_err();
        assert!(error.to_string().contains("feature `tls-ring`"), "{error}");
        assert_eq!(check(&backend).is_ok(), cfg!(feature = "tls"));
    }
}

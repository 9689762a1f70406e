//! Connecting to one backend, over TCP, with or without TLS, or a Unix socket, within one timeout over name, address and
//! handshakes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
#[cfg(any(feature = "http2", feature = "tls"))]
use http::uri::Scheme;
use http::{Uri, uri::PathAndQuery};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

use super::ClientOptions;
#[cfg(feature = "tls")]
use super::tls::{Handshaker, InvalidTls, Tls};
use crate::{
    backend::Backend,
    error::{Error, ErrorKind},
};

/// Connects to the backend that it was made for.
#[derive(Debug)]
pub(super) struct Connector {
    backend: Backend,
    /// Names, and every address that a name has (RFC 8305).
    tcp: HttpConnector,
    timeout: Option<Duration>,
    /// `None`: the backend is spoken to without TLS. An error is what every connection fails with.
    #[cfg(feature = "tls")]
    tls: Option<Result<Handshaker, InvalidTls>>,
}

/// What the backend may choose from, where there's a TLS handshake to choose in.
#[derive(Clone, Copy, Debug)]
pub(super) enum Offer {
    Http1,
    /// HTTP/2, and HTTP/1.1 for a backend that hasn't got it.
    #[cfg(feature = "http2")]
    Http2,
}

impl Connector {
    pub(super) fn new(backend: &Backend, options: &ClientOptions) -> Self {
        let mut tcp = HttpConnector::new();
        // `https` is also TCP; what makes it TLS comes on top.
        tcp.enforce_http(false);
        // Small requests and answers wait for nobody's acknowledgement.
        tcp.set_nodelay(true);
        // A tunnel may be silent for long, and its peer gone.
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        Self {
            backend: backend.clone(),
            tcp,
            timeout: options.connect_timeout,
            #[cfg(feature = "tls")]
            tls: (*backend.scheme() == Scheme::HTTPS).then(|| {
                let tls = options.tls.clone().unwrap_or_else(Tls::new)?;
                Handshaker::new(&tls, backend)
            }),
        }
    }

    /// Whether the backend chooses between HTTP/1.1 and HTTP/2 in a handshake.
    #[cfg(feature = "http2")]
    pub(super) fn negotiates(&self) -> bool {
        *self.backend.scheme() == Scheme::HTTPS
    }

    /// Connects, and makes of it what `handshake` does, all within the one timeout: a stuck handshake is a stuck connect.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the connection.
    pub(super) async fn connect<T>(
        &self,
        offer: Offer,
        handshake: impl AsyncFnOnce(Stream) -> hyper::Result<T>,
    ) -> Result<T, Error> {
        let connecting = async { Ok(handshake(self.dial(offer).await?).await?) };
        let connected: Result<T, BoxError> = self.in_time(connecting).await?;
        connected.map_err(|error| Error::with_source(ErrorKind::Connect, error))
    }

    /// Waits for what belongs to connecting, no longer than that may take.
    pub(super) async fn in_time<T>(&self, waiting: impl Future<Output = T>) -> Result<T, Error> {
        match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, waiting).await.map_err(|_| ErrorKind::ConnectTimeout.into()),
            None => Ok(waiting.await),
        }
    }

    async fn dial(&self, offer: Offer) -> Result<Stream, BoxError> {
        #[cfg(unix)]
        if let Some(path) = self.backend.socket() {
            return Ok(Stream::Unix(tokio::net::UnixStream::connect(path).await?));
        }
        let uri = Uri::builder()
            .scheme(self.backend.scheme().clone())
            .authority(self.backend.authority().clone())
            .path_and_query(PathAndQuery::from_static("/"))
            .build()?;
        let tcp = self.tcp.clone().call(uri).await?.into_inner();
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            let tls = tls.as_ref().map_err(Clone::clone)?;
            return Ok(Stream::Tls(tls.handshake(tcp, offer).await?));
        }
        #[cfg(not(feature = "tls"))]
        let _ = offer;
        Ok(Stream::Tcp(tcp))
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
    #[cfg(feature = "tls")]
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Stream {
    /// Whether the backend could have chosen HTTP/2, and hasn't. Without TLS it isn't asked.
    #[cfg(feature = "http2")]
    pub(super) fn has_chosen_http1(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.get_ref().1.alpn_protocol() != Some(b"h2"),
            _ => false,
        }
    }
}

/// Calls the same method of whichever stream it is.
macro_rules! on_stream {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($io) => $call,
            #[cfg(unix)]
            Stream::Unix($io) => $call,
            #[cfg(feature = "tls")]
            Stream::Tls($io) => $call,
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), io => Pin::new(io).poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self.get_mut(), io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self.get_mut(), io => Pin::new(io).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        on_stream!(self, io => io.is_write_vectored())
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self.get_mut(), io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
}

//! Connecting to one backend, over TCP or a Unix socket, within one timeout over name, address and handshake.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
use http::{Uri, uri::PathAndQuery};
use hyper_util::client::legacy::connect::HttpConnector;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tower_service::Service;

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
}

impl Connector {
    pub(super) fn new(backend: &Backend, timeout: Option<Duration>) -> Self {
        let mut tcp = HttpConnector::new();
        // Small requests and answers wait for nobody's acknowledgement.
        tcp.set_nodelay(true);
        // A tunnel may be silent for long, and its peer gone.
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        Self { backend: backend.clone(), tcp, timeout }
    }

    /// Connects, and makes of it what `handshake` does, all within the one timeout: a stuck handshake is a stuck connect.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the connection.
    pub(super) async fn connect<T>(&self, handshake: impl AsyncFnOnce(Stream) -> hyper::Result<T>) -> Result<T, Error> {
        let connecting = async { Ok(handshake(self.dial().await?).await?) };
        let connected: Result<Result<T, BoxError>, _> = match self.timeout {
            Some(timeout) => tokio::time::timeout(timeout, connecting).await,
            None => Ok(connecting.await),
        };
        match connected {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) => Err(Error::with_source(ErrorKind::Connect, error)),
            Err(_) => Err(ErrorKind::ConnectTimeout.into()),
        }
    }

    async fn dial(&self) -> Result<Stream, BoxError> {
        #[cfg(unix)]
        if let Some(path) = self.backend.socket() {
            return Ok(Stream::Unix(tokio::net::UnixStream::connect(path).await?));
        }
        let uri = Uri::builder()
            .scheme(self.backend.scheme().clone())
            .authority(self.backend.authority().clone())
            .path_and_query(PathAndQuery::from_static("/"))
            .build()?;
        Ok(Stream::Tcp(self.tcp.clone().call(uri).await?.into_inner()))
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    #[cfg(unix)]
    Unix(tokio::net::UnixStream),
}

/// Calls the same method of whichever stream it is.
macro_rules! on_stream {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream {
            Stream::Tcp($io) => $call,
            #[cfg(unix)]
            Stream::Unix($io) => $call,
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

//! Connecting to one backend, over TCP or a Unix socket, within one timeout over name, address and handshake.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::BoxError;
use http::Uri;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use tokio::net::TcpStream;
#[cfg(unix)]
use tokio::net::UnixStream;
use tower_service::Service;

use crate::{
    backend::Backend,
    error::{Error, ErrorKind},
};

/// Connects to the backend that it was made for, whatever URI it's called with.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    tcp: HttpConnector,
    #[cfg(unix)]
    socket: Option<std::sync::Arc<std::path::Path>>,
    timeout: Option<Duration>,
}

impl Connector {
    pub(super) fn new(backend: &Backend, timeout: Option<Duration>) -> Self {
        let mut tcp = HttpConnector::new();
        // Small requests and answers wait for nobody's acknowledgement.
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(Duration::from_secs(60)));
        Self {
            tcp,
            #[cfg(unix)]
            socket: backend.socket().map(std::sync::Arc::from),
            timeout,
        }
    }
}

impl Service<Uri> for Connector {
    type Response = Stream;
    type Error = BoxError;
    // Once per connection, not per request.
    type Future = Pin<Box<dyn Future<Output = Result<Stream, BoxError>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.tcp.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        #[cfg(unix)]
        if let Some(path) = self.socket.clone() {
            return Box::pin(within(self.timeout, async move {
                let stream = UnixStream::connect(path).await?;
                Ok(Stream::Unix { io: TokioIo::new(stream) })
            }));
        }
        let connecting = self.tcp.call(uri);
        Box::pin(within(self.timeout, async move { Ok(Stream::Tcp { io: connecting.await? }) }))
    }
}

async fn within<T>(
    timeout: Option<Duration>,
    connecting: impl Future<Output = Result<T, BoxError>>,
) -> Result<T, BoxError> {
    match timeout {
        Some(timeout) => match tokio::time::timeout(timeout, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Error::new(ErrorKind::ConnectTimeout).into()),
        },
        None => connecting.await,
    }
}

/// A connection to a backend.
#[derive(Debug)]
pub(super) enum Stream {
    Tcp {
        io: TokioIo<TcpStream>,
    },
    #[cfg(unix)]
    Unix {
        io: TokioIo<UnixStream>,
    },
}

/// Calls the same method of whichever stream it is.
macro_rules! on_stream {
    ($stream:expr, $io:ident => $call:expr) => {
        match $stream.get_mut() {
            Stream::Tcp { io: $io } => $call,
            #[cfg(unix)]
            Stream::Unix { io: $io } => $call,
        }
    };
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl Read for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_read(cx, buf))
    }
}

impl Write for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, io => Pin::new(io).poll_shutdown(cx))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }
}

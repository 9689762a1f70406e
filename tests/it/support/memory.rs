//! Connections in memory, for tests with paused time.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use axum::Router;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::{
    client::legacy::connect::{Connected, Connection},
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, duplex};

use super::Wire;

/// A connection of a custom connector.
pub(crate) struct Pipe {
    io: TokioIo<DuplexStream>,
    is_http2: bool,
}

impl Pipe {
    /// A connection, and its other end. With `is_http2`, the connector reports that HTTP/2 was negotiated.
    pub(crate) fn pair(is_http2: bool) -> (Self, DuplexStream) {
        let (ours, theirs) = duplex(64 * 1024);
        (Self { io: TokioIo::new(ours), is_http2 }, theirs)
    }
}

impl Connection for Pipe {
    fn connected(&self) -> Connected {
        if self.is_http2 { Connected::new().negotiated_h2() } else { Connected::new() }
    }
}

impl Read for Pipe {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl Write for Pipe {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// Serves an app on one connection, in the protocol of its client, without extended CONNECT.
pub(crate) async fn serve(stream: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, app: Router) {
    let server = auto::Builder::new(TokioExecutor::new());
    let _ = server.serve_connection_with_upgrades(TokioIo::new(stream), TowerToHyperService::new(app)).await;
}

/// Connects to a front in memory, as a client that writes raw bytes.
pub(crate) fn client_of(app: Router) -> Wire<DuplexStream> {
    let (ours, theirs) = duplex(64 * 1024);
    tokio::spawn(serve(theirs, app));
    Wire::new(ours)
}

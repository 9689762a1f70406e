//! A connection to a backend, below HTTP.

use std::{
    fmt, io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{
    client::limit::{Permit, PermitWatch},
    switched::Transport,
};

/// A connection to a backend, and the right to have it.
pub(in crate::client) struct Stream {
    io: Box<dyn Transport>,
    properties: Properties,
    permit: Permit,
}

/// The properties of a connection.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::client) struct Properties {
    /// Whether HTTP/2 was negotiated.
    pub(in crate::client) is_http2: bool,
    /// Whether an end is certain to be the backend's, because TLS has a message for it.
    pub(in crate::client) has_own_end: bool,
    /// Whether what is written is sent without a flush.
    pub(in crate::client) sends_at_once: bool,
}

impl Stream {
    pub(in crate::client) fn new(io: Box<dyn Transport>, properties: Properties, permit: Permit) -> Self {
        Self { io, properties, permit }
    }

    /// Shows whether the connection still counts towards `max_connections`.
    #[cfg_attr(not(feature = "http2"), expect(dead_code, reason = "HTTP/2 isn't offered"))]
    pub(in crate::client) fn permit(&self) -> PermitWatch {
        self.permit.watch()
    }

    pub(in crate::client) fn properties(&self) -> Properties {
        self.properties
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.io).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match bufs {
            // A plain write costs the kernel less than a vector of one piece.
            [buf] => self.poll_write(cx, buf),
            _ => Pin::new(&mut *self.io).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("properties", &self.properties).finish_non_exhaustive()
    }
}

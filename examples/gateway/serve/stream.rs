//! A client's TCP stream, watched from its first octet.

use std::{
    io::{self, IoSlice},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
};

use super::Life;

/// What an HTTP/2 client with prior knowledge sends first (RFC 9113, section 3.4). No request of HTTP/1.1 begins so.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) struct ClientStream {
    stream: TcpStream,
    /// What was read to tell the version, and hasn't been handed on yet.
    begun: Vec<u8>,
    life: Arc<Life>,
}

impl ClientStream {
    pub(crate) fn new(stream: TcpStream, life: Arc<Life>) -> Self {
        Self { stream, begun: Vec::new(), life }
    }

    /// Reads the first octets, until they tell the version.
    pub(crate) async fn is_http2(&mut self) -> io::Result<bool> {
        let mut octets = [0; PREFACE.len()];
        while self.begun.len() < PREFACE.len() && PREFACE.starts_with(&self.begun) {
            let read = self.stream.read(&mut octets[self.begun.len()..]).await?;
            if read == 0 {
                break;
            }
            let end = self.begun.len() + read;
            self.begun.extend_from_slice(&octets[end - read..end]);
        }
        Ok(self.begun == PREFACE)
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.begun.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let count = self.begun.len().min(buf.remaining());
        buf.put_slice(&self.begun[..count]);
        self.begun.drain(..count);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, octets: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(cx, octets);
        self.life.written(polled.is_pending());
        polled
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write_vectored(cx, slices);
        self.life.written(polled.is_pending());
        polled
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

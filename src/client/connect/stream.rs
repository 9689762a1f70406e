//! A connection to a backend, below HTTP.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::rt::{Read, ReadBuf, ReadBufCursor, Write};

use crate::client::{http1::Progress, limit::Permit};

pub(in crate::client) trait Io: Read + Write + Send + Unpin {}

impl<T: Read + Write + Send + Unpin> Io for T {}

/// A connection to a backend.
///
/// A backend that refuses an upload may answer, close and reset the connection. The answer is there to be read then, and the
/// failed write doesn't matter. What is left of the upload is thrown away, so that a client that sends all of it before it
/// reads comes to its answer.
pub(in crate::client) struct Stream {
    io: Box<dyn Io>,
    pub(in crate::client) is_http2: bool,
    /// Whether an end is certain to be the backend's: TLS says so itself.
    has_own_end: bool,
    /// How far the request has come, in HTTP/1.1. `None`: each failed write counts.
    pub(in crate::client) progress: Option<Arc<Progress>>,
    /// A write has failed so, and it was passed over. The operating system tells it once.
    reset: Option<io::ErrorKind>,
    /// Whether the last write after that has waited for a turn of reading.
    has_waited: bool,
    _permit: Permit,
}

impl Stream {
    pub(in crate::client) fn new(io: Box<dyn Io>, is_http2: bool, has_own_end: bool, permit: Permit) -> Self {
        Self { io, is_http2, has_own_end, progress: None, reset: None, has_waited: false, _permit: permit }
    }

    /// Passes over a failed write if an answer may be there: reading then shows it, or fails.
    #[cold]
    fn passed_over<T>(&mut self, error: io::Error, done: T) -> Poll<io::Result<T>> {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset};
        let kind = error.kind();
        if !matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset)
            || !self.progress.as_ref().is_some_and(|progress| progress.is_written())
        {
            return Poll::Ready(Err(error));
        }
        if let Some(progress) = &self.progress {
            progress.fail();
        }
        // A broken pipe comes without a reset after an end that the backend has sent itself.
        if kind != BrokenPipe {
            self.reset = Some(kind);
        }
        Poll::Ready(Ok(done))
    }

    /// Whether a write was passed over: what comes behind it is thrown away.
    fn is_broken(&self) -> bool {
        self.progress.as_ref().is_some_and(|progress| progress.is_broken())
    }

    /// Throws a write away. Every other one waits first, because hyper reads only when it can't write: a body that is always
    /// there would keep it from the answer.
    #[cold]
    fn throw_away(&mut self, size: usize, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.has_waited = !self.has_waited;
        if self.has_waited {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Ok(size))
    }

    /// Reads what came before a reset. An end after it isn't the backend's, and what came before may be cut.
    #[cold]
    fn poll_read_after(
        &mut self,
        reset: io::ErrorKind,
        cx: &mut Context<'_>,
        mut buf: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_own_end || buf.remaining() == 0 {
            return Pin::new(&mut *self.io).poll_read(cx, buf);
        }
        let mut room = [0; 4096];
        let size = room.len().min(buf.remaining());
        let mut read = ReadBuf::new(&mut room[..size]);
        ready!(Pin::new(&mut *self.io).poll_read(cx, read.unfilled()))?;
        if read.filled().is_empty() {
            return Poll::Ready(Err(reset.into()));
        }
        buf.put_slice(read.filled());
        Poll::Ready(Ok(()))
    }

    fn written(&mut self, written: Poll<io::Result<usize>>, size: usize) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Err(error)) => self.passed_over(error, size),
            Poll::Ready(Ok(_)) => {
                if let Some(progress) = &self.progress {
                    progress.wrote();
                }
                written
            }
            Poll::Pending => Poll::Pending,
        }
    }
}

impl Read for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        match self.reset {
            None => Pin::new(&mut *self.io).poll_read(cx, buf),
            Some(kind) => self.poll_read_after(kind, cx, buf),
        }
    }
}

impl Write for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.is_broken() {
            return self.throw_away(buf.len(), cx);
        }
        let written = Pin::new(&mut *self.io).poll_write(cx, buf);
        self.written(written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.is_broken() {
            return Poll::Ready(Ok(()));
        }
        match Pin::new(&mut *self.io).poll_flush(cx) {
            Poll::Ready(Err(error)) => self.passed_over(error, ()),
            flushed => flushed,
        }
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What is one piece, as most requests are, costs the kernel less without a vector.
        if let [buf] = bufs {
            return self.poll_write(cx, buf);
        }
        let size = bufs.iter().map(|buf| buf.len()).sum();
        if self.is_broken() {
            return self.throw_away(size, cx);
        }
        let written = Pin::new(&mut *self.io).poll_write_vectored(cx, bufs);
        self.written(written, size)
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

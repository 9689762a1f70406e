//! The octets that a connection has read.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

use crate::client::connect::Stream;

/// The octets that were read and aren't decoded yet.
///
/// It holds no memory while it's empty and the backend sends little at a time, so that idle connections and responses
/// that are waited for cost none.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) octets: BytesMut,
    /// The size of the next read.
    size: usize,
}

/// The size of the first read: most responses are smaller, so that they cost one system call.
const FIRST: usize = 16 * 1024;

/// The maximum size of a read. Larger ones don't make large bodies cheaper.
const MOST: usize = 400 * 1024;

impl Input {
    pub(super) fn new() -> Self {
        Self { octets: BytesMut::new(), size: FIRST }
    }

    /// Reads as much as there is, up to a size that grows while reads fill it. 0: the backend has closed the
    /// connection.
    pub(super) fn poll_fill(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let (read, room) = if self.size == FIRST {
            (ready!(self.poll_copy(stream, cx))?, FIRST)
        } else {
            if self.room() < self.size / 2 {
                self.octets.reserve(self.size);
            }
            let room = self.room();
            (ready!(poll_read_buf(Pin::new(stream), cx, &mut self.octets))?, room)
        };
        if read == room {
            self.size = (self.size * 2).min(MOST);
        } else if read < self.size / 4 {
            self.size = (self.size / 2).max(FIRST);
        }
        Poll::Ready(Ok(read))
    }

    /// Reads into the stack first: a buffer that is as large as what came is allocated only then.
    fn poll_copy(&mut self, stream: &mut Stream, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; FIRST];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        self.octets.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    fn room(&self) -> usize {
        self.octets.capacity() - self.octets.len()
    }

    /// Frees the memory, because the response has ended. What is left isn't part of it.
    pub(super) fn end_response(&mut self) {
        if self.octets.is_empty() {
            *self = Self::new();
        }
    }
}

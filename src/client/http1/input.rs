//! The octets that a connection has read.

use std::{
    io,
    mem::MaybeUninit,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut, BytesMut};
use tokio::io::{AsyncRead, ReadBuf};
use tokio_util::io::poll_read_buf;

/// The octets that have been read and not yet decoded.
///
/// It holds no memory between responses, and none while it's empty and the backend sends little at a time.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) octets: BytesMut,
    /// The size of the next read.
    size: usize,
    /// Whether the last read brought so little that copying it costs less than a buffer of the full size.
    copies: bool,
}

/// The size of the first read: most responses are smaller, so that they cost one system call.
const FIRST: usize = 16 * 1024;

/// The maximum that is copied.
const LITTLE: usize = 2 * 1024;

/// The maximum size of a read. Larger reads don't make large bodies cheaper.
const MOST: usize = 400 * 1024;

impl Input {
    pub(super) fn new() -> Self {
        Self { octets: BytesMut::new(), size: FIRST, copies: true }
    }

    /// Reads as much as there is, up to a size that grows while reads fill it. 0: the backend has closed the
    /// connection.
    pub(super) fn poll_fill(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        cx: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        let (read, room) = if self.copies {
            (ready!(self.poll_copy(stream, cx))?, FIRST)
        } else {
            if self.room() < self.size / 2 {
                self.octets.reserve(self.size);
            }
            let room = self.room().min(self.size);
            (ready!(poll_read_buf(Pin::new(stream), cx, &mut (&mut self.octets).limit(room)))?, room)
        };
        if read == room {
            self.size = (self.size * 2).min(MOST);
        } else if read < self.size / 4 {
            self.size = (self.size / 2).max(FIRST);
        }
        self.copies = self.size == FIRST && read <= LITTLE;
        Poll::Ready(Ok(read))
    }

    /// Reads into the stack first, and then allocates a buffer of the size of what came.
    fn poll_copy(&mut self, stream: &mut (impl AsyncRead + Unpin), cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let mut room = [const { MaybeUninit::uninit() }; FIRST];
        let mut read = ReadBuf::uninit(&mut room);
        ready!(Pin::new(stream).poll_read(cx, &mut read))?;
        self.octets.extend_from_slice(read.filled());
        Poll::Ready(Ok(read.filled().len()))
    }

    fn room(&self) -> usize {
        self.octets.capacity() - self.octets.len()
    }

    /// Frees the memory, because the response has ended. Octets that are left aren't part of it, and are kept.
    pub(super) fn end_response(&mut self) {
        if self.octets.is_empty() {
            self.octets = BytesMut::new();
            self.size = FIRST;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::task::Waker;

    use super::*;

    /// Reads until the end. Returns the sizes of the reads.
    fn fill(input: &mut Input, mut octets: &[u8]) -> Vec<usize> {
        let cx = &mut Context::from_waker(Waker::noop());
        let mut sizes = Vec::new();
        while let Poll::Ready(Ok(size)) = input.poll_fill(&mut octets, cx)
            && size > 0
        {
            sizes.push(size);
            // As a body that is decoded and sent on.
            drop(input.octets.split().freeze());
        }
        sizes
    }

    #[test]
    fn reads_grow_while_they_are_filled() {
        let mut input = Input::new();
        let sizes = fill(&mut input, &vec![b'x'; 4 << 20]);
        assert_eq!(sizes[..6], [16, 32, 64, 128, 256, 400].map(|size| size * 1024));
        assert!(sizes[6..sizes.len() - 1].iter().all(|&size| size > MOST / 2 && size <= MOST), "{sizes:?}");
    }

    #[test]
    fn a_small_response_costs_no_more_memory_than_it_has_octets() {
        let mut input = Input::new();
        let cx = &mut Context::from_waker(Waker::noop());
        for _ in 0..3 {
            assert_eq!(input.octets.capacity(), 0);
            assert!(input.poll_fill(&mut &[b'x'; 300][..], cx).is_ready());
            assert!(input.octets.len() == 300 && input.octets.capacity() < 400, "{}", input.octets.capacity());
            input.octets.clear();
            input.end_response();
        }
    }

    #[test]
    fn no_memory_is_held_between_responses() {
        let mut input = Input::new();
        fill(&mut input, &vec![b'x'; 4 << 20]);
        assert!(input.size > FIRST);
        input.end_response();
        assert_eq!((input.octets.capacity(), input.size), (0, FIRST));
        // Octets behind the response are seen, so that the connection isn't reused.
        input.octets.extend_from_slice(b"stray");
        input.end_response();
        assert_eq!(input.octets, "stray");
    }
}

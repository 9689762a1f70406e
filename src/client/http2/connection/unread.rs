//! The responses of one connection that their clients haven't read yet.
//!
//! h2 charges a connection for unread small DATA frames and ends it when they cost too much
//! ([`charges`](super::charges)). So the connection reads ahead when enough has been charged: it copies small frames
//! into larger pieces of memory, in which they cost what they hold.
//!
//! It copies large frames too, because small ones can lie behind them, but only up to a limit: a backend whose download
//! is read slowly has to wait. When the charges are high all the same, it reads all that the stream's window has let
//! in. A response that collects too many small frames beyond that limit is reset, because it would end the connection.

use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::charges::FREE_PAYLOAD;
use crate::error::{Error, ErrorKind};

/// The item of a response's body. `None`: the end.
pub(in super::super) type Next = Option<Result<Frame<Bytes>, Error>>;

/// The responses of one connection that are being read.
#[derive(Debug)]
pub(in super::super) struct Responses {
    list: Mutex<List>,
    /// How many bytes of one response are read ahead before small frames are held against it.
    bound: usize,
}

/// How far a response is read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Up to twice the bound.
    Bounded,
    /// All that has come, which is one window more at the most, and never more than [`MAX_BOUNDS`].
    All,
}

#[derive(Debug, Default)]
struct List {
    all: Vec<Arc<SharedResponse>>,
    /// Those of `all` without a response. Later responses use them.
    free: Vec<Arc<SharedResponse>>,
    /// The charges of frames that have been read since the last call of [`Responses::read_ahead`].
    released: usize,
}

/// A response that its reader shares with the connection.
#[derive(Default)]
pub(in super::super) struct SharedResponse {
    /// Locked while the body is polled, so that a read-ahead waits for its reader and the reverse.
    response: Mutex<UnreadResponse>,
}

/// The outcome of a poll.
pub(in super::super) struct Polled {
    pub(in super::super) next: Poll<Next>,
    /// Whether that was the last frame.
    pub(in super::super) is_end: bool,
    /// The charges of the frames that were read.
    pub(in super::super) released: usize,
}

/// The unread rest of a response.
#[derive(Default)]
pub(in super::super) struct UnreadResponse {
    /// `None` at its end.
    body: Option<Incoming>,
    ahead: ReadAhead,
    /// The trailers, or the error, behind the data.
    after: Option<Result<Frame<Bytes>, Error>>,
    /// The waker of the reader, which waits for the next frame.
    waker: Option<Waker>,
    /// Whether the reader has read everything since the connection last read ahead: it keeps up.
    is_drained: bool,
    /// The charges of frames that have been read, not yet added to those of the list.
    released: usize,
}

/// Data that has been read ahead, in pieces.
#[derive(Debug, Default)]
struct ReadAhead {
    pieces: VecDeque<BytesMut>,
    size: usize,
    /// The costs of small frames beyond the bound since `pieces` was empty.
    overhead: usize,
}

/// The maximum overhead of small frames in one response, in bytes as h2 counts them.
const MAX_OVERHEAD: usize = 64 * 1024;

/// How many bounds of one response are read ahead at the most.
const MAX_BOUNDS: usize = 16;

/// The size of the memory that small frames are copied into.
const PIECE: usize = 16 * 1024;

/// Why a response was reset.
const TOO_SLOW: &str = "the client doesn't read, and what is unread came in too many small frames: the stream was reset, \
                        because they would end the HTTP/2 connection";

impl Responses {
    pub(super) fn new(bound: u32) -> Self {
        Self { list: Mutex::default(), bound: bound as usize }
    }

    /// Reads ahead in the responses whose readers don't keep up. Returns the charges of all frames that have been read
    /// since the last call, by readers too.
    pub(super) fn read_ahead(&self, reach: Reach) -> usize {
        // A body that is polled or dropped wakes the connection's task.
        let responses = self.lock().all.clone();
        let mut released = 0;
        for shared in responses {
            let mut response = shared.lock();
            let waker = response.read_ahead(self.bound, reach);
            let reset = if waker.is_some() { response.body.take() } else { None };
            released += mem::take(&mut response.released);
            drop(response);
            drop(reset);
            if let Some(waker) = waker {
                waker.wake();
            }
        }
        released + mem::take(&mut self.lock().released)
    }

    /// Adds a response for as long as it's read.
    pub(in super::super) fn insert(&self, response: UnreadResponse) -> Arc<SharedResponse> {
        let mut list = self.lock();
        let shared = list.free.pop().unwrap_or_else(|| {
            let shared = Arc::<SharedResponse>::default();
            list.all.push(shared.clone());
            shared
        });
        drop(list);
        *shared.lock() = response;
        shared
    }

    pub(in super::super) fn remove(&self, shared: &Arc<SharedResponse>) {
        let response = mem::take(&mut *shared.lock());
        self.lock().free.push(shared.clone());
        self.discard(response);
    }

    /// Drops a response, which resets its stream unless it's complete.
    pub(in super::super) fn discard(&self, mut response: UnreadResponse) {
        // h2 takes back the charges of frames that are read, but never those of a stream that is reset.
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(_))) = response.poll_body(&mut cx) {}
        self.release(mem::take(&mut response.released));
    }

    pub(in super::super) fn release(&self, charge: usize) {
        if charge > 0 {
            self.lock().released += charge;
        }
    }

    fn lock(&self) -> MutexGuard<'_, List> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl SharedResponse {
    pub(in super::super) fn poll_frame(&self, cx: &mut Context<'_>) -> Polled {
        let mut response = self.lock();
        let next = response.poll_frame(cx);
        Polled { next, is_end: response.is_end(), released: mem::take(&mut response.released) }
    }

    pub(in super::super) fn is_end(&self) -> bool {
        self.lock().is_end()
    }

    fn lock(&self) -> MutexGuard<'_, UnreadResponse> {
        self.response.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for SharedResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SharedResponse").finish_non_exhaustive()
    }
}

impl UnreadResponse {
    pub(in super::super) fn new(body: Incoming) -> Self {
        Self { body: Some(body), ..Self::default() }
    }

    /// Polls for the next frame. Small ones that were read ahead are one.
    pub(in super::super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(data) = self.ahead.pop() {
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
        if let Some(after) = self.after.take() {
            return Poll::Ready(Some(after));
        }
        let polled = self.poll_body(cx);
        if polled.is_pending() {
            self.is_drained = true;
            match &mut self.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                waker => *waker = Some(cx.waker().clone()),
            }
        }
        polled
    }

    pub(in super::super) fn is_end(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream) && self.ahead.is_empty() && self.after.is_none()
    }

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = ready!(Pin::new(&mut *body).poll_frame(cx));
        let is_ended = body.is_end_stream();
        if let Some(Ok(frame)) = &next
            && let Some(data) = frame.data_ref()
            && !(is_ended || data.is_empty())
        {
            self.released += FREE_PAYLOAD.saturating_sub(data.len());
        }
        let next = match next {
            Some(frame) => Some(frame.map_err(|error| Error::with_source(ErrorKind::ResponseBody, error))),
            None if is_ended => None,
            // hyper takes a reset with NO_ERROR for the end of a body. For a response it's a truncation.
            None => Some(Err(ErrorKind::ResponseBody.into())),
        };
        if is_ended || !matches!(next, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(next)
    }

    /// Reads what there is. Returns the waker of its reader if the response has come beyond the bound in small frames:
    /// its body is to be reset then.
    fn read_ahead(&mut self, bound: usize, reach: Reach) -> Option<Waker> {
        if mem::take(&mut self.is_drained) || self.body.is_none() {
            return None;
        }
        // The next frame has to wake the reader.
        let waker = self.waker.clone().unwrap_or_else(|| Waker::noop().clone());
        let mut cx = Context::from_waker(&waker);
        while self.after.is_none()
            && self.ahead.size < reach.limit(bound)
            && let Poll::Ready(Some(next)) = self.poll_body(&mut cx)
        {
            match next.map(Frame::into_data) {
                Ok(Ok(data)) => self.ahead.push(&data, bound),
                Ok(Err(trailers)) => self.after = Some(Ok(trailers)),
                Err(error) => self.after = Some(Err(error)),
            }
        }
        let is_reset = self.ahead.overhead > MAX_OVERHEAD;
        if is_reset {
            self.after = Some(Err(Error::with_source(ErrorKind::ResponseBody, TOO_SLOW)));
        }
        is_reset.then_some(waker)
    }
}

impl Reach {
    fn limit(self, bound: usize) -> usize {
        bound.saturating_mul(match self {
            Self::Bounded => 2,
            Self::All => MAX_BOUNDS,
        })
    }
}

impl ReadAhead {
    fn push(&mut self, data: &Bytes, bound: usize) {
        self.size += data.len();
        if self.size > bound && !data.is_empty() {
            self.overhead += FREE_PAYLOAD.saturating_sub(data.len());
        }
        match self.pieces.back_mut() {
            Some(piece) if piece.len() + data.len() <= PIECE => piece.extend_from_slice(data),
            _ => {
                let mut piece = BytesMut::with_capacity(PIECE.max(data.len()));
                piece.extend_from_slice(data);
                self.pieces.push_back(piece);
            }
        }
    }

    fn pop(&mut self) -> Option<Bytes> {
        let data = self.pieces.pop_front()?;
        self.size -= data.len();
        if self.pieces.is_empty() {
            self.overhead = 0;
        }
        Some(data.freeze())
    }

    fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is read ahead of frames of these sizes.
    fn read(frames: &[(usize, usize)], bound: usize) -> ReadAhead {
        let mut ahead = ReadAhead::default();
        for (count, size) in frames {
            let data = Bytes::from(vec![b'x'; *size]);
            (0..*count).for_each(|_| ahead.push(&data, bound));
        }
        ahead
    }

    #[test]
    fn small_frames_are_one_piece_and_cost_only_beyond_the_bound() {
        const BOUND: usize = 1000;
        for (frames, pieces, size, overhead) in [
            (&[(1000, 1)][..], 1, 1000, 0),
            (&[(1001, 1)], 1, 1001, 255),
            (&[(1010, 1)], 1, 1010, 2550),
            (&[(1, 1000), (1, 256), (1, 16_384)], 2, 17_640, 0),
            (&[(1, 1000), (1, 255), (1, 0)], 1, 1255, 1),
            (&[(1, 20_000), (1, 1)], 2, 20_001, 255),
            (&[(16_384, 1)], 1, 16_384, 15_384 * 255),
            (&[(16_385, 1)], 2, 16_385, 15_385 * 255),
        ] {
            let mut ahead = read(frames, BOUND);
            assert_eq!((ahead.pieces.len(), ahead.size, ahead.overhead), (pieces, size, overhead), "{frames:?}");
            let mut taken = 0;
            while let Some(piece) = ahead.pop() {
                taken += piece.len();
                // A reader that catches up gets another chance.
                assert_eq!(ahead.overhead, if ahead.is_empty() { 0 } else { overhead }, "{frames:?}");
            }
            assert_eq!((taken, ahead.size), (size, 0), "{frames:?}");
        }
    }

    #[test]
    fn the_reach_is_a_multiple_of_the_bound() {
        for (reach, bound, expected) in [
            (Reach::Bounded, 1000, 2000),
            (Reach::All, 1000, 16_000),
            (Reach::All, u32::MAX as usize, u32::MAX as usize * 16),
        ] {
            assert_eq!(reach.limit(bound), expected);
        }
    }

    #[test]
    fn a_response_that_is_over_is_reused() {
        let responses = Responses::new(1000);
        let (first, second) =
            (responses.insert(UnreadResponse::default()), responses.insert(UnreadResponse::default()));
        responses.release(7);
        assert_eq!((responses.read_ahead(Reach::All), responses.read_ahead(Reach::All)), (7, 0));
        responses.remove(&first);
        responses.remove(&second);
        let _third = responses.insert(UnreadResponse::default());
        let list = responses.lock();
        assert_eq!((list.all.len(), list.free.len()), (2, 1));
    }
}

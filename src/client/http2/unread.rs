//! Answers that wait for their clients, and what their small DATA frames cost the connection.
//!
//! h2 charges a connection for each DATA frame that is smaller than 256 bytes, as long as it's unread, and ends the connection
//! when the charge exceeds half of its window. So an answer can't be left in h2 while its client doesn't read. When enough
//! has been charged, the connection reads ahead: small frames become one piece of memory, in which they cost what they hold.
//! Larger ones are moved too, but aren't the matter: a client that reads a download slowly is the backend's to wait for. So there
//! is a limit to it, and small frames can lie behind large ones that reached it: only when these have been charged half of what
//! h2 allows, all that there is is read.

use std::{
    collections::VecDeque,
    fmt, mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::{Stream, frames::WORTHWHILE};
use crate::error::{Error, ErrorKind};

type Next = Option<Result<Frame<Bytes>, Error>>;

/// The answers of one connection. Those that are over leave their room to later ones.
#[derive(Debug)]
pub(super) struct Unread {
    rooms: Mutex<Rooms>,
    /// How many bytes of one answer are read ahead before small frames are held against it.
    bound: usize,
    /// What had been charged for frames that have been read since.
    released: AtomicUsize,
}

/// How far is read ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// Up to twice the bound.
    Bounded,
    /// All that has come, which is a window more at the most; not beyond [`MOST_BOUNDS`] all the same.
    All,
}

#[derive(Debug, Default)]
struct Rooms {
    all: Vec<Arc<Room>>,
    free: Vec<Arc<Room>>,
}

/// An answer, shared by its reader and the connection.
#[derive(Default)]
struct Room {
    answer: Mutex<Answer>,
}

#[derive(Default)]
struct Answer {
    /// `None` at its end.
    body: Option<Incoming>,
    /// What has been read ahead, and how many bytes that is.
    ahead: VecDeque<BytesMut>,
    held: usize,
    /// What came behind it: trailers, or an error.
    after: Option<Result<Frame<Bytes>, Error>>,
    /// The reader's, which waits for the next frame.
    waker: Option<Waker>,
    /// Whether the reader has found nothing to read since the connection looked: it keeps up.
    is_drained: bool,
    /// What small frames beyond the bound have cost, since all was read.
    overhead: usize,
    /// The charge of frames that have been read, not yet reported.
    released: usize,
}

/// What small frames beyond the bound may cost one answer, in bytes as h2 counts them.
const MOST_OVERHEAD: usize = 64 * 1024;

/// How many bounds of one answer are read ahead at the most.
const MOST_BOUNDS: usize = 16;

/// How large a piece of memory is that small frames are copied into.
const PIECE: usize = 16 * 1024;

impl Unread {
    pub(super) fn new(bound: u32) -> Self {
        Self { rooms: Mutex::default(), bound: bound as usize, released: AtomicUsize::new(0) }
    }

    /// Makes room in h2: reads ahead for the answers whose readers don't keep up.
    pub(super) fn read_ahead(&self, reach: Reach) {
        for room in &self.lock().all {
            let mut answer = room.lock();
            answer.read_ahead(self.bound, reach);
            self.release(&mut answer);
        }
    }

    /// Returns what had been charged for frames that have been read since this was asked last.
    pub(super) fn released(&self) -> usize {
        self.released.swap(0, Ordering::Relaxed)
    }

    fn release(&self, answer: &mut Answer) {
        let released = mem::take(&mut answer.released);
        if released > 0 {
            self.released.fetch_add(released, Ordering::Relaxed);
        }
    }

    fn take(&self, body: Incoming) -> Arc<Room> {
        let mut rooms = self.lock();
        let room = rooms.free.pop().unwrap_or_else(|| {
            let room = Arc::<Room>::default();
            rooms.all.push(room.clone());
            room
        });
        drop(rooms);
        room.lock().body = Some(body);
        room
    }

    fn put(&self, room: Arc<Room>) {
        let mut answer = mem::take(&mut *room.lock());
        self.lock().free.push(room);
        // h2 takes back the charges for what is unread.
        let mut cx = Context::from_waker(Waker::noop());
        while let Poll::Ready(Some(Ok(_))) = answer.poll_body(&mut cx) {}
        self.release(&mut answer);
        // It resets the stream, if it isn't over.
        drop(answer);
    }

    fn lock(&self) -> MutexGuard<'_, Rooms> {
        self.rooms.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Room {
    fn lock(&self) -> MutexGuard<'_, Answer> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Room").finish_non_exhaustive()
    }
}

impl Answer {
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if let Some(data) = self.ahead.pop_front() {
            self.held -= data.len();
            if self.ahead.is_empty() {
                self.overhead = 0;
            }
            return Poll::Ready(Some(Ok(Frame::data(data.freeze()))));
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

    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        let next = ready!(Pin::new(&mut *body).poll_frame(cx));
        let is_ended = body.is_end_stream();
        if let Some(Ok(frame)) = &next
            && let Some(data) = frame.data_ref()
            && !(is_ended || data.is_empty())
        {
            self.released += WORTHWHILE.saturating_sub(data.len());
        }
        let next = match next {
            Some(frame) => Some(frame.map_err(|error| Error::with_source(ErrorKind::ResponseBody, error))),
            None if is_ended => None,
            // hyper takes a reset without an error for an end. For a response it's a cut.
            None => Some(Err(ErrorKind::ResponseBody.into())),
        };
        if is_ended || !matches!(next, Some(Ok(_))) {
            self.body = None;
        }
        Poll::Ready(next)
    }

    /// Reads what there is. An answer that has come beyond the bound in small frames is given up.
    fn read_ahead(&mut self, bound: usize, reach: Reach) {
        if mem::take(&mut self.is_drained) || self.body.is_none() {
            return;
        }
        let most = match reach {
            Reach::Bounded => 2 * bound,
            Reach::All => MOST_BOUNDS * bound,
        };
        // The reader's stays the one that the next frame wakes.
        let waker = self.waker.clone().unwrap_or_else(|| Waker::noop().clone());
        let mut cx = Context::from_waker(&waker);
        while self.after.is_none()
            && self.held < most
            && let Poll::Ready(Some(next)) = self.poll_body(&mut cx)
        {
            match next.map(Frame::into_data) {
                Ok(Ok(data)) => self.keep(&data, bound),
                Ok(Err(trailers)) => self.after = Some(Ok(trailers)),
                Err(error) => self.after = Some(Err(error)),
            }
        }
        if self.overhead > MOST_OVERHEAD {
            self.body = None;
            self.after = Some(Err(Error::with_source(ErrorKind::ResponseBody, TOO_SLOW)));
            // It may wait for what is lost now.
            waker.wake();
        }
    }

    fn keep(&mut self, data: &Bytes, bound: usize) {
        self.held += data.len();
        if self.held > bound && !data.is_empty() {
            self.overhead += WORTHWHILE.saturating_sub(data.len());
        }
        match self.ahead.back_mut() {
            Some(piece) if piece.len() + data.len() <= PIECE => piece.extend_from_slice(data),
            _ => {
                let mut piece = BytesMut::with_capacity(PIECE.max(data.len()));
                piece.extend_from_slice(data);
                self.ahead.push_back(piece);
            }
        }
    }
}

/// Why an answer was given up.
const TOO_SLOW: &str = "the client doesn't read, and what is unread came in too many small frames: the stream was reset, \
                        because they would end the HTTP/2 connection";

/// Reads an answer, and holds its stream.
pub(in super::super) struct Reader {
    room: Option<Arc<Room>>,
    stream: Stream,
}

impl Reader {
    pub(in super::super) fn new(body: Incoming, stream: Stream) -> Self {
        let room = (!body.is_end_stream()).then(|| stream.load.unread.take(body));
        Self { room, stream }
    }

    /// The next frame. Small ones that were read ahead are one.
    pub(in super::super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        let Some(room) = &self.room else { return Poll::Ready(None) };
        let mut answer = room.lock();
        let polled = answer.poll_frame(cx);
        self.stream.load.unread.release(&mut answer);
        polled
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.room.as_ref().is_none_or(|room| {
            let answer = room.lock();
            let is_over = answer.body.as_ref().is_none_or(http_body::Body::is_end_stream);
            is_over && answer.ahead.is_empty() && answer.after.is_none()
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        if let Some(room) = self.room.take() {
            self.stream.load.unread.put(room);
        }
    }
}

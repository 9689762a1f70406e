//! A request's body that several attempts send.
//!
//! The attempt owns what has been read of the body, and the rest. Its end gives both back, and the next attempt replays
//! the one and reads on. Therefore a body is read no earlier than its attempt needs it, and no lock is held while it's
//! read.

use std::{
    mem,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker, ready},
};

use axum_core::body::Body;
use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::{Body as _, Frame, SizeHint};

/// The memory of all bodies that are kept under one policy.
#[derive(Debug, Default)]
pub(super) struct Memory {
    used: AtomicUsize,
}

/// How much is kept, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    /// Of one request.
    pub(super) request: usize,
    /// Of all requests under the policy.
    pub(super) total: usize,
}

impl Memory {
    fn reserve(&self, size: usize, total: usize) -> bool {
        let reserve = |used: usize| used.checked_add(size).filter(|used| *used <= total);
        self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, reserve).is_ok()
    }

    fn release(&self, size: usize) {
        self.used.fetch_sub(size, Ordering::Relaxed);
    }

    #[cfg(test)]
    pub(super) fn used(&self) -> usize {
        self.used.load(Ordering::Relaxed)
    }
}

/// The holder of a body between attempts.
pub(super) struct Replay {
    slot: Arc<Slot>,
}

#[derive(Default)]
struct Slot {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// `None` while an attempt has it.
    content: Option<Content>,
    /// Whether the body can't be replayed any more.
    is_gone: bool,
    waker: Option<Waker>,
}

struct Content {
    rest: Body,
    /// Whether the rest has ended.
    is_complete: bool,
    /// `None` if the body can't be replayed any more.
    kept: Option<Kept>,
}

/// What has been read of a body.
struct Kept {
    /// One piece for each attempt.
    pieces: Vec<Bytes>,
    /// What the present attempt has read. Copied, because a frame may be a small part of a large buffer.
    piece: BytesMut,
    trailers: Option<HeaderMap>,
    size: usize,
    limits: Limits,
    memory: Arc<Memory>,
}

impl Replay {
    /// Makes the body of the first attempt, and the holder for further ones.
    pub(super) fn new(body: Body, limits: Limits, memory: Arc<Memory>) -> (Self, Body) {
        let pieces = Vec::new();
        let kept = Kept { pieces, piece: BytesMut::new(), trailers: None, size: 0, limits, memory };
        let slot = Arc::<Slot>::default();
        let content = Content { rest: body, is_complete: false, kept: Some(kept) };
        let first = ReplayBody::new(slot.clone(), content);
        (Self { slot }, Body::new(first))
    }

    /// Returns whether the body may be replayed, as far as it's known.
    pub(super) fn is_possible(&self) -> bool {
        !self.slot.lock().is_gone
    }

    /// Ready with the body for another attempt when the previous one has given it back; `None` if it can't be replayed.
    pub(super) fn poll_body(&self, cx: &mut Context<'_>) -> Poll<Option<Body>> {
        let mut state = self.slot.lock();
        if state.is_gone {
            return Poll::Ready(None);
        }
        let Some(mut content) = state.content.take() else {
            let replaced = state.waker.replace(cx.waker().clone());
            drop(state);
            drop(replaced);
            return Poll::Pending;
        };
        drop(state);
        if let Some(kept) = &mut content.kept {
            kept.seal();
        }
        Poll::Ready(Some(Body::new(ReplayBody::new(self.slot.clone(), content))))
    }
}

impl Slot {
    fn give_back(&self, content: Content) {
        let mut state = self.lock();
        let replaced = state.content.replace(content);
        let waker = state.waker.take();
        drop(state);
        drop(replaced);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn give_up(&self) {
        let mut state = self.lock();
        state.is_gone = true;
        let waker = state.waker.take();
        drop(state);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    /// Ends the piece of an attempt.
    fn seal(&mut self) {
        if !self.piece.is_empty() {
            self.pieces.push(mem::take(&mut self.piece).freeze());
        }
    }

    /// Keeps a frame. Returns `false` if it's too much.
    fn keep(&mut self, frame: &Frame<Bytes>) -> bool {
        let size = match (frame.data_ref(), frame.trailers_ref()) {
            (Some(data), _) => data.len(),
            (_, Some(trailers)) => trailers.iter().map(|(name, value)| name.as_str().len() + value.len()).sum(),
            // A kind of frame that isn't known can't be replayed.
            (None, None) => return false,
        };
        let is_within = self.size.checked_add(size).is_some_and(|size| size <= self.limits.request);
        if !is_within || !self.memory.reserve(size, self.limits.total) {
            return false;
        }
        self.size += size;
        if let Some(data) = frame.data_ref() {
            self.piece.extend_from_slice(data);
        }
        if let Some(trailers) = frame.trailers_ref() {
            self.trailers = Some(trailers.clone());
        }
        true
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.memory.release(self.size);
    }
}

/// The body of one attempt.
struct ReplayBody {
    slot: Arc<Slot>,
    /// `None` after it has been given back.
    content: Option<Content>,
    /// The next piece that is replayed.
    next: usize,
    has_sent_trailers: bool,
    /// Whether the rest is being polled. If it panics, it must not be polled again.
    is_polling: bool,
}

impl ReplayBody {
    fn new(slot: Arc<Slot>, content: Content) -> Self {
        Self { slot, content: Some(content), next: 0, has_sent_trailers: false, is_polling: false }
    }

    /// Keeps a frame for the next attempt. It isn't kept if there is none, or if it's too much.
    fn keep(&mut self, frame: &Frame<Bytes>) {
        let Some(Content { rest, kept, .. }) = &mut self.content else { return };
        let Some(body) = kept else { return };
        // The request has its response if the body is shared with no holder any more.
        let has_holder = Arc::strong_count(&self.slot) > 1;
        // Nothing is kept of a body that is known to be too large.
        let fits = rest.size_hint().lower() <= body.limits.request as u64;
        if !has_holder || !fits || !body.keep(frame) {
            self.give_up();
        }
    }

    fn give_up(&mut self) {
        if let Some(content) = &mut self.content {
            content.kept = None;
        }
        self.slot.give_up();
    }
}

impl http_body::Body for ReplayBody {
    type Data = Bytes;
    type Error = axum_core::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let this = &mut *self;
        let Some(content) = &mut this.content else { return Poll::Ready(None) };
        if let Some(piece) = content.kept.as_ref().and_then(|kept| kept.pieces.get(this.next)) {
            this.next += 1;
            return Poll::Ready(Some(Ok(Frame::data(piece.clone()))));
        }
        if content.is_complete {
            let trailers = content.kept.as_ref().and_then(|kept| kept.trailers.clone());
            let trailers = trailers.filter(|_| !mem::replace(&mut this.has_sent_trailers, true));
            return Poll::Ready(trailers.map(|trailers| Ok(Frame::trailers(trailers))));
        }
        this.is_polling = true;
        let polled = Pin::new(&mut content.rest).poll_frame(cx);
        this.is_polling = false;
        let frame = ready!(polled);
        match &frame {
            Some(Ok(frame)) => {
                if frame.is_trailers() {
                    (content.is_complete, this.has_sent_trailers) = (true, true);
                }
                this.keep(frame);
            }
            // The client is at fault, or has left. Another attempt fails alike.
            Some(Err(_)) => this.give_up(),
            None => content.is_complete = true,
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        let Some(Content { rest, is_complete, kept }) = &self.content else { return true };
        let (pieces, has_trailers) =
            kept.as_ref().map_or((0, false), |kept| (kept.pieces.len(), kept.trailers.is_some()));
        let has_ended = if *is_complete { !has_trailers || self.has_sent_trailers } else { rest.is_end_stream() };
        self.next >= pieces && has_ended
    }

    fn size_hint(&self) -> SizeHint {
        let Some(Content { rest, is_complete, kept }) = &self.content else { return SizeHint::with_exact(0) };
        let pieces = kept.iter().flat_map(|kept| kept.pieces.iter().skip(self.next));
        let replayed = pieces.map(|piece| piece.len() as u64).sum::<u64>();
        let rest = if *is_complete { SizeHint::with_exact(0) } else { rest.size_hint() };
        let mut hint = SizeHint::new();
        hint.set_lower(rest.lower().saturating_add(replayed));
        if let Some(upper) = rest.upper().and_then(|upper| upper.checked_add(replayed)) {
            hint.set_upper(upper);
        }
        hint
    }
}

impl Drop for ReplayBody {
    fn drop(&mut self) {
        let Some(content) = self.content.take() else { return };
        if self.is_polling {
            self.slot.give_up();
        } else if content.kept.is_some() {
            self.slot.give_back(content);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use http_body_util::BodyExt;

    use super::*;

    fn cx() -> Context<'static> {
        Context::from_waker(Waker::noop())
    }

    fn replay(body: Body) -> (Replay, Body) {
        Replay::new(body, Limits { request: 100, total: 100 }, Arc::default())
    }

    fn back(replay: &Replay) -> Option<Body> {
        match replay.poll_body(&mut cx()) {
            Poll::Ready(body) => body,
            Poll::Pending => panic!("the body isn't back"),
        }
    }

    fn read(body: &mut Body) -> Option<Bytes> {
        match Pin::new(body).poll_frame(&mut cx()) {
            Poll::Ready(frame) => Some(frame?.unwrap().into_data().unwrap()),
            Poll::Pending => panic!("there is a frame"),
        }
    }

    #[test]
    fn the_length_and_the_end_are_those_of_the_original() {
        let (replay, mut body) = replay(Body::from("hello"));
        for read_before in [false, true, true] {
            assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(5), false));
            if read_before {
                assert_eq!(read(&mut body).unwrap(), "hello");
                assert_eq!((body.size_hint().exact(), body.is_end_stream()), (Some(0), true));
                assert_eq!(read(&mut body), None);
            }
            drop(body);
            body = back(&replay).unwrap();
        }
    }

    #[test]
    fn a_body_is_awaited_while_an_attempt_has_it() {
        let (replay, body) = replay(Body::from("hello"));
        assert!(replay.is_possible() && replay.poll_body(&mut cx()).is_pending());
        drop(body);
        assert!(back(&replay).is_some());
    }

    #[test]
    fn without_a_holder_a_body_is_no_longer_kept() {
        let memory = Arc::<Memory>::default();
        let (replay, mut body) = Replay::new(Body::from("hello"), Limits { request: 100, total: 100 }, memory.clone());
        drop(replay);
        assert_eq!(read(&mut body).unwrap(), "hello");
        assert_eq!(memory.used(), 0);
        assert_eq!(read(&mut body), None);
    }

    /// A body that panics.
    struct Broken;

    impl http_body::Body for Broken {
        type Data = Bytes;
        type Error = axum_core::Error;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
            panic!("the application's")
        }
    }

    #[test]
    fn a_body_that_has_panicked_is_not_polled_again() {
        let (replay, body) = replay(Body::new(Broken));
        let polled = catch_unwind(AssertUnwindSafe(move || {
            let mut body = body;
            read(&mut body)
        }));
        assert!(polled.is_err() && !replay.is_possible());
        assert!(back(&replay).is_none());
    }

    /// The pieces are copied, so that they don't keep the buffers of the client's connection.
    #[tokio::test]
    async fn what_is_kept_is_a_copy() {
        let frame = Bytes::from(vec![b'x'; 64]);
        let (replay, body) = replay(Body::from(frame.clone()));
        drop(body.collect().await.unwrap());
        assert!(frame.is_unique());
        assert_eq!(back(&replay).unwrap().collect().await.unwrap().to_bytes(), frame);
    }
}

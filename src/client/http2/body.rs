//! The body of a response over HTTP/2.

use std::{
    fmt, mem,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame};
use hyper::body::Incoming;

use super::{
    connection::{Next, Polled, SharedResponse, UnreadResponse},
    stream::Stream,
};
use crate::error::Error;

/// The body of a response. It holds the stream that it comes over until its end.
pub(in super::super) struct Body {
    /// Data that came with the head.
    early: Bytes,
    /// The frame, or the error, behind that data. Boxed, because it's rare and large.
    after: Option<Box<Result<Frame<Bytes>, Error>>>,
    /// The rest, which the connection may read ahead; `None` at the end.
    rest: Option<Rest>,
    /// The `Content-Length` of the response.
    length: Option<u64>,
}

struct Rest {
    response: Arc<SharedResponse>,
    stream: Stream,
}

impl Body {
    /// Makes the body of a response that comes over a stream.
    ///
    /// It reads the frames that came with the head at once, so that a short response is complete, its stream is free,
    /// and the connection needs no access to it.
    pub(super) fn new(body: Incoming, stream: Stream, cx: &mut Context<'_>) -> Self {
        let mut this = Self { length: body.size_hint().exact(), ..Self::empty() };
        let mut unread = UnreadResponse::new(body);
        let mut poll = |unread: &mut UnreadResponse| match unread.is_end() {
            false => unread.poll_frame(cx),
            true => Poll::Ready(None),
        };
        if let Poll::Ready(Some(first)) = poll(&mut unread) {
            match first.map(Frame::into_data) {
                Ok(Ok(data)) => {
                    this.early = data;
                    if let Poll::Ready(Some(second)) = poll(&mut unread) {
                        this.after = Some(Box::new(second));
                    }
                }
                Ok(Err(trailers)) => this.after = Some(Box::new(Ok(trailers))),
                Err(error) => this.after = Some(Box::new(Err(error))),
            }
        }
        let responses = stream.connection().responses();
        if unread.is_end() {
            responses.discard(unread);
        } else {
            this.rest = Some(Rest { response: responses.insert(unread), stream });
        }
        this
    }

    pub(super) fn empty() -> Self {
        Self { early: Bytes::new(), after: None, rest: None, length: Some(0) }
    }

    /// Returns the length of the whole body in bytes, if it's known.
    pub(in super::super) fn length(&self) -> Option<u64> {
        self.length
    }

    /// Polls for the next frame. Small ones that the connection has read ahead are one.
    pub(in super::super) fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<Next> {
        if !self.early.is_empty() {
            return Poll::Ready(Some(Ok(Frame::data(mem::take(&mut self.early)))));
        }
        if let Some(after) = self.after.take() {
            return Poll::Ready(Some(*after));
        }
        let Some(Rest { response, stream }) = &self.rest else { return Poll::Ready(None) };
        let Polled { next, is_end, released } = response.poll_frame(cx);
        stream.connection().responses().release(released);
        let next = ready!(next);
        if is_end {
            self.rest = None;
        }
        Poll::Ready(next)
    }

    pub(in super::super) fn is_end_stream(&self) -> bool {
        self.early.is_empty() && self.after.is_none() && self.rest.as_ref().is_none_or(|rest| rest.response.is_end())
    }
}

impl Drop for Rest {
    fn drop(&mut self) {
        self.stream.connection().responses().remove(&self.response);
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body").finish_non_exhaustive()
    }
}

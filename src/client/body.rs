//! The body of a response. Over HTTP/1.1, it owns its connection, drives it, and returns it at its end.

use std::{
    fmt, mem,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Frame, SizeHint};

use super::{
    dispatch::Lease,
    early::{Early, EarlyResponse},
};
use crate::error::Error;

/// The body of a [`Client`](super::Client)'s response.
///
/// It passes frames on as they are read; small frames that arrive together become one. At its end, its HTTP/1.1
/// connection returns to the pool.
///
/// ```
/// use axum::{body::Body, http::Request};
/// use http_body_util::BodyExt;
/// use tower::ServiceExt;
/// use tower_reverse_proxy::{Client, client::ResponseBody};
///
/// # async fn run(client: Client, request: Request<Body>) -> Result<(), tower_reverse_proxy::Error> {
/// let body: ResponseBody = client.oneshot(request).await?.into_body();
/// let bytes = body.collect().await?.to_bytes();
/// # let _ = bytes;
/// # Ok(())
/// # }
/// ```
///
/// # Cancel safety
///
/// Dropping it before its end closes its HTTP/1.1 connection, or resets its HTTP/2 stream.
pub struct ResponseBody {
    /// Data that came with the head.
    early: Bytes,
    /// The frame, or the error, behind the data that was returned last. Boxed, because it's rare and large.
    after: Option<Box<Result<Frame<Bytes>, Error>>>,
    rest: Rest,
    /// The number of bytes to come, if the backend has declared it.
    length: Option<u64>,
}

enum Rest {
    Ended,
    /// Over an HTTP/1.1 connection.
    Leased(Lease),
    /// Over an HTTP/1.1 connection whose request is still under way: a task of its own sends it.
    Early(EarlyResponse),
    /// Over HTTP/2, whose connection is driven by a task of its own. Boxed, because it's large.
    Shared(Box<super::http2::Body>),
}

impl Rest {
    fn is_shared(&self) -> bool {
        match self {
            Self::Ended | Self::Leased(_) | Self::Early(_) => false,
            Self::Shared(_) => true,
        }
    }
}

/// The size from which on a frame is passed on as it is, in bytes. Smaller ones are gathered, because each frame costs
/// more than a copy of its data, above all where it becomes a chunk.
const ENOUGH: usize = 16 * 1024;

impl ResponseBody {
    /// Returns a body that comes over a leased connection. It takes the frames that came with the head at once, so that
    /// a short response is complete: it's sent on with its head, and its connection is free.
    ///
    /// # Errors
    ///
    /// If the octets that came with the head are cut or invalid. The client can still get another response, because
    /// nothing of this one has been passed on.
    pub(super) fn leased(mut lease: Lease, cx: &mut Context<'_>) -> Result<Self, Error> {
        let mut this = Self { length: lease.connection.length(), ..Self::empty() };
        if !lease.connection.is_answered()
            && let Poll::Ready(Some(frame)) = lease.connection.poll_frame(cx)
        {
            match frame?.into_data() {
                Ok(data) => this.early = data,
                Err(trailers) => this.after = Some(Box::new(Ok(trailers))),
            }
            // The end, or a fault, may have come, too.
            if this.early.len() < ENOUGH
                && let Poll::Ready(Some(frame)) = lease.connection.poll_frame(cx)
            {
                this.after = Some(Box::new(Ok(frame?)));
            }
        }
        if lease.connection.is_answered() {
            lease.end();
        } else if lease.connection.is_uploading() {
            this.rest = match Early::split(lease) {
                Ok(response) => Rest::Early(response),
                Err(lease) => Rest::Leased(lease),
            };
        } else {
            this.rest = Rest::Leased(lease);
        }
        Ok(this)
    }

    pub(super) fn empty() -> Self {
        Self { early: Bytes::new(), after: None, rest: Rest::Ended, length: Some(0) }
    }

    pub(super) fn shared(body: super::http2::Body) -> Self {
        Self { length: body.length(), rest: Rest::Shared(Box::new(body)), ..Self::empty() }
    }

    /// Polls for the next frame. Small DATA frames of HTTP/2 that have come become one.
    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(self.poll_rest(cx));
        if !self.rest.is_shared() {
            return Poll::Ready(frame);
        }
        let mut data = match frame.map(|frame| frame.map(Frame::into_data)) {
            Some(Ok(Ok(data))) => data,
            Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(None),
        };
        let mut gathered = BytesMut::new();
        while data.len() + gathered.len() < ENOUGH
            && let Poll::Ready(Some(frame)) = self.poll_rest(cx)
        {
            match frame.map(Frame::into_data) {
                Ok(Ok(more)) => {
                    if gathered.is_empty() {
                        gathered.reserve(ENOUGH.max(data.len() + more.len()));
                        gathered.extend_from_slice(&data);
                        data.clear();
                    }
                    gathered.extend_from_slice(&more);
                }
                Ok(Err(trailers)) => self.after = Some(Box::new(Ok(trailers))),
                Err(error) => self.after = Some(Box::new(Err(error))),
            }
        }
        Poll::Ready(Some(Ok(Frame::data(if gathered.is_empty() { data } else { gathered.freeze() }))))
    }

    /// Polls for the next frame as it was read.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let (frame, has_ended) = match &mut self.rest {
            Rest::Ended => return Poll::Ready(None),
            Rest::Leased(lease) => {
                let frame = ready!(lease.connection.poll_frame(cx));
                (frame, lease.connection.is_answered())
            }
            Rest::Early(response) => {
                let frame = ready!(response.poll_frame(cx));
                (frame, response.has_ended())
            }
            Rest::Shared(body) => {
                let frame = ready!(body.poll_frame(cx));
                (frame, body.is_end_stream())
            }
        };
        let has_failed = matches!(frame, Some(Err(_)));
        if (frame.is_none() || has_failed || has_ended)
            && let Rest::Leased(lease) = mem::replace(&mut self.rest, Rest::Ended)
            && !has_failed
        {
            lease.end();
        }
        Poll::Ready(frame)
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = if !self.early.is_empty() {
            Some(Ok(Frame::data(mem::take(&mut self.early))))
        } else if let Some(after) = self.after.take() {
            Some(*after)
        } else {
            ready!(self.poll_gathered(cx))
        };
        if let (Some(length), Some(Ok(frame))) = (&mut self.length, &frame) {
            *length = length.saturating_sub(frame.data_ref().map_or(0, |data| data.len() as u64));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.early.is_empty()
            && self.after.is_none()
            && match &self.rest {
                Rest::Ended => true,
                Rest::Leased(_) | Rest::Early(_) => false,
                Rest::Shared(body) => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

/// An empty body, for layers that respond in the backend's place, such as tower-http's `TimeoutLayer`.
impl Default for ResponseBody {
    fn default() -> Self {
        Self::empty()
    }
}

impl fmt::Debug for ResponseBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseBody").finish_non_exhaustive()
    }
}

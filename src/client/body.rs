//! The body of a response: it owns the connection that it comes over, drives it, and gives it back at its end.

use std::{
    convert::Infallible,
    fmt,
    future::{Future, poll_fn},
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::{Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use tokio::{runtime::Handle, sync::oneshot};

use super::{dispatch::Dispatcher, http1::Connection};
use crate::error::{Error, ErrorKind};

/// The body of a [`Client`](super::Client)'s response.
///
/// It passes frames on as they are read; small frames that arrive together become one. At its end, its HTTP/1.1 connection returns
/// to the pool.
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
    /// What came behind data and can't be one frame with it: trailers, or an error. Boxed, for it's rare and large.
    after: Option<Box<Result<Frame<Bytes>, Error>>>,
    rest: Rest,
    /// How much there is to come, in bytes, if the backend has said so.
    length: Option<u64>,
}

enum Rest {
    Ended,
    /// An HTTP/1.1 body, and the connection that it comes over.
    Leased(Incoming, Lease),
    /// An HTTP/1.1 body of an early answer. A task carries the request's body on whether this one is read or not, and ends
    /// the exchange when the sender is dropped.
    Driven {
        body: Incoming,
        _held: oneshot::Sender<Infallible>,
    },
    /// An HTTP/2 body: a task of its own drives its connection.
    Shared(super::http2::Body),
}

/// A connection that is to go back to its pool.
pub(super) struct Lease {
    pub(super) connection: Box<Connection>,
    pub(super) dispatcher: Arc<Dispatcher>,
}

impl Lease {
    fn end(self) {
        self.dispatcher.put(self.connection);
    }

    /// Carries the exchange on for a body that is polled elsewhere. Without that, it ends.
    async fn drive(mut self, mut dropped: oneshot::Receiver<Infallible>) {
        poll_fn(|cx| match self.connection.poll_idle(cx) {
            Poll::Ready(()) => Poll::Ready(()),
            Poll::Pending => Pin::new(&mut dropped).poll(cx).map(drop),
        })
        .await;
        self.end();
    }
}

/// How much small frames make one, in bytes. Each costs more than to copy them, above all where it becomes a chunk.
const ENOUGH: usize = 16 * 1024;

impl ResponseBody {
    /// A body that comes over a leased connection. What came with the head is taken at once: a short answer is whole then,
    /// leaves as one frame, and the connection is free.
    ///
    /// # Errors
    ///
    /// What came with the head is cut: nothing of the response has been passed on yet, so that it can be another one.
    pub(super) fn leased(body: Incoming, lease: Lease, cx: &mut Context<'_>) -> Result<Self, Error> {
        let mut this = Self::new(&body);
        if body.is_end_stream() {
            lease.end();
            return Ok(this);
        }
        this.rest = Rest::Leased(body, lease);
        match this.poll_gathered(cx) {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => this.early = data,
                Err(trailers) => this.after = Some(Box::new(Ok(trailers))),
            },
            Poll::Ready(failed) => this.after = failed.map(Box::new),
            Poll::Pending => {}
        }
        match this.after.take() {
            Some(after) if after.is_err() => return after.map(|_| this),
            after => this.after = after,
        }
        Ok(this.uncoupled())
    }

    /// Has the request's body carried on by a task, if it's still under way: a client that reads nothing before it has sent
    /// everything would wait for ever.
    fn uncoupled(mut self) -> Self {
        if let Rest::Leased(_, lease) = &self.rest
            && lease.connection.is_uploading()
            && let Ok(runtime) = Handle::try_current()
            && let Rest::Leased(body, mut lease) = mem::replace(&mut self.rest, Rest::Ended)
        {
            // The size of frames isn't seen there.
            lease.connection.has_grown = true;
            let (held, dropped) = oneshot::channel();
            runtime.spawn(lease.drive(dropped));
            self.rest = Rest::Driven { body, _held: held };
        }
        self
    }

    pub(super) fn empty() -> Self {
        Self { early: Bytes::new(), after: None, rest: Rest::Ended, length: Some(0) }
    }

    pub(super) fn shared(body: super::http2::Body) -> Self {
        Self { length: body.length(), rest: Rest::Shared(body), ..Self::empty() }
    }

    fn new(body: &Incoming) -> Self {
        Self { length: body.size_hint().exact(), ..Self::empty() }
    }

    /// The next frame, with the data behind it that is there already.
    fn poll_gathered(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let mut data = match ready!(self.poll_rest(cx)).map(|frame| frame.map(Frame::into_data)) {
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

    /// The next frame as it was read.
    fn poll_rest(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let (frame, ended) = match &mut self.rest {
            Rest::Ended => return Poll::Ready(None),
            Rest::Leased(body, lease) => {
                let frame = ready!(lease.connection.poll_frame(body, cx));
                (frame.map(|frame| frame.map_err(failed)), body.is_end_stream())
            }
            Rest::Driven { body, .. } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx));
                (frame.map(|frame| frame.map_err(failed)), body.is_end_stream())
            }
            Rest::Shared(body) => {
                let frame = ready!(body.poll_frame(cx));
                (frame, body.is_end_stream())
            }
        };
        let failed = matches!(frame, Some(Err(_)));
        if (frame.is_none() || failed || ended)
            && let Rest::Leased(_, lease) = mem::replace(&mut self.rest, Rest::Ended)
            && !failed
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
                Rest::Leased(body, _) | Rest::Driven { body, .. } => body.is_end_stream(),
                Rest::Shared(body) => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::new, SizeHint::with_exact)
    }
}

fn failed(error: hyper::Error) -> Error {
    Error::with_source(ErrorKind::ResponseBody, error)
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

//! The body of a response: it owns the connection that it comes over, drives it, and gives it back at its end.

use std::{
    fmt, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;

use super::{http1::Connection, pool::Pool};
use crate::error::{Error, ErrorKind};

/// The body of a [`Client`](super::Client)'s response.
///
/// Its frames come as they are read. Dropped before its end, it closes its HTTP/1.1 connection, or resets its HTTP/2 stream.
pub struct ClientBody {
    /// A frame that came with the head.
    early: Option<Result<Frame<Bytes>, Error>>,
    rest: Rest,
}

enum Rest {
    Ended,
    /// An HTTP/1.1 body, and the connection that it comes over.
    Leased(Incoming, Lease),
    /// An HTTP/2 body: a task of its own drives its connection.
    #[cfg(feature = "http2")]
    Shared {
        body: Incoming,
        _stream: super::http2::Stream,
    },
}

/// A connection that is to go back to its pool.
pub(super) struct Lease {
    pub(super) connection: Box<Connection>,
    /// `None`: not after what was sent on it.
    pub(super) pool: Option<Arc<Pool>>,
}

impl Lease {
    fn end(self) {
        if let Some(pool) = self.pool {
            pool.put(self.connection);
        }
    }
}

impl ClientBody {
    /// A body that comes over a leased connection. What came with the head is taken at once: a short answer is whole then,
    /// leaves as one frame, and the connection is free.
    pub(super) fn leased(mut body: Incoming, mut lease: Lease, cx: &mut Context<'_>) -> Self {
        let is_short = body.size_hint().exact().is_some_and(|length| 0 < length && length <= SHORT);
        let early = match is_short.then(|| lease.connection.poll_frame(&mut body, cx)) {
            Some(Poll::Ready(frame)) => frame.map(|frame| frame.map_err(failed)),
            _ => None,
        };
        let rest = if body.is_end_stream() {
            lease.end();
            Rest::Ended
        } else {
            Rest::Leased(body, lease)
        };
        Self { early, rest }
    }

    pub(super) fn empty() -> Self {
        Self { early: None, rest: Rest::Ended }
    }

    #[cfg(feature = "http2")]
    pub(super) fn shared(body: Incoming, stream: super::http2::Stream) -> Self {
        Self { early: None, rest: Rest::Shared { body, _stream: stream } }
    }
}

/// What may come in one read with its head, in bytes.
const SHORT: u64 = 64 * 1024;

impl http_body::Body for ClientBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        if let Some(frame) = self.early.take() {
            return Poll::Ready(Some(frame));
        }
        let (frame, ended) = match &mut self.rest {
            Rest::Ended => return Poll::Ready(None),
            Rest::Leased(body, lease) => {
                let frame = ready!(lease.connection.poll_frame(body, cx));
                (frame.map(|frame| frame.map_err(failed)), body.is_end_stream())
            }
            #[cfg(feature = "http2")]
            Rest::Shared { body, .. } => {
                let frame = ready!(Pin::new(&mut *body).poll_frame(cx)).map(|frame| frame.map_err(failed));
                let ended = body.is_end_stream();
                // hyper takes a reset without an error for an end. For a response it's a cut.
                (if frame.is_none() && !ended { Some(Err(ErrorKind::ResponseBody.into())) } else { frame }, ended)
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

    fn is_end_stream(&self) -> bool {
        self.early.is_none()
            && match &self.rest {
                Rest::Ended => true,
                Rest::Leased(body, _) => body.is_end_stream(),
                #[cfg(feature = "http2")]
                Rest::Shared { body, .. } => body.is_end_stream(),
            }
    }

    fn size_hint(&self) -> SizeHint {
        let rest = match &self.rest {
            Rest::Ended => SizeHint::with_exact(0),
            Rest::Leased(body, _) => body.size_hint(),
            #[cfg(feature = "http2")]
            Rest::Shared { body, .. } => body.size_hint(),
        };
        match &self.early {
            Some(Ok(frame)) => {
                let early = frame.data_ref().map_or(0, |data| data.len() as u64);
                match rest.exact() {
                    Some(rest) => SizeHint::with_exact(early + rest),
                    None => SizeHint::new(),
                }
            }
            _ => rest,
        }
    }
}

fn failed(error: hyper::Error) -> Error {
    Error::with_source(ErrorKind::ResponseBody, error)
}

impl fmt::Debug for ClientBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientBody").finish_non_exhaustive()
    }
}

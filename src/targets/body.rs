//! The body of a target's response.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::registry::Lease;

pin_project! {
    /// The body of a [`TargetService`](super::TargetService)'s response. The target's pool is in use until its end.
    #[derive(Debug)]
    pub struct TargetBody<B> {
        #[pin]
        inner: B,
        lease: Option<Lease>,
    }
}

impl<B: Body> TargetBody<B> {
    pub(super) fn new(inner: B, lease: Option<Lease>) -> Self {
        let lease = lease.filter(|_| !inner.is_end_stream());
        Self { inner, lease }
    }
}

impl<B: Body> Body for TargetBody<B> {
    type Data = B::Data;
    type Error = B::Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let frame = ready!(this.inner.as_mut().poll_frame(cx));
        // A server doesn't poll a body that has reached its length.
        if !matches!(frame, Some(Ok(_))) || this.inner.is_end_stream() {
            *this.lease = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

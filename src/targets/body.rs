//! The body of a target's response.

use std::{
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::BoxError;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::registry::Lease;
use crate::balance::BalanceBody;

pin_project! {
    /// The body of a [`TargetService`](super::TargetService)'s response. The target's pool is in use until its end.
    #[derive(Debug)]
    pub struct TargetBody<B> {
        #[pin]
        inner: Inner<B>,
        lease: Option<Lease>,
    }
}

pin_project! {
    #[derive(Debug)]
    #[project = InnerProj]
    enum Inner<B> {
        One { #[pin] body: B },
        Set { #[pin] body: BalanceBody<B> },
    }
}

impl<B> TargetBody<B> {
    /// The body of a backend's response.
    pub(super) fn one(body: B, lease: Option<Lease>) -> Self {
        Self { inner: Inner::One { body }, lease }
    }

    /// The body of the response of one of several backends.
    pub(super) fn of_set(body: BalanceBody<B>, lease: Option<Lease>) -> Self {
        Self { inner: Inner::Set { body }, lease }
    }
}

impl<B: Body<Error: Into<BoxError>>> Body for TargetBody<B> {
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = match self.as_mut().project().inner.project() {
            InnerProj::One { body } => ready!(body.poll_frame(cx)).map(|frame| frame.map_err(Into::into)),
            InnerProj::Set { body } => ready!(body.poll_frame(cx)),
        };
        // A server doesn't poll a body that has reached its length.
        if !matches!(frame, Some(Ok(_))) || self.is_end_stream() {
            *self.project().lease = None;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        match &self.inner {
            Inner::One { body } => body.is_end_stream(),
            Inner::Set { body } => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.inner {
            Inner::One { body } => body.size_hint(),
            Inner::Set { body } => body.size_hint(),
        }
    }
}

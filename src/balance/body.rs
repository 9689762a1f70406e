//! The body of a balanced response, which holds its attempt.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::BoxError;
use http_body::{Body, Frame, SizeHint};
use pin_project_lite::pin_project;

use super::attempt::InFlight;
use crate::{abandoned, error::ErrorKind};

pin_project! {
    /// The body of a [`Balance`](super::Balance)'s response: that of the member's service.
    ///
    /// The request counts as in flight at its member until the end of the body, or until the body is dropped.
    #[derive(Debug)]
    pub struct BalanceBody<B> {
        #[pin]
        pub(super) inner: B,
        pub(super) in_flight: Option<InFlight>,
    }
}

/// Reports that the response has ended well, and ends the attempt.
pub(super) fn ended_well(in_flight: &mut Option<InFlight>) {
    if let Some(in_flight) = in_flight.take() {
        in_flight.ended_well();
    }
}

impl<B> Body for BalanceBody<B>
where
    B: Body<Error: Into<BoxError>>,
{
    type Data = B::Data;
    type Error = BoxError;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        let Poll::Ready(frame) = this.inner.as_mut().poll_frame(cx) else {
            if abandoned::is_overdue()
                && let Some(in_flight) = this.in_flight.take()
            {
                in_flight.given_up(ErrorKind::ResponseBodyTimeout);
            }
            return Poll::Pending;
        };
        let frame = match frame {
            Some(Ok(frame)) => {
                if frame.is_trailers() || this.inner.is_end_stream() {
                    ended_well(this.in_flight);
                }
                Some(Ok(frame))
            }
            Some(Err(error)) => {
                let error = error.into();
                if let Some(in_flight) = this.in_flight.take() {
                    in_flight.body_failed(&error);
                }
                Some(Err(error))
            }
            None => {
                ended_well(this.in_flight);
                None
            }
        };
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

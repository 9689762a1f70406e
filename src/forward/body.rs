//! Bodies on their way: passed frame by frame as they come, watched for standstill.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Version};
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    expect::Expectation,
    idle::Idle,
    upload::{ExchangeUpload, Turn, Upload},
};
use crate::{
    error::{Error, ErrorKind, classify_request_body, classify_response_body},
    headers::trailers::{self, ForbiddenTrailers},
};

pin_project! {
    /// The client's body. Its error is what stopped it, and says whose fault that was.
    #[derive(Debug)]
    pub(super) struct RequestBody {
        #[pin]
        inner: Body,
        #[pin]
        idle: Idle,
        upload: Arc<Upload>,
        version: Version,
        forbidden: Option<ForbiddenTrailers>,
        ended: bool,
        #[pin]
        expectation: Option<Expectation>,
    }

    impl PinnedDrop for RequestBody {
        fn drop(this: Pin<&mut Self>) {
            // Nobody asks for more: at the end of its Content-Length, hyper doesn't ask whether this is the end.
            this.upload.set(Turn::Done);
        }
    }
}

impl RequestBody {
    /// `version` is the client's. Without `forbidden`, the body has no trailers. With an `expectation`, nothing is asked of
    /// the client before that is met.
    pub(super) fn new(
        inner: Body,
        version: Version,
        forbidden: Option<ForbiddenTrailers>,
        expectation: Option<Expectation>,
        idle_timeout: Option<Duration>,
        upload: Arc<Upload>,
    ) -> Self {
        Self { inner, idle: Idle::new(idle_timeout), upload, version, forbidden, ended: false, expectation }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        if let Some(expectation) = this.expectation.as_mut().as_pin_mut() {
            ready!(expectation.poll(cx));
            this.expectation.set(None);
        }
        let polled = if *this.ended { Poll::Ready(None) } else { this.inner.as_mut().poll_frame(cx) };
        let frame = match polled {
            Poll::Ready(None)
                if !this.inner.is_end_stream()
                    && let Some(confirmation) = this.upload.confirmation() =>
            {
                if !*this.ended {
                    *this.ended = true;
                    this.upload.set(Turn::Done);
                }
                let is_end = ready!(confirmation.poll_end(cx));
                (!is_end).then(|| Err(ErrorKind::ClientGone.into()))
            }
            Poll::Ready(frame) => {
                frame.map(|frame| frame.map_err(|error| classify_request_body(error.into(), *this.version)))
            }
            Poll::Pending => {
                this.upload.wait_for_client();
                // Once the response's head is through, what comes of the response shows that the exchange is alive.
                ready!(this.idle.as_mut().poll_elapsed(cx, || this.upload.answered()));
                Some(Err(ErrorKind::RequestBodyTimeout.into()))
            }
        };
        this.idle.stop();
        let turn = match frame {
            Some(Ok(_)) if !this.inner.is_end_stream() => Turn::Backend,
            _ => Turn::Done,
        };
        if let Some(Err(error)) = &frame {
            this.upload.fail(error);
        }
        this.upload.set(turn);
        let forbidden = this.forbidden.as_ref();
        Poll::Ready(frame.and_then(|frame| {
            match frame {
                Ok(frame) => without_trailers(frame, |trailers| match forbidden {
                    Some(forbidden) => forbidden.remove_from(trailers),
                    None => trailers.clear(),
                })
                .map(Ok),
                failed => Some(failed),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

pin_project! {
    /// The backend's body. An error stays an error: the client sees an abort and never a clean end.
    #[derive(Debug)]
    pub(super) struct ResponseBody<B> {
        #[pin]
        inner: B,
        #[pin]
        idle: Idle,
        hide_length: bool,
        upload: Option<ExchangeUpload>,
        failure: Option<Error>,
    }
}

impl<B: http_body::Body> ResponseBody<B> {
    /// `upload` is the request's body, if it had one: it may still be under way.
    pub(super) fn new(
        inner: B,
        idle_timeout: Option<Duration>,
        hide_length: bool,
        upload: Option<ExchangeUpload>,
    ) -> Self {
        if let Some(upload) = &upload {
            upload.answer();
            if inner.is_end_stream() {
                upload.complete();
            }
        }
        Self { inner, idle: Idle::new(idle_timeout), hide_length, upload, failure: None }
    }
}

impl<B> http_body::Body for ResponseBody<B>
where
    B: http_body::Body<Data = Bytes>,
    B::Error: Into<BoxError>,
{
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        if let Some(failure) = this.failure.take() {
            return Poll::Ready(Some(Err(failure)));
        }
        if let Some(upload) = this.upload {
            upload.polled(cx);
        }
        let mut error: Error = match this.inner.as_mut().poll_frame(cx) {
            // An upload that flows shows that the exchange is alive.
            Poll::Pending => match this.idle.poll_elapsed(cx, || this.upload.as_ref()?.flowed()) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => ErrorKind::ResponseBodyTimeout.into(),
            },
            Poll::Ready(Some(Err(error))) => {
                let error = classify_response_body(error.into());
                this.upload.as_ref().map_or(error.clone(), |upload| upload.cause_of(error))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.as_mut().stop();
                if let Some(upload) = this.upload {
                    upload.answer();
                    if frame.is_trailers() || this.inner.is_end_stream() {
                        upload.complete();
                    }
                }
                return Poll::Ready(without_trailers(frame, trailers::remove_from_response).map(Ok));
            }
            Poll::Ready(None) => {
                if let Some(upload) = this.upload {
                    upload.complete();
                }
                return Poll::Ready(None);
            }
        };
        if !error.is_reported() {
            super::failure::trace(&error);
            error.report();
        }
        // hyper's server writes when the body is pending, and closes the connection on an error without writing what it has
        // buffered. The head, and the frames before the error, go out first, so that the client sees a cut response.
        *this.failure = Some(error);
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.failure.is_none() && self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.hide_length { SizeHint::new() } else { self.inner.size_hint() }
    }
}

/// The frame without the trailers that `remove` removes; `None`, the end of the body, if no trailer is left.
fn without_trailers(mut frame: Frame<Bytes>, remove: impl FnOnce(&mut HeaderMap)) -> Option<Frame<Bytes>> {
    let Some(trailers) = frame.trailers_mut() else { return Some(frame) };
    remove(trailers);
    (!trailers.is_empty()).then_some(frame)
}

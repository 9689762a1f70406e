//! The bodies of both directions: forwarded frame by frame, with an idle timeout.

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
    upload::{ExchangeUpload, Upload, WaitingOn},
};
use crate::{
    abandoned::abandon,
    error::{Error, ErrorKind, classify_request_body, classify_response_body},
    headers::trailers::{self, ForbiddenTrailers},
    observe,
};

pin_project! {
    /// The client's body. Its error is the crate's [`Error`], which attributes the failure to the client or the
    /// backend.
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
        // Boxed, because few requests have one and its timer is large.
        expectation: Option<Pin<Box<Expectation>>>,
    }

    impl PinnedDrop for RequestBody {
        fn drop(this: Pin<&mut Self>) {
            // hyper doesn't poll for the end of a body whose `Content-Length` it has read.
            this.upload.end();
        }
    }
}

impl RequestBody {
    /// `version` is the client's. `forbidden` is `None` for a body that can't have trailers. With an `expectation`, the
    /// client's body isn't polled before that is met.
    pub(super) fn new(
        inner: Body,
        version: Version,
        forbidden: Option<ForbiddenTrailers>,
        expectation: Option<Pin<Box<Expectation>>>,
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
        if let Some(expectation) = this.expectation {
            ready!(expectation.as_mut().poll(cx));
            *this.expectation = None;
        }
        let polled = if *this.ended { Poll::Ready(None) } else { this.inner.as_mut().poll_frame(cx) };
        let frame = match polled {
            Poll::Ready(None)
                if !this.inner.is_end_stream()
                    && let Some(confirmation) = this.upload.end_confirmation() =>
            {
                if !*this.ended {
                    *this.ended = true;
                    this.upload.end();
                }
                let is_end = ready!(confirmation.poll_end(cx));
                (!is_end).then(|| Err(ErrorKind::ClientGone.into()))
            }
            Poll::Ready(frame) => {
                frame.map(|frame| frame.map_err(|error| classify_request_body(error.into(), *this.version)))
            }
            Poll::Pending => {
                this.upload.wait_for_client();
                // After the response's head, the frames of the response keep the exchange alive too.
                ready!(this.idle.as_mut().poll_elapsed(cx, || this.upload.last_response_progress()));
                Some(Err(ErrorKind::RequestBodyTimeout.into()))
            }
        };
        this.idle.stop();
        if let Some(Err(error)) = &frame {
            this.upload.fail(error);
        }
        match frame {
            Some(Ok(_)) if !this.inner.is_end_stream() => this.upload.wait_for_backend(),
            _ => this.upload.end(),
        }
        let forbidden = this.forbidden.as_ref();
        Poll::Ready(frame.and_then(|frame| {
            match frame {
                Ok(frame) => filter_trailers(frame, |trailers| match forbidden {
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
    /// The backend's body. Its errors are returned, so that the client sees an aborted response and not a complete one.
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
    /// `upload` is the request's body, if it had one. It may still be in progress.
    pub(super) fn new(
        inner: B,
        idle_timeout: Option<Duration>,
        hide_length: bool,
        upload: Option<ExchangeUpload>,
    ) -> Self {
        if let Some(upload) = &upload {
            upload.response_progressed();
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
            upload.exchange_polled(cx);
        }
        let (mut polled, mut member) = (this.inner.as_mut().poll_frame(cx), None);
        if polled.is_pending() {
            // The frames of the upload keep the exchange alive too.
            ready!(this.idle.as_mut().poll_elapsed(cx, || this.upload.as_ref()?.last_request_progress()));
            // A balancer has to learn why the body ends. The backend isn't late if it waits for the client's upload.
            if this.upload.as_ref().is_none_or(|upload| upload.waiting_on().0 != WaitingOn::Client) {
                (polled, member) = abandon(|| this.inner.as_mut().poll_frame(cx));
            }
        }
        let mut error: Error = match polled {
            Poll::Pending => Error::from(ErrorKind::ResponseBodyTimeout).with_member(member),
            Poll::Ready(Some(Err(error))) => {
                let error = classify_response_body(error.into());
                this.upload.as_ref().map_or(error.clone(), |upload| upload.root_cause(error))
            }
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.as_mut().stop();
                if let Some(upload) = this.upload {
                    upload.response_progressed();
                    if frame.is_trailers() || this.inner.is_end_stream() {
                        upload.complete();
                    }
                }
                return Poll::Ready(filter_trailers(frame, trailers::remove_from_response).map(Ok));
            }
            Poll::Ready(None) => {
                if let Some(upload) = this.upload {
                    upload.complete();
                }
                return Poll::Ready(None);
            }
        };
        if !error.is_reported() {
            observe::failure(&error);
            error.report();
        }
        // On an error, hyper's server closes the connection without flushing its buffer; on `Pending`, it flushes.
        // Returning the error at the next poll therefore sends the head and the earlier frames first, and the client
        // sees a truncated response.
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

/// Applies `remove` to a frame of trailers. `None`, the end of the body, if no trailer is left.
fn filter_trailers(mut frame: Frame<Bytes>, remove: impl FnOnce(&mut HeaderMap)) -> Option<Frame<Bytes>> {
    let Some(trailers) = frame.trailers_mut() else { return Some(frame) };
    remove(trailers);
    (!trailers.is_empty()).then_some(frame)
}

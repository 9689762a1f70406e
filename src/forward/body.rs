//! Bodies on their way: passed frame by frame as they come, watched for standstill.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http_body::{Frame, SizeHint};
use pin_project_lite::pin_project;

use super::{
    idle::Idle,
    upload::{Turn, Upload},
};
use crate::{
    error::{Error, ErrorKind, classify_request_body},
    headers::framing,
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
    }
}

impl RequestBody {
    pub(super) fn new(inner: Body, idle_timeout: Option<Duration>, upload: Arc<Upload>) -> Self {
        Self { inner, idle: Idle::new(idle_timeout), upload }
    }
}

impl http_body::Body for RequestBody {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let mut this = self.project();
        match this.inner.as_mut().poll_frame(cx) {
            Poll::Pending => {
                this.upload.set(Turn::Client);
                this.idle.poll_elapsed(cx).map(|()| Some(Err(ErrorKind::RequestBodyTimeout.into())))
            }
            Poll::Ready(frame) => {
                this.idle.stop();
                let mut frame = frame.map(|frame| frame.map_err(|error| classify_request_body(error.into())));
                if let Some(Ok(frame)) = &mut frame
                    && let Some(trailers) = frame.trailers_mut()
                {
                    framing::remove_harmful_trailers(trailers);
                }
                let done = frame.is_none() || this.inner.is_end_stream();
                this.upload.set(if done { Turn::Done } else { Turn::Backend });
                Poll::Ready(frame)
            }
        }
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
    }
}

impl<B> ResponseBody<B> {
    pub(super) fn new(inner: B, idle_timeout: Option<Duration>, hide_length: bool) -> Self {
        Self { inner, idle: Idle::new(idle_timeout), hide_length }
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
        let error = match this.inner.poll_frame(cx) {
            Poll::Pending => match this.idle.poll_elapsed(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(()) => ErrorKind::ResponseBodyTimeout.into(),
            },
            Poll::Ready(Some(Err(error))) => Error::with_source(ErrorKind::ResponseBody, error),
            Poll::Ready(Some(Ok(frame))) => {
                this.idle.as_mut().stop();
                return Poll::Ready(Some(Ok(frame)));
            }
            Poll::Ready(None) => return Poll::Ready(None),
        };
        super::failure::trace(&error);
        Poll::Ready(Some(Err(error)))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.hide_length { SizeHint::new() } else { self.inner.size_hint() }
    }
}

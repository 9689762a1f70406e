//! HTTP/2 without the feature `http2`: a client can't be set to use it, so no connection is opened, and no stream
//! exists.

use std::{
    convert::Infallible,
    sync::{Arc, Weak},
    task::{Context, Poll},
    time::Duration,
};

use axum_core::{BoxError, body::Body as RequestBody};
use bytes::Bytes;
use http::{Request, Response};
use http_body::Frame;

use super::connect;
use crate::error::Error;

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Options {}

impl Options {
    pub(super) fn with_limits(self, _: Option<Duration>, _: ResponseHeadLimit) -> Self {
        self
    }
}

#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "HTTP/2 isn't offered")]
pub(super) struct ResponseHeadLimit {
    pub(super) bytes: usize,
    pub(super) fields: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    Shared,
    Alone,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct HeadSize;

impl HeadSize {
    pub(super) fn of(_: &Request<RequestBody>) -> Self {
        Self
    }
}

#[expect(dead_code, reason = "HTTP/2 isn't offered")]
pub(super) trait Observer: Send + Sync {
    fn capacity_changed(self: Arc<Self>);
}

#[derive(Debug)]
pub(super) struct Pool;

impl Pool {
    pub(super) fn new(_: Options) -> Arc<Self> {
        Arc::new(Self)
    }

    pub(super) fn take(&self) -> (Option<Stream>, Removed) {
        (None, Removed::default())
    }

    pub(super) fn take_silent(&self) -> (Option<Stream>, Removed) {
        (None, Removed::default())
    }

    pub(super) fn remove_unused(&self) -> Option<Removed> {
        None
    }

    pub(super) fn remove_all_unused(&self) -> Removed {
        Removed::default()
    }

    pub(super) fn lacks_connect(&self) -> bool {
        true
    }

    #[expect(clippy::unused_async, reason = "it opens a connection with the feature")]
    pub(super) async fn open(
        self: &Arc<Self>,
        _: connect::Stream,
        _: Share,
        _: Weak<dyn Observer>,
    ) -> Result<Stream, BoxError> {
        Err("HTTP/2 needs the feature `http2`".into())
    }
}

#[derive(Debug, Default)]
pub(super) struct Removed(Vec<Stream>);

impl Removed {
    pub(super) fn append(&mut self, other: &mut Self) {
        self.0.append(&mut other.0);
    }
}

#[derive(Debug)]
pub(super) struct Stream(Box<Infallible>);

pub(super) struct SendError {
    pub(super) error: Error,
    pub(super) unprocessed: Option<Request<RequestBody>>,
}

impl Stream {
    pub(super) fn admit(&self, _: HeadSize) -> Result<Share, Error> {
        match *self.0 {}
    }

    pub(super) fn can_connect(&self) -> bool {
        match *self.0 {}
    }
}

#[expect(clippy::unused_async, reason = "it waits for the response with the feature")]
pub(super) async fn send(stream: Stream, _: Request<RequestBody>, _: HeadSize) -> Result<Response<Body>, SendError> {
    match *stream.0 {}
}

pub(super) fn as_http2(request: Request<RequestBody>) -> Result<Request<RequestBody>, Error> {
    Ok(request)
}

pub(super) fn as_http1(request: Request<RequestBody>) -> Request<RequestBody> {
    request
}

pub(super) mod websocket {
    use super::{Body, Error, HeadSize, Request, RequestBody, Response, Stream};

    pub(in super::super) fn is_requested<B>(_: &Request<B>) -> bool {
        false
    }

    #[expect(clippy::unused_async, reason = "it waits for the response with the feature")]
    pub(in super::super) async fn open(
        stream: Stream,
        _: Request<RequestBody>,
        _: HeadSize,
    ) -> Result<Response<Body>, Error> {
        match *stream.0 {}
    }
}

#[derive(Debug)]
pub(super) struct Body(Infallible);

impl Body {
    pub(super) fn length(&self) -> Option<u64> {
        match self.0 {}
    }

    pub(super) fn poll_frame(&mut self, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match self.0 {}
    }

    pub(super) fn is_end_stream(&self) -> bool {
        match self.0 {}
    }
}

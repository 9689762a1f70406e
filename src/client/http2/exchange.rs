//! A request over a stream, and the body of its response.

use std::{future::poll_fn, task::Poll};

use axum_core::body::Body as RequestBody;
use http::{Request, Response};
use hyper::body::Incoming;

use super::{
    body::Body,
    head::HeadSize,
    stream::{SendError, Stream},
};

/// Sends a request, which [`as_http2`](super::as_http2) has made one of HTTP/2.
///
/// # Cancel safety
///
/// Dropping the future resets the stream.
pub(in super::super) async fn send(
    stream: Stream,
    request: Request<RequestBody>,
    head: HeadSize,
) -> Result<Response<Body>, SendError> {
    let (response, stream) = stream.exchange(request, head).await?;
    Ok(read(response, stream).await)
}

/// Makes the response's body, which reads from the stream.
pub(super) async fn read(response: Response<Incoming>, stream: Stream) -> Response<Body> {
    let mut received = Some((response, stream));
    poll_fn(|cx| match received.take() {
        Some((response, stream)) => Poll::Ready(response.map(|body| Body::new(body, stream, cx))),
        None => Poll::Pending,
    })
    .await
}

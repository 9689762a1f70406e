//! The response to one request of the client.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::body::Body;
use http::{Request, Response, StatusCode};

use super::{
    body::ResponseBody,
    dispatch::{Dispatcher, Exchange, Lease, Outcome},
};
use crate::error::Error;

/// The future of a [`Client`](super::Client)'s response.
///
/// # Cancel safety
///
/// Dropping it closes the connection that the request was sent on, or resets its stream. A request that waits for a
/// connection leaves the queue; a connection that is being opened for it goes to another request, or to the pool.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    exchange: Exchange,
}

impl ResponseFuture {
    pub(super) fn new(dispatcher: Arc<Dispatcher>, request: Request<Body>) -> Self {
        Self { exchange: Exchange::new(dispatcher, request) }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.exchange {
                Exchange::Http1(exchange) => {
                    let (head, lease) = ready!(Pin::new(exchange).poll(cx))?;
                    return Poll::Ready(respond(head, lease, cx));
                }
                Exchange::Http2(exchange) => match ready!(Pin::new(exchange).poll(cx))? {
                    Outcome::Response(response) => return Poll::Ready(Ok(response.map(ResponseBody::shared))),
                    Outcome::Http1(exchange) => this.exchange = Exchange::Http1(exchange),
                },
            }
        }
    }
}

fn respond(mut head: Response<()>, lease: Lease, cx: &mut Context<'_>) -> Result<Response<ResponseBody>, Error> {
    if head.status() == StatusCode::SWITCHING_PROTOCOLS {
        head.extensions_mut().insert(lease.into_connection().into_switched());
        return Ok(head.map(|()| ResponseBody::empty()));
    }
    let body = ResponseBody::leased(lease, cx)?;
    Ok(head.map(|()| body))
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

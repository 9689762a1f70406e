//! A request that may go over HTTP/2.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::body::Body;
use http::{Request, Response, header::UPGRADE};

use super::{
    super::{
        http1::{Checkout, Freshness},
        http2::{self, HeadSize, Share, as_http1, as_http2, websocket},
        reuse::Reuse,
    },
    acquire::Acquire,
    demand::Grant,
    dispatcher::Dispatcher,
    http1::Http1Exchange,
};
use crate::error::Error;

/// The future of a request that may go over HTTP/2.
pub(in crate::client) struct Http2Exchange {
    outcome: Pin<Box<dyn Future<Output = Result<Outcome, Error>> + Send>>,
}

/// The outcome of a request.
#[cfg_attr(
    feature = "http2",
    expect(clippy::large_enum_variant, reason = "nearly all are responses, and a box would cost each an allocation")
)]
pub(in crate::client) enum Outcome {
    Response(Response<http2::Body>),
    /// The backend has chosen HTTP/1.1, or only that carries the request.
    Http1(Http1Exchange),
}

impl Http2Exchange {
    /// Returns whether HTTP/2 may carry a request.
    ///
    /// Credentials that authenticate a connection (RFC 4559, section 6) never go over HTTP/2, because other clients'
    /// requests share its connections. Upgrades go over HTTP/1.1 where the client can insist on that, which is over
    /// TLS.
    pub(in crate::client) fn may_carry(dispatcher: &Dispatcher, request: &Request<Body>, reuse: &Reuse) -> bool {
        dispatcher.speaks_http2()
            && *reuse == Reuse::Shared
            && !(request.headers().contains_key(UPGRADE) && dispatcher.can_insist_on_http1())
    }

    pub(in crate::client) fn new(dispatcher: Arc<Dispatcher>, request: Request<Body>, freshness: Freshness) -> Self {
        Self { outcome: Box::pin(exchange(dispatcher, request, freshness)) }
    }
}

impl Future for Http2Exchange {
    type Output = Result<Outcome, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.outcome.as_mut().poll(cx)
    }
}

impl fmt::Debug for Http2Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http2Exchange").finish_non_exhaustive()
    }
}

/// Sends a request, and resends it if the backend can't have processed it.
async fn exchange(
    dispatcher: Arc<Dispatcher>,
    mut request: Request<Body>,
    freshness: Freshness,
) -> Result<Outcome, Error> {
    let is_upgrade = request.headers().contains_key(UPGRADE);
    if is_upgrade && (dispatcher.http2.lacks_connect() || !websocket::is_requested(&request)) {
        return Ok(Outcome::Http1(Http1Exchange::new(dispatcher, request, freshness, Reuse::Shared)));
    }
    let head = HeadSize::of(&request);
    // An upgrade has a connection of its own, as in HTTP/1.1, because small frames that a tunnel's client doesn't read
    // end the connection.
    let share = if is_upgrade { Share::Alone } else { Share::Shared };
    let stream = match acquire_for(&dispatcher, share, freshness, head).await {
        Ok(Grant::Http2(stream)) => stream,
        Ok(Grant::Http1(checkout)) => return Ok(over_http1(dispatcher, checkout, request)),
        Err(error) => return Err(error.with_unsent(request)),
    };
    if is_upgrade {
        if !stream.can_connect() {
            drop(stream);
            // HTTP/1.1 carries it, if the backend speaks that, too.
            return Ok(Outcome::Http1(Http1Exchange::new(dispatcher, request, freshness, Reuse::Shared)));
        }
        return websocket::open(stream, request, head).await.map(Outcome::Response);
    }
    request = as_http2(request)?;
    let unprocessed = match http2::send(stream, request, head).await {
        Ok(response) => return Ok(Outcome::Response(response)),
        Err(failed) => failed.unprocessed.ok_or(failed.error)?,
    };
    match acquire_for(&dispatcher, Share::Shared, freshness, head).await {
        Ok(Grant::Http2(stream)) => match http2::send(stream, unprocessed, head).await {
            Ok(response) => Ok(Outcome::Response(response)),
            Err(failed) => Err(match failed.unprocessed {
                Some(unprocessed) => failed.error.with_unsent(as_http1(unprocessed)),
                None => failed.error,
            }),
        },
        // The backend chose HTTP/1.1 on the new connection.
        Ok(Grant::Http1(checkout)) => Ok(over_http1(dispatcher, checkout, as_http1(unprocessed))),
        Err(error) => Err(error.with_unsent(as_http1(unprocessed))),
    }
}

/// Continues over HTTP/1.1.
fn over_http1(dispatcher: Arc<Dispatcher>, checkout: Checkout, request: Request<Body>) -> Outcome {
    Outcome::Http1(Http1Exchange::over(dispatcher, checkout, request, Reuse::Shared))
}

/// Waits for a connection that may carry a request with such a head.
async fn acquire_for(
    dispatcher: &Arc<Dispatcher>,
    share: Share,
    freshness: Freshness,
    head: HeadSize,
) -> Result<Grant, Error> {
    let grant = acquire(dispatcher, share, freshness).await?;
    let Grant::Http2(stream) = &grant else { return Ok(grant) };
    match stream.admit(head)? {
        Share::Alone if share == Share::Shared => {
            drop(grant);
            let grant = acquire(dispatcher, Share::Alone, freshness).await?;
            if let Grant::Http2(stream) = &grant {
                // Another connection may have another limit.
                stream.admit(head)?;
            }
            Ok(grant)
        }
        _ => Ok(grant),
    }
}

async fn acquire(dispatcher: &Arc<Dispatcher>, share: Share, freshness: Freshness) -> Result<Grant, Error> {
    if share == Share::Shared
        && let Some(stream) = dispatcher.take_stream()
    {
        return Ok(Grant::Http2(stream));
    }
    Acquire::new(dispatcher, share.into(), freshness, None).await
}

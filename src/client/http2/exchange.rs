//! One exchange over HTTP/2: a place on a connection, and the response on its stream.

use std::sync::Arc;

use axum_core::body::Body as RequestBody;
use http::{Request, Response, header::UPGRADE};

use super::{
    super::{
        dispatch::{Checkout, Dispatcher, Freshness},
        reuse::Reuse,
    },
    Taken,
    body::Body,
    convert::{as_http1, as_http2},
    head::{HeadSize, Share},
    websocket,
};
use crate::error::Error;

/// What becomes of a request that HTTP/2 is meant for.
pub(in super::super) enum Outcome {
    Answered(Response<Body>),
    /// The backend has chosen HTTP/1.1, or nothing else carries it.
    Http1(Checkout, Request<RequestBody>),
}

impl Dispatcher {
    /// Whether HTTP/2 is to be spoken for a request.
    ///
    /// Credentials that authenticate a connection (RFC 4559, section 6) never go over HTTP/2, because other clients' requests
    /// share its connections: they need HTTP/1.1 and a connection of their own. Upgrades are HTTP/1.1's where a connection
    /// without the choice can be made for them, which is over TLS.
    pub(in super::super) fn is_for_http2(&self, request: &Request<RequestBody>, reuse: &Reuse) -> bool {
        self.http2.enabled
            && *reuse == Reuse::Shared
            && !(request.headers().contains_key(UPGRADE) && self.connector.can_insist_on_http1())
    }
}

/// Sends a request, and resends it if the backend can't have processed it.
pub(in super::super) async fn exchange(
    dispatcher: Arc<Dispatcher>,
    mut request: Request<RequestBody>,
    freshness: Freshness,
) -> Result<Outcome, Error> {
    let is_upgrade = request.headers().contains_key(UPGRADE);
    if is_upgrade && (dispatcher.http2.open.lacks_connect() || !websocket::is_requested(&request)) {
        return over_http1(&dispatcher, freshness, request).await;
    }
    let head = HeadSize::of(&request);
    let stream = match take(&dispatcher, freshness, head, is_upgrade).await {
        Ok(Taken::Http2(stream)) => stream,
        Ok(Taken::Http1(found)) => return Ok(Outcome::Http1(found, request)),
        Err(error) => return Err(error.with_unsent(request)),
    };
    if is_upgrade {
        if !stream.can_connect() {
            drop(stream);
            // What carries it then is HTTP/1.1, if the backend has that too.
            return over_http1(&dispatcher, freshness, request).await;
        }
        return websocket::open(stream, request, head).await.map(Outcome::Answered);
    }
    request = as_http2(request)?;
    let unprocessed = match stream.send(request, head).await {
        Ok(response) => return Ok(Outcome::Answered(response)),
        Err(failed) => failed.unprocessed.ok_or(failed.error)?,
    };
    match take(&dispatcher, freshness, head, false).await {
        Ok(Taken::Http2(stream)) => match stream.send(unprocessed, head).await {
            Ok(response) => Ok(Outcome::Answered(response)),
            Err(failed) => Err(match failed.unprocessed {
                Some(unprocessed) => failed.error.with_unsent(as_http1(unprocessed)),
                None => failed.error,
            }),
        },
        // A backend that has changed its mind since a moment ago.
        Ok(Taken::Http1(connection)) => Ok(Outcome::Http1(connection, as_http1(unprocessed))),
        Err(error) => Err(error.with_unsent(as_http1(unprocessed))),
    }
}

/// Waits for an HTTP/1.1 connection.
async fn over_http1(
    dispatcher: &Arc<Dispatcher>,
    freshness: Freshness,
    request: Request<RequestBody>,
) -> Result<Outcome, Error> {
    match dispatcher.wait(freshness, None).await {
        Ok(found) => Ok(Outcome::Http1(found, request)),
        Err(error) => Err(error.with_unsent(request)),
    }
}

/// Takes a place for a request with such a head. An upgrade has a connection of its own, as in HTTP/1.1: small frames that a tunnel's
/// client doesn't read would end it.
async fn take(
    dispatcher: &Arc<Dispatcher>,
    freshness: Freshness,
    head: HeadSize,
    is_upgrade: bool,
) -> Result<Taken, Error> {
    let share = if is_upgrade { Share::Alone } else { Share::Shared };
    let taken = dispatcher.take_http2(freshness, share).await?;
    let Taken::Http2(stream) = &taken else { return Ok(taken) };
    match stream.admit(head)? {
        Share::Alone if share == Share::Shared => {
            drop(taken);
            let taken = dispatcher.take_http2(freshness, Share::Alone).await?;
            if let Taken::Http2(stream) = &taken {
                // Another connection may have another limit.
                stream.admit(head)?;
            }
            Ok(taken)
        }
        _ => Ok(taken),
    }
}

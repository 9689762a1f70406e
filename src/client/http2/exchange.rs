//! One exchange over HTTP/2: a place on a connection, and the response on its stream.

use std::{error::Error as _, mem, sync::Arc};

use axum_core::body::Body;
use h2::Reason;
use http::{
    Extensions, HeaderValue, Method, Request, Response, Uri, Version,
    header::{HOST, TRANSFER_ENCODING, UPGRADE},
    uri::{Authority, Scheme},
};
use http_body::Body as _;

use super::{
    super::{
        body::ResponseBody,
        dispatch::{Checkout, Dispatcher, Freshness},
        reuse::{Reuse, authenticates_connection},
    },
    Stream, Taken,
    head::{HeadSize, Share},
    websocket,
};
use crate::{
    error::{Error, ErrorKind, MayBeProcessed, classify},
    expect::ContinueSignal,
    headers::framing,
    method::is_idempotent,
};

/// What becomes of a request that HTTP/2 is meant for.
pub(in super::super) enum Outcome {
    Answered(Response<ResponseBody>),
    /// The backend has chosen HTTP/1.1, or nothing else carries it.
    Http1(Checkout, Request<Body>),
}

impl Dispatcher {
    /// Whether HTTP/2 is to be spoken for a request.
    ///
    /// Credentials that authenticate a connection (RFC 4559, section 6) never go over HTTP/2, because other clients' requests
    /// share its connections: they need HTTP/1.1 and a connection of their own. Upgrades are HTTP/1.1's where a connection
    /// without the choice can be made for them, which is over TLS.
    pub(in super::super) fn is_for_http2(&self, request: &Request<Body>, reuse: &Reuse) -> bool {
        self.http2.enabled
            && *reuse == Reuse::Shared
            && !(request.headers().contains_key(UPGRADE) && self.connector.can_insist_on_http1())
    }
}

/// Sends a request, and resends it if the backend can't have processed it.
pub(in super::super) async fn exchange(
    pool: Arc<Dispatcher>,
    mut request: Request<Body>,
    freshness: Freshness,
) -> Result<Outcome, Error> {
    let is_upgrade = request.headers().contains_key(UPGRADE);
    if is_upgrade && (pool.http2.lacks_connect() || !websocket::is_asked_for(&request)) {
        return over_http1(&pool, freshness, request).await;
    }
    let head = HeadSize::of(&request);
    let mut stream = match take(&pool, freshness, head, is_upgrade).await {
        Ok(Taken::Http2(stream)) => stream,
        Ok(Taken::Http1(found)) => return Ok(Outcome::Http1(found, request)),
        Err(error) => return Err(error.with_unsent(request)),
    };
    if is_upgrade {
        if !stream.can_connect() {
            drop(stream);
            // What carries it then is HTTP/1.1, if the backend has that too.
            return over_http1(&pool, freshness, request).await;
        }
        let accept = websocket::as_connect(&mut request);
        let response = send(&pool, &mut stream, as_http2(request)?, head).await.map_err(|(error, _)| error)?;
        return Ok(Outcome::Answered(websocket::as_switch(response, stream, accept)));
    }
    request = as_http2(request)?;
    let unread = match send(&pool, &mut stream, request, head).await {
        Ok(response) => return Ok(Outcome::Answered(answered(response, stream))),
        Err((_, Some(unread))) => unread,
        Err((error, None)) => return Err(error),
    };
    drop(stream);
    match take(&pool, freshness, head, false).await {
        Ok(Taken::Http2(mut stream)) => match send(&pool, &mut stream, unread, head).await {
            Ok(response) => Ok(Outcome::Answered(answered(response, stream))),
            Err((error, Some(unread))) => Err(error.with_unsent(as_http1(unread))),
            Err((error, None)) => Err(error),
        },
        // A backend that has changed its mind since a moment ago.
        Ok(Taken::Http1(connection)) => Ok(Outcome::Http1(connection, as_http1(unread))),
        Err(error) => Err(error.with_unsent(as_http1(unread))),
    }
}

/// Waits for an HTTP/1.1 connection.
async fn over_http1(pool: &Arc<Dispatcher>, freshness: Freshness, request: Request<Body>) -> Result<Outcome, Error> {
    match pool.wait(freshness, None).await {
        Ok(found) => Ok(Outcome::Http1(found, request)),
        Err(error) => Err(error.with_unsent(request)),
    }
}

/// Takes a place for a request with such a head. An upgrade has a connection of its own, as in HTTP/1.1: small frames that a tunnel's
/// client doesn't read would end it.
async fn take(pool: &Arc<Dispatcher>, freshness: Freshness, head: HeadSize, is_upgrade: bool) -> Result<Taken, Error> {
    let share = if is_upgrade { Share::Alone } else { Share::Shared };
    let taken = pool.take_http2(freshness, share).await?;
    let Taken::Http2(stream) = &taken else { return Ok(taken) };
    match pool.http2.heads.admit(head, stream.load.max_head())? {
        Share::Alone if share == Share::Shared => {
            drop(taken);
            let taken = pool.take_http2(freshness, Share::Alone).await?;
            if let Taken::Http2(stream) = &taken {
                // Another connection may have another limit.
                pool.http2.heads.admit(head, stream.load.max_head())?;
            }
            Ok(taken)
        }
        _ => Ok(taken),
    }
}

fn answered(response: Response<hyper::body::Incoming>, stream: Stream) -> Response<ResponseBody> {
    response.map(|body| ResponseBody::shared(body, stream))
}

/// Sends a request on a stream. With the error comes the request, if the backend can't have processed it.
async fn send(
    pool: &Dispatcher,
    stream: &mut Stream,
    mut request: Request<Body>,
    head: HeadSize,
) -> Result<Response<hyper::body::Incoming>, (Error, Option<Request<Body>>)> {
    let again = copy(&request);
    // They can't be cloned cheaply. hyper reads them for extended CONNECT alone, which isn't sent again.
    let extensions = if again.is_some() { mem::take(request.extensions_mut()) } else { Extensions::new() };
    let sent = stream.sender.try_send_request(request).await;
    stream.is_answered = true;
    let (heads, limit) = (&pool.http2.heads, pool.http2.answers);
    match sent {
        Ok(response) if response.headers().len() > limit.fields => {
            let why = format!("its {} fields are more than {}", response.headers().len(), limit.fields);
            Err((Error::with_source(ErrorKind::ResponseHeadTooLarge, why), None))
        }
        Ok(response) => {
            if stream.share == Share::Alone {
                heads.prove(head);
            }
            Ok(response)
        }
        Err(mut error) => {
            heads.doubt(head);
            let message = error.take_message();
            let kind = if stream.share == Share::Alone && stream.load.is_overwhelmed() {
                ErrorKind::RequestHeadTooLarge
            } else if is_refused_by_us(error.error()) && stream.load.has_had_large_head() {
                ErrorKind::ResponseHeadTooLarge
            } else {
                let unread = message.or_else(|| unprocessed(error.error(), again?));
                let unread = unread.map(|mut unread| {
                    unread.extensions_mut().extend(extensions);
                    unread
                });
                return Err((classify(error.into_error().into(), ErrorKind::ConnectionClosed), unread));
            };
            Err((Error::with_source(kind, error.into_error()), None))
        }
    }
}

/// Whether it's h2 that refused an answer.
fn is_refused_by_us(error: &hyper::Error) -> bool {
    error.source().and_then(|cause| cause.downcast_ref::<h2::Error>()).is_some_and(h2::Error::is_library)
}

/// The request once more, to be sent a second time. `None`: it has a body, and nothing of that would be left, or credentials
/// that authenticate a connection, which are a replay to the backend the second time.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let is_connect = request.method() == Method::CONNECT;
    if is_connect || !request.body().is_end_stream() || authenticates_connection(request.headers()) {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    *copy.version_mut() = request.version();
    Some(copy)
}

/// Returns the copy of a request whose stream the backend hasn't processed (RFC 9113, section 8.7), to be sent again.
///
/// hyper doesn't distinguish a stream beyond the last one of a GOAWAY from one that was in progress when the connection
/// ended after it. Of these, only idempotent requests are sent again, and they may have been processed.
fn unprocessed(error: &hyper::Error, mut copy: Request<Body>) -> Option<Request<Body>> {
    let cause = error.source()?.downcast_ref::<h2::Error>().filter(|cause| cause.is_remote())?;
    if cause.is_reset() && cause.reason() == Some(Reason::REFUSED_STREAM) {
        return Some(copy);
    }
    copy.extensions_mut().insert(MayBeProcessed);
    (cause.is_go_away() && is_idempotent(copy.method())).then_some(copy)
}

/// Reverts [`as_http2`]. The target becomes HTTP/1.1's where it's sent.
fn as_http1(mut request: Request<Body>) -> Request<Body> {
    *request.version_mut() = Version::HTTP_11;
    let host = request.uri().authority().and_then(|authority| HeaderValue::from_str(authority.as_str()).ok());
    if let Some(host) = host {
        request.headers_mut().insert(HOST, host);
    }
    let size = request.body().size_hint();
    // The forwarder has refused what isn't one length.
    let _ = framing::reconcile_request(request.headers_mut(), &size);
    request
}

/// Says in HTTP/2's way what was HTTP/1.1's.
fn as_http2(mut request: Request<Body>) -> Result<Request<Body>, Error> {
    *request.version_mut() = Version::HTTP_2;
    // hyper would show no 100 (`forward::expect`).
    if let Some(word) = request.extensions_mut().remove::<ContinueSignal>() {
        word.release();
    }
    // Of another protocol's framing.
    request.headers_mut().remove(TRANSFER_ENCODING);
    // `Host` is said as `:authority` (RFC 9113, section 8.3.1).
    if let Some(host) = request.headers_mut().remove(HOST) {
        let mut parts = mem::take(request.uri_mut()).into_parts();
        parts.authority = Authority::try_from(host.as_bytes()).ok();
        parts.scheme.get_or_insert(Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ErrorKind::InvalidHost)?;
    }
    Ok(request)
}

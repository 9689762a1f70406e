//! One request of the client: find a connection or make one, and see the exchange through to its response head.

use std::{
    fmt,
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::body::Body;
#[cfg(feature = "http2")]
use http::header::UPGRADE;
use http::{Method, Request, Response, StatusCode, Uri, Version, uri::PathAndQuery};
use http_body::Body as _;
use hyper::client::conn::TrySendError;

use super::{
    Shared,
    body::{ClientBody, Lease},
    http1::Connection,
};
#[cfg(feature = "http2")]
use super::{http2::Taken, websocket};
use crate::error::{Error, ErrorKind, classify};
#[cfg(feature = "http2")]
use crate::{headers::identity::remove_spellings, identity::NotATrailer};

/// The future of a [`Client`](super::Client)'s response.
///
/// # Cancel safety
///
/// Dropping it closes the connection that the request was on, or resets its stream. Before that, it gives up the connection
/// that is being made.
#[must_use = "futures do nothing unless polled"]
pub struct ClientFuture {
    shared: Arc<Shared>,
    state: State,
}

/// Once per connection, not per request.
type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, Error>> + Send>>;

enum State {
    Start(Request<Body>),
    Connecting(Connecting<Box<Connection>>, Request<Body>),
    Exchanging {
        connection: Box<Connection>,
        /// For a reused connection: the request once more, if sending it twice is as good as once.
        again: Option<Request<Body>>,
        reused: bool,
        poolable: bool,
    },
    /// A switch of protocols: the connection is about to hand itself over.
    Switching(Box<Connection>, Response<ClientBody>),
    #[cfg(feature = "http2")]
    Http2(Connecting<Http2>),
    Over,
}

/// What becomes of a request that HTTP/2 is meant for.
#[cfg(feature = "http2")]
enum Http2 {
    Answered(Response<ClientBody>),
    /// The backend has chosen HTTP/1.1.
    Http1(Box<Connection>, Request<Body>),
}

impl ClientFuture {
    pub(super) fn new(shared: Arc<Shared>, request: Request<Body>) -> Self {
        Self { shared, state: State::Start(request) }
    }
}

impl Future for ClientFuture {
    type Output = Result<Response<ClientBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Start(_) => this.start(),
                State::Connecting(connecting, _) => {
                    let connected = ready!(connecting.as_mut().poll(cx));
                    let State::Connecting(_, request) = mem::replace(&mut this.state, State::Over) else { continue };
                    this.state = exchange(connected?, request, false);
                }
                State::Exchanging { connection, .. } => {
                    let sent = ready!(connection.poll_response(cx));
                    match this.sent(sent, cx) {
                        Some(outcome) => return Poll::Ready(outcome),
                        None => continue,
                    }
                }
                State::Switching(connection, _) => {
                    ready!(connection.poll_over(cx));
                    let State::Switching(_, response) = mem::replace(&mut this.state, State::Over) else { continue };
                    return Poll::Ready(Ok(response));
                }
                #[cfg(feature = "http2")]
                State::Http2(outcome) => match ready!(outcome.as_mut().poll(cx))? {
                    Http2::Answered(response) => return Poll::Ready(Ok(response)),
                    Http2::Http1(connection, request) => this.state = exchange(connection, request, false),
                },
                State::Over => panic!("polled after completion"),
            }
        }
    }
}

impl ClientFuture {
    /// Takes a connection from the pool, or begins to make one.
    fn start(&mut self) {
        let State::Start(request) = mem::replace(&mut self.state, State::Over) else { return };
        #[cfg(feature = "http2")]
        if self.shared.is_for_http2(&request) {
            // What the backend chose before is used up first.
            let idle = if self.shared.connections.are_http1() { self.shared.pool.take() } else { None };
            self.state = match idle {
                Some(connection) => exchange(connection, request, true),
                None => State::Http2(Box::pin(http2(self.shared.clone(), request))),
            };
            return;
        }
        self.state = match self.shared.pool.take() {
            Some(connection) => exchange(connection, request, true),
            None => self.connect(request),
        };
    }

    fn connect(&self, request: Request<Body>) -> State {
        let shared = self.shared.clone();
        State::Connecting(Box::pin(async move { shared.connect_http1().await.map(Box::new) }), request)
    }

    /// The outcome of an exchange; `None`: it goes on in another state.
    fn sent(&mut self, sent: super::http1::Sent, cx: &mut Context<'_>) -> Option<Result<Response<ClientBody>, Error>> {
        let State::Exchanging { connection, again, reused, poolable } = mem::replace(&mut self.state, State::Over)
        else {
            return None;
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let response = response.map(|_| ClientBody::empty());
                self.state = State::Switching(connection, response);
                None
            }
            Ok(response) => {
                let pool = poolable.then(|| self.shared.pool.clone());
                let lease = Lease { connection, pool };
                Some(Ok(response.map(|body| ClientBody::leased(body, lease, cx))))
            }
            Err(mut error) => {
                let unsent = error.take_message().filter(|_| reused);
                // An idle connection that the backend closed as we took it (hyper issue 2136).
                match unsent.or_else(|| again.filter(|_| is_closed(&error))) {
                    Some(request) => {
                        self.state = self.connect(request);
                        None
                    }
                    None => Some(Err(classify(error.into_error().into(), ErrorKind::Closed))),
                }
            }
        }
    }
}

/// Sends the request over a connection.
fn exchange(mut connection: Box<Connection>, mut request: Request<Body>, reused: bool) -> State {
    // Origin-form: the connection leads to the backend.
    let target = mem::take(request.uri_mut()).into_parts().path_and_query;
    *request.uri_mut() = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    let again = if reused { copy(&request) } else { None };
    let poolable = !super::authenticates_connection(request.headers());
    connection.send(request);
    State::Exchanging { connection, again, reused, poolable }
}

/// A request that may be sent twice (RFC 9110, section 9.2.2): idempotent, and with no body that would be gone.
fn copy(request: &Request<Body>) -> Option<Request<Body>> {
    let idempotent =
        matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
    if !idempotent || !request.body().is_end_stream() {
        return None;
    }
    let mut copy = Request::new(Body::empty());
    copy.method_mut().clone_from(request.method());
    copy.uri_mut().clone_from(request.uri());
    copy.headers_mut().clone_from(request.headers());
    Some(copy)
}

/// Whether the backend closed the connection before it had said anything whole.
fn is_closed(error: &TrySendError<Request<Body>>) -> bool {
    let error = error.error();
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<io::Error>());
    error.is_incomplete_message()
        || error.is_canceled()
        || cause.is_some_and(|cause| {
            use io::ErrorKind::{BrokenPipe, ConnectionReset, UnexpectedEof};
            // The last one is an end of TCP without TLS's own.
            matches!(cause.kind(), BrokenPipe | ConnectionReset | UnexpectedEof)
        })
}

#[cfg(feature = "http2")]
impl Shared {
    /// Whether HTTP/2 is to be spoken for a request. An upgrade is HTTP/1.1's: over TLS, a connection without the choice is
    /// made for it.
    fn is_for_http2(&self, request: &Request<Body>) -> bool {
        self.http2 && !(self.connector.negotiates() && request.headers().contains_key(UPGRADE))
    }
}

#[cfg(feature = "http2")]
async fn http2(shared: Arc<Shared>, mut request: Request<Body>) -> Result<Http2, Error> {
    let mut stream = match shared.take_http2().await? {
        Taken::Http2(stream) => stream,
        Taken::Http1(connection) => return Ok(Http2::Http1(connection, request)),
    };
    let mut accept = None;
    if request.headers().contains_key(UPGRADE) {
        if !websocket::is_asked_for(&request) || !stream.can_connect().await {
            // What carries it then is HTTP/1.1, if the backend has that too.
            return Ok(Http2::Http1(Box::new(shared.connect_http1().await?), request));
        }
        accept = Some(websocket::as_connect(&mut request));
    }
    request = as_http2(request)?;
    // What isn't sent may be sent again: a connection that was going away, a stream that was refused.
    for attempt in 0..2 {
        match stream.sender.try_send_request(request).await {
            Ok(response) => {
                let response = response.map(|body| ClientBody::shared(body, stream));
                return Ok(Http2::Answered(match accept {
                    Some(accept) => websocket::as_switch(response, accept),
                    None => response,
                }));
            }
            Err(mut error) => match error.take_message() {
                Some(unsent) => request = unsent,
                None => return Err(classify(error.into_error().into(), ErrorKind::Closed)),
            },
        }
        if attempt == 0 {
            stream = match shared.take_http2().await? {
                Taken::Http2(stream) => stream,
                // A backend that has changed its mind since a moment ago.
                Taken::Http1(_) => break,
            };
        }
    }
    Err(ErrorKind::Closed.into())
}

#[cfg(feature = "http2")]
fn as_http2(mut request: Request<Body>) -> Result<Request<Body>, Error> {
    use http_body_util::BodyExt;

    *request.version_mut() = Version::HTTP_2;
    // Of another protocol's framing.
    request.headers_mut().remove(http::header::TRANSFER_ENCODING);
    // `Host` is said as `:authority` (RFC 9113, section 8.3.1).
    if let Some(host) = request.headers_mut().remove(http::header::HOST) {
        let mut parts = mem::take(request.uri_mut()).into_parts();
        parts.authority = http::uri::Authority::try_from(host.as_bytes()).ok();
        parts.scheme.get_or_insert(http::uri::Scheme::HTTP);
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| ErrorKind::Host)?;
    }
    let Some(NotATrailer(name)) = request.extensions_mut().remove() else { return Ok(request) };
    // HTTP/2 sends trailers whether they were announced or not.
    Ok(request.map(|body| {
        Body::new(body.map_frame(move |mut frame| {
            if let Some(trailers) = frame.trailers_mut() {
                remove_spellings(trailers, &name);
            }
            frame
        }))
    }))
}

impl fmt::Debug for ClientFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientFuture").finish_non_exhaustive()
    }
}

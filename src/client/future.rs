//! One request of the client: find a connection or make one, and see the exchange through to its response head.

use std::{
    fmt,
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::body::Body;
use http::{Request, Response, StatusCode, Uri, Version, uri::PathAndQuery};
use hyper::client::conn::TrySendError;

use super::{
    body::{Lease, ResponseBody},
    dispatch::{Acquire, Dispatcher, Grant, Http2Exchange, Kind, Outcome},
    http1::{self, Checkout, Connection, Freshness, Upload},
    reuse::Reuse,
};
use crate::error::{Error, ErrorKind, classify};

/// The future of a [`Client`](super::Client)'s response.
///
/// # Cancel safety
///
/// Dropping it closes the connection that the request was sent on, or resets its stream. A request that waits for a connection
/// leaves the queue; a connection that is being made for it goes to another request, or to the pool.
#[must_use = "futures do nothing unless polled"]
pub struct ResponseFuture {
    dispatcher: Arc<Dispatcher>,
    state: State,
}

enum State {
    Acquire(Acquire, Request<Body>),
    Exchanging {
        connection: Box<Connection>,
        /// How long it had been idle.
        idle: Option<Duration>,
    },
    /// A switch of protocols: the connection is about to hand itself over.
    Switching(Box<Connection>, Response<ResponseBody>),
    Http2(Http2Exchange),
    Over,
}

impl ResponseFuture {
    pub(super) fn new(dispatcher: Arc<Dispatcher>, request: Request<Body>) -> Self {
        Self { state: begin(&dispatcher, request), dispatcher }
    }
}

impl Future for ResponseFuture {
    type Output = Result<Response<ResponseBody>, Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Acquire(waiting, _) => {
                    let found = ready!(Pin::new(waiting).poll(cx)).and_then(Grant::into_http1);
                    let State::Acquire(_, request) = mem::replace(&mut this.state, State::Over) else { continue };
                    let found = match found {
                        Ok(found) => found,
                        Err(error) => return Poll::Ready(Err(error.with_unsent(request))),
                    };
                    let reuse = Reuse::of(&request);
                    this.state = exchange_over(found, request, reuse);
                }
                State::Exchanging { connection, .. } => {
                    let sent = ready!(connection.poll_response(cx));
                    if let Some(outcome) = this.sent(sent, cx) {
                        return Poll::Ready(outcome);
                    }
                }
                State::Switching(connection, _) => {
                    ready!(connection.poll_over(cx));
                    let State::Switching(_, response) = mem::replace(&mut this.state, State::Over) else { continue };
                    return Poll::Ready(Ok(response));
                }
                State::Http2(exchange) => match ready!(Pin::new(exchange).poll(cx))? {
                    Outcome::Response(response) => return Poll::Ready(Ok(response.map(ResponseBody::shared))),
                    Outcome::Http1(checkout, request) => {
                        let reuse = Reuse::of(&request);
                        this.state = exchange_over(checkout, request, reuse);
                    }
                },
                State::Over => panic!("polled after completion"),
            }
        }
    }
}

impl ResponseFuture {
    /// The outcome of an exchange; `None`: it goes on in another state.
    fn sent(&mut self, sent: http1::Sent, cx: &mut Context<'_>) -> Option<Result<Response<ResponseBody>, Error>> {
        let State::Exchanging { mut connection, idle } = mem::replace(&mut self.state, State::Over) else {
            return None;
        };
        match sent {
            Ok(response) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let response = response.map(|_| ResponseBody::empty());
                self.state = State::Switching(connection, response);
                None
            }
            Ok(response) => {
                connection.repeat.forget();
                let lease = Lease { connection, dispatcher: self.dispatcher.clone() };
                let (head, body) = response.into_parts();
                Some(ResponseBody::leased(body, lease, cx).map(|body| Response::from_parts(head, body)))
            }
            Err(mut error) => {
                let unsent = error.take_message().map(|request| request.map(Upload::into_inner));
                let is_closed = unsent.is_some() || is_closed(&error);
                let Some(idle) = idle.filter(|_| is_closed) else {
                    let error = classify(error.into_error().into(), ErrorKind::ConnectionClosed);
                    return Some(Err(match unsent {
                        Some(request) => error.with_unsent(request),
                        None => error,
                    }));
                };
                // An idle connection that the backend closed as it was taken (hyper issue 2136).
                self.dispatcher.observed(idle, false);
                match unsent.or_else(|| connection.repeat.take()) {
                    Some(request) => {
                        let owner = Reuse::of(&request).owner().cloned();
                        self.state =
                            State::Acquire(Acquire::new(&self.dispatcher, Kind::Http1, Freshness::New, owner), request);
                        None
                    }
                    None => Some(Err(classify(error.into_error().into(), ErrorKind::ConnectionClosed))),
                }
            }
        }
    }
}

/// Takes a connection from the pool, or begins to wait for one.
fn begin(dispatcher: &Arc<Dispatcher>, request: Request<Body>) -> State {
    let reuse = Reuse::of(&request);
    // Credentials that authenticate a connection are used once, because the backend takes the second use for a replay.
    let can_be_replayed = reuse == Reuse::Shared && http1::is_harmless(&request);
    let freshness = if can_be_replayed { Freshness::Any } else { Freshness::Recent };
    let may_use_http2 = Http2Exchange::may_carry(dispatcher, &request, &reuse);
    let owner = reuse.owner();
    // Connections in the protocol that the backend chose before are used first.
    if (!may_use_http2 || dispatcher.chose_http1())
        && let Some(checkout) = dispatcher.take(owner, freshness)
    {
        return exchange_over(checkout, request, reuse);
    }
    if may_use_http2 {
        return State::Http2(Http2Exchange::new(dispatcher.clone(), request, freshness));
    }
    State::Acquire(Acquire::new(dispatcher, Kind::Http1, freshness, owner.cloned()), request)
}

/// Sends the request over a connection.
fn exchange_over(Checkout { mut connection, idle, .. }: Checkout, mut request: Request<Body>, reuse: Reuse) -> State {
    // Origin-form: the connection leads to the backend.
    let target = mem::take(request.uri_mut()).into_parts().path_and_query;
    *request.uri_mut() = Uri::from(target.unwrap_or(PathAndQuery::from_static("/")));
    *request.version_mut() = Version::HTTP_11;
    // A connection that has carried a request never gets another owner.
    debug_assert!(idle.is_none() || connection.reuse.owner() == reuse.owner());
    if reuse != Reuse::Shared {
        connection.reuse = reuse;
    } else if idle.is_some() {
        connection.repeat.keep(&request);
    }
    connection.send(request);
    State::Exchanging { connection, idle }
}

/// Whether the backend closed the connection before it had said anything whole.
fn is_closed(error: &TrySendError<Request<Upload>>) -> bool {
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

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

//! One request of the client: find a connection or make one, and see the exchange through to its response head.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::body::Body;
use http::{Request, Response, StatusCode};

use super::{
    body::{Lease, ResponseBody},
    dispatch::{Acquire, Dispatcher, Grant, Http2Exchange, Kind, Outcome},
    http1::{self, Checkout, Connection, Freshness, SendError},
    reuse::Reuse,
};
use crate::error::{Error, MayBeProcessed};

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
    /// Boxed, because the future is moved often, and seldom has to wait.
    Acquire(Acquire, Box<Request<Body>>),
    Exchanging {
        connection: Box<Connection>,
        /// How long it had been idle.
        idle: Option<Duration>,
    },
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
                        Err(error) => return Poll::Ready(Err(error.with_unsent(*request))),
                    };
                    let reuse = Reuse::of(&request);
                    this.state = exchange_over(found, *request, reuse);
                }
                State::Exchanging { connection, .. } => {
                    let head = ready!(connection.poll_head(cx));
                    let State::Exchanging { connection, idle } = mem::replace(&mut this.state, State::Over) else {
                        continue;
                    };
                    match head {
                        Ok(head) => return Poll::Ready(this.answered(head, connection, cx)),
                        Err(failed) => {
                            drop(connection);
                            this.state = this.again(*failed, idle)?;
                        }
                    }
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
    fn answered(
        &self,
        mut head: Response<()>,
        connection: Box<Connection>,
        cx: &mut Context<'_>,
    ) -> Result<Response<ResponseBody>, Error> {
        if head.status() == StatusCode::SWITCHING_PROTOCOLS {
            head.extensions_mut().insert(connection.into_switched());
            return Ok(head.map(|()| ResponseBody::empty()));
        }
        let body = ResponseBody::leased(Lease { connection, dispatcher: self.dispatcher.clone() }, cx)?;
        Ok(head.map(|()| body))
    }

    /// Returns the state in which a request that failed is sent again.
    ///
    /// # Errors
    ///
    /// If it must not be sent again.
    fn again(&self, failed: SendError, idle: Option<Duration>) -> Result<State, Error> {
        let SendError { error, request, is_unsent, is_closed } = failed;
        let Some(idle) = idle.filter(|_| is_closed) else {
            return Err(match request {
                Some(request) if is_unsent => error.with_unsent(request),
                _ => error,
            });
        };
        // An idle connection that the backend closed as it was taken (hyper issue 2136).
        self.dispatcher.observed(idle, false);
        let Some(mut request) = request else { return Err(error) };
        let reuse = Reuse::of(&request);
        if !is_unsent {
            if reuse != Reuse::Shared || !http1::is_harmless(&request) {
                return Err(error);
            }
            request.extensions_mut().insert(MayBeProcessed);
        }
        let acquire = Acquire::new(&self.dispatcher, Kind::Http1, Freshness::New, reuse.owner().cloned());
        Ok(State::Acquire(acquire, Box::new(request)))
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
    State::Acquire(Acquire::new(dispatcher, Kind::Http1, freshness, owner.cloned()), Box::new(request))
}

/// Sends the request over a connection.
fn exchange_over(Checkout { mut connection, idle, .. }: Checkout, request: Request<Body>, reuse: Reuse) -> State {
    // A connection that has carried a request never gets another owner.
    debug_assert!(idle.is_none() || connection.reuse.owner() == reuse.owner());
    if reuse != Reuse::Shared {
        connection.reuse = reuse;
    }
    connection.send(request);
    State::Exchanging { connection, idle }
}

impl fmt::Debug for ResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

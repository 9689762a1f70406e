//! A request that goes over HTTP/1.1.

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
use http::{Request, Response};
use http_body::Body as _;

use super::{
    super::{
        http1::{Checkout, Connection, Freshness, SendError},
        reuse::Reuse,
    },
    acquire::Acquire,
    demand::{Grant, Kind},
    dispatcher::Dispatcher,
    lease::Lease,
};
use crate::{
    error::{Error, MayBeProcessed},
    method::is_idempotent,
};

/// The future of a response's head, and of the connection that it came over.
pub(in crate::client) struct Http1Exchange {
    dispatcher: Arc<Dispatcher>,
    state: State,
}

enum State {
    /// Boxed, because the future is moved often, and rarely has to wait.
    Acquiring(Box<Acquiring>),
    Exchanging {
        connection: Box<Connection>,
        /// How long it had been idle.
        idle: Option<Duration>,
    },
    Ended,
}

struct Acquiring {
    acquire: Acquire,
    request: Request<Body>,
    reuse: Reuse,
}

impl Http1Exchange {
    /// Waits for a connection.
    pub(super) fn new(dispatcher: Arc<Dispatcher>, request: Request<Body>, freshness: Freshness, reuse: Reuse) -> Self {
        let state = State::acquiring(&dispatcher, request, freshness, reuse);
        Self { dispatcher, state }
    }

    /// Sends a request over a connection.
    pub(super) fn over(dispatcher: Arc<Dispatcher>, checkout: Checkout, request: Request<Body>, reuse: Reuse) -> Self {
        Self { dispatcher, state: State::over(checkout, request, reuse) }
    }

    /// Returns the state in which a request that failed is resent.
    ///
    /// # Errors
    ///
    /// The request must not be resent.
    fn resend(&self, failed: SendError, idle: Option<Duration>) -> Result<State, Error> {
        let SendError { error, request, is_unsent, is_closed } = failed;
        let Some(idle) = idle.filter(|_| is_closed) else {
            return Err(match request {
                Some(request) if is_unsent => error.with_unsent(request),
                _ => error,
            });
        };
        // The connection was idle, and the backend closed it when it was taken.
        self.dispatcher.observed(idle, false);
        let Some(mut request) = request else { return Err(error) };
        let reuse = Reuse::of(&request);
        if !is_unsent {
            if reuse != Reuse::Shared || !is_replayable(&request) {
                return Err(error);
            }
            request.extensions_mut().insert(MayBeProcessed);
        }
        Ok(State::acquiring(&self.dispatcher, request, Freshness::New, reuse))
    }
}

impl Future for Http1Exchange {
    type Output = Result<(Response<()>, Lease), Error>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        loop {
            match &mut this.state {
                State::Acquiring(acquiring) => {
                    let checkout = ready!(Pin::new(&mut acquiring.acquire).poll(cx)).and_then(Grant::into_http1);
                    let State::Acquiring(acquiring) = mem::replace(&mut this.state, State::Ended) else { continue };
                    let Acquiring { request, reuse, .. } = *acquiring;
                    let checkout = match checkout {
                        Ok(checkout) => checkout,
                        Err(error) => return Poll::Ready(Err(error.with_unsent(request))),
                    };
                    this.state = State::over(checkout, request, reuse);
                }
                State::Exchanging { connection, .. } => {
                    let head = ready!(connection.poll_head(cx));
                    let State::Exchanging { connection, idle } = mem::replace(&mut this.state, State::Ended) else {
                        continue;
                    };
                    match head {
                        Ok(head) => return Poll::Ready(Ok((head, Lease::new(connection, this.dispatcher.clone())))),
                        Err(failed) => {
                            drop(connection);
                            this.state = this.resend(*failed, idle)?;
                        }
                    }
                }
                State::Ended => panic!("polled after completion"),
            }
        }
    }
}

impl State {
    fn acquiring(dispatcher: &Arc<Dispatcher>, request: Request<Body>, freshness: Freshness, reuse: Reuse) -> Self {
        let acquire = Acquire::new(dispatcher, Kind::Http1, freshness, reuse.owner().cloned());
        Self::Acquiring(Box::new(Acquiring { acquire, request, reuse }))
    }

    fn over(checkout: Checkout, request: Request<Body>, reuse: Reuse) -> Self {
        let Checkout { mut connection, idle, .. } = checkout;
        // A connection that has carried a request never gets another owner.
        debug_assert!(idle.is_none() || connection.reuse.owner() == reuse.owner());
        if reuse != Reuse::Shared {
            connection.reuse = reuse;
        }
        connection.send(request);
        Self::Exchanging { connection, idle }
    }
}

impl fmt::Debug for Http1Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Http1Exchange").finish_non_exhaustive()
    }
}

/// Returns how fresh the connection of a request has to be.
///
/// Credentials that authenticate a connection are sent once, because the backend takes the second use for a replay.
pub(super) fn freshness(request: &Request<Body>, reuse: &Reuse) -> Freshness {
    if *reuse == Reuse::Shared && is_replayable(request) { Freshness::Any } else { Freshness::Recent }
}

/// Returns whether a request may be resent although the backend may have processed it.
fn is_replayable(request: &Request<Body>) -> bool {
    // A body can't be sent twice.
    is_idempotent(request.method()) && request.body().is_end_stream()
}

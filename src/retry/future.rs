//! The future of a response: the attempts, one after the other.

use std::{
    fmt,
    future::Future,
    mem,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep, sleep};
use tower_service::Service;

use super::policy::Replayable;
use crate::{
    error::{Error, ErrorKind, known_kind},
    headers::grpc,
    observe,
    tried::{NoneLeft, Tried},
};

/// How long an attempt that has ended may take to give back the body of its request. It does so at once, unless the
/// task that sends the body is busy.
const RETURN_TIMEOUT: Duration = Duration::from_secs(1);

pin_project! {
    /// The future of a [`Retry`](super::Retry)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the attempt, and there is no further one.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S: Service<Request<Body>>> {
        #[pin]
        pub(super) state: State<S::Future>,
        // `None` if there is no further attempt.
        pub(super) retries: Option<Retries<S>>,
    }
}

pin_project! {
    #[project = StateProj]
    pub(super) enum State<F> {
        Calling { #[pin] future: F },
        /// The hedge of an attempt that has failed.
        Hedging { future: Pin<Box<F>> },
        /// `retries` is `Some` in the states between two attempts.
        Between { next: Between },
        Ended,
    }
}

/// A second attempt while the first one is under way.
enum Hedge<F> {
    None,
    /// It begins when the timer has elapsed.
    Due {
        timer: Pin<Box<Sleep>>,
    },
    UnderWay {
        future: Pin<Box<F>>,
    },
}

pub(super) enum Between {
    /// A pause before a retry, and then the return of the body.
    Pausing { timer: Pin<Box<Sleep>>, is_over: bool },
    /// The service isn't ready.
    Preparing { request: Option<Box<Request<Body>>> },
}

/// What the attempts of a request share.
pub(super) struct Retries<S: Service<Request<Body>>> {
    service: S,
    hedge: Hedge<S::Future>,
    /// How many attempts there may be besides the present one.
    left: u32,
    /// How many retries there were that the budget has paid for.
    paid: u32,
    replayable: Option<Box<Replayable>>,
    last: Option<Box<Last>>,
}

/// The outcome of the previous attempt.
enum Last {
    Response(StatusCode),
    Failure(BoxError),
}

/// What follows an attempt.
enum Next<R> {
    Done(Result<R, BoxError>),
    Retry(Between),
}

impl<S: Service<Request<Body>>> Retries<S> {
    /// The attempts after the first one, by the service that makes it.
    pub(super) fn new(service: S, max_attempts: u32, replayable: Option<Box<Replayable>>) -> Self {
        let hedge_after = replayable.as_ref().and_then(|replayable| replayable.hedge_after);
        let hedge = hedge_after.map_or(Hedge::None, |after| Hedge::Due { timer: Box::pin(sleep(after)) });
        Self { service, hedge, left: max_attempts - 1, paid: 0, replayable, last: None }
    }
}

impl<S, B> Future for ResponseFuture<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
{
    type Output = Result<S::Response, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let mut this = self.project();
        loop {
            let outcome = match this.state.as_mut().project() {
                StateProj::Calling { future } => match future.poll(cx) {
                    // Most responses end here. They are moved as little as possible, because they are large.
                    Poll::Ready(Ok(response)) if is_last(this.retries.as_ref(), &response) => {
                        if let Some(retries) = this.retries.take() {
                            retries.responded();
                        }
                        return Poll::Ready(Ok(response));
                    }
                    Poll::Ready(outcome) => {
                        let Some(retries) = this.retries.as_mut() else {
                            return Poll::Ready(outcome.map_err(Into::into));
                        };
                        if is_failure(&outcome)
                            && let Hedge::UnderWay { future } = mem::replace(&mut retries.hedge, Hedge::None)
                        {
                            this.state.set(State::Hedging { future });
                            continue;
                        }
                        outcome
                    }
                    Poll::Pending => {
                        let Some(retries) = this.retries.as_mut() else { return Poll::Pending };
                        let response = ready!(retries.poll_hedge(cx));
                        // The attempt is cancelled.
                        this.state.set(State::Ended);
                        *this.retries = None;
                        return Poll::Ready(Ok(response));
                    }
                },
                StateProj::Hedging { future } => ready!(future.as_mut().poll(cx)),
                StateProj::Ended => panic!("polled after completion"),
                StateProj::Between { next } => {
                    let Some(retries) = this.retries.as_mut() else { panic!("polled after completion") };
                    let future = match ready!(retries.poll_next(next, cx)) {
                        Ok(future) => future,
                        Err(failure) => {
                            *this.retries = None;
                            return Poll::Ready(Err(failure));
                        }
                    };
                    this.state.set(State::Calling { future });
                    continue;
                }
            };
            let Some(retries) = this.retries.as_mut() else { panic!("polled after completion") };
            match retries.after(outcome.map_err(Into::into)) {
                Next::Retry(next) => this.state.set(State::Between { next }),
                Next::Done(outcome) => {
                    // The body of the request is no longer kept, and a hedge is cancelled.
                    *this.retries = None;
                    return Poll::Ready(outcome);
                }
            }
        }
    }
}

impl<S, B> Retries<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>>,
{
    /// Decides what follows an attempt.
    fn after(&mut self, outcome: Result<S::Response, BoxError>) -> Next<S::Response> {
        match outcome {
            Ok(response) => self.after_response(response),
            Err(failure) => self.after_failure(failure),
        }
    }

    fn after_response(&mut self, response: S::Response) -> Next<S::Response> {
        let status = response.status();
        if !is_unavailable(&response) {
            self.responded();
            return Next::Done(Ok(response));
        }
        if self.left == 0 {
            return Next::Done(Ok(response));
        }
        let Some(pause) = self.pause() else { return Next::Done(Ok(response)) };
        observe::retried_response(status);
        self.last = Some(Box::new(Last::Response(status)));
        Next::Retry(pause)
    }

    fn after_failure(&mut self, failure: BoxError) -> Next<S::Response> {
        if failure.is::<NoneLeft>() {
            return Next::Done(Err(self.last_failure()));
        }
        if self.left == 0 {
            return Next::Done(Err(failure));
        }
        let next = match Error::find(&failure).and_then(take_unsent) {
            Some(unsent) => {
                let request = match &self.replayable {
                    Some(replayable) => replayable.original.with_body(unsent.into_body()),
                    None => unsent,
                };
                Some(Between::Preparing { request: Some(Box::new(request)) })
            }
            None if may_have_been_sent(&failure) => self.pause(),
            None => None,
        };
        let Some(next) = next else { return Next::Done(Err(failure)) };
        observe::retried_failure(&failure);
        self.last = Some(Box::new(Last::Failure(failure)));
        Next::Retry(next)
    }

    /// Ready with a response to the hedge.
    fn poll_hedge(&mut self, cx: &mut Context<'_>) -> Poll<S::Response> {
        loop {
            match &mut self.hedge {
                Hedge::None => return Poll::Pending,
                Hedge::Due { timer } => {
                    ready!(timer.as_mut().poll(cx));
                    self.hedge = self.begin_hedge(cx).map_or(Hedge::None, |future| Hedge::UnderWay { future });
                }
                Hedge::UnderWay { future } => {
                    let outcome = ready!(future.as_mut().poll(cx));
                    self.hedge = Hedge::None;
                    if let Ok(response) = outcome
                        && !is_unavailable(&response)
                    {
                        self.responded();
                        return Poll::Ready(response);
                    }
                    // The other attempt may still succeed.
                }
            }
        }
    }

    fn begin_hedge(&mut self, cx: &mut Context<'_>) -> Option<Pin<Box<S::Future>>> {
        if self.left == 0 {
            return None;
        }
        // First, because a service that is ready may hold a permit of a layer until it's called.
        let request = self.replayable.as_ref()?.hedge()?;
        if !matches!(self.service.poll_ready(cx), Poll::Ready(Ok(()))) {
            return None;
        }
        self.left -= 1;
        Some(Box::pin(self.service.call(request)))
    }

    fn responded(&self) {
        if let Some(replayable) = &self.replayable {
            replayable.responded();
        }
    }

    /// Begins the pause before a retry of a request that a backend may have processed, if there is such a retry.
    fn pause(&mut self) -> Option<Between> {
        let pause = self.replayable.as_ref()?.pause(self.paid)?;
        self.paid += 1;
        Some(Between::Pausing { timer: Box::pin(sleep(pause)), is_over: false })
    }

    /// Ready with the call of the next attempt.
    ///
    /// # Errors
    ///
    /// There is none.
    fn poll_next(&mut self, next: &mut Between, cx: &mut Context<'_>) -> Poll<Result<S::Future, BoxError>> {
        loop {
            match next {
                Between::Pausing { timer, is_over } => {
                    if !*is_over {
                        ready!(timer.as_mut().poll(cx));
                        timer.as_mut().reset(Instant::now() + RETURN_TIMEOUT);
                        *is_over = true;
                    }
                    let request = match self.poll_original(cx) {
                        Poll::Ready(request) => request,
                        Poll::Pending => {
                            ready!(timer.as_mut().poll(cx));
                            None
                        }
                    };
                    let Some(request) = request else { return Poll::Ready(Err(self.last_failure())) };
                    *next = Between::Preparing { request: Some(Box::new(request)) };
                }
                Between::Preparing { request } => {
                    ready!(self.service.poll_ready(cx)).map_err(Into::into)?;
                    let Some(request) = request.take() else { panic!("polled after completion") };
                    self.left -= 1;
                    if self.left == 0 {
                        // The body is no longer kept.
                        self.replayable = None;
                    }
                    return Poll::Ready(Ok(self.service.call(*request)));
                }
            }
        }
    }

    fn poll_original(&self, cx: &mut Context<'_>) -> Poll<Option<Request<Body>>> {
        match &self.replayable {
            Some(replayable) => replayable.original.poll_request(cx),
            None => Poll::Ready(None),
        }
    }

    /// Returns the failure of the previous attempt, because there is no other one.
    fn last_failure(&mut self) -> BoxError {
        match self.last.take().map(|last| *last) {
            Some(Last::Failure(failure)) => failure,
            Some(Last::Response(status)) => Error::with_status(ErrorKind::Upstream, status, NONE_LEFT).into(),
            None => Error::with_source(ErrorKind::Overloaded, NoneLeft).into(),
        }
    }
}

const NONE_LEFT: &str = "its response has been dropped for another attempt, which couldn't be made";

/// Takes an unsent request from an error, unless the balancer has no other member for it.
fn take_unsent(error: &Error) -> Option<Request<Body>> {
    let is_exhausted = |request: &mut Request<Body>| Tried::of(request.extensions()).is_some_and(Tried::is_exhausted);
    if error.with_unsent_request(is_exhausted)? { None } else { error.take_unsent_request() }
}

/// Whether a request may have been sent to a backend that couldn't be reached, or has closed the connection.
fn may_have_been_sent(failure: &BoxError) -> bool {
    let is_unsent = Error::find(failure).is_some_and(Error::is_unsent);
    let is_gone = matches!(
        known_kind(failure),
        // The client resends a request, and that may fail to connect.
        Some(ErrorKind::ConnectionClosed | ErrorKind::Connect | ErrorKind::ConnectTimeout)
    );
    is_gone && !is_unsent
}

/// Whether a response is the client's, regardless of the attempts that are left.
fn is_last<S: Service<Request<Body>>, B>(retries: Option<&Retries<S>>, response: &Response<B>) -> bool {
    retries.is_none_or(|retries| retries.replayable.is_none()) || !is_unavailable(response)
}

/// Whether another attempt may have a better outcome.
fn is_failure<B, E>(outcome: &Result<Response<B>, E>) -> bool {
    outcome.as_ref().map_or(true, is_unavailable)
}

/// Whether the backend had no capacity for a request.
fn is_unavailable<B>(response: &Response<B>) -> bool {
    use StatusCode as S;
    matches!(response.status(), S::BAD_GATEWAY | S::SERVICE_UNAVAILABLE | S::GATEWAY_TIMEOUT)
        || grpc::is_unavailable(response.headers())
}

impl<S: Service<Request<Body>>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

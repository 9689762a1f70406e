//! The future of a balanced response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tokio::time::{Sleep, sleep};
use tower_service::Service;

use super::{
    Inner,
    attempt::{Attempt, InFlight, TunnelInFlight},
    body::{self, BalanceBody},
    overloaded,
    queue::Waiter,
    selection::Wish,
    sticky::Assignment,
    trial::Trying,
};
use crate::{
    error::Error,
    service::{HttpService, poll_ready_now},
    tried::MemberId,
    tunnel_guard::TunnelGuard,
};

pin_project! {
    /// The future of a [`Balance`](super::Balance)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request at its member.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S: Service<Request<Body>>> {
        #[pin]
        pub(super) state: CallState<S>,
    }
}

pin_project! {
    #[project = CallStateProj]
    pub(super) enum CallState<S: Service<Request<Body>>> {
        Calling {
            #[pin]
            call: S::Future,
            attempt: Option<Attempt>,
            cookie: Option<Assignment>,
        },
        // The other states are behind pointers, because they are rare, and a future is moved several times.
        Preparing {
            preparing: Option<Box<Preparing<S>>>,
        },
        Trying {
            trying: Option<Pin<Box<Trying<S>>>>,
            cookie: Option<Assignment>,
            elsewhere: Option<Box<Elsewhere<S>>>,
        },
        Waiting {
            waiting: Option<Box<Waiting<S>>>,
        },
        Failed {
            error: Option<BoxError>,
        },
    }
}

/// A call of a service that isn't ready.
struct Preparing<S> {
    service: S,
    request: Request<Body>,
    attempt: Attempt,
    cookie: Option<Assignment>,
}

/// Where the request of a trial goes if the trial fails.
pub(super) struct Elsewhere<S> {
    pub(super) balance: Arc<Inner<S>>,
    pub(super) request: Request<Body>,
    pub(super) wish: Wish,
    pub(super) tried: MemberId,
}

/// A request in the queue.
struct Waiting<S> {
    balance: Arc<Inner<S>>,
    request: Request<Body>,
    wish: Wish,
    waiter: Waiter,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S: HttpService> Waiting<S> {
    /// Ready when the request has a permit, or is given up.
    fn poll_ended(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<InFlight>, Error>> {
        if let Poll::Ready(permit) = Pin::new(&mut self.waiter.permit).poll(cx) {
            // If there is none, the member was removed at that moment, or none is left.
            return Poll::Ready(Ok(permit.ok()));
        }
        match &mut self.timer {
            Some(timer) => {
                timer.as_mut().poll(cx).map(|()| Err(overloaded("no backend had room within the queue timeout")))
            }
            None => Poll::Pending,
        }
    }

    fn next(self, permit: Option<InFlight>) -> ResponseFuture<S> {
        let Self { balance, request, wish, waiter, .. } = self;
        drop(waiter);
        match permit {
            Some(in_flight) => balance.call_with(in_flight, request, wish),
            None => balance.send(request, wish, None),
        }
    }
}

impl<S: HttpService> ResponseFuture<S> {
    /// Calls the service of the member that was chosen.
    pub(super) fn call(mut service: S, request: Request<Body>, attempt: Attempt, cookie: Option<Assignment>) -> Self {
        match poll_ready_now(&mut service) {
            Poll::Ready(Ok(())) => {
                Self { state: CallState::Calling { call: service.call(request), attempt: Some(attempt), cookie } }
            }
            readiness => Self::unready(readiness, service, request, attempt, cookie),
        }
    }

    /// Waits for a service that isn't ready, or fails as it does.
    pub(super) fn unready(
        readiness: Poll<Result<(), S::Error>>,
        service: S,
        request: Request<Body>,
        attempt: Attempt,
        cookie: Option<Assignment>,
    ) -> Self {
        if let Poll::Ready(Err(error)) = readiness {
            return Self::fail(attempt_failed(attempt, error));
        }
        let preparing = Some(Box::new(Preparing { service, request, attempt, cookie }));
        Self { state: CallState::Preparing { preparing } }
    }

    /// Tries a member that is out.
    pub(super) fn try_member(trying: Trying<S>, cookie: Option<Assignment>, elsewhere: Elsewhere<S>) -> Self {
        Self {
            state: CallState::Trying { trying: Some(Box::pin(trying)), cookie, elsewhere: Some(Box::new(elsewhere)) },
        }
    }

    /// Waits for a permit.
    pub(super) fn wait(balance: Arc<Inner<S>>, request: Request<Body>, wish: Wish, waiter: Waiter) -> Self {
        let timer = waiter.timeout().map(|timeout| Box::pin(sleep(timeout)));
        let waiting = Box::new(Waiting { balance, request, wish, waiter, timer });
        Self { state: CallState::Waiting { waiting: Some(waiting) } }
    }

    /// Fails without an attempt.
    pub(super) fn fail(error: impl Into<BoxError>) -> Self {
        Self { state: CallState::Failed { error: Some(error.into()) } }
    }
}

impl<S> Future for ResponseFuture<S>
where
    S: HttpService<Future: Send> + Send + 'static,
{
    type Output = Result<Response<BalanceBody<S::ResponseBody>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        loop {
            let next = match self.as_mut().project().state.project() {
                CallStateProj::Calling { call, attempt, cookie } => {
                    return Poll::Ready(match ready!(call.poll(cx)) {
                        Ok(mut response) => {
                            let in_flight = attempt.take().and_then(|attempt| attempt.responded(&response).1);
                            let in_flight = finish(&mut response, cookie, in_flight);
                            Ok(response.map(|inner| BalanceBody { inner, in_flight }))
                        }
                        Err(error) => Err(match attempt.take() {
                            Some(attempt) => attempt_failed(attempt, error),
                            None => error.into(),
                        }),
                    });
                }
                CallStateProj::Preparing { preparing } => {
                    let Some(pending) = preparing else { panic!("polled after completion") };
                    let ready = ready!(pending.service.poll_ready(cx));
                    let Some(preparing) = preparing.take() else { panic!("polled after completion") };
                    let Preparing { mut service, request, attempt, cookie } = *preparing;
                    if let Err(error) = ready {
                        return Poll::Ready(Err(attempt_failed(attempt, error)));
                    }
                    Self { state: CallState::Calling { call: service.call(request), attempt: Some(attempt), cookie } }
                }
                CallStateProj::Waiting { waiting } => {
                    let Some(pending) = waiting else { panic!("polled after completion") };
                    let permit = ready!(pending.poll_ended(cx));
                    // It leaves the queue.
                    let Some(waiting) = waiting.take() else { panic!("polled after completion") };
                    waiting.next(permit?)
                }
                CallStateProj::Trying { trying, cookie, elsewhere } => {
                    let Some(pending) = trying else { panic!("polled after completion") };
                    let outcome = match pending.as_mut().poll(cx) {
                        Poll::Ready(outcome) => outcome,
                        Poll::Pending => {
                            ready!(pending.as_mut().poll_patience(cx));
                            trying.take().into_iter().for_each(Trying::go_on);
                            None
                        }
                    };
                    let Some(elsewhere) = elsewhere.take() else { panic!("polled after completion") };
                    if let Some((mut response, in_flight)) = outcome {
                        let in_flight = finish(&mut response, cookie, in_flight);
                        return Poll::Ready(Ok(response.map(|inner| BalanceBody { inner, in_flight })));
                    }
                    let Elsewhere { balance, request, wish, tried } = *elsewhere;
                    balance.send(request, wish, Some(tried))
                }
                CallStateProj::Failed { error } => {
                    return Poll::Ready(Err(error.take().unwrap_or_else(|| panic!("polled after completion"))));
                }
            };
            self.set(next);
        }
    }
}

fn attempt_failed(attempt: Attempt, error: impl Into<BoxError>) -> BoxError {
    let error = error.into();
    attempt.failed(&error);
    error
}

/// Lets a response assign its session to the member that has sent it, and the attempt end with the tunnel that the
/// response opens. Otherwise returns the attempt, which ends with the body.
fn finish<B: http_body::Body>(
    response: &mut Response<B>,
    cookie: &mut Option<Assignment>,
    mut in_flight: Option<InFlight>,
) -> Option<InFlight> {
    if let Some(cookie) = cookie.take() {
        cookie.apply_to(response);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS
        && let Some(in_flight) = in_flight.take()
    {
        TunnelGuard::insert(response.extensions_mut(), TunnelInFlight::new(in_flight));
    } else if response.body().is_end_stream() {
        // A body that is whole needs nothing more of the member.
        body::ended_well(&mut in_flight);
    }
    in_flight
}

impl<S: Service<Request<Body>>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

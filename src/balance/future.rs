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
use tower::util::Oneshot;
use tower_service::Service;

use super::{
    Inner,
    attempt::{Attempt, InFlight},
    body::BalanceBody,
    trial::Trying,
};
use crate::{service::HttpService, tried::MemberId, tunnel_guard::TunnelGuard};

pin_project! {
    /// The future of a [`Balance`](super::Balance)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request at its member.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<S: Service<Request<Body>>> {
        #[pin]
        state: State<S>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<S: Service<Request<Body>>> {
        Calling {
            #[pin]
            call: Oneshot<S, Request<Body>>,
            attempt: Option<Attempt>,
        },
        /// Boxed, because it's rare and large.
        Trying {
            trying: Pin<Box<Trying<S>>>,
            elsewhere: Option<Elsewhere<S>>,
        },
        Failed {
            error: Option<BoxError>,
        },
    }
}

/// Where the request of a trial goes if the trial fails.
pub(super) struct Elsewhere<S> {
    pub(super) balance: Arc<Inner<S>>,
    pub(super) request: Request<Body>,
    pub(super) tried: MemberId,
}

impl<S: Service<Request<Body>>> ResponseFuture<S> {
    /// Calls the service of the member that was chosen.
    pub(super) fn call(service: S, request: Request<Body>, in_flight: InFlight, is_timed: bool) -> Self {
        let attempt = Some(Attempt::new(in_flight, &request, is_timed));
        Self { state: State::Calling { call: Oneshot::new(service, request), attempt } }
    }

    /// Tries a member that is out.
    pub(super) fn try_member(trying: Trying<S>, elsewhere: Elsewhere<S>) -> Self {
        Self { state: State::Trying { trying: Box::pin(trying), elsewhere: Some(elsewhere) } }
    }

    /// Fails without an attempt.
    pub(super) fn fail(error: impl Into<BoxError>) -> Self {
        Self { state: State::Failed { error: Some(error.into()) } }
    }
}

impl<S: HttpService> Future for ResponseFuture<S> {
    type Output = Result<Response<BalanceBody<S::ResponseBody>>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        if let StateProj::Trying { trying, elsewhere } = self.as_mut().project().state.project() {
            if let Some((response, in_flight)) = ready!(trying.as_mut().poll(cx)) {
                return Poll::Ready(Ok(hold(response, in_flight)));
            }
            let Some(Elsewhere { balance, request, tried }) = elsewhere.take() else {
                panic!("polled after completion");
            };
            self.set(balance.send(request, Some(tried)));
        }
        match self.project().state.project() {
            StateProj::Calling { call, attempt } => {
                let outcome = ready!(call.poll(cx));
                let attempt = attempt.take();
                Poll::Ready(match outcome {
                    Ok(response) => {
                        let in_flight = attempt.and_then(|attempt| attempt.responded(&response).1);
                        Ok(hold(response, in_flight))
                    }
                    Err(error) => {
                        let error = error.into();
                        if let Some(attempt) = attempt {
                            attempt.failed(&error);
                        }
                        Err(error)
                    }
                })
            }
            StateProj::Trying { .. } => panic!("polled after completion"),
            StateProj::Failed { error } => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| panic!("polled after completion"))))
            }
        }
    }
}

/// Lets the attempt end with the response's body, or with the tunnel that the response opens.
fn hold<B: http_body::Body>(mut response: Response<B>, in_flight: Option<InFlight>) -> Response<BalanceBody<B>> {
    let in_flight = match in_flight {
        Some(in_flight) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            TunnelGuard::insert(response.extensions_mut(), in_flight);
            None
        }
        in_flight => in_flight,
    };
    response.map(|body| BalanceBody::new(body, in_flight))
}

impl<S: Service<Request<Body>>> fmt::Debug for ResponseFuture<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ResponseFuture").finish_non_exhaustive()
    }
}

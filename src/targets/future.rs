//! The future of a target's response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response, StatusCode};
use pin_project_lite::pin_project;
use tower::util::Oneshot;

use super::{body::TargetBody, registry::Lease, service::ToTarget};
use crate::{balance::BalanceBody, error::Error, service::HttpService, tunnel_guard::TunnelGuard};

pin_project! {
    /// The future of a [`TargetService`](super::TargetService)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request to the backend at once, and the target's pool is in use by one request less.
    #[must_use = "futures do nothing unless polled"]
    pub struct TargetFuture<U: HttpService> {
        #[pin]
        state: State<U>,
        lease: Option<Lease>,
    }
}

type Balanced<U> = Result<Response<BalanceBody<<U as HttpService>::ResponseBody>>, BoxError>;

pin_project! {
    #[project = StateProj]
    enum State<U: HttpService> {
        Failed {
            error: Option<Error>,
        },
        One {
            #[pin]
            call: Oneshot<U, Request<Body>>,
        },
        /// Boxed, because it's larger.
        Set {
            call: Pin<Box<dyn Future<Output = Balanced<U>> + Send>>,
        },
    }
}

impl<U> TargetFuture<U>
where
    U: HttpService<Future: Send> + Send + Sync + 'static,
{
    pub(super) fn calling(service: ToTarget<U>, lease: Lease, request: Request<Body>) -> Self {
        let state = match service {
            ToTarget::One(upstream) => State::One { call: Oneshot::new(upstream, request) },
            ToTarget::Set(balance) => State::Set { call: Box::pin(Oneshot::new(balance, request)) },
        };
        Self { state, lease: Some(lease) }
    }
}

impl<U: HttpService> TargetFuture<U> {
    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Failed { error: Some(error) }, lease: None }
    }
}

impl<U: HttpService> Future for TargetFuture<U> {
    type Output = Result<Response<TargetBody<U::ResponseBody>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = match this.state.project() {
            StateProj::Failed { error } => {
                return Poll::Ready(Err(error.take().unwrap_or_else(|| panic!("polled after completion")).into()));
            }
            StateProj::One { call } => ready!(call.poll(cx)).map_err(Into::into)?.map(TargetBody::one),
            StateProj::Set { call } => ready!(call.as_mut().poll(cx))?.map(TargetBody::of_set),
        };
        let (mut response, lease) = (response, this.lease.take());
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            return Poll::Ready(Ok(response.map(|body| body.with_lease(lease))));
        }
        if let Some(lease) = lease {
            TunnelGuard::insert(response.extensions_mut(), lease);
        }
        Poll::Ready(Ok(response))
    }
}

impl<U: HttpService> fmt::Debug for TargetFuture<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetFuture").finish_non_exhaustive()
    }
}

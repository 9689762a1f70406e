//! The future of a target's response.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{BoxError, body};
use http::{Request, Response, StatusCode};
use http_body::Body;
use pin_project_lite::pin_project;
use tower::util::Oneshot;

use super::{body::TargetBody, registry::Lease, service::ToTarget};
use crate::{
    balance::BalanceBody,
    error::Error,
    service::{HttpService, poll_ready_now},
    tunnel_guard::TunnelGuard,
};

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
            error: Option<BoxError>,
        },
        One {
            #[pin]
            call: U::Future,
        },
        // The others are boxed, because they are larger, or rare.
        Unready {
            call: Pin<Box<Oneshot<U, Request<body::Body>>>>,
        },
        Set {
            call: Pin<Box<dyn Future<Output = Balanced<U>> + Send>>,
        },
    }
}

impl<U> TargetFuture<U>
where
    U: HttpService<Future: Send> + Send + Sync + 'static,
{
    pub(super) fn calling(service: ToTarget<U>, lease: Lease, request: Request<body::Body>) -> Self {
        let state = match service {
            ToTarget::One(mut upstream) => match poll_ready_now(&mut upstream) {
                Poll::Ready(Ok(())) => State::One { call: upstream.call(request) },
                Poll::Ready(Err(error)) => State::Failed { error: Some(error.into()) },
                Poll::Pending => State::Unready { call: Box::pin(Oneshot::new(upstream, request)) },
            },
            ToTarget::Set(balance) => State::Set { call: Box::pin(Oneshot::new(balance, request)) },
        };
        Self { state, lease: Some(lease) }
    }
}

impl<U: HttpService> TargetFuture<U> {
    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Failed { error: Some(error.into()) }, lease: None }
    }
}

impl<U: HttpService> Future for TargetFuture<U> {
    type Output = Result<Response<TargetBody<U::ResponseBody>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = match this.state.project() {
            StateProj::Failed { error } => {
                return Poll::Ready(Err(error.take().unwrap_or_else(|| panic!("polled after completion"))));
            }
            StateProj::One { call } => ready!(call.poll(cx)).map_err(Into::into)?,
            StateProj::Unready { call } => ready!(call.as_mut().poll(cx)).map_err(Into::into)?,
            StateProj::Set { call } => {
                let mut response = ready!(call.as_mut().poll(cx))?;
                let lease = keep(&mut response, this.lease.take());
                return Poll::Ready(Ok(response.map(|body| TargetBody::of_set(body, lease))));
            }
        };
        let lease = keep(&mut response, this.lease.take());
        Poll::Ready(Ok(response.map(|body| TargetBody::one(body, lease))))
    }
}

/// Lets the lease end with the tunnel that a response opens, or returns it for the body.
fn keep<B: Body>(response: &mut Response<B>, lease: Option<Lease>) -> Option<Lease> {
    let lease = lease?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        TunnelGuard::insert(response.extensions_mut(), lease);
        return None;
    }
    (!response.body().is_end_stream()).then_some(lease)
}

impl<U: HttpService> fmt::Debug for TargetFuture<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetFuture").finish_non_exhaustive()
    }
}

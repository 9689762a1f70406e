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
use tower_service::Service;

use super::{body::TargetBody, registry::Lease};
use crate::{error::Error, service::HttpService, tunnel_guard::TunnelGuard};

pin_project! {
    /// The future of a [`TargetService`](super::TargetService)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request to the backend at once, and the target's pool is in use by one request less.
    #[must_use = "futures do nothing unless polled"]
    pub struct TargetFuture<U: Service<Request<Body>>> {
        #[pin]
        state: State<U>,
    }
}

pin_project! {
    #[project = StateProj]
    enum State<U: Service<Request<Body>>> {
        Failed {
            error: Option<Error>,
        },
        Calling {
            #[pin]
            call: Oneshot<U, Request<Body>>,
            lease: Option<Lease>,
        },
    }
}

impl<U: Service<Request<Body>>> TargetFuture<U> {
    pub(super) fn calling(upstream: U, lease: Lease, request: Request<Body>) -> Self {
        Self { state: State::Calling { call: Oneshot::new(upstream, request), lease: Some(lease) } }
    }

    pub(super) fn failed(error: Error) -> Self {
        Self { state: State::Failed { error: Some(error) } }
    }
}

impl<U: HttpService> Future for TargetFuture<U> {
    type Output = Result<Response<TargetBody<U::ResponseBody>>, BoxError>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().state.project() {
            StateProj::Failed { error } => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| panic!("polled after completion")).into()))
            }
            StateProj::Calling { call, lease } => {
                let mut response = ready!(call.poll(cx)).map_err(Into::into)?;
                let mut lease = lease.take();
                if response.status() == StatusCode::SWITCHING_PROTOCOLS
                    && let Some(lease) = lease.take()
                {
                    TunnelGuard::insert(response.extensions_mut(), lease);
                }
                Poll::Ready(Ok(response.map(|body| TargetBody::new(body, lease))))
            }
        }
    }
}

impl<U: Service<Request<Body>>> fmt::Debug for TargetFuture<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetFuture").finish_non_exhaustive()
    }
}

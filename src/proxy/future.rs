//! The futures of the two services.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use pin_project_lite::pin_project;
use tower_service::Service;

use crate::{forward::ForwardFuture, service::HttpService};

pin_project! {
    /// The future of a [`ReverseProxy`](crate::ReverseProxy)'s response.
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request to the backend at once.
    #[must_use = "futures do nothing unless polled"]
    pub struct ProxyFuture<U: Service<Request<Body>>> {
        #[pin]
        pub(super) inner: ForwardFuture<U>,
    }
}

impl<U: HttpService> Future for ProxyFuture<U> {
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map(Ok)
    }
}

pin_project! {
    /// The future of [`ReverseProxy::forward_to`](crate::ReverseProxy::forward_to).
    ///
    /// # Cancel safety
    ///
    /// Dropping it cancels the request to the backend at once.
    #[must_use = "futures do nothing unless polled"]
    pub struct ForwardToFuture<U: Service<Request<Body>>> {
        #[pin]
        pub(super) inner: ForwardFuture<U>,
    }
}

impl<U: HttpService> Future for ForwardToFuture<U> {
    type Output = Response<Body>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx)
    }
}

pin_project! {
    /// The future of a [`ReverseProxyService`](crate::ReverseProxyService)'s response: the wrapped service's own, or
    /// the proxy's.
    ///
    /// # Cancel safety
    ///
    /// If the request goes to the proxy, dropping the future cancels the request to the backend at once. Otherwise it's
    /// the cancel safety of the wrapped service.
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F, U: Service<Request<Body>>> {
        #[pin]
        pub(super) kind: Kind<F, U>,
    }
}

pin_project! {
    #[project = KindProj]
    pub(super) enum Kind<F, U: Service<Request<Body>>> {
        Inner { #[pin] future: F },
        Proxied { #[pin] future: ForwardFuture<U> },
    }
}

impl<F, B, E, U> Future for ResponseFuture<F, U>
where
    F: Future<Output = Result<Response<B>, E>>,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    U: HttpService,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().kind.project() {
            // axum's own body passes through `Body::new` as it is.
            KindProj::Inner { future } => Poll::Ready(ready!(future.poll(cx)).map(|response| response.map(Body::new))),
            KindProj::Proxied { future } => future.poll(cx).map(Ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        balance::{Balance, BalanceBody},
        client::{self, Client, ResponseBody},
        retry::Retry,
        targets::TargetService,
        upstream::Upstream,
    };

    /// In bytes, on a 64-bit machine. The future is copied into its task's box, and stays there until the backend
    /// responds.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_future_of_a_request_is_small() {
        let sizes = [
            size_of::<ProxyFuture<Upstream<Client>>>(),
            size_of::<client::ResponseFuture>(),
            size_of::<ResponseBody>(),
        ];
        assert!(sizes.into_iter().zip([520, 96, 128]).all(|(size, most)| size <= most), "{sizes:?}");
    }

    /// In bytes more than with one backend.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_future_of_a_balanced_request_is_hardly_larger() {
        type Balanced = Retry<Balance<Upstream<Client>>>;
        let one = size_of::<ProxyFuture<Upstream<Client>>>();
        let sizes = [
            size_of::<ProxyFuture<Balanced>>().saturating_sub(one),
            size_of::<ProxyFuture<TargetService>>().saturating_sub(one),
            size_of::<BalanceBody<ResponseBody>>() - size_of::<ResponseBody>(),
        ];
        assert!(sizes.into_iter().zip([8, 0, 16]).all(|(size, most)| size <= most), "{sizes:?}");
    }
}

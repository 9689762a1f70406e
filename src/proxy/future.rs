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

use crate::forward::ForwardFuture;

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

impl<U, B> Future for ProxyFuture<U>
where
    U: Service<Request<Body>, Response = Response<B>>,
    U::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.project().inner.poll(cx).map(Ok)
    }
}

pin_project! {
    /// The future of a [`ReverseProxyService`](crate::ReverseProxyService)'s response: the wrapped service's own, or the
    /// proxy's.
    ///
    /// # Cancel safety
    ///
    /// As that of the future it is; the proxy's cancels the request to the backend at once.
    #[must_use = "futures do nothing unless polled"]
    pub struct ServiceFuture<F, U: Service<Request<Body>>> {
        #[pin]
        pub(super) way: Way<F, U>,
    }
}

pin_project! {
    #[project = WayProj]
    pub(super) enum Way<F, U: Service<Request<Body>>> {
        Inner { #[pin] future: F },
        Proxied { #[pin] future: ForwardFuture<U> },
    }
}

impl<F, InnerBody, E, U, B> Future for ServiceFuture<F, U>
where
    F: Future<Output = Result<Response<InnerBody>, E>>,
    InnerBody: http_body::Body<Data = Bytes> + Send + 'static,
    InnerBody::Error: Into<BoxError>,
    U: Service<Request<Body>, Response = Response<B>>,
    U::Error: Into<BoxError>,
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.project().way.project() {
            // axum's own body passes through `Body::new` as it is.
            WayProj::Inner { future } => Poll::Ready(ready!(future.poll(cx)).map(|response| response.map(Body::new))),
            WayProj::Proxied { future } => future.poll(cx).map(Ok),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        client::{Client, ClientBody, ClientFuture},
        upstream::Upstream,
    };

    /// In bytes, on a 64-bit machine: it's copied into its task's box, and stays there while the backend thinks.
    #[test]
    #[cfg(target_pointer_width = "64")]
    fn the_future_of_a_request_is_small() {
        let sizes = [size_of::<ProxyFuture<Upstream<Client>>>(), size_of::<ClientFuture>(), size_of::<ClientBody>()];
        assert!(sizes.into_iter().zip([616, 288, 128]).all(|(size, most)| size <= most), "{sizes:?}");
    }
}

//! An upstream whose type can be named.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response};
use tower::{ServiceExt, util::BoxCloneSyncService};
use tower_service::Service;

use crate::service::HttpService;

/// An upstream of any type, boxed, for the field of a struct or for a list of different upstreams.
///
/// [`ReverseProxyLayer::boxed`](crate::ReverseProxyLayer::boxed) and
/// [`ReverseProxy::boxed`](crate::ReverseProxy::boxed) make one. It costs up to three allocations per request: a clone, a
/// future and, unless it is a [`Body`] already, the response's body.
///
/// ```
/// use tower_reverse_proxy::{BoxUpstream, RemoteUserLayer, ReverseProxy, ReverseProxyLayer};
///
/// struct App {
///     legacy: ReverseProxy<BoxUpstream>,
/// }
///
/// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(RemoteUserLayer::new());
/// let app = App { legacy: legacy.into_service().boxed() };
/// # let _ = app.legacy;
/// ```
#[derive(Clone)]
pub struct BoxUpstream(BoxCloneSyncService<Request<Body>, Response<Body>, BoxError>);

impl BoxUpstream {
    /// Boxes an upstream.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::{BoxUpstream, Upstream};
    ///
    /// let upstreams = [BoxUpstream::new(Upstream::new("http://127.0.0.1:8000")), BoxUpstream::new(Router::new())];
    /// # let _ = upstreams;
    /// ```
    pub fn new<U>(upstream: U) -> Self
    where
        U: HttpService + Send + Sync + 'static,
        U::Future: Send,
    {
        Self(BoxCloneSyncService::new(
            upstream.map_response(|response: Response<U::ResponseBody>| response.map(Body::new)).map_err(Into::into),
        ))
    }
}

impl Service<Request<Body>> for BoxUpstream {
    type Response = Response<Body>;
    type Error = BoxError;
    type Future = BoxResponseFuture;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        BoxResponseFuture(self.0.call(request))
    }
}

impl fmt::Debug for BoxUpstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxUpstream").finish_non_exhaustive()
    }
}

/// The future of a [`BoxUpstream`]'s response.
#[must_use = "futures do nothing unless polled"]
pub struct BoxResponseFuture(Pin<Box<dyn Future<Output = Result<Response<Body>, BoxError>> + Send>>);

impl Future for BoxResponseFuture {
    type Output = Result<Response<Body>, BoxError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.as_mut().poll(cx)
    }
}

impl fmt::Debug for BoxResponseFuture {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BoxResponseFuture").finish_non_exhaustive()
    }
}

//! The bounds of an upstream service, under one name.

use std::task::{Context, Poll, Waker};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use crate::error::Error;

/// A service that a proxy can forward requests to.
///
/// It's a trait alias, which types can't implement themselves. It's implemented for every
/// `Service<Request<Body>, Response = Response<B>>` that is [`Clone`], whose error is `Into<BoxError>`, and whose
/// response body `B` is an [`http_body::Body`] of [`Bytes`] that is `Send + 'static`. `Body` is
/// [`axum_core::body::Body`], which axum re-exports.
///
/// An [`Upstream`](crate::Upstream) is such a service. So are a [`ServiceBuilder`](tower::ServiceBuilder) stack
/// around it, a balancer, a [`service_fn`](tower::service_fn) and a `Router`. In axum, the service must also be
/// `Send + Sync + 'static` and its future `Send`.
///
/// The proxy clones the service for each request, waits until the clone is ready, and calls it.
///
/// ```
/// use axum::{Router, body::Body, http::Request, routing::get};
/// use tower_reverse_proxy::{HttpService, ReverseProxyLayer};
///
/// fn is_an_upstream<U: HttpService>(_: &U) {}
///
/// // A test uses a router in place of the backend.
/// let backend = Router::new().route("/mydir/page", get(|| async { "from the backend" }));
/// is_an_upstream(&backend);
/// let proxy = ReverseProxyLayer::with_upstream(backend).prefix("/mydir");
/// # let _: (_, Request<Body>) = (proxy, Request::default());
/// ```
///
/// # What isn't an upstream
///
/// The compiler's message names what is missing.
///
/// An address isn't a service:
///
/// ```compile_fail,E0277
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// // "… can't be an upstream"
/// let proxy = ReverseProxyLayer::with_upstream("http://127.0.0.1:8000");
/// ```
///
/// axum's `from_fn` can't be an upstream layer, because it wraps only services that never fail. A
/// [`MapRequestLayer`](tower::util::MapRequestLayer) or your own layer does the same on the upstream side. On the
/// client's side, `from_fn` is added to the router.
///
/// ```compile_fail,E0277
/// use axum::{body::Body, extract::Request, middleware::{Next, from_fn}, response::Response};
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// async fn middleware(request: Request, next: Next) -> Response {
///     next.run(request).await
/// }
///
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(from_fn(middleware));
/// ```
///
/// ```
/// use axum::{body::Body, http::{HeaderValue, Request}};
/// use tower::util::MapRequestLayer;
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(MapRequestLayer::new(
///     |mut request: Request<Body>| {
///         request.headers_mut().insert("x-api-version", HeaderValue::from_static("2"));
///         request
///     },
/// ));
/// # let _ = proxy;
/// ```
///
/// A rate limit isn't `Clone`, because each clone would have a separate limit. The clones of a buffer around it share
/// one limit:
///
/// ```compile_fail,E0277
/// use std::time::Duration;
/// use tower::limit::RateLimitLayer;
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// let limit = RateLimitLayer::new(100, Duration::from_secs(1));
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(limit);
/// ```
///
/// ```
/// use std::time::Duration;
/// use tower::ServiceBuilder;
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let limit = ServiceBuilder::new().buffer(1024).rate_limit(100, Duration::from_secs(1));
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(limit);
/// # let _ = proxy;
/// # });
/// ```
///
/// A layer that rejects requests can't wrap a service whose error isn't `From<`[`Error`](crate::Error)`>`, such as a
/// `Router`, whose error is `Infallible`. [`BoxUpstream::new`](crate::BoxUpstream::new) converts the error to
/// [`BoxError`]:
///
/// ```compile_fail,E0277
/// use axum::Router;
/// use tower::Layer;
/// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
///
/// let proxy = ReverseProxyLayer::with_upstream(RemoteUserLayer::new().layer(Router::new()));
/// ```
///
/// ```
/// use axum::Router;
/// use tower::Layer;
/// use tower_reverse_proxy::{BoxUpstream, RemoteUserLayer, ReverseProxyLayer};
///
/// let mock = BoxUpstream::new(Router::new());
/// let proxy = ReverseProxyLayer::with_upstream(RemoteUserLayer::new().layer(mock));
/// # let _ = proxy;
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` can't be an upstream of a reverse proxy",
    label = "not a service from `Request<Body>` to `Response<_>` that can be cloned",
    note = "an upstream is a `Service<Request<Body>, Response = Response<B>> + Clone`, where `Body` is axum's, the error is `Into<BoxError>`, and `B` is a `Send` body of `Bytes`",
    note = "the address of a backend goes into `ReverseProxyLayer::new`, or into `Upstream::new`",
    note = "`axum::middleware::from_fn` can't be an upstream layer, because it wraps only services that never fail: use a `tower::util::MapRequestLayer`, or put it around the router",
    note = "a rate limit isn't `Clone`: put a buffer around it, as in `ServiceBuilder::new().buffer(1024).rate_limit(100, Duration::from_secs(1))`",
    note = "a layer that rejects requests, as `RemoteUserLayer`, wraps services whose error is `From<tower_reverse_proxy::Error>`: `BoxUpstream::new` makes one of a `Router`",
    note = "`option_layer` needs a layer that keeps the error and the response type: `Upstream::boxed` gives all clients one type"
)]
pub trait HttpService:
    Service<Request<Body>, Response = Response<Self::ResponseBody>, Error: Into<BoxError>> + Clone
{
    /// The body of its responses.
    type ResponseBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static;
}

#[diagnostic::do_not_recommend]
impl<U, B> HttpService for U
where
    U: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>> + Clone,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type ResponseBody = B;
}

/// Polls a service outside of a task. Most services are always ready, so that the request, which is large to move, is
/// handed on at once. One that is pending is polled again, with the waker of the task.
pub(crate) fn poll_ready_now<S: HttpService>(service: &mut S) -> Poll<Result<(), S::Error>> {
    service.poll_ready(&mut Context::from_waker(Waker::noop()))
}

/// An error that a layer which rejects requests can return: any error that is `From<`[`Error`]`>`.
///
/// It's a trait alias, which [`Error`] itself, `BoxError` and every other type with that conversion implement. Upstream
/// layers that reject requests wrap services with such an error. `Infallible`, the error of a `Router`, doesn't
/// implement it.
///
/// ```compile_fail,E0277
/// use axum::Router;
/// use tower_reverse_proxy::RemoteUserLayer;
///
/// // This layer belongs on the upstream side.
/// let app: Router = Router::new().layer(RemoteUserLayer::new());
/// ```
///
/// Your own layer rejects requests around any client:
///
/// ```
/// use std::task::{Context, Poll};
///
/// use axum::http::{Request, StatusCode};
/// use tower::{Service, layer::layer_fn};
/// use tower_reverse_proxy::{Error, FromRejection, ReverseProxyLayer};
///
/// #[derive(Clone)]
/// struct ReadOnly<S>(S);
///
/// impl<S, B> Service<Request<B>> for ReadOnly<S>
/// where
///     S: Service<Request<B>, Error: FromRejection>,
/// {
///     type Response = S::Response;
///     type Error = S::Error;
///     type Future = futures_util::future::Either<S::Future, std::future::Ready<Result<S::Response, S::Error>>>;
///
///     fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
///         self.0.poll_ready(cx)
///     }
///
///     fn call(&mut self, request: Request<B>) -> Self::Future {
///         if request.method().is_safe() {
///             return futures_util::future::Either::Left(self.0.call(request));
///         }
///         let error = Error::rejected(StatusCode::SERVICE_UNAVAILABLE, "the site is read-only");
///         futures_util::future::Either::Right(std::future::ready(Err(error.into())))
///     }
/// }
///
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(layer_fn(ReadOnly));
/// # let _ = proxy;
/// ```
#[diagnostic::on_unimplemented(
    message = "a layer that rejects requests can't wrap a service whose error is `{Self}`",
    label = "this error can't be made of a `tower_reverse_proxy::Error`",
    note = "`RemoteUserLayer` and the layers that sign in, as `BasicAuthLayer`, belong on the upstream side: `ReverseProxyLayer::upstream_layer(..)`",
    note = "`BoxUpstream::new` makes an upstream of a `Router`, whose error is a `BoxError`"
)]
pub trait FromRejection: From<Error> {}

#[diagnostic::do_not_recommend]
impl<E: From<Error>> FromRejection for E {}

//! The layer: where a proxy is put together.

use std::sync::Arc;

use tower_layer::{Identity, Layer, Stack};

use super::{
    build::{ToBackend, ToService},
    service::{ReverseProxy, ReverseProxyService},
};
use crate::{
    backend::{Backend, InvalidBackend},
    client::{self, Client},
    forward::Rules,
    upstream::Upstream,
};

/// A layer that mounts another web server as a directory of an application.
///
/// Requests whose path is the [`prefix`](Self::prefix) or below it go to the backend. Everything else goes to the wrapped
/// service, untouched.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// let app: Router = Router::new()
///     .route("/", get(|| async { "home" }))
///     .layer(ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir"));
/// ```
///
/// Both sides have the same layout: `/mydir/page?x` at the front is `/mydir/page?x` at the backend, byte for byte. No link
/// has to be rewritten. Where the layouts differ, see [`strip_prefix`](Self::strip_prefix) and
/// [`replace_prefix`](Self::replace_prefix).
///
/// Without a prefix, everything is the backend's, the application's own routes included:
/// `fallback_service(ReverseProxy::new(url))` leaves these alone.
///
/// # The upstream side
///
/// [`upstream_layer`](Self::upstream_layer) puts tower layers between the proxy and the backend: identity, credentials,
/// limits. There the request has been cleaned of what the client doesn't get to say, and nothing that the client said can
/// undo what a layer adds. The layer that is added first sees the request first.
///
/// # Authentication layers
///
/// A layer added *after* this one guards the backend too, one added before doesn't. `Router::route_layer` guards the
/// routes that exist, and a prefix of this layer isn't a route: use `Router::layer`, or mount a [`ReverseProxy`] with
/// `nest_service`, which is a route.
///
/// # Type parameters
///
/// `U` is the upstream service, `P` what it's built from; neither has to be written.
#[derive(Clone, Debug)]
#[must_use]
pub struct ReverseProxyLayer<U = Upstream<Client>, P = ToBackend> {
    pub(super) proxy: ReverseProxy<U>,
    /// Shared: axum clones the layer of a fallback with every request.
    pub(super) parts: Arc<P>,
}

impl ReverseProxyLayer {
    /// Forwards to a backend: an origin as `&str`, `String`, [`Uri`](http::Uri) or [`Backend`].
    ///
    /// # Panics
    ///
    /// If `backend` isn't an origin, with a message that says what to write instead. [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new(backend: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Self {
        // Not in a closure: the panic has to show the caller's line.
        match Self::try_new(backend) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Forwards to a backend: an origin as `&str`, `String`, [`Uri`](http::Uri) or [`Backend`].
    ///
    /// # Errors
    ///
    /// If `backend` isn't an origin, or can't be reached with the features that are on.
    pub fn try_new(backend: impl TryInto<Backend, Error: Into<InvalidBackend>>) -> Result<Self, InvalidBackend> {
        let backend = backend.try_into().map_err(Into::into)?;
        client::check(&backend)?;
        let parts = ToBackend::new(backend);
        Ok(Self {
            proxy: ReverseProxy { upstream: parts.build(), rules: Arc::new(Rules::default()) },
            parts: Arc::new(parts),
        })
    }
}

impl<U: Clone> ReverseProxyLayer<U, ToService<U>> {
    /// Forwards to any service from `Request<Body>` to a response: a balancer, a mock, a stack of
    /// [`ServiceBuilder`](tower::ServiceBuilder)'s.
    ///
    /// The service gets requests in origin-form, with the client's `Host`. [`Upstream`] addresses them to a backend.
    pub fn with_upstream(upstream: U) -> Self {
        let parts = ToService { service: upstream.clone(), layers: Identity::new() };
        Self { proxy: ReverseProxy { upstream, rules: Arc::new(Rules::default()) }, parts: Arc::new(parts) }
    }
}

impl<U, L: Clone> ReverseProxyLayer<U, ToBackend<L>> {
    /// Adds a layer on the upstream side, between the proxy and the backend.
    ///
    /// It sees each request as the backend will get it, and the backend's answer as it came. The layer that is added first
    /// sees the request first. It's applied once, however many routes the proxy is wrapped around.
    #[expect(clippy::type_complexity, reason = "an alias would hide which service it is")]
    pub fn upstream_layer<N>(
        self,
        layer: N,
    ) -> ReverseProxyLayer<Upstream<<Stack<N, L> as Layer<Client>>::Service>, ToBackend<Stack<N, L>>>
    where
        Stack<N, L>: Layer<Client>,
    {
        let ToBackend { to, client, layers } = Arc::unwrap_or_clone(self.parts);
        let parts = ToBackend { to, client, layers: Stack::new(layer, layers) };
        let proxy = ReverseProxy { upstream: parts.build(), rules: self.proxy.rules };
        ReverseProxyLayer { proxy, parts: Arc::new(parts) }
    }
}

impl<U, S: Clone, L: Clone> ReverseProxyLayer<U, ToService<S, L>> {
    /// Adds a layer around the upstream service.
    ///
    /// It sees each request as the service will get it. The layer that is added first sees the request first. It's applied
    /// once, however many routes the proxy is wrapped around.
    #[expect(clippy::type_complexity, reason = "an alias would hide which service it is")]
    pub fn upstream_layer<N>(
        self,
        layer: N,
    ) -> ReverseProxyLayer<<Stack<N, L> as Layer<S>>::Service, ToService<S, Stack<N, L>>>
    where
        Stack<N, L>: Layer<S>,
    {
        let ToService { service, layers } = Arc::unwrap_or_clone(self.parts);
        let parts = ToService { service, layers: Stack::new(layer, layers) };
        let proxy = ReverseProxy { upstream: parts.build(), rules: self.proxy.rules };
        ReverseProxyLayer { proxy, parts: Arc::new(parts) }
    }
}

impl<U, P> ReverseProxyLayer<U, P> {
    /// Makes a service of its own, that sends every request below the prefix to the upstream, and refuses others with 400.
    ///
    /// For `nest_service`, `fallback_service`, `route_service`, or a handler. Under a nest, the prefix is the nest's: leave
    /// it out here.
    pub fn into_service(self) -> ReverseProxy<U> {
        self.proxy
    }
}

impl<S, U: Clone, P> Layer<S> for ReverseProxyLayer<U, P> {
    type Service = ReverseProxyService<S, U>;

    fn layer(&self, inner: S) -> Self::Service {
        ReverseProxyService::new(inner, self.proxy.clone())
    }
}

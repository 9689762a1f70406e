//! The two services: the proxy itself, and the middleware in front of another service.

use std::{
    convert::Infallible,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{Request, Response};
use tower_service::Service;

use super::future::{Kind, ProxyFuture, ResponseFuture};
#[cfg(doc)]
use super::layer::ReverseProxyLayer;
use crate::{
    client::{Client, InvalidClient},
    forward::{ForwardConfig, choose, forward},
    service::HttpService,
    upstream::{BoxUpstream, Upstream},
};

/// A service that sends every request to its upstream.
///
/// It's for axum's `nest_service`, `fallback_service` and `route_service`, or to be called from a handler. Under a
/// nest, the backend sees the full path, as the client sent it. It can't fail, because a failure becomes a response,
/// with the [`Error`](crate::Error) in its extensions.
///
/// ```
/// use axum::{Router, routing::get};
/// use tower_reverse_proxy::ReverseProxy;
///
/// let app: Router = Router::new()
///     .route("/new", get(|| async { "already rewritten" }))
///     // The backend sees /mydir, /mydir/ and /mydir/x as they are.
///     .nest_service("/mydir", ReverseProxy::new("http://127.0.0.1:8000"))
///     // All the rest is the legacy site's.
///     .fallback_service(ReverseProxy::new("http://127.0.0.1:8001"));
/// ```
///
/// Options are the layer's: [`ReverseProxyLayer::into_service`] makes a service of them. Clones share everything.
#[derive(Clone, Debug)]
pub struct ReverseProxy<U = Upstream<Client>> {
    pub(super) upstream: U,
    pub(super) config: Arc<ForwardConfig>,
}

impl ReverseProxy {
    /// Forwards every request to a backend: its origin as `&str`, `String`, [`Uri`](http::Uri) or
    /// [`Backend`](crate::Backend), or a [`Client`] of it, or a [`ClientBuilder`](crate::ClientBuilder).
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::ReverseProxy;
    ///
    /// let app: Router = Router::new().fallback_service(ReverseProxy::new("http://127.0.0.1:8000"));
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't an origin, or the client can't be built, with a message that names what to write instead.
    /// [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Self {
        Self::with_upstream(Upstream::new(client))
    }

    /// Forwards every request to a backend, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxy;
    ///
    /// let from_configuration = "unix:/run/app.sock";
    /// assert!(ReverseProxy::try_new(from_configuration).is_ok());
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't an origin, or the client can't be built.
    pub fn try_new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Result<Self, InvalidClient> {
        Upstream::try_new(client).map(Self::with_upstream)
    }
}

impl<U: HttpService> ReverseProxy<U> {
    /// Forwards every request to an upstream service, as [`ReverseProxyLayer::with_upstream`] does.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::{ReverseProxy, Upstream};
    ///
    /// let intranet = ReverseProxy::with_upstream(Upstream::new("http://10.0.0.7").host("intranet.example"));
    /// let app: Router = Router::new().nest_service("/intranet", intranet);
    /// ```
    pub fn with_upstream(upstream: U) -> Self {
        Self { upstream, config: Arc::new(ForwardConfig::default()) }
    }

    /// Boxes the upstream, so that the type can be named independently of its layers: [`BoxUpstream`].
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use tower_reverse_proxy::{BoxUpstream, RemoteUserLayer, ReverseProxy, ReverseProxyLayer};
    ///
    /// // Proxies with different layers, in one map.
    /// let wiki = ReverseProxyLayer::new("http://127.0.0.1:8001").upstream_layer(RemoteUserLayer::new()).into_service();
    /// let sites: HashMap<&str, ReverseProxy<BoxUpstream>> =
    ///     [("wiki", wiki.boxed()), ("shop", ReverseProxy::new("http://127.0.0.1:8002").boxed())].into();
    /// # let _ = sites;
    /// ```
    pub fn boxed(self) -> ReverseProxy<BoxUpstream>
    where
        U: Send + Sync + 'static,
        U::Future: Send,
    {
        ReverseProxy { upstream: BoxUpstream::new(self.upstream), config: self.config }
    }
}

impl<U, B> Service<Request<B>> for ReverseProxy<U>
where
    U: HttpService,
    B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = ProxyFuture<U>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The readiness of the upstream is awaited in the future, on a clone.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(function) = &self.config.choose {
            // There is no other service for a request that isn't the proxy's. Its upstream refuses it.
            choose(function, &mut request);
        }
        ProxyFuture { inner: forward(self.config.clone(), self.upstream.clone(), request.map(Body::new)) }
    }
}

/// The middleware that [`ReverseProxyLayer`] makes: requests below the prefix go to the proxy, everything else goes to
/// the wrapped service, untouched.
///
/// Its readiness is that of the wrapped service, so an unavailable backend doesn't block other routes.
///
/// A clone shares the wrapped service and makes its own copy when it's first polled for readiness. Cloning therefore
/// costs the same in front of one proxy as in front of a hundred, and a clone for each request, as axum makes one,
/// copies each service of the chain once. It's `Send` if the wrapped service is `Send` and `Sync`.
///
/// ```
/// use axum::Router;
/// use tower::Layer;
/// use tower_reverse_proxy::ReverseProxyLayer;
///
/// let service = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").layer(Router::<()>::new());
/// let router: &Router = service.get_ref();
/// # let _ = router;
/// ```
pub struct ReverseProxyService<S, U = Upstream<Client>> {
    /// The template of all clones. It's never called, so that all clones begin in the same state.
    template: Arc<S>,
    /// This clone's own copy.
    inner: Option<S>,
    proxy: ReverseProxy<U>,
}

impl<S, U> ReverseProxyService<S, U> {
    pub(super) fn new(inner: S, proxy: ReverseProxy<U>) -> Self {
        Self { template: Arc::new(inner), inner: None, proxy }
    }

    /// Returns a reference to the wrapped service.
    ///
    /// ```
    /// use tower::Layer;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let service = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").layer("the wrapped service");
    /// assert_eq!(*service.get_ref(), "the wrapped service");
    /// ```
    pub fn get_ref(&self) -> &S {
        self.inner.as_ref().unwrap_or(&self.template)
    }
}

impl<S: Clone, U> ReverseProxyService<S, U> {
    /// Returns a mutable reference to the wrapped service.
    ///
    /// Later clones include the changes.
    ///
    /// ```
    /// use tower::Layer;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let mut service = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").layer("the wrapped service");
    /// *service.get_mut() = "another one";
    /// assert_eq!(*service.clone().get_ref(), "another one");
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        if let Some(inner) = self.inner.take() {
            self.template = Arc::new(inner);
        }
        Arc::make_mut(&mut self.template)
    }

    /// Returns the wrapped service.
    ///
    /// ```
    /// use tower::Layer;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let service = ReverseProxyLayer::new("http://127.0.0.1:8000").prefix("/mydir").layer("the wrapped service");
    /// assert_eq!(service.into_inner(), "the wrapped service");
    /// ```
    pub fn into_inner(self) -> S {
        self.inner.unwrap_or_else(|| Arc::unwrap_or_clone(self.template))
    }

    /// This clone's own copy of the wrapped service, made when it's first needed.
    fn inner(&mut self) -> &mut S {
        self.inner.get_or_insert_with(|| S::clone(&self.template))
    }
}

impl<S, U: Clone> Clone for ReverseProxyService<S, U> {
    fn clone(&self) -> Self {
        Self { template: self.template.clone(), inner: None, proxy: self.proxy.clone() }
    }
}

impl<S: fmt::Debug, U: fmt::Debug> fmt::Debug for ReverseProxyService<S, U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReverseProxyService").field("inner", self.get_ref()).field("proxy", &self.proxy).finish()
    }
}

impl<S, U, ReqBody, ResBody> Service<Request<ReqBody>> for ReverseProxyService<S, U>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>> + Clone,
    U: HttpService,
    ReqBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    ResBody: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, U>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner().poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let ReverseProxy { upstream, config } = &self.proxy;
        let mut is_proxied = config.prefix.rest(request.uri().path()).is_some();
        if let Some(function) = &config.choose
            && is_proxied
        {
            is_proxied = choose(function, &mut request);
        }
        let kind = if is_proxied {
            Kind::Proxied { future: forward(config.clone(), upstream.clone(), request.map(Body::new)) }
        } else {
            Kind::Inner { future: self.inner().call(request) }
        };
        ResponseFuture { kind }
    }
}

//! Proxies with a target per request.

use std::sync::Arc;

use axum_core::{BoxError, body::Body};
use bytes::Bytes;
use http::{Extensions, Request, request::Parts};
use tower_layer::Layer;

use super::{future::ForwardToFuture, layer::ReverseProxyLayer, service::ReverseProxy};
use crate::{
    forward::{Choose, forward},
    service::HttpService,
    targets::{Target, TargetService, Targets},
    upstream::Upstream,
};

impl ReverseProxyLayer<TargetService> {
    /// Forwards each request to the [`Target`] in its extensions.
    ///
    /// The application inserts it: in a middleware that is added to the router after this layer, in a handler by
    /// [`forward_to`](ReverseProxy::forward_to), or by [`select`](Self::select). A request with [`Target::pass`] goes
    /// to the wrapped service. One without a target fails with 500
    /// ([`ErrorKind::NoTarget`](crate::ErrorKind::NoTarget)), and a warning names the extension.
    ///
    /// ```
    /// # tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
    /// use axum::{Router, body::Body, extract::Request, middleware::{Next, from_fn}, routing::get};
    /// # use axum::http::StatusCode;
    /// # use tower::ServiceExt;
    /// use tower_reverse_proxy::{Backend, ReverseProxyLayer, Target, Targets};
    ///
    /// let tenants: Backend = "http://tenants.internal:8000".parse().unwrap();
    /// // The application has found out before who is signed in.
    /// # #[derive(Clone)]
    /// # struct User { tenant: String }
    /// let choose = move |mut request: Request, next: Next| {
    ///     let user = request.extensions().get::<User>();
    ///     let backend = user.and_then(|user| tenants.subdomain(&user.tenant).ok());
    ///     request.extensions_mut().insert(backend.map_or_else(Target::pass, Target::to));
    ///     next.run(request)
    /// };
    /// let app: Router = Router::new()
    ///     .fallback(async || "sign in first")
    ///     .layer(ReverseProxyLayer::to(Targets::new()).prefix("/app"))
    ///     .layer(from_fn(choose));
    /// # let request = Request::get("/app/x").body(Body::empty()).unwrap();
    /// # assert_eq!(app.oneshot(request).await.unwrap().status(), StatusCode::OK);
    /// # });
    /// ```
    ///
    /// # Security
    ///
    /// Nothing that a client sends is a target: neither its `Host` nor its path nor a field chooses one, unless the
    /// application's code makes it so. See the [security of `Target`](Target#security).
    #[doc(alias = "tenant")]
    #[doc(alias = "dynamic upstream")]
    pub fn to(targets: Targets) -> Self {
        let mut layer = Self::with_upstream(TargetService::new(targets));
        Arc::make_mut(&mut layer.proxy.config).choose = Some(Choose { present, select: None });
        layer
    }
}

impl<C: 'static> ReverseProxyLayer<TargetService<Upstream<C>>> {
    /// Adds a layer on the upstream side, around the client of each target.
    ///
    /// It's applied once per target, when its pool is made: a limit is one for each target, and its state goes with the
    /// pool. Otherwise, it's as with a [single backend](ReverseProxyLayer::upstream_layer).
    ///
    /// ```
    /// use tower::limit::ConcurrencyLimitLayer;
    /// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer, Targets};
    ///
    /// // Each target gets 16 requests at a time.
    /// let layer = ReverseProxyLayer::to(Targets::new())
    ///     .upstream_layer(ConcurrencyLimitLayer::new(16))
    ///     .upstream_layer(RemoteUserLayer::new());
    /// # let _ = layer;
    /// ```
    ///
    /// # Security
    ///
    /// All targets get what the layer adds. The credentials of a [`BasicAuthLayer`](crate::BasicAuthLayer) are sent to
    /// each backend that the application names.
    pub fn upstream_layer<L>(self, layer: L) -> ReverseProxyLayer<TargetService<Upstream<L::Service>>>
    where
        L: Layer<C> + Send + Sync + 'static,
        TargetService<Upstream<L::Service>>: HttpService,
    {
        self.map_upstream(|service| service.layer(layer))
    }
}

impl<U> ReverseProxyLayer<TargetService<U>> {
    /// Sets the function that chooses the target of a request which has none in its extensions. Default: none.
    ///
    /// It's called with the head of each request below the prefix, as the client sent it, before anything of it is
    /// checked. With `None`, the request fails as one without a target; with [`Target::pass`], the wrapped service gets
    /// it. A choice that has to wait for something belongs into a middleware or a handler.
    ///
    /// ```
    /// use std::collections::HashMap;
    /// use axum::http::header::HOST;
    /// use tower_reverse_proxy::{Backend, ReverseProxyLayer, Target, Targets};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidBackend> {
    /// let by_host: HashMap<&str, Backend> =
    ///     [("a.example", "http://10.0.0.7:8000".parse()?), ("b.example", "http://10.0.0.8:8000".parse()?)].into();
    /// let proxy = ReverseProxyLayer::to(Targets::new()).select(move |head| {
    ///     let host = head.headers.get(HOST)?.to_str().ok()?;
    ///     // A name that isn't in the table is the application's own.
    ///     Some(by_host.get(host).map_or_else(Target::pass, Target::to))
    /// });
    /// # let _ = proxy;
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Security
    ///
    /// The head is the client's choice. Look its values up in what the application knows. A backend that is parsed from
    /// them makes the front an open proxy.
    pub fn select(mut self, select: impl Fn(&Parts) -> Option<Target> + Send + Sync + 'static) -> Self {
        let select = move |head: &mut Parts| match select(head) {
            // It isn't inserted, because another proxy inside may choose for itself.
            Some(target) if target.is_pass() => false,
            Some(target) => {
                head.extensions.insert(target);
                true
            }
            None => true,
        };
        Arc::make_mut(&mut self.proxy.config).choose = Some(Choose { present, select: Some(Arc::new(select)) });
        self
    }
}

/// Returns whether a request that has a target is the proxy's.
fn present(extensions: &Extensions) -> Option<bool> {
    Some(!extensions.get::<Target>()?.is_pass())
}

impl<U> ReverseProxy<TargetService<U>>
where
    TargetService<U>: HttpService,
{
    /// Forwards a request to a target: a [`Backend`](crate::Backend), or a [`Target`].
    ///
    /// It's for handlers, and replaces the target that the request has. It can't fail, because a failure becomes a
    /// response.
    ///
    /// ```
    /// use axum::{extract::{Request, State}, http::StatusCode, response::Response};
    /// use tower_reverse_proxy::{Backend, ReverseProxy, targets::TargetService};
    ///
    /// # #[derive(Clone)]
    /// # struct Database;
    /// # impl Database { async fn backend_of(&self, _: &str) -> Option<Backend> { None } }
    /// # struct User { tenant: String }
    /// #[derive(Clone)]
    /// struct App {
    ///     proxy: ReverseProxy<TargetService>,
    ///     database: Database,
    /// }
    ///
    /// async fn tenant(State(app): State<App>, user: User, request: Request) -> Result<Response, StatusCode> {
    ///     let backend = app.database.backend_of(&user.tenant).await.ok_or(StatusCode::NOT_FOUND)?;
    ///     Ok(app.proxy.forward_to(backend, request).await)
    /// }
    /// # let _ = tenant;
    /// ```
    ///
    /// # Cancel safety
    ///
    /// Dropping the future cancels the request to the backend at once.
    pub fn forward_to<B>(&self, target: impl Into<Target>, mut request: Request<B>) -> ForwardToFuture<TargetService<U>>
    where
        B: http_body::Body<Data = Bytes, Error: Into<BoxError>> + Send + 'static,
    {
        request.extensions_mut().insert(target.into());
        ForwardToFuture { inner: forward(self.config.clone(), self.upstream.clone(), request.map(Body::new)) }
    }
}

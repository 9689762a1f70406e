//! The layer, with which a proxy is configured and mounted.

use tower_layer::Layer;

use super::service::{ReverseProxy, ReverseProxyService};
use crate::{
    balance::{Backends, Balance, InvalidBackends, Member},
    client::{Client, InvalidClient},
    retry::{Retry, RetryPolicy},
    service::HttpService,
    upstream::{BoxUpstream, Upstream},
};

/// A layer that mounts another web server as a directory of an application.
///
/// Requests whose path is the [`prefix`](Self::prefix) or below it go to the backend. Everything else goes to the
/// wrapped service, unchanged.
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
/// Both sides have the same layout: `/mydir/page?x` at the front is `/mydir/page?x` at the backend, byte for byte, so
/// no link has to be rewritten. Where the layouts differ, see [`strip_prefix`](Self::strip_prefix) and
/// [`replace_prefix`](Self::replace_prefix).
///
/// Without a prefix, every request goes to the backend, those for the application's own routes included.
/// `fallback_service(ReverseProxy::new(url))` leaves these to the application.
///
/// # The upstream side
///
/// [`upstream_layer`](Self::upstream_layer) puts tower layers between the proxy and the backend: identity, credentials,
/// limits. There, the proxy has removed the header fields that a client must not set, and nothing that a client sends
/// can undo what a layer adds. The layer that is added last sees the request first, as with axum's `Router::layer`; a
/// [`ServiceBuilder`](tower::ServiceBuilder) adds several that read from top to bottom.
///
/// # Authentication layers
///
/// A layer that is added to the router *after* this one guards the backend too; one that is added before doesn't.
/// `Router::route_layer` guards the routes that exist, and a prefix of this layer isn't a route: use `Router::layer`,
/// or mount a [`ReverseProxy`] with `nest_service`, which is a route.
///
#[doc = include_str!("../docs/options.md")]
#[derive(Clone, Debug)]
#[must_use]
#[doc(alias = "proxy_pass")]
#[doc(alias = "ProxyPass")]
#[doc(alias = "middleware")]
pub struct ReverseProxyLayer<U = Upstream<Client>> {
    pub(super) proxy: ReverseProxy<U>,
}

impl ReverseProxyLayer {
    /// Forwards to a backend: its origin as `&str`, `String`, [`Uri`](http::Uri) or [`Backend`](crate::Backend), or a
    /// [`Client`] of it, or a [`ClientBuilder`](crate::ClientBuilder), which has the client's options.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, ReverseProxyLayer};
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000");
    /// let limited = ReverseProxyLayer::new(Client::builder("http://127.0.0.1:8000").max_connections(64));
    /// # let _ = (proxy, limited);
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't an origin, or the client can't be built, with a message that names what to write instead.
    /// [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Self {
        Self { proxy: ReverseProxy::new(client) }
    }

    /// Forwards to a backend, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let error = ReverseProxyLayer::try_new("127.0.0.1:8000").unwrap_err();
    /// assert!(error.to_string().contains("http://127.0.0.1:8000"));
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't an origin, or the client can't be built.
    pub fn try_new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Result<Self, InvalidClient> {
        Ok(Self { proxy: ReverseProxy::try_new(client)? })
    }
}

impl ReverseProxyLayer<Retry<Balance<Upstream<Client>>>> {
    /// Forwards each request to one of several backends: a list of origins or of [`Member`]s, or [`Backends`], or their
    /// builder, which has the options.
    ///
    /// It goes to the backend with the fewest requests in flight: see [`balance`](crate::balance). If nothing of it
    /// reached that one, it's sent to another: see [`retry`](Self::retry). A handle of the [`Backends`] changes the set
    /// later.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backends, ReverseProxyLayer};
    ///
    /// let proxy = ReverseProxyLayer::balanced(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]).prefix("/app");
    /// // With a handle:
    /// let backends = Backends::new(["http://10.0.0.1:8000", "http://10.0.0.2:8000"]);
    /// let proxy = ReverseProxyLayer::balanced(&backends).prefix("/app");
    /// # let _ = proxy;
    /// ```
    ///
    /// # Panics
    ///
    /// If there is no backend, or one is invalid, with a message that names what to write instead.
    /// [`try_balanced`](Self::try_balanced) returns it.
    #[track_caller]
    #[doc(alias = "load balancer")]
    #[doc(alias = "upstream")]
    pub fn balanced(backends: impl TryInto<Backends, Error: Into<InvalidBackends>>) -> Self {
        match Self::try_balanced(backends) {
            Ok(layer) => layer,
            Err(error) => panic!("{error}"),
        }
    }

    /// Forwards each request to one of several backends, as [`balanced`](Self::balanced) does.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let error = ReverseProxyLayer::try_balanced(["http://10.0.0.1:8000", "10.0.0.2:8000"]).unwrap_err();
    /// assert!(error.to_string().contains("http://"));
    /// ```
    ///
    /// # Errors
    ///
    /// If there is no backend, or one is invalid.
    pub fn try_balanced(
        backends: impl TryInto<Backends, Error: Into<InvalidBackends>>,
    ) -> Result<Self, InvalidBackends> {
        let backends = backends.try_into().map_err(Into::into)?.with_addresses()?;
        let balance = Balance::new(&backends, |member: &Member| match member.client() {
            Some(client) => Upstream::with_client(client.backend().clone(), client.clone()),
            None => panic!("a member with an address has a client"),
        });
        let cookie = backends.cookie_name();
        let layer = Self::with_upstream(Retry::new(balance, RetryPolicy::default()));
        Ok(layer.configure(|config| config.upstream_cookie = cookie))
    }
}

impl<U: HttpService> ReverseProxyLayer<U> {
    /// Forwards to any service from `Request<Body>` to a response: an [`Upstream`] with its options, a balancer, a
    /// stack of [`ServiceBuilder`](tower::ServiceBuilder)'s, a mock.
    ///
    /// The service gets requests in origin-form, with the client's `Host`. [`Upstream`] addresses them to a backend.
    ///
    /// ```
    /// use axum::{Router, routing::get};
    /// use tower_reverse_proxy::{ReverseProxyLayer, Upstream};
    ///
    /// let virtual_host = ReverseProxyLayer::with_upstream(Upstream::new("http://10.0.0.7").host("intranet.example"));
    /// // In a test, in the backend's place.
    /// let mock = ReverseProxyLayer::with_upstream(Router::new().route("/mydir/page", get(|| async { "page" })));
    /// # let _ = (virtual_host, mock);
    /// ```
    #[doc(alias = "load balance")]
    pub fn with_upstream(upstream: U) -> Self {
        Self { proxy: ReverseProxy::with_upstream(upstream) }
    }

    /// Boxes the upstream, so that the type can be named independently of its layers: [`BoxUpstream`].
    ///
    /// ```
    /// use tower_reverse_proxy::{BoxUpstream, RemoteUserLayer, ReverseProxyLayer};
    ///
    /// fn legacy() -> ReverseProxyLayer<BoxUpstream> {
    ///     ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(RemoteUserLayer::new()).boxed()
    /// }
    /// # let _ = legacy();
    /// ```
    pub fn boxed(self) -> ReverseProxyLayer<BoxUpstream>
    where
        U: Send + Sync + 'static,
        U::Future: Send,
    {
        ReverseProxyLayer { proxy: self.proxy.boxed() }
    }
}

impl<C> ReverseProxyLayer<Upstream<C>> {
    /// Adds a layer on the upstream side, around the client.
    ///
    /// It sees each request as it's sent to the backend, and the response before it's mapped. The layer that is added
    /// last sees the request first, as with axum's `Router::layer`. Several at once go into a
    /// [`ServiceBuilder`](tower::ServiceBuilder), whose first layer sees the request first.
    ///
    /// The layer is applied once, when it's added. All routes that the proxy is wrapped around therefore share a limit.
    /// It's always inside the [`Upstream`]; [`map_upstream`](Self::map_upstream) puts one around it.
    ///
    /// ```
    /// use tower::{ServiceBuilder, limit::ConcurrencyLimitLayer};
    /// use tower_reverse_proxy::{BasicAuthLayer, RemoteUserLayer, ReverseProxyLayer, TraceRedirectLayer};
    ///
    /// // A request comes to the RemoteUserLayer first, and to the limit last.
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
    ///     .upstream_layer(ConcurrencyLimitLayer::new(100))
    ///     .upstream_layer(
    ///         ServiceBuilder::new()
    ///             .layer(RemoteUserLayer::new())
    ///             .layer(BasicAuthLayer::remote_user("s3cret"))
    ///             .layer(TraceRedirectLayer::new()),
    ///     );
    /// # let _ = proxy;
    /// ```
    ///
    /// A layer rejects a request with an error: see [`Error::rejected`](crate::Error::rejected).
    #[doc(alias = "rewrite")]
    #[doc(alias = "proxy_set_header")]
    pub fn upstream_layer<L>(self, layer: L) -> ReverseProxyLayer<Upstream<L::Service>>
    where
        L: Layer<C>,
        Upstream<L::Service>: HttpService,
    {
        self.map_upstream(|upstream| upstream.layer(layer))
    }
}

impl<C> ReverseProxyLayer<Retry<Balance<Upstream<C>>>>
where
    C: Clone + Send + Sync + 'static,
{
    /// Adds a layer on the upstream side, around the client of each backend, those of later sets included.
    ///
    /// It's applied once per backend, when the layer is added or the backend is. A limit is therefore one of each
    /// backend. It sees each attempt of a request that is [sent again](Self::retry). It's otherwise as with one
    /// backend.
    ///
    /// ```
    /// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer};
    ///
    /// let proxy = ReverseProxyLayer::balanced(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    ///     .prefix("/app")
    ///     .upstream_layer(RemoteUserLayer::new());
    /// # let _ = proxy;
    /// ```
    pub fn upstream_layer<L>(self, layer: L) -> ReverseProxyLayer<Retry<Balance<Upstream<L::Service>>>>
    where
        L: Layer<C, Service: Clone + Send + Sync + 'static> + Send + Sync + 'static,
        Upstream<L::Service>: HttpService<Future: Send>,
    {
        self.map_members(move |upstream| upstream.layer(&layer))
    }
}

impl<S: Clone + Send + Sync + 'static> ReverseProxyLayer<Retry<Balance<S>>> {
    /// Replaces the upstream of each backend, those of later sets included, by the result of `map`, which sets its
    /// options or puts a layer around it.
    ///
    /// It's called once per backend.
    ///
    /// ```
    /// use tower_reverse_proxy::{HostPolicy, ReverseProxyLayer};
    ///
    /// // Each backend gets its own name in `Host`.
    /// let proxy = ReverseProxyLayer::balanced(["http://app-1.internal:8000", "http://app-2.internal:8000"])
    ///     .map_members(|upstream| upstream.host(HostPolicy::Backend));
    /// # let _ = proxy;
    /// ```
    pub fn map_members<T>(self, map: impl Fn(S) -> T + Send + Sync + 'static) -> ReverseProxyLayer<Retry<Balance<T>>>
    where
        T: HttpService<Future: Send> + Send + Sync + 'static,
    {
        self.map_upstream(|retry| retry.map(|balance| balance.map(map)))
    }
}

impl<S: HttpService> ReverseProxyLayer<Retry<S>> {
    /// Sets which requests are sent again to another backend, and how often. Default:
    /// [`RetryPolicy::unsent`](crate::RetryPolicy::unsent), those of which nothing reached a backend.
    ///
    /// ```
    /// use tower_reverse_proxy::{ReverseProxyLayer, RetryPolicy};
    ///
    /// let proxy = ReverseProxyLayer::balanced(["http://10.0.0.1:8000", "http://10.0.0.2:8000"])
    ///     .retry(RetryPolicy::idempotent());
    /// # let _ = proxy;
    /// ```
    #[doc(alias = "proxy_next_upstream")]
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.map_upstream(|retry| Retry::new(retry.into_inner(), policy))
    }
}

impl<U> ReverseProxyLayer<U> {
    /// Replaces the upstream by the result of `map`, which sets its options or puts a layer around it.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower::{Layer, timeout::TimeoutLayer};
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://10.0.0.7")
    ///     .map_upstream(|upstream| upstream.host("intranet.example"))
    ///     .map_upstream(|upstream| TimeoutLayer::new(Duration::from_secs(20)).layer(upstream));
    /// # let _ = proxy;
    /// ```
    pub fn map_upstream<V: HttpService>(self, map: impl FnOnce(U) -> V) -> ReverseProxyLayer<V> {
        let ReverseProxy { upstream, config } = self.proxy;
        ReverseProxyLayer { proxy: ReverseProxy { upstream: map(upstream), config } }
    }

    /// Returns the proxy as a service, which forwards every request below the prefix and refuses others with 400.
    ///
    /// It's for `nest_service`, `fallback_service`, `route_service`, or a handler. Under a nest, the prefix is the
    /// nest's: leave it out here.
    ///
    /// ```
    /// use axum::Router;
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// // The backend sees /page, the client /mydir/page.
    /// let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000").strip_prefix().into_service();
    /// let app: Router = Router::new().nest_service("/mydir", legacy);
    /// ```
    pub fn into_service(self) -> ReverseProxy<U> {
        self.proxy
    }
}

impl<S, U: Clone> Layer<S> for ReverseProxyLayer<U> {
    type Service = ReverseProxyService<S, U>;

    fn layer(&self, inner: S) -> Self::Service {
        ReverseProxyService::new(inner, self.proxy.clone())
    }
}

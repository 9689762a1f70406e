//! A target per request: a bounded set of pools, one for each origin that requests go to.
//!
//! 1. Code of the application inserts a [`Target`] into the request's extensions: a middleware, a handler by
//!    [`ReverseProxy::forward_to`](crate::ReverseProxy::forward_to), or the function of
//!    [`select`](crate::ReverseProxyLayer::select).
//! 2. [`TargetService`] finds the pool of the target's origin in the [`Targets`], or makes it. Everything that names
//!    the same origin has the same pool.
//! 3. The target's [`Upstream`] applies the `Host` policy, and maps references and cookies of that backend.
//! 4. A target may be a set of several [`Backends`](crate::Backends), too, which the application keeps. Then the
//!    request is balanced over its members.
//! 5. A pool is in use until the end of the response's body, or of the tunnel. An unused one goes after the
//!    [idle time](Targets::idle), or if another origin needs its place.
//!
//! ```
//! use axum::{
//!     Router,
//!     extract::{Path, Request, State},
//!     http::StatusCode,
//!     response::Response,
//!     routing::any,
//! };
//! use tower_reverse_proxy::{Backend, ReverseProxy, ReverseProxyLayer, Targets, targets::TargetService};
//!
//! #[derive(Clone)]
//! struct App {
//!     proxy: ReverseProxy<TargetService>,
//!     tenants: Backend,
//! }
//!
//! async fn tenant(
//!     State(app): State<App>,
//!     Path((name, _)): Path<(String, String)>,
//!     request: Request,
//! ) -> Result<Response, StatusCode> {
//!     // A name that isn't one label is no tenant's.
//!     let backend = app.tenants.subdomain(&name).map_err(|_| StatusCode::NOT_FOUND)?;
//!     Ok(app.proxy.forward_to(backend, request).await)
//! }
//!
//! # fn main() -> Result<(), tower_reverse_proxy::InvalidBackend> {
//! let proxy = ReverseProxyLayer::to(Targets::new()).into_service();
//! let app: Router = Router::new()
//!     .route("/t/{tenant}/{*path}", any(tenant))
//!     .with_state(App { proxy, tenants: "http://tenants.internal:8000".parse()? });
//! # let _ = app;
//! # Ok(())
//! # }
//! ```
//!
//! # Security
//!
//! A request without a target fails ([`ErrorKind::NoTarget`]): it goes to no default, and nothing is derived from its
//! `Host` or path. A target that is made of what a client sends is a way to every server that the front can reach;
//! [`Targets::allow`] and [`Targets::allow_address`] limit the damage of such a mistake.

mod body;
mod future;
mod origin;
mod pools;
mod registry;
mod service;
mod target;

use std::{fmt, net::IpAddr, sync::Arc, time::Duration};

use self::registry::Registry;
pub use self::{body::TargetBody, future::TargetFuture, service::TargetService, target::Target};
use crate::{
    backend::Backend,
    client::{Client, ClientBuilder, PlatformRoots},
    error::{Error, ErrorKind},
    retry::RetryPolicy,
    timeout::bounded,
    upstream::{HostPolicy, InvalidHost, Upstream},
};

/// The pools of the backends that requests are sent to by their [`Target`], and the options of these pools.
///
/// [`ReverseProxyLayer::to`](crate::ReverseProxyLayer::to) takes it. Clones share the pools, so that two proxies of one
/// application have one pool per origin. An option that is set on a clone makes it a set of its own, without pools.
///
/// ```
/// use std::time::Duration;
/// use tower_reverse_proxy::{ReverseProxyLayer, Targets, client::is_public};
///
/// let targets = Targets::new()
///     .capacity(256)
///     .idle(Duration::from_secs(60))
///     .client(|client| client.connect_timeout(Duration::from_secs(2)))
///     .allow(|backend| backend.scheme() == "https")
///     .allow_address(is_public);
/// let webhooks = ReverseProxyLayer::to(targets).prefix("/hooks");
/// # let _ = webhooks;
/// ```
#[derive(Clone)]
#[doc(alias("SSRF", "tenant", "dynamic upstream"))]
pub struct Targets {
    registry: Arc<Registry>,
}

#[derive(Clone)]
struct Options {
    capacity: usize,
    idle: Option<Duration>,
    client: Option<Arc<ClientOptions>>,
    roots: PlatformRoots,
    allow: Option<Arc<BackendFilter>>,
    allow_address: Option<Arc<AddressFilter>>,
    allow_unix_sockets: bool,
    host: Option<HostPolicy>,
    map_location: bool,
    retry: RetryPolicy,
}

type ClientOptions = dyn Fn(ClientBuilder) -> ClientBuilder + Send + Sync;
type BackendFilter = dyn Fn(&Backend) -> bool + Send + Sync;
type AddressFilter = dyn Fn(IpAddr) -> bool + Send + Sync;

impl Targets {
    /// Creates a set without pools, with the default options.
    ///
    /// ```
    /// use tower_reverse_proxy::{ReverseProxyLayer, Targets};
    ///
    /// let targets = Targets::new();
    /// let tenants = ReverseProxyLayer::to(targets.clone()).prefix("/t");
    /// assert_eq!(targets.pools(), 0);
    /// # let _ = tenants;
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::with_options(Options {
            capacity: 1024,
            idle: Some(Duration::from_secs(300)),
            client: None,
            roots: PlatformRoots::default(),
            allow: None,
            allow_address: None,
            allow_unix_sockets: false,
            host: None,
            map_location: true,
            retry: RetryPolicy::default(),
        })
    }

    /// Sets the maximum number of pools, which is that of different origins in use at a time. Default: 1024.
    ///
    /// At the limit, a request to a further origin takes the place of the pool that has been unused for the longest
    /// time. If all are in use, it gets 503 ([`ErrorKind::Overloaded`]). A pool is in use from the request to the end
    /// of the response's body, or of the tunnel.
    ///
    /// ```
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new().capacity(10_000);
    /// # let _ = targets;
    /// ```
    ///
    /// # Panics
    ///
    /// If it's 0.
    #[must_use]
    #[track_caller]
    pub fn capacity(self, pools: usize) -> Self {
        assert!(pools > 0, "invalid capacity of 0 pools: write 1 or more, such as 1024");
        self.configure(|options| options.capacity = pools)
    }

    /// Sets how long an unused pool is kept. Default: 5 minutes. With `None`, it's kept until another origin needs its
    /// place.
    ///
    /// Its connections are closed earlier, after the client's
    /// [`pool_idle_timeout`](ClientBuilder::pool_idle_timeout). What else it has is the state of its upstream layers,
    /// and the times after which the backend closes connections.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new().idle(Duration::from_secs(60));
    /// # let _ = targets;
    /// ```
    #[must_use]
    pub fn idle(self, time: impl Into<Option<Duration>>) -> Self {
        let time = bounded(time);
        self.configure(|options| options.idle = time)
    }

    /// Sets the options of each client. Default: those of [`Client::builder`].
    ///
    /// The function is called when a pool is made. If the client can't be built, the request fails
    /// ([`ErrorKind::NoTarget`]).
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new()
    ///     .client(|client| client.connect_timeout(Duration::from_secs(2)).max_connections(32));
    /// # let _ = targets;
    /// ```
    #[must_use]
    pub fn client(self, options: impl Fn(ClientBuilder) -> ClientBuilder + Send + Sync + 'static) -> Self {
        self.configure(|this| this.client = Some(Arc::new(options)))
    }

    /// Sets which backends may be targets. Default: all that the application names, except
    /// [Unix sockets](Self::allow_unix_sockets).
    ///
    /// The function is called for each request, with the host in lower case and without a default port. A request whose
    /// target isn't allowed fails ([`ErrorKind::NoTarget`]).
    ///
    /// ```
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new().allow(|backend| backend.authority().host().ends_with(".tenants.internal"));
    /// # let _ = targets;
    /// ```
    ///
    /// # Security
    ///
    /// It sees the name of a backend, and not the address to which that leads:
    /// [`allow_address`](Self::allow_address). It isn't called for the members of a set of
    /// [`Backends`](crate::Backends).
    #[must_use]
    #[doc(alias = "allow list")]
    pub fn allow(self, allows: impl Fn(&Backend) -> bool + Send + Sync + 'static) -> Self {
        self.configure(|options| options.allow = Some(Arc::new(allows)))
    }

    /// Sets which addresses may be connected to. Default: all.
    ///
    /// It's the [`allow_address`](ClientBuilder::allow_address) of each client: it's called when a connection is made,
    /// after the look-up of the name, for each address, and for an address in the target itself, too. If none is left,
    /// the request fails with 502 ([`ErrorKind::Connect`]).
    ///
    /// ```
    /// use tower_reverse_proxy::{Targets, client::is_public};
    ///
    /// // Servers of customers, which mustn't be the network's own.
    /// let targets = Targets::new().allow_address(is_public);
    /// # let _ = targets;
    /// ```
    ///
    /// # Security
    ///
    /// The members of a set of [`Backends`](crate::Backends) have the clients that the set was built with. Their filter
    /// is an option of those: `Backends::builder(members).client(|client| client.allow_address(is_public))`.
    #[must_use]
    #[doc(alias = "SSRF")]
    #[doc(alias = "rebinding")]
    pub fn allow_address(self, allows: impl Fn(IpAddr) -> bool + Send + Sync + 'static) -> Self {
        self.configure(|options| options.allow_address = Some(Arc::new(allows)))
    }

    /// Sets whether Unix sockets may be targets. Default: `false`. A request to one fails ([`ErrorKind::NoTarget`]).
    ///
    /// ```
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new().allow_unix_sockets(true);
    /// # let _ = targets;
    /// ```
    ///
    /// # Security
    ///
    /// Such a target is a file of this machine, such as the socket of a container engine, to which no filter of
    /// addresses applies. [`allow`](Self::allow) is called for it.
    #[must_use]
    pub fn allow_unix_sockets(self, allow: bool) -> Self {
        self.configure(|options| options.allow_unix_sockets = allow)
    }

    /// Sets which `Host` the backends get, as [`Upstream::host`]. Default: the client's for `http` targets, the
    /// target's own for `https` targets.
    ///
    /// ```
    /// use tower_reverse_proxy::{HostPolicy, Targets};
    ///
    /// let targets = Targets::new().host(HostPolicy::Backend);
    /// # let _ = targets;
    /// ```
    ///
    /// # Panics
    ///
    /// If a name isn't a valid `Host`, such as one with credentials.
    #[must_use]
    #[track_caller]
    pub fn host(self, host: impl TryInto<HostPolicy, Error: Into<InvalidHost>>) -> Self {
        match host.try_into().map_err(Into::into) {
            Ok(host) => self.configure(|options| options.host = Some(host)),
            Err(error) => panic!("{error}"),
        }
    }

    /// Sets whether references to the target's origin are mapped in responses, as
    /// [`Upstream::map_location`]. Default: `true`.
    ///
    /// ```
    /// use tower_reverse_proxy::Targets;
    ///
    /// let targets = Targets::new().map_location(false);
    /// # let _ = targets;
    /// ```
    #[must_use]
    pub fn map_location(self, map: bool) -> Self {
        self.configure(|options| options.map_location = map)
    }

    /// Sets which requests to [`Backends`](crate::Backends) are sent again to another member. Default:
    /// [`RetryPolicy::unsent`], those of which nothing reached a member. Requests to one backend aren't sent again.
    ///
    /// ```
    /// use tower_reverse_proxy::{RetryPolicy, Targets};
    ///
    /// let targets = Targets::new().retry(RetryPolicy::idempotent());
    /// # let _ = targets;
    /// ```
    #[must_use]
    pub fn retry(self, policy: RetryPolicy) -> Self {
        self.configure(|options| options.retry = policy)
    }

    /// Returns the number of pools, unused ones included. A set of [`Backends`](crate::Backends) counts as one.
    ///
    /// ```
    /// use tower_reverse_proxy::Targets;
    ///
    /// assert_eq!(Targets::new().pools(), 0);
    /// ```
    #[must_use]
    pub fn pools(&self) -> usize {
        self.registry.len()
    }

    fn with_options(options: Options) -> Self {
        Self { registry: Arc::new(Registry::new(options)) }
    }

    /// A pool that was made with other options must not be used, so the changed set begins without pools.
    fn configure(self, change: impl FnOnce(&mut Options)) -> Self {
        let mut options = self.registry.options.clone();
        change(&mut options);
        Self::with_options(options)
    }
}

impl Options {
    /// Refuses a target that isn't allowed.
    fn admit(&self, backend: &Backend) -> Result<(), Error> {
        if backend.socket().is_some() && !self.allow_unix_sockets {
            return Err(refused(backend, "is a Unix socket, which `Targets::allow_unix_sockets` doesn't allow"));
        }
        match &self.allow {
            Some(allows) if !allows(&backend.canonical()) => {
                Err(refused(backend, "isn't one that `Targets::allow` allows"))
            }
            _ => Ok(()),
        }
    }

    /// Builds the client of a target.
    fn client(&self, backend: Backend) -> Result<Client, Error> {
        let is_socket = backend.socket().is_some();
        let mut builder = Client::builder(backend).platform_roots(self.roots.clone());
        if let Some(options) = &self.client {
            builder = options(builder);
        }
        if let Some(allows) = self.allow_address.clone().filter(|_| !is_socket) {
            builder = builder.allow_address(move |addr| allows(addr));
        }
        builder.build().map_err(|error| Error::with_source(ErrorKind::NoTarget, error))
    }

    /// Makes the upstream of a target.
    fn upstream(&self, client: Client) -> Upstream {
        let upstream = Upstream::with_client(client.backend().clone(), client).map_location(self.map_location);
        match &self.host {
            Some(host) => upstream.host(host.clone()),
            None => upstream,
        }
    }
}

fn refused(backend: &Backend, why: &str) -> Error {
    Error::with_source(ErrorKind::NoTarget, format!("the target {} {why}", backend.canonical()))
}

impl Default for Targets {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Debug for Targets {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Targets").field("pools", &self.pools()).field("options", &self.registry.options).finish()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("capacity", &self.capacity)
            .field("idle", &self.idle)
            .field("allow_unix_sockets", &self.allow_unix_sockets)
            .field("host", &self.host)
            .field("map_location", &self.map_location)
            .field("retry", &self.retry)
            .finish_non_exhaustive()
    }
}

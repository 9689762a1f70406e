//! The target of a request, as a request extension.

use std::fmt;

use crate::{backend::Backend, balance::Backends};

/// The target of a request, as a request extension: the backend that it goes to, or a set of several, or that it isn't
/// the proxy's.
///
/// Code of the application inserts it before a proxy that is made with
/// [`ReverseProxyLayer::to`](crate::ReverseProxyLayer::to): a middleware, or a handler by
/// [`forward_to`](crate::ReverseProxy::forward_to). It stays in the request's extensions.
///
/// ```
/// use axum::{
///     extract::{Request, State},
///     http::StatusCode,
///     middleware::Next,
///     response::Response,
/// };
/// use tower_reverse_proxy::{Backend, Target};
/// # #[derive(Clone)]
/// # struct Tenants;
/// # impl Tenants { async fn backend_of(&self, _: &str) -> Option<Backend> { None } }
///
/// async fn choose(State(tenants): State<Tenants>, mut request: Request, next: Next) -> Result<Response, StatusCode> {
///     let name = request.headers().get("host").and_then(|host| host.to_str().ok()).unwrap_or_default();
///     // A look-up of the application's, such as in its database. The backend is what it stored, not what the client
///     // sent.
///     let backend = tenants.backend_of(name).await.ok_or(StatusCode::NOT_FOUND)?;
///     request.extensions_mut().insert(Target::to(backend));
///     Ok(next.run(request).await)
/// }
/// # let _ = axum::middleware::from_fn_with_state::<_, _, (State<Tenants>, Request)>(Tenants, choose);
/// ```
///
/// # Security
///
/// An extension is a Rust value, which a client can't send. There is no conversion from text, because a target that is
/// made of what a client sends lets it reach every server that the front can reach (server-side request forgery).
/// [`Backend::subdomain`] is for names that a client may choose.
#[derive(Clone)]
#[doc(alias("SSRF", "tenant", "dynamic", "upstream_peer", "resolver"))]
pub struct Target(Kind);

#[derive(Clone)]
pub(super) enum Kind {
    Backend(Backend),
    Set(Backends),
    Pass,
}

impl Target {
    /// Creates the target of a request that goes to this [`Backend`], or to one of these [`Backends`].
    ///
    /// A set is kept by the application, such as one per tenant, because its load and its health are in it. Its members
    /// have the clients that it was built with: [`Targets`](super::Targets) gives them its `Host` policy and the layers
    /// of the proxy, and neither its client options nor its filters.
    ///
    /// ```
    /// use tower_reverse_proxy::{Backend, Backends, Target};
    ///
    /// let backend: Backend = "http://10.0.0.7:8000".parse()?;
    /// let target = Target::to(backend);
    ///
    /// let backends = Backends::new(["http://10.0.0.7:8000", "http://10.0.0.8:8000"]);
    /// let balanced = Target::to(&backends);
    /// # let _ = (target, balanced);
    /// # Ok::<_, tower_reverse_proxy::InvalidBackend>(())
    /// ```
    #[must_use]
    pub fn to(to: impl Into<Self>) -> Self {
        to.into()
    }

    /// Creates the target of a request that isn't the proxy's: the service that the
    /// [`ReverseProxyLayer`](crate::ReverseProxyLayer) wraps gets it.
    ///
    /// A [`ReverseProxy`](crate::ReverseProxy) wraps none. There, it's a failure
    /// ([`ErrorKind::NoTarget`](crate::ErrorKind::NoTarget)).
    ///
    /// ```
    /// use axum::http::Request;
    /// use tower_reverse_proxy::Target;
    ///
    /// /// A middleware calls it for requests that the application's own routes answer.
    /// fn not_proxied<B>(request: &mut Request<B>) {
    ///     request.extensions_mut().insert(Target::pass());
    /// }
    /// ```
    #[must_use]
    pub fn pass() -> Self {
        Self(Kind::Pass)
    }

    pub(crate) fn is_pass(&self) -> bool {
        matches!(self.0, Kind::Pass)
    }

    pub(super) fn kind(&self) -> &Kind {
        &self.0
    }
}

impl From<Backend> for Target {
    fn from(backend: Backend) -> Self {
        Self(Kind::Backend(backend))
    }
}

impl From<&Backend> for Target {
    fn from(backend: &Backend) -> Self {
        backend.clone().into()
    }
}

impl From<Backends> for Target {
    fn from(backends: Backends) -> Self {
        Self(Kind::Set(backends))
    }
}

impl From<&Backends> for Target {
    fn from(backends: &Backends) -> Self {
        backends.clone().into()
    }
}

impl fmt::Debug for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Kind::Backend(backend) => write!(f, "Target::to({backend})"),
            Kind::Set(backends) => write!(f, "Target::to({backends:?})"),
            Kind::Pass => f.write_str("Target::pass()"),
        }
    }
}

//! The service that sends each request to its target.

use std::{
    any::Any,
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response};
use tower_layer::Layer;
use tower_service::Service;

use super::{
    Targets,
    body::TargetBody,
    future::TargetFuture,
    origin::Origin,
    registry::{Lease, Leased, NotLeased, ProxyId},
    target::{Kind, Target},
};
use crate::{
    client::Client,
    error::{Error, ErrorKind},
    service::HttpService,
    upstream::Upstream,
};

/// The upstream of a proxy with a target per request: it sends each request to the [`Target`] in its extensions.
///
/// [`ReverseProxyLayer::to`](crate::ReverseProxyLayer::to) makes it. For each target, it has an [`Upstream`] around the
/// target's pool, with the layers of the proxy.
///
/// ```
/// use tower_reverse_proxy::{ReverseProxy, ReverseProxyLayer, Targets, targets::TargetService};
///
/// struct App {
///     tenants: ReverseProxy<TargetService>,
/// }
///
/// let app = App { tenants: ReverseProxyLayer::to(Targets::new()).into_service() };
/// # let _ = app.tenants;
/// ```
pub struct TargetService<U = Upstream<Client>> {
    targets: Targets,
    id: Arc<ProxyId>,
    make: Make<U>,
}

type Make<U> = Arc<dyn Fn(Client) -> U + Send + Sync>;

impl TargetService {
    pub(crate) fn new(targets: Targets) -> Self {
        let make = {
            let targets = targets.clone();
            Arc::new(move |client| targets.upstream(client))
        };
        Self { targets, id: Arc::default(), make }
    }
}

impl<U> TargetService<U> {
    /// Returns the targets' pools.
    ///
    /// ```
    /// use tower_reverse_proxy::{ReverseProxyLayer, Targets};
    ///
    /// let layer = ReverseProxyLayer::to(Targets::new()).map_upstream(|service| {
    ///     assert_eq!(service.targets().pools(), 0);
    ///     service
    /// });
    /// # let _ = layer;
    /// ```
    pub fn targets(&self) -> &Targets {
        &self.targets
    }
}

impl<C: 'static> TargetService<Upstream<C>> {
    /// Wraps the client of each target in a layer, once per target.
    ///
    /// The layer that is added last sees the request first, as with axum's `Router::layer`. Of two first requests that
    /// come to a target at the same time, each may apply the layer, and one of the two services is dropped.
    ///
    /// ```
    /// use tower_reverse_proxy::{RemoteUserLayer, ReverseProxyLayer, Targets};
    ///
    /// let layer = ReverseProxyLayer::to(Targets::new()).map_upstream(|service| service.layer(RemoteUserLayer::new()));
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn layer<L>(self, layer: L) -> TargetService<Upstream<L::Service>>
    where
        L: Layer<C> + Send + Sync + 'static,
    {
        let Self { targets, make, .. } = self;
        TargetService { targets, id: Arc::default(), make: Arc::new(move |client| make(client).layer(&layer)) }
    }
}

impl<U: Any + Clone + Send + Sync> TargetService<U> {
    /// Returns the upstream of a request's target, and the lease of its pool.
    fn checkout(&self, target: Option<&Target>) -> Result<(U, Lease), Error> {
        let backend = match target.map(Target::kind) {
            Some(Kind::Backend(backend)) => backend,
            Some(Kind::Pass) => return Err(Error::with_source(ErrorKind::NoTarget, PASSED)),
            None => return Err(Error::with_source(ErrorKind::NoTarget, MISSING)),
        };
        let registry = &self.targets.registry;
        let origin = Origin::of(backend);
        registry.options.admit(&origin)?;
        let leased = match registry.lease(&origin, &self.id) {
            Err(NotLeased::Missing) => {
                let client = registry.options.client(origin.to_backend())?;
                registry.insert(origin, client, &self.id)
            }
            leased => leased,
        };
        let (lease, service) = match leased {
            Ok(Leased::Service(lease, service)) => (lease, service),
            Ok(Leased::Pool(lease, client)) => {
                let service = Arc::new((self.make)(client));
                let service = registry.add_service(&lease, &self.id, service);
                (lease, service)
            }
            Err(_) => return Err(Error::with_source(ErrorKind::Overloaded, FULL)),
        };
        match service.downcast::<U>() {
            Ok(service) => Ok((U::clone(&service), lease)),
            // It doesn't happen, because the service was found by the identity of this proxy.
            Err(_) => Err(ErrorKind::Upstream.into()),
        }
    }
}

const MISSING: &str = "there is no `tower_reverse_proxy::Target` in the request's extensions: insert one in a middleware \
                       that is added to the router after the proxy, call `forward_to` in a handler, or set `select`, \
                       which returns one; and look for a second version of the crate with `cargo tree --duplicates`";
const PASSED: &str =
    "the request has `Target::pass()`, and the proxy wraps no service: use the layer, or another target";
const FULL: &str = "the pools of as many targets as the capacity of `Targets` allows are in use";

impl<U> Service<Request<Body>> for TargetService<U>
where
    U: HttpService + Send + Sync + 'static,
{
    type Response = Response<TargetBody<U::ResponseBody>>;
    type Error = BoxError;
    type Future = TargetFuture<U>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        // The target is known in `call` only. The readiness of its upstream is awaited in the future.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        match self.checkout(request.extensions().get()) {
            Ok((upstream, lease)) => TargetFuture::calling(upstream, lease, request),
            Err(error) => TargetFuture::failed(error.with_unsent(request)),
        }
    }
}

impl<U> Clone for TargetService<U> {
    fn clone(&self) -> Self {
        Self { targets: self.targets.clone(), id: self.id.clone(), make: self.make.clone() }
    }
}

impl<U> fmt::Debug for TargetService<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetService").field("targets", &self.targets).finish_non_exhaustive()
    }
}

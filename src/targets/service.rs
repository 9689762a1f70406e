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
    registry::{Destination, Key, Lease, Leased, NotLeased, ProxyId},
    target::{Kind, Target},
};
use crate::{
    balance::{Balance, Member},
    client::Client,
    error::{Error, ErrorKind},
    retry::Retry,
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
    // One pointer, because the service is cloned for each request.
    inner: Arc<Inner<U>>,
}

struct Inner<U> {
    targets: Targets,
    id: Arc<ProxyId>,
    make: Make<U>,
}

type Make<U> = Arc<dyn Fn(Client) -> U + Send + Sync>;

/// The service of one target.
#[derive(Clone)]
pub(super) enum ToTarget<U> {
    One(U),
    Set(Retry<Balance<U>>),
}

impl TargetService {
    pub(crate) fn new(targets: Targets) -> Self {
        let make = {
            // Without the registry, whose pools have it: a set that is kept for good would keep the registry.
            let options = targets.registry.options.clone();
            Arc::new(move |client| options.upstream(client))
        };
        Self::with_make(targets, make)
    }
}

impl<U> TargetService<U> {
    fn with_make(targets: Targets, make: Make<U>) -> Self {
        Self { inner: Arc::new(Inner { targets, id: Arc::default(), make }) }
    }

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
    #[must_use]
    pub fn targets(&self) -> &Targets {
        &self.inner.targets
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
        let Inner { targets, make, .. } = &*self.inner;
        let make = make.clone();
        TargetService::with_make(targets.clone(), Arc::new(move |client| make(client).layer(&layer)))
    }
}

impl<U: Any + Clone + Send + Sync> TargetService<U> {
    /// Returns the service of a request's target, and the lease of its pool.
    fn checkout(&self, target: Option<&Target>) -> Result<(ToTarget<U>, Lease), Error> {
        let Inner { targets, id, .. } = &*self.inner;
        let registry = &targets.registry;
        let key = match target.map(Target::kind) {
            Some(Kind::Backend(backend)) => {
                registry.options.admit(backend)?;
                Key::Origin(Origin::of(backend))
            }
            Some(Kind::Set(backends)) => Key::Set(backends.id()),
            Some(Kind::Pass) => return Err(Error::with_source(ErrorKind::NoTarget, PASSED)),
            None => return Err(Error::with_source(ErrorKind::NoTarget, MISSING)),
        };
        let leased = match registry.lease(&key, id) {
            Err(NotLeased::Missing) => {
                let destination = self.destination(&key, target)?;
                registry.insert(key, destination, id)
            }
            leased => leased,
        };
        let (lease, service) = match leased {
            Ok(Leased::Service(lease, service)) => (lease, service),
            Ok(Leased::Pool(lease, destination)) => {
                let service = Arc::new(self.service(destination));
                let service = registry.add_service(&lease, id, service);
                (lease, service)
            }
            Err(_) => return Err(Error::with_source(ErrorKind::Overloaded, FULL).with_retry_after(1)),
        };
        match service.downcast::<ToTarget<U>>() {
            Ok(service) => Ok((ToTarget::clone(&service), lease)),
            // It doesn't happen, because the service was found by the identity of this proxy.
            Err(_) => Err(ErrorKind::Upstream.into()),
        }
    }

    fn destination(&self, key: &Key, target: Option<&Target>) -> Result<Destination, Error> {
        match (key, target.map(Target::kind)) {
            (Key::Origin(_), Some(Kind::Backend(backend))) => {
                self.inner.targets.registry.options.client(backend.canonical()).map(Destination::Client)
            }
            (Key::Set(_), Some(Kind::Set(backends))) => match backends.clone().with_addresses() {
                Ok(backends) => Ok(Destination::Set(backends)),
                Err(error) => Err(Error::with_source(ErrorKind::NoTarget, error)),
            },
            _ => Err(ErrorKind::NoTarget.into()),
        }
    }

    fn service(&self, destination: Destination) -> ToTarget<U> {
        match destination {
            Destination::Client(client) => ToTarget::One((self.inner.make)(client)),
            Destination::Set(backends) => {
                let make = self.inner.make.clone();
                let balance = Balance::new(&backends, move |member: &Member| match member.client() {
                    Some(client) => make(client.clone()),
                    None => panic!("a member with an address has a client"),
                });
                ToTarget::Set(Retry::new(balance, self.inner.targets.registry.options.retry.clone()))
            }
        }
    }
}

const MISSING: &str = "there is no `tower_reverse_proxy::Target` in the request's extensions: insert one in a \
                       middleware that is added to the router after the proxy, call `forward_to` in a handler, or set \
                       `select`, which returns one; and look for a second version of the crate with \
                       `cargo tree --duplicates`";
const PASSED: &str =
    "the request has `Target::pass()`, and the proxy wraps no service: use the layer, or another target";
const FULL: &str = "the pools of as many targets as the capacity of `Targets` allows are in use";

impl<U> Service<Request<Body>> for TargetService<U>
where
    U: HttpService<Future: Send> + Send + Sync + 'static,
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
            Ok((service, lease)) => TargetFuture::calling(service, lease, request),
            Err(error) => TargetFuture::failed(error.with_unsent(request)),
        }
    }
}

impl<U> Clone for TargetService<U> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<U> fmt::Debug for TargetService<U> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TargetService").field("targets", &self.inner.targets).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::balance::Backends;

    #[test]
    fn the_pool_of_a_set_does_not_keep_the_registry() {
        let targets = Targets::new().idle(None);
        let registry = Arc::downgrade(&targets.registry);
        let service = TargetService::new(targets);
        let target = Target::to(Backends::new(["http://127.0.0.1:8000"]));
        drop(service.checkout(Some(&target)).unwrap());
        assert_eq!(service.targets().pools(), 1);
        drop(service);
        assert!(registry.upgrade().is_none());
    }
}

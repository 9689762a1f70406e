//! Resources that an open tunnel keeps, as a response extension.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::Extensions;

/// Dropped at the end of the tunnel that the response opens. The services below the proxy insert it, and the upgrade takes
/// it.
///
/// It's the stream of an HTTP/2 connection, and the attempt of a balancer. A connection of HTTP/1 has its resources inside
/// [`Switched`](crate::switched::Switched).
#[derive(Clone)]
pub(crate) struct TunnelGuard {
    link: Arc<dyn Link>,
}

/// What a tunnel may keep.
pub(crate) trait TunnelResource: Send + Sync + 'static {
    /// Returns a future that completes when the tunnel has to end. `None` if the resource lasts as long as the tunnel
    /// does.
    fn ends(&self) -> Option<TunnelEnd> {
        None
    }

    /// The backend has ended its side. The tunnel lasts until the client has ended its own.
    fn backend_ended(&self) {}
}

/// Completes when a tunnel has to end.
pub(crate) type TunnelEnd = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A resource, and the guard that the response had before.
struct Linked<R> {
    resource: R,
    next: Option<TunnelGuard>,
}

trait Link: Send + Sync {
    fn resource(&self) -> &dyn TunnelResource;
    fn next(&self) -> Option<&TunnelGuard>;
}

impl<R: TunnelResource> Link for Linked<R> {
    fn resource(&self) -> &dyn TunnelResource {
        &self.resource
    }

    fn next(&self) -> Option<&TunnelGuard> {
        self.next.as_ref()
    }
}

impl TunnelGuard {
    /// Adds a resource to those of the response. It's dropped before them.
    pub(crate) fn insert(extensions: &mut Extensions, resource: impl TunnelResource) {
        let linked = Linked { resource, next: extensions.remove() };
        extensions.insert(Self { link: Arc::new(linked) });
    }

    /// Returns the futures of all resources that may end the tunnel.
    pub(crate) fn ends(&self) -> Vec<TunnelEnd> {
        self.resources().filter_map(TunnelResource::ends).collect()
    }

    /// Notifies all resources that the backend has ended its side.
    pub(crate) fn backend_ended(&self) {
        self.resources().for_each(TunnelResource::backend_ended);
    }

    fn resources(&self) -> impl Iterator<Item = &dyn TunnelResource> {
        std::iter::successors(Some(self), |guard| guard.link.next()).map(|guard| guard.link.resource())
    }
}

/// Polls each of the futures until one is complete.
pub(crate) fn poll_any(ends: &mut [TunnelEnd], cx: &mut Context<'_>) -> Poll<()> {
    match ends.iter_mut().any(|end| end.as_mut().poll(cx).is_ready()) {
        true => Poll::Ready(()),
        false => Poll::Pending,
    }
}

impl fmt::Debug for TunnelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelGuard").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use tokio_util::sync::CancellationToken;

    use super::*;

    struct Logged(&'static str, Arc<Mutex<Vec<&'static str>>>, Option<CancellationToken>);

    impl TunnelResource for Logged {
        fn ends(&self) -> Option<TunnelEnd> {
            let ended = self.2.clone()?;
            Some(Box::pin(ended.cancelled_owned()))
        }
    }

    impl Drop for Logged {
        fn drop(&mut self) {
            self.1.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }

    #[test]
    fn all_resources_are_dropped_with_the_last_clone() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut extensions = Extensions::new();
        TunnelGuard::insert(&mut extensions, Logged("stream", log.clone(), None));
        TunnelGuard::insert(&mut extensions, Logged("attempt", log.clone(), None));
        let clone = extensions.clone();
        drop(extensions);
        assert_eq!(*log.lock().unwrap(), [""; 0]);
        drop(clone);
        assert_eq!(*log.lock().unwrap(), ["attempt", "stream"]);
    }

    #[test]
    fn any_resource_ends_the_tunnel() {
        for ended in ["inner", "outer"] {
            let tokens = ["inner", "outer"].map(|name| (name, CancellationToken::new()));
            let mut extensions = Extensions::new();
            for (name, token) in &tokens {
                TunnelGuard::insert(&mut extensions, Logged(name, Arc::default(), Some(token.clone())));
                TunnelGuard::insert(&mut extensions, Logged("stream", Arc::default(), None));
            }
            let mut ends = extensions.get::<TunnelGuard>().unwrap().ends();
            let mut cx = Context::from_waker(std::task::Waker::noop());
            assert!(poll_any(&mut ends, &mut cx).is_pending());
            tokens.iter().find(|(name, _)| *name == ended).unwrap().1.cancel();
            assert!(poll_any(&mut ends, &mut cx).is_ready(), "{ended}");
        }
    }
}

//! Resources that an open tunnel keeps, as a response extension.

use std::{fmt, sync::Arc};

use http::Extensions;

/// Dropped at the end of the tunnel that the response opens. The services below the proxy insert it, and the upgrade takes
/// it.
///
/// It's the stream of an HTTP/2 connection, and the attempt of a balancer. A connection of HTTP/1 has its resources inside
/// [`Switched`](crate::switched::Switched).
#[derive(Clone)]
pub(crate) struct TunnelGuard {
    _link: Arc<dyn Send + Sync>,
}

/// A resource, and the guard that the response had before.
struct Link<R> {
    _resource: R,
    _next: Option<TunnelGuard>,
}

impl TunnelGuard {
    /// Adds a resource to those of the response. It's dropped before them.
    pub(crate) fn insert(extensions: &mut Extensions, resource: impl Send + Sync + 'static) {
        let link = Link { _resource: resource, _next: extensions.remove() };
        extensions.insert(Self { _link: Arc::new(link) });
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

    use super::*;

    struct Logged(&'static str, Arc<Mutex<Vec<&'static str>>>);

    impl Drop for Logged {
        fn drop(&mut self) {
            self.1.lock().unwrap_or_else(PoisonError::into_inner).push(self.0);
        }
    }

    #[test]
    fn all_resources_are_dropped_with_the_last_clone() {
        let log = Arc::new(Mutex::new(Vec::new()));
        let mut extensions = Extensions::new();
        TunnelGuard::insert(&mut extensions, Logged("stream", log.clone()));
        TunnelGuard::insert(&mut extensions, Logged("attempt", log.clone()));
        let clone = extensions.clone();
        drop(extensions);
        assert_eq!(*log.lock().unwrap(), [""; 0]);
        drop(clone);
        assert_eq!(*log.lock().unwrap(), ["attempt", "stream"]);
    }
}

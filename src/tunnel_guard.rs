//! A resource of the client that an open tunnel keeps, as a response extension.

use std::{fmt, sync::Arc};

/// Dropped at the end of the tunnel that the response opens. The client inserts it, and the upgrade takes it.
///
/// It's the stream of an HTTP/2 connection. A connection of HTTP/1 has its resources inside
/// [`Switched`](crate::switched::Switched).
#[derive(Clone)]
pub(crate) struct TunnelGuard {
    _resource: Arc<dyn Send + Sync>,
}

impl TunnelGuard {
    #[cfg(feature = "http2")]
    pub(crate) fn new(resource: impl Send + Sync + 'static) -> Self {
        Self { _resource: Arc::new(resource) }
    }
}

impl fmt::Debug for TunnelGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TunnelGuard").finish_non_exhaustive()
    }
}

//! The layer that makes the service.

use tower_layer::Layer;

use super::{Retry, RetryPolicy};

/// A layer that sends failed requests again: it makes a [`Retry`] of a service.
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{RetryLayer, RetryPolicy, ReverseProxyLayer};
///
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000")
///     .map_upstream(|upstream| RetryLayer::new(RetryPolicy::idempotent()).layer(upstream));
/// # let _ = proxy;
/// ```
#[derive(Clone, Debug, Default)]
pub struct RetryLayer {
    policy: RetryPolicy,
}

impl RetryLayer {
    /// Makes a layer with this policy. All services that it makes share its budget and its memory.
    ///
    /// ```
    /// use tower_reverse_proxy::{RetryLayer, RetryPolicy};
    ///
    /// let layer = RetryLayer::new(RetryPolicy::unsent());
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn new(policy: RetryPolicy) -> Self {
        Self { policy }
    }
}

impl<S> Layer<S> for RetryLayer {
    type Service = Retry<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Retry::new(inner, self.policy.clone())
    }
}

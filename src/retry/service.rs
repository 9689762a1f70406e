//! The service around an upstream.

use std::{
    mem,
    task::{Context, Poll},
};

use axum_core::{BoxError, body::Body};
use http::{Request, Response};
use tower_service::Service;

use super::{
    RetryPolicy,
    future::{ResponseFuture, Retries, State},
};

/// A service that sends failed requests again, as its [`RetryPolicy`] allows.
///
/// Around a balancer, a request goes to another member. Around a single backend, it goes to the same one.
///
/// Its error is the one of the service inside, boxed. It has the [`Error`](crate::Error) of this crate in its chain of
/// causes.
///
/// ```
/// use tower_reverse_proxy::{Retry, RetryPolicy, ReverseProxyLayer, Upstream};
///
/// let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::unsent());
/// let proxy = ReverseProxyLayer::with_upstream(upstream).prefix("/mydir");
/// # let _ = proxy;
/// ```
///
/// # Cancel safety
///
/// Dropping its future cancels the attempt, and there is no further one.
#[derive(Clone, Debug)]
pub struct Retry<S> {
    inner: S,
    policy: RetryPolicy,
}

impl<S> Retry<S> {
    /// Wraps a service.
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, Retry, RetryPolicy, Upstream};
    ///
    /// let backend = Upstream::new("http://127.0.0.1:8000");
    /// let upstream: Retry<Upstream<Client>> = Retry::new(backend, RetryPolicy::unsent());
    /// # let _ = upstream;
    /// ```
    pub fn new(inner: S, policy: RetryPolicy) -> Self {
        Self { inner, policy }
    }

    /// Returns the service inside.
    ///
    /// ```
    /// use tower_reverse_proxy::{Retry, RetryPolicy, Upstream};
    ///
    /// let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::unsent());
    /// assert_eq!(upstream.get_ref().backend().authority(), "127.0.0.1:8000");
    /// ```
    pub fn get_ref(&self) -> &S {
        &self.inner
    }

    /// Returns the service inside, to be changed.
    ///
    /// ```
    /// use tower_reverse_proxy::{Retry, RetryPolicy, Upstream};
    ///
    /// let mut upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::unsent());
    /// *upstream.get_mut() = Upstream::new("http://127.0.0.1:8001");
    /// ```
    pub fn get_mut(&mut self) -> &mut S {
        &mut self.inner
    }

    /// Replaces the service inside by the result of `map`.
    ///
    /// ```
    /// use tower_reverse_proxy::{HostPolicy, Retry, RetryPolicy, Upstream};
    ///
    /// let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::unsent())
    ///     .map(|upstream| upstream.host(HostPolicy::Backend));
    /// # let _ = upstream;
    /// ```
    pub fn map<T>(self, map: impl FnOnce(S) -> T) -> Retry<T> {
        Retry { inner: map(self.inner), policy: self.policy }
    }

    /// Returns the service inside, without retries.
    ///
    /// ```
    /// use tower_reverse_proxy::{Retry, RetryPolicy, Upstream};
    ///
    /// let upstream = Retry::new(Upstream::new("http://127.0.0.1:8000"), RetryPolicy::unsent()).into_inner();
    /// assert_eq!(upstream.backend().authority(), "127.0.0.1:8000");
    /// ```
    pub fn into_inner(self) -> S {
        self.inner
    }
}

impl<S, B> Service<Request<Body>> for Retry<S>
where
    S: Service<Request<Body>, Response = Response<B>, Error: Into<BoxError>> + Clone,
{
    type Response = S::Response;
    type Error = BoxError;
    type Future = ResponseFuture<S>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx).map_err(Into::into)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        if self.policy.max_attempts() == 1 {
            return ResponseFuture { state: State::Calling { future: self.inner.call(request) }, retries: None };
        }
        // The service that has been polled for readiness is called, and makes the further attempts.
        let clone = self.inner.clone();
        let mut service = mem::replace(&mut self.inner, clone);
        let replayable = self.policy.begin(&mut request);
        // In place, because a future is large to move.
        ResponseFuture {
            state: State::Calling { future: service.call(request) },
            retries: Some(Retries::new(service, self.policy.max_attempts(), replayable)),
        }
    }
}

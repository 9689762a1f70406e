//! The service.

use std::{
    fmt,
    sync::Arc,
    task::{Context, Poll},
};

use http::Request;
use tower_service::Service;

use super::{cache::Cache, config::Config};
use crate::{reject::ResponseFuture, service::FromRejection};

/// The service of an [`AssertionLayer`](super::AssertionLayer). Its clones share the tokens.
///
/// ```
/// # #[cfg(any(feature = "tls-ring", feature = "tls-aws-lc-rs"))] {
/// use tower::Layer;
/// use tower_reverse_proxy::{AssertionKeys, AssertionLayer, Client, assertion::Assertion};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let keys = AssertionKeys::from_pem(rcgen::KeyPair::generate()?.serialize_pem())?;
/// let layer = AssertionLayer::new(keys, "https://front.example");
/// let client: Assertion<Client> = layer.layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// # main().unwrap();
/// # }
/// ```
#[derive(Clone)]
pub struct Assertion<S> {
    inner: S,
    config: Arc<Config>,
    cache: Arc<Cache>,
}

impl<S> Assertion<S> {
    pub(super) fn new(inner: S, config: Arc<Config>) -> Self {
        Self { inner, config, cache: Arc::new(Cache::new()) }
    }
}

impl<S: fmt::Debug> fmt::Debug for Assertion<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Assertion").field("inner", &self.inner).finish_non_exhaustive()
    }
}

impl<S, B> Service<Request<B>> for Assertion<S>
where
    S: Service<Request<B>, Error: FromRejection>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        match self.config.apply(&self.cache, &mut request) {
            Ok(()) => ResponseFuture::calling(self.inner.call(request)),
            Err(error) => ResponseFuture::rejected(error),
        }
    }
}

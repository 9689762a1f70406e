//! The service.

use std::{
    fmt, mem,
    task::{Context, Poll},
};

use http::{Request, Response};
use tower_service::Service;

use super::{AuthorizationLayer, CredentialSource, ResponseFuture};
use crate::service::FromRejection;

/// The service of an [`AuthorizationLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{
///     AuthorizationLayer, Client,
///     authorize::{Authorization, CredentialSource},
/// };
///
/// fn signed_in<C: CredentialSource>(source: C, client: Client) -> Authorization<C, Client> {
///     AuthorizationLayer::with_source(source).layer(client)
/// }
/// ```
pub struct Authorization<C, S> {
    inner: S,
    layer: AuthorizationLayer<C>,
}

impl<C, S> Authorization<C, S> {
    pub(super) fn new(inner: S, layer: AuthorizationLayer<C>) -> Self {
        Self { inner, layer }
    }
}

impl<C, S: Clone> Clone for Authorization<C, S> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<C, S: fmt::Debug> fmt::Debug for Authorization<C, S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authorization").field("inner", &self.inner).field("layer", &self.layer).finish()
    }
}

impl<C, S, B, R> Service<Request<B>> for Authorization<C, S>
where
    C: CredentialSource,
    S: Service<Request<B>, Response = Response<R>, Error: FromRejection> + Clone,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<C, S, B>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let shared = self.layer.shared().clone();
        let credentials = shared.ask(&mut request);
        // The service that is ready gets the request, when its credentials are there.
        let next = self.inner.clone();
        ResponseFuture::new(shared, credentials, mem::replace(&mut self.inner, next), request)
    }
}

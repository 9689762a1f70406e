//! The backend-facing half: addresses requests to a backend, and takes its origin out of what it answers.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::HOST,
    uri::{Authority, PathAndQuery, Scheme},
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    backend::{Backend, is_authority},
    headers::{
        cookie,
        front::Schemes,
        location::{self, Origin},
        trim_values,
    },
};

/// The `Host` that the backend gets.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum HostPolicy {
    /// The client's own: a backend checks `Origin` against it and builds its links from it. The default for `http` and
    /// Unix-socket backends.
    Preserve,
    /// The backend's authority: a public site is found by it. The default for `https` backends.
    Backend,
    /// A name of the operator's choice: a virtual host of a server that is addressed by its number.
    Fixed(Authority),
}

impl HostPolicy {
    fn default_for(backend: &Backend) -> Self {
        if *backend.scheme() == Scheme::HTTPS { Self::Backend } else { Self::Preserve }
    }

    #[track_caller]
    pub(crate) fn check(&self) {
        if let Self::Fixed(name) = self {
            assert!(is_authority(name.as_str().as_bytes()), "invalid Host: write a name, and a port if it needs one");
        }
    }
}

/// Addresses requests to a backend.
///
/// It is a service around a client `C`. On the way in, it makes the request's URI absolute and sets `Host`. On the way out,
/// it turns references to the backend's origin into path-absolute ones, and drops cookies' `Domain` that names the backend.
///
/// [`ReverseProxyLayer::new`](crate::ReverseProxyLayer::new) makes one around the crate's own client. Made by hand around
/// another one, it goes into [`with_upstream`](crate::ReverseProxyLayer::with_upstream).
#[derive(Clone, Debug)]
pub struct Upstream<C> {
    client: C,
    to: Arc<To>,
}

#[derive(Clone, Debug)]
pub(crate) struct To {
    pub(crate) backend: Backend,
    pub(crate) host: HostPolicy,
    pub(crate) map_location: bool,
}

impl To {
    pub(crate) fn new(backend: Backend) -> Self {
        let host = HostPolicy::default_for(&backend);
        Self { backend, host, map_location: true }
    }
}

impl<C> Upstream<C> {
    /// Addresses what `client` gets to `backend`.
    pub fn new(backend: Backend, client: C) -> Self {
        Self { client, to: Arc::new(To::new(backend)) }
    }

    pub(crate) fn with_options(to: To, client: C) -> Self {
        Self { client, to: Arc::new(to) }
    }

    /// Sets which `Host` the backend gets. Default: [`Preserve`](HostPolicy::Preserve) for `http` and Unix-socket backends,
    /// [`Backend`](HostPolicy::Backend) for `https` backends.
    ///
    /// # Panics
    ///
    /// If a [fixed](HostPolicy::Fixed) one has credentials in it.
    #[must_use]
    #[track_caller]
    pub fn host(mut self, host: HostPolicy) -> Self {
        host.check();
        Arc::make_mut(&mut self.to).host = host;
        self
    }

    /// Sets whether references to the backend's origin are mapped. Default: `true`.
    #[must_use]
    pub fn map_location(mut self, map: bool) -> Self {
        Arc::make_mut(&mut self.to).map_location = map;
        self
    }

    /// Wraps the client: the layer sees requests as the backend will get them, and its answers as they came.
    #[must_use]
    pub fn layer<L: Layer<C>>(self, layer: &L) -> Upstream<L::Service> {
        Upstream { client: layer.layer(self.client), to: self.to }
    }

    /// Returns the backend.
    pub fn backend(&self) -> &Backend {
        &self.to.backend
    }
}

impl<C, ReqBody, ResBody> Service<Request<ReqBody>> for Upstream<C>
where
    C: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<ResBody>;
    type Error = C::Error;
    type Future = UpstreamFuture<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.client.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let (host, schemes) = self.to.address(&mut request);
        let to = self.to.map_location.then(|| self.to.clone());
        UpstreamFuture { inner: self.client.call(request), to, host, schemes }
    }
}

impl To {
    /// Makes the request one to the backend; returns the `Host` that it gets, and the schemes that a backend which believes the
    /// forwarding fields combines with it.
    fn address<B>(&self, request: &mut Request<B>) -> (HeaderValue, Schemes) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.backend.scheme().clone());
        parts.authority = Some(self.backend.authority().clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        // Of parts that were valid, with all three there, it can't fail.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let own = || self.backend.host();
        let host = match &self.host {
            HostPolicy::Preserve => match request.headers().get(HOST) {
                // With the client's Host, such a reference leads to the front as it is.
                Some(host) => return (host.clone(), Schemes::default()),
                None => own(),
            },
            HostPolicy::Backend => own(),
            HostPolicy::Fixed(name) => HeaderValue::from_str(name.as_str()).unwrap_or_else(|_| own()),
        };
        request.headers_mut().insert(HOST, host.clone());
        (host, Schemes::forwarded_in(request.headers()))
    }

    fn map<B>(&self, response: &mut Response<B>, host: &HeaderValue, schemes: Schemes) {
        // HTTP/1 removes outer blanks when it reads a field.
        if response.version() > Version::HTTP_11 {
            trim_values(response.headers_mut());
        }
        let scheme = self.backend.scheme();
        let own = Origin { scheme, authority: self.backend.authority().as_str().as_bytes() };
        let sent = Origin { scheme, authority: host.as_bytes() };
        location::map_references(response.headers_mut(), |url| {
            location::without_origin(url, own)
                .or_else(|| location::without_origin(url, sent))
                .or_else(|| schemes.without_origin(url, host.as_bytes()))
        });
        cookie::drop_domain(response.headers_mut(), || self.backend.authority().host());
        if let HostPolicy::Fixed(name) = &self.host {
            cookie::drop_domain(response.headers_mut(), || name.host());
        }
    }
}

pin_project! {
    /// The future of an [`Upstream`]'s response.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct UpstreamFuture<F> {
        #[pin]
        inner: F,
        to: Option<Arc<To>>,
        host: HeaderValue,
        schemes: Schemes,
    }
}

impl<F, B, E> Future for UpstreamFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut response = ready!(this.inner.poll(cx))?;
        if let Some(to) = this.to {
            to.map(&mut response, this.host, *this.schemes);
        }
        Poll::Ready(Ok(response))
    }
}

//! The backend-facing half: addresses requests to a backend, and removes its origin from the response.

mod boxed;
mod host;

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use http::{
    HeaderValue, Request, Response, Uri, Version,
    header::{CONTENT_LOCATION, HOST, LOCATION, REFRESH, SET_COOKIE},
    uri::PathAndQuery,
};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

pub use self::{
    boxed::{BoxResponseFuture, BoxUpstream},
    host::{HostName, HostPolicy, InvalidHost},
};
use crate::{
    backend::Backend,
    client::{Client, InvalidClient},
    headers::{
        cookie,
        front::Schemes,
        location::{self, Origin},
        trim_values,
    },
    service::HttpService,
};

/// A service around a client `C` that addresses requests to one backend.
///
/// In a request, it makes the URI absolute and sets `Host`. In a response, it turns references to the backend's origin
/// into path-absolute ones, and removes a cookie's `Domain` that names the backend.
///
/// It's the upstream of a proxy that is made from a backend: `ReverseProxyLayer::new(backend)` is
/// `ReverseProxyLayer::with_upstream(Upstream::new(backend))`. Made by hand, its options can be set, and several of
/// them can stand behind a balancer:
///
/// ```
/// use tower_reverse_proxy::{HostPolicy, ReverseProxyLayer, Upstream};
///
/// // A virtual host of a server that is addressed by its number.
/// let upstream = Upstream::new("http://10.0.0.7").host("intranet.example");
/// let proxy = ReverseProxyLayer::with_upstream(upstream).prefix("/intranet");
/// # let _ = proxy;
/// ```
///
/// # Security
///
/// It does the backend-facing half alone. Called directly, from a handler, it sends what the client has sent, identity claims and
/// forwarding fields included: put it behind a proxy with
/// [`ReverseProxy::with_upstream`](crate::ReverseProxy::with_upstream).
#[derive(Clone, Debug)]
pub struct Upstream<C = Client> {
    client: C,
    destination: Arc<Destination>,
}

#[derive(Clone, Debug)]
struct Destination {
    backend: Backend,
    host: HostPolicy,
    map_location: bool,
}

impl Upstream {
    /// Addresses requests to the backend of `client`: a [`Client`], a [`ClientBuilder`](crate::ClientBuilder), or the
    /// backend's origin as `&str`, `String`, [`Uri`] or [`Backend`].
    ///
    /// ```
    /// use tower_reverse_proxy::{Client, Upstream};
    ///
    /// let upstream = Upstream::new("http://127.0.0.1:8000");
    /// let limited = Upstream::new(Client::builder("http://127.0.0.1:8000").max_connections(8));
    /// # let _ = (upstream, limited);
    /// ```
    ///
    /// # Panics
    ///
    /// If it isn't an origin, or the client can't be built, with a message that names what to write instead.
    /// [`try_new`](Self::try_new) returns it.
    #[track_caller]
    pub fn new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Self {
        // Not in a closure, because the panic has to show the caller's line.
        match Self::try_new(client) {
            Ok(upstream) => upstream,
            Err(error) => panic!("{error}"),
        }
    }

    /// Addresses requests to the backend of `client`, as [`new`](Self::new) does.
    ///
    /// ```
    /// use tower_reverse_proxy::Upstream;
    ///
    /// assert!(Upstream::try_new("127.0.0.1:8000").is_err());
    /// ```
    ///
    /// # Errors
    ///
    /// If it isn't an origin, or the client can't be built.
    pub fn try_new(client: impl TryInto<Client, Error: Into<InvalidClient>>) -> Result<Self, InvalidClient> {
        let client = client.try_into().map_err(Into::into)?;
        Ok(Self::with_client(client.backend().clone(), client))
    }
}

impl<C> Upstream<C> {
    /// Addresses the requests of an HTTP client of another crate to `backend`.
    ///
    /// ```
    /// use axum::body::Body;
    /// use hyper_util::{client::legacy, rt::TokioExecutor};
    /// use tower_reverse_proxy::{ReverseProxyLayer, Upstream};
    ///
    /// # fn main() -> Result<(), tower_reverse_proxy::InvalidBackend> {
    /// let client = legacy::Client::builder(TokioExecutor::new()).build_http::<Body>();
    /// let upstream = Upstream::with_client("http://127.0.0.1:8000".parse()?, client);
    /// let proxy = ReverseProxyLayer::with_upstream(upstream).prefix("/mydir");
    /// # let _ = proxy;
    /// # Ok(())
    /// # }
    /// ```
    pub fn with_client(backend: Backend, client: C) -> Self {
        let host = HostPolicy::default_for(&backend);
        Self { client, destination: Arc::new(Destination { backend, host, map_location: true }) }
    }

    /// Sets which `Host` the backend gets: a [`HostPolicy`], or a name as `&str` or `String`. Default:
    /// [`Preserve`](HostPolicy::Preserve) for `http` and Unix-socket backends, [`Backend`](HostPolicy::Backend) for
    /// `https` backends.
    ///
    /// ```
    /// use tower_reverse_proxy::{HostPolicy, ReverseProxyLayer, Upstream};
    ///
    /// // A backend at a public name, in plaintext.
    /// let upstream = Upstream::new("http://legacy.example").host(HostPolicy::Backend);
    /// // The same, at a layer that has its upstream already.
    /// let proxy = ReverseProxyLayer::new("http://legacy.example").map_upstream(|up| up.host(HostPolicy::Backend));
    /// # let _ = (upstream, proxy);
    /// ```
    ///
    /// # Panics
    ///
    /// If a name isn't a valid `Host`, such as one with credentials.
    #[must_use]
    #[track_caller]
    #[doc(alias = "host header")]
    #[doc(alias = "pass_host_header")]
    #[doc(alias = "ProxyPreserveHost")]
    pub fn host(mut self, host: impl TryInto<HostPolicy, Error: Into<InvalidHost>>) -> Self {
        match host.try_into().map_err(Into::into) {
            Ok(host) => Arc::make_mut(&mut self.destination).host = host,
            Err(error) => panic!("{error}"),
        }
        self
    }

    /// Sets whether `Location`, `Content-Location` and `Refresh` with the backend's origin become references to the
    /// front, and a cookie's `Domain` that names the backend is removed. Default: `true`.
    ///
    /// The origin has to equal the backend's: its authority with its scheme, or the `Host` that it was sent with its
    /// scheme or, if that isn't the client's, with the [forwarded](crate::Forwarded::proto) scheme. It becomes an
    /// absolute path, so that no scheme is guessed, and no client's `Host` gets into it.
    ///
    /// ```
    /// use tower_reverse_proxy::{ReverseProxyLayer, Upstream};
    ///
    /// // Clients can reach the backend's own address, to which it redirects.
    /// let proxy = ReverseProxyLayer::with_upstream(Upstream::new("http://10.0.0.7").map_location(false));
    /// # let _ = proxy;
    /// ```
    #[must_use]
    #[doc(alias = "proxy_redirect")]
    #[doc(alias = "ProxyPassReverse")]
    #[doc(alias = "proxy_cookie_domain")]
    pub fn map_location(mut self, map: bool) -> Self {
        Arc::make_mut(&mut self.destination).map_location = map;
        self
    }

    /// Wraps the client in a layer, which sees each request as it's sent to the backend, and the response before it's
    /// mapped.
    ///
    /// The layer that is added last sees the request first, as with axum's `Router::layer`.
    ///
    /// ```
    /// use tower_reverse_proxy::{BasicAuthLayer, Upstream};
    ///
    /// let upstream = Upstream::new("http://127.0.0.1:8000").layer(BasicAuthLayer::new("front", "s3cret"));
    /// # let _ = upstream;
    /// ```
    #[must_use]
    pub fn layer<L: Layer<C>>(self, layer: L) -> Upstream<L::Service> {
        Upstream { client: layer.layer(self.client), destination: self.destination }
    }

    /// Puts the client behind a type that can be named, whatever layers it has: [`BoxUpstream`].
    ///
    /// Other than a proxy that is [boxed](crate::ReverseProxyLayer::boxed), it can get further layers around the client.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tower::timeout::TimeoutLayer;
    /// use tower_reverse_proxy::{BoxUpstream, ReverseProxyLayer, Upstream};
    ///
    /// /// A layer that depends on the configuration, of any kind: both arms have one type.
    /// fn legacy(timeout: Option<Duration>) -> ReverseProxyLayer<Upstream<BoxUpstream>> {
    ///     let legacy = ReverseProxyLayer::new("http://127.0.0.1:8000");
    ///     match timeout {
    ///         Some(timeout) => legacy.upstream_layer(TimeoutLayer::new(timeout)).map_upstream(Upstream::boxed),
    ///         None => legacy.map_upstream(Upstream::boxed),
    ///     }
    /// }
    /// # let _ = legacy(None);
    /// ```
    #[must_use]
    pub fn boxed(self) -> Upstream<BoxUpstream>
    where
        C: HttpService + Send + Sync + 'static,
        C::Future: Send,
    {
        Upstream { client: BoxUpstream::new(self.client), destination: self.destination }
    }

    /// Returns the backend.
    ///
    /// ```
    /// use tower_reverse_proxy::Upstream;
    ///
    /// let upstream = Upstream::new("http://127.0.0.1:8000");
    /// assert_eq!(upstream.backend().authority(), "127.0.0.1:8000");
    /// ```
    pub fn backend(&self) -> &Backend {
        &self.destination.backend
    }
}

impl<C, ReqBody, ResBody> Service<Request<ReqBody>> for Upstream<C>
where
    C: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = Response<ResBody>;
    type Error = C::Error;
    type Future = ResponseFuture<C::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.client.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let (host, schemes) = self.destination.address(&mut request);
        let destination = self.destination.map_location.then(|| self.destination.clone());
        ResponseFuture { inner: self.client.call(request), destination, host, schemes }
    }
}

impl Destination {
    /// Addresses the request to the backend. Returns its `Host`, and the schemes that a backend combines with it if it
    /// evaluates the forwarding fields.
    fn address<B>(&self, request: &mut Request<B>) -> (HeaderValue, Schemes) {
        let mut parts = std::mem::take(request.uri_mut()).into_parts();
        parts.scheme = Some(self.backend.scheme().clone());
        parts.authority = Some(self.backend.authority().clone());
        parts.path_and_query.get_or_insert(PathAndQuery::from_static("/"));
        // Can't fail, because all three parts are present and valid.
        *request.uri_mut() = Uri::from_parts(parts).unwrap_or_default();
        let own = || self.backend.host();
        let host = match &self.host {
            HostPolicy::Preserve => match request.headers().get(HOST) {
                // A reference with the client's Host leads to the front without being mapped.
                Some(host) => return (host.clone(), Schemes::default()),
                None => own(),
            },
            HostPolicy::Backend => own(),
            HostPolicy::Fixed(name) => name.value().clone(),
        };
        request.headers_mut().insert(HOST, host.clone());
        (host, Schemes::forwarded_in(request.headers()))
    }

    fn rewrite_response<B>(&self, response: &mut Response<B>, host: &HeaderValue, schemes: Schemes) {
        // An HTTP/1 parser removes the whitespace around a value.
        if response.version() > Version::HTTP_11 {
            trim_values(response.headers_mut());
        }
        // Fast path: one pass over the few names costs less than a look-up for each.
        if !response.headers().keys().any(|name| [LOCATION, CONTENT_LOCATION, REFRESH, SET_COOKIE].contains(name)) {
            return;
        }
        let scheme = self.backend.scheme();
        let own = Origin { scheme, authority: self.backend.authority().as_str().as_bytes() };
        let sent = Origin { scheme, authority: host.as_bytes() };
        location::map_references(response.headers_mut(), |url| {
            location::strip_origin(url, own)
                .or_else(|| location::strip_origin(url, sent))
                .or_else(|| schemes.strip_origin(url, host.as_bytes()))
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
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        destination: Option<Arc<Destination>>,
        host: HeaderValue,
        schemes: Schemes,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let mut polled = this.inner.poll(cx);
        if let (Poll::Ready(Ok(response)), Some(destination)) = (&mut polled, this.destination) {
            destination.rewrite_response(response, this.host, *this.schemes);
        }
        polled
    }
}

//! A layer that traces the redirects of the backend.

use std::{
    borrow::Cow,
    future::Future,
    pin::Pin,
    task::{Context, Poll, ready},
};

use http::{Method, Request, Response, Uri, header::LOCATION};
use pin_project_lite::pin_project;
use tower_layer::Layer;
use tower_service::Service;

use crate::observe;

/// A layer that emits one [`tracing`] event for each redirect that the backend answers with.
///
/// The event's target is `tower_reverse_proxy::redirect`, its level `INFO`. It has the fields `method`, `target` (of
/// the request, as the backend got it), `status` and `location` (the backend's own, before it's mapped to the front),
/// and is emitted for each response with a status of 300 to 399 and a `Location`.
///
/// Queries, fragments and userinfo are redacted, because they often contain secrets. [`show_query`](Self::show_query)
/// shows all but the userinfo.
///
/// It belongs on the upstream side ([`upstream_layer`](crate::ReverseProxyLayer::upstream_layer)). It's an ordinary
/// tower layer and works around any HTTP client.
///
/// ```
/// use tower_reverse_proxy::{ReverseProxyLayer, TraceRedirectLayer};
///
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(TraceRedirectLayer::new());
/// # let _ = proxy;
/// ```
#[doc(alias("redirect", "Location"))]
#[derive(Clone, Copy, Debug, Default)]
pub struct TraceRedirectLayer {
    show_query: bool,
}

impl TraceRedirectLayer {
    /// Traces redirects, with queries and userinfo redacted.
    ///
    /// ```
    /// use tower_reverse_proxy::TraceRedirectLayer;
    ///
    /// let layer = TraceRedirectLayer::new();
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets whether queries and fragments are shown as they are. Default: `false`, `?…` or `#…` stands for them.
    /// Userinfo is always redacted.
    ///
    /// ```
    /// use tower_reverse_proxy::TraceRedirectLayer;
    ///
    /// let layer = TraceRedirectLayer::new().show_query(true);
    /// # let _ = layer;
    /// ```
    #[must_use]
    pub fn show_query(mut self, show: bool) -> Self {
        self.show_query = show;
        self
    }
}

impl<S> Layer<S> for TraceRedirectLayer {
    type Service = TraceRedirect<S>;

    fn layer(&self, inner: S) -> Self::Service {
        TraceRedirect { inner, layer: *self }
    }
}

/// The service of a [`TraceRedirectLayer`].
///
/// ```
/// use tower::Layer;
/// use tower_reverse_proxy::{Client, TraceRedirectLayer, trace_redirect::TraceRedirect};
///
/// # fn main() -> Result<(), tower_reverse_proxy::InvalidClient> {
/// let client: TraceRedirect<Client> = TraceRedirectLayer::new().layer("http://127.0.0.1:8000".try_into()?);
/// # let _ = client;
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct TraceRedirect<S> {
    inner: S,
    layer: TraceRedirectLayer,
}

impl<S, ReqBody, ResBody> Service<Request<ReqBody>> for TraceRedirect<S>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
{
    type Response = S::Response;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<ReqBody>) -> Self::Future {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        ResponseFuture { inner: self.inner.call(request), layer: self.layer, method, uri }
    }
}

pin_project! {
    /// The future of a [`TraceRedirect`]'s response.
    #[derive(Debug)]
    #[must_use = "futures do nothing unless polled"]
    pub struct ResponseFuture<F> {
        #[pin]
        inner: F,
        layer: TraceRedirectLayer,
        method: Method,
        uri: Uri,
    }
}

impl<F, B, E> Future for ResponseFuture<F>
where
    F: Future<Output = Result<Response<B>, E>>,
{
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        let response = ready!(this.inner.poll(cx))?;
        if response.status().is_redirection()
            && let Some(location) = response.headers().get(LOCATION)
        {
            let location = String::from_utf8_lossy(location.as_bytes());
            let target = this.uri.path_and_query().map_or("/", |target| target.as_str());
            observe::redirect(
                this.method,
                &this.layer.redacted(target),
                response.status(),
                &this.layer.redacted(&location),
            );
        }
        Poll::Ready(Ok(response))
    }
}

impl TraceRedirectLayer {
    /// Redacts the secrets in a reference.
    fn redacted<'a>(&self, reference: &'a str) -> Cow<'a, str> {
        let (before, query) = match reference.find(['?', '#']) {
            Some(start) => reference.split_at(start),
            None => (reference, ""),
        };
        // An authority ends at the first slash. The part before an `@` in it is the userinfo.
        let authority = before.find("//").map_or(0, |slashes| slashes + 2);
        let end = before[authority..].find(['/', '\\']).map_or(before.len(), |end| authority + end);
        let userinfo = if authority > 0 { before[authority..end].rfind('@') } else { None };
        match (userinfo, query.is_empty() || self.show_query) {
            (None, true) => Cow::Borrowed(reference),
            (userinfo, whole) => {
                let hidden = userinfo.map_or(String::new(), |_| "…".to_owned());
                let rest = userinfo.map_or(authority, |at| authority + at);
                let query = match query.as_bytes() {
                    _ if whole => query,
                    [b'?', ..] => "?…",
                    _ => "#…",
                };
                Cow::Owned([&before[..authority], &hidden, &before[rest..], query].concat())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_in_locations_are_not_traced() {
        let layer = TraceRedirectLayer::new();
        for (reference, shown) in [
            ("/mydir/x", "/mydir/x"),
            ("/mydir/x?token=s3cret#f", "/mydir/x?…"),
            ("http://backend:9000/x", "http://backend:9000/x"),
            ("http://user:s3cret@backend/x?y", "http://…@backend/x?…"),
            ("//user@backend", "//…@backend"),
            ("/x@y", "/x@y"),
            ("http://backend?s3cret", "http://backend?…"),
            ("/x#access_token=s3cret", "/x#…"),
        ] {
            assert_eq!(layer.redacted(reference), shown);
        }
        let layer = layer.show_query(true);
        assert_eq!(layer.redacted("http://u:p@backend/x?y"), "http://…@backend/x?y");
    }
}

//! Failures between client and backend.

mod cause;
mod kind;

use std::{
    error, fmt, iter,
    num::NonZeroU16,
    sync::{Arc, Mutex, OnceLock, PoisonError},
};

use axum_core::{BoxError, body::Body};
use http::{HeaderValue, Request, StatusCode};

pub(crate) use self::cause::{classify, classify_request_body, classify_response_body, known_kind};
pub use self::kind::{ErrorKind, Phase};

/// A failure of the proxy, in the extensions of the response that reports it, or as the error of an upstream service.
///
/// A middleware outside of the proxy finds it with `response.extensions().get::<Error>()`; an
/// [`on_error`](crate::ReverseProxyLayer::on_error) hook gets it in a [`Failure`](crate::Failure). Clones share one
/// value.
///
/// A layer on the upstream side refuses a request with an error: see [`rejected`](Self::rejected).
///
/// `Display` describes the failure without its cause; the cause is the [`source`](error::Error::source). Neither
/// contains credentials or field values. Both may contain addresses of the backend, so they are fit for logs and not
/// for clients. The type of the source isn't part of the API, except for the source of a [`rejected`](Self::rejected)
/// request.
///
/// ```
/// use axum::response::Response;
/// use tower_reverse_proxy::Error;
///
/// /// Counts failures by their kind: a function for axum's `map_response`, added to the router after the proxy.
/// async fn count(response: Response) -> Response {
///     if let Some(error) = response.extensions().get::<Error>() {
///         println!("proxy_failures_total{{kind=\"{:?}\"}}", error.kind());
///     }
///     response
/// }
/// ```
#[derive(Clone)]
pub struct Error {
    inner: Arc<Inner>,
    /// Whether its event has been emitted. Not shared with clones, because requests that waited for one connection
    /// share its error.
    reported: bool,
    /// Whether an earlier attempt of the client may have been processed, whatever became of the last one.
    may_be_processed: bool,
    /// The `Retry-After` of its response, in seconds.
    retry_after: Option<NonZeroU16>,
    /// The request, if nothing of it was sent. `Some` without a request after it has been taken.
    unsent: Option<Arc<Mutex<Option<Request<Body>>>>>,
}

struct Inner {
    kind: ErrorKind,
    source: Option<BoxError>,
    response: Option<Rejection>,
    member: OnceLock<Box<str>>,
}

/// A status that replaces the one of the failure's kind.
enum Rejection {
    Status(StatusCode),
    /// 401, with this `WWW-Authenticate`.
    Challenge(HeaderValue),
}

impl Error {
    /// Rejects a request with a status, from a layer on the upstream side of the application's own.
    ///
    /// The layer returns it as the error of its service. The proxy turns it into a response as it does with its own
    /// failures: with the [`on_error`](crate::ReverseProxyLayer::on_error) page, one event, and a gRPC status for gRPC
    /// requests. Its kind is [`Rejected`](ErrorKind::Rejected). `source` is logged, at debug level if the status is 4xx
    /// and at warn level otherwise; the client gets the status only.
    ///
    /// A 1xx status becomes 500, because it isn't a final response: a client would read what follows a 101 as another
    /// protocol.
    ///
    /// ```
    /// use axum::{body::Body, http::{Request, StatusCode}};
    /// use tower::ServiceExt;
    /// use tower_reverse_proxy::{Client, Error, ReverseProxyLayer};
    ///
    /// // Refuses uploads during maintenance.
    /// let read_only = tower::layer::layer_fn(|client: Client| {
    ///     tower::service_fn(move |request: Request<Body>| {
    ///         let client = client.clone();
    ///         async move {
    ///             match request.method().is_safe() {
    ///                 true => client.oneshot(request).await,
    ///                 false => Err(Error::rejected(StatusCode::SERVICE_UNAVAILABLE, "the site is read-only")),
    ///             }
    ///         }
    ///     })
    /// });
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").upstream_layer(read_only).into_service();
    ///
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// let request = Request::post("/page").header("host", "front.example").body(Body::from("new text")).unwrap();
    /// let response = proxy.oneshot(request).await.unwrap();
    /// assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    /// # });
    /// ```
    ///
    /// A layer for any client implements `Service<Request<B>>` for its own service where
    /// `S: Service<Request<B>, Error: From<Error>>`, as the layers of this crate do.
    ///
    /// # What the response gets besides the status
    ///
    /// A `source` of the application's own type can be downcast in [`on_error`](crate::ReverseProxyLayer::on_error),
    /// because its type is part of the contract, in contrast to that of any other
    /// [`source`](error::Error::source). The hook sets a `Retry-After`, for example:
    ///
    /// ```
    /// use std::{error::Error as _, fmt};
    ///
    /// use axum::http::{StatusCode, header::RETRY_AFTER};
    /// use tower_reverse_proxy::{Error, Failure, ReverseProxyLayer};
    /// # use axum::{body::Body, http::Request};
    /// # use tower::ServiceExt;
    ///
    /// #[derive(Debug)]
    /// struct OverQuota {
    ///     seconds: u32,
    /// }
    ///
    /// impl fmt::Display for OverQuota {
    ///     fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    ///         write!(f, "over the quota for {} seconds", self.seconds)
    ///     }
    /// }
    ///
    /// impl std::error::Error for OverQuota {}
    ///
    /// // In an upstream layer:
    /// let reject = || Error::rejected(StatusCode::TOO_MANY_REQUESTS, OverQuota { seconds: 7 });
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(|failure: &Failure| {
    ///     let quota = failure.error().source().and_then(|source| source.downcast_ref::<OverQuota>());
    ///     let retry_after = quota.map(|quota| [(RETRY_AFTER, quota.seconds.to_string())]);
    ///     (failure.status(), retry_after, "Please try again later.")
    /// });
    /// # tokio::runtime::Runtime::new().unwrap().block_on(async {
    /// # let layer = tower::layer::layer_fn(move |_| {
    /// #     let reject = reject.clone();
    /// #     tower::service_fn(move |_: Request<Body>| {
    /// #         let error = reject();
    /// #         async move { Err::<axum::response::Response, _>(error) }
    /// #     })
    /// # });
    /// # let request = Request::get("/").header("host", "front.example").body(Body::empty()).unwrap();
    /// # let response = proxy.upstream_layer(layer).into_service().oneshot(request).await.unwrap();
    /// # assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
    /// # assert_eq!(response.headers()[RETRY_AFTER], "7");
    /// # });
    /// ```
    pub fn rejected(status: StatusCode, source: impl Into<BoxError>) -> Self {
        let status = if status.is_informational() { StatusCode::INTERNAL_SERVER_ERROR } else { status };
        Self::from_parts(ErrorKind::Rejected, Some(source.into()), Some(Rejection::Status(status)))
    }

    pub(crate) fn new(kind: ErrorKind) -> Self {
        Self::from_parts(kind, None, None)
    }

    pub(crate) fn with_source(kind: ErrorKind, source: impl Into<BoxError>) -> Self {
        Self::from_parts(kind, Some(source.into()), None)
    }

    /// Creates a failure whose status depends on the request.
    pub(crate) fn with_status(kind: ErrorKind, status: StatusCode, source: impl Into<BoxError>) -> Self {
        Self::from_parts(kind, Some(source.into()), Some(Rejection::Status(status)))
    }

    /// Creates a failure whose response is 401 with this `WWW-Authenticate`.
    pub(crate) fn with_challenge(kind: ErrorKind, challenge: HeaderValue) -> Self {
        Self::from_parts(kind, None, Some(Rejection::Challenge(challenge)))
    }

    fn from_parts(kind: ErrorKind, source: Option<BoxError>, response: Option<Rejection>) -> Self {
        Self {
            inner: Arc::new(Inner { kind, source, response, member: OnceLock::new() }),
            reported: false,
            may_be_processed: false,
            retry_after: None,
            unsent: None,
        }
    }

    /// Names the member of a balancer whose failure it is. That of the innermost balancer stays.
    pub(crate) fn set_member(&self, name: &str) {
        let _ = self.inner.member.set(name.into());
    }

    /// Names the member of a balancer whose failure it is, if there is one.
    pub(crate) fn with_member(self, name: Option<Box<str>>) -> Self {
        if let Some(name) = name {
            self.set_member(&name);
        }
        self
    }

    /// Returns the member of a balancer whose failure it is.
    pub(crate) fn member(&self) -> Option<&str> {
        self.inner.member.get().map(|name| &**name)
    }

    /// Sets the `Retry-After` of its response, in seconds: when the client may try again. 0 sets none.
    pub(crate) fn with_retry_after(mut self, seconds: u16) -> Self {
        self.retry_after = NonZeroU16::new(seconds);
        self
    }

    /// Returns the `Retry-After` of its response, in seconds.
    pub(crate) fn retry_after(&self) -> Option<u16> {
        self.retry_after.map(NonZeroU16::get)
    }

    /// Attaches the request, of which the last attempt has sent nothing.
    ///
    /// It isn't attached if it's refused, because it would be refused again, or if an earlier attempt may have been
    /// processed.
    pub(crate) fn with_unsent(mut self, request: Request<Body>) -> Self {
        if request.extensions().get::<MayBeProcessed>().is_some() {
            self.may_be_processed = true;
        } else if self.phase() != Phase::Request {
            self.unsent = Some(Arc::new(Mutex::new(Some(request))));
        }
        self
    }

    /// Records that the request was sent, whatever the kind: a response has shown the failure.
    pub(crate) fn after_sending(mut self) -> Self {
        self.may_be_processed = true;
        self.unsent = None;
        self
    }

    /// Drops the unsent request of this error and of its causes.
    pub(crate) fn drop_request(&self) {
        for unsent in self.causes().filter_map(|cause| cause.downcast_ref::<Self>()?.unsent.as_ref()) {
            let request = unsent.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(request);
        }
    }

    /// Returns the error and the chain of its causes.
    fn causes(&self) -> impl Iterator<Item = &(dyn error::Error + 'static)> {
        iter::successors(Some(self as &(dyn error::Error + 'static)), |&cause| cause.source())
    }

    /// Takes the request from the error if [nothing of it was sent](Self::is_unsent), so that it can be sent to another
    /// upstream.
    ///
    /// It's complete, with its body and extensions, as the [`Client`](crate::Client) got it, except that its URI may be
    /// in origin-form. An [`Upstream`](crate::Upstream) in between has set its URI and, depending on the
    /// [`HostPolicy`](crate::HostPolicy), its `Host`. The next one sets the URI again, but `Preserve` keeps the `Host`
    /// of the first.
    ///
    /// Returns `None` if it may have been processed; if it has been taken before, from this error or a clone of it; or
    /// if the failure isn't the [`Client`](crate::Client)'s, as with [`rejected`](Self::rejected).
    ///
    /// It always returns `None` for an error in the extensions of a response, and in
    /// [`on_error`](crate::ReverseProxyLayer::on_error), because the proxy drops the request when it makes the
    /// response. A failover therefore is a service on the upstream side, not a handler that calls one proxy after the
    /// other:
    ///
    /// ```
    /// use std::error::Error;
    ///
    /// use axum::{body::Body, http::Request};
    /// use tower::{ServiceExt, service_fn};
    /// use tower_reverse_proxy::{ReverseProxy, Upstream};
    ///
    /// let members = [Upstream::new("http://10.0.0.7:8000"), Upstream::new("http://10.0.0.8:8000")];
    /// // Sends a request to the second backend if the first can't be reached. Not even a `POST` is sent twice.
    /// let proxy = ReverseProxy::with_upstream(service_fn(move |request: Request<Body>| {
    ///     let [first, second] = members.clone();
    ///     async move {
    ///         match first.oneshot(request).await {
    ///             Err(mut error) => match error.take_request() {
    ///                 Some(request) => {
    ///                     // The proxy emits no event for a request that is rescued.
    ///                     tracing::warn!(error = &error as &dyn Error, "the second backend gets the request");
    ///                     second.oneshot(request).await
    ///                 }
    ///                 None => Err(error),
    ///             },
    ///             response => response,
    ///         }
    ///     }
    /// }));
    /// # let _ = proxy;
    /// ```
    ///
    /// # Security
    ///
    /// An [`Upstream`](crate::Upstream) or a [`Client`](crate::Client) is called behind a proxy only, as above: see the
    /// [security of `Client`](crate::Client#security).
    ///
    /// The request has the fields that the layers of the first upstream have set, such as the `Authorization` of a
    /// [`BasicAuthLayer`](crate::BasicAuthLayer). Upstreams that get each other's requests need the same layers around
    /// each of them, or the layers around the balancer. Otherwise, the second backend gets the first one's credentials.
    #[doc(alias = "failover")]
    #[doc(alias = "retry")]
    #[doc(alias = "proxy_next_upstream")]
    pub fn take_request(&mut self) -> Option<Request<Body>> {
        self.take_unsent_request()
    }

    /// Takes the request, as [`take_request`](Self::take_request) does, from an error in a chain of causes.
    pub(crate) fn take_unsent_request(&self) -> Option<Request<Body>> {
        self.unsent.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Calls a function with the unsent request, which stays in the error.
    pub(crate) fn with_unsent_request<T>(&self, f: impl FnOnce(&mut Request<Body>) -> T) -> Option<T> {
        let mut request = self.take_unsent_request()?;
        let result = f(&mut request);
        if let Some(unsent) = &self.unsent {
            *unsent.lock().unwrap_or_else(PoisonError::into_inner) = Some(request);
        }
        Some(result)
    }

    /// Returns the first error of this crate in a chain of causes, which decides what the chain is.
    pub(crate) fn find(error: &BoxError) -> Option<&Self> {
        cause::causes(error).find_map(<dyn error::Error>::downcast_ref)
    }

    /// Returns the `WWW-Authenticate` of its response.
    pub(crate) fn challenge(&self) -> Option<&HeaderValue> {
        match &self.inner.response {
            Some(Rejection::Challenge(challenge)) => Some(challenge),
            _ => None,
        }
    }

    /// Records that the event of this failure has been emitted, which a nested proxy may have done.
    pub(crate) fn report(&mut self) {
        self.reported = true;
    }

    /// Returns whether the event of this failure has been emitted.
    pub(crate) fn is_reported(&self) -> bool {
        self.reported
    }

    /// Returns the kind of the failure.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::{Error, ErrorKind};
    ///
    /// assert_eq!(Error::rejected(StatusCode::FORBIDDEN, "not today").kind(), ErrorKind::Rejected);
    /// ```
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// Returns the part of the exchange in which it failed.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::{Error, Phase};
    ///
    /// assert_eq!(Error::rejected(StatusCode::FORBIDDEN, "not today").phase(), Phase::Request);
    /// ```
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.kind().phase()
    }

    /// Returns the status that the client gets if the response hasn't begun.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::Error;
    ///
    /// assert_eq!(Error::rejected(StatusCode::TOO_MANY_REQUESTS, "quota").status(), StatusCode::TOO_MANY_REQUESTS);
    /// ```
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self.inner.response {
            Some(Rejection::Challenge(_)) => StatusCode::UNAUTHORIZED,
            Some(Rejection::Status(status)) => status,
            None => self.kind().status(),
        }
    }

    /// Returns `true` if the backend couldn't be reached: refused, unknown, or not connected within the connect
    /// timeout.
    ///
    /// ```
    /// use tower_reverse_proxy::Error;
    ///
    /// /// Whether a health check should take the backend out.
    /// fn is_down(error: &Error) -> bool {
    ///     error.is_connect() && !error.is_local()
    /// }
    /// ```
    #[must_use]
    pub fn is_connect(&self) -> bool {
        matches!(self.kind(), ErrorKind::Connect | ErrorKind::ConnectTimeout)
    }

    /// Returns `true` if the cause is a shortage of the proxy's own process or machine: of file descriptors, local
    /// addresses and ports, socket buffers, or memory.
    ///
    /// It isn't the backend's fault, and another backend would fail alike. The chain of the causes is searched for the
    /// error of the operating system, so a [`connector`](crate::ClientBuilder::connector) of the application is covered
    /// if its error keeps that one as a [`source`](error::Error::source).
    ///
    /// ```
    /// use std::{io, io::ErrorKind};
    ///
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::Error;
    ///
    /// let shortage = io::Error::from(ErrorKind::AddrNotAvailable);
    /// assert!(Error::rejected(StatusCode::SERVICE_UNAVAILABLE, shortage).is_local());
    /// let refused = io::Error::from(ErrorKind::ConnectionRefused);
    /// assert!(!Error::rejected(StatusCode::BAD_GATEWAY, refused).is_local());
    /// ```
    #[must_use]
    #[doc(alias = "EMFILE")]
    #[doc(alias = "too many open files")]
    pub fn is_local(&self) -> bool {
        self.causes().any(cause::is_shortage)
    }

    /// Returns `true` if nothing of the request was sent to a backend, because there was no connection: the backend
    /// couldn't be [reached](Self::is_connect), the connection closed before anything was written, or there was no
    /// capacity ([`Overloaded`](ErrorKind::Overloaded)); or there were no credentials for it
    /// ([`CredentialsMissing`](ErrorKind::CredentialsMissing) and its siblings). An HTTP/2 stream that the backend has
    /// refused unprocessed (RFC 9113, section 8.7) counts as unsent.
    ///
    /// A retry layer may send such a request again with any method, to this backend or to another one. If the failure
    /// is the [`Client`](crate::Client)'s, [`take_request`](Self::take_request) returns the request. It does so on the
    /// upstream side only: an error in a response's extensions may be unsent, but has no request.
    ///
    /// It's `false` for a refused request ([`Phase::Request`]), although nothing of it was sent, because it would be
    /// refused again; and if the client has resent an idempotent request whose first attempt may have been processed.
    ///
    /// ```
    /// use tower_reverse_proxy::Error;
    ///
    /// /// Whether even a `POST` may be sent again.
    /// fn may_be_retried(error: &Error) -> bool {
    ///     error.is_unsent()
    /// }
    /// ```
    #[must_use]
    pub fn is_unsent(&self) -> bool {
        !self.may_be_processed && (self.phase() == Phase::Connect || self.unsent.is_some())
    }

    /// Returns `true` if one of the proxy's timeouts elapsed.
    ///
    /// ```
    /// use tower_reverse_proxy::Error;
    ///
    /// fn outcome(error: &Error) -> &'static str {
    ///     if error.is_timeout() { "timeout" } else { "failure" }
    /// }
    /// ```
    #[must_use]
    pub fn is_timeout(&self) -> bool {
        matches!(
            self.kind(),
            ErrorKind::ConnectTimeout
                | ErrorKind::CredentialsTimeout
                | ErrorKind::SendTimeout
                | ErrorKind::HeaderTimeout
                | ErrorKind::RequestBodyTimeout
                | ErrorKind::ResponseBodyTimeout
        )
    }

    /// Returns `true` if the cause is on the client's side: an invalid request or body, or a client that disconnected.
    ///
    /// For [`Rejected`](ErrorKind::Rejected), it's `true` if the status is 400 to 499.
    ///
    /// ```
    /// use axum::http::StatusCode;
    /// use tower_reverse_proxy::Error;
    ///
    /// assert!(Error::rejected(StatusCode::NOT_FOUND, "no such tenant").is_client());
    /// assert!(!Error::rejected(StatusCode::SERVICE_UNAVAILABLE, "maintenance").is_client());
    /// ```
    #[must_use]
    pub fn is_client(&self) -> bool {
        match (self.phase(), self.kind()) {
            (_, ErrorKind::Rejected) => self.status().is_client_error(),
            (_, ErrorKind::IdentityUnknown | ErrorKind::NoTarget) => false,
            (Phase::Request, _) => true,
            (Phase::RequestBody, kind) => kind != ErrorKind::SendTimeout,
            _ => false,
        }
    }
}

/// Marks a request that the client sends a second time, as an extension: the first attempt may have been processed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MayBeProcessed;

impl From<ErrorKind> for Error {
    fn from(kind: ErrorKind) -> Self {
        Self::new(kind)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Error").field("kind", &self.inner.kind).field("source", &self.inner.source).finish()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind().message())
    }
}

impl error::Error for Error {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        self.inner.source.as_ref().map(|source| &**source as _)
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn errors_before_a_connection_are_unsent() {
        use ErrorKind as K;
        for (kind, unsent, connect) in [
            (K::Connect, true, true),
            (K::ConnectTimeout, true, true),
            (K::Overloaded, true, false),
            (K::CredentialsMissing, true, false),
            (K::CredentialsTimeout, true, false),
            (K::CredentialsBusy, true, false),
            (K::WrongSpeaker, true, false),
            (K::CredentialsRefused, false, false),
            (K::BackendUnproven, false, false),
            (K::IdentityUnknown, false, false),
            (K::ConnectionClosed, false, false),
            (K::SendTimeout, false, false),
            (K::HeaderTimeout, false, false),
            (K::Upstream, false, false),
        ] {
            let error = Error::new(kind);
            assert_eq!((error.is_unsent(), error.is_connect()), (unsent, connect), "{kind:?}");
        }
    }

    #[test]
    fn an_error_that_a_response_has_shown_is_not_unsent() {
        for kind in [ErrorKind::WrongSpeaker, ErrorKind::Connect] {
            let error = Error::new(kind).with_unsent(Request::default()).after_sending();
            assert!(!error.is_unsent() && !error.clone().is_unsent(), "{kind:?}");
            assert!(error.clone().take_request().is_none(), "{kind:?}");
        }
    }

    #[test]
    fn a_shortage_is_found_in_the_causes() {
        let os = io::Error::from_raw_os_error;
        let wrapped = |error: io::Error| io::Error::new(error.kind(), error);
        for (cause, is_local) in [
            (os(24), true),
            (os(23), true),
            (wrapped(wrapped(os(24))), true),
            (io::ErrorKind::AddrNotAvailable.into(), true),
            (io::ErrorKind::AddrInUse.into(), true),
            (io::ErrorKind::OutOfMemory.into(), true),
            #[cfg(target_os = "linux")]
            (os(105), true),
            (io::ErrorKind::ConnectionRefused.into(), false),
            (io::ErrorKind::TimedOut.into(), false),
            (io::Error::other("too many open files"), false),
        ] {
            let shown = format!("{cause:?}");
            let inner = Error::with_source(ErrorKind::Connect, cause);
            assert_eq!(inner.is_local(), is_local, "{shown}");
            assert_eq!(Error::with_source(ErrorKind::Upstream, inner).is_local(), is_local, "{shown}");
        }
        assert!(!Error::new(ErrorKind::Connect).is_local());
    }

    #[test]
    fn a_failure_of_credentials_is_never_the_clients() {
        use ErrorKind as K;
        for (kind, status) in [
            (K::IdentityUnknown, 503),
            (K::CredentialsMissing, 502),
            (K::CredentialsTimeout, 504),
            (K::CredentialsBusy, 503),
            (K::WrongSpeaker, 502),
            (K::CredentialsRefused, 502),
            (K::BackendUnproven, 502),
        ] {
            assert_eq!(Error::new(kind).status().as_u16(), status, "{kind:?}");
            let error = Error::with_status(kind, StatusCode::FORBIDDEN, "no");
            assert_eq!((error.kind(), error.status().as_u16(), error.is_client()), (kind, 403, false), "{kind:?}");
            assert_eq!(error.is_timeout(), kind == K::CredentialsTimeout, "{kind:?}");
        }
    }

    #[test]
    fn a_missing_target_is_the_applications_fault() {
        let mut error = Error::new(ErrorKind::NoTarget).with_unsent(Request::default());
        assert_eq!((error.status().as_u16(), error.is_client(), error.is_unsent()), (500, false, false));
        assert!(error.take_request().is_none());
    }

    #[test]
    fn a_rejection_is_a_final_response() {
        for (status, expected) in [(100, 500), (101, 500), (103, 500), (302, 302), (429, 429)] {
            let error = Error::rejected(StatusCode::from_u16(status).unwrap(), "no");
            assert_eq!(error.status().as_u16(), expected, "{status}");
        }
    }
}

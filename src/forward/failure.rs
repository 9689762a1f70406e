//! Turns a failure into one response, with the error in its extensions, and one event.

use std::{fmt, ops::Deref};

use axum_core::body::Body;
use http::{
    HeaderMap, HeaderValue, Method, Request, Response, StatusCode, Uri, Version,
    header::{ALLOW, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
};

use super::{config::ForwardConfig, request::Refusal, response::no_body};
use crate::{error::Error, headers::grpc, observe};

/// The argument of an [`on_error`](crate::ReverseProxyLayer::on_error) hook: the [`Error`], to which it dereferences,
/// and the head of the failed request, as the client sent it.
///
/// `Debug` and `Display` show the error only, because the fields of the request may contain credentials.
///
/// ```
/// use axum::http::StatusCode;
/// use tower_reverse_proxy::{Failure, ReverseProxyLayer};
///
/// let page = |failure: &Failure| {
///     let page = format!("{} {}: {}", failure.method(), failure.uri().path(), failure.status());
///     (failure.status(), page)
/// };
/// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(page);
/// # let _ = proxy;
/// ```
#[derive(Clone)]
pub struct Failure {
    error: Error,
    request: RequestHead,
}

/// The head of a request, kept for a hook.
#[derive(Clone)]
pub(super) struct RequestHead {
    method: Method,
    uri: Uri,
    headers: HeaderMap,
}

impl Failure {
    /// Returns the error.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(|failure| {
    ///     let shown = format!("{:?}", failure.error().kind());
    ///     (failure.status(), shown)
    /// });
    /// # let _ = proxy;
    /// ```
    pub fn error(&self) -> &Error {
        &self.error
    }

    /// Returns the request's method.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(|failure| {
    ///     let shown = format!("{:?}", failure.method().clone());
    ///     (failure.status(), shown)
    /// });
    /// # let _ = proxy;
    /// ```
    pub fn method(&self) -> &Method {
        &self.request.method
    }

    /// Returns the request's target as the client sent it, including the part that nested routers have stripped.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(|failure| {
    ///     let shown = format!("{:?}", failure.uri().path().to_owned());
    ///     (failure.status(), shown)
    /// });
    /// # let _ = proxy;
    /// ```
    pub fn uri(&self) -> &Uri {
        &self.request.uri
    }

    /// Returns the request's fields as the client sent them, hop-by-hop fields and credentials included.
    ///
    /// ```
    /// use tower_reverse_proxy::ReverseProxyLayer;
    ///
    /// let proxy = ReverseProxyLayer::new("http://127.0.0.1:8000").on_error(|failure| {
    ///     let shown = format!("{:?}", failure.headers().contains_key("accept"));
    ///     (failure.status(), shown)
    /// });
    /// # let _ = proxy;
    /// ```
    pub fn headers(&self) -> &HeaderMap {
        &self.request.headers
    }
}

impl Deref for Failure {
    type Target = Error;

    fn deref(&self) -> &Error {
        &self.error
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Failure").field("error", &self.error).finish_non_exhaustive()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.error.fmt(f)
    }
}

impl RequestHead {
    /// Clones the head of a request if there is a hook, because the request is moved to the upstream before it may
    /// fail.
    pub(super) fn keep(config: &ForwardConfig, request: &Request<Body>) -> Option<Box<Self>> {
        config.on_error.as_ref()?;
        Some(Box::new(Self {
            method: request.method().clone(),
            uri: super::request::original_uri(request).clone(),
            headers: request.headers().clone(),
        }))
    }
}

/// Returns the proxy's own response to a refused or failed request. `request` is `Some` if there is a hook.
pub(super) fn respond(
    config: &ForwardConfig,
    refusal: Refusal,
    is_grpc: bool,
    request: Option<Box<RequestHead>>,
) -> Response<Body> {
    let error = match refusal {
        Refusal::Failed(error) => error,
        Refusal::Final => return final_recipient(),
    };
    // An unsent request is dropped before the response is sent, because its body reads from the client's connection.
    error.drop_request();
    observe::failure(&error);
    let mut response = match (&config.on_error, request) {
        _ if is_grpc => grpc_response(&error),
        (Some(on_error), Some(request)) => on_error(&Failure { error: error.clone(), request: *request }),
        _ => plain_response(&error),
    };
    // The application's page may have another status, or a challenge of its own.
    if let Some(challenge) = error.challenge()
        && response.status() == StatusCode::UNAUTHORIZED
    {
        response.headers_mut().entry(WWW_AUTHENTICATE).or_insert_with(|| challenge.clone());
    }
    if let Some(seconds) = error.retry_after()
        && response.status() == error.status()
    {
        response.headers_mut().entry(RETRY_AFTER).or_insert_with(|| HeaderValue::from(seconds));
    }
    response.extensions_mut().insert(error);
    response
}

/// Returns a constant text for each status, which discloses nothing about the backend.
fn plain_response(error: &Error) -> Response<Body> {
    let status = error.status();
    let mut response = Response::new(Body::from(status.canonical_reason().unwrap_or("Error")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// Returns a trailers-only response with the gRPC status of the failure.
fn grpc_response(error: &Error) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    grpc::set_failure(response.headers_mut(), error.kind(), error.status());
    if let Some(seconds) = error.retry_after() {
        grpc::set_pushback(response.headers_mut(), seconds);
    }
    response
}

/// Returns the response to an `OPTIONS` whose final recipient is the proxy (RFC 9110, section 7.6.2).
fn final_recipient() -> Response<Body> {
    let mut response = Response::new(no_body());
    *response.status_mut() = StatusCode::NO_CONTENT;
    *response.version_mut() = Version::HTTP_11;
    response.headers_mut().insert(ALLOW, HeaderValue::from_static("OPTIONS"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const KINDS: [ErrorKind; 39] = {
        use ErrorKind::*;
        [
            InvalidTarget,
            TargetTooLong,
            RequestHeadTooLarge,
            InvalidHost,
            InvalidTransferEncoding,
            UnsupportedTransferCoding,
            InvalidContentLength,
            InvalidDestination,
            ForeignDestination,
            UnsupportedMethod,
            UpgradeBody,
            LoopDetected,
            SignInRequired,
            UnrepresentableUser,
            IdentityUnknown,
            Rejected,
            NoTarget,
            RequestBody,
            RequestBodyTooLarge,
            RequestBodyTimeout,
            ClientGone,
            Connect,
            ConnectTimeout,
            Overloaded,
            CredentialsMissing,
            CredentialsTimeout,
            CredentialsBusy,
            WrongSpeaker,
            SendTimeout,
            HeaderTimeout,
            ConnectionClosed,
            InvalidResponse,
            ResponseHeadTooLarge,
            UnexpectedUpgrade,
            CredentialsRefused,
            BackendUnproven,
            ResponseBody,
            ResponseBodyTimeout,
            Upstream,
        ]
    };

    /// The guide's tables, held against the code.
    #[test]
    fn the_guide_lists_every_kind_with_its_status() {
        let code = include_str!("../error/kind.rs").split("pub enum ErrorKind {").nth(1).unwrap();
        let variants = code.split("\n}").next().unwrap().lines().filter_map(|line| line.trim().strip_suffix(','));
        let names: Vec<_> = KINDS.iter().map(|kind| format!("{kind:?}")).collect();
        assert_eq!(variants.collect::<Vec<_>>(), names);

        let page = include_str!("../docs/failures.md");
        for (kind, name) in KINDS.into_iter().zip(names) {
            let row = format!("\n| `{name}` | ");
            let (before, after) = page.split_once(&row).unwrap_or_else(|| panic!("no row of {name}"));
            assert!(!after.contains(&row), "{name} is there twice");
            let phase = format!("Phase::{:?}`])", kind.phase());
            assert_eq!(before.rfind("Phase::"), before.rfind(&phase), "{name} isn't in the table of its phase");
            let cells: Vec<_> = after.lines().next().unwrap().trim_end_matches(" |").split(" | ").collect();
            let error = Error::new(kind);
            match cells[..] {
                [_, status, code, side] if kind != ErrorKind::Rejected => {
                    let response = grpc_response(&error);
                    assert_eq!(status.split([' ', ',']).next(), Some(error.status().as_str()), "{name}");
                    assert_eq!(response.headers()["grpc-status"], code.split(',').next().unwrap(), "{name}");
                    assert_eq!(side, if error.is_client() { "client" } else { "backend" }, "{name}");
                }
                [_, _, _, _] => {}
                [_, _, side] => assert_eq!((side, error.is_client()), ("backend", false), "{name}"),
                _ => panic!("{name}: {cells:?}"),
            }
        }
    }
}

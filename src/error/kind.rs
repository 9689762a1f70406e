//! The kinds of failures: the phase, the status and the text of each.

use http::StatusCode;

#[cfg(doc)]
use super::Error;

/// The kind of a failure. Each belongs to one [`Phase`] and has one [status](Error::status), except
/// [`SignInRequired`](Self::SignInRequired), [`CredentialsMissing`](Self::CredentialsMissing) and
/// [`CredentialsRefused`](Self::CredentialsRefused), whose status depends on the request, and
/// [`Rejected`](Self::Rejected).
///
/// ```
/// use tower_reverse_proxy::{Error, ErrorKind};
///
/// fn advice(error: &Error) -> &'static str {
///     match error.kind() {
///         ErrorKind::Connect | ErrorKind::ConnectTimeout => "Is the backend running?",
///         ErrorKind::Overloaded => "Raise `max_connections`, or add a backend.",
///         ErrorKind::HeaderTimeout => "The backend is slow.",
///         _ => "See the log.",
///     }
/// }
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The request target isn't in origin-form, leaves the prefix by dot segments, or has a `%` in its path that isn't
    /// followed by two hex digits, or `%00`: 400.
    InvalidTarget,
    /// The request target is too long to be forwarded: 414.
    TargetTooLong,
    /// The request's head is larger than the HTTP/2 backend accepts: 431.
    RequestHeadTooLarge,
    /// `Host` is missing (in HTTP/1.1, for any form of the target), repeated or malformed: 400.
    InvalidHost,
    /// The `Transfer-Encoding` of the request isn't exactly one `chunked`: 400.
    InvalidTransferEncoding,
    /// The `Transfer-Encoding` of the request names a coding other than `chunked`: 501.
    UnsupportedTransferCoding,
    /// The request's `Content-Length` is malformed, or given more than once with different values: 400.
    InvalidContentLength,
    /// The `Destination` of a `COPY` or `MOVE` is malformed, repeated, or leaves the prefix by dot segments: 400.
    InvalidDestination,
    /// The `Destination` of a `COPY` or `MOVE` isn't below the prefix, or on another server: 502 (RFC 4918, section
    /// 9.8.5).
    ForeignDestination,
    /// The method isn't forwarded: `TRACE`, or a `CONNECT` that doesn't open a WebSocket. 501.
    UnsupportedMethod,
    /// The request offers a WebSocket and has a body: 400.
    UpgradeBody,
    /// The request has passed this proxy before: 508.
    LoopDetected,
    /// No user is signed in, and a layer requires one, such as a [`RemoteUserLayer`](crate::RemoteUserLayer::required):
    /// 403, or 401 with a [challenge](crate::RemoteUserLayer::challenge).
    SignInRequired,
    /// The user name, or a value that is sent along with it, can't be represented in a header field: 403.
    UnrepresentableUser,
    /// The application couldn't determine the user, because its lookup failed or didn't end within its deadline: 503.
    IdentityUnknown,
    /// A layer on the upstream side refused the request: the status that it was [rejected](Error::rejected) with.
    Rejected,
    /// The application has given the request no [`Target`](crate::Target), or one that isn't allowed or can't be used:
    /// 500.
    NoTarget,
    /// The request's body is malformed: 400.
    RequestBody,
    /// The request's body is larger than what an outer layer allows: 413.
    RequestBodyTooLarge,
    /// The client sent no part of the request's body within the idle timeout: 408.
    RequestBodyTimeout,
    /// The client disconnected before it had sent the whole request.
    ClientGone,
    /// The backend can't be reached (refused, unknown name, unreachable): 502. If no member of a set is healthy: 503.
    Connect,
    /// The backend wasn't reached within the connect timeout: 504.
    ConnectTimeout,
    /// The upstream has no capacity for the request: 503.
    Overloaded,
    /// There are no credentials for the backend: 502, or 403 if they are those of a user.
    CredentialsMissing,
    /// The credentials for the backend weren't there within their deadline: 504.
    CredentialsTimeout,
    /// Too many requests wait for credentials: 503.
    CredentialsBusy,
    /// The credentials are another principal's than the one that the request is meant for: 502. They aren't sent; if
    /// only the response shows it, the response is dropped.
    WrongSpeaker,
    /// The backend accepted no part of the request's body within the idle timeout: 504.
    SendTimeout,
    /// The backend sent no response head within the header timeout: 504.
    HeaderTimeout,
    /// The backend closed the connection before its response head was complete: 502.
    ConnectionClosed,
    /// The backend's response isn't valid HTTP: 502.
    InvalidResponse,
    /// The backend's response head exceeds the [limit](crate::ClientBuilder::max_response_head) of fields or bytes:
    /// 502.
    ResponseHeadTooLarge,
    /// The backend switched to a protocol that wasn't offered: 502.
    UnexpectedUpgrade,
    /// The backend answered 401 to the credentials that the proxy sent: 502, or 403 if they are those of a user.
    CredentialsRefused,
    /// The backend didn't prove its identity, which the credentials require: 502.
    BackendUnproven,
    /// The response's body is truncated or malformed. The response is aborted, because it has begun; if the failure
    /// arrives together with the head, it's 502.
    ResponseBody,
    /// The backend sent no part of the response's body within the idle timeout. The response is aborted, because it has
    /// begun.
    ResponseBodyTimeout,
    /// An upstream service of another crate failed: 502.
    Upstream,
}

/// The part of an exchange in which a failure happened.
///
/// ```
/// use tower_reverse_proxy::{ErrorKind, Phase};
///
/// assert_eq!(ErrorKind::LoopDetected.phase(), Phase::Request);
/// assert_eq!(ErrorKind::HeaderTimeout.phase(), Phase::ResponseHead);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Phase {
    /// Before anything is forwarded. The request is refused.
    Request,
    /// While the client's request body is read or forwarded.
    RequestBody,
    /// While a connection to the backend, or credentials for it, are obtained or awaited.
    Connect,
    /// While the backend's response head is awaited.
    ResponseHead,
    /// After the response head. The response has begun.
    ResponseBody,
}

impl ErrorKind {
    /// Returns the phase that this kind of failure belongs to.
    ///
    /// ```
    /// use tower_reverse_proxy::{ErrorKind, Phase};
    ///
    /// assert_eq!(ErrorKind::Connect.phase(), Phase::Connect);
    /// ```
    #[must_use]
    pub fn phase(self) -> Phase {
        match self {
            Self::InvalidTarget
            | Self::TargetTooLong
            | Self::RequestHeadTooLarge
            | Self::InvalidHost
            | Self::InvalidTransferEncoding
            | Self::UnsupportedTransferCoding
            | Self::InvalidContentLength
            | Self::InvalidDestination
            | Self::ForeignDestination
            | Self::UnsupportedMethod
            | Self::UpgradeBody
            | Self::LoopDetected
            | Self::SignInRequired
            | Self::UnrepresentableUser
            | Self::IdentityUnknown
            | Self::Rejected
            | Self::NoTarget => Phase::Request,
            Self::RequestBody
            | Self::RequestBodyTooLarge
            | Self::RequestBodyTimeout
            | Self::ClientGone
            | Self::SendTimeout => Phase::RequestBody,
            Self::Connect
            | Self::ConnectTimeout
            | Self::Overloaded
            | Self::CredentialsMissing
            | Self::CredentialsTimeout
            | Self::CredentialsBusy
            | Self::WrongSpeaker => Phase::Connect,
            Self::HeaderTimeout
            | Self::ConnectionClosed
            | Self::InvalidResponse
            | Self::ResponseHeadTooLarge
            | Self::UnexpectedUpgrade
            | Self::CredentialsRefused
            | Self::BackendUnproven
            | Self::Upstream => Phase::ResponseHead,
            Self::ResponseBody | Self::ResponseBodyTimeout => Phase::ResponseBody,
        }
    }

    pub(super) fn status(self) -> StatusCode {
        match self {
            Self::InvalidTarget
            | Self::InvalidHost
            | Self::InvalidTransferEncoding
            | Self::InvalidContentLength
            | Self::InvalidDestination
            | Self::UpgradeBody
            | Self::RequestBody
            | Self::ClientGone => StatusCode::BAD_REQUEST,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::RequestHeadTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::NoTarget => StatusCode::INTERNAL_SERVER_ERROR,
            Self::UnsupportedTransferCoding | Self::UnsupportedMethod => StatusCode::NOT_IMPLEMENTED,
            Self::LoopDetected => StatusCode::LOOP_DETECTED,
            Self::SignInRequired | Self::UnrepresentableUser | Self::Rejected => StatusCode::FORBIDDEN,
            Self::RequestBodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::RequestBodyTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::IdentityUnknown | Self::Overloaded | Self::CredentialsBusy => StatusCode::SERVICE_UNAVAILABLE,
            Self::ConnectTimeout
            | Self::CredentialsTimeout
            | Self::SendTimeout
            | Self::HeaderTimeout
            | Self::ResponseBodyTimeout => StatusCode::GATEWAY_TIMEOUT,
            Self::ForeignDestination
            | Self::Connect
            | Self::CredentialsMissing
            | Self::WrongSpeaker
            | Self::ConnectionClosed
            | Self::InvalidResponse
            | Self::ResponseHeadTooLarge
            | Self::UnexpectedUpgrade
            | Self::CredentialsRefused
            | Self::BackendUnproven
            | Self::ResponseBody
            | Self::Upstream => StatusCode::BAD_GATEWAY,
        }
    }

    pub(super) fn message(self) -> &'static str {
        match self {
            Self::InvalidTarget => "the request target isn't a path below the prefix",
            Self::TargetTooLong => "the request target is too long to be forwarded",
            Self::RequestHeadTooLarge => "the request's head is too large for the backend",
            Self::InvalidHost => "the Host field is missing, repeated or malformed",
            Self::InvalidTransferEncoding => "the request's Transfer-Encoding isn't exactly one `chunked`",
            Self::UnsupportedTransferCoding => "the request's Transfer-Encoding names a coding other than `chunked`",
            Self::InvalidContentLength => "the request's Content-Length isn't one length",
            Self::InvalidDestination => "the Destination isn't one URL or absolute path, or leaves the prefix",
            Self::ForeignDestination => "the Destination isn't below the prefix",
            Self::UnsupportedMethod => "the method isn't forwarded",
            Self::UpgradeBody => "the request offers a WebSocket and has a body",
            Self::LoopDetected => "the request has passed this proxy before",
            Self::SignInRequired => "no user is signed in",
            Self::UnrepresentableUser => "the user name can't be represented in a header field",
            Self::IdentityUnknown => "the application couldn't determine the user",
            Self::Rejected => "an upstream layer rejected the request",
            Self::NoTarget => "the request has no target",
            Self::RequestBody => "the request's body is malformed",
            Self::RequestBodyTooLarge => "the request's body is too large",
            Self::RequestBodyTimeout => "the client sent no part of the request's body within the idle timeout",
            Self::ClientGone => "the client disconnected before it had sent the whole request",
            Self::Connect => "the backend can't be reached",
            Self::ConnectTimeout => "the backend wasn't reached within the connect timeout",
            Self::Overloaded => "the upstream is overloaded",
            Self::CredentialsMissing => "there are no credentials for the backend",
            Self::CredentialsTimeout => "the credentials for the backend weren't there within their deadline",
            Self::CredentialsBusy => "too many requests wait for credentials for the backend",
            Self::WrongSpeaker => "the credentials for the backend are another principal's than the one meant",
            Self::SendTimeout => "the backend accepted no part of the request's body within the idle timeout",
            Self::HeaderTimeout => "the backend sent no response head within the header timeout",
            Self::ConnectionClosed => "the backend closed the connection before its response head was complete",
            Self::InvalidResponse => "the backend's response isn't valid HTTP",
            Self::ResponseHeadTooLarge => "the backend's response head is too large",
            Self::UnexpectedUpgrade => "the backend switched to a protocol that wasn't offered",
            Self::CredentialsRefused => "the backend refused the credentials",
            Self::BackendUnproven => "the backend didn't prove its identity",
            Self::ResponseBody => "the response's body is truncated or malformed",
            Self::ResponseBodyTimeout => "the backend sent no part of the response's body within the idle timeout",
            Self::Upstream => "the upstream service failed",
        }
    }
}

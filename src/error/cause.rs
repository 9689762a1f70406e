//! Classifies the errors of other crates by the chain of their causes.

use std::{error::Error as StdError, io};

use axum_core::BoxError;
use http::Version;
use http_body_util::LengthLimitError;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use super::{Error, ErrorKind};

/// Turns the error of an upstream service or a body into an [`Error`].
///
/// An [`Error`] in the chain is returned as it is, because the HTTP stack wraps the error of a request body. `fallback`
/// is the kind of an unknown error.
pub(crate) fn classify(error: BoxError, fallback: ErrorKind) -> Error {
    let own = Error::find(&error).cloned();
    own.unwrap_or_else(|| {
        let kind = causes(&error).find_map(kind_of).unwrap_or(fallback);
        Error::with_source(kind, error)
    })
}

/// Returns the kind of an upstream service's error: that of the [`Error`] in the chain, or that of a known cause.
pub(crate) fn known_kind(error: &BoxError) -> Option<ErrorKind> {
    Error::find(error).map(Error::kind).or_else(|| causes(error).find_map(kind_of))
}

/// Turns the error of a response's body into an [`Error`]. The kinds of [`classify`] don't apply, because the response
/// has begun.
pub(crate) fn classify_response_body(error: BoxError) -> Error {
    let own = Error::find(&error).cloned();
    own.unwrap_or_else(|| Error::with_source(ErrorKind::ResponseBody, error))
}

/// Returns the error and the chain of its causes.
pub(super) fn causes(error: &BoxError) -> impl Iterator<Item = &(dyn StdError + 'static)> {
    std::iter::successors(Some(&**error as &(dyn StdError + 'static)), |&cause| cause.source())
}

fn kind_of(cause: &(dyn StdError + 'static)) -> Option<ErrorKind> {
    if cause.is::<LengthLimitError>() {
        Some(ErrorKind::RequestBodyTooLarge)
    } else if cause.is::<Elapsed>() {
        Some(ErrorKind::HeaderTimeout)
    } else if cause.is::<Overloaded>() {
        Some(ErrorKind::Overloaded)
    } else if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        if error.is_parse_too_large() {
            Some(ErrorKind::ResponseHeadTooLarge)
        } else if error.is_parse() {
            Some(ErrorKind::InvalidResponse)
        } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Some(ErrorKind::ConnectionClosed)
        } else {
            None
        }
    } else {
        None
    }
}

/// Returns whether the cause is a shortage of this process or machine: of descriptors, local addresses, buffers, memory.
pub(super) fn is_shortage(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{AddrInUse, AddrNotAvailable, OutOfMemory};
    let mut cause = cause.downcast_ref::<io::Error>();
    while let Some(error) = cause {
        if matches!(error.kind(), AddrInUse | AddrNotAvailable | OutOfMemory)
            || error.raw_os_error().is_some_and(|code| SHORTAGES.contains(&code))
        {
            return true;
        }
        // The source of an `io::Error` isn't the error inside, but that one's source.
        cause = error.get_ref().and_then(|inner| inner.downcast_ref());
    }
    false
}

/// The codes of `ENFILE`, `EMFILE` and `ENOBUFS`, which have no [`io::ErrorKind`].
#[cfg(any(target_os = "linux", target_os = "android"))]
const SHORTAGES: [i32; 3] = [23, 24, 105];
#[cfg(not(any(target_os = "linux", target_os = "android", windows)))]
const SHORTAGES: [i32; 3] = [23, 24, 55];
/// The codes of `ERROR_TOO_MANY_OPEN_FILES`, `WSAEMFILE` and `WSAENOBUFS`.
#[cfg(windows)]
const SHORTAGES: [i32; 3] = [4, 10_024, 10_055];

/// Turns the error of a client's body into an [`Error`].
///
/// Its chain may contain an error of hyper's server. A body that ended early or a stream that was reset means that the
/// client has disconnected. Any other error means a malformed body, unless it's the error of an outer layer's limit or
/// timeout.
pub(crate) fn classify_request_body(error: BoxError, version: Version) -> Error {
    let kind = causes(&error).find_map(|cause| {
        if cause.is::<LengthLimitError>() {
            Some(ErrorKind::RequestBodyTooLarge)
        } else if cause.is::<Elapsed>() {
            Some(ErrorKind::RequestBodyTimeout)
        // In HTTP/2, malformed framing fails the whole connection, so an error of one stream is its reset.
        } else if is_gone(cause) || (version == Version::HTTP_2 && cause.is::<hyper::Error>()) {
            Some(ErrorKind::ClientGone)
        } else {
            None
        }
    });
    Error::with_source(kind.unwrap_or(ErrorKind::RequestBody), error)
}

fn is_gone(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    }
    cause.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_incomplete_message() || error.is_canceled())
}

//! The one place where a foreign error gets its kind, by walking the chain of its causes.

use std::{error::Error as StdError, io};

use axum_core::BoxError;
use http::Version;
use http_body_util::LengthLimitError;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use super::{Error, ErrorKind};

/// Turns what an upstream service or a body failed with into an [`Error`].
///
/// An `Error` of ours anywhere in the chain is what happened: a body's failure comes back out of the HTTP stack with
/// layers of its own around it. `otherwise` is the kind of what nobody knows.
pub(crate) fn classify(error: BoxError, otherwise: ErrorKind) -> Error {
    let ours = causes(&error).find_map(<dyn StdError>::downcast_ref::<Error>).cloned();
    ours.unwrap_or_else(|| {
        let kind = causes(&error).find_map(kind_of).unwrap_or(otherwise);
        Error::with_source(kind, error)
    })
}

/// Turns what a response's body failed with into an [`Error`]: whatever it was, the response has begun.
pub(crate) fn classify_response_body(error: BoxError) -> Error {
    let ours = causes(&error).find_map(<dyn StdError>::downcast_ref::<Error>).cloned();
    ours.unwrap_or_else(|| Error::with_source(ErrorKind::ResponseBody, error))
}

/// The error and all that caused it.
fn causes(error: &BoxError) -> impl Iterator<Item = &(dyn StdError + 'static)> {
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

/// Turns what reading a client's body failed with into an [`Error`].
///
/// Its chain may hold hyper's server error: a body that ended early is a client that went away, and so is a stream that was
/// reset. Anything else is malformed, unless an outer layer gave it up.
pub(crate) fn classify_request_body(error: BoxError, version: Version) -> Error {
    let kind = causes(&error).find_map(|cause| {
        if cause.is::<LengthLimitError>() {
            Some(ErrorKind::RequestBodyTooLarge)
        } else if cause.is::<Elapsed>() {
            Some(ErrorKind::RequestBodyTimeout)
        // In HTTP/2 the framing is the connection's: what fails for one stream alone is its reset.
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

//! The one place where a foreign error gets its kind, by walking the chain of its causes.

use std::{error::Error as StdError, io};

use axum_core::BoxError;
use http_body_util::LengthLimitError;
use tower::{load_shed::error::Overloaded, timeout::error::Elapsed};

use super::{Error, ErrorKind};

/// Turns what an upstream service or a body failed with into an [`Error`].
///
/// An `Error` of ours anywhere in the chain is what happened: a body's failure comes back out of the HTTP stack with
/// layers of its own around it. `otherwise` is the kind of what nobody knows.
pub(crate) fn classify(error: BoxError, otherwise: ErrorKind) -> Error {
    let kind = {
        let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
        loop {
            let Some(this) = cause else { break otherwise };
            if let Some(ours) = this.downcast_ref::<Error>() {
                return ours.clone();
            }
            if let Some(kind) = kind_of(this) {
                break kind;
            }
            cause = this.source();
        }
    };
    Error::with_source(kind, error)
}

fn kind_of(cause: &(dyn StdError + 'static)) -> Option<ErrorKind> {
    if cause.is::<LengthLimitError>() {
        Some(ErrorKind::RequestBodyTooLarge)
    } else if cause.is::<Elapsed>() {
        Some(ErrorKind::HeaderTimeout)
    } else if cause.is::<Overloaded>() {
        Some(ErrorKind::Overloaded)
    } else if let Some(error) = cause.downcast_ref::<hyper::Error>() {
        if error.is_parse() {
            Some(ErrorKind::InvalidResponse)
        } else if error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            Some(ErrorKind::Closed)
        } else {
            None
        }
    } else {
        None
    }
}

/// Turns what reading a client's body failed with into an [`Error`].
///
/// Its chain may hold hyper's server error: a body that ended early is a client that went away, anything else is
/// malformed, unless an outer layer gave it up.
pub(crate) fn classify_request_body(error: BoxError) -> Error {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(&*error);
    let mut kind = ErrorKind::RequestBody;
    while let Some(this) = cause {
        if this.is::<LengthLimitError>() {
            kind = ErrorKind::RequestBodyTooLarge;
            break;
        }
        if this.is::<Elapsed>() {
            kind = ErrorKind::RequestBodyTimeout;
            break;
        }
        if is_gone(this) {
            kind = ErrorKind::ClientGone;
            break;
        }
        cause = this.source();
    }
    Error::with_source(kind, error)
}

fn is_gone(cause: &(dyn StdError + 'static)) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    if let Some(error) = cause.downcast_ref::<io::Error>() {
        return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
    }
    cause.downcast_ref::<hyper::Error>().is_some_and(|error| error.is_incomplete_message() || error.is_canceled())
}

//! Why a body is refused.

use std::fmt;

/// Why the rest of a body can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidBody {
    /// The connection has ended before the body.
    Incomplete,
    Chunk(&'static str),
    Trailers(&'static str),
}

impl fmt::Display for InvalidBody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Incomplete => f.write_str("end of file before message length reached"),
            Self::Chunk(what) => write!(f, "invalid chunk: {what}"),
            Self::Trailers(what) => write!(f, "invalid trailers: {what}"),
        }
    }
}

impl std::error::Error for InvalidBody {}

//! HTTP/1.1 as a client speaks it (RFC 9112), without I/O: octets in, messages out, and the other way round.
//!
//! A connection keeps one [`HeadDecoder`], and an input buffer that it fills. [`HeadDecoder::decode`] takes a head off
//! that buffer, and the head's [`BodyDecoder`] takes the frames of the body. [`encode_head`] writes a request's head
//! into the octets of an [`Output`], and the [`BodyEncoder`] appends the body.
//!
//! Decoded values and data share the octets of the input instead of copying them.
//!
//! # Strictness
//!
//! An intermediary that accepts a message which others read differently lets one response pass for two (RFC 9112,
//! section 11). An invalid message is therefore an error, after which the connection is of no use. The decoders are
//! stricter than hyper's client:
//!
//! 1. An empty line before the status line.
//! 2. A line of a head or of trailers that ends with a bare LF.
//! 3. `Transfer-Encoding` together with `Content-Length`.
//! 4. `Transfer-Encoding` that isn't exactly one `chunked`: another coding, `chunked` twice, an empty member.
//! 5. A `Content-Length`, or a member of it, that has more than 19 digits or is 2⁶³ or more.
//! 6. A chunk size of more than 16 digits.
//! 7. A control character in a chunk extension.
//! 8. The limit of a body's chunk extensions counts the blanks and semicolons in front of them, too.
//! 9. Octets outside of ASCII don't hide a `close` among the members of `Connection`.
//!
//! Three differences aren't refusals. Equal `Content-Length` lines or members, and those with leading zeros, become one
//! number. A reason phrase outside of ASCII is kept; hyper's client drops it. Trailers may have as many bytes as the
//! limit allows; hyper's client allows one byte less.
//!
//! Requests differ from those that hyper's client writes, apart from the order of their fields, as follows. A
//! `Content-Length` that the body contradicts is replaced, and equal ones become one number. A body of unknown length
//! is sent with `GET` and `HEAD`, too. A body that isn't as long as it announced is an error. Octets outside of
//! ASCII don't hide the other members of `Connection`, `Trailer` and `Transfer-Encoding`.
//!
//! The tests in `oracle` compare the codec with hyper's client, and have an example of each difference.

mod body;
mod chunked;
mod encode;
mod fields;
mod framing;
mod head;
mod invalid;
mod limits;
#[cfg(any(test, fuzzing))]
pub(crate) mod oracle;
mod output;

pub(crate) use self::{
    body::BodyDecoder,
    encode::{BodyEncoder, EncodedHead, InvalidUpload, NameStyle, encode_head},
    framing::RequestKind,
    head::{Head, HeadDecoder, InvalidHead},
    limits::Limits,
    output::Output,
};

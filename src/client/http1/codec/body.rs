//! Decodes the bodies of responses (RFC 9112, section 6).

use bytes::{Bytes, BytesMut};
use http_body::Frame;

use super::{chunked::Chunked, framing::Framing, invalid::InvalidBody, limits::Limits};

/// Decodes one body.
#[derive(Debug)]
pub(crate) struct BodyDecoder {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// So many octets are left.
    Length(u64),
    Chunked(Chunked),
    /// Delimited by the end of the connection.
    UntilClose {
        is_ended: bool,
    },
}

impl BodyDecoder {
    pub(super) fn new(framing: Framing, limits: Limits) -> Self {
        let kind = match framing {
            Framing::Empty => Kind::Length(0),
            Framing::Length(length) => Kind::Length(length),
            Framing::Chunked => Kind::Chunked(Chunked::new(limits)),
            Framing::UntilClose => Kind::UntilClose { is_ended: false },
        };
        Self { kind }
    }

    /// Takes the next frame off the buffer: as much data as there is, or trailers. `None`: more octets are needed, or
    /// the body has ended.
    ///
    /// Data shares the octets of the input. Chunks that follow each other become one frame of up to 16 KiB.
    ///
    /// # Errors
    ///
    /// If the chunked coding is invalid, or over a limit. The data before the fault is returned by an earlier call.
    pub(crate) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, InvalidBody> {
        let size = match &mut self.kind {
            Kind::Length(left) => {
                let size = usize::try_from(*left).unwrap_or(usize::MAX).min(input.len());
                *left -= size as u64;
                size
            }
            Kind::Chunked(chunked) => return chunked.decode(input),
            Kind::UntilClose { is_ended } => {
                if *is_ended {
                    0
                } else {
                    input.len()
                }
            }
        };
        Ok((size > 0).then(|| Frame::data(input.split_to(size).freeze())))
    }

    /// Whether the body is complete. The octets that are left in the buffer don't belong to it.
    pub(crate) fn is_ended(&self) -> bool {
        match &self.kind {
            Kind::Length(left) => *left == 0,
            Kind::Chunked(chunked) => chunked.is_ended(),
            Kind::UntilClose { is_ended } => *is_ended,
        }
    }

    /// Ends the body, because the connection has ended and every frame was taken.
    ///
    /// # Errors
    ///
    /// If the body is cut (RFC 9112, section 8).
    pub(crate) fn end(&mut self) -> Result<(), InvalidBody> {
        if let Kind::UntilClose { is_ended } = &mut self.kind {
            *is_ended = true;
        }
        if self.is_ended() { Ok(()) } else { Err(InvalidBody::Incomplete) }
    }

    #[cfg(test)]
    pub(super) fn is_chunked(&self) -> bool {
        matches!(self.kind, Kind::Chunked(_))
    }

    /// The number of octets that are left, if it's known.
    pub(crate) fn length(&self) -> Option<u64> {
        match self.kind {
            Kind::Length(left) => Some(left),
            Kind::Chunked(_) | Kind::UntilClose { .. } => self.is_ended().then_some(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 4096, fields: 100 };

    fn data(body: &mut BodyDecoder, input: &mut BytesMut) -> Option<String> {
        let data = body.decode(input).unwrap()?.into_data().unwrap();
        Some(String::from_utf8(data.to_vec()).unwrap())
    }

    #[test]
    fn a_body_with_a_length_ends_there() {
        let mut body = BodyDecoder::new(Framing::Length(5), LIMITS);
        let mut input = BytesMut::from("hel");
        assert_eq!((data(&mut body, &mut input).as_deref(), body.length()), (Some("hel"), Some(2)));
        assert_eq!((data(&mut body, &mut input), body.is_ended()), (None, false));
        assert_eq!(body.end(), Err(InvalidBody::Incomplete));
        input.extend_from_slice(b"lo, stray");
        assert_eq!((data(&mut body, &mut input).as_deref(), body.is_ended()), (Some("lo"), true));
        assert_eq!((data(&mut body, &mut input), &input[..], body.end()), (None, &b", stray"[..], Ok(())));
    }

    #[test]
    fn a_body_without_a_length_ends_with_the_connection() {
        let mut body = BodyDecoder::new(Framing::UntilClose, LIMITS);
        let mut input = BytesMut::from("hello");
        assert_eq!((data(&mut body, &mut input).as_deref(), body.length()), (Some("hello"), None));
        assert_eq!((body.is_ended(), body.end(), body.is_ended()), (false, Ok(()), true));
        assert_eq!((data(&mut body, &mut input), body.length()), (None, Some(0)));
    }

    #[test]
    fn an_empty_body_is_over_at_once() {
        let mut body = BodyDecoder::new(Framing::Empty, LIMITS);
        let mut input = BytesMut::from("stray");
        assert_eq!((body.is_ended(), body.length(), body.end()), (true, Some(0), Ok(())));
        assert_eq!((data(&mut body, &mut input), &input[..]), (None, &b"stray"[..]));
    }

    #[test]
    fn a_chunked_body_ends_with_its_last_chunk() {
        let mut body = BodyDecoder::new(Framing::Chunked, LIMITS);
        let mut input = BytesMut::from("5\r\nhello\r\n");
        assert_eq!((data(&mut body, &mut input).as_deref(), body.length()), (Some("hello"), None));
        assert_eq!(body.end(), Err(InvalidBody::Incomplete));
        input.extend_from_slice(b"0\r\n\r\n");
        assert_eq!((data(&mut body, &mut input), body.end(), body.length()), (None, Ok(()), Some(0)));
    }
}

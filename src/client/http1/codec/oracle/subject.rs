//! The side of the codec, which is driven as a connection drives it.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use bytes::BytesMut;
use http::Request;
use http_body::Body as _;
use hyper::ext::ReasonPhrase;

use super::{
    super::{BodyDecoder, EncodedHead, HeadDecoder, NameStyle, Output, RequestKind, encode_head},
    request::{self, Frames, Written},
    response::{Case, End, Head, Seen},
};

/// Reads the response with the codec.
pub(super) fn read(case: &Case) -> Seen {
    let mut exchange = Exchange {
        request: RequestKind::of(&case.method),
        heads: HeadDecoder::new(case.limits),
        input: BytesMut::new(),
        body: None,
        keep_alive: false,
        seen: Seen::default(),
    };
    case.each_piece(|piece| {
        exchange.input.extend_from_slice(piece);
        exchange.advance();
        let Seen { informational, head, body, .. } = &exchange.seen;
        let progress = (informational.len() + usize::from(head.is_some()), body.len());
        exchange.seen.progress.push(progress);
        let is_bounded = exchange.input.len() < case.limits.bytes;
        assert!(exchange.seen.end != End::Open || is_bounded, "the codec leaves octets in the buffer: {case:?}");
    });
    exchange.end()
}

struct Exchange {
    request: RequestKind,
    heads: HeadDecoder,
    input: BytesMut,
    body: Option<BodyDecoder>,
    keep_alive: bool,
    seen: Seen,
}

impl Exchange {
    fn advance(&mut self) {
        while self.seen.end == End::Open && self.decode() {}
    }

    /// Decodes the next part. Returns whether there was one.
    fn decode(&mut self) -> bool {
        let Some(body) = &mut self.body else { return self.decode_head() };
        let length = body.length();
        match body.decode(&mut self.input) {
            Ok(Some(frame)) => match frame.into_data() {
                Ok(data) => {
                    assert!(!data.is_empty() && self.seen.trailers.is_none(), "an empty frame, or one behind trailers");
                    if let Some(length) = length {
                        assert_eq!(Some(length - data.len() as u64), body.length(), "another length is left");
                    }
                    self.seen.body.extend_from_slice(&data);
                }
                Err(frame) => self.seen.trailers = frame.into_trailers().ok(),
            },
            Ok(None) if body.is_ended() => self.seen.end = End::Complete,
            Ok(None) => return false,
            Err(error) => {
                assert_eq!(body.decode(&mut self.input).err(), Some(error), "an error isn't the end");
                self.seen.end = End::Refused;
            }
        }
        true
    }

    fn decode_head(&mut self) -> bool {
        let head = match self.heads.decode(&mut self.input, self.request) {
            Ok(Some(head)) => head,
            Ok(None) => return false,
            Err(_) => {
                self.seen.end = End::Refused;
                return true;
            }
        };
        let (parts, ()) = head.response.into_parts();
        let reason = match parts.extensions.get::<ReasonPhrase>() {
            Some(reason) => reason.as_bytes(),
            None => parts.status.canonical_reason().unwrap_or_default().as_bytes(),
        };
        let seen =
            Head { version: parts.version, status: parts.status, reason: reason.to_vec(), fields: parts.headers };
        let is_switched = seen.status == 101 || (self.request == RequestKind::Connect && seen.status.is_success());
        if seen.status.is_informational() && !is_switched {
            self.seen.informational.push(seen);
            return true;
        }
        if is_switched {
            assert!(head.body.is_ended() && !head.keep_alive, "another protocol has no body of HTTP");
            self.seen.end = End::Switched;
        }
        self.seen.head = Some(seen);
        self.body = Some(head.body);
        self.keep_alive = head.keep_alive;
        true
    }

    fn end(mut self) -> Seen {
        match self.seen.end {
            End::Open => {
                self.seen.is_late = !self.input.is_empty();
                let is_complete = self.body.as_mut().is_some_and(|body| body.end().is_ok());
                self.seen.end = if is_complete { End::ByClose } else { End::Cut };
            }
            End::Complete => self.seen.is_reusable = self.keep_alive && self.input.is_empty(),
            End::Switched => self.seen.body = self.input.to_vec(),
            End::ByClose | End::Cut | End::Refused => {}
        }
        self.seen
    }
}

/// Writes the request with the codec.
pub(super) fn write(case: &request::Case, mut request: Request<Frames>) -> Written {
    let mut octets = Vec::new();
    let mut output = Output::default();
    let style = if case.is_titled { NameStyle::Title } else { NameStyle::Lower };
    let EncodedHead { mut body, kind, keep_alive } = encode_head(&request, style, output.octets_mut());
    assert_eq!(kind, RequestKind::of(&case.method));
    let mut sizes = case.writes.iter().cycle();
    let mut is_complete = true;
    loop {
        while output.is_full() {
            take(&mut output, sizes.next(), &mut octets);
        }
        if body.is_ended() {
            break;
        }
        let mut cx = Context::from_waker(Waker::noop());
        let Poll::Ready(frame) =
            Pin::new(request.body_mut()).poll_frame(&mut cx).map(|frame| frame.and_then(Result::ok))
        else {
            panic!("the frames are there");
        };
        let is_last = frame.is_none();
        let result = match frame {
            Some(frame) => body.encode(frame, &mut output),
            None => body.finish(&mut output),
        };
        is_complete = result.is_ok();
        if !is_complete || is_last {
            assert!(!is_complete || body.is_ended());
            break;
        }
        take(&mut output, sizes.next(), &mut octets);
    }
    while !output.is_empty() {
        take(&mut output, sizes.next(), &mut octets);
    }
    output.clear_and_shrink();
    Written { octets, is_complete, keep_alive }
}

/// Moves up to `size` octets to `octets`, as a write does; all of them without a size.
fn take(output: &mut Output, size: Option<&usize>, octets: &mut Vec<u8>) {
    let (slices, count) = output.slices();
    assert_eq!(slices[..count].iter().any(|slice| slice.is_empty()), output.is_empty(), "an empty slice");
    let all = slices[..count].iter().flat_map(|slice| slice.iter());
    let before = octets.len();
    octets.extend(all.take(size.copied().unwrap_or(usize::MAX)));
    output.advance(octets.len() - before);
}

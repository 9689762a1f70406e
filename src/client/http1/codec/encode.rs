//! Encodes requests (RFC 9112, sections 3, 5 and 6).

use std::fmt;

use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, Request,
    header::{
        AUTHORIZATION, CACHE_CONTROL, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, CONTENT_TYPE, HOST,
        MAX_FORWARDS, SET_COOKIE, TE, TRAILER, TRANSFER_ENCODING,
    },
};
use http_body::{Body, Frame};

use super::{
    framing::{Coding, Declared, RequestKind, members},
    output::Output,
};

/// The case of field names, which RFC 9110, section 5.1, calls insignificant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum NameStyle {
    /// `content-type`
    Lower,
    /// `Content-Type`, for backends that compare names with their case.
    Title,
}

/// The properties of an exchange that follow from the request's head.
#[derive(Debug)]
pub(crate) struct EncodedHead {
    pub(crate) body: BodyEncoder,
    pub(crate) kind: RequestKind,
    /// Whether the request lets the connection persist: not with `Connection: close` (RFC 9112, section 9.6).
    pub(crate) keep_alive: bool,
}

/// Encodes the body of a request.
#[derive(Debug)]
pub(crate) struct BodyEncoder {
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    /// So many octets are left.
    Length(u64),
    Chunked {
        /// Boxed, because few requests have them.
        trailers: Option<Box<Announced>>,
    },
    /// The last chunk is written.
    Ended,
}

/// The trailers that a request's `Trailer` announces.
#[derive(Debug)]
struct Announced {
    names: Vec<HeaderName>,
    style: NameStyle,
}

/// Why the body of a request can't be sent. The message is incomplete then, and the connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidUpload {
    /// It's longer than its length.
    TooLong,
    /// So many octets are missing.
    TooShort(u64),
}

/// Writes the head of a request in HTTP/1.1, with its target in origin form.
///
/// The framing is the body's (RFC 9112, section 6.2). An empty body has none, or `Content-Length: 0` if the request has
/// a length. Another body has the request's `Transfer-Encoding`, if there is one; else a `Content-Length`, if the body
/// or the field declares a length; else `chunked`. A `Content-Length` that contradicts the body is replaced, because
/// the backend would wait for the rest, or read the next request as the rest. A layer that has replaced the body may
/// have left it.
///
/// It adds no `Host`.
pub(crate) fn encode_head<B: Body>(request: &Request<B>, style: NameStyle, out: &mut Vec<u8>) -> EncodedHead {
    let headers = request.headers();
    out.extend_from_slice(request.method().as_str().as_bytes());
    out.push(b' ');
    push_target(request, out);
    out.extend_from_slice(b" HTTP/1.1\r\n");
    let mut declared = Declared::default();
    let mut has_trailer = false;
    for (name, value) in headers {
        match *name {
            // They're written behind the others, as the body needs them.
            CONTENT_LENGTH => {
                declared.length.read(value.as_bytes());
                continue;
            }
            TRANSFER_ENCODING => {
                declared.coding.read(value.as_bytes());
                continue;
            }
            CONNECTION => declared.read_connection(value.as_bytes()),
            TRAILER => has_trailer = true,
            _ => {}
        }
        push_field(out, name, value.as_bytes(), style);
    }
    let kind = push_framing(request, &declared, style, out);
    out.extend_from_slice(b"\r\n");
    let mut body = BodyEncoder { kind };
    if has_trailer {
        body.announce(headers, style);
    }
    EncodedHead { body, kind: RequestKind::of(request.method()), keep_alive: declared.persists(http::Version::HTTP_11) }
}

/// RFC 9112, section 3.2.1.
fn push_target<B>(request: &Request<B>, out: &mut Vec<u8>) {
    let target = request.uri().path_and_query().map_or("/", |target| target.as_str());
    if !target.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(target.as_bytes());
}

#[inline(always)] // for the loop over the fields
fn push_field(out: &mut Vec<u8>, name: &HeaderName, value: &[u8], style: NameStyle) {
    let name = name.as_str().as_bytes();
    // Once for the four parts.
    out.reserve(name.len() + value.len() + 4);
    match style {
        NameStyle::Lower => out.extend_from_slice(name),
        NameStyle::Title => push_title(out, name),
    }
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

#[cold]
fn push_title(out: &mut Vec<u8>, name: &[u8]) {
    let mut before = b'-';
    out.extend(name.iter().map(|&octet| {
        let octet = if before == b'-' { octet.to_ascii_uppercase() } else { octet };
        before = octet;
        octet
    }));
}

fn push_framing<B: Body>(request: &Request<B>, declared: &Declared, style: NameStyle, out: &mut Vec<u8>) -> Kind {
    let body = request.body();
    if body.is_end_stream() {
        // A request without content has no length, if its client sends none.
        if declared.length.is_present() {
            push_length(out, 0, style);
        }
        return Kind::Length(0);
    }
    if declared.coding == Coding::Absent {
        if let Some(length) = body.size_hint().exact().or(declared.length.number()) {
            push_length(out, length, style);
            return Kind::Length(length);
        }
        push_field(out, &TRANSFER_ENCODING, b"chunked", style);
    } else {
        push_codings(request.headers(), style, out);
    }
    Kind::Chunked { trailers: None }
}

fn push_length(out: &mut Vec<u8>, length: u64, style: NameStyle) {
    let mut digits = [0; 20];
    push_field(out, &CONTENT_LENGTH, decimal(length, &mut digits), style);
}

/// Writes the request's own codings, and `chunked` behind them, if it isn't there (RFC 9112, section 6.1).
fn push_codings(headers: &HeaderMap, style: NameStyle, out: &mut Vec<u8>) {
    let mut lines = headers.get_all(TRANSFER_ENCODING).iter().map(|value| value.as_bytes()).peekable();
    while let Some(line) = lines.next() {
        push_field(out, &TRANSFER_ENCODING, line, style);
        let is_last = lines.peek().is_none();
        if is_last && !members(line).last().is_some_and(|coding| coding.eq_ignore_ascii_case(b"chunked")) {
            out.truncate(out.len() - b"\r\n".len());
            out.extend_from_slice(b", chunked\r\n");
        }
    }
}

fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
}

/// Writes the size of a chunk and the end of its line.
fn push_size(out: &mut Vec<u8>, size: usize) {
    let digits = (usize::BITS - (size | 1).leading_zeros()).div_ceil(4);
    out.extend((0..digits).rev().map(|digit| b"0123456789ABCDEF"[size >> (4 * digit) & 15]));
    out.extend_from_slice(b"\r\n");
}

impl BodyEncoder {
    /// The encoder of a body that has ended.
    pub(crate) fn ended() -> Self {
        Self { kind: Kind::Ended }
    }

    /// Whether the body needs no more frames: there is none, or its length is reached, or the last chunk is written.
    pub(crate) fn is_ended(&self) -> bool {
        matches!(self.kind, Kind::Length(0) | Kind::Ended)
    }

    /// Writes a frame of the body.
    ///
    /// Trailers end the body. Those that the request doesn't announce, or that mustn't be trailers, are left out; a
    /// body with a length has none (RFC 9110, section 6.5.1).
    ///
    /// # Errors
    ///
    /// If the body is longer than its length. Nothing of the frame is written then.
    pub(crate) fn encode(&mut self, frame: Frame<Bytes>, out: &mut Output) -> Result<(), InvalidUpload> {
        let data = match frame.into_data() {
            Ok(data) => data,
            Err(frame) => {
                if let Ok(trailers) = frame.into_trailers() {
                    self.end_with(&trailers, out);
                }
                return Ok(());
            }
        };
        // An empty chunk would end the body.
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.kind {
            Kind::Length(left) => {
                *left = left.checked_sub(data.len() as u64).ok_or(InvalidUpload::TooLong)?;
                out.push(data);
            }
            Kind::Chunked { .. } => {
                push_size(out.octets_mut(), data.len());
                out.push(data);
                out.octets_mut().extend_from_slice(b"\r\n");
            }
            Kind::Ended => return Err(InvalidUpload::TooLong),
        }
        Ok(())
    }

    /// Ends the body, because it has no more frames.
    ///
    /// # Errors
    ///
    /// If it's shorter than its length.
    pub(crate) fn finish(&mut self, out: &mut Output) -> Result<(), InvalidUpload> {
        match self.kind {
            Kind::Length(0) | Kind::Ended => Ok(()),
            Kind::Length(left) => Err(InvalidUpload::TooShort(left)),
            Kind::Chunked { .. } => {
                out.octets_mut().extend_from_slice(b"0\r\n\r\n");
                self.kind = Kind::Ended;
                Ok(())
            }
        }
    }

    /// Keeps the names of the trailers that the request announces.
    #[cold]
    fn announce(&mut self, headers: &HeaderMap, style: NameStyle) {
        if let Kind::Chunked { trailers } = &mut self.kind {
            let lines = headers.get_all(TRAILER).iter();
            let names = lines.flat_map(|line| members(line.as_bytes()));
            let names = names.filter_map(|name| HeaderName::from_bytes(name).ok()).filter(may_be_trailer);
            *trailers = Some(Box::new(Announced { names: names.collect(), style }));
        }
    }

    #[cold]
    fn end_with(&mut self, trailers: &HeaderMap, out: &mut Output) {
        let Kind::Chunked { trailers: announced } = &self.kind else { return };
        let out = out.octets_mut();
        out.extend_from_slice(b"0\r\n");
        if let Some(announced) = announced {
            for (name, value) in trailers.iter().filter(|(name, _)| announced.names.contains(name)) {
                push_field(out, name, value.as_bytes(), announced.style);
            }
        }
        out.extend_from_slice(b"\r\n");
        self.kind = Kind::Ended;
    }
}

/// Whether the field may be a trailer: it isn't one for framing, routing, authentication, or about the content
/// (RFC 9110, section 6.5.1).
fn may_be_trailer(name: &HeaderName) -> bool {
    !matches!(
        *name,
        AUTHORIZATION
            | CACHE_CONTROL
            | CONTENT_ENCODING
            | CONTENT_LENGTH
            | CONTENT_RANGE
            | CONTENT_TYPE
            | HOST
            | MAX_FORWARDS
            | SET_COOKIE
            | TE
            | TRAILER
            | TRANSFER_ENCODING
    )
}

impl fmt::Display for InvalidUpload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLong => f.write_str("the request's body is longer than its Content-Length"),
            Self::TooShort(left) => write!(f, "the request's body ends {left} bytes before its Content-Length"),
        }
    }
}

impl std::error::Error for InvalidUpload {}

#[cfg(test)]
mod tests {
    use std::{
        convert::Infallible,
        pin::Pin,
        task::{Context, Poll},
    };

    use http::HeaderValue;
    use http_body::SizeHint;

    use super::*;

    /// A body of which nothing but its size is known.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    enum Size {
        Empty,
        Known(u64),
        Unknown,
    }

    impl Body for Size {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            unreachable!("the codec doesn't poll bodies")
        }

        fn is_end_stream(&self) -> bool {
            *self == Self::Empty
        }

        fn size_hint(&self) -> SizeHint {
            match *self {
                Self::Empty => SizeHint::with_exact(0),
                Self::Known(length) => SizeHint::with_exact(length),
                Self::Unknown => SizeHint::new(),
            }
        }
    }

    fn encode(
        method: &str,
        target: &str,
        lines: &[(&str, &str)],
        body: Size,
        style: NameStyle,
    ) -> (String, EncodedHead) {
        let mut request = Request::builder().method(method).uri(target).body(body).unwrap();
        for &(name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        let mut out = Vec::new();
        let head = encode_head(&request, style, &mut out);
        (String::from_utf8(out).unwrap(), head)
    }

    fn written(output: &Output) -> String {
        let (slices, _) = output.slices();
        slices.iter().map(|slice| std::str::from_utf8(slice).unwrap()).collect()
    }

    #[test]
    fn a_head_is_written_as_it_is() {
        let lines = [("host", "a"), ("x-own", "1"), ("accept", "*/*"), ("x-own", "2"), ("x-empty", "")];
        let (head, _) = encode("GET", "/a?b=c", &lines, Size::Empty, NameStyle::Lower);
        assert_eq!(head, "GET /a?b=c HTTP/1.1\r\nhost: a\r\nx-own: 1\r\nx-own: 2\r\naccept: */*\r\nx-empty: \r\n\r\n");
        let (head, _) = encode("GET", "/", &[("x-own-field", "a"), ("te", "b")], Size::Known(3), NameStyle::Title);
        assert_eq!(head, "GET / HTTP/1.1\r\nX-Own-Field: a\r\nTe: b\r\nContent-Length: 3\r\n\r\n");
    }

    #[test]
    fn the_target_is_in_origin_form() {
        for (uri, target) in [
            ("/", "/"),
            ("/a//b?c", "/a//b?c"),
            ("*", "*"),
            ("http://a", "/"),
            ("http://a/b?c", "/b?c"),
            ("http://a?b", "/?b"),
        ] {
            let (head, _) = encode("OPTIONS", uri, &[], Size::Empty, NameStyle::Lower);
            assert_eq!(head, format!("OPTIONS {target} HTTP/1.1\r\n\r\n"));
        }
    }

    #[test]
    fn the_framing_is_the_bodys() {
        const TE: &str = "transfer-encoding";
        const CL: &str = "content-length";
        const CHUNKED: &str = "transfer-encoding: chunked\r\n";
        for (lines, body, framing) in [
            (&[][..], Size::Empty, ""),
            (&[], Size::Known(0), "content-length: 0\r\n"),
            (&[], Size::Known(1234567890), "content-length: 1234567890\r\n"),
            (&[], Size::Known(u64::MAX), "content-length: 18446744073709551615\r\n"),
            (&[], Size::Unknown, CHUNKED),
            (&[(CL, "0")], Size::Empty, "content-length: 0\r\n"),
            (&[(CL, "5")], Size::Known(5), "content-length: 5\r\n"),
            (&[(CL, "5")], Size::Unknown, "content-length: 5\r\n"),
            (&[(CL, "5"), (CL, "5")], Size::Unknown, "content-length: 5\r\n"),
            // A length that another body had.
            (&[(CL, "5")], Size::Empty, "content-length: 0\r\n"),
            (&[(CL, "5")], Size::Known(6), "content-length: 6\r\n"),
            // No length.
            (&[(CL, "x")], Size::Empty, "content-length: 0\r\n"),
            (&[(CL, "x")], Size::Known(6), "content-length: 6\r\n"),
            (&[(CL, "x")], Size::Unknown, CHUNKED),
            (&[(CL, "5"), (CL, "6")], Size::Unknown, CHUNKED),
            // The request's own choice.
            (&[(TE, "chunked")], Size::Empty, ""),
            (&[(TE, "chunked")], Size::Known(5), CHUNKED),
            (&[(TE, "chunked"), (CL, "5")], Size::Unknown, CHUNKED),
            (&[(TE, "gzip")], Size::Unknown, "transfer-encoding: gzip, chunked\r\n"),
            (&[(TE, "a"), (TE, "b")], Size::Unknown, "transfer-encoding: a\r\ntransfer-encoding: b, chunked\r\n"),
            (&[(TE, "a, Chunked")], Size::Unknown, "transfer-encoding: a, Chunked\r\n"),
        ] {
            for method in ["GET", "POST"] {
                let (head, encoded) = encode(method, "/", lines, body, NameStyle::Lower);
                assert_eq!(head, format!("{method} / HTTP/1.1\r\n{framing}\r\n"), "{lines:?} {body:?}");
                let is_ended = framing.is_empty() || framing == "content-length: 0\r\n";
                assert_eq!(encoded.body.is_ended(), is_ended, "{lines:?} {body:?}");
            }
        }
    }

    #[test]
    fn a_request_may_end_the_connection() {
        for (lines, keep_alive) in [
            (&[][..], true),
            (&["keep-alive"], true),
            (&["x-close"], true),
            (&["close"], false),
            (&["upgrade", "a, CLOSE"], false),
        ] {
            let lines: Vec<_> = lines.iter().map(|&line| ("connection", line)).collect();
            let (head, encoded) = encode("HEAD", "/", &lines, Size::Empty, NameStyle::Lower);
            assert_eq!((encoded.keep_alive, encoded.kind), (keep_alive, RequestKind::Head), "{lines:?}");
            assert!(lines.iter().all(|(_, line)| head.contains(line)), "{head}");
        }
    }

    #[test]
    fn a_body_with_a_length_is_written_as_it_is() {
        let (_, mut head) = encode("PUT", "/", &[], Size::Known(5), NameStyle::Lower);
        let mut output = Output::default();
        for data in ["hel", "", "l"] {
            head.body.encode(Frame::data(data.into()), &mut output).unwrap();
        }
        assert_eq!(head.body.finish(&mut output), Err(InvalidUpload::TooShort(1)));
        assert_eq!(head.body.encode(Frame::data("oh".into()), &mut output), Err(InvalidUpload::TooLong));
        assert!(!head.body.is_ended());
        head.body.encode(Frame::data("o".into()), &mut output).unwrap();
        head.body.encode(Frame::trailers(HeaderMap::new()), &mut output).unwrap();
        assert_eq!((head.body.is_ended(), head.body.finish(&mut output)), (true, Ok(())));
        assert_eq!(written(&output), "hello");
    }

    #[test]
    fn a_body_without_a_length_is_written_in_chunks() {
        let (_, mut head) = encode("PUT", "/", &[], Size::Unknown, NameStyle::Lower);
        let (mut output, mut expected) = (Output::default(), String::new());
        for size in [1, 0, 9, 10, 15, 16, 17, 255, 256, 4096, 20_000, 65_536] {
            let data = "x".repeat(size);
            if size > 0 {
                expected += &format!("{size:X}\r\n{data}\r\n");
            }
            head.body.encode(Frame::data(data.into()), &mut output).unwrap();
        }
        assert!(!head.body.is_ended());
        assert_eq!((head.body.finish(&mut output), head.body.is_ended()), (Ok(()), true));
        assert_eq!((head.body.finish(&mut output), written(&output)), (Ok(()), expected + "0\r\n\r\n"));
        assert_eq!(head.body.encode(Frame::data("a".into()), &mut output), Err(InvalidUpload::TooLong));
    }

    #[test]
    fn the_trailers_that_are_announced_are_written() {
        let trailers: HeaderMap = [("a", "1"), ("b-c", "2"), ("d", "3"), ("host", "4"), ("content-length", "5")]
            .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
            .into_iter()
            .collect();
        for (announced, style, end) in [
            (&["a, B-C", "host,content-length"][..], NameStyle::Lower, "0\r\na: 1\r\nb-c: 2\r\n\r\n"),
            (&["b-c"], NameStyle::Title, "0\r\nB-C: 2\r\n\r\n"),
            (&["e", " ,@"], NameStyle::Lower, "0\r\n\r\n"),
            (&[], NameStyle::Lower, "0\r\n\r\n"),
        ] {
            let lines: Vec<_> = announced.iter().map(|&line| ("trailer", line)).collect();
            let (_, mut head) = encode("PUT", "/", &lines, Size::Unknown, style);
            let mut output = Output::default();
            head.body.encode(Frame::trailers(trailers.clone()), &mut output).unwrap();
            assert_eq!((head.body.is_ended(), head.body.finish(&mut output)), (true, Ok(())));
            assert_eq!(written(&output), end, "{announced:?}");
        }
    }
}

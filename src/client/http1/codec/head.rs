//! Decodes the heads of responses (RFC 9112, sections 4 and 5).

use std::{fmt, mem::MaybeUninit};

use bytes::{Bytes, BytesMut};
use http::{Response, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::{
    body::BodyDecoder,
    fields::{FEW, Lines, ParseAttempts, has_whole_line_ends},
    framing::{Declared, Framing, Length, RequestKind},
    limits::Limits,
};

/// Decodes the heads of responses on one connection. It resets itself after each head.
#[derive(Debug)]
pub(crate) struct HeadDecoder {
    limits: Limits,
    attempts: ParseAttempts,
}

/// The head of a response. An informational one (1xx, but not 101) precedes another head.
#[derive(Debug)]
pub(crate) struct Head {
    /// Values and an unusual reason phrase share the octets of the input.
    pub(crate) response: Response<()>,
    pub(crate) body: BodyDecoder,
    /// Whether the backend keeps the connection open after the body (RFC 9112, section 9.3).
    pub(crate) keep_alive: bool,
}

/// The length of a status line before its reason phrase.
const BEFORE_REASON: usize = "HTTP/1.1 200 ".len();

/// Why a response head can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidHead {
    Syntax(&'static str),
    TooLarge(&'static str),
    /// It isn't certain where the body ends.
    Framing(&'static str),
}

/// The parts of a status line, except for the octets of its reason phrase.
struct StatusLine {
    /// The length of the head.
    length: usize,
    version: Version,
    status: StatusCode,
    /// Whether the reason phrase isn't the one of RFC 9110.
    has_own_reason: bool,
}

impl HeadDecoder {
    pub(crate) fn new(limits: Limits) -> Self {
        // Positions in a head have 32 bits.
        let limits = Limits { bytes: limits.bytes.min(u32::MAX as usize), ..limits };
        Self { limits, attempts: ParseAttempts::default() }
    }

    /// Takes the next head off the buffer. `None`: it isn't complete.
    ///
    /// # Errors
    ///
    /// If the octets aren't a head, or if they exceed a limit. The connection is of no use then.
    pub(crate) fn decode(&mut self, input: &mut BytesMut, request: RequestKind) -> Result<Option<Head>, InvalidHead> {
        if input.is_empty() {
            return Ok(None);
        }
        let octets = self.limits.section(input);
        if !self.attempts.is_due(octets, self.limits.bytes) {
            return Ok(None);
        }
        let mut lines = Lines::new();
        let Some(line) = parse(octets, self.limits.fields, &mut lines)? else {
            // All of it belongs to the head, which has at least one more octet.
            if octets.len() == self.limits.bytes {
                return Err(InvalidHead::TooLarge("it has more bytes than the limit"));
            }
            self.attempts.incomplete(octets.len());
            return Ok(None);
        };
        self.attempts.reset();
        let octets = input.split_to(line.length).freeze();
        self.head(&line, &lines, &octets, request).map(Some)
    }

    fn head(
        &self,
        line: &StatusLine,
        lines: &Lines,
        octets: &Bytes,
        request: RequestKind,
    ) -> Result<Head, InvalidHead> {
        let mut declared = Declared::default();
        let headers = lines.to_map(octets, |name, value| declared.read(name, value));
        let mut response = Response::new(());
        *response.status_mut() = line.status;
        *response.version_mut() = line.version;
        *response.headers_mut() = headers.ok_or(InvalidHead::TooLarge("a field name has more than 64 KiB"))?;
        let framing = declared.response(line.status, line.version, request).map_err(InvalidHead::Framing)?;
        if let (Framing::Length(length), Length::Repeated(_)) = (framing, declared.length) {
            // RFC 9110, section 8.6: a list of equal lengths is forwarded as one of them.
            response.headers_mut().insert(http::header::CONTENT_LENGTH, length.into());
        }
        if line.has_own_reason {
            insert_reason(&mut response, octets);
        }
        // The connection belongs to a tunnel after 101 and after a successful CONNECT.
        let is_tunnel = line.status == StatusCode::SWITCHING_PROTOCOLS
            || (request == RequestKind::Connect && line.status.is_success());
        let keep_alive = !is_tunnel && framing != Framing::UntilClose && declared.persists(line.version);
        Ok(Head { response, body: BodyDecoder::new(framing, self.limits), keep_alive })
    }
}

/// Parses a head into `lines` and the status line. `None`: it isn't complete.
fn parse(octets: &[u8], fields: usize, lines: &mut Lines) -> Result<Option<StatusLine>, InvalidHead> {
    // The parser would skip empty lines, which could only belong to an earlier message.
    if octets.first() != Some(&b'H') {
        return Err(InvalidHead::Syntax("invalid HTTP version"));
    }
    let mut room = [MaybeUninit::uninit(); FEW];
    match parse_into(octets, &mut room[..FEW.min(fields)], lines) {
        Err(InvalidHead::TooLarge(_)) if fields > FEW => parse_many(octets, fields, lines),
        outcome => outcome,
    }
}

#[cold]
fn parse_many(octets: &[u8], fields: usize, lines: &mut Lines) -> Result<Option<StatusLine>, InvalidHead> {
    // A line has at least a name of one octet, a colon and an end.
    let mut room = vec![MaybeUninit::uninit(); fields.min(octets.len() / 3)];
    parse_into(octets, &mut room, lines)
}

fn parse_into<'b>(
    octets: &'b [u8],
    room: &mut [MaybeUninit<Header<'b>>],
    lines: &mut Lines,
) -> Result<Option<StatusLine>, InvalidHead> {
    let mut response = httparse::Response::new(&mut []);
    // Blanks before the colon are removed (RFC 9112, section 5.1).
    let mut config = ParserConfig::default();
    config.allow_spaces_after_header_name_in_responses(true);
    let length = match config.parse_response_with_uninit_headers(&mut response, octets, room) {
        Ok(Status::Complete(length)) => length,
        Ok(Status::Partial) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    let reason = response.reason.unwrap_or_default();
    let has_cr = |at: usize| octets.get(at) == Some(&b'\r');
    // The parser has found a LF behind each of these CRs. With all of them, no LF is left.
    let ends = lines.record(octets, response.headers) & has_cr(BEFORE_REASON + reason.len()) & has_cr(length - 2);
    if !ends && !has_whole_line_ends(&octets[..length]) {
        return Err(InvalidHead::Syntax("a line ends without CR"));
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(InvalidHead::Syntax("invalid response status"))?;
    let version = if response.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Some(StatusLine { length, version, status, has_own_reason: Some(reason) != status.canonical_reason() }))
}

/// Inserts the reason phrase as it was sent. It's read from the octets, because the parser drops one that isn't ASCII.
#[cold]
fn insert_reason(response: &mut Response<()>, octets: &Bytes) {
    let end = octets.iter().position(|&octet| octet == b'\r').unwrap_or_default();
    // The blank before it is optional if the phrase is empty.
    let reason = octets.slice(BEFORE_REASON.min(end)..end);
    if let Ok(reason) = ReasonPhrase::try_from(reason) {
        response.extensions_mut().insert(reason);
    }
}

impl From<httparse::Error> for InvalidHead {
    fn from(error: httparse::Error) -> Self {
        use httparse::Error::{HeaderName, HeaderValue, NewLine, Status, Token, TooManyHeaders, Version};
        match error {
            HeaderName => Self::Syntax("invalid field name"),
            HeaderValue => Self::Syntax("invalid field value"),
            NewLine => Self::Syntax("invalid end of line"),
            Status => Self::Syntax("invalid response status"),
            Token => Self::Syntax("invalid token"),
            TooManyHeaders => Self::TooLarge("it has more fields than the limit"),
            Version => Self::Syntax("invalid HTTP version"),
        }
    }
}

impl fmt::Display for InvalidHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(what) | Self::Framing(what) => write!(f, "invalid message head: {what}"),
            Self::TooLarge(what) => write!(f, "message head is too large: {what}"),
        }
    }
}

impl std::error::Error for InvalidHead {}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    const LIMITS: Limits = Limits { bytes: 4096, fields: 100 };

    /// Decodes a head that comes in pieces, and describes it in a line. The rest of the input stands behind it.
    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>, request: RequestKind) -> Result<String, InvalidHead> {
        let (mut decoder, mut input) = (HeadDecoder::new(LIMITS), BytesMut::new());
        let mut pieces = pieces.into_iter();
        while let Some(piece) = pieces.next() {
            input.extend_from_slice(piece);
            if let Some(head) = decoder.decode(&mut input, request)? {
                pieces.for_each(|piece| input.extend_from_slice(piece));
                return Ok(describe(&head) + &format!(" | {}", text(&input)));
            }
        }
        Ok("incomplete".to_owned())
    }

    fn describe(head: &Head) -> String {
        let response = &head.response;
        let mut line = format!("{:?} {}", response.version(), response.status().as_u16());
        if let Some(reason) = response.extensions().get::<ReasonPhrase>() {
            write!(line, " ({})", text(reason.as_bytes())).unwrap();
        }
        for (name, value) in response.headers() {
            write!(line, " [{name}: {}]", text(value.as_bytes())).unwrap();
        }
        match (head.body.length(), head.body.is_chunked()) {
            (Some(length), _) => write!(line, " length {length}").unwrap(),
            (None, true) => line += " chunked",
            (None, false) => line += " until close",
        }
        line + if head.keep_alive { ", keep-alive" } else { ", close" }
    }

    /// One character for each octet.
    fn text(octets: &[u8]) -> String {
        octets.iter().map(|&octet| char::from(octet)).collect()
    }

    fn octets(text: &str) -> Vec<u8> {
        text.chars().map(|character| u8::try_from(character).unwrap()).collect()
    }

    /// Decodes a head at once, in two pieces that are cut anywhere, and octet by octet.
    #[track_caller]
    fn assert_decodes(head: &str, request: RequestKind, expected: Result<&str, InvalidHead>) {
        let (octets, expected) = (octets(head), expected.map(str::to_owned));
        for cut in 0..octets.len() {
            let (one, other) = octets.split_at(cut);
            assert_eq!(decode([one, other], request), expected, "{head:?} cut at {cut}");
        }
        assert_eq!(decode(octets.chunks(1), request), expected, "{head:?}");
    }

    #[test]
    fn heads_are_decoded_wherever_the_input_is_cut() {
        for (head, decoded) in [
            ("HTTP/1.1 200 OK\r\n\r\n", "HTTP/1.1 200 until close, close | "),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
                "HTTP/1.1 200 [content-length: 5] length 5, keep-alive | hello",
            ),
            (
                "HTTP/1.1 404 Not Found\r\nTransfer-Encoding: Chunked\r\n\r\n",
                "HTTP/1.1 404 [transfer-encoding: Chunked] chunked, keep-alive | ",
            ),
            // The order is the header map's.
            (
                "HTTP/1.1 204 No Content\r\nA: 1\r\nb:2\r\na:\t3 \t\r\n\r\n",
                "HTTP/1.1 204 [a: 1] [a: 3] [b: 2] length 0, keep-alive | ",
            ),
            // RFC 9112, section 5.1: blanks before the colon.
            (
                "HTTP/1.1 204 No Content\r\nA : 1\r\nB\t \t: 2\r\n\r\n",
                "HTTP/1.1 204 [a: 1] [b: 2] length 0, keep-alive | ",
            ),
            (
                "HTTP/1.1 204 No Content\r\nA:\r\nB: \t\r\nC: \u{e4}\r\n\r\n",
                "HTTP/1.1 204 [a: ] [b: ] [c: \u{e4}] length 0, keep-alive | ",
            ),
            // Reason phrases of their own.
            ("HTTP/1.1 204\r\n\r\n", "HTTP/1.1 204 () length 0, keep-alive | "),
            ("HTTP/1.1 204 \r\n\r\n", "HTTP/1.1 204 () length 0, keep-alive | "),
            ("HTTP/1.1 204 Own \r\n\r\n", "HTTP/1.1 204 (Own ) length 0, keep-alive | "),
            ("HTTP/1.1 204  Own\r\n\r\n", "HTTP/1.1 204 ( Own) length 0, keep-alive | "),
            ("HTTP/1.1 204 \u{e4}\u{ff} x\r\n\r\n", "HTTP/1.1 204 (\u{e4}\u{ff} x) length 0, keep-alive | "),
            (
                "HTTP/1.1 999 ?\r\nContent-Length: 0\r\n\r\n",
                "HTTP/1.1 999 (?) [content-length: 0] length 0, keep-alive | ",
            ),
        ] {
            assert_decodes(head, RequestKind::Other, Ok(decoded));
        }
    }

    #[test]
    fn a_head_that_is_cut_is_incomplete() {
        let head = b"HTTP/1.1 200 OK\r\nA: b\r\nContent-Length: 5\r\n\r\n";
        for length in 0..head.len() {
            assert_eq!(decode([&head[..length]], RequestKind::Other).as_deref(), Ok("incomplete"), "{length}");
        }
    }

    #[test]
    fn invalid_heads_are_refused() {
        for (head, what) in [
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", "invalid HTTP version"),
            ("\nHTTP/1.1 200 OK\r\n\r\n", "invalid HTTP version"),
            (" HTTP/1.1 200 OK\r\n\r\n", "invalid HTTP version"),
            ("SSH-2.0-x\r\n\r\n", "invalid HTTP version"),
            ("ICY 200 OK\r\n\r\n", "invalid HTTP version"),
            ("HTTP/2.0 200 OK\r\n\r\n", "invalid HTTP version"),
            ("HTTP/1.2 200 OK\r\n\r\n", "invalid HTTP version"),
            ("HTTP/0.9 200 OK\r\n\r\n", "invalid HTTP version"),
            ("http/1.1 200 OK\r\n\r\n", "invalid HTTP version"),
            ("HTTP/1.1  200 OK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1\t200 OK\r\n\r\n", "invalid HTTP version"),
            ("HTTP/1.1 20 OK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 2000 OK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 099 OK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 +20 OK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 200\tOK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 200 O\0K\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 200 O\rK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 200 O\x7fK\r\n\r\n", "invalid response status"),
            ("HTTP/1.1 200 OK\r\nA\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\n: b\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\n A: b\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\nA b: c\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\nA\0: c\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\nA\u{e4}: c\r\n\r\n", "invalid field name"),
            // Obsolete line folding (RFC 9112, section 5.2).
            ("HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\tc\r\n\r\n", "invalid field name"),
            ("HTTP/1.1 200 OK\r\nA: b\0\r\n\r\n", "invalid field value"),
            ("HTTP/1.1 200 OK\r\nA: \x08b\r\n\r\n", "invalid field value"),
            ("HTTP/1.1 200 OK\r\nA: b\x7f\r\n\r\n", "invalid field value"),
            ("HTTP/1.1 200 OK\r\nA: b\rc\r\n\r\n", "invalid field value"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\rc\r\n", "invalid end of line"),
            ("HTTP/1.1 200 OK\nA: b\r\n\r\n", "a line ends without CR"),
            ("HTTP/1.1 200\nA: b\r\n\r\n", "a line ends without CR"),
            ("HTTP/1.1 200 OK\r\nA: b\n\r\n", "a line ends without CR"),
            ("HTTP/1.1 200 OK\r\nA:\n\r\n", "a line ends without CR"),
            ("HTTP/1.1 200 OK\r\nA: b\r\n\n", "a line ends without CR"),
            ("HTTP/1.1 200 OK\n\n", "a line ends without CR"),
        ] {
            assert_decodes(head, RequestKind::Other, Err(InvalidHead::Syntax(what)));
        }
    }

    #[test]
    fn garbage_is_detected_at_its_first_octets() {
        let mut decoder = HeadDecoder::new(LIMITS);
        let mut input = BytesMut::new();
        for octet in b"HTTP/1.1 2" {
            input.extend_from_slice(&[*octet]);
            assert!(decoder.decode(&mut input, RequestKind::Other).unwrap().is_none());
        }
        input.extend_from_slice(b"x");
        assert!(decoder.decode(&mut input, RequestKind::Other).is_err());
    }

    #[test]
    fn a_decoder_decodes_one_head_after_another() {
        let mut decoder = HeadDecoder::new(LIMITS);
        let mut input =
            BytesMut::from(&b"HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\nHTTP/1.1 100 Continue\r\n\r\nHTTP/1."[..]);
        let mut next = |more: &[u8]| {
            input.extend_from_slice(more);
            decoder.decode(&mut input, RequestKind::Other).unwrap().map(|head| describe(&head))
        };
        assert_eq!(next(b"").as_deref(), Some("HTTP/1.1 103 [link: a] length 0, keep-alive"));
        assert_eq!(next(b"").as_deref(), Some("HTTP/1.1 100 length 0, keep-alive"));
        assert_eq!(next(b""), None);
        assert_eq!(next(b"0 200 OK\r\n\r\n").as_deref(), Some("HTTP/1.0 200 until close, close"));
        assert_eq!(next(b""), None);
    }

    #[test]
    fn the_size_of_a_head_is_limited() {
        const HEAD: &str = "HTTP/1.1 204 No Content\r\nA: \r\n\r\n";
        let error = Err(InvalidHead::TooLarge("it has more bytes than the limit"));
        for (size, is_valid) in [(LIMITS.bytes, true), (LIMITS.bytes + 1, false), (3 * LIMITS.bytes, false)] {
            let value = "v".repeat(size - HEAD.len());
            let head = HEAD.replace("A: ", &format!("A: {value}"));
            let decoded = format!("HTTP/1.1 204 [a: {value}] length 0, keep-alive | ");
            let expected = if is_valid { Ok(decoded) } else { error.clone() };
            assert!(decode([head.as_bytes()], RequestKind::Other) == expected, "{size}");
            assert!(decode(head.as_bytes().chunks(1), RequestKind::Other) == expected, "{size} in octets");
            assert!(decode(head.as_bytes().chunks(1000), RequestKind::Other) == expected, "{size} in pieces");
        }
        // Without an end, and with a body behind the head.
        assert_eq!(decode(vec![b'H'; 10_000].chunks(1), RequestKind::Other).map_err(|_| ()), Err(()));
        assert_eq!(
            decode(octets(&("HTTP/1.1 200 ".to_owned() + &"x".repeat(10_000))).chunks(1), RequestKind::Other),
            error
        );
        let body = HEAD.to_owned() + &"x".repeat(10_000);
        assert!(decode([body.as_bytes()], RequestKind::Other).is_ok());
    }

    #[test]
    fn the_number_of_fields_is_limited() {
        for limit in [1, FEW - 1, FEW, FEW + 1, 300] {
            for (count, is_valid) in [(limit, true), (limit + 1, false)] {
                let fields: String = (0..count).map(|number| format!("x-{number}: {number}\r\n")).collect();
                let head = format!("HTTP/1.1 204 No Content\r\n{fields}\r\n");
                for size in [1, head.len()] {
                    let mut decoder = HeadDecoder::new(Limits { bytes: 10_000, fields: limit });
                    let (mut input, mut outcome) = (BytesMut::new(), Ok(None));
                    for piece in head.as_bytes().chunks(size) {
                        input.extend_from_slice(piece);
                        outcome = decoder.decode(&mut input, RequestKind::Other);
                        if outcome.is_err() {
                            break;
                        }
                    }
                    let expected = if is_valid {
                        Ok(count)
                    } else {
                        Err(InvalidHead::TooLarge("it has more fields than the limit"))
                    };
                    let outcome = outcome.map(|head| {
                        let head = head.unwrap();
                        let headers = head.response.headers();
                        let text = |number: usize| number.to_string();
                        assert!((0..count).all(|number| headers[format!("x-{number}")] == text(number)));
                        headers.len()
                    });
                    assert_eq!(outcome, expected, "{count} of {limit} in pieces of {size}");
                }
            }
        }
    }

    #[test]
    fn as_many_fields_as_a_map_holds_are_decoded() {
        let fields: String = (0..24_576).map(|number| format!("x{number}:\r\n")).collect();
        let mut input = BytesMut::from(&*format!("HTTP/1.1 204 No Content\r\n{fields}\r\n"));
        let mut decoder = HeadDecoder::new(Limits { bytes: 1_000_000, fields: 24_576 });
        let head = decoder.decode(&mut input, RequestKind::Other).unwrap().unwrap();
        assert_eq!(head.response.headers().len(), 24_576);
    }

    #[test]
    fn a_name_of_64_kib_is_too_large() {
        let mut input = BytesMut::from(&*format!("HTTP/1.1 204 No Content\r\n{}: a\r\n\r\n", "x".repeat(65_536)));
        let mut decoder = HeadDecoder::new(Limits { bytes: 1_000_000, fields: 100 });
        let outcome = decoder.decode(&mut input, RequestKind::Other);
        assert!(matches!(outcome, Err(InvalidHead::TooLarge(_))));
    }

    #[test]
    fn a_head_that_comes_octet_by_octet_costs_linear_work() {
        let fields = "a: b\r\n".repeat(50) + &format!("c: {}\r\n", "d".repeat(200_000));
        let head = format!("HTTP/1.1 204 No Content\r\n{fields}\r\n");
        let mut decoder = HeadDecoder::new(Limits { bytes: 1_000_000, fields: 100 });
        let mut input = BytesMut::new();
        let mut decoded = None;
        for octet in head.as_bytes().chunks(1) {
            input.extend_from_slice(octet);
            decoded = decoder.decode(&mut input, RequestKind::Other).unwrap();
        }
        assert!(decoded.is_some() && decoder.attempts.count < 60, "{}", decoder.attempts.count);
    }

    #[test]
    fn values_share_the_octets_of_the_input() {
        let mut input = BytesMut::from(&b"HTTP/1.1 204 Own\r\nA: value\r\n\r\n"[..]);
        let range = input.as_ptr_range();
        let head = HeadDecoder::new(LIMITS).decode(&mut input, RequestKind::Other).unwrap().unwrap();
        let reason = head.response.extensions().get::<ReasonPhrase>().unwrap();
        assert!(range.contains(&head.response.headers()["a"].as_bytes().as_ptr()));
        assert!(range.contains(&reason.as_bytes().as_ptr()));
    }
}

//! Decodes the heads of responses (RFC 9112, sections 4 and 5).

use std::{fmt, mem::MaybeUninit};

use bytes::{Bytes, BytesMut};
use http::{Method, Response, StatusCode, Version};
use httparse::{Header, ParserConfig, Status};
use hyper::ext::ReasonPhrase;

use super::{
    BodyDecoder, Limits,
    fields::{Attempts, FEW, Lines, has_whole_line_ends},
    framing::{Declared, Framing, Length},
};

/// Decodes the heads of responses on one connection. After each head it's as new.
#[derive(Debug)]
pub(crate) struct HeadDecoder {
    limits: Limits,
    attempts: Attempts,
}

/// The kinds of requests whose responses are delimited differently (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Head,
    Connect,
    Other,
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

/// Why a response head can't be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum InvalidHead {
    Syntax(&'static str),
    /// Over one of the limits, which it names.
    TooLarge(&'static str),
    /// It isn't certain where the body ends.
    Framing(&'static str),
}

/// The status line, without its octets.
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
        Self { limits, attempts: Attempts::default() }
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
                return Err(InvalidHead::TooLarge("bytes"));
            }
            self.attempts.incomplete(octets.len());
            return Ok(None);
        };
        self.attempts.reset();
        let octets = input.split_to(line.length).freeze();
        if !has_whole_line_ends(&octets) {
            return Err(InvalidHead::Syntax("a line ends without CR"));
        }
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
        *response.headers_mut() = headers.ok_or(InvalidHead::TooLarge("names"))?;
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

impl RequestKind {
    pub(crate) fn of(method: &Method) -> Self {
        match *method {
            Method::HEAD => Self::Head,
            Method::CONNECT => Self::Connect,
            _ => Self::Other,
        }
    }
}

/// Parses a head, if it's complete, into `lines` and the status line.
fn parse(octets: &[u8], fields: usize, lines: &mut Lines) -> Result<Option<StatusLine>, InvalidHead> {
    // The parser skips empty lines, which belong to the end of an earlier message, if to any.
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
    lines.record(octets, response.headers);
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or(InvalidHead::Syntax("invalid response status"))?;
    let version = if response.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Some(StatusLine { length, version, status, has_own_reason: response.reason != status.canonical_reason() }))
}

/// Keeps the reason phrase as it is. It's read from the octets, because the parser drops those that aren't ASCII.
#[cold]
fn insert_reason(response: &mut Response<()>, octets: &Bytes) {
    const BEFORE: usize = "HTTP/1.1 200".len();
    let end = octets.iter().position(|&octet| octet == b'\r').unwrap_or(BEFORE).max(BEFORE);
    // The blank before it is optional, if the phrase is empty.
    let reason = octets.slice((BEFORE + 1).min(end)..end);
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
            TooManyHeaders => Self::TooLarge("fields"),
            Version => Self::Syntax("invalid HTTP version"),
        }
    }
}

impl fmt::Display for InvalidHead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Syntax(what) | Self::Framing(what) => write!(f, "invalid message head: {what}"),
            Self::TooLarge(limit) => write!(f, "message head is too large: over the limit of its {limit}"),
        }
    }
}

impl std::error::Error for InvalidHead {}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 4096, fields: 100 };

    /// The head, and what is left of the input.
    fn decode(octets: &[u8], request: RequestKind) -> Result<Option<(Head, Vec<u8>)>, InvalidHead> {
        let mut input = BytesMut::from(octets);
        let head = HeadDecoder::new(LIMITS).decode(&mut input, request)?;
        Ok(head.map(|head| (head, input.to_vec())))
    }

    fn fields(head: &Head) -> Vec<(&str, &[u8])> {
        head.response.headers().iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }

    #[test]
    fn a_head_is_taken_off_the_buffer() {
        let octets = b"HTTP/1.1 200 OK\r\nServer: a\r\nX-Own:\tb \r\nContent-Length: 5\r\n\r\nhello";
        let (head, left) = decode(octets, RequestKind::Other).unwrap().unwrap();
        assert_eq!((head.response.status(), head.response.version()), (StatusCode::OK, Version::HTTP_11));
        assert_eq!(fields(&head), [("server", &b"a"[..]), ("x-own", b"b"), ("content-length", b"5")]);
        assert_eq!((head.body.length(), head.keep_alive, &left[..]), (Some(5), true, &b"hello"[..]));
    }
}

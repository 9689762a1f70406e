//! How a message is delimited (RFC 9112, section 6.3), and whether its connection is reused (section 9.3).

use http::{
    HeaderName, Method, StatusCode, Version,
    header::{CONNECTION, CONTENT_LENGTH, TRANSFER_ENCODING},
};

/// The kinds of requests whose responses are delimited differently (RFC 9112, section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RequestKind {
    Head,
    Connect,
    Other,
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

/// How a response's body is delimited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// Until the backend closes the connection.
    UntilClose,
}

/// What the fields of a head declare about its framing and connection, read in one pass over the fields.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Declared {
    pub(super) length: Length,
    pub(super) coding: Coding,
    /// `Connection: close`.
    close: bool,
    /// `Connection: keep-alive`.
    keep_alive: bool,
}

/// The `Content-Length` lines of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Length {
    #[default]
    Absent,
    /// One number, in one line, without leading zeros.
    Canonical(u64),
    /// One number in several lines, or members, or with leading zeros.
    Repeated(u64),
    Invalid,
}

/// The `Transfer-Encoding` lines of a head.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Coding {
    #[default]
    Absent,
    /// One `chunked`, and nothing else.
    Chunked,
    Other,
}

impl Declared {
    #[inline(always)] // almost every field is none of the three
    pub(super) fn read(&mut self, name: &HeaderName, value: &[u8]) {
        match *name {
            CONTENT_LENGTH => self.length.read(value),
            TRANSFER_ENCODING => self.coding.read(value),
            CONNECTION => self.read_connection(value),
            _ => {}
        }
    }

    #[inline(never)]
    pub(super) fn read_connection(&mut self, value: &[u8]) {
        for option in members(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            // A value with octets outside of ASCII isn't a list of options. It doesn't open a connection to reuse.
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive") && value.is_ascii();
        }
    }

    /// Whether the connection persists after the message (RFC 9112, section 9.3), as far as its fields decide.
    #[inline]
    pub(super) fn persists(&self, version: Version) -> bool {
        !self.close && (version == Version::HTTP_11 || self.keep_alive)
    }

    /// Decides how the body of a response is delimited (RFC 9112, section 6.3).
    ///
    /// # Errors
    ///
    /// If the fields contradict each other, or name what the decoder can't undo. Every other reading would be a guess
    /// that another recipient may make differently (response splitting, RFC 9112, section 11.1).
    #[inline]
    pub(super) fn response(
        &self,
        status: StatusCode,
        version: Version,
        request: RequestKind,
    ) -> Result<Framing, &'static str> {
        // Rules 1 and 2 apply whatever the fields are.
        let is_empty = matches!(status.as_u16(), 100..=199 | 204 | 304)
            || request == RequestKind::Head
            || (request == RequestKind::Connect && status.is_success());
        if is_empty {
            return Ok(Framing::Empty);
        }
        match (self.coding, self.length) {
            (Coding::Absent, Length::Canonical(length) | Length::Repeated(length)) => Ok(Framing::Length(length)),
            // Rule 5: an unrecoverable error.
            (Coding::Absent, Length::Invalid) => Err("Content-Length isn't one number"),
            // Rule 8.
            (Coding::Absent, Length::Absent) => Ok(Framing::UntilClose),
            // RFC 9112, section 6.1: an HTTP/1.0 message with Transfer-Encoding has faulty framing.
            _ if version == Version::HTTP_10 => Err("Transfer-Encoding in HTTP/1.0"),
            (Coding::Chunked, Length::Absent) => Ok(Framing::Chunked),
            // Rule 3: the message "ought to be handled as an error".
            (Coding::Chunked, _) => Err("both Transfer-Encoding and Content-Length"),
            // Under rule 4, the body would end with the connection. It would reach the client with a coding that no
            // field names, because Transfer-Encoding isn't forwarded.
            (Coding::Other, _) => Err("Transfer-Encoding isn't exactly one `chunked`"),
        }
    }
}

impl Length {
    pub(super) fn read(&mut self, value: &[u8]) {
        *self = match (parse_decimal(value), *self) {
            (Some(length), Self::Absent) if value[0] != b'0' || value.len() == 1 => Self::Canonical(length),
            _ => self.with_members(value),
        }
    }

    /// RFC 9112, section 6.3: a list of equal numbers counts as one of them.
    #[cold]
    fn with_members(self, value: &[u8]) -> Self {
        members(value).fold(self, |declared, member| match (parse_decimal(member), declared) {
            (Some(length), Self::Absent) => Self::Repeated(length),
            (Some(length), Self::Canonical(other) | Self::Repeated(other)) if length == other => Self::Repeated(length),
            _ => Self::Invalid,
        })
    }

    pub(super) fn is_present(self) -> bool {
        self != Self::Absent
    }

    pub(super) fn number(self) -> Option<u64> {
        match self {
            Self::Canonical(length) | Self::Repeated(length) => Some(length),
            Self::Absent | Self::Invalid => None,
        }
    }
}

impl Coding {
    pub(super) fn read(&mut self, value: &[u8]) {
        let is_chunked = *self == Self::Absent && value.eq_ignore_ascii_case(b"chunked");
        *self = if is_chunked { Self::Chunked } else { Self::Other };
    }
}

/// The members of a list, without the blanks around them. Empty ones are among them.
pub(super) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|&octet| octet == b',').map(<[u8]>::trim_ascii)
}

/// Reads a length of less than 2⁶³ octets, digits only.
///
/// Recipients that hold lengths in signed numbers read a larger one differently.
#[inline]
fn parse_decimal(digits: &[u8]) -> Option<u64> {
    // 19 digits fit into 64 bits.
    if digits.is_empty() || digits.len() > 19 {
        return None;
    }
    let mut number = 0;
    for &octet in digits {
        let digit = octet.wrapping_sub(b'0');
        if digit > 9 {
            return None;
        }
        number = number * 10 + u64::from(digit);
    }
    (number <= i64::MAX as u64).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    const CL: HeaderName = CONTENT_LENGTH;
    const TE: HeaderName = TRANSFER_ENCODING;

    fn declared(lines: &[(HeaderName, &str)]) -> Declared {
        let mut declared = Declared::default();
        for (name, value) in lines {
            declared.read(name, value.as_bytes());
        }
        declared
    }

    #[test]
    fn the_fields_delimit_a_response() {
        const CONTRADICTION: Result<Framing, &str> = Err("both Transfer-Encoding and Content-Length");
        const CODING: Result<Framing, &str> = Err("Transfer-Encoding isn't exactly one `chunked`");
        const LENGTH: Result<Framing, &str> = Err("Content-Length isn't one number");
        for (lines, framing) in [
            (&[][..], Ok(Framing::UntilClose)),
            (&[(CL, "0")], Ok(Framing::Length(0))),
            (&[(CL, "12")], Ok(Framing::Length(12))),
            (&[(CL, "007")], Ok(Framing::Length(7))),
            (&[(CL, "9223372036854775807")], Ok(Framing::Length(i64::MAX as u64))),
            (&[(CL, "5"), (CL, "5")], Ok(Framing::Length(5))),
            (&[(CL, "5, 5"), (CL, " 05 ,5")], Ok(Framing::Length(5))),
            (&[(CL, "9223372036854775808")], LENGTH),
            (&[(CL, "18446744073709551616")], LENGTH),
            (&[(CL, "00000000000000000001")], LENGTH),
            (&[(CL, "5"), (CL, "6")], LENGTH),
            (&[(CL, "5, 6")], LENGTH),
            (&[(CL, "5,")], LENGTH),
            (&[(CL, "5"), (CL, "")], LENGTH),
            (&[(CL, "x"), (CL, "5"), (CL, "5")], LENGTH),
            (&[(CL, "")], LENGTH),
            (&[(CL, "+5")], LENGTH),
            (&[(CL, "-5")], LENGTH),
            (&[(CL, "5 5")], LENGTH),
            (&[(CL, "0x5")], LENGTH),
            (&[(CL, "5.0")], LENGTH),
            (&[(TE, "chunked")], Ok(Framing::Chunked)),
            (&[(TE, "CHUNKED")], Ok(Framing::Chunked)),
            (&[(TE, "chunked"), (CL, "5")], CONTRADICTION),
            (&[(CL, "5"), (TE, "chunked")], CONTRADICTION),
            (&[(CL, "x"), (TE, "chunked")], CONTRADICTION),
            (&[(TE, "gzip, chunked")], CODING),
            (&[(TE, "gzip"), (TE, "chunked")], CODING),
            (&[(TE, "chunked, chunked")], CODING),
            (&[(TE, "chunked"), (TE, "chunked")], CODING),
            (&[(TE, "chunked,")], CODING),
            (&[(TE, "chunked;a=b")], CODING),
            (&[(TE, "identity")], CODING),
            (&[(TE, "gzip")], CODING),
            (&[(TE, "gzip"), (CL, "5")], CODING),
            (&[(TE, "")], CODING),
            (&[(TE, "xchunked")], CODING),
        ] {
            let declared = declared(lines);
            let response = |version| declared.response(StatusCode::OK, version, RequestKind::Other);
            assert_eq!(response(Version::HTTP_11), framing, "{lines:?}");
            // RFC 9112, section 6.1.
            let framing =
                if declared.coding == Coding::Absent { framing } else { Err("Transfer-Encoding in HTTP/1.0") };
            assert_eq!(response(Version::HTTP_10), framing, "{lines:?}");
        }
    }

    #[test]
    fn the_status_and_the_request_decide_first() {
        for lines in [&[][..], &[(CL, "5")], &[(TE, "chunked")], &[(CL, "x"), (TE, "gzip")]] {
            for (method, status, is_empty) in [
                (Method::GET, 100, true),
                (Method::GET, 101, true),
                (Method::GET, 199, true),
                (Method::GET, 200, false),
                (Method::GET, 204, true),
                (Method::GET, 205, false),
                (Method::GET, 304, true),
                (Method::GET, 404, false),
                (Method::HEAD, 200, true),
                (Method::HEAD, 404, true),
                (Method::CONNECT, 200, true),
                (Method::CONNECT, 299, true),
                (Method::CONNECT, 300, false),
                (Method::CONNECT, 407, false),
            ] {
                let (status, request) = (StatusCode::from_u16(status).unwrap(), RequestKind::of(&method));
                let framing = declared(lines).response(status, Version::HTTP_11, request);
                assert_eq!(framing == Ok(Framing::Empty), is_empty, "{method} {status} {lines:?}");
            }
        }
    }

    #[test]
    fn a_connection_persists_unless_a_line_ends_it() {
        for (lines, http_11, http_10) in [
            (&[][..], true, false),
            (&["close"], false, false),
            (&["keep-alive"], true, true),
            (&["Keep-Alive"], true, true),
            (&["CLOSE"], false, false),
            (&["x, keep-alive ,y"], true, true),
            (&["x,\tclose"], false, false),
            (&["keep-alive, close"], false, false),
            (&["close", "keep-alive"], false, false),
            (&["keep-alive", "close"], false, false),
            (&["closed", "keep-alive-x", ""], true, false),
            (&["keep-alive, \u{e4}"], true, false),
            (&["close, \u{e4}"], false, false),
        ] {
            let lines: Vec<_> = lines.iter().map(|&value| (CONNECTION, value)).collect();
            let declared = declared(&lines);
            let persists = (declared.persists(Version::HTTP_11), declared.persists(Version::HTTP_10));
            assert_eq!(persists, (http_11, http_10), "{lines:?}");
        }
    }
}

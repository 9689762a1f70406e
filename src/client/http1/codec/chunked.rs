//! Decodes the chunked transfer coding (RFC 9112, section 7.1).

use bytes::{Buf, Bytes, BytesMut};
use http::HeaderMap;
use http_body::Frame;
use httparse::{EMPTY_HEADER, Status};

use super::{
    fields::{FEW, Lines, ParseAttempts, has_whole_line_ends},
    invalid::InvalidBody,
    limits::Limits,
};

/// Chunks up to this size altogether are moved together, in octets.
///
/// Otherwise, each of a backend's many small chunks would cost a frame, and a write to the client. Moving so few octets
/// within the cache is cheaper.
const JOINED: usize = 16 * 1024;

/// The maximum of a body's octets between chunk sizes and line ends: extensions and blanks.
///
/// No recipient uses extensions, and a backend could send them without end.
const EXTENSIONS: u16 = 16 * 1024;

/// A chunked body.
#[derive(Debug)]
pub(super) struct Chunked {
    state: State,
    /// The digits of the size so far.
    digits: u8,
    /// The octets of extensions so far.
    extensions: u16,
    /// The octets of the chunk that are left.
    left: u64,
    limits: Limits,
    attempts: ParseAttempts,
}

/// What the next octet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// A digit of the size; behind the first one, also the end of the size.
    Size,
    /// A blank after the size.
    Blank,
    Extension,
    /// The LF after the size and its extensions.
    LineEnd,
    Data,
    /// The CR after the data.
    DataCr,
    /// The LF after the data.
    DataLf,
    /// In the trailer section, which ends with an empty line.
    Trailers,
    Ended,
    /// A fault, which is returned after the data before it.
    Invalid(InvalidBody),
}

impl Chunked {
    pub(super) fn new(limits: Limits) -> Self {
        Self { state: State::Size, digits: 0, extensions: 0, left: 0, limits, attempts: ParseAttempts::default() }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.state == State::Ended
    }

    pub(super) fn decode(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, InvalidBody> {
        if let Some(data) = self.decode_data(input) {
            return Ok(Some(Frame::data(data)));
        }
        match self.state {
            State::Trailers => self.decode_trailers(input),
            State::Invalid(error) => Err(error),
            _ => Ok(None),
        }
    }

    /// Takes chunks off the buffer, up to the first that can't be joined to those before it.
    fn decode_data(&mut self, input: &mut BytesMut) -> Option<Bytes> {
        // The octets before `at` are read, and those of `data` belong to the frame.
        let (mut at, mut data) = (0, 0..0);
        loop {
            match self.state {
                State::Data => {
                    let size = usize::try_from(self.left).unwrap_or(usize::MAX).min(input.len() - at);
                    if data.is_empty() {
                        data = at..at + size;
                    } else if data.len() + size <= JOINED {
                        input.copy_within(at..at + size, data.end);
                        data.end += size;
                    } else {
                        break;
                    }
                    at += size;
                    self.left -= size as u64;
                    if self.left > 0 {
                        break;
                    }
                    self.state = State::DataCr;
                }
                State::Trailers => {
                    // Most bodies have none.
                    if input[at..].starts_with(b"\r\n") && self.attempts.is_new() {
                        at += 2;
                        self.state = State::Ended;
                    }
                    break;
                }
                State::Ended | State::Invalid(_) => break,
                State::DataCr if input[at..].starts_with(b"\r\n") => {
                    at += 2;
                    self.state = State::Size;
                }
                _ => {
                    let Some(&octet) = input.get(at) else { break };
                    if self.state == State::Size
                        && self.digits == 0
                        && let Some((size, length)) = whole_size(&input[at..])
                    {
                        at += length;
                        self.left = size;
                        self.state = if size == 0 { State::Trailers } else { State::Data };
                        continue;
                    }
                    at += 1;
                    self.state = self.next(octet).unwrap_or_else(|what| State::Invalid(InvalidBody::Chunk(what)));
                }
            }
        }
        if data.is_empty() {
            input.advance(at);
            return None;
        }
        let mut taken = input.split_to(at);
        taken.truncate(data.end);
        taken.advance(data.start);
        Some(taken.freeze())
    }

    /// Reads an octet between data.
    fn next(&mut self, octet: u8) -> Result<State, &'static str> {
        if self.state == State::Size
            && let Some(digit) = digit(octet)
        {
            // 16 digits fit into 64 bits.
            if self.digits == 16 {
                return Err("its size has more than 16 digits");
            }
            self.digits += 1;
            self.left = self.left << 4 | digit;
            return Ok(State::Size);
        }
        match (self.state, octet) {
            (State::Size, _) if self.digits == 0 => Err("its size is missing"),
            (State::Size | State::Blank | State::Extension, b'\r') => Ok(State::LineEnd),
            // RFC 9112, section 7.1.1: the blanks are "bad", and are to be accepted.
            (State::Size | State::Blank, b' ' | b'\t') => self.extension(State::Blank),
            (State::Size | State::Blank, b';') | (State::Extension, b'\t' | b' '..=b'~' | 0x80..) => {
                self.extension(State::Extension)
            }
            (State::Extension, _) => Err("its extension contains a control character"),
            (State::LineEnd, b'\n') => {
                self.digits = 0;
                Ok(if self.left == 0 { State::Trailers } else { State::Data })
            }
            (State::DataCr, b'\r') => Ok(State::DataLf),
            (State::DataLf, b'\n') => Ok(State::Size),
            (State::DataCr | State::DataLf, _) => Err("it's longer than its size"),
            _ => Err("its size isn't a hexadecimal number in a line"),
        }
    }

    fn extension(&mut self, state: State) -> Result<State, &'static str> {
        self.extensions += 1;
        if self.extensions < EXTENSIONS { Ok(state) } else { Err("too many extensions") }
    }

    /// Takes the trailers off the buffer, if they are complete.
    #[cold]
    fn decode_trailers(&mut self, input: &mut BytesMut) -> Result<Option<Frame<Bytes>>, InvalidBody> {
        let outcome = self.trailers(input);
        match &outcome {
            Ok(Some(_)) => self.state = State::Ended,
            Ok(None) => {}
            Err(error) => self.state = State::Invalid(*error),
        }
        Ok(outcome?.filter(|trailers| !trailers.is_empty()).map(Frame::trailers))
    }

    fn trailers(&mut self, input: &mut BytesMut) -> Result<Option<HeaderMap>, InvalidBody> {
        let octets = self.limits.section(input);
        if octets.is_empty() || !self.attempts.is_due(octets, self.limits.bytes) {
            return Ok(None);
        }
        let mut lines = Lines::new();
        let Some(length) = parse(octets, self.limits.fields, &mut lines).map_err(InvalidBody::Trailers)? else {
            // All of it belongs to the trailers, which have at least one more octet.
            if octets.len() == self.limits.bytes {
                return Err(InvalidBody::Trailers("too many bytes"));
            }
            self.attempts.incomplete(octets.len());
            return Ok(None);
        };
        let octets = input.split_to(length).freeze();
        lines.to_map(&octets, |_, _| {}).map(Some).ok_or(InvalidBody::Trailers("a name is too long"))
    }
}

/// Reads a whole line with a size and nothing else. Returns the size, and the length of the line.
///
/// It reads most sizes. The others are read octet by octet, so that an octet isn't read again with each piece that
/// comes.
fn whole_size(octets: &[u8]) -> Option<(u64, usize)> {
    let mut size = 0;
    for (at, &octet) in octets.iter().enumerate().take(17) {
        let Some(digit) = digit(octet) else {
            return (at > 0 && octets[at..].starts_with(b"\r\n")).then_some((size, at + 2));
        };
        size = size << 4 | digit;
    }
    None
}

fn digit(octet: u8) -> Option<u64> {
    match octet {
        b'0'..=b'9' => Some(u64::from(octet - b'0')),
        b'a'..=b'f' => Some(u64::from(octet - b'a' + 10)),
        b'A'..=b'F' => Some(u64::from(octet - b'A' + 10)),
        _ => None,
    }
}

/// Parses trailers into `lines`, and returns their length. `None`: they aren't complete.
fn parse(octets: &[u8], fields: usize, lines: &mut Lines) -> Result<Option<usize>, &'static str> {
    // A line has at least a name of one octet, a colon and an end.
    let mut room = [EMPTY_HEADER; FEW];
    let mut outcome = httparse::parse_headers(octets, &mut room[..FEW.min(fields)]);
    let mut large;
    if outcome == Err(httparse::Error::TooManyHeaders) && fields > FEW {
        large = vec![EMPTY_HEADER; fields.min(octets.len() / 3)];
        outcome = httparse::parse_headers(octets, &mut large);
    }
    match outcome {
        Ok(Status::Complete((length, _))) if !has_whole_line_ends(&octets[..length]) => Err("a line ends without CR"),
        Ok(Status::Complete((length, fields))) => {
            lines.record(octets, fields);
            Ok(Some(length))
        }
        Ok(Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err("too many fields"),
        Err(_) => Err("invalid field line"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits { bytes: 256, fields: 3 };

    /// The data, the trailers, and the error or what is left of the input.
    type Outcome = (String, String, Result<String, InvalidBody>);

    /// Decodes a body that comes in pieces.
    fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Outcome {
        let (mut chunked, mut input) = (Chunked::new(LIMITS), BytesMut::new());
        let (mut data, mut trailers) = (String::new(), String::new());
        for piece in pieces {
            input.extend_from_slice(piece);
            loop {
                match chunked.decode(&mut input) {
                    Ok(None) => break,
                    Ok(Some(frame)) => match frame.into_data() {
                        Ok(octets) => data += std::str::from_utf8(&octets).unwrap(),
                        Err(frame) => {
                            for (name, value) in &frame.into_trailers().unwrap() {
                                trailers += &format!("{name}: {}\n", value.to_str().unwrap());
                            }
                        }
                    },
                    Err(error) => {
                        assert_eq!(chunked.decode(&mut input).unwrap_err(), error);
                        return (data, trailers, Err(error));
                    }
                }
            }
        }
        let left = String::from_utf8(input.to_vec()).unwrap();
        (data, trailers, if chunked.is_ended() { Ok(left) } else { Err(InvalidBody::Incomplete) })
    }

    /// Decodes a body at once, in two pieces that are cut anywhere, and octet by octet.
    #[track_caller]
    fn assert_decodes(octets: &str, data: &str, trailers: &str, end: Result<&str, InvalidBody>) {
        let expected = (data.to_owned(), trailers.to_owned(), end.map(str::to_owned));
        let octets = octets.as_bytes();
        for cut in 0..octets.len() {
            let (one, other) = octets.split_at(cut);
            assert_eq!(decode([one, other]), expected, "{:?} cut at {cut}", String::from_utf8_lossy(octets));
        }
        assert_eq!(decode(octets.chunks(1)), expected, "{:?}", String::from_utf8_lossy(octets));
    }

    #[test]
    fn chunks_are_decoded_wherever_the_input_is_cut() {
        for (octets, data, trailers, left) in [
            ("0\r\n\r\n", "", "", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello", "", ""),
            ("5\r\nhello\r\n0\r\n\r\nHTTP/1.1 200 OK", "hello", "", "HTTP/1.1 200 OK"),
            ("1\r\na\r\n2\r\nbc\r\n3\r\ndef\r\n000\r\n\r\n", "abcdef", "", ""),
            ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789", "", ""),
            ("0000000000000002\r\nab\r\n0000000000000000\r\n\r\n", "ab", "", ""),
            ("2 \t\r\nab\r\n0 \r\n\r\n", "ab", "", ""),
            ("2;a=b\r\nab\r\n2 ; a=\"\t,;\u{e4}\"\r\ncd\r\n0;\r\n\r\n", "abcd", "", ""),
            ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n", "", ""),
            ("1\r\na\r\n0\r\nA: b\r\n\r\n", "a", "a: b\n", ""),
            ("0\r\nA: b\r\nB:\r\nA:c \r\n\r\nleft", "", "a: b\na: c\nb: \n", "left"),
        ] {
            assert_decodes(octets, data, trailers, Ok(left));
        }
    }

    #[test]
    fn a_body_that_is_cut_is_incomplete() {
        let octets = b"2;a\r\nab\r\n0\r\nA: b\r\n\r\n";
        for length in 0..octets.len() {
            assert_eq!(decode([&octets[..length]]).2, Err(InvalidBody::Incomplete), "{length}");
        }
    }

    #[test]
    fn invalid_chunks_are_refused_behind_the_data_before_them() {
        for (octets, what) in [
            ("\r\n", "its size is missing"),
            (" 1\r\n", "its size is missing"),
            ("-1\r\n", "its size is missing"),
            ("+1\r\n", "its size is missing"),
            (";a\r\n", "its size is missing"),
            ("1x\r\n", "its size isn't a hexadecimal number in a line"),
            ("0x1\r\n", "its size isn't a hexadecimal number in a line"),
            ("1 1\r\n", "its size isn't a hexadecimal number in a line"),
            ("1\n", "its size isn't a hexadecimal number in a line"),
            ("1\ra", "its size isn't a hexadecimal number in a line"),
            ("1\r\r\n", "its size isn't a hexadecimal number in a line"),
            ("00000000000000001\r\n", "its size has more than 16 digits"),
            ("FFFFFFFFFFFFFFFFF\r\n", "its size has more than 16 digits"),
            ("1;a\n", "its extension contains a control character"),
            ("1;a\0\r\n", "its extension contains a control character"),
            ("1;a\x7f\r\n", "its extension contains a control character"),
            ("1;a\rb\r\n", "its size isn't a hexadecimal number in a line"),
            ("1\r\nab\r\n", "it's longer than its size"),
            ("1\r\na\n", "it's longer than its size"),
            ("1\r\na\rb", "it's longer than its size"),
        ] {
            let data = if octets.contains('\n') && octets.starts_with("1\r\na") { "aba" } else { "ab" };
            assert_decodes(&format!("2\r\nab\r\n{octets}"), data, "", Err(InvalidBody::Chunk(what)));
        }
    }

    #[test]
    fn invalid_trailers_are_refused() {
        for (octets, what) in [
            ("A: b\n\r\n", "a line ends without CR"),
            ("A: b\r\n\n", "a line ends without CR"),
            ("\n", "a line ends without CR"),
            ("A : b\r\n\r\n", "invalid field line"),
            ("A\r\n\r\n", "invalid field line"),
            (": b\r\n\r\n", "invalid field line"),
            ("A: b\r\n c\r\n\r\n", "invalid field line"),
            ("A: b\0\r\n\r\n", "invalid field line"),
            ("A: \rb\r\n\r\n", "invalid field line"),
            ("A: 1\r\nB: 2\r\nC: 3\r\nD: 4\r\n\r\n", "too many fields"),
        ] {
            assert_decodes(&format!("2\r\nab\r\n0\r\n{octets}"), "ab", "", Err(InvalidBody::Trailers(what)));
        }
        let value = "v".repeat(256 - "A: \r\n\r\n".len());
        assert_decodes(&format!("0\r\nA: {value}\r\n\r\n"), "", &format!("a: {value}\n"), Ok(""));
        assert_decodes(&format!("0\r\nA: {value}v\r\n\r\n"), "", "", Err(InvalidBody::Trailers("too many bytes")));
    }

    #[test]
    fn trailers_may_have_as_many_lines_as_the_limit() {
        let lines: String = (0..200).map(|number| format!("x-{number}: y\r\n")).collect();
        for (fields, outcome) in [(200, Ok(200)), (199, Err(InvalidBody::Trailers("too many fields")))] {
            let mut chunked = Chunked::new(Limits { bytes: 10_000, fields });
            let frame = chunked.decode(&mut BytesMut::from(&*format!("0\r\n{lines}\r\n")));
            assert_eq!(frame.map(|frame| frame.unwrap().into_trailers().unwrap().len()), outcome);
        }
    }

    #[test]
    fn small_chunks_become_one_frame_without_a_copy_elsewhere() {
        let mut input = BytesMut::from(&b"3\r\nabc\r\n1;x\r\nd\r\n2\r\nef\r\n0\r\n\r\n"[..]);
        let start = input.as_ptr();
        let mut chunked = Chunked::new(LIMITS);
        let data = chunked.decode(&mut input).unwrap().unwrap().into_data().unwrap();
        assert_eq!((&data[..], data.as_ptr(), chunked.is_ended()), (&b"abcdef"[..], start.wrapping_add(3), true));
    }

    #[test]
    fn large_chunks_are_frames_of_their_own() {
        for (sizes, frames) in [
            (&[JOINED, 1][..], &[JOINED, 1][..]),
            (&[JOINED - 1, 1, 1], &[JOINED, 1]),
            (&[1, JOINED - 1], &[JOINED]),
            (&[1, JOINED], &[1, JOINED]),
            (&[3 * JOINED, 2 * JOINED], &[3 * JOINED, 2 * JOINED]),
        ] {
            let mut input = BytesMut::new();
            for (number, &size) in sizes.iter().enumerate() {
                input.extend_from_slice(format!("{size:x}\r\n{}\r\n", number.to_string().repeat(size)).as_bytes());
            }
            input.extend_from_slice(b"0\r\n\r\n");
            let mut chunked = Chunked::new(LIMITS);
            let mut data = String::new();
            for &frame in frames {
                let octets = chunked.decode(&mut input).unwrap().unwrap().into_data().unwrap();
                assert_eq!(octets.len(), frame, "{sizes:?}");
                data += std::str::from_utf8(&octets).unwrap();
            }
            let expected: String =
                sizes.iter().enumerate().map(|(number, &size)| number.to_string().repeat(size)).collect();
            assert!(chunked.is_ended() && data == expected, "{sizes:?}");
        }
    }

    #[test]
    fn the_extensions_of_a_body_are_limited() {
        let body = |extensions: usize| format!("1;{}\r\na\r\n", "x".repeat(99)).repeat(extensions / 100) + "0\r\n\r\n";
        assert_eq!(decode([body(16_300).as_bytes()]).2, Ok(String::new()));
        let error = Err(InvalidBody::Chunk("too many extensions"));
        assert_eq!(decode([body(16_400).as_bytes()]).2, error);
        assert_eq!(decode(body(16_400).as_bytes().chunks(1)).2, error);
        assert_eq!(decode([format!("1{}\r\n", " ".repeat(20_000)).as_bytes()]).2, error);
    }

    #[test]
    fn trailers_that_come_octet_by_octet_cost_linear_work() {
        let octets = format!("0\r\nA: {}\r\n\r\n", "v".repeat(100_000));
        let mut chunked = Chunked::new(Limits { bytes: 1_000_000, fields: 3 });
        let mut input = BytesMut::new();
        for octet in octets.as_bytes().chunks(1) {
            input.extend_from_slice(octet);
            let _ = chunked.decode(&mut input).unwrap();
        }
        assert!(chunked.is_ended() && chunked.attempts.count < 50, "{}", chunked.attempts.count);
    }
}

//! Responses, good and bad.

use http::Method;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
};

use super::{
    super::{super::Limits, response::Case},
    list, rare,
};

pub(in super::super) fn case() -> impl Strategy<Value = Case> {
    let octets = prop_oneof![
        12 => message(),
        3 => (message(), vec(mutation(), 1..4)).prop_map(|(octets, mutations)| mutate(octets, &mutations)),
        1 => random(),
    ];
    (method(), limits(), octets, pieces()).prop_map(|(method, limits, octets, pieces)| Case {
        method,
        limits: limits.of(&octets),
        octets,
        pieces,
    })
}

fn method() -> impl Strategy<Value = Method> {
    prop_oneof![6 => Just(Method::GET), 1 => Just(Method::HEAD)]
}

#[derive(Clone, Copy, Debug)]
enum Limit {
    Usual,
    Small(usize, usize),
    /// As many bytes as the first head has, or the trailers; and one less or more.
    Bytes(bool, usize),
    /// As many fields; and one less or more.
    Fields(bool, usize),
}

fn limits() -> impl Strategy<Value = Limit> {
    prop_oneof![
        20 => Just(Limit::Usual),
        1 => (16..300_usize, 1..8_usize).prop_map(|(bytes, fields)| Limit::Small(bytes, fields)),
        3 => (any::<bool>(), 0..3_usize).prop_map(|(of_trailers, bytes)| Limit::Bytes(of_trailers, bytes)),
        1 => (any::<bool>(), 0..3_usize).prop_map(|(of_trailers, fields)| Limit::Fields(of_trailers, fields)),
    ]
}

impl Limit {
    fn of(self, octets: &[u8]) -> Limits {
        let usual = Limits { bytes: 256 * 1024, fields: 256 };
        match self {
            Self::Usual => usual,
            Self::Small(bytes, fields) => Limits { bytes, fields },
            Self::Bytes(of_trailers, more) => {
                Limits { bytes: (section(octets, of_trailers).len() + more).saturating_sub(1).max(8), ..usual }
            }
            Self::Fields(of_trailers, more) => {
                let lines = section(octets, of_trailers).iter().filter(|&&octet| octet == b'\n').count();
                // The empty line is no field, and the status line neither.
                Limits { fields: (lines + more).saturating_sub(if of_trailers { 2 } else { 3 }).max(1), ..usual }
            }
        }
    }
}

/// The first head, or what are trailers if the body is chunked.
fn section(octets: &[u8], of_trailers: bool) -> &[u8] {
    let start = if of_trailers { b"\r\n0\r\n" } else { &b""[..] };
    let start =
        octets.windows(start.len().max(1)).position(|part| part.starts_with(start)).map_or(0, |at| at + start.len());
    let octets = &octets[start..];
    let end = octets.windows(4).position(|part| part == b"\r\n\r\n").map_or(octets.len(), |at| at + 4);
    &octets[..end]
}

fn pieces() -> impl Strategy<Value = Vec<usize>> {
    prop_oneof![
        3 => Just(vec![]),
        2 => vec(1..20_usize, 1..8),
        1 => Just(vec![1]),
        1 => vec(prop_oneof![1..4_usize, 1..300_usize, 8000..20_000_usize], 1..6),
    ]
}

// ---- Messages ----

fn message() -> impl Strategy<Value = Vec<u8>> {
    let interim = prop_oneof![
        8 => Just(Vec::new()),
        1 => vec((interim_line(), vec(field(), 0..3), ending()), 1..4),
    ];
    let head = (
        rare(b"", &[b"\r\n", b"\n", b"\r", b" ", b"\r\n\r\n"]),
        status_line(),
        vec(field(), 0..5),
        any::<Index>(),
        ending(),
    );
    (interim, head, framing(), body(), trailers(), stray()).prop_map(
        |(interim, (before, status_line, mut fields, at, end), framing, body, trailers, stray)| {
            let mut octets = Vec::new();
            for (status_line, fields, end) in interim {
                octets.extend([status_line, fields.concat(), end].concat());
            }
            octets.extend_from_slice(before);
            octets.extend(status_line);
            fields.insert(at.index(fields.len() + 1), framing.lines(&body));
            octets.extend(fields.concat());
            octets.extend(end);
            if framing.is_chunked() {
                octets.extend(body.iter().flat_map(Chunk::encoded));
                octets.extend(trailers);
            } else {
                octets.extend(body.iter().flat_map(|chunk| &chunk.data));
            }
            octets.extend(stray);
            octets
        },
    )
}

fn status_line() -> impl Strategy<Value = Vec<u8>> {
    let version = prop_oneof![
        40 => Just(b"HTTP/1.1 ".to_vec()),
        8 => Just(b"HTTP/1.0 ".to_vec()),
        1 => list![
            b"HTTP/1.1  ", b"HTTP/1.1\t", b"HTTP/1.1", b"HTTP/1.2 ", b"HTTP/2.0 ", b"HTTP/0.9 ", b"http/1.1 ", b"HTTP/11 ",
            b"HTTP/1.1\r ", b"HTTP/ 1.1 ", b"ICY ", b"", b" HTTP/1.1 ", b"HTTP/01.1 ",
        ],
    ];
    let code = prop_oneof![
        30 => Just(b"200".to_vec()),
        10 => list![b"204", b"304", b"101", b"404", b"500", b"206", b"205", b"401", b"407", b"299"],
        2 => list![
            b"100", b"103", b"199", b"999", b"600", b"099", b"000", b"20", b"2000", b"2 0", b"+20", b"-20", b"abc", b"", b"0x0",
            b"20\x00", b"\xb2\xb0\xb0",
        ],
    ];
    let reason = prop_oneof![
        20 => Just(b" OK".to_vec()),
        6 => list![
            b"", b" ", b" Not Found", b" OK ", b"  OK", b" \tOK", b" Tr\xe8s bien", b" \xff", b" OK\x00", b" O\x7fK", b" O\x1bK",
            b"\tOK", b"OK", b" O\rK",
        ],
        1 => vec(any::<u8>(), 0..12).prop_map(|reason| [b" ", &reason[..]].concat()),
    ];
    (version, code, reason, line_end())
        .prop_map(|(version, code, reason, end)| [&version, &code, &reason, end].concat())
}

fn interim_line() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => list![
            b"HTTP/1.1 100 Continue\r\n", b"HTTP/1.1 103 Early Hints\r\n", b"HTTP/1.1 102 Processing\r\n", b"HTTP/1.1 199 \r\n",
            b"HTTP/1.0 100 Continue\r\n", b"HTTP/1.1 100\r\n",
        ],
        1 => status_line(),
    ]
}

/// What comes after a line.
fn line_end() -> impl Strategy<Value = &'static [u8]> {
    rare(b"\r\n", &[b"\n", b"\r", b"\r\r\n", b"", b" \r\n", b"\n\r", b"\x00\r\n"])
}

/// The empty line that ends a head.
fn ending() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        40 => Just(b"\r\n".to_vec()),
        1 => list![b"\n", b"\r", b"", b" \r\n", b"\r\r\n", b"\r\n\r\n", b"\n\r\n", b"\r\nx"],
    ]
}

// ---- Fields ----

fn field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => list![
            b"Date: Thu, 26 Nov 2026 22:38:40 GMT\r\n", b"Server: x\r\n", b"Set-Cookie: a=b; Path=/\r\n", b"set-cookie: c=d\r\n",
            b"Content-Type: text/plain\r\n", b"ETag: \"1\"\r\n", b"Trailer: Digest\r\n", b"Via: 1.1 a\r\n", b"Vary: *\r\n",
        ],
        4 => connection(),
        4 => (name(), colon(), value(), line_end())
            .prop_map(|(name, colon, value, end)| [&name, &colon, &value, end].concat()),
        1 => framing_field(),
    ]
}

fn connection() -> impl Strategy<Value = Vec<u8>> {
    list![
        b"Connection: keep-alive\r\n",
        b"Connection: close\r\n",
        b"connection: Close\r\n",
        b"Connection: Keep-Alive\r\n",
        b"Connection: keep-alive, close\r\n",
        b"Connection: close, keep-alive\r\n",
        b"Connection: x,close\r\n",
        b"Connection: x , close ,\r\n",
        b"Connection: closed\r\n",
        b"Connection: \"close\"\r\n",
        b"Connection: close;q=1\r\n",
        b"Connection:\r\n",
        b"Connection: ,\r\n",
        b"Connection: upgrade\r\nUpgrade: x\r\n",
        b"Connection: close\xff\r\n",
        b"Connection: close, \xff\r\n",
        b"Connection: \xff, keep-alive\r\n",
        b"Connection : close\r\n",
        b"Proxy-Connection: close\r\n",
        b"Keep-Alive: timeout=5\r\n",
    ]
}

fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        50 => list![b"X", b"x-a", b"A", b"X_A", b"!#$%&'*+-.^_`|~", b"0"],
        3 => list![
            b"", b"X\xff", b"X A", b"\tX", b" X", b"X\x00", b"X\r", b"X(", b"\"X\"", b"X/", b"X[", b"\x7f", b"@",
        ],
        1 => vec(any::<u8>(), 0..6),
        1 => (1..400_usize).prop_map(|size| vec![b'x'; size]),
    ]
}

fn colon() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        30 => Just(b": ".to_vec()),
        2 => list![b":", b":\t", b":  \t ", b" :", b" : ", b"\t: ", b" \t \t:", b"::", b"", b"\r\n:", b"\x0b: ", b":\x0c", b" "],
    ]
}

fn value() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => "[ -~]{0,12}".prop_map(String::into_bytes),
        3 => list![
            b"", b" ", b"a ", b"a\t ", b"\xff", b"a\xe9b", b"a\tb", b"\x80",
            b"a\r\n b", b"a\r\n\tb", b"\r\n b", b"a\n b", b"a\r\n ", b"a\rb", b"a\x00b", b"a\x7fb", b"a\x1bb", b"a\x0bb", b"\x0c", b"a\r",
        ],
        1 => vec(any::<u8>(), 0..12),
        1 => (0..600_usize).prop_map(|size| vec![b'v'; size]),
    ]
}

/// A field that frames or nearly does, where the message has another one.
fn framing_field() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![length_lines("5"), length_lines("0"), coding_lines()]
}

// ---- Framing ----

#[derive(Clone, Debug)]
enum Framing {
    /// A `Content-Length`, so many octets more than the body has, written in a way of [`LENGTHS`].
    Length(i64, usize),
    Chunked(Vec<u8>),
    Close,
    /// Lines of both kinds, and whether the body is chunked.
    Mixed(Vec<u8>, bool),
}

fn framing() -> impl Strategy<Value = Framing> {
    let delta = prop_oneof![20 => Just(0_i64), 1 => -3..4_i64, 1 => Just(1000)];
    let spelling = prop_oneof![8 => Just(0_usize), 1 => 0..LENGTHS.len()];
    let coding = prop_oneof![8 => Just(b"Transfer-Encoding: chunked\r\n".to_vec()), 1 => coding_lines()];
    prop_oneof![
        10 => (delta, spelling).prop_map(|(delta, spelling)| Framing::Length(delta, spelling)),
        10 => coding.prop_map(Framing::Chunked),
        4 => Just(Framing::Close),
        2 => (vec(framing_field(), 1..4), any::<bool>()).prop_map(|(lines, chunked)| Framing::Mixed(lines.concat(), chunked)),
    ]
}

impl Framing {
    fn lines(&self, body: &[Chunk]) -> Vec<u8> {
        match self {
            Self::Length(delta, spelling) => {
                let length = body.iter().map(|chunk| chunk.data.len()).sum::<usize>();
                let length = i64::try_from(length).unwrap() + delta;
                LENGTHS[*spelling].replace('#', &length.max(0).to_string()).into_bytes()
            }
            Self::Chunked(lines) | Self::Mixed(lines, _) => lines.clone(),
            Self::Close => Vec::new(),
        }
    }

    fn is_chunked(&self) -> bool {
        matches!(self, Self::Chunked(_) | Self::Mixed(_, true))
    }
}

/// `#` is the length.
const LENGTHS: [&str; 29] = [
    "Content-Length: #\r\n",
    "content-length:#\r\n",
    "Content-Length: \t # \t\r\n",
    "Content-Length: #\r\nContent-Length: #\r\n",
    "Content-Length: #, #\r\n",
    "Content-Length: #,#\r\nContent-Length: #\r\n",
    "Content-Length: 00#\r\n",
    "Content-Length: #, 0#\r\n",
    "Content-Length: #\r\nContent-Length: 1#\r\n",
    "Content-Length: 1#\r\nContent-Length: #\r\n",
    "Content-Length: #, 1#\r\n",
    "Content-Length: #,\r\n",
    "Content-Length: ,#\r\n",
    "Content-Length: #,,#\r\n",
    "Content-Length:\r\n",
    "Content-Length:\r\nContent-Length: #\r\n",
    "Content-Length: +#\r\n",
    "Content-Length: -#\r\n",
    "Content-Length: # #\r\n",
    "Content-Length: #.0\r\n",
    "Content-Length: 0x#\r\n",
    "Content-Length: #;\r\n",
    "Content-Length: \"#\"\r\n",
    "Content-Length: #\u{ff}\r\n",
    "Content-Length: 18446744073709551615\r\n",
    "Content-Length: 18446744073709551613\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Content-Length: 18446744073709551#\r\n",
    "Content-Length : #\r\n",
];

fn length_lines(length: &'static str) -> impl Strategy<Value = Vec<u8>> {
    select(&LENGTHS[..]).prop_map(move |lines| lines.replace('#', length).into_bytes())
}

fn coding_lines() -> impl Strategy<Value = Vec<u8>> {
    list![
        b"Transfer-Encoding: chunked\r\n",
        b"transfer-encoding:Chunked\r\n",
        b"Transfer-Encoding: \tchunked \t\r\n",
        b"Transfer-Encoding: gzip, chunked\r\n",
        b"Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: chunked, gzip\r\n",
        b"Transfer-Encoding: chunked, chunked\r\n",
        b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: gzip\r\n",
        b"Transfer-Encoding: identity\r\n",
        b"Transfer-Encoding: identity, chunked\r\n",
        b"Transfer-Encoding: chunked;q=1\r\n",
        b"Transfer-Encoding: \"chunked\"\r\n",
        b"Transfer-Encoding: xchunked\r\n",
        b"Transfer-Encoding: x chunked\r\n",
        b"Transfer-Encoding: chunkedx\r\n",
        b"Transfer-Encoding: ,chunked\r\n",
        b"Transfer-Encoding: chunked,\r\n",
        b"Transfer-Encoding: ,\r\n",
        b"Transfer-Encoding:\r\n",
        b"Transfer-Encoding:\r\nTransfer-Encoding: chunked\r\n",
        b"Transfer-Encoding: chunked\xff\r\n",
        b"Transfer-Encoding: \xff, chunked\r\n",
        b"Transfer-Encoding: chunked\x0b\r\n",
        b"Transfer-Encoding : chunked\r\n",
        b"Transfer_Encoding: chunked\r\n",
    ]
}

// ---- Bodies ----

#[derive(Clone, Debug)]
struct Chunk {
    data: Vec<u8>,
    /// Before and behind the digits of the size: zeros, blanks, extensions.
    digits: (&'static str, Vec<u8>),
    is_upper: bool,
    /// After the line of the size, and after the data.
    ends: (&'static [u8], &'static [u8]),
}

fn body() -> impl Strategy<Value = Vec<Chunk>> {
    vec(chunk(), 0..4)
}

fn chunk() -> impl Strategy<Value = Chunk> {
    let data = prop_oneof![
        20 => vec(any::<u8>(), 1..20),
        2 => Just(Vec::new()),
        2 => (20..300_usize).prop_map(|size| vec![b'd'; size]),
        1 => (4000..20_000_usize).prop_map(|size| vec![b'D'; size]),
    ];
    let before = prop_oneof![
        40 => Just(""),
        2 => select(&["0", "0000", "000000000000000", "0000000000000000", "00000000000000000000"][..]),
        1 => select(&[" ", "+", "0x", "-", "\r\n", "g", "10000000000000000", "F", "FFFFFFFFFFFFFFF"][..]),
    ];
    (data, before, extension(), any::<bool>(), chunk_end(), chunk_end()).prop_map(
        |(data, before, extension, is_upper, end, behind)| Chunk {
            data,
            digits: (before, extension),
            is_upper,
            ends: (end, behind),
        },
    )
}

impl Chunk {
    fn encoded(&self) -> Vec<u8> {
        let size = self.data.len();
        let size = if self.is_upper { format!("{size:X}") } else { format!("{size:x}") };
        [self.digits.0.as_bytes(), size.as_bytes(), &self.digits.1, self.ends.0, &self.data, self.ends.1].concat()
    }
}

fn extension() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => Just(Vec::new()),
        2 => list![
            b";a", b";a=b", b";a=\"b;c\"", b";", b";;", b" ;a", b"\t; a = b", b" ", b"\t", b" \t ", b";a=\"\\\"\"", b";\xff", b";\x00", b";\x7f",
            b";a\rb", b" 1", b",a", b"h", b".", b";a \t", b"\x0b", b";\x1b", b";=", b";a=\"",
        ],
        1 => prop_oneof![9 => 0..400_usize, 1 => 8000..17_000_usize]
            .prop_map(|size| [b";", &vec![b'e'; size][..]].concat()),
    ]
}

fn chunk_end() -> impl Strategy<Value = &'static [u8]> {
    rare(b"\r\n", &[b"\n", b"\r", b"", b"\r\r\n", b"x", b" \r\n", b"\n\r", b"\rx", b"xx"])
}

/// What follows the last chunk's data: the chunk of size zero, and trailers.
fn trailers() -> impl Strategy<Value = Vec<u8>> {
    let last = prop_oneof![
        20 => Just(b"0".to_vec()),
        1 => list![b"00", b"0000000000000000000000", b"", b"0;a", b"0 ", b"0;", b"-0", b"0x0", b"000"],
    ];
    let fields = prop_oneof![
        6 => Just(Vec::new()),
        3 => vec(prop_oneof![
            4 => Just(b"Digest: x\r\n".to_vec()),
            // Larger than most heads.
            2 => (60..300_usize).prop_map(|size| [b"Digest: ", &vec![b'v'; size][..], b"\r\n"].concat()),
            2 => field(),
            1 => (name(), colon(), value(), line_end()).prop_map(|(name, colon, value, end)| [&name, &colon, &value, end].concat()),
        ], 1..4),
    ];
    (last, chunk_end(), fields, ending())
        .prop_map(|(last, end, fields, ending)| [&last, end, &fields.concat(), &ending].concat())
}

/// What comes after the message.
fn stray() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        20 => Just(Vec::new()),
        1 => list![
            b"\r\n", b"\n", b"\r", b" ", b"x", b"\x00", b"0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n",
        ],
    ]
}

fn random() -> impl Strategy<Value = Vec<u8>> {
    let octet = prop_oneof![2 => any::<u8>(), 3 => select(&b"\r\n \t:;,0123456789abcHTP/.chunked"[..])];
    let start = list![
        b"",
        b"HTTP/1.1 ",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n",
        b"HTTP/1.0 200 OK\r\n\r\n",
    ];
    (start, vec(octet, 0..60)).prop_map(|(start, octets)| [start, octets].concat())
}

// ---- Mutations ----

#[derive(Clone, Debug)]
enum Mutation {
    Cut(Index),
    Set(Index, u8),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
}

fn mutation() -> impl Strategy<Value = Mutation> {
    let octet = prop_oneof![2 => select(&b"\r\n \t\x00:;,0123456789"[..]), 1 => any::<u8>()];
    prop_oneof![
        any::<Index>().prop_map(Mutation::Cut),
        (any::<Index>(), octet.clone()).prop_map(|(at, octet)| Mutation::Set(at, octet)),
        (any::<Index>(), vec(octet, 1..4)).prop_map(|(at, octets)| Mutation::Insert(at, octets)),
        (any::<Index>(), 1..10_usize).prop_map(|(at, size)| Mutation::Remove(at, size)),
        (any::<Index>(), 1..40_usize).prop_map(|(at, size)| Mutation::Repeat(at, size)),
    ]
}

fn mutate(mut octets: Vec<u8>, mutations: &[Mutation]) -> Vec<u8> {
    for mutation in mutations {
        let len = octets.len();
        if len == 0 {
            break;
        }
        match mutation {
            Mutation::Cut(at) => octets.truncate(at.index(len)),
            Mutation::Set(at, octet) => octets[at.index(len)] = *octet,
            Mutation::Insert(at, new) => drop(octets.splice(at.index(len)..at.index(len), new.iter().copied())),
            Mutation::Remove(at, size) => drop(octets.drain(at.index(len)..len.min(at.index(len) + size))),
            Mutation::Repeat(at, size) => {
                let range = at.index(len)..len.min(at.index(len) + size);
                let again = octets[range.clone()].to_vec();
                drop(octets.splice(range.start..range.start, again));
            }
        }
    }
    octets
}
